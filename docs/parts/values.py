"""Single values of results, for prose: ``<!-- value:claims.6-m-macs.searched.error_ratio:.2f -->0.57<!-- /value -->``.

A path leads from the name of a JSON file through its data: keys of mappings, numbers of places in lists from 0, or an
entry's ``name``, ``label`` or ``claim`` as `psvit.study.plan.slug` writes it. The groups of a study stand at its root,
and the networks of a group at the group's. Behind the colon stands a format of Python's; ``/1e6`` before it divides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from psvit.study.plan import slug
from psvit.study.tables import claims_table

NAMES = ("name", "label", "claim")
"""Keys by which the entries of a list are known."""


def value_text(data: Mapping[str, Any], path: str, form: str) -> str:
    """The value at the end of `path` as text.

    Args:
        data: of a JSON file.
        path: below the file's name; may end in a divisor, as in ``rows.deit.macs/1e6``.
        form: a format of Python's, or nothing.

    Raises:
        ValueError: no such value, or one that the format does not fit; the message names what there is.
    """
    path, _, divisor = path.partition("/")
    value = find({**data, **derived(data)}, path)
    if divisor:
        value = value / float(divisor)
    if isinstance(value, (Mapping, list)) or value is None:
        raise ValueError(f"{path} is no single value")
    text = format(value, form)
    return text.replace("-", "−").replace("%", " %") if isinstance(value, (int, float)) else text


def find(node: Any, path: str) -> Any:
    """What stands at `path` below `node`. Names may hold dots: the longest that fits is taken first.

    Raises:
        ValueError: nothing does.
    """
    if not path:
        return node
    below = children(node)
    for name in sorted(below, key=len, reverse=True):
        if path == name or path.startswith(f"{name}."):
            return find(below[name], path[len(name) + 1 :])
    raise ValueError(f"there is no {path!r}: there are {', '.join(below) or 'no further names'}")


def children(node: Any) -> dict[str, Any]:
    """What stands right below a node, by name."""
    if isinstance(node, list):
        numbered = {str(place): entry for place, entry in enumerate(node)}
        return numbered | dict(_named(node))
    if not isinstance(node, Mapping):
        return {}
    inner = {name: entry for key in ("groups", "rows") for name, entry in _named(node.get(key))}
    return {**node, **inner}  # a network may be called searched, as a key of its group is


def _named(entries: Any) -> Iterator[tuple[str, Any]]:
    for entry in entries if isinstance(entries, list) else ():
        name = next((entry[key] for key in NAMES if key in entry), None) if isinstance(entry, Mapping) else None
        if isinstance(name, str):
            yield slug(name), entry


def derived(data: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from results and is told in prose."""
    return next((derive(data) for key, derive in DERIVED.items() if key in data), {})


def study_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of every claim a sentence, ``found``; and how many ``hold``, do not (``fail``) or are ``open``."""
    claims = []
    for claim, row in zip(data["claims"], claims_table(data).rows, strict=True):
        _, points, over, _, _, verdict = row
        seeds = " and ".join(map(str, claim["seeds"]))
        figures = f": {over} times the errors, {points} points; seeds {seeds}" if over else ""
        claims.append({**claim, "found": f"{verdict}{figures}"})
    verdicts = [claim["verdict"] for claim in data["claims"]]
    counts = {"hold": verdicts.count("holds"), "fail": verdicts.count("does not hold"), "open": verdicts.count("open")}
    return {"claims": claims, **counts, "hours": data["training_seconds"] / 3600}


def analysis_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of an analysis the ``least``, the ``mean`` and the ``most`` correlation of a layer's map with the one before."""
    found = [
        row["before"]["correlation"]
        for row in data["layers"]
        if row["before"] is not None and not row["before"]["by_construction"]
    ]
    if not found:
        return {}
    return {"neighbours": {"least": min(found), "mean": sum(found) / len(found), "most": max(found)}}


def latency_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """How much more, or less, the same networks took once more: ``less`` and ``more``."""
    drift = [row["again_ms"] / row["measured_ms"] - 1 for row in data["searches"]]
    return {"less": -min(drift), "more": max(drift)}


def ranking_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Top-1 of trainings alone, by the number of stages: ``stages-1``, each with ``least`` and ``most``."""
    found: dict[str, list[float]] = {}
    for number, member in enumerate(data["members"]):
        stages = f"stages-{len(member['arch']['widths'])}"
        found.setdefault(stages, []).extend(top1[number] for top1 in data["alone"].values())
    return {stages: {"least": min(values), "most": max(values)} for stages, values in found.items()}


DERIVED: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "study": study_values,
    "maps": analysis_values,
    "searches": latency_values,
    "supernets": ranking_values,
}
"""A key that tells what wrote a file, and what follows from it."""
