"""Figures and the diagram of a network: clean SVG that names what it shows, in colours that stand out."""

import json
import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from pages import ARCH

from psvit import Arch
from psvit.arch.variants import VARIANTS
from psvit.report import figures
from psvit.report.chart import SCRIPT
from psvit.report.diagram import diagram_svg

NAMESPACE = "{http://www.w3.org/2000/svg}"


# Figures -------------------------------------------------------------------------------------------------------------

MATRIX = [[1.0, 0.25, None], [0.5, 0.75, 0.125], [0.0, float("nan"), 1.0]]
FIGURES: dict[str, Any] = {
    "curves": lambda: figures.curves(
        {"a": ([1, 2, 3], [3.0, 2.0, 1.0]), "b $x$": ([1, 2], [1.0, 2.0])}, "epoch", "loss, nats",
        bands={"a": ([2.5, 1.5, 0.5], [3.5, 2.5, 1.5])},
    ),
    "curves on a logarithmic axis": lambda: figures.curves({"a": ([1e6, 2e6], [1.0, 2.0])}, "MACs", "y", log_x=True),
    "heatmap": lambda: figures.heatmap(MATRIX, ["A1", "S2", "A3"], "CKA", lines=[2]),
    "an empty heatmap": lambda: figures.heatmap([[None]], ["A1"], "CKA", low=0, high=1),
    "intervals": lambda: figures.intervals([("first", 1.0, 0.5, 1.5), ("second", 2.0, 2.0, 2.0)], "points"),
    "scatter": lambda: figures.scatter({"a": [(1e6, 90, 89, 91)], "b": [(2e6, 91, 90, 93)]}, "MACs", "top-1, %", True),
    "bars": lambda: figures.bars({"cat": {"a": 1.0, "b": 2.0}, "dog": {"b": 3.0}}, "top-1, %"),
}  # fmt: skip


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{NAMESPACE}text")]


def test_figures_are_clean() -> None:
    for name, draw in FIGURES.items():
        svg = draw()
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{NAMESPACE}svg", name
        assert root.get("width") == "100%", name
        assert root.get("height") is None, name
        assert re.fullmatch(r"0 0 440 \d+(\.\d+)?", root.get("viewBox") or ""), name
        assert "currentColor" in svg, name
        for gone in (figures.INK, "<style", "<metadata", "#000000", "#333333"):  # ink would be lost in the dark
            assert gone not in svg, name
        assert svg == draw(), f"{name}: the same bytes"


def test_figures_name_what_they_show() -> None:
    assert {"a", "b $x$", "epoch", "loss, nats", "1", "2", "3"} <= set(texts(FIGURES["curves"]()))
    assert {"first", "second", "points"} <= set(texts(FIGURES["intervals"]()))
    assert {"cat", "dog", "a", "b", "top-1, %"} <= set(texts(FIGURES["bars"]()))
    assert "1 M" in texts(FIGURES["scatter"]())


def test_a_small_matrix_has_its_values_written() -> None:
    written = texts(FIGURES["heatmap"]())
    assert {".25", ".50", ".75", ".12", "A1", "S2", "A3", "CKA"} <= set(written)
    assert written.count("1") == 2, "but for the blank cells"
    large = [[0.5] * 15 for _ in range(15)]
    assert ".50" not in texts(figures.heatmap(large, [str(i) for i in range(15)], "CKA"))


def test_few_values_on_a_logarithmic_axis_are_its_ticks() -> None:
    for across, ticks in (
        ([2.99, 3.01, 2.95, 5.98, 5.92, 6.02, 11.9, 12.1], ["3", "6", "12"]),
        ([3.0] * 3 + [6.0] * 3 + [9.75] + [12.0] * 2, ["3", "6", "12"]),
        ([1000, 5000, 54_000], ["1 k", "5 k", "54 k"]),
        ([5.0, 7.5, 12.5], ["5", "7.5", "12.5"]),
    ):
        drawn = figures.scatter({"a": [(x, 1.0, 1.0, 1.0) for x in across]}, "x", "y", log_x=True)
        assert texts(drawn)[: texts(drawn).index("x")] == ticks
    many = figures.scatter({"a": [(1.3**i, 1.0, 1.0, 1.0) for i in range(12)]}, "x", "y", log_x=True)
    assert len(texts(many)[: texts(many).index("x")]) < 8


def test_what_a_user_wrote_stays_as_it_is() -> None:
    name = f"{figures.INK} {figures.PALETTE[0]} 'DejaVu Sans'"
    drawn = figures.curves({name: ([1, 2], [1.0, 2.0])}, "currentColor", "var(--c0, #0072b2)")
    for svg in (drawn, drawn.alone(), drawn.themed()):
        assert {name, "currentColor", "var(--c0, #0072b2)"} <= set(texts(svg))


