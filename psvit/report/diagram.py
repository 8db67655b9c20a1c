"""A network as a picture: patches, stages of layers, token pooling between them, head. No torch here."""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING

from psvit.arch import cost
from psvit.arch.arch import ATTEND, SHARE, Arch, image_sides
from psvit.report.figures import FONT, INK, ON_COLOUR, PALETTE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, LEFT, COLUMN, GAP, EDGE = 390, 72, 30, 8, 10
"""Points: the picture; where the layers begin; the middle of the token grids; between two layers; at the margins."""

TALL, WIDE = 54, 46
"""Height of the layers of the first stage, width of the widest layer at most, in points."""

LEAST_TALL, LEAST_WIDE, CELLS = 14, 10, 16
"""The least height and width of a layer, so that its letter can be read; the most rows of a grid that are drawn."""


def diagram(arch: Arch, img_size: cost.ImgSize, in_chans: int = 3, num_classes: int = 1000) -> Figure:
    """The picture of a network.

    A row for each stage: its token grid, then its layers. A layer is as tall as the square root of its tokens and as
    wide as its channels, or a little larger, to be legible. A layer that attends is filled; one that shares is
    outlined, and an arrow brings it the map of the layer before.

    Args:
        arch: the network.
        img_size: side or (height, width) of the image in pixels.
        in_chans: its channels.
        num_classes: classes.

    Raises:
        UserError: an image size that is not positive.
    """
    import matplotlib
    from matplotlib.figure import Figure

    grids, stages = arch.grids(image_sides(img_size)), arch.stages
    texts = _texts(arch, img_size, in_chans, num_classes)
    room = WIDTH - LEFT - EDGE
    free = min((room / len(stage) - GAP) / width for stage, width in zip(stages, arch.widths, strict=True))
    scale = min(free, WIDE / max(arch.widths))  # points a channel
    wides = [max(LEAST_WIDE, scale * width) for width in arch.widths]
    talls = [max(LEAST_TALL, TALL * sqrt(prod(grid) / prod(grids[0]))) for grid in grids]
    width = max([WIDTH, *(LEFT + EDGE + len(stage) * (wide + GAP) for stage, wide in zip(stages, wides, strict=True))])
    height = EDGE + sum(talls) + 56 * len(stages) + 100
    with matplotlib.rc_context({**STYLE, "font.size": FONT - 2}):
        figure = Figure((width / 72, height / 72))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        y = EDGE + 8.0
        axes.text(LEFT, y, texts["image"])
        for number, (stage, wide, tall) in enumerate(zip(stages, wides, talls, strict=True)):
            y += 18
            axes.text(LEFT, y, texts[f"to {number}"], alpha=0.75)
            y += 16 + tall / 2
            _grid(axes, grids[number], y, tall)
            for place, kind in enumerate(stage):
                _layer(axes, kind, LEFT + place * (wide + GAP), y, wide, tall)
            y += tall / 2 + 16
            axes.text(LEFT, y, texts[f"stage {number}"])
        axes.text(LEFT, y + 18, texts["head"], alpha=0.75)
        for place, (kind, text) in enumerate(LEGEND.items()):
            line = y + 44 + 18 * place
            if kind in (ATTEND, SHARE):
                _layer(axes, kind, LEFT - 22, line - 4, LEAST_WIDE + 3, LEAST_TALL, arrow=False)
            axes.text(LEFT, line, text, alpha=0.75)
    return figure


LEGEND = {
    ATTEND: "attends: computes its own attention map",
    SHARE: "shares: takes the map of the layer before it",
    "": "taller: more tokens; wider: more channels; %: part of all MACs",
}


