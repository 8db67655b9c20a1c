"""How a browser shows the pages: light, dark, on a phone and on paper, without a complaint or a request."""

import re
from pathlib import Path

import pytest
from browser import Browser, needs_browser
from members import MEMBERS
from pages import HOSTILE, everything, of_search

TITLES = "[...document.querySelectorAll('.xtitle, .ytitle')].map(title => title.textContent)"


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_a_browser_shows_them(run_folder: Path, tmp_path: Path, width: int, dark: bool) -> None:
    of_search(tmp_path).write(tmp_path / "search.html")
    everything(HOSTILE).write(tmp_path / "hostile.html")
    with Browser(width, dark) as tab:
        for page, figures_in, points in (
            (run_folder / "report.html", 4, 3),
            (tmp_path / "search.html", 2, len(MEMBERS)),
            (tmp_path / "hostile.html", 4, 3),
        ):
            tab.open(page)
            assert tab.run("document.documentElement.scrollWidth") <= width, "nothing sticks out"
            assert tab.run("[...document.images].filter(i => i.complete && i.naturalHeight).length") == figures_in
            assert tab.run("document.querySelectorAll('.point').length") >= points
            paper, ink = tab.run(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            )
            assert (sum(map(int, re.findall(r"\d+", paper))) < sum(map(int, re.findall(r"\d+", ink)))) == dark
            assert tab.run("getComputedStyle(document.querySelector('.xtitle')).fill") == ink, "the page's colour"
        assert tab.run(TITLES)[0] == f"MACs {HOSTILE}", "letter for letter"


@needs_browser
def test_another_pair_of_axes_can_be_chosen(tmp_path: Path) -> None:
    of_search(tmp_path).write(tmp_path / "search.html")
    with Browser() as tab:
        tab.open(tmp_path / "search.html")
        assert tab.run(TITLES) == ["predicted latency of a batch, ms", "validation loss under the supernet, nats"]
        front = "document.getElementById('chart0').data.find(trace => trace.name == 'front').x"
        before = tab.run(front)
        tab.driver.find_element("css selector", ".updatemenu-header").click()
        buttons = tab.driver.find_elements("css selector", ".updatemenu-dropdown-button")
        next(button for button in buttons if button.text == "top1 against params").click()
        assert tab.run(TITLES) == ["parameters", "validation top-1 under the supernet, %"]
        assert tab.run(front) != before


@needs_browser
def test_on_paper_all_is_open_and_light(tmp_path: Path) -> None:
    of_search(tmp_path).write(tmp_path / "search.html")
    with Browser(dark=True, media="print") as tab:
        tab.open(tmp_path / "search.html")
        assert tab.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert tab.run("document.querySelector('details').offsetHeight") > 40, "open"
        assert tab.run("getComputedStyle(document.querySelector('details tr')).display") == "inline", "runs on"
