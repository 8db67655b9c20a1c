"""Hooks of mkdocs: pages are plain Markdown for a forge, and the site shows what of it makes sense there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
CELL = re.compile(r"<(?P<tag>t[hd])>(?P<text>.*?)</(?P=tag)>", re.S)

SENTENCE = 24
"""Letters from which on a cell's column is kept wide enough for a few words a line, as in reports."""


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Leave out the markers of generated parts, and turn links to the repository's files into text."""
    docs, source = Path(config["docs_dir"]), Path(page.file.src_path)
    published = {file.src_uri for file in files if file.inclusion.is_included()}

    def link(match: re.Match[str]) -> str:
        target = match["target"].partition("#")[0]
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (docs / source.parent / target).resolve()
        if path.is_relative_to(docs.resolve()) and path.relative_to(docs.resolve()).as_posix() in published:
            is_file_name = match["text"].strip("`") == path.name  # on a forge a file, here a page
            return f"[{path.stem}]({match['target']})" if is_file_name else match[0]
        text = match["text"].strip("`")
        name = path.relative_to(docs.resolve().parent).as_posix()
        return f"`{name}`" if text in (name, path.name, target, f"{path.name}/") else f"{match['text']} (`{name}`)"

    return LINK.sub(link, without_markers(markdown))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Mark the cells of tables that hold sentences."""

    def cell(match: re.Match[str]) -> str:
        words = re.sub(r"<[^>]*>", "", match["text"])
        return f'<{match["tag"]} class="long">{match[0][4:]}' if len(words) >= SENTENCE else match[0]

    return CELL.sub(cell, html)


def without_markers(text: str) -> str:
    """A page without the markers of its generated parts, whose contents stay."""
    text = re.sub(r"^<!-- /?results:[^>]*-->\n?", "\n", text, flags=re.M)
    return re.sub(r"<!-- /?value\b[^>]*-->", "", text)
