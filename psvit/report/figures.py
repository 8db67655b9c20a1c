"""Curves, points, intervals, bars, matrices -> figures of matplotlib -> SVG, light or dark, and PNG. No torch here."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b87a00", "#2f8fc4", "#8f8500", "#7a7a7a")
"""Colours that the colour-blind tell apart, after Okabe and Ito, which stand out on white and on `DARK_PAPER`."""

INK, DARK_INK = "#1f2328", "#e6e8eb"
PAPER, DARK_PAPER = "#ffffff", "#15181c"
ON_COLOUR = "#fafafa"
"""Letters on a dark colour; not `PAPER`, which turns dark at night."""

WIDTH, FONT = 440, 12  # points
MARKERS = "osD^vPX*"
MOST_LEVELS = 6
"""A logarithmic axis has its values as ticks if they are at most so many."""

MOST_WRITTEN = 14
"""A matrix of at most so many rows has its values written in its cells."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "psvit",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT,
    "figure.facecolor": PAPER,
    "savefig.facecolor": "auto",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "text.parse_math": False,  # a name with two dollars in it is a name
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}

DARK = f"""
@media (prefers-color-scheme: dark) {{
[style*="fill: {INK}"] {{ fill: {DARK_INK} !important }}
[style*="stroke: {INK}"] {{ stroke: {DARK_INK} !important }}
[style*="fill: {PAPER}"] {{ fill: {DARK_PAPER} !important }}
}}"""
"""CSS of every SVG: ink and paper change with the reader's preference, the palette suits both."""


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    log_x: bool = False,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Figure:
    """Named lines.

    Args:
        series: x values and y values of each line, by its name.
        x: label of the horizontal axis, y: of the vertical one, with units.
        log_x: a logarithmic axis.
        bands: lower and upper ends around a line, at its x values, by its name.
    """

    def draw(axes: Axes) -> None:
        for number, (name, (across, up)) in enumerate(series.items()):
            line = axes.plot(across, up, **_mark(number), label=_fit(name, 44), linewidth=1.8, markersize=4)[0]
            if len(across) > 20:
                line.set_marker("")
            if bands and name in bands:
                axes.fill_between(across, *bands[name], color=line.get_color(), alpha=0.2, linewidth=0)
        _label(axes, [value for across, _ in series.values() for value in across], x, y, log_x)

    return _figure(draw, legend=True)


def scatter(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]], x: str, y: str, log_x: bool = False
) -> Figure:
    """Named clouds of points with their intervals.

    Args:
        series: (x, y, lower end, upper end) of each point, by the name of its cloud.
        x: label of the horizontal axis, y: of the vertical one, with units.
        log_x: a logarithmic axis.
    """

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(series.items()):
            across, up, low, high = ([point[i] for point in points] for i in range(4))
            axes.errorbar(across, up, _arms(up, low, high), **{**_mark(number), "linestyle": "none"}, markersize=6,
                          elinewidth=1.4, capsize=3, label=_fit(name, 44))  # fmt: skip
        _label(axes, [point[0] for points in series.values() for point in points], x, y, log_x)

    return _figure(draw, legend=True)


def intervals(rows: Sequence[tuple[str, float, float, float]], x: str) -> Figure:
    """Means and their intervals, one under another.

    Args:
        rows: (label, mean, lower end, upper end) of each row, the first on top.
        x: label of the horizontal axis, with its unit.
    """

    def draw(axes: Axes) -> None:
        labels, means = [_fit(row[0], 26, lines=2) for row in rows], [row[1] for row in rows]
        arms = _arms(means, [row[2] for row in rows], [row[3] for row in rows])
        axes.errorbar(means, range(len(rows)), xerr=arms, color=PALETTE[0], fmt="o", elinewidth=1.8, capsize=4)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(_fit(x, 50))

    return _figure(draw, height=70 + 30 * len(rows))


