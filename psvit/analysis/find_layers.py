"""Finds the layers of a model that have an attention map between all tokens.

Legend: B images, H heads, N tokens (P prefix tokens and an h x w grid), C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isqrt, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit.analysis.layers import Grid, Layer
from psvit.analysis.maps import hooked, tokens_of
from psvit.arch.arch import ATTEND
from psvit.errors import UserError, one_line
from psvit.models.psvit import PSViT
from psvit.models.windows import join_maps, join_windows

DROP = "attn_drop"
"""Name of the dropout, in timm's attention and ours, that is applied to each explicit map."""


@torch.inference_mode()
def find_layers(model: nn.Module, name: str, images: Tensor) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """The layers of a model with a map between all tokens, in the order in which they run.

    Args:
        model: built under `explicit_attention`, in evaluation mode.
        name: its name in messages.
        images: (B, C, H, W), at least two images, to find the shapes.

    Returns:
        The layers, and the names of skipped modules with other maps, such as attention of the class token only.

    Raises:
        UserError: a model without attention maps, or with other maps: within windows (except a PSViT's), to fewer keys,
            between channels, changed after the softmax, or inside a fused module.
    """
    drops = [path for path, _ in model.named_modules() if path.rpartition(".")[2] == DROP]
    if not drops:
        raise UserError(f"{name} has no attention maps{_why_none(model)}: give a vision transformer")
    maps, outputs = _run(model, name, drops, images)
    layers: list[Layer] = []
    left_out: list[str] = []
    for drop, seen in maps.items():
        windows = _windows_of(model, len(layers), (images.shape[2], images.shape[3]))
        seen = [join_maps(attn, *windows) for attn in seen] if windows else seen
        shape, around = tuple(seen[0].shape), _layer_of(model, drop)
        if len(seen) == 1 and len(shape) == 4 and shape[0] == len(images) and shape[2] == 1:
            left_out.append(drop.rpartition(".")[0])  # one query: a class token, or a pooling by attention
            continue
        x = tokens_of(outputs[around])
        x = join_windows(x, *windows) if windows else x
        twice = "two attentions in one layer" if any(layer.name == around for layer in layers) else ""
        if wrong := _unfit(seen, x, len(images)) or twice:
            raise UserError(f"{name} has no maps between all tokens, layer by layer ({around}: {wrong}): "
                            "give a plain vision transformer")  # fmt: skip
        layers.append(_describe(model, around, drop, x, shape[1], layers, images, windows[1] if windows else 0))
    if not layers:
        raise UserError(f"{name} has no attention maps that can be read{_why_none(model)}: give a vision transformer")
    return tuple(layers), tuple(left_out)


def _run(
    model: nn.Module, name: str, drops: Sequence[str], images: Tensor
) -> tuple[dict[str, list[Tensor]], dict[str, Any]]:
    """The input maps of each dropout, in the order in which they run, and the outputs of the layers around them."""
    maps: dict[str, list[Tensor]] = {}
    outputs: dict[str, Any] = {}
    inputs = {drop: lambda attn, drop=drop: maps.setdefault(drop, []).append(attn) for drop in drops}
    around = {layer: partial(outputs.__setitem__, layer) for layer in (_layer_of(model, drop) for drop in drops)}
    with hooked(model, inputs, around):
        try:
            model(images)
        except Exception as error:  # models raise many types for a wrong image size
            size = f"{images.shape[2]} x {images.shape[3]} pixels"
            raise UserError(
                f"{name} cannot take images of {size} ({one_line(error)}): give another --img-size"
            ) from error
    return maps, outputs


def _layer_of(model: nn.Module, drop: str) -> str:
    """The name of the module around an attention, lists of modules aside; else of the attention itself."""
    owner = drop.rpartition(".")[0]
    around = owner.rpartition(".")[0]
    while around and isinstance(model.get_submodule(around), (nn.ModuleList, nn.Sequential)):
        around = around.rpartition(".")[0]
    return around or owner


