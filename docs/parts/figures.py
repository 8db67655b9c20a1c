"""Figures of the pages -> docs/figures/*.svg, each with a digest of what it shows.

Another matplotlib draws other bytes, so a figure is out of date when its digest is, not when its bytes are. The digest
is of the data and of the source of psvit/report/figures.py, so a change of either is seen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from parts.from_code import NETWORK, PLAIN
from psvit import cost
from psvit.analysis.analysis_page import drawings
from psvit.arch.arch import Arch
from psvit.report import diagram as picture
from psvit.report import figures as drawing
from psvit.report.figures import bars, curves, svg
from psvit.studies.study_tables import caption, figure

Data = Mapping[str, Any]
DRAWING = Path(drawing.__file__)
DIGEST = re.compile(r"<!-- of (\w+) -->\n\Z")


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


def _drawn(entry: Data, data: Data) -> str:
    return svg(figure(entry, data))


def row_of(data: Data, name: str) -> Iterator[Figure]:
    """The figures of a JSON file: ``figures/NAME``, and of a study with several ``figures/NAME-2`` and so on."""
    if "study" in data:
        for number, entry in enumerate(data["config"]["figures"], 1):
            place = f"figures/{name}" + (f"-{number}" if number > 1 else "")
            yield Figure(place, _shown(entry, data), caption(entry), partial(_drawn, entry, data))
    elif "maps" in data:
        kind, words = (
            "map_correlation",
            "Correlation of the attention maps of every two layers, heads matched. 1: the same map.",
        )
        shows = [data["layers"], data["maps"], data["cka"]]
        yield Figure(f"figures/{name}", shows, words, lambda: svg(drawings(data)[kind]))
    elif data.get("rows") and "speedup" in data["rows"][0]:
        groups: dict[str, dict[str, float]] = {}
        for row in data["rows"]:
            group = groups.setdefault(row["genotype"], {"fewer MACs": row["macs_ratio"]})
            group[f"faster in {row['dtype']}"] = row["speedup"]
        words = "Times fewer MACs than the plain twin, and times faster in inference."
        yield Figure(f"figures/{name}", data["rows"], words, lambda: svg(bars(groups, "times")))


def _shown(entry: Data, data: Data) -> Any:
    """What a figure of a study shows."""
    keys = "label", "mean", "interval", "macs", *["lr"] * (entry["x"] == "lr")
    groups = [
        [group["limit"], group["epochs"], [[row.get(key) for key in keys] for row in group["rows"]]]
        for group in data["groups"]
        if group["name"] in entry["groups"]
    ]
    return [data["reads"], dict(entry), groups]


def of_code() -> Iterator[Figure]:
    """The figures that need no measurement: a network, tokens of each layer, MACs of the parts."""
    example = Arch("ASAS-ASSA-AS")
    shows = [example.to_dict(), Path(picture.__file__).read_text(encoding="utf-8")]
    words = "ASAS-ASSA-AS: image, patches, three stages of layers with token pooling between them, head"
    yield Figure("network", shows, words, lambda: svg(picture.diagram(example, 224)))

    lines = {
        ("plain: " if arch is PLAIN else "") + f"{arch.genotype}, {arch.pooling.upper()}": [
            layer.tokens for layer in cost.layer_costs(arch) if layer.kind in "AS"
        ]
        for arch in (PLAIN, replace(NETWORK, pooling="1d", class_token=True), NETWORK)
    }
    series = {name: (list(range(1, len(counts) + 1)), counts) for name, counts in lines.items()}
    caption = "Tokens of each layer at 224 pixels."
    yield Figure("figures/tokens", lines, caption, lambda: svg(curves(series, "layer", "tokens")))

    names = {"A": "layers that attend", "S": "layers that share", "pool": "poolings"}
    groups: dict[str, dict[str, float]] = {}
    for title, arch in {
        "neither": PLAIN,
        "sharing": replace(NETWORK, genotype="ASASASSAAS", widths=(192,)),
        "pooling": replace(NETWORK, genotype="AAAA-AAAA-AA"),
        "both": NETWORK,
    }.items():
        group = groups.setdefault(title, dict.fromkeys((*names.values(), "patches, head"), 0.0))
        for layer in cost.layer_costs(arch):
            group[names.get(layer.kind, "patches, head")] += layer.macs / 1e6
    caption = "M MACs of the parts at 224 pixels, all stages 192 wide."
    yield Figure("figures/macs", groups, caption, lambda: svg(bars(groups, "M MACs for one image")))
