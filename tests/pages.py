"""A page with a text wherever one can stand, the page of a made-up search, and the tags that a page holds."""

from html.parser import HTMLParser
from pathlib import Path

from members import SPACE, TIMED, facts, some_scores

from psvit import Arch
from psvit.report import figures
from psvit.report.chart import Chart
from psvit.report.page import Page
from psvit.report.tables import Table
from psvit.search.front import rank
from psvit.search.search_config import SearchConfig
from psvit.search.search_page import search_page

HOSTILE = "</script><script>boom()</script><img src=x onerror=boom()>\"'&`]]>$plotly"
ARCH = Arch("ASS-AS-A", widths=(16, 32, 64), head_dim=16, patch_size=4)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the texts of all cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.open = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.cells[-1] += data


def chart(text: str = "one") -> Chart:
    return Chart(
        columns={"macs": [1e6, 2e6, 3e6], "top1": [90.0, 95.0, None]},
        names={"macs": f"MACs {text}", "top1": "top-1, %"},
        across=["macs"],
        up=["top1"],
        text=[text, f"two\nlines {text}", "three"],
        groups={text: [0], "other": [1, 2]},
        lines={"top1 macs": [0, 1]},
        chosen=[1],
        errors={"top1": [1.0, 2.0, 0.0]},
    )


def everything(text: str, with_chart: bool = True) -> Page:
    """A page with `text` wherever a text can stand."""
    page = Page(text, text)
    page.heading(text)
    page.text(text)
    page.points([text, text])
    page.note(text)
    page.link(text, text)
    page.table(Table((text, "number"), [(text, "1"), (f"`{text}`", "2")], caption=text, highlight=[1]))
    page.figure(figures.curves({text: ([1, 2], [3, 4])}, text, text), text, text)
    page.figure(figures.intervals([(text, 1, 0, 2)], text), text)
    page.figure(figures.bars({text: {text: 1.0}}, text), text)
    page.code(text)
    page.facts({text: {text: text}})
    page.folded(text, {text: [text]})
    page.network(ARCH, 32, 3, 10)
    if with_chart:
        page.chart(chart(text), text)
    return page


def of_search(folder: Path, text: str = "digits", chosen: int = 0, timed: bool = True) -> Page:
    ranked = rank(some_scores(), SPACE, TIMED if timed else SPACE.prices())
    shape = {"img_size": [8, 8], "in_chans": 1, "num_classes": 3}
    more = {"shape": shape, "measured_ms": 4.5, "space": 99, "versions": {"torch": "2.0"}}
    told = facts(ranked[chosen], data=text, config={"data": {"data": text}}, **more)
    history = [{"epoch": i, "train_loss": 2.0 / i, "loss": 2.1 / i} for i in (1, 2, 3)]
    return search_page(folder, ranked, told, SearchConfig(), history)
