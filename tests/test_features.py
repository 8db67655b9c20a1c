"""Feature maps of the backbone: true strides through timm at any size, output strides."""

from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.fx
from refusals import refuses
from safetensors.torch import load_file
from small_features import NARROW, checkpoint, equal_maps, images

from psvit import Arch
from psvit.engine.open_model import load_checkpoint
from psvit.models.features import image_patches
from psvit.models.pooling import TokenPool
from psvit.models.psvit import PSViT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network whose position embeddings are 4 x 6."""
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "best")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The network of `folder`."""
    return load_checkpoint(folder)


# timm
@pytest.mark.parametrize(
    ("name", "changes", "strides", "channels"),
    [
        ("psvit_2d_tiny", {}, [4, 8, 16, 32, 64], [48, 192, 32, 48, 64]),
        ("psvit_2d_small", {}, [4, 8, 16, 32], [48, 32, 48, 64]),
        ("psvit_2d_small", {"windows": (3, 0, 0)}, [4, 8, 16, 32], [48, 32, 48, 64]),
        ("psvit_2d_small", {"stem": "conv", "patch_size": 4, "widths": (64, 64, 128)}, [4, 8, 16], [64, 64, 128]),
        ("psvit_2d_tiny", {"in_chans": 1, "stride": 8}, [4, 8, 16, 32], [16, 32, 48, 64]),
        ("psvit_2d", {"patch_size": 2}, [2, 4, 8], [32, 48, 64]),
        ("psvit_2d", {"genotype": "A-A-A-AS", "widths": (16, 32, 48, 64), "patch_size": 4}, [4, 8, 16, 32],
         [16, 32, 48, 64]),
        ("psvit_2d", {"genotype": "AS", "widths": (16,), "patch_size": 16}, [4, 8, 16], [48, 192, 16]),
    ],
)  # fmt: skip
def test_maps_have_their_true_strides(
    name: str, changes: dict[str, Any], strides: list[int], channels: list[int]
) -> None:
    backbone = timm.create_model(name, features_only=True, **{**NARROW, **changes}).eval()
    assert backbone.feature_info.reduction() == strides
    assert backbone.feature_info.channels() == channels
    for sides in ((64, 64), (37, 53), (75, 33), (1, 9)):
        with torch.no_grad():
            maps = backbone(torch.randn(2, changes.get("in_chans", 3), *sides))
        assert [tuple(m.shape) for m in maps] == [
            (2, c, ceil(sides[0] / s), ceil(sides[1] / s)) for c, s in zip(channels, strides, strict=True)
        ]
        assert all(m.is_contiguous() for m in maps)


