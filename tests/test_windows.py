"""Windows: a windowed stage is its layers on each window alone; nothing else changes but memory and MACs."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from psvit import Arch, PSViT
from psvit.arch.arch import even_parts
from psvit.arch.cost import layer_costs, macs, scale_to
from psvit.arch.variants import VARIANTS, with_changes
from psvit.models.windows import join_windows, split_windows

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def network(windows: tuple[int, ...] = (3, 2, 0), genotype: str = "ASA-AS-A", **kwargs: Any) -> Any:
    """Small, every parameter moved away from its start."""
    stages = genotype.count("-") + 1
    fields = {name: kwargs.pop(name) for name in ("sharing", "pool_op") if name in kwargs}
    arch = Arch(genotype, (16, 24, 32)[:stages], head_dim=8, patch_size=4, windows=windows, **fields)
    torch.manual_seed(0)
    model = PSViT(arch, **{"img_size": (20, 28), "num_classes": 5, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def images(batch: int = 2, sides: tuple[int, int] = (20, 28)) -> Tensor:
    return torch.randn(batch, 3, *sides)


# where windows lie


@given(st.integers(1, 300), st.integers(1, 300))
def test_parts_are_few_and_even(length: int, most: int) -> None:
    parts, size = even_parts(length, most)
    assert size <= most
    assert (parts - 1) * most < length <= parts * size  # fewer parts of `most` would not do
    assert (parts - 1) * size < length  # every part begins within
    assert parts * (size - 1) < length  # no smaller size would do


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14))
def test_splitting_and_joining_is_the_identity(rows: int, columns: int, most: int) -> None:
    x = torch.randn(2, rows * columns, 3)
    windows = split_windows(x, (rows, columns), most)
    assert windows.shape[1] <= most * most
    assert torch.equal(join_windows(windows, (rows, columns), most), x)


def test_five_by_seven_in_windows_of_three() -> None:
    """Rows 0-2 and 2-4; columns 0-2, 3-5 and 4-6: the last begin earlier, so no window holds padding."""
    tokens = torch.arange(35.0).reshape(1, 35, 1)
    windows = split_windows(tokens, (5, 7), 3).reshape(6, 3, 3)
    grid = tokens.reshape(5, 7)
    expected = [grid[r : r + 3, c : c + 3] for r in (0, 2) for c in (0, 3, 4)]
    assert torch.equal(windows, torch.stack(expected))
    numbered = torch.arange(6.0).repeat_interleave(9).reshape(6, 9, 1)  # each token told by its window
    joined = join_windows(numbered, (5, 7), 3).reshape(5, 7)
    assert joined[:3].tolist() == [[0, 0, 0, 1, 1, 1, 2]] * 3  # what overlaps is kept from the window before
    assert joined[3:].tolist() == [[3, 3, 3, 4, 4, 4, 5]] * 2


# a stage with windows


def each_window_alone(stage: Any, x: Tensor, grid: tuple[int, int], most: int) -> Tensor:
    """The layers of a stage on every window by itself; written out as loops, to be compared with."""
    (rows, height), (columns, width) = (even_parts(side, most) for side in grid)
    result = torch.full((x.shape[0], *grid, x.shape[-1]), torch.nan)
    x = x.reshape(x.shape[0], *grid, -1)
    for row in reversed(range(rows)):  # the windows before overwrite what overlaps
        for column in reversed(range(columns)):
            top, left = min(row * height, grid[0] - height), min(column * width, grid[1] - width)
            part = x[:, top : top + height, left : left + width].flatten(1, 2)
            attn = None
            for block in stage.blocks:
                part, attn = block(part, attn, (height, width))
            result[:, top : top + height, left : left + width] = part.unflatten(1, (height, width))
    return result.flatten(1, 2)


@pytest.mark.parametrize("sharing", ["map", "projections"])
def test_a_stage_is_its_layers_on_each_window_alone(sharing: str) -> None:
    for grid in ((5, 7), (4, 4), (6, 9), (1, 8), (8, 3)):
        for most in (1, 3, 4, 7):
            stage = network((most,), "ASSA", sharing=sharing).stages[0]
            x = torch.randn(3, grid[0] * grid[1], 16)
            with torch.no_grad():
                found, kept = stage(x, grid)
                expected = each_window_alone(stage, x, grid, most)
            assert (found - expected).abs().max() < 1e-5, f"{grid} in windows of {most}"
            assert kept == grid


def test_a_window_as_large_as_the_grid_changes_no_bit() -> None:
    whole, windowed = network(()), network((14, 14, 14))
    assert windowed.state_dict().keys() == whole.state_dict().keys()
    with torch.no_grad():
        for sides in ((16, 16), (37, 53)):
            x = images(sides=sides)
            assert torch.equal(windowed(x), whole(x))
        assert not torch.allclose(network((2, 0, 0))(x), whole(x), **CLOSE)


# the cost


def test_a_windowed_layer_counted_by_hand() -> None:
    arch = Arch("AS", widths=(32,), head_dim=16, patch_size=8, windows=(2,))
    _, attend, share, _ = layer_costs(arch, (24, 32))  # 3 x 4 tokens: 2 x 2 windows of 2 x 2
    assert attend.macs == 4 * (4 * (4 * 32 * 32 + 2 * 32 * 128) + 2 * 4 * 4 * 32)  # 16 tokens, 4 of them twice
    assert share.macs == 4 * (4 * (2 * 32 * 32 + 2 * 32 * 128) + 4 * 4 * 32)
    assert (attend.tokens, attend.grid) == (12, (3, 4))


def test_scaling_keeps_the_windows_and_the_plain_twin_has_none() -> None:
    arch = with_changes(VARIANTS["psvit_2d_small"], windows=(7, 0, 0))
    assert macs(arch) < macs(VARIANTS["psvit_2d_small"])
    scaled = scale_to(arch, 4.6e9)
    assert macs(scaled) == pytest.approx(4.6e9, rel=0.02)
    assert scaled.windows == (7, 0, 0)
    assert arch.plain() == VARIANTS["psvit_2d_small"].plain()
