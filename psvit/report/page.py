"""One self-contained page of HTML, readable on a phone, in the dark and on paper. No torch here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psvit.arch import cost
from psvit.arch.arch import Arch
from psvit.files import replacing
from psvit.report.chart import SCRIPT, Chart
from psvit.report.diagram import diagram_svg
from psvit.report.figures import NIGHT, PALETTE, shades, within_tags

CONTENTS = 4
"""A page of at least so many headings begins with a list of them."""

SENTENCE = 24
"""Letters from which on a cell's column is kept wide enough for a few words a line."""


class Page:
    """A page that is written from top to bottom, and needs nothing but itself.

    Texts are plain: what they hold is shown, never run. In texts and cells, `backticks` set code.

    Args:
        title: of the page.
        lead: one or two sentences below it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._parts: list[str] = []
        self._headings: list[str] = []
        self._figures = 0
        self._charts: list[Chart] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._headings.append(text)
        self._parts.append(f'<h2 id="s{len(self._headings)}">{_inline(text)}</h2>')

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{_inline(text)}</p>")

    def points(self, items: Sequence[str]) -> None:
        """A list with bullets."""
        self._parts.append(f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>")

    def note(self, text: str) -> None:
        """A paragraph in small print."""
        self._parts.append(f'<p class="note">{_inline(text)}</p>')

    def link(self, text: str, target: str) -> None:
        """A line that leads to a file beside the page.

        Args:
            text: what is read.
            target: a path relative to the page.
        """
        self._parts.append(f'<p><a href="{html.escape(_address(target))}">{_inline(text)}</a></p>')

    def table(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[str]],
        left: int = 1,
        caption: str = "",
        highlight: Sequence[int] = (),
    ) -> None:
        """A table, which scrolls sideways in a box of its own where the page is too narrow for it.

        Args:
            headings: of the columns.
            rows: their cells.
            left: the first so many columns hold words, the others figures.
            caption: stands below it.
            highlight: numbers of rows to set in bold, from 0.
        """

        def cells(tag: str, texts: Sequence[str]) -> str:
            sides = (
                ' class="figure"' if place >= left else ' class="long"' * (len(text) >= SENTENCE and "`" not in text)
                for place, text in enumerate(texts)
            )
            return "".join(f"<{tag}{side}>{_inline(text)}</{tag}>" for text, side in zip(texts, sides, strict=True))

        marks = (' class="mark"' if number in highlight else "" for number in range(len(rows)))
        body = "".join(f"<tr{mark}>{cells('td', row)}</tr>\n" for mark, row in zip(marks, rows, strict=True))
        self._parts.append(
            f'<div class="box" tabindex="0"><table>\n<thead><tr>{cells("th", headings)}</tr></thead>\n<tbody>\n{body}'
            f"</tbody></table></div>{_caption(caption)}"
        )

    def figure(self, svg: str, caption: str, alt: str = "") -> None:
        """A picture.

        Args:
            svg: made by this program: it is not escaped.
            caption: stands below it.
            alt: what it shows, for who cannot see it; by default the caption.
        """
        self._figures += 1
        names = re.compile(r'(?<=\sid=")|(?<=url\(#)|(?<=href="#)')
        inside = within_tags(svg[svg.index("<svg") :], lambda tag: names.sub(f"f{self._figures}-", tag))
        label = html.escape(alt or caption)
        opening = f'<svg role="img" aria-label="{label}"'
        self._parts.append(f"<figure>{inside.replace('<svg', opening, 1)}{_caption(caption, 'figcaption')}</figure>")

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Figures that are added meanwhile stand side by side, in two columns.

        On a phone two stand one below the other; more are moved through sideways, and the next one looks in.
        """
        self._parts.append('<div class="beside" tabindex="0">')
        yield
        self._parts.append("</div>")

    def code(self, text: str) -> None:
        """Lines to copy; one click selects them all."""
        whole = re.sub(r"(?<!\S)--[\w-]+", r"<span>\g<0></span>", html.escape(text.strip()))  # a flag is not broken
        self._parts.append(f"<pre><code>{whole}</code></pre>")

    def facts(self, facts: Mapping[str, object]) -> None:
        """Names and their values; nested names are joined with dots."""
        self._parts.append(_facts(facts))

    def folded(self, summary: str, facts: Mapping[str, object]) -> None:
        """Facts behind one line, opened by a click and on paper."""
        self._parts.append(f"<details><summary>{_inline(summary)}</summary>{_facts(facts)}</details>")

    def network(self, arch: Arch, img_size: cost.ImgSize, in_chans: int, num_classes: int) -> None:
        """A network as a diagram, and a line on what it costs.

        Args:
            arch: the network.
            img_size: side or (height, width) of its images in pixels.
            in_chans: their channels.
            num_classes: classes.
        """
        macs, params = (price(arch, img_size, in_chans, num_classes) for price in (cost.macs, cost.params))
        plain = arch.plain()
        twin = "" if arch == plain else (
            f" `{plain.genotype}`, {plain.widths[0]} wide throughout, would take "
            f"{cost.macs(plain, img_size, in_chans, num_classes) / 1e6:,.2f} M MACs."
        )  # fmt: skip
        self.figure(
            diagram_svg(arch, img_size, in_chans, num_classes),
            f"`{arch}`: {macs / 1e6:,.2f} M MACs for one image, {params / 1e6:,.3f} M parameters.{twin}",
            f"Diagram of the network {arch}",
        )

    def chart(self, chart: Chart, note: str = "") -> None:
        """An interactive plot; see `psvit.report.chart.Chart`.

        Args:
            chart: what it shows.
            note: stands below it.
        """
        self._parts.append(chart.html(len(self._charts)) + _caption(note))
        self._charts.append(chart)

    def html(self) -> str:
        """The whole page."""
        scripts, policy = "", ""
        if self._charts:
            from plotly.offline import get_plotlyjs  # slow to read, and only needed here

            scripts = f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>\n"
            policy = "; script-src 'unsafe-inline'; img-src data: blob:"
        title, lead = html.escape(self.title), f'<p class="lead">{_inline(self.lead)}</p>\n' if self.lead else ""
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"""<meta http-equiv="Content-Security-Policy" content="default-src 'none'; form-action 'none'; """
            f"""base-uri 'none'; style-src 'unsafe-inline'{policy}">\n"""
            f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n<h1>{_inline(self.title)}</h1>\n"
            f"{lead}{self._contents()}" + "\n".join(self._parts) + f"\n</main>\n{scripts}</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        text = self.html()
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _contents(self) -> str:
        if len(self._headings) < CONTENTS:
            return ""
        links = (f'<a href="#s{number}">{_inline(text)}</a>' for number, text in enumerate(self._headings, start=1))
        return f"<nav>{' '.join(links)}</nav>\n"


