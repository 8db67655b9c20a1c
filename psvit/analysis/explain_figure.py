"""Draws panels of attention over an image, as a PNG."""

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
"""RGB colours of less and more than an equal share: blue and orange, safe for colour-blind readers."""

STRENGTH = 0.85
"""Opacity of the colour at the ends of the scale."""

GREY = (0.15, 0.85)
"""Grey levels of black and white in the image, so that the colours are visible on both."""

ENDS = (1.1, 1.25, 1.5, 2, 4, 8, 16, 32)
"""Possible ends of the scale, as multiples of an equal share; the other end is the reciprocal."""

COLUMNS, PANEL, DOTS = 5, 1.9, 150  # panels in a row, inches, dots per inch


class Panel(NamedTuple):
    """A title, and for each pixel (H, W) the attention to its token as a multiple of an equal share."""

    title: str
    times: Tensor


def overlay(image: Tensor, times: Tensor, end: float) -> Tensor:
    """Colour a grey image by attention: grey for an equal share, orange for more, blue for less.

    Args:
        image: (H, W, 3), from 0 to 1.
        times: (H, W), multiples of an equal share.
        end: the multiple at the end of the logarithmic scale; its other end is 1 / end.

    Returns:
        (H, W, 3), from 0 to 1.
    """
    place = (times.log2() / log2(end)).clamp(-1, 1)[..., None]
    colour = torch.where(place > 0, image.new_tensor(MORE), image.new_tensor(LESS))
    weight = STRENGTH * place.abs()
    grey = GREY[0] + (GREY[1] - GREY[0]) * image.mean(dim=-1, keepdim=True)
    return grey * (1 - weight) + colour * weight


def write_figure(path: Path, title: str, legend: str, image: Tensor, panels: Sequence[Panel]) -> None:
    """Write the image (H, W, 3) and the panels over it as a PNG, atomically."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style = {**STYLE, "font.size": 9, "axes.titlesize": 9, "xtick.labelsize": 8}
    with matplotlib.rc_context(style), replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # characters missing in the font, in class names
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
    """Draw the colour scale."""
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
