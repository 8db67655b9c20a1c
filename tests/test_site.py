"""The site: what its pages show, its navigation, its build."""

import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_pages import DOCS, ROOT, block

import hooks


def test_the_site_shows_what_makes_sense_there(tmp_path: Path) -> None:
    included = SimpleNamespace(is_included=lambda: True)
    files = [SimpleNamespace(src_uri=uri, inclusion=included) for uri in ("page.md", "search.md", "howto/run.md")]
    page = SimpleNamespace(file=SimpleNamespace(src_path="page.md"))
    for text, shown in (
        ("[run](howto/run.md#a)", "[run](howto/run.md#a)"),
        ("[arXiv](https://arxiv.org)", "[arXiv](https://arxiv.org)"),
        ("[arch.py](../psvit/arch/arch.py)", "`psvit/arch/arch.py`"),
        ("[the rules](../CONTRIBUTING.md)", "the rules (`CONTRIBUTING.md`)"),
        (f"a\n{block('x', '| t |')}b", "a\n\n| t |\n\nb"),
    ):
        assert hooks.on_page_markdown(text, page, {"docs_dir": str(tmp_path / "docs")}, files) == shown


def test_the_api_is_there() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name, members in re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", text, re.M):
        found = pkgutil.resolve_name(name)
        assert found.__doc__, name
        for member in members.split(", ") if members else ():
            assert getattr(found, member).__doc__, f"{name}.{member}"


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r"\S+\.md$", nav, re.M)) == sorted(
        page.relative_to(ROOT / "docs").as_posix() for page in DOCS
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', page.read_text(encoding="utf-8"))
        assert not fetched, "it fetches from elsewhere"
