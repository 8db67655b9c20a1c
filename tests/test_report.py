"""The page of a report: what it says, and that nothing in it runs or is fetched."""

import base64
import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from pages import ARCH, HOSTILE, Tags, chart, everything

from psvit import cost
from psvit.report.page import CONTENTS, Page
from psvit.report.tables import Table


def test_texts_are_shown_and_never_run() -> None:
    tags = Tags(everything(HOSTILE).html())
    names = Counter(tag for tag, _ in tags.found)
    assert names["script"] == 3  # plotly's configuration, plotly, the plot
    assert not {"iframe", "object", "embed", "base", "link"} & set(names)
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    assert HOSTILE in tags.cells
    assert len(tags.cells) == len(Tags(everything("text", with_chart=False).html()).cells), "no tag ends another"


@pytest.mark.parametrize("with_chart", [True, False])
def test_a_page_needs_nothing_but_itself(with_chart: bool) -> None:
    text = everything("text", with_chart).html()
    tags = Tags(text)
    for name, attributes in tags.found:
        assert (attributes.get("src") or "data:").startswith("data:"), name
        assert not any("//" in (value or "") for key, value in attributes.items() if key != "src")
        assert (attributes.get("href") or "./").startswith(("./", "#"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attributes["content"] or "" for _, attributes in tags.found if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; form-action 'none'; base-uri 'none'")
    assert ("script-src" in policy) == ("<script" in text) == (len(text) > 1e6) == with_chart
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_a_table_holds_its_cells() -> None:
    page = Page("title")
    page.table(Table(("a", "b", "c"), [("1", "A claim, a whole sentence", "+1.00 [0.5 to 1.5], open"), ("4", "5", "6")],
               left=2, highlight=[1]))  # fmt: skip
    tags = Tags(page.html())
    assert tags.cells == ["a", "b", "c", "1", "A claim, a whole sentence", "+1.00 [0.5 to 1.5], open", "4", "5", "6"]
    kinds = [attributes.get("class") for tag, attributes in tags.found if tag == "td"]
    assert kinds == [None, "long", "number", None, None, "number"], "a sentence has room"
    assert [attributes.get("class") for tag, attributes in tags.found if tag == "tr"] == [None, None, "mark"]


def test_contents_stand_first_where_there_are_many_headings() -> None:
    page = Page("title")
    for number in range(CONTENTS - 1):
        page.heading(f"part {number}")
    assert "<nav>" not in page.html()
    page.heading("last `one`")
    text = page.html()
    tags = Tags(text).found
    targets = [(attributes["href"] or "")[1:] for tag, attributes in tags if tag == "a"]
    assert targets == [attributes["id"] for tag, attributes in tags if tag == "h2"]
    assert text.index("<nav>") < text.index("<h2")


def test_a_chart_draws_every_pair_of_axes() -> None:
    two = replace(chart(HOSTILE), columns={"macs": [1e6, 2e6, 3e6], "ms": [1.0, float("nan"), 3.0],
                  "top1": [90.0, None, float("inf")]}, names={"macs": "MACs", "ms": "<b>ms", "top1": "top-1, %"},
                  across=("macs", "ms"))  # fmt: skip
    drawn = json.loads(two.figure().to_json())
    group, other, stair, star = drawn["data"]
    assert (group["x"], group["y"], group["error_y"]["array"]) == ([1e6], [90.0], [1.0])
    assert other["y"] == [None, None], "what is not finite is not drawn"
    assert stair["x"] == [1e6, 2e6]
    assert star["x"] == [2e6]
    assert "<" not in group["name"] + group["text"][0], "plotly reads tags"
    assert other["text"][0].startswith("two<br>lines ")
    first, second = drawn["layout"]["updatemenus"][0]["buttons"]
    assert (first["label"], second["label"]) == ("top1 against macs", "top1 against ms")
    places, titles = second["args"]
    assert places["x"] == [[1.0], [None, 3.0], [], [None]], "no stair is known for these axes"
    assert titles == {"xaxis.title.text": "&lt;b&gt;ms", "yaxis.title.text": "top-1, %"}


def test_a_network_and_its_cost() -> None:
    page = Page("title")
    plain = ARCH.plain()
    page.networks([ARCH, plain], 32, 3, 10)
    text = page.html()
    assert f"{cost.macs(ARCH, 32, 3, 10) / 1e6:,.2f} M MACs for one image" in text
    assert f"{cost.params(ARCH, 32, 3, 10) / 1e6:,.3f} M parameters" in text
    takes = f"{cost.macs(plain, 32, 3, 10) / 1e6:,.2f} M MACs"
    assert f"<code>{plain.genotype}</code>, 16 wide throughout, would take {takes}." in text
    assert text.count("throughout") == 1, "a plain network has no other twin"
    pictures = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="Diagram of the network ', text)
    assert [base64.b64decode(picture)[:4] for picture in pictures] == [b"<svg"] * 2
