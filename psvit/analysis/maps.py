"""A model -> the attention maps and tokens of its layers, by hooks; and the model with some of them replaced.

The model has to be built under `psvit.models.macs.explicit_attention`: a fused kernel hands out no map. Of a stage of
a PSViT that attends within windows, maps and tokens are put together to those of the whole grid.

Legend: B images, H heads, N tokens (P prefix tokens and an h x w grid), C width, W windows of n tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import isqrt, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from psvit.analysis.redundancy import pooled
from psvit.arch.arch import ATTEND, SHARE, even_parts
from psvit.errors import UserError, one_line
from psvit.models.psvit import PSViT
from psvit.models.windows import join_maps, join_windows, split_windows, window_keys

Grid = tuple[int, int]

DROP = "attn_drop"
"""The dropout through which timm's attention, and ours, passes every explicit map before it meets the values."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with an attention map, and where to meet its map and its tokens.

    Args:
        name: its module, for example blocks.3; drop: the module that its map passes.
        kind: A, or S for a layer of a PSViT that shares the map of the layer before it.
        stage: number of its stage, from 0; a stage's layers have equally many tokens.
        heads: H.
        tokens: N, prefix tokens included.
        prefix: P, tokens in front that have no place in the image.
        width: C.
        grid: rows and columns of the other tokens, one row for a pooled sequence (1D); None if there is no grid.
        positions: (h w, 2), their centres in pixels (y, x); None without a grid.
        one_row: pooling goes along the sequence (1D), not over the grid.
        window: the layer attends within windows of the grid, at most so many tokens on a side; 0: to all tokens.
    """

    name: str
    drop: str
    kind: str
    stage: int
    heads: int
    tokens: int
    prefix: int
    width: int
    grid: Grid | None
    positions: Tensor | None
    one_row: bool
    window: int = 0

    @property
    def window_size(self) -> Grid | None:
        """Rows and columns of a window of attention; None without windows."""
        if not self.window or self.grid is None:
            return None
        return even_parts(self.grid[0], self.window)[1], even_parts(self.grid[1], self.window)[1]

    @cached_property
    def keys(self) -> Tensor | None:
        """(N, n) the tokens that each token attends to, by their numbers; None: all."""
        return window_keys(self.grid, self.window) if self.window and self.grid is not None else None

    @property
    def seen(self) -> int:
        """n, how many tokens a token attends to; N without windows."""
        return prod(self.window_size) if self.window_size is not None else self.tokens

    def within(self, maps: Tensor) -> Tensor:
        """Maps (..., N, N) without what lies in no window, and is 0 in all of them -> (..., N, n)."""
        keys = self.keys
        return maps if keys is None else maps.gather(-1, keys.to(maps.device).expand(*maps.shape[:-1], -1))

    def whole(self, x: Tensor) -> Tensor:
        """Of windows, maps (B W, H, n, n) or tokens (B W, n, C) -> of the grid, (B, H, N, N) or (B, N, C)."""
        if not self.window or self.grid is None:
            return x
        return (join_maps if x.ndim == 4 else join_windows)(x, self.grid, self.window)

    def windows(self, poolings: int = 1) -> Tensor | None:
        """(h w,) the window of each token after so many poolings: pairs in a row, or 2 x 2; None without a grid."""
        if self.grid is None:
            return None
        if self.one_row:
            return torch.arange(prod(self.grid)) >> poolings
        rows, columns = (torch.arange(side) >> poolings for side in self.grid)
        return (rows[:, None] * (int(columns[-1]) + 1) + columns).flatten()


class Seen(NamedTuple):
    """What one batch showed: the model's output, and of each layer its map (B, H, N, N) and its tokens (B, N, C)."""

    output: Tensor
    maps: list[Tensor]
    tokens: list[Tensor]