def test_maps_before_the_stages_are_the_image() -> None:
    x = images(10, 7)
    patches = image_patches(x, 4)
    assert patches.shape == (2, 48, 3, 2)
    for channel, row, column in ((0, 0, 0), (2, 9, 6), (1, 5, 3), (2, 4, 4)):
        place = channel * 16 + row % 4 * 4 + column % 4
        assert torch.equal(patches[:, place, row // 4, column // 4], x[:, channel, row, column])
    assert patches.square().sum() == pytest.approx(x.square().sum())  # nothing else but zeros


def test_maps_of_stages_are_the_networks_own() -> None:
    x = images(37, 53)
    whole = timm.create_model("psvit_2d_tiny", **NARROW).eval()
    expected = whole.forward_intermediates(x, intermediates_only=True)
    for out_indices, taken in ((3, [0, 1, 2]), ((-1,), [2]), ((2, 4), [0, 2]), ((3, 2), [0, 1]), (1, [2])):
        backbone = timm.create_model("psvit_2d_tiny", features_only=True, out_indices=out_indices, **NARROW).eval()
        assert {*backbone.state_dict()} <= {f"model.{name}" for name in whole.state_dict()}
        backbone.model.load_state_dict(whole.state_dict(), strict=False)
        equal_maps(backbone(x), [expected[stage] for stage in taken])
        assert backbone.feature_info.reduction() == [[16, 32, 64][stage] for stage in taken]
        assert len(backbone.model.stages) == taken[-1] + 1
    getter = timm.create_model("psvit_2d_tiny", features_only=True, feature_cls="getter", **NARROW)
    assert getter.feature_info.reduction() == [16, 32, 64]


def test_maps_that_are_not_there() -> None:
    said = (r"\(0, 1\) are maps before the first stage: take 2 or a later one too; there are 5, 0 to 4, of strides 4, "
            "8, 16, 32, 64")  # fmt: skip
    refuses(
        lambda taken: timm.create_model("psvit_2d_tiny", features_only=True, out_indices=taken, **NARROW),
        (
            ((0, 1), said),
            ((5,), "are not stages or maps before them: there are 5, 0 to 4"),
            ((), "are not stages"),
        ),
    )


def test_a_checkpoint_gives_its_own_maps(folder: Path, model: Any) -> None:
    backbone = timm.create_model(f"local-dir:{folder}", features_only=True, pretrained=True).eval()
    weights = load_file(folder / "model.safetensors")
    own = backbone.model.state_dict()
    assert {*weights} - {*own} == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert all(torch.equal(value, weights[name]) for name, value in own.items())
    for sides in ((32, 48), (37, 53)):
        x = images(*sides)
        expected = model.forward_intermediates(x, intermediates_only=True)
        equal_maps(backbone(x), [image_patches(x, 4), *expected])


# output_stride
@pytest.mark.parametrize("op", ["max", "avg", "stride"])
def test_a_dilated_pooling_holds_what_halving_gives(op: Any) -> None:
    for order, conv, grid in product(("conv-pool", "pool-conv"), ("full", "depthwise"), ((8, 8), (7, 9), (1, 5))):
        like = Arch("A", (8,), 8, pool_order=order, pool_conv=conv, pool_op=op)  # type: ignore[arg-type]
        halve = [TokenPool(4, 6, like), TokenPool(6, 5, like)]
        keep = [TokenPool(4, 6, like, dilation=1), TokenPool(6, 5, like, dilation=2)]
        expected = found = torch.randn(2, grid[0] * grid[1], 4)
        halved = grid
        for number, (one, other) in enumerate(zip(halve, keep, strict=True), 1):
            other.load_state_dict(one.state_dict())
            expected, halved = one(expected, halved)
            found, kept = other(found, grid)
            assert tuple(kept) == grid
            assert found.shape[1] == grid[0] * grid[1]
            sparse = found.reshape(2, *grid, -1)[:, :: 2**number, :: 2**number]
            close = torch.allclose(sparse, expected.reshape(2, *halved, -1), atol=1e-5)
            assert close, f"{order}, {conv}, {grid}, pooling {number}"


@torch.no_grad()
def test_local_mlps_mix_the_same_neighbours_in_a_dilated_network() -> None:
    """Without attention, whose tokens differ: every stage holds what the network that halves gives."""
    arch = Arch("A-A-A", (16, 16, 16), 16, patch_size=4, mlp="local")
    halves = PSViT(arch, 64, 3, 5).eval()
    dilated = PSViT(arch, 64, 3, 5, output_stride=4).eval()
    for block in [block for stage in halves.stages for block in stage.blocks]:  # type: ignore[union-attr]
        block.attn.proj.weight.zero_()
    dilated.load_state_dict(halves.state_dict())
    x = images(64, 64)
    maps = zip(*(net.forward_intermediates(x, intermediates_only=True) for net in (halves, dilated)), strict=True)
    for number, (expected, found) in enumerate(maps):
        assert torch.allclose(found[..., :: 2**number, :: 2**number], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "output_stride", "strides"),
    [
        ("psvit_2d_tiny", 16, [4, 8, 16, 16, 16]),
        ("psvit_2d_small", 8, [4, 8, 8, 8]),
    ],
)
def test_output_stride_keeps_tokens(name: str, output_stride: int, strides: list[int]) -> None:
    backbone = timm.create_model(name, features_only=True, output_stride=output_stride, **NARROW)
    assert backbone.feature_info.reduction() == strides
    plain = timm.create_model(name, features_only=True, **NARROW)
    backbone.load_state_dict(plain.state_dict())  # the same weights
    maps = backbone(images(37, 75))
    assert [tuple(m.shape[2:]) for m in maps] == [(ceil(37 / s), ceil(75 / s)) for s in strides]
    sum(m.sum() for m in maps).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_an_output_stride_that_cannot_be() -> None:
    refuses(
        lambda asked: timm.create_model(asked[0], output_stride=asked[1], **NARROW),
        (
            (("psvit_2d_tiny", 8), r"output_stride 8 is none of this network's strides \(16, 32, 64\): .*stride="),
            (("psvit_2d_small", 12), r"output_stride 12 is none of this network's strides \(8, 16, 32\)"),
            (("psvit_1d_tiny", 16), "output_stride 16 needs a grid in every stage.*take a 2D variant"),
        ),
    )
