"""A network as a picture: image, patches, stages of layers, token pooling between them, head. No torch here."""

from __future__ import annotations

import html
from math import prod, sqrt

from psvit.arch import cost
from psvit.arch.arch import ATTEND, SHARE, Arch, image_sides
from psvit.report.figures import THEMES, colour

WIDTH, LEFT, RIGHT, COLUMN = 400, 72, 14, 28
"""Of the picture; of its left column, with the token grids; of its right margin; the middle of the left column."""

TALL, WIDE, GAP = 54, 46, 7
"""Height of the layers of the first stage; width of the widest layer at most; room between two layers."""

LEAST_TALL, LEAST_WIDE, CELLS = 14, 10, 16
"""The least height and width of a layer, so that its letter can be read; the most cells of a grid that are drawn."""


EDGE = 10
"""Paper around a picture that stands in a file."""


def diagram_svg(
    arch: Arch, img_size: cost.ImgSize, in_chans: int = 3, num_classes: int = 1000, standalone: bool = False
) -> str:
    """The picture of a network as SVG.

    A row for each stage: its token grid, then its layers. A layer is as tall as the square root of its tokens and as
    wide as its channels; where that would be too small to read, a little larger. A layer that attends is filled; one
    that shares is outlined, and an arrow brings it the map of the layer before.

    Args:
        arch: the network.
        img_size: side or (height, width) of the image in pixels.
        in_chans: its channels.
        num_classes: classes.
        standalone: bring the colours along, for a file; else they are those of the page around it.

    Raises:
        UserError: an image size that is not positive.
    """
    picture = _Picture(arch, img_size, in_chans, num_classes)
    picture.image()
    for stage in range(len(arch.stages)):
        picture.stage(stage)
    picture.head()
    picture.legend()
    return picture.svg(standalone)


