"""Trainings of a study -> means, intervals and verdicts on its claims. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, log, sqrt
from statistics import fmean, stdev
from typing import Any

from psvit.studies.definition import Claim, Study
from psvit.studies.known import NOTHING, Known
from psvit.studies.statistics import Spread, difference, interval, ratio, verdict, widest

Kept = Mapping[tuple[str, str, int], Mapping[str, Any]]
"""The result of each training, by group, label and seed; a failed one has only an ``error``."""

ONE_SEED = ", one seed"
"""End of a verdict if one network was trained once: the interval then uses another network's variance."""

AT_CHANCE = "not tested: the other network is at chance"

FLOOR = 1e-3
"""Smallest error, in percent, in the ratios of claims."""


def results(
    study: Study,
    kept: Kept,
    searched: Mapping[str, Any],
    shapes: Mapping[str, Mapping[str, Any]],
    train_images: Mapping[str, int] | None = None,
    known: Known = NOTHING,
) -> dict[str, Any]:
    """The results of a study as plain data.

    Args:
        study: the study.
        kept: the result of each training.
        searched: the Arch found by each group's search, as plain data.
        shapes: img_size, in_chans and num_classes of each group's images.
        train_images: number of training images of each group; by default its data's limit.
        known: networks trained by an earlier study.

    Returns:
        ``groups``, each with ``rows``: per network its metrics by seed (top1 in percent, loss in nats), ``mean``,
        ``interval`` (95 % of the mean, by Student's t; None for one seed), ``error_ratio`` (mean error over the first
        network's; None if that failed or has no errors), ``history`` (epoch, mean validation top-1) and ``seconds``;
        ``claims``, see `judged`.
    """
    groups: list[dict[str, Any]] = []
    for group in study.groups:
        rows = [
            dict(known.rows.get((group.name, network.label)) or _row(group.name, network.label, network.seeds, kept))
            for network in group.networks
        ]
        for row in rows:
            row["error_ratio"] = _over(row["mean"], rows[0]["mean"])
        entry: dict[str, Any] = {
            "name": group.name,
            "macs": group.macs,
            "data": group.data.data,
            "limit": group.data.limit,
            "train_images": (train_images or {}).get(group.name, group.data.limit),
            "epochs": group.recipe.epochs,
            "batch": group.recipe.global_batch(1),
            "shape": shapes[group.name],
            "searched": searched.get(group.name),
            "rows": rows,
        }
        groups.append(entry)
    trainings, seconds = _trainings(kept, known)
    return {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "reads": study.reads,
        "quick": study.quick,
        "groups": groups,
        "claims": judged(study.claims, groups),
        "trainings": trainings,
        "training_seconds": round(seconds),
        "config": study.to_dict(),
    }


def _trainings(kept: Kept, known: Known) -> tuple[int, float]:
    """Number of trainings and their total seconds; rows of equal settings share a training."""
    seconds = {result.get("folder", where): result.get("seconds", 0.0) for where, result in kept.items()}
    for row in known.rows.values():
        for folder in row["folders"]:
            seconds.setdefault(folder, row["seconds"] / len(row["folders"]))
    return len(seconds), sum(seconds.values())


def _over(mean: float | None, first: float | None) -> float | None:
    if mean is None or first is None or first >= 100:
        return None
    return (100 - mean) / (100 - first)


