"""The site: what its pages show, its navigation, its build."""

import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from small_pages import DOCS, ROOT, block, value

import hooks


def test_the_site_shows_what_makes_sense_there(tmp_path: Path) -> None:
    included = SimpleNamespace(is_included=lambda: True)
    files = [SimpleNamespace(src_uri=uri, inclusion=included) for uri in ("page.md", "search.md", "howto/run.md")]
    page = SimpleNamespace(file=SimpleNamespace(src_path="page.md"))
    for text, shown in (
        ("[run](howto/run.md#a)", "[run](howto/run.md#a)"),
        ("[search.md](search.md#a), [how](search.md)", "[search](search.md#a), [how](search.md)"),
        ("[arXiv](https://arxiv.org)", "[arXiv](https://arxiv.org)"),
        ("[arch.py](../psvit/arch/arch.py)", "`psvit/arch/arch.py`"),
        ("[the rules](../CONTRIBUTING.md)", "the rules (`CONTRIBUTING.md`)"),
        (f"a {value('x.y:.2f', '0.57')} b", "a 0.57 b"),
        (f"a\n{block('x', '| t |')}b", "a\n\n| t |\n\nb"),
    ):
        assert hooks.on_page_markdown(text, page, {"docs_dir": str(tmp_path / "docs")}, files) == shown


def test_cells_with_sentences_are_marked() -> None:
    table = (
        "<thead><tr><th>claim</th></tr></thead><tr><td>Sharing in a whole <b>sentence</b></td><td>yes</td>"
        '<td style="text-align: right;">1.00 and very many digits</td></tr>'
    )
    made = hooks.on_page_content(table, None, None, None)
    assert made == table.replace("<td>Sharing", '<td class="long">Sharing')


def test_the_api_is_there() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name, members in re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", text, re.M):
        found = pkgutil.resolve_name(name)
        assert found.__doc__, name
        for member in members.split(", ") if members else ():
            assert getattr(found, member).__doc__, f"{name}.{member}"


def test_every_page_is_in_the_navigation() -> None:
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, str):
            found.append(node)
        for inside in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(inside)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(found) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in DOCS)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), (
            "it fetches from elsewhere"
        )
        assert "<!-- value" not in text
