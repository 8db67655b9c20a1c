"""Figures -> SVG whose text and axes take the page's colour, for light, dark and paper. No torch here."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b87a00", "#2f8fc4", "#8f8500", "#7a7a7a")
"""Colours that the colour-blind tell apart, after Okabe and Ito, dark enough for white paper."""

NIGHT = ("#56b4e9", "#ff9a4d", "#3ecf9f", "#e6a1c8", "#f0b93a", "#9ad4f5", "#f0e442", "#b0b0b0")
"""The same, bright enough for a dark page."""

INK, WIDTH, FONT = "#010203", 440, 12  # a colour that becomes the page's; points
PAPER_INK = "#1f2328"
MARKERS, DASHES = "osD^vPX*", ("-", "--", "-.", ":")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
"""The markers, as plotly calls them."""

MOST_LEVELS = 6
"""On a logarithmic axis so many values are ticks themselves."""

MOST_WRITTEN = 14
"""A matrix of at most so many rows has its values written in its cells."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "psvit",
    "font.family": ["DejaVu Sans"],
    "font.size": FONT,
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
    "axes.unicode_minus": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def colour(number: int) -> str:
    """The colour of that number, from 0, as CSS: the page's own shade of it, else the palette's."""
    place = number % len(PALETTE)
    return f"var(--c{place}, {PALETTE[place]})"


def shades(palette: Sequence[str]) -> str:
    """A palette as declarations in CSS, which `colour` reads."""
    return " ".join(f"--c{number}: {shade};" for number, shade in enumerate(palette))


THEMES = f"""<style>
svg {{ color: {PAPER_INK}; background: var(--paper); --paper: #fff; }}
@media (prefers-color-scheme: dark) {{ svg {{ color: #e6e8eb; --paper: #15181c; {shades(NIGHT)} }} }}
</style>"""
"""The colours of a picture in a file of its own, for browsers."""


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    log_x: bool = False,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Drawing:
    """Named lines as SVG.

    Args:
        series: x values and y values of each line, by its name.
        x: what lies across, y: what goes up, with units.
        log_x: a logarithmic axis.
        bands: lower and upper ends around a line, at its x values, by its name.
    """

    def draw(axes: Axes) -> None:
        for number, (name, (across, up)) in enumerate(series.items()):
            shade, few = PALETTE[number % len(PALETTE)], len(across) <= 20
            axes.plot(across, up, color=shade, label=_fit(name, 44), linewidth=1.8, markersize=4,
                      marker=MARKERS[number % len(MARKERS)] if few else None,
                      linestyle=DASHES[number // len(PALETTE) % len(DASHES)])  # fmt: skip
            if bands and name in bands:
                axes.fill_between(across, *bands[name], color=shade, alpha=0.2, linewidth=0)
        _label(axes, [value for across, _ in series.values() for value in across], x, y, log_x)

    return _svg(draw, legend=True)


def scatter(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]], x: str, y: str, log_x: bool = False
) -> Drawing:
    """Named clouds of points with their intervals as SVG.

    Args:
        series: (x, y, lower end, upper end) of each point, by the name of its cloud.
        x: what lies across, y: what goes up, with units.
        log_x: a logarithmic axis.
    """

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(series.items()):
            across, up, low, high = ([point[i] for point in points] for i in range(4))
            axes.errorbar(across, up, _arms(up, low, high), color=PALETTE[number % len(PALETTE)], label=_fit(name, 44),
                          fmt=MARKERS[number % len(MARKERS)], markersize=6, elinewidth=1.4, capsize=3)  # fmt: skip
        _label(axes, [point[0] for points in series.values() for point in points], x, y, log_x)

    return _svg(draw, legend=True)


def intervals(rows: Sequence[tuple[str, float, float, float]], x: str) -> Drawing:
    """Means and their intervals, one under another, as SVG.

    Args:
        rows: (label, mean, lower end, upper end) of each row, the first on top.
        x: what lies across, with its unit.
    """

    def draw(axes: Axes) -> None:
        labels, means = [_fit(row[0], 26, lines=2) for row in rows], [row[1] for row in rows]
        low, high = [row[2] for row in rows], [row[3] for row in rows]
        axes.errorbar(means, range(len(rows)), xerr=_arms(means, low, high), color=PALETTE[0], fmt="o", markersize=6,
                      elinewidth=1.8, capsize=4)  # fmt: skip
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(_fit(x, 50))

    return _svg(draw, height=70 + 30 * len(rows))


