"""Reuse of trainings from the results of an earlier study. No torch."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from psvit.data.data_config import DataConfig
from psvit.engine.train_config import Recipe
from psvit.errors import UserError, one_line
from psvit.studies.definition import IDLE, SEARCHED, Study

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """Trainings of an earlier study.

    Args:
        rows: results of networks with the same settings, by group and label; see `psvit.studies.results.results`. Their
            ``taken_from`` holds the file, machine and versions.
        searched: the Arch found by the group's search, as plain data, by group.
        search_seconds: seconds of that search, by group; None if unknown.
        data: the entries `DATA` of the group's results, by group.
        notes: networks that were not taken, with reasons.
    """

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    searched: dict[str, Any] = field(default_factory=dict)
    search_seconds: dict[str, float | None] = field(default_factory=dict)
    data: dict[str, Row] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


NOTHING = Known()

DATA = ("train_images", "shape")
"""Entries of a group's results: number of training images; their size, channels and classes."""


def known_of(path: str | Path | None, study: Study, computed_in: str) -> Known:
    """The networks of `study` in the results of an earlier study, with the same data, recipe, MACs, fields and seeds.

    Networks with a failed seed or of unknown precision are left out.

    Args:
        path: results.json of a study; None for none.
        study: the study to run.
        computed_in: the precision of the trainings, which has to be the same.

    Raises:
        UserError: not the results of a study, another split, or no network that can be taken.
    """
    if path is None:
        return NOTHING
    given = f"--known {path}"
    before, old, source = _read(Path(path), given)
    if before["reads"] != study.reads:
        raise UserError(f"{given} was made with reads {before['reads']}, not {study.reads}: its figures do not compare")
    found = Known()
    others: Counter[str | None] = Counter()  # networks of the same settings but another precision
    for group in json.loads(json.dumps(study.to_dict()))["groups"]:
        earlier, results = old.get(group["name"], (None, None))
        if earlier is None or results is None or _shared(group) != _shared(earlier):
            continue
        done = {row["label"]: row for row in results["rows"] if row["mean"] is not None and not row["failed"]}
        for network in group["networks"]:
            if network not in earlier["networks"] or network["label"] not in done:
                continue
            row = {"taken_from": source, **done[network["label"]]}
            if (precision := precision_of(row["taken_from"]["machine"])) != computed_in:
                others[precision] += 1
                continue
            found.rows[group["name"], network["label"]] = row
            found.data[group["name"]] = {name: results.get(name) for name in DATA}
            if network["network"] == SEARCHED:
                found.searched[group["name"]] = results["searched"]
                found.search_seconds[group["name"]] = results.get("search_seconds")
    not_taken = [_not_taken(precision, count, computed_in) for precision, count in others.items()]
    if not found.rows:
        reason = "; ".join(not_taken) or "it holds no network of this study with the same settings"
        raise UserError(f"{given} is of no use here ({reason}): leave out --known")
    return replace(found, notes=tuple(f"{given}: {told}" for told in not_taken))


def precision_of(machine: Mapping[str, Any]) -> str | None:
    """The precision of a training from the ``machine`` of its results; None if an older psvit did not record it."""
    asked = machine.get("precision", "auto")
    known: str | None = machine.get("computed_in", None if asked == "auto" else asked)
    return known


def _not_taken(precision: str | None, count: int, computed_in: str) -> str:
    why = f"computed in {precision}" if precision else "of a precision that was not recorded"
    return f"{count} network{'s' * (count > 1)} of the same settings not taken: {why}, and here it is {computed_in}"


def _read(path: Path, given: str) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Settings of the study in a file, its groups (settings, results) by name, and file, machine and versions.

    Raises:
        UserError: not the results of a study.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        before, machine = data["config"], data["machine"]
        groups = {group["name"]: (group, rows) for group, rows in zip(before["groups"], data["groups"], strict=True)}
        _ = precision_of(machine), before["reads"], [_shared(group) for group, _ in groups.values()]
        source = {"file": path.name, "machine": machine, "versions": data["versions"]}
    except OSError as error:
        raise UserError(f"{given} cannot be read ({error.strerror}): give the results.json of a study") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{given} holds no results of a study ({one_line(error)}): give a results.json") from error
    return before, groups, source


def of_now(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings from older results, with defaults for settings added later.

    Except for folders of images, which were split in another way.
    """
    if Path(os.path.expanduser(group["data"]["data"])).is_dir():
        return dict(group)
    data, recipe = (json.loads(json.dumps(default)) for default in (asdict(DataConfig()), asdict(Recipe())))
    return {**group, "data": data | group["data"], "recipe": recipe | group["recipe"]}


def _shared(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings common to a group's networks, without those that do not change results."""
    whole = of_now(group)
    return {**whole, "data": {k: v for k, v in whole["data"].items() if k not in IDLE}, "networks": None}
