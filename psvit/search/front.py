"""Scores -> a ranking, its Pareto front, and the files front.csv and front.json. No torch here."""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.arch.steps import steps_of
from psvit.errors import UserError, one_line
from psvit.files import replacing, write_json
from psvit.report.tables import Table
from psvit.search.budget import Prices
from psvit.search.journal import Name, Score, name_of
from psvit.search.space import Space

COLUMNS = ("rank", *Name._fields, "loss", "top1", "images", "macs", "params", "latency_ms")
LISTED = 20
"""The most rows of a table of the front."""


@dataclass(frozen=True)
class Ranked:
    """A network, its score on the largest slice it was scored on, and its cost.

    Args:
        arch: the network.
        score: on its largest slice.
        macs: for one image, params: parameters.
        latency: predicted seconds for a batch; None without a latency table.
        on_front: no network scored on the same, largest slice of all has less loss for no more cost, or costs less for
            no more loss.
        rank: 1 is the best.
    """

    arch: Arch
    score: Score
    macs: int
    params: int
    latency: float | None
    on_front: bool
    rank: int

    @property
    def cost(self) -> float:
        """The second axis of the front: latency if known, else MACs."""
        return self.macs if self.latency is None else self.latency


def fronts(points: Sequence[tuple[float, float]]) -> list[int]:
    """Non-dominated sorting: the front of each point, counted from 0; both coordinates are minimised.

    A point dominates another if no coordinate is greater and one is less; so equal points share a front. A point's
    front is one more than the last front of the points that dominate it. NaN counts as infinite. Takes O(n log n).
    """
    clean = [(inf if isnan(x) else x, inf if isnan(y) else y) for x, y in points]
    numbers: dict[tuple[float, float], int] = {}
    least: list[float] = []  # the second coordinate of each front's last point, in ascending order
    for point in sorted(set(clean)):  # a point is dominated only by earlier ones
        numbers[point] = number = bisect_right(least, point[1])
        least[number : number + 1] = [point[1]]
    return [numbers[point] for point in clean]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each point is on the first front; see `fronts`."""
    return [number == 0 for number in fronts(points)]


def rank(scores: Iterable[Score], space: Space, prices: Prices) -> list[Ranked]:
    """Rank all scored networks, best first.

    Networks rank by the largest slice they were scored on (larger first), then by loss, cost and name: a total order.
    The front is that of loss against latency if `prices` have it, else against MACs. It holds only networks scored on
    the largest slice: losses on different slices are means over different images.

    Args:
        scores: of networks of `space`; one network may have several, on different slices.
        space: gives the settings that all networks share.
        prices: give their cost.
    """
    best: dict[Name, Score] = {}
    for score in scores:
        if score.name not in best or _order(score) < _order(best[score.name]):
            best[score.name] = score
    found = []
    for name, score in best.items():
        arch = name.arch(space.like)
        macs, params, *seconds = prices.of(steps_of(arch))
        found.append(Ranked(arch, score, int(macs), int(params), seconds[0] if seconds else None, False, 0))
    found.sort(key=lambda one: (*_order(one.score)[:2], one.cost, *name_of(one.arch)))
    final = [one for one in found if one.score.images == found[0].score.images]
    front = pareto([(one.score.loss, one.cost) for one in final]) + [False] * (len(found) - len(final))
    return [replace(one, on_front=on, rank=i) for i, (one, on) in enumerate(zip(found, front, strict=True), start=1)]


def _order(score: Score) -> tuple[int, float, float]:
    return -score.images, inf if isnan(score.loss) else score.loss, -score.top1  # NaN cannot be sorted


# The files -----------------------------------------------------------------------------------------------------------


def chosen_of(ranked: Sequence[Ranked], facts: Mapping[str, Any]) -> Ranked | None:
    """The network whose name is ``facts["chosen"]``; None if there is none."""
    return next((one for one in ranked if one.score.name == _chosen_name(facts)), None)


def front_data(ranked: Sequence[Ranked], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``front.json``: `facts`, and the front by rising cost.

    The chosen network gets its metrics and costs. It may be off the front if measured latency ruled out others.
    """
    chosen = chosen_of(ranked, facts)
    front = sorted((one for one in ranked if one.on_front), key=lambda one: (one.cost, one.rank))
    more = {"chosen": {**facts["chosen"], **row_of(chosen)}} if chosen else {}
    return {**facts, **more, "front": [row_of(one) for one in front]}


