"""The measures of redundancy have the values that a hand derives, and the maps are those that the model computes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from psvit import Arch, PSViT
from psvit.analysis.find_layers import find_layers
from psvit.analysis.layers import Layer
from psvit.analysis.maps import Change, look, run_changed
from psvit.analysis.passes import (
    comparable,
    first_pass,
    matched,
    partners,
    second_pass,
    sharing,
    source_of,
    token_measures,
)
from psvit.analysis.redundancy import (
    attention_distance,
    centred,
    cka,
    divergence,
    effective_rank,
    hsic,
    kept_by_pooling,
    map_similarity,
    match_heads,
    neighbour_cosine,
    pair_cosine,
    pooled,
    row_entropy,
)
from psvit.data.samples import Batch
from psvit.errors import UserError
from psvit.models.macs import explicit_attention

CPU = torch.device("cpu")


def softmaxed(*shape: int, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(*shape)).softmax(dim=-1)


# maps


def test_divergence_is_0_for_equal_and_1_bit_for_disjoint_rows() -> None:
    p = softmaxed(2, 3, 5, 5)
    assert torch.equal(divergence(p, p), torch.zeros(2, 3))
    one, other = torch.eye(4)[[0] * 4], torch.eye(4)[[3] * 4]
    assert float(divergence(one, other)) == 1.0
    assert float(divergence(one, torch.eye(4)[[0, 0, 3, 3]])) == 0.5  # the mean over rows
    a, b = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))  # of their mean
    assert float(divergence(a, b)) == pytest.approx(entropy - 0.5, abs=1e-6)
    assert_close(divergence(b, a, (row_entropy(b), row_entropy(a))), divergence(a, b))


def test_similarity_is_numpys_correlation() -> None:
    maps = softmaxed(4, 6, 6)
    cosine, correlation = map_similarity(maps)
    flat = maps.flatten(1).double()
    assert_close(correlation, torch.corrcoef(flat), atol=1e-6, rtol=0)
    assert_close(cosine, nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1), atol=1e-6, rtol=0)


def test_matching_recovers_a_permutation() -> None:
    maps, order = softmaxed(5, 8, 8), [3, 0, 4, 1, 2]
    correlation = map_similarity(torch.cat([maps, maps[order]]))[1][:5, 5:]
    rows, columns = match_heads(correlation)
    assert rows == (0, 1, 2, 3, 4)
    assert [order[column] for column in columns] == [0, 1, 2, 3, 4]
    rows, columns = match_heads(correlation[:, :2])  # fewer heads: as many pairs
    assert [(row, order[column]) for row, column in zip(rows, columns, strict=True)] == [(0, 0), (3, 3)]


def test_attention_distance_in_pixels() -> None:
    positions = torch.tensor([[8.0, 8.0], [8.0, 24.0], [24.0, 8.0], [24.0, 24.0]])  # 2 x 2 patches of 16 pixels
    nearest, across = torch.eye(4), torch.eye(4)[[1, 0, 3, 2]]
    diagonal, uniform = torch.eye(4)[[3, 2, 1, 0]], torch.full((4, 4), 0.25)
    found = attention_distance(torch.stack([nearest, across, diagonal, uniform])[None], positions)
    expected = [0, 16, 16 * math.sqrt(2), (16 + 16 + 16 * math.sqrt(2)) / 4]
    assert_close(found, torch.tensor([expected]))
    with_class = torch.zeros(1, 1, 5, 5)  # half of each row goes to the class token, which has no place
    with_class[..., 1:, 1:], with_class[..., 0] = across / 2, 0.5
    assert_close(attention_distance(with_class, positions), torch.tensor([[16.0]]))


# tokens


def test_neighbours_on_the_grid() -> None:
    assert neighbour_cosine(torch.ones(1, 12, 3), (3, 4)).tolist() == pytest.approx([1])
    board = torch.tensor([[(r + c) % 2, 1 - (r + c) % 2] for r in range(4) for c in range(4)]).float()
    assert neighbour_cosine(board[None], (4, 4)).tolist() == pytest.approx([0])  # a chess board
    assert pair_cosine(board[None]).tolist() == pytest.approx([7 / 15])
    rows = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)  # 2 x 3: four pairs in the rows alike, three below not
    assert neighbour_cosine(rows[None], (2, 3)).tolist() == pytest.approx([4 / 7])
    assert neighbour_cosine(rows[None], (1, 6)).tolist() == pytest.approx([4 / 5])  # a sequence


def test_effective_rank() -> None:
    orthogonal = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q
    assert effective_rank(5 * orthogonal[None, :4]).tolist() == pytest.approx([4])
    two = torch.diag(torch.tensor([3.0, 1.0]))  # shares 3/4 and 1/4
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert effective_rank(two[None]).tolist() == pytest.approx([expected])
    assert effective_rank(centred(torch.ones(1, 5, 3) * torch.arange(3))).tolist() == [0]
    layer = Layer("", "", "A", 0, 1, 4, 0, 9, None, None, False)
    found = token_measures(layer, orthogonal[None, :4])
    assert found["rank_fraction"].tolist() == pytest.approx([1])
    assert found["rank_centred_fraction"].tolist() == pytest.approx([1])  # of the 3 that centred tokens can have


def test_pooling_spread_back() -> None:
    tokens = torch.arange(6.0).reshape(1, 6, 1)
    windows = torch.tensor([0, 0, 1, 1, 1, 2])
    assert pooled(tokens, windows).flatten().tolist() == [0.5, 0.5, 3, 3, 3, 5]
    assert kept_by_pooling(pooled(tokens, windows), windows).tolist() == pytest.approx([1])
    opposite = torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]])
    assert kept_by_pooling(opposite, torch.tensor([0, 0, 1, 1])).tolist() == pytest.approx([0])


# layers


def test_cka() -> None:
    x, y = torch.randn(40, 10), torch.randn(40, 7)
    turned = 3 * x @ torch.linalg.qr(torch.randn(10, 10)).Q + 5
    found = cka([x, turned, y])
    assert_close(found.diagonal(), torch.ones(3, dtype=torch.float64))
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-5)
    assert_close(found, found.T)


def test_hsic_by_its_formula() -> None:
    x, y, n = torch.randn(6, 3).double(), torch.randn(6, 2).double(), 6
    k, m = x @ x.T, y @ y.T
    a, b, ones = k - k.diagonal().diag(), m - m.diagonal().diag(), torch.ones(6, dtype=torch.float64)
    expected = torch.trace(a @ b) + (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
    expected = (expected - 2 / (n - 2) * ones @ a @ b @ ones) / (n * (n - 3))
    assert_close(hsic(k, m), expected)
    with pytest.raises(ValueError, match="at least 4"):
        hsic(k[:3, :3], m[:3, :3])


# maps of models


def explicit(build: Callable[[], Any]) -> Any:
    """The model, with explicit attention, the same weights each time, and maps that are far from uniform."""
    torch.manual_seed(1)
    with explicit_attention():
        model = build().eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "qkv.weight" in name:
                weights.mul_(20)
    return model


def deit(**changes: Any) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **{**sizes, **changes})
    return model


def psvit(genotype: str = "AAS-ASS", pooling: Any = "2d", **changes: Any) -> PSViT:
    widths = tuple(16 + 8 * stage for stage in range(genotype.count("-") + 1))
    return PSViT(Arch(genotype, widths, head_dim=8, pooling=pooling, patch_size=4, **changes), 32, num_classes=5)


def test_the_maps_of_timm_are_those_of_its_queries_and_keys() -> None:
    model, images = explicit(deit), torch.randn(2, 3, 32, 32)
    layers, left_out = find_layers(model, "deit", images)
    seen = look(model, layers, images)
    assert ([layer.name for layer in layers], left_out) == (["blocks.0", "blocks.1", "blocks.2"], ())
    assert [(layer.heads, layer.tokens, layer.prefix, layer.grid) for layer in layers] == [(3, 17, 1, (4, 4))] * 3
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block, attn, tokens in zip(model.blocks, seen.maps, seen.tokens, strict=True):
        q, k, _ = block.attn.qkv(block.norm1(x)).reshape(2, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
        assert_close(attn, (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(dim=-1))
        x = block(x)
        assert torch.equal(x, tokens)


def test_a_layer_that_shares_has_bitwise_the_map_before() -> None:
    model, images = explicit(psvit), torch.randn(2, 3, 32, 32)
    layers, _ = find_layers(model, "psvit", images)
    seen = look(model, layers, images)
    assert [layer.kind for layer in layers] == list("AASASS")
    assert [source_of(layers, i) for i in range(6)] == [0, 1, 1, 3, 3, 3]
    assert [layer.grid for layer in layers] == [(8, 8)] * 3 + [(4, 4)] * 3
    assert comparable(layers) == [[3, 4, 5], [0, 1, 2]]
    assert all(torch.equal(seen.maps[i], seen.maps[i - 1]) for i in (2, 4, 5))


def test_looking_changes_no_output() -> None:
    images = torch.randn(2, 3, 32, 32)
    for build in (deit, psvit, lambda: psvit(pooling="1d")):
        model = explicit(build)
        layers, _ = find_layers(model, "model", images)
        plain = model(images)
        assert torch.equal(look(model, layers, images).output, plain)
        assert torch.equal(run_changed(model, layers, images, Change()), plain)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_without_such_maps_is_refused_in_one_line() -> None:
    for name, less, says in (
        ("test_resnet", {}, "test_resnet has no attention maps: give a vision transformer"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, "it attends within windows"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "not its number of tokens"),
        ("levit_128s", {}, "has no attention maps that can be read, its Attention makes none"),
        ("cait_xxs24_224", {"depth": 2}, "do not sum to 1"),
    ):
        model = explicit(lambda name=name, less=less: timm.create_model(name, **less))
        with pytest.raises(UserError, match=f"^.*{says}.*$"):
            find_layers(model, name, torch.zeros(2, 3, 224, 224))


def test_a_pooling_by_attention_is_left_out() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit, self.last = deit(num_classes=0), nn.Module()
            self.last.attn_drop = nn.Dropout(0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.vit.forward_features(x)  # type: ignore[operator]
            attn = self.last.attn_drop((x[:, None, :1] @ x[:, None].transpose(2, 3)).softmax(dim=-1))
            return (attn @ x[:, None]).flatten(1)  # type: ignore[no-any-return]

    layers, left_out = find_layers(explicit(Model), "it", torch.randn(2, 3, 32, 32))
    assert [layer.name for layer in layers] == ["vit.blocks.0", "vit.blocks.1", "vit.blocks.2"]
    assert left_out == ("last",)


# changes


def passes(model: Any, count: int = 12, size: int = 32) -> tuple[tuple[Layer, ...], Callable[[], list[Batch]]]:
    images, labels = torch.randn(count, 3, size, size), torch.arange(count) % 5
    layers, _ = find_layers(model, "model", images[:2])
    return layers, lambda: [Batch(images[i : i + 5], labels[i : i + 5], ()) for i in range(0, count, 5)]


def test_to_share_where_it_is_shared_changes_nothing() -> None:
    model = explicit(psvit)
    layers, batches = passes(model)
    heads = partners(layers, first_pass(model, layers, batches, CPU))
    already = [Change(maps={i: (i - 1, heads[i - 1, i][0])}) for i in (2, 4, 5)]
    costs = second_pass(model, layers, heads, already, batches, CPU, True).costs
    assert [(cost.loss, cost.error, cost.top1) for cost in costs] == [(0, 0, 0)] * 3
    change = sharing(layers, heads, {1: 0})
    assert sorted(change.maps) == [1, 2]  # the layer that shares the replaced map takes it along
    assert second_pass(model, layers, heads, [change], batches, CPU, True).costs[0].loss != 0


def test_a_replaced_map_is_what_a_sharing_layer_would_use() -> None:
    """AAA with the first map in all layers gives what ASS gives with the same values."""
    plain, shared = explicit(lambda: psvit("AAA")), explicit(lambda: psvit("ASS"))
    weights = dict(plain.state_dict())
    for i in (1, 2):
        for kind in ("weight", "bias"):
            qkv = weights.pop(f"stages.0.blocks.{i}.attn.qkv.{kind}")
            weights[f"stages.0.blocks.{i}.attn.v.{kind}"] = qkv[2 * len(qkv) // 3 :]
    shared.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    layers, _ = find_layers(plain, "plain", images)
    change = Change(maps={1: (0, (0, 1)), 2: (0, (0, 1))})
    assert_close(run_changed(plain, layers, images, change), shared(images))
    assert not torch.allclose(plain(images), shared(images), atol=1e-3)
    turned = Change(maps={1: (0, (1, 0))})
    assert not torch.allclose(run_changed(plain, layers, images, turned), run_changed(
        plain, layers, images, Change(maps={1: (0, (0, 1))})), atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("pooling", ["2d", "1d"])
def test_pooled_tokens_stay_pooled_and_prefix_tokens_as_they_are(pooling: str) -> None:
    model, images = explicit(lambda: psvit("AAA", pooling)), torch.randn(2, 3, 32, 32)
    layers, _ = find_layers(model, "psvit", images)
    windows = layers[0].windows()
    assert windows is not None
    before = look(model, layers, images).tokens[0]
    taken: list[Any] = []
    hooks = [module.register_forward_hook(lambda *call: taken.append(call[2])) for module in model.stages[0].blocks]
    run_changed(model, layers, images, Change(windows={0: windows}))
    for hook in hooks:
        hook.remove()
    prefix = layers[0].prefix
    last = taken[-1][0][:, prefix:]
    assert_close(last, pooled(last, windows))  # what is equal behind layer 1 is equal behind layer 3
    first = taken[0][0]  # these hooks came first: what the layer itself put out
    assert torch.equal(first, before)
    assert prefix == (pooling == "1d")


def test_passes_do_not_depend_on_the_batches() -> None:
    model = explicit(psvit)
    layers, batches = passes(model)

    def one_by_one() -> list[Batch]:
        return [Batch(batch.images[i : i + 1], batch.labels[i : i + 1], ()) for batch in batches()
                for i in range(len(batch.labels))]  # fmt: skip

    a, b = (first_pass(model, layers, how, CPU) for how in (batches, one_by_one))
    assert a.images == b.images == 12
    assert_close(a.cka, b.cka, atol=1e-5, rtol=1e-4)
    heads = partners(layers, a)
    for one, other in zip(matched(layers, a, heads), matched(layers, b, partners(layers, b)), strict=True):
        for row, same in zip(one, other, strict=True):
            assert [v for v in row if v is not None] == pytest.approx([v for v in same if v is not None], abs=1e-5)
    a, b = (second_pass(model, layers, heads, [], how, CPU, True) for how in (batches, one_by_one))
    assert a.loss == pytest.approx(b.loss, abs=1e-6)
    assert a.divergence[0][0][1] == pytest.approx(b.divergence[0][0][1], abs=1e-6)
    assert a.divergence[0][1][2] == 0  # the same map
    assert a.divergence[0][0][3] is None  # maps of other sizes


@pytest.mark.parametrize(
    ("pooling", "size", "genotype", "grids", "positions"),
    [
        # 3 x 3 patches of 4 pixels, then pairs of the sequence
        ("1d", (12, 12), "A-A", [(3, 3), (1, 5)], [[2, 4], [4, 6], [6, 8], [10, 4], [10, 10]]),
        # 14 x 7 patches, then 7 x 4 and 4 x 2: an odd last row or column is pooled alone and stays where it is
        ("2d", (56, 28), "A-A-A", [(14, 7), (7, 4), (4, 2)], [[y, x] for y in (8, 24, 40, 52) for x in (8, 23)]),
    ],
)
def test_places_of_pooled_tokens(
    pooling: Any, size: tuple[int, int], genotype: str, grids: Any, positions: Any
) -> None:
    arch = Arch(genotype, (8,) * len(grids), 8, pooling=pooling, patch_size=4)
    layers = find_layers(explicit(lambda: PSViT(arch, size, num_classes=5)), "it", torch.randn(2, 3, *size))[0]
    assert [layer.grid for layer in layers] == grids
    last = layers[-1].positions
    assert last is not None
    assert last.tolist() == positions
