"""Figures and the diagram of a network: SVG that names what it shows, in colours that stand out."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from psvit import Arch
from psvit.arch.variants import VARIANTS
from psvit.report import figures
from psvit.report.diagram import LEGEND, diagram

# Figures -------------------------------------------------------------------------------------------------------------

MATRIX = [[1.0, 0.25, None], [0.5, -0.75, 0.125], [0.0, float("nan"), 1.0]]
FIGURES: dict[str, Any] = {
    "curves": lambda: figures.curves(
        {"a": ([1, 2, 3], [3.0, 2.0, 1.0]), "b $x$": ([1, 2], [1.0, 2.0])}, "epoch", "loss, nats",
        bands={"a": ([2.5, 1.5, 0.5], [3.5, 2.5, 1.5])},
    ),
    "heatmap": lambda: figures.heatmap(MATRIX, ["A1", "S2", "A3"], "CKA", 0, 1, lines=[2]),
    "an empty heatmap": lambda: figures.heatmap([[None]], ["A1"], "CKA", 0, 1),
    "intervals": lambda: figures.intervals([("first", 1.0, 0.5, 1.5), ("second", 2.0, 2.0, 2.0)], "points"),
    "scatter": lambda: figures.scatter({"a": [(1e6, 90, 89, 91)], "b": [(2e6, 91, 90, 93)]}, "MACs", "top-1, %", True),
    "bars": lambda: figures.bars({"cat": {"a": 1.0, "b": 2.0}, "dog": {"b": 3.0}}, "top-1, %"),
    "diagram": lambda: diagram(Arch("AS-A", widths=(16, 32), head_dim=16), (32, 64), 1, 10),
}  # fmt: skip


def texts(figure: Figure) -> list[str]:
    nodes = ElementTree.fromstring(figures.svg(figure)).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(node.itertext()).strip() for node in nodes]


def test_figures_suit_light_and_dark_pages() -> None:
    for name, draw in FIGURES.items():
        svg = figures.svg(draw())
        assert f"fill: {figures.INK}" in svg, name
        assert "@media (prefers-color-scheme: dark)" in svg, name
        assert "<image" not in svg, name
        assert svg == figures.svg(draw()), f"{name}: the same bytes"


def test_figures_name_what_they_show() -> None:
    assert {"a", "b $x$", "epoch", "loss, nats", "1", "2", "3"} <= set(texts(FIGURES["curves"]()))
    assert {"first", "second", "points"} <= set(texts(FIGURES["intervals"]()))
    assert {"cat", "dog", "a", "b", "top-1, %"} <= set(texts(FIGURES["bars"]()))
    assert "1 M" in texts(FIGURES["scatter"]())
    assert "2×4" in " ".join(texts(FIGURES["diagram"]()))


@pytest.mark.parametrize(
    ("across", "ticks"),
    [
        ([2.99, 3.01, 2.95, 5.98, 5.92, 6.02, 11.9, 12.1], ["3", "6", "12"]),
        ([3.0] * 3 + [6.0] * 3 + [9.75] + [12.0] * 2, ["3", "6", "12"]),
        ([1000, 5000, 54_000], ["1 k", "5 k", "54 k"]),
        ([5.0, 7.5, 12.5], ["5", "7.5", "12.5"]),
    ],
)
def test_few_values_on_a_logarithmic_axis_are_its_ticks(across: list[float], ticks: list[str]) -> None:
    drawn = texts(figures.scatter({"a": [(x, 1.0, 1.0, 1.0) for x in across]}, "x", "y", log_x=True))
    assert drawn[: drawn.index("x")] == ticks


def test_a_figure_is_written_as_svg_and_png(tmp_path: Path) -> None:
    figures.save(FIGURES["bars"](), tmp_path / "bars")
    assert (tmp_path / "bars.svg").read_text() == figures.svg(FIGURES["bars"]())
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def luminance(shade: str) -> float:
    parts = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_stand_out() -> None:
    for paper in (figures.PAPER, figures.DARK_PAPER):
        for shade in figures.PALETTE:  # WCAG 2.1: 3 to 1 for what is not text
            light, dark = sorted((luminance(shade), luminance(paper)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, shade
    assert len(set(figures.PALETTE)) == len(figures.PALETTE) == len(figures.MARKERS)


# The diagram ---------------------------------------------------------------------------------------------------------


def boxes(figure: Figure) -> list[Rectangle]:
    """Every layer, in order, without those of the legend."""
    return [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_linewidth() == 1.6][:-2]


@pytest.mark.parametrize(
    "arch",
    [
        *VARIANTS.values(),
        Arch("A" * 24, widths=(192,)),
        Arch("A-A-A-A-AS", widths=(16, 32, 64, 64, 192), head_dim=16),
        Arch("AS" * 40, widths=(64,)),
    ],
    ids=str,
)
def test_the_diagram_shows_every_layer(arch: Arch) -> None:
    drawn = diagram(arch, 224, 3, 1000)
    said = [text.get_text() for text in drawn.axes[0].texts]
    assert "".join(text for text in said if text in ("A", "S")) == arch.genotype.replace("-", "") + "AS"  # the legend's
    assert len(boxes(drawn)) == arch.depth
    assert max(box.get_x() + box.get_width() for box in boxes(drawn)) < drawn.get_figwidth() * 72
    assert max(text.get_position()[1] for text in drawn.axes[0].texts) < drawn.get_figheight() * 72
    words = " ".join(said)
    assert said[-1] == list(LEGEND.values())[-1]
    for width, heads in zip(arch.widths, arch.num_heads, strict=True):
        assert f"{width} channels, {heads} head" in words
    shares = [float(share) for share in re.findall(r"; ([\d.e-]+) %", words)]
    assert len(shares) == 2 * len(arch.stages) + 1  # embedding, stages, poolings between them, head
    assert sum(shares) == pytest.approx(100, abs=0.5 * len(shares))


def test_layers_are_as_wide_as_channels_and_as_tall_as_tokens() -> None:
    drawn = boxes(diagram(Arch("AS-AS-A", widths=(96, 192, 384), head_dim=32), 224, 3, 10))
    wide, tall = [box.get_width() for box in drawn], [box.get_height() for box in drawn]
    assert wide == pytest.approx([wide[0] * factor for factor in (1, 1, 2, 2, 4)])
    assert tall[2] == pytest.approx(tall[0] / 2)  # 14 x 14 -> 7 x 7
    assert all(a >= b for a, b in pairwise(tall))