def bars(groups: Mapping[str, Mapping[str, float]], y: str) -> Figure:
    """Groups of bars.

    Args:
        groups: for each group, by its label, the height of each bar by its name.
        y: label of the vertical axis, with its unit.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))

    def draw(axes: Axes) -> None:
        step = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            places = [i - 0.4 + (number + 0.5) * step for i, group in enumerate(groups.values()) if name in group]
            heights = [group[name] for group in groups.values() if name in group]
            axes.bar(places, heights, 0.92 * step, color=PALETTE[number % len(PALETTE)], label=_fit(name, 44))
        crowded = sum(len(label) + 2 for label in groups) > 50  # side by side they would run into each other
        axes.set_xticks(range(len(groups)), [_fit(label, 24) for label in groups], rotation=90 if crowded else 0)
        axes.tick_params(bottom=False)
        axes.grid(axis="y")
        axes.set_ylabel(_fit(y, 34))

    return _figure(draw, legend=len(names) > 1)


def heatmap(
    values: Sequence[Sequence[float | None]],
    labels: Sequence[str],
    unit: str,
    low: float,
    high: float,
    lines: Sequence[int] = (),
) -> Figure:
    """A square matrix in colour; at most `MOST_WRITTEN` rows have their values written in the cells.

    Args:
        values: rows of it, the first on top; None leaves a cell blank.
        labels: of the rows, and of the columns.
        unit: what the colours mean.
        low: the value of the darkest colour, high: of the brightest.
        lines: numbers of rows before which a border stands.
    """

    def draw(axes: Axes) -> None:
        from matplotlib import colormaps

        cells = [[float("nan") if value is None else value for value in row] for row in values]
        colours = colormaps["cividis"].resampled(48)  # from 50 on the scale beside it would be an image
        mesh = axes.pcolormesh(cells, cmap=colours, vmin=low, vmax=high, edgecolors="face", linewidth=0.2)
        if len(cells) <= MOST_WRITTEN:
            _write_cells(axes, cells, (low + high) / 2)
        for line in lines:
            axes.axhline(line, color=INK, linewidth=1.2)
            axes.axvline(line, color=INK, linewidth=1.2)
        every = -(-len(labels) // 24)  # no more labels than there is room for
        places, names = [i + 0.5 for i in range(len(labels))][::every], [_fit(label, 14) for label in labels][::every]
        axes.set_yticks(places, names)
        axes.set_xticks(places, names, rotation=90 if any(len(name) > 2 for name in names) else 0)
        axes.set_ylim(len(values), 0)
        axes.set_aspect("equal")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure: Any = axes.figure
        scale = figure.colorbar(mesh, ax=axes, label=unit, shrink=0.8)
        scale.outline.set_visible(False)
        scale.solids.set(edgecolor="face", linewidth=0.4)  # else the page shows between the colours

    return _figure(draw, height=400)


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file that needs nothing but itself, light or dark as its reader likes it."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace("</style>", f"{DARK}</style>", 1)


def save(figure: Figure, path: Path, dots_per_inch: int = 200) -> None:
    """Write a figure as ``path.svg`` and as ``path.png``."""
    import matplotlib

    with replacing(path.with_suffix(".svg")) as temporary:
        temporary.write_text(svg(figure), encoding="utf-8")
    with matplotlib.rc_context(STYLE), replacing(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png", dpi=dots_per_inch, metadata={"Software": None})


def _figure(draw: Callable[[Axes], None], legend: bool = False, height: int = 290) -> Figure:
    """A figure `WIDTH` points wide, with a legend below it if asked for."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH / 72, height / 72), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        names = axes.get_legend_handles_labels()[1] if legend else []
        if names:
            columns = 1 if max(map(len, names)) > 20 else min(2, len(names))
            figure.set_size_inches(WIDTH / 72, (height + 18 * -(-len(names) // columns)) / 72)
            figure.legend(loc="outside lower left", ncols=columns)
    return figure


def _mark(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a series."""
    return {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)],
            "linestyle": ("-", "--", "-.", ":")[number // len(PALETTE) % 4]}  # fmt: skip


def _write_cells(axes: Axes, cells: Sequence[Sequence[float]], middle: float) -> None:
    size = min(FONT - 1, 110 / len(cells))
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            if value == value:  # not blank
                text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3g}"
                axes.text(j + 0.5, i + 0.5, text.replace("-", "−"), ha="center", va="center", fontsize=size,
                          color=ON_COLOUR if value < middle else "black")  # fmt: skip


def _fit(text: str, width: int, lines: int = 1) -> str:
    """A text in at most so many lines of at most so many letters."""
    if len(text) <= width:
        return text
    return f"{text[: width - 1]}…" if lines == 1 else textwrap.fill(text, width, max_lines=lines, placeholder="…")


def _arms(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """Lengths of the intervals' arms; a mean outside by rounding has an arm of length 0."""
    pairs = list(zip(middle, low, high, strict=True))
    return [[max(0.0, m - a) for m, a, _ in pairs], [max(0.0, b - m) for m, _, b in pairs]]


def _label(axes: Axes, across: Sequence[float], x: str, y: str, log_x: bool) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if log_x and across and min(across) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        ticks = _levels(across)
        if 1 < len(ticks) <= MOST_LEVELS:
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            wide = max(across) >= 10 * min(across)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(5))
    elif all(float(value).is_integer() for value in across):  # epochs
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    if max(map(abs, across), default=0) >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    elif log_x:
        axes.xaxis.set_major_formatter("{x:g}")
    axes.grid()
    axes.set_xlabel(_fit(x, 50))
    axes.set_ylabel(_fit(y, 34))


def _levels(values: Sequence[float]) -> list[float]:
    """A round number for each group of positive values within 10 %, without groups of a few stray values."""
    groups: list[list[float]] = []
    for value in sorted(values):
        if groups and value < 1.1 * groups[-1][0]:
            groups[-1].append(value)
        else:
            groups.append([value])
    most = max(map(len, groups))
    return [_round_among(group) for group in groups if 2 * len(group) >= most]


def _round_among(values: Sequence[float]) -> float:
    """The number of the fewest digits that lies among them, or next to them."""
    middle = values[len(values) // 2]
    rounded = (float(f"{middle:.{digits}g}") for digits in range(1, 16))
    return next((one for one in rounded if 0.99 * values[0] <= one <= 1.01 * values[-1]), middle)
