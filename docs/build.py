"""Write the generated parts of README.md and docs/: ``python docs/build.py``, or ``--check`` to compare only.

Blocks, such as ``<!-- results:digits -->``, hold the tables of ``docs/results/*.json``, which ``psvit run``, ``study``,
``analyze`` and ``benchmark`` and the scripts of benchmarks/ wrote, or what follows from the code. Values, such as
``<!-- value:claims.6-m-macs.searched.error_ratio:.2f -->``, hold single numbers of them in prose. Figures are drawn to
``docs/figures/``. What each is made of stands in ``docs/parts/``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from parts.figures import Figure, figures_of, of_code
from parts.pages import Page, blocks, pages, read_results, unused

ROOT = Path(__file__).resolve().parent.parent
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\.svg\)")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write every page and figure anew, or with ``--check`` tell which are out of date; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python docs/build.py", description="Write the generated parts of the pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is out of date")
    check = parser.parse_args(argv).check
    stale, images = 0, set()
    for path in pages(root):
        before = path.read_text(encoding="utf-8")
        names = blocks(before, path.name)
        page = Page(root / "docs", path.relative_to(root))
        after = page.rebuilt(before)
        images |= {(path.parent / name).resolve() for name in IMAGE.findall(after)}
        for name in page.missing:
            print(f"{path.name}: {name} is not measured yet: there is no docs/results/{name}.json")
        if after != before:
            stale += 1
            print(
                f"{path.name}: " + ("out of date: run make docs" if check else f"wrote {', '.join(names) or 'values'}")
            )
            if not check:
                path.write_text(after, encoding="utf-8")
    made = list(figures(root))
    folder = (root / "docs" / "figures").resolve()
    linked = {image.with_name(f"{image.name}.svg") for image in images if image.parent == folder}
    for path in sorted(linked.union(folder.glob("*.svg")) - {figure.path(root / "docs").resolve() for figure in made}):
        stale += 1
        print(f"docs/figures/{path.name}: no result makes it: remove the file and the links to it")
    for figure in made:
        shown = (root / "docs" / figure.name).resolve() in images
        if shown and not figure.is_current(root / "docs"):
            stale += 1
            print(f"docs/{figure.name}.svg: " + ("out of date: run make docs" if check else "drawn"))
            if not check:
                figure.write(root / "docs")
    for path in unused(root):
        print(f"docs/results/{path.name} is shown on no page")
    return 1 if check and stale else 0


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