def _inline(text: str) -> str:
    """Plain text as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(str(text)))


def _caption(text: str, tag: str = "p") -> str:
    kind = ' class="note"' if tag == "p" else ""
    return f"<{tag}{kind}>{_inline(text)}</{tag}>" if text else ""


def _address(path: str) -> str:
    from urllib.parse import quote

    return "./" + quote(path)  # a name with a colon in it is no scheme


def _facts(facts: Mapping[str, object]) -> str:
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>\n" for name, value in flat(facts))
    return f'<div class="box facts"><table><tbody>\n{"".join(rows)}</tbody></table></div>'


def flat(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names, nested ones joined with dots, and their values as text."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value, start=1):
                deep = isinstance(item, Mapping) and any(isinstance(inside, Mapping) for inside in item.values())
                yield from flat({f"{name}.{number}": item if deep else _plainly(item)}, prefix)
        else:
            yield f"{prefix}{name}", _plainly(value)


def _plainly(value: Any) -> str:
    if value is None or (isinstance(value, (Mapping, Sequence)) and not value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(item, (Mapping, list, tuple)) for item in value)
        return ("; " if nested else " ").join(map(_plainly, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plainly(inside)}" for name, inside in value.items())
    return str(value)


_CSS = f"""
:root {{ color-scheme: light dark; --ink: #1f2328; --paper: #fff; --soft: #59636e; --line: #d8dee4; --shade: #f3f5f7;
 --link: #0059b3; {shades(PALETTE)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e8eb; --paper: #15181c; --soft: #a0a8b2;
 --line: #343a42; --shade: #20252b; --link: #79b8ff; {shades(NIGHT)} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{ margin: 0; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }}
main {{ margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 62rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: .2rem 0 .6rem; }}
h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .5rem; border-top: 1px solid var(--line); }}
p, ul {{ margin: .5rem 0; max-width: 44rem; }}
ul {{ padding-left: 1.2rem; }}
a {{ color: var(--link); }}
nav {{ display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .8rem 0; font-size: .9rem; }}
.lead {{ font-size: 1.05rem; }}
.note, figcaption, summary {{ color: var(--soft); font-size: .875rem; }}
code {{ font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
pre {{ margin: .6rem 0; padding: .7rem .9rem; background: var(--shade); border-radius: .4rem; line-height: 1.4;
 white-space: pre-wrap; user-select: all; }}
pre span {{ white-space: nowrap; }}
.box {{ overflow-x: auto; margin: .6rem 0; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: baseline;
 border-bottom: 1px solid var(--line); }}
th.figure, td.figure {{ text-align: right; white-space: nowrap; }}
td code {{ white-space: nowrap; }}
.long {{ min-width: 11rem; }}
thead th {{ color: var(--soft); font-weight: 600; }}
.mark td {{ font-weight: 700; }}
.facts th {{ font-weight: 400; color: var(--soft); white-space: nowrap; }}
.facts td {{ overflow-wrap: anywhere; min-width: 8rem; }}
figure {{ margin: 1rem 0; max-width: 36rem; }}
figure svg {{ display: block; width: 100%; height: auto; }}
.beside {{ display: grid; grid-template-columns: 1fr 1fr; align-items: start; gap: 0 1.5rem; }}
.beside figure {{ min-width: 0; }}
@media screen and (max-width: 48rem) {{ .beside {{ display: block; }}
 .beside:has(> :nth-child(3)) {{ display: grid; grid-template-columns: none; grid-auto-flow: column; gap: 1rem;
 grid-auto-columns: min(36rem, 100% - 1.5rem); overflow-x: auto; scroll-snap-type: x proximity; }}
 .beside figure {{ scroll-snap-align: start; }} }}
summary {{ cursor: pointer; }}
form {{ display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin: .8rem 0 .3rem; }}
label {{ display: flex; gap: .4rem; max-width: 100%; overflow-wrap: normal; }}
select {{ font: inherit; min-width: 0; max-width: 100%; }}
.plot {{ height: max(24rem, min(64vh, 36rem)); overflow: hidden; }}
@media print {{
 :root {{ color-scheme: light; --ink: #000; --soft: #444; }}
 body {{ font-size: 10pt; }}
 main {{ max-width: none; padding: 0; }}
 h2, p:has(+ pre, + figure, + .box, + .beside) {{ break-after: avoid; }}
 .box + .note {{ break-before: avoid; }}
 figure, .plot, tr, pre, table:not(:has(tr:nth-child(13))) {{ break-inside: avoid; }}
 nav, form, .modebar {{ display: none; }}
 pre {{ border: 1px solid var(--line); }}
 .box {{ overflow: visible; }}
 .plot {{ height: 340px; }}
 figure {{ max-width: 26rem; }}
 details .facts :is(table, tbody) {{ display: block; font-size: 7.5pt; }}
 details .facts :is(tr, th, td) {{ display: inline; padding: 0; border: 0; white-space: normal; }}
 details .facts th::after {{ content: ": "; }}
 details .facts td::after {{ content: " · "; }}
 details::details-content {{ content-visibility: visible; block-size: auto; }}
}}
"""
