"""An S that shares projections only: its numbers by hand, its tied weights, and that it can be kept and exported."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psvit import Arch, UserError, cost
from psvit.models.attention import Attend, ShareProjections
from psvit.models.build import build_arch
from psvit.models.macs import count_macs
from psvit.search.space import Space
from psvit.search.supernet import Supernet

ARCH = Arch("ASS-AS", widths=(16, 32), head_dim=8, patch_size=2, sharing="projections")
SHAPE: dict[str, Any] = {"in_chans": 1, "num_classes": 10}


def network(arch: Arch = ARCH) -> Any:
    return build_arch(arch, 8, **SHAPE).eval()


def by_hand(x: Tensor, qkv: nn.Linear, v: nn.Linear, proj: nn.Linear, heads: int) -> Tensor:
    """Attention, one image and one head at a time, with the queries and keys of `qkv` and the values of `v`."""
    width = x.shape[-1]
    size = width // heads
    bias = torch.zeros(2 * width) if qkv.bias is None else qkv.bias[: 2 * width]
    images = []
    for image in x:
        q, k = (image @ qkv.weight[: 2 * width].T + bias).split(width, dim=1)
        parts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            attn = torch.softmax(q[:, own] @ k[:, own].T / size**0.5, dim=1)
            parts.append(attn @ v(image)[:, own])
        images.append(proj(torch.cat(parts, dim=1)))
    return torch.stack(images)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_map_is_computed_from_its_own_tokens_with_the_shared_weights(qkv_bias: bool) -> None:
    attends = Attend(16, 2, qkv_bias=qkv_bias)
    shares = ShareProjections(attends, 16, 2, qkv_bias=qkv_bias)
    x = torch.randn(3, 5, 16)
    found, attn = shares(x, torch.full((3, 2, 5, 5), torch.nan))  # another layer's map is not used
    assert attn is None
    torch.testing.assert_close(found, by_hand(x, attends.qkv, shares.v, shares.proj, 2))


def test_both_layers_teach_the_shared_weights() -> None:
    attends = Attend(16, 2)
    shares = ShareProjections(attends, 16, 2)
    first, second = torch.randn(2, 2, 5, 16)
    gradients = []
    for outputs in ([attends(first)[0]], [shares(second)[0]], [attends(first)[0], shares(second)[0]]):
        attends.zero_grad()
        sum(output.square().sum() for output in outputs).backward()  # type: ignore[union-attr]
        assert attends.qkv.weight.grad is not None
        gradients.append(attends.qkv.weight.grad.clone())
    assert gradients[0][:32].abs().max() > 0
    assert gradients[1][:32].abs().max() > 0
    assert gradients[1][32:].abs().max() == 0, "values are its own"
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2])


def test_the_cost_of_two_layers_by_hand() -> None:
    arch = Arch("AS", widths=(16,), head_dim=8, mlp_ratio=2, patch_size=2, sharing="projections")
    layer = 16 * (3 * 16 * 16 + 16 * 16 + 2 * 16 * 32) + 2 * 16 * 16 * 16  # q, k, v; proj; mlp; Q K^T and A V
    assert [part.macs for part in cost.layer_costs(arch, 8, 1, 10)] == [16 * 4 * 16, layer, layer, 160]
    rest = 16 * 16 + 16 + 2 * 16 * 32 + 32 + 16 + 4 * 16  # proj, mlp, norms
    attends, shares = 3 * (16 * 16 + 16) + rest, 16 * 16 + 16 + rest
    assert [part.params for part in cost.layer_costs(arch, 8, 1, 10)][1:3] == [attends, shares]


@pytest.mark.usefixtures("explicit_attention")
def test_it_saves_parameters_and_no_macs() -> None:
    maps, plain = (Arch(g, widths=ARCH.widths, head_dim=8, patch_size=2) for g in ("ASS-AS", "AAA-AA"))
    assert cost.macs(ARCH, 8, 1, 10) == cost.macs(plain, 8, 1, 10) > cost.macs(maps, 8, 1, 10)
    assert cost.params(ARCH, 8, 1, 10) == cost.params(maps, 8, 1, 10) < cost.params(plain, 8, 1, 10)
    assert count_macs(network, (1, 8, 8)) == cost.macs(ARCH, 8, 1, 10)


def test_it_cannot_be_searched() -> None:
    like = Arch("A", widths=(16,), head_dim=8, patch_size=2, sharing="projections")
    space = Space(like=like, depth=(2, 2), stages=(1, 1), widths=((16,),), img_size=(8, 8), in_chans=1, num_classes=10)
    with pytest.raises(UserError, match="sharing 'projections' cannot be searched"):
        Supernet(space)