def bars(groups: Mapping[str, Mapping[str, float]], y: str) -> Drawing:
    """Groups of bars as SVG.

    Args:
        groups: for each group, by its label, the height of each bar by its name.
        y: what goes up, with its unit.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))

    def draw(axes: Axes) -> None:
        step = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            places = [i - 0.4 + (number + 0.5) * step for i, group in enumerate(groups.values()) if name in group]
            heights = [group[name] for group in groups.values() if name in group]
            axes.bar(places, heights, 0.92 * step, color=PALETTE[number % len(PALETTE)], label=_fit(name, 44))
        axes.set_xticks(range(len(groups)), [_fit(label, 24) for label in groups])
        if sum(len(label) + 2 for label in groups) > 50:  # side by side they would run into each other
            axes.tick_params(axis="x", labelrotation=90)
        axes.tick_params(bottom=False)
        axes.grid(axis="y")
        axes.set_ylabel(_fit(y, 34))

    return _svg(draw, legend=len(names) > 1)


def heatmap(
    values: Sequence[Sequence[float | None]],
    labels: Sequence[str],
    unit: str,
    low: float | None = None,
    high: float | None = None,
    lines: Sequence[int] = (),
) -> Drawing:
    """A square matrix in colour as SVG; at most `MOST_WRITTEN` rows have their values written in the cells.

    Args:
        values: rows of it, the first on top; None leaves a cell blank.
        labels: of the rows, and of the columns.
        unit: what the colours mean.
        low: the value of the darkest colour, high: of the brightest; by default the least and the greatest.
        lines: numbers of rows before which a border stands.
    """

    def draw(axes: Axes) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import Normalize

        known = [value for row in values for value in row if value is not None and value == value]
        scale = Normalize(
            min(known, default=0) if low is None else low, max(known, default=1) if high is None else high
        )
        colours = colormaps["cividis"].resampled(48)  # from 50 on the bar beside it would be an image
        cells = [[float("nan") if value is None else value for value in row] for row in values]
        mesh = axes.pcolormesh(cells, cmap=colours, norm=scale, edgecolors="face", linewidth=0.2)
        _write_cells(axes, values, lambda value: scale(value) < 0.5)
        for line in lines:
            axes.axhline(line, color=INK, linewidth=1.2)
            axes.axvline(line, color=INK, linewidth=1.2)
        places, names = [i + 0.5 for i in range(len(labels))], [_fit(label, 14) for label in labels]
        every = -(-len(labels) // 24)  # no more labels than there is room for
        axes.set_yticks(places[::every], names[::every])
        upright = max(map(len, names), default=0) > 2
        axes.set_xticks(places[::every], names[::every], rotation=90 if upright else 0)
        axes.set_ylim(len(values), 0)
        axes.set_aspect("equal")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure: Any = axes.figure
        bar = figure.colorbar(mesh, ax=axes, label=unit, shrink=0.8)
        bar.outline.set_visible(False)
        bar.solids.set(edgecolor="face", linewidth=0.4)  # else the page shows between the colours

    return _svg(draw, height=400)


def _write_cells(axes: Axes, values: Sequence[Sequence[float | None]], dark: Callable[[float], Any]) -> None:
    if len(values) > MOST_WRITTEN:
        return
    size = min(FONT - 1, 110 / max(1, len(values)))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None and value == value:
                text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3g}"
                axes.text(j + 0.5, i + 0.5, text.replace("-", "−"), ha="center", va="center", fontsize=size,
                          color="white" if dark(value) else "black")  # fmt: skip


def _fit(text: str, width: int, lines: int = 1) -> str:
    """A text in at most so many lines of at most so many letters."""
    if len(text) <= width:
        return text
    return f"{text[: width - 1]}…" if lines == 1 else textwrap.fill(text, width, max_lines=lines, placeholder="…")


def _arms(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """Lengths of the intervals' arms; a mean that lies outside by rounding has an arm of no length."""
    pairs = list(zip(middle, low, high, strict=True))
    return [[max(0.0, m - a) for m, a, _ in pairs], [max(0.0, b - m) for m, _, b in pairs]]


