"""The network: parity with timm's DeiT, sharing, pooling, sizes, features, and what is refused."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from refusals import refuses
from torch import Tensor, nn

from psvit import Arch, PSViT
from psvit.models.attention import Attend, Share
from psvit.models.pooling import TokenPool, tokens_to_map
from psvit.models.zoo import checkpoint_filter_fn

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def small(genotype: str = "AS-ASS-A", pooling: str = "2d", **kwargs: object) -> PSViT:
    """A narrow network of three stages, for images of 64 x 96 pixels."""
    fields = {"head_dim": 16, "widths": (32, 48, 64)[: genotype.count("-") + 1], "pooling": pooling}
    arch = Arch(genotype, **(fields | {name: kwargs.pop(name) for name in [*kwargs] if hasattr(Arch, name)}))
    return PSViT(arch, **({"img_size": (64, 96), "num_classes": 10} | kwargs)).eval()


def shaken(model: nn.Module) -> nn.Module:
    """The model with every parameter moved, so that no zero or one hides a mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


# parity with DeiT


@pytest.fixture(scope="module")
def deit() -> nn.Module:
    return shaken(timm.create_model("deit_tiny_patch16_224", dynamic_img_size=True))


@pytest.mark.parametrize("sides", [(224, 224), (160, 256)])
def test_all_attend_is_timms_deit(deit: nn.Module, sides: tuple[int, int]) -> None:
    model = PSViT(Arch("A" * 12, pooling="1d")).eval()
    model.load_state_dict(checkpoint_filter_fn(deit.state_dict(), model))
    x = torch.randn(2, 3, *sides)
    with torch.no_grad():
        features, logits = deit.forward_features(x), deit(x)
        torch.testing.assert_close(model.forward_features(x), features, **CLOSE)
        torch.testing.assert_close(model(x), logits, **CLOSE)
    assert logits.std() > 0.1


def test_deits_weights_of_another_size_and_into_sharing_layers(deit: nn.Module) -> None:
    model = PSViT(Arch("AASAAASAAASS", pooling="1d"), img_size=(160, 256)).eval()
    model.load_state_dict(checkpoint_filter_fn(deit.state_dict(), model))
    assert torch.equal(model.stages[0].blocks[2].attn.v.weight, deit.blocks[2].attn.qkv.weight[2 * 192 :])
    with torch.no_grad():
        x = torch.randn(1, 3, 160, 256)
        ours, _ = model.embed(x)
        theirs = deit._pos_embed(deit.patch_embed(x))
    torch.testing.assert_close(ours, theirs, **CLOSE)


# attend and share


def test_every_share_of_a_network_multiplies_the_map_of_the_attend_before_it() -> None:
    model = shaken(small("ASSAS-AS"))
    seen: dict[nn.Module, tuple[Tensor, Tensor | None, Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor | None]) -> None:
        seen[module] = (inputs[0], inputs[1], output[0])

    layers = [block.attn for stage in model.stages for block in stage.blocks]
    for layer in layers:
        layer.register_forward_hook(keep)
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 96))
        for layer in layers:
            x, handed, output = seen[layer]
            B, N, C = x.shape
            if isinstance(layer, Attend):
                q, k, v = layer.qkv(x).view(B, N, 3, C // 16, 16).unbind(2)
                attn = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 16**0.5).softmax(dim=-1)
            else:
                v = layer.v(x).view(B, N, C // 16, 16)
                torch.testing.assert_close(handed, attn, **CLOSE)
            expected = layer.proj(torch.einsum("bhnm,bmhd->bnhd", attn, v).reshape(B, N, C))
            torch.testing.assert_close(output, expected, **CLOSE)
    assert [type(layer) is Share for layer in layers] == [letter == "S" for letter in "ASSASAS"]


# pooling


def windows(cells: Tensor, one_row: bool) -> Iterator[Tensor]:
    """The windows of 2 (x 2) of a map (C, h, w), row by row, cut off at the border."""
    _, h, w = cells.shape
    for row in range(0, h, 1 if one_row else 2):
        for column in range(0, w, 2):
            yield cells[:, row : row + (1 if one_row else 2), column : column + 2].flatten(1)


@pytest.mark.parametrize(("pooling", "grid", "after"), [("2d", (7, 7), (4, 4)), ("2d", (6, 3), (3, 2)),
                                                       ("1d", (3, 5), (1, 8)), ("1d", (1, 4), (1, 2))])  # fmt: skip
def test_pooling_keeps_the_last_odd_row_and_column(pooling: Any, grid: tuple[int, int], after: tuple[int, int]) -> None:
    for op, order in product(("max", "avg"), ("conv-pool", "pool-conv")):
        like = Arch("A", (8,), 8, pooling=pooling, pool_order=order, pool_kernel=1, pool_op=op, class_token=True)
        pool = TokenPool(4, 4, like)
        nn.init.dirac_(pool.conv.weight)
        nn.init.zeros_(pool.conv.bias)
        x = torch.randn(2, 1 + grid[0] * grid[1], 4)
        y, grid_after = pool(x, grid)
        assert grid_after == after
        assert torch.equal(y[:, 0], x[:, 0])  # the class token passes beside
        for sample, pooled in zip(x[:, 1:], y[:, 1:], strict=True):
            cells = sample.T.reshape(4, *((1, grid[0] * grid[1]) if pooling == "1d" else grid))
            reduced = [w.amax(1) if op == "max" else w.mean(1) for w in windows(cells, pooling == "1d")]
            assert torch.allclose(pooled, torch.stack(reduced), atol=1e-6), f"{op}, {order}"


# sizes


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_an_image_that_does_not_divide_is_padded_with_zeros(pooling: str) -> None:
    model = shaken(small(pooling=pooling))
    x = torch.randn(2, 3, 37, 53)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(F.pad(x, (0, 11, 0, 11))))
        assert model.embed(x)[1] == (3, 4)


