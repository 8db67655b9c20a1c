"""The site: what builds its pages names what is broken, and what shows them leaves room for sentences."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def script(name: str) -> Any:
    """A script of docs/ as a module."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(("text", "says"), [("{broken", "is no JSON: Expecting"), ("[1]", "holds no JSON object")])
def test_a_broken_file_is_named(text: str, says: str, shown: bool, tmp_path: Path) -> None:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "mine.json").write_text(text)
    block = "<!-- results:mine -->\n<!-- /results:mine -->\n"
    (tmp_path / "README.md").write_text(block if shown else "nothing")
    with pytest.raises(ValueError, match=f"docs/results/mine.json {says}"):
        script("build").main([], tmp_path)


def test_a_page_is_not_called_by_its_file() -> None:
    included = SimpleNamespace(is_included=lambda: True)
    files = [SimpleNamespace(src_uri=uri, inclusion=included) for uri in ("page.md", "search.md")]
    page = SimpleNamespace(file=SimpleNamespace(src_path="page.md"))
    text = "[search.md](search.md#a), [how](search.md), [arch.py](../psvit/arch.py)"
    made = script("hooks").on_page_markdown(text, page, {"docs_dir": str(DOCS)}, files)
    assert made == "[search](search.md#a), [how](search.md), `psvit/arch.py`"


def test_cells_with_sentences_are_marked() -> None:
    table = (
        "<thead><tr><th>claim</th></tr></thead><tr><td>Sharing in a whole <b>sentence</b></td><td>yes</td>"
        '<td style="text-align: right;">1.00 and very many digits</td></tr>'
    )
    made = script("hooks").on_page_content(table, None, None, None)
    assert made == table.replace("<td>Sharing", '<td class="long">Sharing')


def test_figures_follow_the_theme() -> None:
    for path in (DOCS / "figures").glob("*.svg"):
        assert "prefers-color-scheme: dark" in path.read_text(encoding="utf-8"), path.name