def _label(axes: Axes, across: Sequence[float], x: str, y: str, log_x: bool) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if log_x and across and min(across) > 0:
        axes.set_xscale("log")
        ticks, wide = _levels(across), max(across) >= 10 * min(across)
        few = FixedLocator(ticks) if 1 < len(ticks) <= MOST_LEVELS else None
        axes.xaxis.set_major_locator(few or (LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(5)))
        if few:
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif all(float(value).is_integer() for value in across):  # epochs
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if max(map(abs, across), default=0) >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    elif log_x:
        axes.xaxis.set_major_formatter("{x:g}")
    axes.grid()
    axes.set_xlabel(_fit(x, 50))
    axes.set_ylabel(_fit(y, 34))


def _levels(values: Sequence[float]) -> list[float]:
    """Of positive values that lie in groups, a round number for each group but those of a few stray values."""
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


class Drawing(str):
    """An SVG for a page, that can be written to files of its own too."""

    __slots__ = ("_again",)
    _again: Callable[[], Figure]

    def __new__(cls, svg: str, again: Callable[[], Figure]) -> Drawing:
        """The SVG, and what draws its figure anew."""
        drawing = super().__new__(cls, svg)
        drawing._again = again
        return drawing

    def alone(self) -> str:
        """The SVG for a file of its own, dark on white: any program shows it, and it knows no page."""
        svg = within_tags(
            self, lambda tag: re.sub(r"var\(--c\d+, (#\w+)\)", r"\1", tag).replace("currentColor", PAPER_INK)
        )
        return _sized(svg).replace("<svg", f'<svg style="background: white; color: {PAPER_INK}"', 1) + "\n"

    def themed(self) -> str:
        """The SVG for a file that browsers show in a page: light or dark, as the page is."""
        return re.sub(r"<svg[^>]*>", lambda opening: f"{opening[0]}\n{THEMES}", _sized(self), count=1) + "\n"

    def write(self, path: Path, dots_per_inch: int = 200) -> None:
        """Write ``path.svg``, as `alone` has it, and ``path.png``, dark on white too."""
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        with replacing(path.with_suffix(".svg")) as temporary:
            temporary.write_text(self.alone(), encoding="utf-8")
        with matplotlib.rc_context(STYLE), replacing(path.with_suffix(".png")) as temporary:
            figure = self._again()
            FigureCanvasAgg(figure)
            figure.savefig(temporary, format="png", dpi=dots_per_inch, facecolor="white", metadata={"Software": None})


def _sized(svg: str) -> str:
    return svg.replace('width="100%"', f'width="{WIDTH * 4 // 3}"', 1)  # in pixels; its height follows


def _svg(draw: Callable[[Axes], None], legend: bool = False, height: int = 290) -> Drawing:
    """What `draw` draws, `WIDTH` points wide, with a legend below it if asked for."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    def make() -> Figure:
        figure = Figure((WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        names = axes.get_legend_handles_labels()[1] if legend else []
        if names:
            columns = 1 if max(map(len, names)) > 20 else 2
            figure.set_size_inches(WIDTH / 72, (height + 18 * -(-len(names) // columns)) / 72)
            figure.legend(loc="outside lower left", ncols=min(columns, len(names)))
        return figure

    with matplotlib.rc_context(STYLE):
        return Drawing(_clean(make()), make)


def _clean(figure: Figure) -> str:
    """The SVG without what a page cannot use, in its colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # it would hold for the whole page
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(
        r'(<svg[^>]*?) height="[^"]*"', r'\1 width="100%" stroke-linejoin="round" stroke-linecap="butt"', svg, count=1
    )
    return re.sub(r"\s*\n\s*", "\n", within_tags(svg, _in_colours_of_the_page)).strip()


def within_tags(svg: str, change: Callable[[str], str]) -> str:
    """The SVG with each tag changed, and what a user wrote between them as it is."""
    return re.sub(r"<[^>]*>", lambda tag: change(tag[0]), svg)


def _in_colours_of_the_page(tag: str) -> str:
    tag = tag.replace("'DejaVu Sans'", "system-ui, sans-serif").replace(INK, "currentColor")
    for number, shade in enumerate(PALETTE):
        tag = tag.replace(shade, colour(number))
    return tag
