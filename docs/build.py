"""Write the generated parts of README.md and docs/: ``python docs/build.py``, or ``--check`` to compare only.

Blocks, such as ``<!-- results:digits -->``, hold the tables of ``docs/results/*.json``, which ``psvit run``, ``study``,
``analyze`` and ``benchmark`` and the scripts of benchmarks/ wrote, or what follows from the code. Values, such as
``<!-- value:claims.6-m-macs.searched.error_ratio:.2f -->``, hold single numbers of them in prose. Figures are drawn to
``docs/figures/``. What each is made of stands in ``docs/parts/``. Where a file of docs/results is missing, its parts
and figures stay as they are, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from parts.figures import Figure, figures_of, of_code
from parts.makers import how_to_make
from parts.pages import Page, blocks, missing_results, pages, read_results, unused

ROOT = Path(__file__).resolve().parent.parent
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\.svg\)")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write every page and figure anew, or with ``--check`` tell which are out of date; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python docs/build.py", description="Write the generated parts of the pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is out of date")
    check = parser.parse_args(argv).check
    texts = {path: path.read_text(encoding="utf-8") for path in pages(root)}
    names = {path: blocks(text, path.name) for path, text in texts.items()}
    missing = missing_results(texts.values(), root / "docs")
    for name in missing:
        print(how_to_make(name))
    after = {path: Page(root / "docs", path.relative_to(root), missing).rebuilt(text) for path, text in texts.items()}
    stale = 0
    for path, before in texts.items():
        if after[path] != before:
            stale += 1
            wrote = f"wrote {', '.join(names[path]) or 'values'}"
            print(f"{path.name}: " + ("out of date: run make docs" if check else wrote))
            if not check:
                path.write_text(after[path], encoding="utf-8")
    stale += drawn(root, after, missing, check)
    for path in unused(root):
        print(f"docs/results/{path.name} is shown on no page")
    return 2 if missing else 1 if check and stale else 0


def drawn(root: Path, texts: Mapping[Path, str], missing: Sequence[str], check: bool) -> int:
    """Draw the figures that pages show, or tell which are out of date; returns how many are, or are made by nothing."""
    images = {(path.parent / name).resolve() for path, text in texts.items() for name in IMAGE.findall(text)}
    made, stale = list(figures(root)), 0
    folder = (root / "docs" / "figures").resolve()
    linked = {image.with_name(f"{image.name}.svg") for image in images if image.parent == folder}
    for path in sorted(linked.union(folder.glob("*.svg")) - {figure.path(root / "docs").resolve() for figure in made}):
        if re.sub(r"-\d+$", "", path.stem) not in missing:
            stale += 1
            print(f"docs/figures/{path.name}: no result makes it: remove the file and the links to it")
    for figure in made:
        shown = (root / "docs" / figure.name).resolve() in images
        if shown and not figure.is_current(root / "docs"):
            stale += 1
            print(f"docs/{figure.name}.svg: " + ("out of date: run make docs" if check else "drawn"))
            if not check:
                figure.write(root / "docs")
    return stale


def figures(root: Path) -> Iterator[Figure]:
    """All figures that pages can show."""
    yield from of_code()
    for path in sorted((root / "docs" / "results").glob("*.json")):
        yield from figures_of(read_results(path), path.stem).values()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:  # a result that a page asks for and no file holds, a marker without its other
        print(f"docs/build.py: {error}", file=sys.stderr)
        sys.exit(2)
