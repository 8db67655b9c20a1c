"""A self-contained HTML page for screens, phones, dark mode and paper. No torch here."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from psvit.arch import cost
from psvit.arch.arch import Arch
from psvit.files import replacing
from psvit.report.chart import CONFIG, Chart
from psvit.report.diagram import diagram
from psvit.report.figures import svg
from psvit.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTENTS = 4
"""Fewest headings for which a page begins with a table of contents."""

SENTENCE = 24
"""Length of a cell in characters from which its column gets a minimum width."""


class Page:
    """A page, written from top to bottom; templates are in `psvit/report/templates`.

    Texts are escaped; in texts and cells, `backticks` mean code and **stars** bold.

    Args:
        title: of the page.
        lead: one or two sentences below the title.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._parts: list[dict[str, Any]] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._add("heading", text=text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._add("text", text=text)

    def points(self, items: Sequence[str]) -> None:
        """A list with bullets."""
        self._add("points", items=items)

    def note(self, text: str) -> None:
        """A paragraph in small print."""
        self._add("note", text=text)

    def link(self, text: str, target: str) -> None:
        """A link to a file, by its path relative to the page."""
        self._add("link", text=text, target="./" + quote(target))  # "./": a colon in a name is not a scheme

    def table(self, table: Table) -> None:
        """A table, which scrolls sideways where the page is too narrow."""
        self._add("table", table=table)

    def figure(self, figure: Figure, caption: str, alt: str = "") -> None:
        """A picture; its alternative text is by default the caption."""
        self.figures([(figure, caption, alt or caption)])

    def figures(self, figures: Sequence[tuple[Figure, str, str]]) -> None:
        """Pictures with captions and alternative texts, side by side; on a phone stacked or scrolled."""
        shown = [(base64.b64encode(svg(figure).encode()).decode(), *words) for figure, *words in figures]
        self._add("figures", figures=shown)

    def code(self, text: str) -> None:
        """Lines to copy; one click selects all."""
        self._add("code", text=text.strip())

    def facts(self, facts: Mapping[str, object]) -> None:
        """Names and values; nested names are joined with dots."""
        self._add("facts", facts=dict(flat(facts)))

    def folded(self, summary: str, facts: Mapping[str, object]) -> None:
        """Facts folded behind a summary line; unfolded on paper."""
        self._add("folded", text=summary, facts=dict(flat(facts)))

    def network(self, arch: Arch, img_size: cost.ImgSize, in_chans: int, num_classes: int) -> None:
        """A network as a diagram, with its cost; `img_size` is a side or (height, width) in pixels."""
        self.networks([arch], img_size, in_chans, num_classes)

    def networks(self, archs: Sequence[Arch], img_size: cost.ImgSize, in_chans: int, num_classes: int) -> None:
        """Networks side by side; see `network`."""
        self.figures([(diagram(arch, img_size, in_chans, num_classes), _price(arch, img_size, in_chans, num_classes),
                       f"Diagram of the network {arch}") for arch in archs])  # fmt: skip

    def chart(self, chart: Chart, note: str = "") -> None:
        """An interactive plot, with a note below it."""
        self._add("chart", chart=chart, text=note)

    def html(self) -> str:
        """The whole page."""
        charts = 0
        for part in self._parts:
            if part["kind"] == "chart":
                made = part["chart"].figure()
                part["plot"] = Markup(made.to_html(CONFIG, full_html=False, include_plotlyjs=charts == 0,
                                                   div_id=f"chart{charts}", default_height=None))  # fmt: skip
                charts += 1
        headings = [part["text"] for part in self._parts if part["kind"] == "heading"]
        contents = headings if len(headings) >= CONTENTS else []
        what = {"title": self.title, "lead": self.lead, "parts": self._parts, "contents": contents}
        return _templates().get_template("page.html").render(what, charts=charts, sentence=SENTENCE)

    def write(self, path: Path) -> None:
        """Write the page, atomically."""
        text = self.html()
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _add(self, kind: str, **what: Any) -> None:
        self._parts.append({"kind": kind, **what})


@cache
def _templates() -> Environment:
    environment = Environment(loader=PackageLoader("psvit.report"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # fmt: skip
    environment.filters["inline"] = _inline
    return environment


def _inline(text: object) -> Markup:
    """Plain text as HTML, with code and bold marked as in Markdown."""
    coded = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*\n]+)\*\*", r"<strong>\1</strong>", coded))


def _price(arch: Arch, img_size: cost.ImgSize, in_chans: int, num_classes: int) -> str:
    """The cost of a network and of its plain twin, in words."""
    macs, params = (price(arch, img_size, in_chans, num_classes) / 1e6 for price in (cost.macs, cost.params))
    text, plain = f"`{arch}`: {macs:,.2f} M MACs for one image, {params:,.3f} M parameters.", arch.plain()
    if arch == plain:
        return text
    macs = cost.macs(plain, img_size, in_chans, num_classes) / 1e6
    return f"{text} `{plain.genotype}`, {plain.widths[0]} wide throughout, would take {macs:,.2f} M MACs."


def flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Names (nested ones joined with dots) and values as text."""
    if isinstance(value, Mapping) and value:
        for inner, inside in value.items():
            yield from flat(inside, f"{name}.{inner}" if name else str(inner))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        for number, item in enumerate(value, start=1):
            yield from flat(item, f"{name}.{number}")
    else:
        yield name, _plainly(value)


def _plainly(value: Any) -> str:
    if value is None or value in ((), [], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    return " ".join(map(_plainly, value)) if isinstance(value, (list, tuple)) else str(value)