class _Picture:
    """Draws downwards: `y` is where the next row begins."""

    def __init__(self, arch: Arch, img_size: cost.ImgSize, in_chans: int, num_classes: int) -> None:
        self.arch, self.sides, self.in_chans, self.num_classes = arch, image_sides(img_size), in_chans, num_classes
        self.layers = cost.layer_costs(arch, self.sides, in_chans, num_classes)
        self.total = sum(layer.macs for layer in self.layers)
        self.grids = arch.grids(self.sides)
        self.parts: list[str] = []
        self.y, self.end = 0.0, 0.0  # end: right end of the row that was drawn last
        room = WIDTH - LEFT - RIGHT
        free = min(
            (room - GAP * len(stage)) / (len(stage) * width)
            for stage, width in zip(arch.stages, arch.widths, strict=True)
        )
        self.wide = min(free, WIDE / max(arch.widths))  # units a channel
        self.tall = TALL / sqrt(prod(self.grids[0]))  # units a square root of tokens
        rows = [len(stage) * (self.box(i)[0] + GAP) for i, stage in enumerate(arch.stages)]
        self.width = max(WIDTH, LEFT + RIGHT + max(rows))

    def box(self, stage: int) -> tuple[float, float]:
        """Width and height of a layer of that stage."""
        tall = self.tall * sqrt(prod(self.grids[stage]))
        return max(LEAST_WIDE, self.wide * self.arch.widths[stage]), max(LEAST_TALL, tall)

    def share(self, *kinds: str, stage: int) -> str:
        """The part of the MACs that the parts of those kinds of a stage take."""
        macs = sum(layer.macs for layer in self.layers if layer.stage == stage and layer.kind in kinds)
        percent = 100 * macs / self.total
        return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"

    # Rows, from the top

    def image(self) -> None:
        """The image, and the way into the first grid."""
        side, (height, width) = 34, self.sides
        x, size = COLUMN, (side * min(1, width / height), side * min(1, height / width))
        top = self.y + 4
        left = x - size[0] / 2
        self.add(f'<rect x="{left:.1f}" y="{top}" width="{size[0]:.1f}" height="{size[1]:.1f}" {_line(1.2)}/>')
        self.add(f'<path d="M{left + 2:.1f} {top + size[1] - 3:.1f}l{0.3 * size[0]:.1f} {-0.45 * size[1]:.1f} '
                 f'{0.22 * size[0]:.1f} {0.25 * size[1]:.1f} {0.16 * size[0]:.1f} {-0.16 * size[1]:.1f} '
                 f'{0.2 * size[0]:.1f} {0.36 * size[1]:.1f}z" fill="currentColor" opacity=".35"/>')  # fmt: skip
        colours = "1 channel" if self.in_chans == 1 else f"{self.in_chans} channels"
        patch, stride = self.arch.patch_size, self.arch.stride
        apart = "" if stride == patch else f", one every {stride}"
        self.write(LEFT, top + 12, f"image, {height} × {width} pixels, {colours}")
        how = f"patches of {patch} × {patch}{apart}"
        if self.arch.stem == "conv":
            how = f"convolutions of stride 2, down to {stride} pixels a token"
        self.write(LEFT, top + 28, f"{how} → {self.grid(0)} tokens; {self.share('embed', stage=0)}", soft=True)
        self.arrow(x, top + size[1] + 2, x, top + side + 17)
        self.y = top + side + 20

    def stage(self, stage: int) -> None:
        """A row of layers, below the pooling that leads to it."""
        if stage > 0:
            self.pooling(stage)
        (wide, tall), letters, top = self.box(stage), self.arch.stages[stage], self.y + 14
        bottom = top + tall
        middle = (top + bottom) / 2
        self.cells(stage, top, tall)
        self.end = LEFT + len(letters) * (wide + GAP) - GAP
        self.arrow(LEFT - 14, middle, LEFT - 2, middle)
        for number, kind in enumerate(letters):
            x = LEFT + number * (wide + GAP)
            if number:
                self.add(f'<path d="M{x - GAP:.1f} {middle:.1f}h{GAP}" {_line(1)}/>')
            self.layer(kind, x, top, wide, tall)
        width, heads = self.arch.widths[stage], self.arch.num_heads[stage]
        about = f"stage {stage + 1}: {self.grid(stage)} tokens, {width} channels, {heads} head{'s' * (heads > 1)}; "
        self.write(LEFT, bottom + 15, f"{about}{self.share(*set(letters), stage=stage)}")
        self.bottom = middle
        self.y = bottom + 22

    def layer(self, kind: str, x: float, top: float, wide: float, tall: float) -> None:
        """One layer; one that shares has the map brought to it."""
        shade = colour(0) if kind == ATTEND else colour(1)
        fill = f'fill="{shade}"' if kind == ATTEND else 'fill="none"'
        self.add(f'<rect x="{x:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="2" {fill} '
                 f'stroke="{shade}" stroke-width="1.6"/>')  # fmt: skip
        ink = "var(--paper, #fff)" if kind == ATTEND else "currentColor"
        self.add(f'<text x="{x + wide / 2:.1f}" y="{top + tall / 2 + 4:.1f}" text-anchor="middle" font-size="11" '
                 f'font-weight="600" fill="{ink}">{html.escape(kind)}</text>')  # fmt: skip
        if kind == SHARE:
            start, end, high = x - GAP - wide / 2, x + wide / 2, top - 3
            rise = min(12.0, 4 + (end - start) / 4)
            bend = f"{start + 3:.1f} {high - rise:.1f} {end - 3:.1f} {high - rise:.1f}"
            self.add(f'<path d="M{start:.1f} {high:.1f}C{bend} {end:.1f} {high:.1f}" fill="none" stroke="{shade}" '
                     f'stroke-width="1.3"/>')  # fmt: skip
            self.add(f'<path d="M{end - 3.4:.1f} {high - 4.5:.1f}L{end + 0.6:.1f} {high + 1:.1f}L{end + 2.4:.1f} '
                     f'{high - 5.5:.1f}z" fill="{shade}"/>')  # fmt: skip

    def pooling(self, stage: int) -> None:
        """The way from the end of a row through a funnel to the grid of the next."""
        arch, x = self.arch, COLUMN
        wide, (before, after) = self.y + 12, arch.widths[stage - 1 : stage + 1]
        self.way_back(wide, x + 20)
        self.add(f'<path d="M{x + 18:.1f} {wide - 11:.1f}v22l-18 -6v-10z" fill="{colour(2)}" opacity=".9"/>')
        self.arrow(x, wide + 6, x, wide + 20)
        channels = f"{before} → {after} channels" if before != after else f"{before} channels"
        self.write(LEFT, wide + 14, f"pooling: {self.grid(stage - 1)} → {self.grid(stage)} tokens, {channels}; "
                   f"{self.share('pool', stage=stage)}", soft=True)  # fmt: skip
        self.y = wide + 20

    def head(self) -> None:
        """The way from the last row to the classes."""
        x, y = COLUMN, self.y + 12
        self.way_back(y, x + 12)
        for number, tall in enumerate((7, 16, 10)):
            self.add(f'<rect x="{x - 11 + 8 * number:.1f}" y="{y + 8 - tall:.1f}" width="6" height="{tall}" '
                     f'fill="{colour(3)}"/>')  # fmt: skip
        tokens = "class token" if self.arch.class_token else "average of the tokens"
        self.write(LEFT, y + 14, f"head: {tokens} → {self.num_classes:,} classes; "
                   f"{self.share('head', stage=len(self.grids) - 1)}", soft=True)  # fmt: skip
        self.y = y + 26

    def way_back(self, y: float, x: float) -> None:
        """From the end of the row that was drawn last, around its caption, to x."""
        out = self.width - RIGHT / 2
        self.add(f'<path d="M{self.end + 2:.1f} {self.bottom:.1f}H{out:.1f}V{y:.1f}H{x:.1f}" {_line(1)} '
                 f'opacity=".45" stroke-linejoin="round"/>')  # fmt: skip

    def legend(self) -> None:
        """What the shapes mean."""
        y = self.y + 12
        rows = ((ATTEND, "attends: computes its own attention map"),
                (SHARE, "shares: takes the map of the layer before it"))  # fmt: skip
        for number, (kind, text) in enumerate(rows):
            self.layer(kind, LEFT - 22, y + 20 * number - 7, 13, 14) if kind == ATTEND else self._shares(
                y + 20 * number
            )
            self.write(LEFT, y + 20 * number + 4, text, soft=True)
        self.write(LEFT, y + 42, "taller: more tokens; wider: more channels", soft=True)
        self.write(LEFT, y + 58, "%: part of all MACs", soft=True)
        self.y = y + 64

    def _shares(self, y: float) -> None:
        shade = colour(1)
        self.add(f'<rect x="{LEFT - 22}" y="{y - 7}" width="13" height="14" rx="2" fill="none" stroke="{shade}" '
                 f'stroke-width="1.6"/>')  # fmt: skip
        self.add(f'<text x="{LEFT - 15.5}" y="{y + 4}" text-anchor="middle" font-size="11" font-weight="600" '
                 f'fill="currentColor">{SHARE}</text>')  # fmt: skip

    # Pieces

    def cells(self, stage: int, top: float, tall: float) -> None:
        """The token grid: as tall as the layers, a sequence as a strip."""
        rows, columns = self.grids[stage]
        x = COLUMN
        wide, high = (tall, tall * rows / columns) if columns >= rows else (tall * columns / rows, tall)
        if rows == 1 and columns > 1:  # a sequence
            wide, high = min(LEFT - 28.0, tall * 1.2), 7.0
        left, upper = x - wide / 2, top + (tall - high) / 2
        self.add(f'<rect x="{left:.1f}" y="{upper:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{colour(2)}" '
                 f'fill-opacity=".25" stroke="{colour(2)}"/>')  # fmt: skip
        down, right = min(rows, CELLS), min(columns, CELLS)
        lines = [f"M{left + wide * i / right:.1f} {upper:.1f}v{high:.1f}" for i in range(1, right)]
        lines += [f"M{left:.1f} {upper + high * i / down:.1f}h{wide:.1f}" for i in range(1, down)]
        if lines:
            self.add(f'<path d="{"".join(lines)}" stroke="{colour(2)}" stroke-width=".7" fill="none"/>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A straight arrow, down or to the right."""
        tip = "l-3 -5h6z" if x == to_x else "l-5 -3v6z"
        self.add(f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" {_line(1)} opacity=".6"/>')
        self.add(f'<path d="M{to_x:.1f} {to_y:.1f}{tip}" fill="currentColor" opacity=".6"/>')

    def write(self, x: float, y: float, text: str, soft: bool = False) -> None:
        """A line of text."""
        faint = ' opacity=".75"' if soft else ""
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" fill="currentColor"{faint}>{html.escape(text)}</text>')

    def grid(self, stage: int) -> str:
        """Rows and columns of a stage's tokens."""
        rows, columns = self.grids[stage]
        return str(columns) if rows == 1 else f"{rows}×{columns}"

    def add(self, part: str) -> None:
        """One more element."""
        self.parts.append(part)

    def svg(self, standalone: bool) -> str:
        """All that was drawn."""
        edge = EDGE if standalone else 0
        wide, tall = round(self.width) + 2 * edge, round(self.y) + 2 * edge
        size = f'width="{wide}" height="{tall}"' if standalone else 'width="100%"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="{-edge} {-edge} {wide} {tall}" '
            f'font-family="system-ui, sans-serif" font-size="11">\n'
            + (f"{THEMES}\n" if standalone else "")
            + "\n".join(self.parts)
            + "\n</svg>"
        )


def _line(width: float) -> str:
    return f'fill="none" stroke="currentColor" stroke-width="{width}"'