@pytest.mark.parametrize("stride", [16, 12, 8])
def test_grids_are_the_archs(stride: int) -> None:
    model, flat = small(stride=stride, class_token=True, pool_op="stride"), small("A-AS-A", "1d", stride=stride)
    for sides in ((64, 96), (32, 48), (37, 53), (112, 112)):
        features = model.forward_intermediates(torch.randn(1, 3, *sides), intermediates_only=True)
        assert tuple(tuple(f.shape[2:]) for f in features) == model.arch.grids(sides)
        features = flat.forward_intermediates(torch.randn(1, 3, *sides), output_fmt="NLC", intermediates_only=True)
        assert [f.shape[1] for f in features] == [h * w for h, w in flat.arch.grids(sides)]


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_set_input_size_is_what_dynamic_size_does(pooling: str) -> None:
    for sides in ((37, 53), 128):
        model = shaken(small(pooling=pooling))
        height, width = (sides, sides) if isinstance(sides, int) else sides
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            dynamic = model(x)
            model.set_input_size(sides)
            assert torch.equal(model(x), dynamic), sides
        assert isinstance(model.pos_embed, nn.Parameter)


# features


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_intermediates_end_in_the_features(pooling: str) -> None:
    model = shaken(small(pooling=pooling))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = model.forward_features(x)
        final, taps = model.forward_intermediates(x, output_fmt="NLC", norm=True, return_prefix_tokens=True)
        assert torch.equal(final, features)
        tokens, prefix = taps[-1]
        assert torch.equal(torch.cat([prefix, tokens], dim=1), features)
        assert prefix.shape[1] == model.num_prefix_tokens
        _, raw = model.forward_intermediates(x, indices=[-1], output_fmt="NLC")
        assert torch.equal(model.norm(raw[0]), tokens) or pooling == "1d"
        _, stopped = model.forward_intermediates(x, indices=[1], output_fmt="NLC", stop_early=True)
        assert torch.equal(stopped[0], taps[1][0])


@pytest.mark.parametrize("keep", [0, 2])
def test_pruning_changes_no_feature(keep: int) -> None:
    x, model = torch.randn(2, 3, 64, 96), shaken(small())
    with torch.no_grad():
        taps = model.forward_intermediates(x, intermediates_only=True)
        assert model.prune_intermediate_layers([keep], prune_norm=True) == [keep]
        assert torch.equal(tokens_to_map(model(x), taps[keep].shape[2:]), taps[keep])
    assert len(model.stages) == keep + 1
    assert model.num_features == model.head_hidden_size == (32, 48, 64)[keep]


# the head, and training's switches


def test_global_pools() -> None:
    x = torch.randn(2, 3, 64, 96)
    model = shaken(small("AS-A", "1d"))
    with torch.no_grad():
        tokens = model.forward_features(x)
        pooled = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1), "": tokens}
        for name, expected in pooled.items():
            model.reset_classifier(4, name)
            assert torch.equal(model.forward_head(tokens, pre_logits=True), expected)
            assert torch.equal(model(x), model.head(expected))
    assert (small(pooling="1d").global_pool, small(pooling="2d").global_pool) == ("token", "avg")


def test_a_wrong_argument_is_named() -> None:
    refuses(
        lambda kwargs: small(**kwargs),
        (
            ({"global_pool": "token"}, "global_pool 'token' needs class_token=True"),
            ({"global_pool": "mean"}, "global_pool 'mean' is not one of 'token', 'avg', 'max' or ''"),
            ({"img_size": 0}, "img_size 0 is not a positive side"),
        ),
    )


def test_dropout_reaches_its_places() -> None:
    model = small("AS-A", drop_rate=0.1, pos_drop_rate=0.2, proj_drop_rate=0.3, attn_drop_rate=0.4)
    rates = Counter(module.p for module in model.modules() if isinstance(module, nn.Dropout))
    assert rates == {0.1: 1, 0.2: 1, 0.3: 6, 0.4: 3}  # 0.3: proj_drop and the MLP's, in three layers


# the package


def test_variants_are_registered_in_either_order_of_import() -> None:
    """Here timm came first; in the other process it comes last."""
    names = ["psvit_1d", "psvit_1d_base", "psvit_1d_small", "psvit_1d_tiny"]
    names = [name.replace("1d", family) for family in ("1d", "2d", "plus") for name in names]
    assert timm.list_models("psvit_*", module="zoo") == names
    code = "import psvit, timm; print(timm.list_models('psvit_*', module='zoo'), psvit.PSViT.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{names} PSViT"
