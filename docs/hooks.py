"""Hooks of mkdocs: pages are plain Markdown for a forge, and the site shows what of it makes sense there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Leave out the markers of generated parts, and turn links to the repository's files into text."""
    docs = Path(config["docs_dir"]).resolve()
    published = {file.src_uri for file in files if file.inclusion.is_included()}

    def link(match: re.Match[str]) -> str:
        target, text = match["target"].partition("#")[0], match["text"].strip("`")
        if not target or "://" in target:
            return match[0]
        name = (docs / page.file.src_path).parent.joinpath(target).resolve().relative_to(docs.parent).as_posix()
        if name.removeprefix(f"{docs.name}/") in published:
            return match[0]
        return f"`{name}`" if text in (name, Path(name).name) else f"{match['text']} (`{name}`)"

    return LINK.sub(link, re.sub(r"^<!-- /?results:[^>]*-->\n?", "\n", markdown, flags=re.M))