@dataclass(frozen=True, eq=False)
class Change:
    """What to replace while a model runs.

    Args:
        maps: for a layer's number, the number of an earlier layer and, for each head, which of that layer's heads
            gives the map.
        windows: for a layer's number, the window of each token: its tokens become the means of their windows.
    """

    maps: Mapping[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    windows: Mapping[int, Tensor] = field(default_factory=dict)


def look(model: nn.Module, layers: Sequence[Layer], images: Tensor) -> Seen:
    """Run `model` on images (B, C, H, W), and keep what its layers show."""
    maps: list[Tensor] = []
    tokens: list[Tensor] = []
    hooks = _before(model, [layer.drop for layer in layers], maps.append)
    hooks += _after(model, [layer.name for layer in layers], lambda output: tokens.append(_tokens(output)))
    with _removed(hooks):
        output = model(images)
    return Seen(
        output,
        [layer.whole(attn) for layer, attn in zip(layers, maps, strict=True)],
        [layer.whole(x) for layer, x in zip(layers, tokens, strict=True)],
    )


def run_changed(model: nn.Module, layers: Sequence[Layer], images: Tensor, change: Change) -> Tensor:
    """The output of `model` for images (B, C, H, W) while `change` holds.

    A map that the model hands on to layers that share it is not touched on the way: name those layers too.
    """
    held: dict[int, Tensor] = {}
    hooks: list[RemovableHandle] = []
    for source in {source for source, _ in change.maps.values()}:
        hooks += _before(model, [layers[source].drop], partial(held.__setitem__, source))
    for number, (source, heads) in change.maps.items():
        drop: Any = model.get_submodule(layers[number].drop)
        hooks.append(drop.register_forward_hook(
            lambda module, args, output, source=source, heads=heads: held[source][:, list(heads)]))  # fmt: skip
    for number, windows in change.windows.items():
        layer = layers[number]
        module: Any = model.get_submodule(layer.name)
        hooks.append(module.register_forward_hook(partial(_pool_output, windows=windows, layer=layer)))
    with _removed(hooks):
        output: Tensor = model(images)
    return output


def _pool_output(module: nn.Module, args: Any, output: Any, *, windows: Tensor, layer: Layer) -> Any:
    x = layer.whole(_tokens(output))
    changed = torch.cat([x[:, : layer.prefix], pooled(x[:, layer.prefix :], windows.to(x.device))], dim=1)
    if layer.window and layer.grid is not None:
        changed = split_windows(changed, layer.grid, layer.window)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _tokens(output: Any) -> Tensor:
    x: Tensor = output[0] if isinstance(output, tuple) else output  # our Block returns its tokens and its map
    return x


def _before(model: nn.Module, names: Sequence[str], take: Callable[[Tensor], Any]) -> list[RemovableHandle]:
    """Give `take` what comes to each of these modules, in the order in which they run."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        take(args[0])

    return [model.get_submodule(name).register_forward_pre_hook(hook) for name in names]


def _after(model: nn.Module, names: Sequence[str], take: Callable[[Any], Any]) -> list[RemovableHandle]:
    """Give `take` what each of these modules puts out, in the order in which they run."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        take(output)

    return [model.get_submodule(name).register_forward_hook(hook) for name in names]


@contextmanager
def _removed(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# Finding the layers --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def find_layers(model: nn.Module, name: str, images: Tensor) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """The layers of a model that have a map between all tokens, in the order in which they run.

    Args:
        model: built under `explicit_attention`, in evaluation mode.
        name: what messages call it.
        images: (B, C, H, W), any two images or more, to see the shapes.

    Returns:
        The layers, and the names of modules whose maps are not between all tokens, such as attention of a class
        token alone, which are left out.

    Raises:
        UserError: a model without attention maps, or with maps of another kind: within windows that are not a PSViT's,
            to fewer keys, between channels, mixed after their softmax, or inside of a fused module.
    """
    drops = [path for path, _ in model.named_modules() if path.rpartition(".")[2] == DROP]
    if not drops:
        raise UserError(f"{name} has no attention maps{_why_none(model)}: give a vision transformer")
    maps: dict[str, list[Tensor]] = {}  # in the order in which they run
    outputs: dict[str, Any] = {}
    hooks: list[RemovableHandle] = []
    for drop in drops:
        hooks += _before(model, [drop], lambda attn, drop=drop: maps.setdefault(drop, []).append(attn))  # type: ignore[misc]
        around = _layer_of(model, drop)
        hooks += _after(model, [around], partial(outputs.__setitem__, around))
    with _removed(hooks):
        try:
            model(images)
        except Exception as error:  # its first images; each model fails in its own way
            size = f"{images.shape[2]} x {images.shape[3]} pixels"
            raise UserError(
                f"{name} cannot take images of {size} ({one_line(error)}): give another --img-size"
            ) from error
    layers: list[Layer] = []
    left_out: list[str] = []
    sides = (images.shape[2], images.shape[3])
    for drop, seen in maps.items():
        parted = _windows_of(model, len(layers), sides)
        seen = [join_maps(attn, *parted) for attn in seen] if parted else seen
        shape, around = tuple(seen[0].shape), _layer_of(model, drop)
        if len(seen) == 1 and len(shape) == 4 and shape[0] == len(images) and shape[2] == 1:
            left_out.append(drop.rpartition(".")[0])  # one query: a class token, or a pooling by attention
            continue
        x = _tokens(outputs[around])
        x = join_windows(x, *parted) if parted else x
        if wrong := _unfit(seen, x, len(images)) or (
            "two attentions in one layer" if any(layer.name == around for layer in layers) else ""
        ):
            raise UserError(f"{name} has no maps between all tokens, layer by layer ({around}: {wrong}): "
                            "give a plain vision transformer")  # fmt: skip
        layers.append(_describe(model, around, drop, x, shape[1], layers, sides, parted[1] if parted else 0))
    if not layers:
        raise UserError(f"{name} has no attention maps that can be read{_why_none(model)}: give a vision transformer")
    return tuple(layers), tuple(left_out)


def _layer_of(model: nn.Module, drop: str) -> str:
    """The module around an attention that is no mere list of modules; the attention itself if there is none."""
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
    """Why a layer's maps are not those of all its tokens; empty if they are."""
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
    """Grid and `Arch.window` of a PSViT's layer of this number; None if it attends to all, as in a single window."""
    if not isinstance(model, PSViT):
        return None
    stage = _stage_of(model, number)
    grid, window = model.arch.grids(sides)[stage], model.arch.window(stage)
    return (grid, window) if 0 < window < max(grid) else None


def _stage_of(model: PSViT, number: int) -> int:
    return [stage for stage, layers in enumerate(model.arch.stages) for _ in layers][number]


def _describe(
    model: Any, name: str, drop: str, x: Tensor, heads: int, before: Sequence[Layer], sides: Grid, window: int
) -> Layer:
    tokens, width = x.shape[1:]
    if isinstance(model, PSViT):
        arch, number = model.arch, len(before)
        stage = _stage_of(model, number)
        # an S that shares projections only has a map of its own, as an A has
        kind = "".join(arch.stages)[number] if arch.sharing == "map" else ATTEND
        one_row, prefix = arch.pooling == "1d", model.num_prefix_tokens
        grids = arch.grids(sides)
        grid: Grid | None = grids[stage]
        positions: Tensor | None = _pooled_centres(grids[0], arch.stride, stage, one_row)
    else:
        stage = 0 if not before else before[-1].stage + (before[-1].tokens != tokens)
        kind, one_row = ATTEND, False
        prefix = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
        grid = _grid_of(model, tokens - prefix, sides)
        positions = None if grid is None else _centres(grid, (sides[0] / grid[0], sides[1] / grid[1]))
    assert kind in (ATTEND, SHARE)
    return Layer(name, drop, kind, stage, heads, tokens, prefix, width, grid, positions, one_row, window)


def _grid_of(model: Any, places: int, sides: Grid) -> Grid | None:
    """Of a model of timm: that of its patch embedding, or after a pooling a square for square images."""
    native = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if native is not None and prod(native) == places:
        return int(native[0]), int(native[1])
    side = isqrt(max(places, 0))
    return (side, side) if side * side == places > 0 and sides[0] == sides[1] else None


def _centres(grid: Grid, pitch: tuple[float, float]) -> Tensor:
    """(h w, 2) centres (y, x) in pixels of patches that lie `pitch` pixels apart."""
    y, x = (_along(side, step) for side, step in zip(grid, pitch, strict=True))
    return torch.cartesian_prod(y, x).reshape(-1, 2)


def _along(side: int, step: float) -> Tensor:
    """(side,) centres of patches on one axis."""
    return (torch.arange(side) + 0.5) * step


def _pooled_centres(grid: Grid, stride: int, poolings: int, one_row: bool) -> Tensor:
    """(h w, 2) centres (y, x) in pixels of the tokens after so many poolings of a grid, by sequence or by axis."""
    if one_row:
        places = _centres(grid, (stride, stride))
        for _ in range(poolings):
            places = _halved(places)
        return places
    y, x = (_along(side, stride) for side in grid)
    for _ in range(poolings):
        y, x = _halved(y), _halved(x)
    return torch.cartesian_prod(y, x).reshape(-1, 2)


def _halved(places: Tensor) -> Tensor:
    """Centres after a pooling, of a sequence or on one axis: means of pairs; the last of an odd number stays alone."""
    windows = torch.arange(len(places)) >> 1
    return torch.stack([places[windows == window].mean(dim=0) for window in range(int(windows[-1]) + 1)])
