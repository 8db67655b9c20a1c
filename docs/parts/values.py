"""Single values of results, for prose: ``<!-- value:claims.6-m-macs.searched.error_ratio:.2f -->0.57<!-- /value -->``.

A path leads from the name of a JSON file through its data: keys of mappings, numbers of places in lists from 0, or an
entry's ``name``, ``label`` or ``claim`` as `psvit.studies.plan.slug` writes it; ``count`` is a list's length. The
groups
of a study stand at its root, and the networks of a group at the group's. Behind the colon stands a format of Python's;
``/1e6`` before it divides, and so does ``/`` with another path of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import Any

from psvit.studies.plan import slug
from psvit.studies.statistics import difference, widest
from psvit.studies.tables import claims_table

NAMES = ("name", "label", "claim")
"""Keys by which the entries of a list are known."""


def value_text(data: Mapping[str, Any], path: str, form: str) -> str:
    """The value at the end of `path` as text.

    Args:
        data: of a JSON file.
        path: below the file's name; may end in a divisor, a number or a path: ``rows.deit.macs/1e6``.
        form: a format of Python's, or nothing.

    Raises:
        ValueError: no such value, or one that divisor or format do not fit; the message names what there is.
    """
    path, _, divisor = path.partition("/")
    known = {**data, **derived(data)}
    value = find(known, path)
    if divisor:
        try:
            value = value / _divisor(known, divisor)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be divided by {divisor!r}: {error}") from error
    if isinstance(value, (Mapping, list)) or value is None:
        raise ValueError(f"{path} is no single value")
    text = format(value, form)
    return text.replace("-", "−").replace("%", " %") if isinstance(value, (int, float)) else text


def _divisor(known: Mapping[str, Any], text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return find(known, text)


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
        return {"count": len(node)} | numbered | dict(_named(node))
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
    """Of every claim a sentence, ``found``, and a shorter one, ``short``; of every group the % of guessing, ``guess``.

    Of the study how many claims ``hold``, do not (``fail``) or are ``open``; its ``hours``; and with how many
    ``seeds`` a network was trained, as words.
    """
    claims = []
    for claim, row in zip(data["claims"], claims_table(data).rows, strict=True):
        _, verdict, points, over, *_ = row
        seeds = " and ".join(map(str, claim["seeds"]))
        figures = f": {over} times the errors, {points} points; seeds {seeds}" if over else ""
        short = f"{verdict}, {over} times the errors" if over else verdict
        claims.append({**claim, "found": f"{verdict}{figures}", "short": short})
    groups = [{**group, "guess": 100 / group["shape"]["num_classes"]} for group in data["groups"]]
    trained = [len(row["seeds"]) for group in data["groups"] for row in group["rows"]]
    least, most = min(trained), max(trained)
    spread = (f"{least} to {most}" if least < most else str(most)) + (" seed" if most == 1 else " seeds")
    verdicts = [claim["verdict"].partition(",")[0] for claim in data["claims"]]  # some end in ", one seed"
    counts = {"hold": verdicts.count("holds"), "fail": verdicts.count("does not hold"), "open": verdicts.count("open")}
    hours = data["training_seconds"] / 3600
    return {"claims": claims, "groups": groups, **counts, "hours": hours, "seeds": spread}


def analysis_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of an analysis what it says of the paper's premise.

    ``neighbours``: the correlation of a layer's map with the one before. ``tokens``: the mean cosine of neighbouring
    tokens, where they could be pooled. ``takes`` and ``averages``: the change of the loss when a layer takes that map,
    or when those tokens are averaged. Each has the ``least``, the ``mean`` and the ``most`` over layers; the first two
    have ``found`` too, whether all, some or none are as alike as the analysis asks.
    """
    rows, asked = data["layers"], data["config"]["analysis"]
    own = [row for row in rows if row["before"] is not None and not row["before"]["by_construction"]]
    poolable = [row for row in rows if row.get("pooling") is not None]
    found = {
        "neighbours": _spread([row["before"]["correlation"] for row in own], asked["share_above"]),
        "takes": _spread([row["sharing"]["loss"] for row in own if row.get("sharing") is not None]),
        "tokens": _spread([row["tokens_are"]["neighbour_cosine"] for row in poolable], asked["pool_above"]),
        "averages": _spread([row["pooling"]["loss"] for row in poolable]),
    }
    return {name: spread for name, spread in found.items() if spread}


