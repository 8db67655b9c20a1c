"""The generated parts of a page: found, and written anew.

Blocks stand between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->`` on lines of their own, where NAME may be
``FILE.PART``; values stand in prose, see `parts.values`. A part whose file is missing stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.across import ALL, values_of_all
from parts.dense import FROM_DENSE
from parts.exports import FROM_EXPORT
from parts.figures import figures_of
from parts.from_code import FROM_CODE
from parts.runs import benchmark_table, comparison_table, speedup_table
from parts.searches import FROM_BENCHMARKS
from parts.studies import analysis_block, study_block
from parts.values import value_text

BLOCK = re.compile(
    r"(?P<open><!-- results:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(?P<close><!-- /results:(?P=name) -->)", re.S
)
MARKER = re.compile(r"<!--\s*/?\s*results?\b", re.I)  # misspelt ones too, which would keep their text for ever
VALUE = re.compile(
    r"(?P<open><!-- value:(?P<path>[^\s:]+)(?::(?P<form>\S+))? -->)(?P<body>[^\n]*?)(?P<close><!-- /value -->)"
)
VALUE_MARKER = re.compile(r"<!--\s*/?\s*values?\b", re.I)


def read_results(path: Path) -> Mapping[str, Any]:
    """What a JSON file of docs/results holds.

    Raises:
        ValueError: it is broken; the message names it.
        OSError: there is none.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"docs/results/{path.name} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"docs/results/{path.name} holds no JSON object, but a {type(data).__name__}")
    return data


def pages(root: Path) -> list[Path]:
    """The pages that may hold generated parts."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def blocks(text: str, where: str) -> list[str]:
    """Names of the blocks of a page, in order.

    Raises:
        ValueError: an opening or closing marker without its other, or one that is misspelt.
    """
    found = list(BLOCK.finditer(text))
    if 2 * len(found) != len(MARKER.findall(text)):
        raise ValueError(
            f"{where}: a results marker lacks its other or is misspelt; "
            "they are <!-- results:NAME --> and <!-- /results:NAME -->"
        )
    if 2 * len(list(VALUE.finditer(text))) != len(VALUE_MARKER.findall(text)):
        raise ValueError(
            f"{where}: a value marker lacks its other or is misspelt; "
            "on one line stands <!-- value:PATH:FORMAT -->1.0<!-- /value -->"
        )
    return [match["name"] for match in found]


def shown(text: str, where: str) -> set[str]:
    """Names of the JSON files of which a page shows a block.

    Raises:
        ValueError: see `blocks`.
    """
    return {name.partition(".")[0] for name in blocks(text, where)}


def missing_results(texts: Iterable[str], docs: Path) -> list[str]:
    """Names of the JSON files that pages ask for and docs/results does not hold, in the order of the pages."""
    asked: dict[str, None] = {}
    for text in texts:
        named = (match[1] for match in re.finditer(r"<!-- (?:results|value):([^\s:]+)", text))
        asked |= {name.partition(".")[0]: None for name in named if name not in FROM_CODE}
    return [name for name in asked if name != ALL and not (docs / "results" / f"{name}.json").is_file()]


@dataclass
class Page:
    """Writes the generated parts of one page.

    Args:
        docs: the folder docs/.
        place: of the page, from the root.
        missing: names of JSON files that are not there: their parts stay as they are, and so does what all files say.
    """

    docs: Path
    place: Path
    missing: Collection[str] = ()

    def rebuilt(self, text: str) -> str:
        """The page with its generated parts written anew.

        Raises:
            ValueError: a part that the results do not hold; the message names page and part.
        """
        try:
            return VALUE.sub(self._value, BLOCK.sub(self._block, text))
        except ValueError as error:
            raise ValueError(f"{self.place}: {error}") from error

    def _block(self, match: re.Match[str]) -> str:
        name, _, part = match["name"].partition(".")
        if match["name"] in FROM_CODE:
            body = FROM_CODE[match["name"]]()
        elif (data := self._read(name)) is None:
            return match[0]
        elif part.startswith("figure"):
            body = self._figure(data, name, part)
        else:
            body = render_results(data, name, part)
        return f"{match['open']}{body}\n{match['close']}"

    def _figure(self, data: Mapping[str, Any], name: str, part: str) -> str:
        found = figures_of(data, name)
        if part not in found:
            raise ValueError(f"results:{name}.{part}: there is no such figure: {', '.join(found) or 'none'}")
        above = len(self.place.parts) - 1
        place = f"docs/{found[part].name}.svg" if above == 0 else f"{'../' * (above - 1)}{found[part].name}.svg"
        return f"![{found[part].caption}]({place})"

    def _value(self, match: re.Match[str]) -> str:
        name, _, path = match["path"].partition(".")
        data = self._all() if name == ALL else self._read(name)
        if data is None:
            return match[0]
        try:
            body = value_text(data, path, match["form"] or "")
        except ValueError as error:
            raise ValueError(f"value:{match['path']}: {error}") from error
        return f"{match['open']}{body}{match['close']}"

    def _all(self) -> Mapping[str, Any] | None:
        if self.missing:
            return None
        return values_of_all(read_results(path) for path in sorted((self.docs / "results").glob("*.json")))

    def _read(self, name: str) -> Mapping[str, Any] | None:
        return None if name in self.missing else read_results(self.docs / "results" / f"{name}.json")


def render_results(data: Mapping[str, Any], name: str, part: str = "") -> str:
    """The block of one JSON file, or a part of it.

    Raises:
        ValueError: written by something else, or no such part.
    """
    if "study" in data:
        return study_block(data, name, part)
    if "maps" in data and "layers" in data:
        return analysis_block(data, name, part)
    if part:
        raise ValueError(f"results:{name}.{part}: docs/results/{name}.json has no parts")
    if "peaks" in data and "machine" in data:
        return benchmark_table(data)
    if "data" in data and "rows" in data:
        return comparison_table(data)
    if data.get("rows") and "speedup" in data["rows"][0]:
        return speedup_table(data)
    for key, render in {**FROM_BENCHMARKS, **FROM_DENSE, **FROM_EXPORT}.items():
        if key in data:
            return render(data)
    raise ValueError(
        f"docs/results/{name}.json comes neither from psvit run, benchmark, study or analyze nor from benchmarks/"
    )


def unused(root: Path) -> Iterator[Path]:
    """JSON files in docs/results that no page shows."""
    seen = {name for page in pages(root) for name in shown(page.read_text(encoding="utf-8"), page.name)}
    return (path for path in sorted((root / "docs" / "results").glob("*.json")) if path.stem not in seen)