def write_front(folder: Path, ranked: Sequence[Ranked], facts: Mapping[str, Any]) -> None:
    """Write ``front.csv`` (every network) and, last, ``front.json``; see `front_data`.

    Args:
        folder: created if it is missing.
        ranked: returned by `rank`.
        facts: further entries of ``front.json``; ``chosen`` holds the network's name.
    """
    with replacing(folder / "front.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, "on_front"), lineterminator="\n")
        writer.writeheader()
        for one in ranked:
            row = row_of(one)
            writer.writerow({**row, "widths": " ".join(map(str, row["widths"])), "on_front": int(one.on_front)})
    write_json(folder / "front.json", front_data(ranked, facts))


def read_front(folder: Path) -> dict[str, Any]:
    """Read ``front.json`` from the folder of a search.

    Raises:
        UserError: it is missing or broken.
    """
    path = folder / "front.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no front.json: name the folder of a search, or finish it with --resume")
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        front_table(data)  # checks the keys that are used
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken ({one_line(error, kind=True)}): search again with --resume") from error
    return data


def front_table(data: Mapping[str, Any]) -> Table:
    """A table of `front_data` by rising cost: at most `LISTED` rows, the chosen network marked."""
    chosen, count = data.get("chosen") or {}, len(data["front"])
    others = [row for row in data["front"] if Name.from_dict(row) != _chosen_name(data)]
    rows = [*others, chosen] if "rank" in chosen else list(data["front"])
    timed = all(row["latency_ms"] is not None for row in rows)
    rows.sort(key=lambda row: (row["latency_ms" if timed else "macs"], row["rank"]))
    marked = [row is chosen for row in rows]
    ends = {0, len(rows) - 1} if rows else set()
    shown = thin(len(rows), LISTED, ends | {i for i, mark in enumerate(marked) if mark})
    images = f" on {rows[0]['images']:,} images" if rows else ""
    some = f"{len(shown)} of the " if len(shown) < len(rows) else "the "
    lines = []
    for i in shown:
        row = rows[i]
        numbers = [f"{row['macs'] / 1e6:,.2f}", f"{row['params'] / 1e6:,.3f}"]
        numbers += [f"{row['latency_ms']:.4g}"] if timed else []
        numbers += ["" if row["loss"] is None else f"{row['loss']:.4f}", f"{row['top1']:.2f}", f"{row['rank']:,}"]
        mark = ("chosen" if len(rows) == count else "chosen, off the front") if marked[i] else ""
        lines.append((*numbers, mark))
    headings, names = name_columns([rows[i] for i in shown])
    return Table(
        (*headings, "M MACs", "M params", *(["ms"] if timed else []), "loss", "top-1 %", "rank", ""),
        [(*name, *line) for name, line in zip(names, lines, strict=True)],
        len(headings),
        f"{some}{count:,} networks on the front: no other has both less loss and less cost; loss and top-1 are "
        f"the supernet's{images} of the validation split",
        [place for place, i in enumerate(shown) if marked[i]],
    )


def thin(count: int, limit: int, keep: Iterable[int] = ()) -> list[int]:
    """At most `limit` of the numbers below `count`, in order: all of `keep`, and the others evenly spaced."""
    kept = set(keep)
    others = [i for i in range(count) if i not in kept]
    room = min(max(0, limit - len(kept)), len(others))
    return sorted(kept | {others[(2 * i + 1) * len(others) // (2 * room)] for i in range(room)})


def name_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and cells that name the networks of a table; elements only if they differ."""
    names = [Name.from_dict(row) for row in rows]
    texts = [(f"`{name.genotype}`", " ".join(map(str, name.widths)), name.elements) for name in names]
    columns = 3 if len({name.elements for name in names}) > 1 else 2
    return ("genotype", "widths", "elements")[:columns], [text[:columns] for text in texts]


def _chosen_name(facts: Mapping[str, Any]) -> Name | None:
    chosen = facts.get("chosen")
    return Name.from_dict(chosen) if chosen else None


def row_of(one: Ranked) -> dict[str, Any]:
    """A network as plain data; a loss that is not finite becomes None, since JSON has no NaN."""
    score = one.score
    loss = score.loss if isfinite(score.loss) else None
    latency = None if one.latency is None else 1000 * one.latency
    values = (one.rank, *score.name, loss, score.top1, score.images, one.macs, one.params, latency)
    return {**dict(zip(COLUMNS, values, strict=True)), "widths": list(score.name.widths)}