def _spread(values: list[float], bound: float | None = None) -> dict[str, Any]:
    """The least, the mean and the most of `values`, and how many reach `bound`; nothing of none."""
    if not values:
        return {}
    spread: dict[str, Any] = {"least": min(values), "mean": sum(values) / len(values), "most": max(values)}
    if bound is not None:
        reach = sum(value >= bound for value in values)
        how = "found" if reach == len(values) else "found in part" if reach else "not found here, at this scale"
        spread["found"] = f"**{how}**: {reach} of {len(values)} layers reach {bound:g}"
    return spread


def latency_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """How much more, or less, the same networks took once more: ``less`` and ``more``."""
    drift = [row["again_ms"] / row["measured_ms"] - 1 for row in data["searches"]]
    return {"less": -min(drift), "more": max(drift)}


def ranking_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Top-1 of trainings alone by the number of stages, ``stages-1``, and tau within a group, ``tau-3-stages``.

    Each has ``least`` and ``most``; tau has ``below`` too, how many of the supernets rank worse than one seed alone
    would, and the most of these, ``most-below``; and how many ``members`` the group has. ``seeds``: of trainings alone.
    """
    found: dict[str, list[float]] = {}
    for number, member in enumerate(data["members"]):
        stages = f"stages-{len(member['arch']['widths'])}"
        found.setdefault(stages, []).extend(top1[number] for top1 in data["alone"].values())
    values: dict[str, Any] = {stages: {"least": min(top1), "most": max(top1)} for stages, top1 in found.items()}
    values["seeds"] = len(data["alone"])
    for group, ceiling in data["ceiling"].items():
        taus = [row[f"tau_loss_{group}"] for row in data["supernets"]]
        below = [tau for tau in taus if round(tau, 6) < round(ceiling, 6)]
        values[f"tau-{slug(group)}"] = {
            "least": min(taus), "most": max(taus), "ceiling": ceiling, "of": len(taus),
            "below": len(below), "most-below": max(below, default=None), "members": data["groups"][group],
        }  # fmt: skip
    return values


def dense_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Comparisons of all backbones with each other, ``a-over-b``: prose asks for some that the table leaves out."""
    named = {row["name"] for row in data["comparisons"]}
    spreads = {
        figure: widest([row[f"{figure}_by_seed"] for row in data["summary"]]) for figure in data["task"]["figures"]
    }
    further = []
    for a, b in permutations(data["summary"], 2):
        name = f"{a['title']} over {b['title']}"
        if name not in named:
            compared = {
                figure: {"found": _ahead(difference(a[f"{figure}_by_seed"], b[f"{figure}_by_seed"], spread))}
                for figure, spread in spreads.items()
            }
            further.append({"name": name, **compared})
    return {"comparisons": [*data["comparisons"], *further]}


def _ahead(interval: tuple[float, float, float]) -> str:
    delta, low, high = interval
    verdict = "ahead" if low > 0 else "behind" if high < 0 else "open"
    return f"**{verdict}**: {delta:+.2f} [{low:+.2f}, {high:+.2f}]"


def export_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of each exported network, by its number, how many times as fast its files are, over batches.

    ``gains.0.int8`` over the float32 file and ``gains.0.float32`` over torch, each ``least`` and ``most``.
    """
    gains = []
    for network in data["exports"]:
        times = {
            file: [one["speed_over"][over][1] for one in network["timings"] if one["name"] == file]
            for file, over in (("float32", "torch"), ("int8", "float32"))
        }
        gains.append({file: {"least": min(found), "most": max(found)} for file, found in times.items()})
    return {"gains": gains}


DERIVED: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "study": study_values,
    "maps": analysis_values,
    "searches": latency_values,
    "supernets": ranking_values,
    "comparisons": dense_values,
    "exports": export_values,
}
"""A key that tells what wrote a file, and what follows from it."""
