"""Write the generated parts of README.md and docs/: ``python docs/build.py``, or ``--check`` to compare only.

Between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->``, each on a line of its own, stands a table or a figure.
NAME is a file of docs/results, ``FILE.PART`` for a part of it, or a table that follows from the code. Figures are drawn
into docs/figures/. The exit code is 1 if something is out of date under ``--check``, 2 if a result is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from parts.figures import of_code, row_of
from parts.from_code import FROM_CODE
from parts.makers import how_to_make
from parts.noted import Data
from parts.tables import table_of

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<open><!-- results:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(?P<close><!-- /results:(?P=name) -->\n)", re.S
)
MARKER = re.compile(r"<!--\s*/?\s*results?\b", re.I)  # misspelt ones too, whose text would stay as it is


class Pages:
    """The pages of a repository and the results that they show.

    Args:
        root: of the repository.

    Raises:
        ValueError: a broken file of docs/results, or a marker without its other.
    """

    def __init__(self, root: Path) -> None:
        self.docs = root / "docs"
        paths = root / "README.md", *sorted(self.docs.rglob("*.md"))
        self.texts = {path: path.read_text(encoding="utf-8") for path in paths}
        self.results = {path.stem: _read(path) for path in sorted((self.docs / "results").glob("*.json"))}
        self.figures = {figure.name: figure for figure in of_code()}
        for name, data in self.results.items():
            self.figures |= {figure.name: figure for figure in row_of(data, name)}
        shown = {name.partition(".")[0] for path, text in self.texts.items() for name in _blocks(text, path)}
        self.missing = sorted(shown - set(FROM_CODE) - set(self.results))
        self.unused = sorted(set(self.results) - shown)

    def rebuilt(self, path: Path) -> str:
        """A page with its generated parts written anew; those of missing results stay.

        Raises:
            ValueError: a part that the results do not hold; the message names page and part.
        """

        def block(match: re.Match[str]) -> str:
            name, _, part = match["name"].partition(".")
            if name in self.missing:
                return match[0]
            try:
                body = self._body(path, name, part)
            except ValueError as error:
                raise ValueError(f"{path.name}: results:{match['name']}: {error}") from error
            return f"{match['open']}{body}\n{match['close']}"

        return BLOCK.sub(block, self.texts[path])

    def _body(self, path: Path, name: str, part: str) -> str:
        if name in FROM_CODE:
            return FROM_CODE[name]()
        if not part.startswith("figure"):
            return table_of(self.results[name], part)
        figure = self.figures.get(f"figures/{name}{part.removeprefix('figure')}")
        if figure is None:
            raise ValueError("there is no such figure")
        place = os.path.relpath(figure.path(self.docs), path.parent)
        return f"![{figure.caption}]({Path(place).as_posix()})"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write every page and figure anew, or with ``--check`` tell which are out of date; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python docs/build.py", description="Write the generated parts of the pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is out of date")
    check = parser.parse_args(argv).check
    pages = Pages(root)
    for name in pages.missing:
        print(how_to_make(name))
    for name in pages.unused:
        print(f"docs/results/{name}.json is shown on no page")
    after = {path: pages.rebuilt(path) for path in pages.texts}
    stale = [path.name for path, text in after.items() if text != pages.texts[path]]
    for path, text in after.items() if not check else ():
        if text != pages.texts[path]:
            path.write_text(text, encoding="utf-8")
    for figure in pages.figures.values():
        is_shown = any(f"{figure.name}.svg" in text for text in after.values())
        if is_shown and not figure.is_current(pages.docs):
            stale.append(f"{figure.name}.svg")
            if not check:
                figure.write(pages.docs)
    for name in stale:
        print(f"{name}: {'out of date: run make docs' if check else 'written'}")
    return 2 if pages.missing else int(check and bool(stale))


def _read(path: Path) -> Data:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"docs/results/{path.name} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"docs/results/{path.name} holds no JSON object, but a {type(data).__name__}")
    return data


def _blocks(text: str, path: Path) -> list[str]:
    """Names of a page's blocks."""
    found = [match["name"] for match in BLOCK.finditer(text)]
    if 2 * len(found) != len(MARKER.findall(text)):
        raise ValueError(f"{path.name}: a marker <!-- results:NAME --> or <!-- /results:NAME --> lacks its other")
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        print(f"docs/build.py: {error}", file=sys.stderr)
        sys.exit(2)