def test_a_file_for_browsers_is_light_and_dark() -> None:
    drawn = figures.curves({"a": ([1, 2], [1.0, 2.0])}, "x", "y")
    themed, alone = drawn.themed(), drawn.alone()
    ElementTree.fromstring(themed)
    assert "prefers-color-scheme: dark" in themed
    assert themed.count("--c0: ") == 1
    assert "currentColor" in themed
    assert not re.search("var|currentColor|<style", alone)
    assert 'width="586"' in themed
    assert 'width="586"' in alone


def test_a_value_below_0_has_a_minus_sign_in_its_cell() -> None:
    assert "−.25" in texts(figures.heatmap([[1.0, -0.25], [-0.25, 1.0]], ["1", "2"], "correlation"))


def test_the_chart_has_the_markers_of_the_figures() -> None:
    assert len(figures.SYMBOLS) == len(figures.MARKERS)
    assert f"SYMBOLS = {json.dumps(figures.SYMBOLS)}" in SCRIPT
    assert 'symbol: one ? "circle" : SYMBOLS[i % SYMBOLS.length]' in SCRIPT


def luminance(shade: str) -> float:
    parts = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_stand_out() -> None:
    for palette, paper in ((figures.PALETTE, "#ffffff"), (figures.NIGHT, "#15181c")):
        for shade in palette:  # WCAG 2.1: 3 to 1 for what is not text
            light, dark = sorted((luminance(shade), luminance(paper)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, shade
        assert len(set(palette)) == len(palette)


# The diagram ---------------------------------------------------------------------------------------------------------

NETWORKS = (
    *VARIANTS.values(),
    Arch("A" * 24, widths=(192,)),
    Arch("A-A-A-A-AS", widths=(16, 32, 64, 64, 192), head_dim=16),
    Arch("AS" * 40, widths=(64,)),
)


def boxes(svg: str) -> list[tuple[float, float]]:
    """Width and height of every layer, in order."""
    found = [node for node in ElementTree.fromstring(svg).iter(f"{NAMESPACE}rect") if node.get("rx")]
    return [(float(node.get("width", 0)), float(node.get("height", 0))) for node in found[:-2]]  # the legend's


def shows_every_layer(arch: Arch) -> None:
    svg = diagram_svg(arch, 224, 3, 1000)
    letters = [text for text in texts(svg) if text in ("A", "S")]
    assert "".join(letters) == arch.genotype.replace("-", "") + "AS"  # the legend's
    assert len(boxes(svg)) == arch.depth
    right = max(float(node.get("x", 0)) + float(node.get("width", 0)) for node in ElementTree.fromstring(svg).iter()
                if node.tag.endswith("rect"))  # fmt: skip
    assert right < float((ElementTree.fromstring(svg).get("viewBox") or "").split()[2])
    words = " ".join(texts(svg))
    for width, heads in zip(arch.widths, arch.num_heads, strict=True):
        assert f"{width} channels, {heads} head" in words
    shares = [float(share) for share in re.findall(r"; ([\d.e-]+) %", words)]
    assert len(shares) == 2 * len(arch.stages) + 1  # embedding, stages, poolings between them, head
    assert sum(shares) == pytest.approx(100, abs=0.5 * len(shares))


def test_the_diagram_shows_every_layer() -> None:
    for arch in NETWORKS:
        shows_every_layer(arch)


def test_layers_are_as_wide_as_channels_and_as_tall_as_tokens() -> None:
    arch = Arch("AS-AS-A", widths=(96, 192, 384), head_dim=32)
    sizes = boxes(diagram_svg(arch, 224, 3, 10))
    assert sizes[0] == sizes[1]
    assert sizes[2][0] == pytest.approx(2 * sizes[0][0], abs=0.1)
    assert sizes[4][0] == pytest.approx(4 * sizes[0][0], abs=0.1)
    assert sizes[2][1] == pytest.approx(sizes[0][1] / 2, abs=0.1)  # 14 x 14 -> 7 x 7
    assert [a[1] >= b[1] for a, b in pairwise(sizes)] == [True] * 4


def test_a_picture_for_a_file_brings_its_colours() -> None:
    inside, alone = (diagram_svg(ARCH, (32, 64), 1, 10, standalone=alone) for alone in (False, True))
    assert "<style" not in inside
    assert "prefers-color-scheme: dark" in alone
    assert int(ElementTree.fromstring(alone).get("width", 0)) > 0
    assert "8×16" in inside
