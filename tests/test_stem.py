"""Stems of convolutions: the grids of patches, its cost to the integer, and timm's contract as ever."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit import Arch, PSViT, UserError
from psvit.arch.cost import layer_costs, macs, scale_to
from psvit.arch.stem_convolutions import stem_convolutions

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
SIDES = [(20, 28), (16, 16), (37, 53), (1, 9)]


def describe(genotype: str = "AS-A", stride: int = 4, **fields: Any) -> Arch:
    widths = (32, 48, 64)[: genotype.count("-") + 1]
    return Arch(genotype, **{"widths": widths, "head_dim": 16, "patch_size": stride, "stem": "conv", **fields})


def network(stride: int = 4, genotype: str = "AS-A", **kwargs: Any) -> Any:
    """Small, every parameter moved away from its start."""
    torch.manual_seed(0)
    arch = describe(genotype, stride, **{name: kwargs.pop(name) for name in ("windows", "pooling") if name in kwargs})
    model = PSViT(arch, **{"img_size": (20, 28), "num_classes": 5, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def images(batch: int = 2, sides: tuple[int, int] = (20, 28), in_chans: int = 3) -> Tensor:
    return torch.randn(batch, in_chans, *sides)


# what it computes


@pytest.mark.parametrize("stride", [2, 8])
def test_a_stem_is_convolutions_norms_and_a_linear_map(stride: int) -> None:
    """Written out with torch's functions; the norm is over the channels of a pixel."""
    stem = network(stride).patch_embed
    x = images(sides=(37, 53))
    with torch.no_grad():
        y = F.pad(x, (0, -53 % stride, 0, -37 % stride))
        convolutions = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
        norms = [module for module in stem.modules() if isinstance(module, nn.LayerNorm)]
        channels = [conv.channels for conv in stem_convolutions("conv", stride, 32)]
        assert [c.out_channels for c in convolutions] == [*channels, 32]
        for convolution, norm in zip(convolutions[:-1], norms, strict=True):
            y = F.conv2d(y, convolution.weight, None, stride=2, padding=1)
            mean, variance = y.mean(1, keepdim=True), y.var(1, keepdim=True, unbiased=False)
            y = (y - mean) / (variance + 1e-6).sqrt()
            y = F.gelu(y * norm.weight[:, None, None] + norm.bias[:, None, None])
        tokens = y.flatten(2).mT @ convolutions[-1].weight[:, :, 0, 0].mT + convolutions[-1].bias
        found, grid = stem(x)
        torch.testing.assert_close(found, tokens, **CLOSE)
    assert found.is_contiguous()
    assert grid == y.shape[2:] == (-(-37 // stride), -(-53 // stride))


@pytest.mark.parametrize("stride", [2, 4, 16])
def test_a_stem_that_pools_is_convolutions_norms_and_maxima(stride: int) -> None:
    stem = PSViT(describe(stride=stride, stem="pool"), img_size=32, num_classes=0).eval().patch_embed
    norms = [module for module in stem.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    y = F.pad(x := images(sides=(37, 53)), (0, -53 % stride, 0, -37 % stride))
    with torch.no_grad():
        convolutions = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
        assert [c.out_channels for c in convolutions] == {2: [32], 4: [16, 32], 16: [8, 32]}[stride]
        for convolution, norm in zip(convolutions, norms, strict=True):
            y = F.conv2d(y, convolution.weight, None, stride=2 if stride == 16 else 1, padding=1)
            y = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
            rows, columns = y.shape[2] // 2, y.shape[3] // 2
            y = F.gelu(y.reshape(2, -1, rows, 2, columns, 2).amax((3, 5)))
        found, grid = stem(x)
        torch.testing.assert_close(found, y.flatten(2).mT, **CLOSE)
    assert grid == y.shape[2:] == (-(-37 // stride), -(-53 // stride))


@pytest.mark.parametrize("stem", ["conv", "pool"])
def test_strides_are_true(stem: str) -> None:
    for stride in (2, 4, 8, 16):
        model = PSViT(describe("A-A-A", stride, widths=(64, 64, 64), stem=stem), img_size=64, num_classes=0).eval()
        assert [info["reduction"] for info in model.feature_info] == [stride, 2 * stride, 4 * stride]
        with torch.no_grad():
            for sides in ((64, 32), (37, 53)):
                maps = model.forward_intermediates(images(1, sides), intermediates_only=True)
                assert tuple(tuple(m.shape[2:]) for m in maps) == model.arch.grids(sides)


def test_an_image_of_a_batch_does_not_see_the_others() -> None:
    model, x = network().train(), images(3)  # as in training: there are no statistics of batches
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), **CLOSE)
    assert not list(model.buffers())


# the cost


def test_a_stem_counted_by_hand() -> None:
    """21 x 30 pixels are padded to 24 x 32: 12 x 16, then 6 x 8, then 3 x 4 places."""
    stem, *_ = layer_costs(Arch("A", (32,), head_dim=32, patch_size=8, stem="conv"), (21, 30))
    assert (stem.name, stem.kind, stem.grid, stem.tokens) == ("convolutional stem", "embed", (3, 4), 12)
    assert stem.macs == 192 * 27 * 8 + 48 * 72 * 16 + 12 * 144 * 32 + 12 * 32 * 32
    norms, positions = 2 * (8 + 16 + 32), 12 * 32
    assert stem.params == 27 * 8 + 72 * 16 + 144 * 32 + norms + (32 * 32 + 32) + positions


def test_scaling_reaches_the_target_with_whole_channels() -> None:
    for stride, target in ((2, 60e6), (2, 180e6), (4, 7e6), (4, 180e6), (8, 7e6), (8, 180e6), (16, 7e6), (16, 180e6)):
        start = describe("AS-ASS-AS", stride, widths=(64, 128, 192), head_dim=8)
        scaled = scale_to(start, target, 64, num_classes=10)
        assert macs(scaled, 64, num_classes=10) == pytest.approx(target, rel=0.02), stride
        assert (scaled.stem, scaled.stride, scaled.genotype) == ("conv", stride, start.genotype)
        assert scaled.widths[0] % (stride // 2) == 0
        assert scaled.widths[0] * 2 // stride >= 8
        assert list(scaled.widths) == sorted(scaled.widths)


def test_a_stem_that_pools_counted_by_hand() -> None:
    """21 x 30 pixels are padded to 32 x 32: the convolutions stride to 16 x 16 and, pooled to 8 x 8, to 4 x 4."""
    stem, *_ = layer_costs(Arch("A", (32,), head_dim=32, patch_size=16, stem="pool"), (21, 30))
    assert (stem.name, stem.grid) == ("pooling stem", (2, 2))
    assert stem.macs == 256 * 27 * 8 + 16 * 72 * 32
    assert stem.params == 27 * 8 + 72 * 32 + 2 * (8 + 32) + 4 * 32


# the contract


def test_another_input_size_but_no_other_patches() -> None:
    model = network()
    model.set_input_size((37, 53))
    assert model.grid_size == (10, 14)
    model.set_input_size(img_size=(20, 28), patch_size=4)  # its own
    with pytest.raises(UserError, match="patch_size 8: stem conv has no patches to resample, its stride stays 4"):
        model.set_input_size(patch_size=8)
    assert (model.arch.patch_size, model.grid_size) == (4, (5, 7))
