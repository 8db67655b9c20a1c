"""Figures of the pages -> docs/figures/*.svg, each with a digest of what it shows.

Another matplotlib draws other bytes, so a figure is out of date when its digest is, not when its bytes are. The digest
is of the data and of the source of psvit/report/figures.py, so a change of either is seen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as MplFigure

from parts.from_code import NETWORK, PLAIN
from psvit import cost
from psvit.analysis.analysis_page import CAPTIONS, drawings
from psvit.arch.arch import Arch
from psvit.report import diagram as picture
from psvit.report import figures as drawing
from psvit.report.figures import bars, curves, svg
from psvit.studies.tables import caption, figure

Data = Mapping[str, Any]
DRAWING = Path(drawing.__file__)
DIGEST = re.compile(r"<!-- of (\w+) -->\n\Z")

OF_ANALYSES = ("map_correlation", "sharing", "tokens", "pooling", "cka")
"""Figures of an analysis that pages may show, the first as ``NAME.figure``."""


@dataclass(frozen=True)
class Figure:
    """A figure of the pages.

    Args:
        name: of its file below docs/, without ending.
        shows: what it is drawn from, as plain data.
        caption: what it shows, in words.
        draw: draws it as the text of an SVG file.
    """

    name: str
    shows: Any
    caption: str
    draw: Callable[[], str]

    @property
    def digest(self) -> str:
        """Of what it shows and of what draws it; numbers by six digits, since machines may differ in the last."""
        shows = json.dumps(_rounded(self.shows), sort_keys=True)
        return hashlib.sha256((shows + DRAWING.read_text(encoding="utf-8")).encode()).hexdigest()[:16]

    def is_current(self, docs: Path) -> bool:
        """Whether its file is there and shows the same."""
        path = self.path(docs)
        found = DIGEST.search(path.read_text(encoding="utf-8")) if path.is_file() else None
        return found is not None and found[1] == self.digest

    def write(self, docs: Path) -> None:
        """Write its file."""
        path = self.path(docs)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{self.draw().rstrip()}\n<!-- of {self.digest} -->\n", encoding="utf-8")

    def path(self, docs: Path) -> Path:
        """Of its file."""
        return docs / f"{self.name}.svg"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return {str(name): _rounded(inside) for name, inside in value.items()}
    return [_rounded(inside) for inside in value] if isinstance(value, (list, tuple)) else value


# Of results ----------------------------------------------------------------------------------------------------------


def figures_of(data: Data, name: str) -> dict[str, Figure]:
    """The figures of a JSON file, by the part of its blocks: ``figure``, ``figure-2`` and so on."""
    found: list[tuple[Any, str, Callable[[], MplFigure]]] = []
    if "study" in data:
        for entry in data["config"]["figures"]:
            found.append((_shown(entry, data), caption(entry), partial(figure, entry, data)))
    elif "maps" in data and "layers" in data:
        shows = [data["layers"], data["maps"], data["cka"]]
        found += [(shows, CAPTIONS[kind], partial(analysis_figure, data, kind)) for kind in OF_ANALYSES]
    elif data.get("rows") and "speedup" in data["rows"][0]:
        words = "Times fewer MACs than the plain twin, and times faster in inference."
        found.append((data["rows"], words, partial(speedup_figure, data["rows"])))
    parts = ("" if number == 1 else f"-{number}" for number in range(1, len(found) + 1))
    return {
        f"figure{part}": Figure(f"figures/{name}{part}", shows, words, partial(_drawn, draw))
        for part, (shows, words, draw) in zip(parts, found, strict=True)
    }


def _drawn(draw: Callable[[], MplFigure]) -> str:
    return svg(draw())


def analysis_figure(data: Data, kind: str) -> MplFigure:
    """A figure of an analysis, of that kind."""
    return drawings(data)[kind]


def _shown(entry: Data, data: Data) -> Any:
    """What a figure of a study shows."""
    groups = [
        [group["limit"], group["epochs"], [[row["label"], row["mean"], row["interval"], row.get("macs")]
         for row in group["rows"]]] for group in data["groups"] if group["name"] in entry["groups"]
    ]  # fmt: skip
    return [data["reads"], dict(entry), groups]


def speedup_figure(rows: Sequence[Data]) -> MplFigure:
    """How many times fewer MACs than its plain twin a genotype has, beside how many times faster it is."""
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        group = groups.setdefault(row["genotype"], {"fewer MACs": row["macs_ratio"]})
        group[f"faster in {row['dtype']}"] = row["speedup"]
    return bars(groups, "times")


# Of the code ---------------------------------------------------------------------------------------------------------

POOLED_1D = replace(NETWORK, pooling="1d", class_token=True)


def tokens(arch: Arch) -> list[int]:
    """Tokens of each layer at 224 pixels."""
    return [layer.tokens for layer in cost.layer_costs(arch) if layer.kind in "AS"]


def tokens_figure() -> Figure:
    """Tokens of each layer of a plain network and of two that pool."""
    lines = {f"{arch.genotype}, {arch.pooling.upper()}": tokens(arch) for arch in (PLAIN, POOLED_1D, NETWORK)}
    lines = {"plain: " + name if name.startswith("AAAA") else name: counts for name, counts in lines.items()}

    def draw() -> str:
        series = {name: (list(range(1, len(counts) + 1)), counts) for name, counts in lines.items()}
        return svg(curves(series, "layer", "tokens"))

    return Figure("figures/tokens", lines, "Tokens of each layer at 224 pixels.", draw)


def macs_figure() -> Figure:
    """Where the MACs go, with and without the two mechanisms, at one width."""
    archs = {
        "neither": PLAIN,
        "sharing": replace(NETWORK, genotype="ASASASSAAS", widths=(192,)),
        "pooling": replace(NETWORK, genotype="AAAA-AAAA-AA"),
        "both": NETWORK,
    }
    names = {"A": "layers that attend", "S": "layers that share", "pool": "poolings", "embed": "patches, head"}
    groups: dict[str, dict[str, float]] = {}
    for title, arch in archs.items():
        group = groups.setdefault(title, dict.fromkeys(names.values(), 0.0))
        for layer in cost.layer_costs(arch):
            group[names.get(layer.kind, names["embed"])] += layer.macs / 1e6
    return Figure(
        "figures/macs", groups, "M MACs of the parts at 224 pixels, all stages 192 wide.",
        lambda: svg(bars(groups, "M MACs for one image")),
    )  # fmt: skip


def network_figure() -> Figure:
    """A network as reports show it."""
    arch = Arch("ASAS-ASSA-AS")
    shows = [arch.to_dict(), Path(picture.__file__).read_text(encoding="utf-8")]
    words = "ASAS-ASSA-AS: image, patches, three stages of layers with token pooling between them, head"
    return Figure("network", shows, words, lambda: svg(picture.diagram(arch, 224)))


def of_code() -> Iterator[Figure]:
    """The figures that need no measurement."""
    yield network_figure()
    yield tokens_figure()
    yield macs_figure()