def _why_none(model: nn.Module) -> str:
    kinds = [type(module).__name__ for module in model.modules()]
    if "MultiheadAttention" in kinds:
        return " that can be read, since it attends inside of torch.nn.MultiheadAttention"
    attentions = [kind for kind in kinds if "attention" in kind.lower() or "attn" in kind.lower()]
    return f" that can be read, its {attentions[0]} makes none between all tokens" if attentions else ""


def _unfit(seen: Sequence[Tensor], x: Any, count: int) -> str:
    """Why a layer's maps are not between all its tokens; empty if they are."""
    attn, shape = seen[0], tuple(seen[0].shape)
    if len(seen) > 1:
        return "it runs several times"
    if len(shape) != 4 or shape[0] != count:
        return "it attends within windows" if len(shape) == 4 else f"its map is of shape {shape}"
    if shape[2] != shape[3]:
        return f"its map has {shape[2]} queries and {shape[3]} keys"
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[1] != shape[2]:
        return f"its map is {shape[2]} x {shape[3]}, which is not its number of tokens"
    sums = attn.float().sum(dim=-1)
    if attn.min() < 0 or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return "the rows of its map do not sum to 1"
    return ""


def _windows_of(model: nn.Module, number: int, sides: Grid) -> tuple[Grid, int] | None:
    """Grid and `Arch.window` of layer `number` of a PSViT; None if it attends to all tokens."""
    if not isinstance(model, PSViT):
        return None
    stage = _stage_of(model, number)
    grid, window = model.arch.grids(sides)[stage], model.arch.window(stage)
    return (grid, window) if 0 < window < max(grid) else None


def _stage_of(model: PSViT, number: int) -> int:
    return [stage for stage, layers in enumerate(model.arch.stages) for _ in layers][number]


def _describe(
    model: Any, name: str, drop: str, x: Tensor, heads: int, before: Sequence[Layer], images: Tensor, window: int
) -> Layer:
    tokens, width = x.shape[1:]
    sides = (images.shape[2], images.shape[3])
    if isinstance(model, PSViT):
        arch, stage = model.arch, _stage_of(model, len(before))
        # an S that shares only projections computes its own map, like an A
        kind = "".join(arch.stages)[len(before)] if arch.sharing == "map" else ATTEND
        one_row, grids = arch.pooling == "1d", arch.grids(sides)
        return Layer(name, drop, kind, stage, heads, tokens, model.num_prefix_tokens, width, grids[stage],
                     _centres(grids[0], (arch.stride, arch.stride), stage, one_row), one_row, window)  # fmt: skip
    stage = 0 if not before else before[-1].stage + (before[-1].tokens != tokens)
    prefix = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
    grid = _grid_of(model, tokens - prefix, sides)
    positions = None if grid is None else _centres(grid, (sides[0] / grid[0], sides[1] / grid[1]))
    return Layer(name, drop, ATTEND, stage, heads, tokens, prefix, width, grid, positions, False, window)


def _grid_of(model: Any, places: int, sides: Grid) -> Grid | None:
    """The grid of a timm model: its patch embedding's, or a square for square images (after pooling)."""
    native = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if native is not None and prod(native) == places:
        return int(native[0]), int(native[1])
    side = isqrt(max(places, 0))
    return (side, side) if side * side == places > 0 and sides[0] == sides[1] else None


def _centres(grid: Grid, pitch: tuple[float, float], poolings: int = 0, one_row: bool = False) -> Tensor:
    """(h w, 2) centres (y, x) in pixels of patches that are `pitch` pixels apart, after `poolings` poolings."""
    y, x = ((torch.arange(side) + 0.5) * step for side, step in zip(grid, pitch, strict=True))
    for _ in range(0 if one_row else poolings):
        y, x = _halved(y[:, None])[:, 0], _halved(x[:, None])[:, 0]
    places = torch.cartesian_prod(y, x).reshape(-1, 2)
    for _ in range(poolings if one_row else 0):
        places = _halved(places)
    return places


def _halved(places: Tensor) -> Tensor:
    """(n, d) -> (ceil(n / 2), d): means of pairs; an odd last row stays as it is."""
    return F.avg_pool1d(places.T[None], 2, ceil_mode=True)[0].T
