"""What layers attend to, drawn over the image: panels -> a PNG."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from psvit.files import replacing
from psvit.report.figures import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LESS, MORE = (0.12, 0.42, 0.78), (0.95, 0.50, 0.08)
"""Red, green and blue of less and of more than an equal share: blue and orange, which the colour-blind tell apart."""

STRENGTH = 0.85
"""Of the colour over the image, at the ends of the scale."""

GREY = (0.15, 0.85)
"""What black and white become under the colours, which would not show on black and on white alike."""

ENDS = (1.1, 1.25, 1.5, 2, 4, 8, 16, 32)
"""Multiples of an equal share at which the scale may end; its other end is 1 over it."""

COLUMNS, PANEL, DOTS = 5, 1.9, 150  # panels in a row, inches, dots per inch


class Panel(NamedTuple):
    """One picture: its title, and for each pixel (H, W) what its token gets, as a multiple of an equal share."""

    title: str
    times: Tensor


def overlay(image: Tensor, times: Tensor, end: float) -> Tensor:
    """Colour a grey image by attention: as it is where a pixel gets an equal share, orange for more, blue for less.

    Args:
        image: (H, W, 3), from 0 to 1.
        times: (H, W), multiples of an equal share.
        end: the colour is strongest from this multiple on, and below 1 over it; the scale between is logarithmic.

    Returns:
        (H, W, 3), from 0 to 1.
    """
    place = (times.log2() / log2(end)).clamp(-1, 1)[..., None]
    colour = torch.where(place > 0, image.new_tensor(MORE), image.new_tensor(LESS))
    weight = STRENGTH * place.abs()
    grey = GREY[0] + (GREY[1] - GREY[0]) * image.mean(dim=-1, keepdim=True)
    return grey * (1 - weight) + colour * weight


def write_figure(path: Path, title: str, legend: str, image: Tensor, panels: Sequence[Panel]) -> None:
    """Write the image (H, W, 3) and the panels over it as a PNG, whole or not at all."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style = {**STYLE, "font.size": 9, "axes.titlesize": 9, "xtick.labelsize": 8}
    with matplotlib.rc_context(style), replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class name in letters that the font has not
        figure = _figure(title, legend, image, panels)
        FigureCanvasAgg(figure)
        figure.savefig(temporary, format="png", dpi=DOTS, metadata={"Software": None})


def _figure(title: str, legend: str, image: Tensor, panels: Sequence[Panel]) -> Figure:
    from matplotlib.figure import Figure

    greatest = max(float(panel.times.max()) for panel in panels)
    end = next((end for end in ENDS if end >= greatest), ENDS[-1])
    columns = min(COLUMNS, len(panels) + 1)
    rows = -(-(len(panels) + 1) // columns)
    aspect = min(max(image.shape[0] / image.shape[1], 0.25), 4)
    width = max(columns * PANEL, 3.5 * PANEL)
    text = textwrap.fill(legend, int(17 * width))
    heights = [rows * (PANEL * aspect + 0.45), 0.7, 0.15 * (text.count("\n") + 1) + 0.1]  # panels, scale, words
    figure = Figure((width, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(textwrap.shorten(title, int(9 * width), placeholder=" …"), fontsize=12)
    above, middle, below = figure.subfigures(3, 1, squeeze=False, height_ratios=heights).flatten()
    cells = above.subplots(rows, columns, squeeze=False).flatten()
    for axes in cells:
        axes.set_axis_off()
    _show(cells[0], f"image\n{image.shape[0]}×{image.shape[1]} pixels", image)
    for axes, panel in zip(cells[1:], panels, strict=False):
        _show(axes, panel.title, overlay(image, panel.times, end))
    _scale(middle.subplots(), end)
    below.text(0.01, 0.95, text, fontsize=8, va="top")
    return figure


def _show(axes: Axes, title: str, image: Tensor) -> None:
    axes.imshow(image.numpy(), interpolation="nearest")
    axes.set_title(title)


def _scale(axes: Axes, end: float) -> None:
    """The scale of the colours, over a middle grey."""
    side = log2(end)
    bar = overlay(torch.full((1, 401, 3), 0.5), 2.0 ** torch.linspace(-side, side, 401)[None], end)
    axes.imshow(bar.numpy(), aspect="auto", extent=(-side, side, 0, 1))
    ups = [2.0**power for power in range(1, int(side) + 1)] if end > 2 else [end]
    axes.set_xticks(
        [*(-log2(up) for up in reversed(ups)), 0, *map(log2, ups)],
        [*(f"1/{up:g}" for up in reversed(ups)), "1", *(f"{up:g}×" for up in ups)],
    )
    axes.set_yticks([])
    axes.set_xlabel("attention, times an equal share")
    for spine in axes.spines.values():
        spine.set_visible(False)
