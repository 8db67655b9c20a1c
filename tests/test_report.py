"""The page of a report: what it says, and that nothing in it runs or is fetched."""

import json
import re
from collections import Counter

import pytest
from pages import ARCH, HOSTILE, Tags, everything

from psvit import cost
from psvit.report.chart import Chart
from psvit.report.page import CONTENTS, Page


def policy_of(tags: Tags) -> str:
    return next(attributes["content"] or "" for _, attributes in tags.found if "http-equiv" in attributes)


def test_texts_are_shown_and_never_run() -> None:
    tags = Tags(everything(HOSTILE).html())
    names = Counter(tag for tag, _ in tags.found)
    assert names["script"] == 3  # data, plotly, ours
    assert not {"img", "iframe", "object", "embed", "base", "link"} & set(names)
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    assert HOSTILE in tags.cells


def test_the_data_of_a_chart_cannot_end_its_script() -> None:
    page = everything(HOSTILE).html()
    start = page.index('<script type="application/json">') + len('<script type="application/json">')
    written = page[start : page.index("</script>", start)]
    assert "<" not in written
    data = json.loads(written)
    assert "<" not in json.dumps([data["names"], data["groups"], data["labels"], data["text"][0]]), "plotly reads tags"
    assert data["text"][1].startswith("two<br>lines ")


def test_backticks_set_code() -> None:
    page = Page("title")
    page.text("run `psvit show A&B` or ` alone")
    page.table(("network",), [("`AS-A`",)])
    assert "<p>run <code>psvit show A&amp;B</code> or ` alone</p>" in page.html()
    assert "<td><code>AS-A</code></td>" in page.html()


def test_a_table_holds_its_cells() -> None:
    page = Page("title")
    page.table(("a", "b", "c"), [("1", "2", "3"), ("4", "5", "6")], left=2, highlight=[1])
    tags = Tags(page.html())
    assert tags.cells == ["a", "b", "c", "1", "2", "3", "4", "5", "6"]
    sides = [attributes.get("class") for tag, attributes in tags.found if tag == "td"]
    assert sides == [None, None, "figure"] * 2
    assert [attributes.get("class") for tag, attributes in tags.found if tag == "tr"] == [None, None, "mark"]


def test_facts_are_flat() -> None:
    page = Page("title")
    page.facts({"a": {"b": [1, 2.5], "c": None, "d": {}}, "e": True, "f": [], "g": [{"h": 1}], "i": 1e-05})
    found = ["a.b", "1 2.5", "a.c", "–", "a.d", "–", "e", "yes", "f", "–", "g.1", "h 1", "i", "1e-05"]
    assert Tags(page.html()).cells == found


def test_lists_of_facts_are_told_item_by_item() -> None:
    page = Page("title")
    networks = [{"label": "deit", "seeds": [0, 1]}, {"label": "ours", "seeds": [2]}]
    page.facts({"groups": [{"name": "3 M", "data": {"limit": None}, "networks": networks}], "search": [["epochs", 4]]})
    assert Tags(page.html()).cells == [
        "groups.1.name", "3 M", "groups.1.data.limit", "–", "groups.1.networks.1", "label deit, seeds 0 1",
        "groups.1.networks.2", "label ours, seeds 2", "search", "epochs 4",
    ]  # fmt: skip


def test_sentences_have_room() -> None:
    page = Page("title")
    page.table(("claim", "verdict", "points"), [("A claim in a whole sentence", "holds", "+1.00 [0.50 to 1.50], open")],
               left=2)  # fmt: skip
    sides = [attributes.get("class") for tag, attributes in Tags(page.html()).found if tag == "td"]
    assert sides == ["long", None, "figure"]


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


def test_a_link_stays_beside_the_page() -> None:
    page = Page("title")
    page.link("there", "javascript:boom() #1.html")
    assert [attributes["href"] for tag, attributes in Tags(page.html()).found if tag == "a"] == [
        "./javascript%3Aboom%28%29%20%231.html"
    ]


@pytest.mark.parametrize("with_chart", [True, False])
def test_a_page_needs_nothing_but_itself(with_chart: bool) -> None:
    text = everything("text", with_chart).html()
    tags = Tags(text)
    for name, attributes in tags.found:
        assert "src" not in attributes, name
        assert not any("//" in (value or "") for key, value in attributes.items() if not key.startswith("xmlns"))
        assert not (attributes.get("href") or attributes.get("xlink:href") or "#").startswith(("http", "data", "file"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert policy_of(tags).startswith("default-src 'none'; form-action 'none'; base-uri 'none'")
    assert ("script-src" in policy_of(tags)) == with_chart
    assert ("<script" in text) == with_chart
    assert (len(text) > 1e6) == with_chart, "plotly comes along only where something is plotted"
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_no_name_stands_twice_in_a_page() -> None:
    text = everything("text", with_chart=False).html()
    names = [attributes["id"] for _, attributes in Tags(text).found if "id" in attributes]
    assert len(names) == len(set(names))
    used = {name for pair in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text) for name in pair if name}
    assert used <= set(names), "what a picture refers to is its own"


def test_a_picture_s_words_stay_as_they_are() -> None:
    page = Page("title")
    page.figure('<svg><g id="a"/><use href="#a"/><text>an id="a", url(#a) and href="#a"</text></svg>', "caption")
    assert '<g id="f1-a"/><use href="#f1-a"/><text>an id="a", url(#a) and href="#a"</text>' in page.html()


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    chart = Chart({"a": [1.0, nan, None], "b": [inf, 2.0, 3]}, {"a": "a", "b": "b"}, ["a"], ["b"], ["", "", ""],
                  {"all": [0, 1, 2]}, errors={"b": [0.5, nan, -inf]})  # fmt: skip
    written = re.search(r"application/json\">(.*)</script>", chart.html(0))
    assert written is not None
    data = json.loads(written[1])
    assert data["columns"] == {"a": [1.0, None, None], "b": [None, 2.0, 3]}
    assert data["errors"] == {"b": [0.5, None, None]}


def test_a_network_and_its_cost() -> None:
    page = Page("title")
    page.network(ARCH, 32, 3, 10)
    assert f"{cost.macs(ARCH, 32, 3, 10) / 1e6:,.2f} M MACs for one image" in page.html()
    assert f"{cost.params(ARCH, 32, 3, 10) / 1e6:,.3f} M parameters" in page.html()
    plain = ARCH.plain()
    takes = f"{cost.macs(plain, 32, 3, 10) / 1e6:,.2f} M MACs"
    assert f"<code>{plain.genotype}</code>, 16 wide throughout, would take {takes}." in page.html()
    alone = Page("title")
    alone.network(plain, 32, 3, 10)
    assert "throughout" not in alone.html()
