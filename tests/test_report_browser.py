"""How a browser shows the pages: light, dark, on a phone and on paper, without a complaint or a request."""

import json
import re
from pathlib import Path

import pytest
from browser import Browser, needs_browser
from members import MEMBERS
from pages import HOSTILE, everything, of_search

from psvit.analysis.analysis_page import page as analysis_page
from psvit.report.page import Page


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_a_browser_shows_them(run_folder: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """Light, dark, on a phone: whole, and without a complaint or a request."""
    of_search(tmp_path).write(tmp_path / "search.html")
    everything(HOSTILE).write(tmp_path / "hostile.html")
    with Browser(width, dark=dark) as tab:
        for page, figures_in, points in (
            (run_folder / "report.html", 4, 3),
            (tmp_path / "search.html", 2, len(MEMBERS)),
            (tmp_path / "hostile.html", 4, 3),
        ):
            tab.requests.clear()
            tab.open(page)
            assert tab.complaints == []
            assert tab.requests == [page.resolve().as_uri()]
            assert tab.run("document.documentElement.scrollWidth") <= width, "nothing sticks out"
            shown = "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().height > 50)"
            assert tab.run(f"{shown}.length") == figures_in
            assert tab.run("document.querySelectorAll('.point').length") >= points
            assert tab.run("document.querySelectorAll('noscript').length") == 0
            paper, ink = tab.run(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            )
            assert (sum(map(int, re.findall(r"\d+", paper))) < sum(map(int, re.findall(r"\d+", ink)))) == dark
            text = "document.querySelector('figure svg text')"
            assert tab.run(f"getComputedStyle({text}).fill") == ink, "texts in pictures take the page's colour"
        titles = "[...document.querySelectorAll('.xtitle')].map(title => title.textContent)"
        assert tab.run(titles) == [f"MACs {HOSTILE}"], "letter for letter"


@needs_browser
def test_another_axis_can_be_chosen(tmp_path: Path) -> None:
    of_search(tmp_path).write(tmp_path / "search.html")
    with Browser() as tab:
        tab.open(tmp_path / "search.html")
        titles = "[...document.querySelectorAll('.xtitle, .ytitle')].map(title => title.textContent)"
        assert tab.run(titles) == ["predicted latency of a batch, ms", "validation loss under the supernet, nats"]
        tab.run("document.querySelector('select[name=across]').value = 'params';"
                "document.querySelector('select[name=up]').value = 'top1';"
                "document.querySelector('form').dispatchEvent(new Event('change'))")  # fmt: skip
        assert tab.run(titles) == ["parameters", "validation top-1 under the supernet, %"]
        assert tab.complaints == []


@needs_browser
def test_a_sentence_has_room_on_a_phone(tmp_path: Path) -> None:
    page = Page("title")
    page.table(("claim", "points", "ratio of errors"), [("One network is ahead of another", "+1.00 [+0.50, +1.50]",
               "0.59 [0.54, 0.64]")])  # fmt: skip
    page.write(tmp_path / "page.html")
    with Browser(390) as tab:
        tab.open(tmp_path / "page.html")
        assert tab.run("document.querySelector('td').getBoundingClientRect().width") >= 176
        assert tab.run("document.documentElement.scrollWidth") <= 390


@needs_browser
def test_the_layers_of_an_analysis_fit_the_page(tmp_path: Path) -> None:
    report = json.loads((Path(__file__).parent.parent / "docs" / "results" / "redundancy-deit.json").read_text())
    analysis_page(report, {}, None).write(tmp_path / "page.html")
    with Browser() as tab:
        tab.open(tmp_path / "page.html")
        assert tab.run("[...document.querySelectorAll('.box')].filter(b => b.scrollWidth > b.clientWidth).length") == 0


@needs_browser
def test_on_paper_all_is_open_and_light(tmp_path: Path) -> None:
    of_search(tmp_path).write(tmp_path / "search.html")
    with Browser(dark=True) as tab:
        tab.open(tmp_path / "search.html")
        height = "document.querySelector('details table').getBoundingClientRect().height"
        closed = tab.run(height)
        tab("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert tab.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert tab.run(height) > closed or tab.run("document.querySelector('details').offsetHeight") > 40
        assert tab.run("getComputedStyle(document.querySelector('details tr')).display") == "inline", "runs on"
        tab.pdf(tmp_path / "search.pdf")
        assert (tmp_path / "search.pdf").read_bytes().startswith(b"%PDF")
        assert tab.complaints == []