def _texts(arch: Arch, img_size: cost.ImgSize, in_chans: int, num_classes: int) -> dict[str, str]:
    """What stands beside the image, before each stage, below it, and at the head."""
    (height, width), layers = image_sides(img_size), cost.layer_costs(arch, img_size, in_chans, num_classes)
    total = sum(layer.macs for layer in layers)
    grids = [str(columns) if rows == 1 else f"{rows}×{columns}" for rows, columns in arch.grids(image_sides(img_size))]
    counted = [f"{grid} token{'s' * (grid != '1')}" for grid in grids]

    def part(stage: int, *kinds: str) -> str:
        percent = 100 * sum(layer.macs for layer in layers if layer.stage == stage and layer.kind in kinds) / total
        return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"

    patch, stride = arch.patch_size, arch.stride
    how = f"patches of {patch} × {patch}" + (f", one every {stride}" if stride != patch else "")
    if arch.stem != "patch":
        halving = "of stride 2" if arch.stem == "conv" else "and max pooling"
        how = f"convolutions {halving}, down to {stride} pixels a token"
    texts = {
        "image": f"image, {height} × {width} pixels, {in_chans} channel{'s' * (in_chans > 1)}",
        "to 0": f"{how} → {counted[0]}; {part(0, 'embed')}",
        "head": f"head: {'class token' if arch.class_token else 'average of the tokens'} → {num_classes:,} classes; "
        f"{part(len(grids) - 1, 'head')}",
    }
    for stage, (tokens, channels, heads) in enumerate(zip(counted, arch.widths, arch.num_heads, strict=True)):
        texts[f"stage {stage}"] = (
            f"stage {stage + 1}: {tokens}, {channels} channels, {heads} head{'s' * (heads > 1)}; "
            f"{part(stage, ATTEND, SHARE)}"
        )
        if stage:
            before = arch.widths[stage - 1]
            wider = f"{before} → {channels} channels" if before != channels else f"{channels} channels"
            texts[f"to {stage}"] = f"pooling: {grids[stage - 1]} → {tokens}, {wider}; {part(stage, 'pool')}"
    return texts


def _layer(axes: Axes, kind: str, x: float, y: float, wide: float, tall: float, arrow: bool = True) -> None:
    """One layer, its left end at x, its middle at y; an arrow brings a layer that shares its map."""
    from matplotlib.patches import FancyArrowPatch, Rectangle

    colour, filled = PALETTE[kind == SHARE], kind == ATTEND
    axes.add_patch(Rectangle((x, y - tall / 2), wide, tall, facecolor=colour if filled else "none", edgecolor=colour,
                             linewidth=1.6))  # fmt: skip
    axes.text(x + wide / 2, y, kind, ha="center", va="center_baseline", fontsize=FONT - 1, weight="bold",
              color=ON_COLOUR if filled else INK)  # fmt: skip
    if kind == SHARE and arrow:
        top, middle = y - tall / 2 - 1, x + wide / 2
        arc = "arc3,rad=-0.4"
        axes.add_patch(FancyArrowPatch((middle - wide - GAP, top), (middle, top), connectionstyle=arc, color=colour,
                                       arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=0))  # fmt: skip


def _grid(axes: Axes, grid: tuple[int, int], y: float, tall: float) -> None:
    """The token grid, as tall as the layers; a sequence is a strip."""
    from matplotlib.patches import Rectangle

    rows, columns = grid
    scale = min(tall / rows, tall / columns)
    wide, high = (scale * columns, scale * rows) if rows > 1 or columns == 1 else (min(LEFT - 28.0, 1.2 * tall), 7.0)
    left, top = COLUMN - wide / 2, y - high / 2
    axes.add_patch(Rectangle((left, top), wide, high, facecolor=f"{PALETTE[2]}40", edgecolor=PALETTE[2]))
    right, down = min(columns, CELLS), min(rows, CELLS)
    axes.vlines([left + wide * i / right for i in range(1, right)], top, top + high, color=PALETTE[2], linewidth=0.6)
    axes.hlines([top + high * i / down for i in range(1, down)], left, left + wide, color=PALETTE[2], linewidth=0.6)