def _row(group: str, label: str, seeds: Sequence[int], kept: Kept) -> dict[str, Any]:
    found = {seed: kept[group, label, seed] for seed in seeds}
    good = {seed: result for seed, result in found.items() if "error" not in result}
    row: dict[str, Any] = {"label": label, "seeds": list(good), "top1": [one["top1"] for one in good.values()]}
    row["failed"] = {str(seed): result["error"] for seed, result in found.items() if "error" in result}
    if not good:
        return {**row, "mean": None, "interval": None, "seconds": 0.0}
    one = next(iter(good.values()))
    row |= {name: one[name] for name in ("network", "macs", "params", "images")}
    for name in ("loss", "validation_top1", "epoch"):
        row[name] = [result[name] for result in good.values()]
    epochs = zip(*(result["history"] for result in good.values()), strict=True)
    row["history"] = [[lines[0][0], round(fmean(line[1] for line in lines), 3)] for lines in epochs]
    row["mean"] = fmean(row["top1"])
    row["deviation"] = stdev(row["top1"]) if len(good) > 1 else None
    row["interval"] = interval(row["top1"])
    row["folders"] = [result.get("folder") for result in good.values()]
    row["seconds"] = round(sum(result["seconds"] for result in good.values()), 1)
    row["arch"] = one.get("arch")
    row["lr"] = one.get("lr")  # of an older psvit None
    return row


def judged(claims: Sequence[Claim], groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The verdicts on claims.

    Args:
        claims: about networks of the groups.
        groups: of the results, each with its ``rows``.

    Returns:
        For each claim the ``difference`` in points and the ``ratio`` of errors, both as (value, low, high); whether the
        intervals of the two means are ``apart`` (None if one network was trained once); and the ``verdict``, which ends
        in `ONE_SEED` if one network was trained once, and is `AT_CHANCE` if the worse network is at chance.
    """
    rows = {(group["name"], row["label"]): row for group in groups for row in group["rows"]}
    classes = {group["name"]: group["shape"]["num_classes"] for group in groups}
    trained = _networks(groups)
    points, errors = widest(trained), widest([[log(_error(top1)) for top1 in values] for values in trained])
    found = []
    for claim in claims:
        entry = _claim(claim, rows[claim.better]["top1"], rows[claim.worse]["top1"], points, errors)
        if entry["verdict"] != "not measured" and _at_chance(rows[claim.worse], classes[claim.worse[0]]):
            entry["verdict"] = AT_CHANCE
        found.append(entry)
    return found


def _at_chance(row: Mapping[str, Any], classes: int) -> bool:
    """Whether a top-1 is less than two standard errors above chance, for classes of equal size."""
    share = 1 / classes
    return bool(row["mean"] / 100 < share + 2 * sqrt(share * (1 - share) / row["images"]))


def _networks(groups: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Top-1 of all trainings by network, each training once; rows that share a folder are one network."""
    found: list[dict[Any, float]] = []
    for group in groups:
        for row in group["rows"]:
            own: dict[Any, float] = {
                folder or (group["name"], row["label"], seed): top1
                for folder, seed, top1 in zip(row.get("folders", ()), row["seeds"], row["top1"], strict=True)
            }
            for other in [other for other in found if other.keys() & own.keys()]:
                found.remove(other)
                own = {**other, **own}
            found.append(own)
    return [list(values.values()) for values in found]


def _claim(
    claim: Claim, better: Sequence[float], worse: Sequence[float], points: Spread, errors: Spread
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "claim": claim.claim, "better": list(claim.better), "worse": list(claim.worse), "at_most": claim.at_most,
        "seeds": [len(better), len(worse)],
    }  # fmt: skip
    if not better or not worse:
        return {**entry, "verdict": "not measured"}
    gap = difference(better, worse, points)
    over = ratio([_error(value) for value in better], [_error(value) for value in worse], errors)
    a, b = interval(better), interval(worse)
    found = verdict(over[1], over[2], claim.at_most) + (ONE_SEED if a is None or b is None else "")
    return {
        **entry,
        "difference": _finite(gap),
        "ratio": _finite(over),
        "apart": None if a is None or b is None else a[0] > b[1] or b[0] > a[1],
        "verdict": found,
    }


def _error(top1: float) -> float:
    return max(100 - top1, FLOOR)


def _finite(values: Sequence[float]) -> list[float | None]:
    return [None if abs(value) == inf else value for value in values]  # JSON has no infinity
