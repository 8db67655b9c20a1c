"""Results of an earlier study: its networks that are asked for again, alike, need no training. No torch."""

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
    """What was trained before.

    Args:
        rows: of the networks whose settings are the same, by group and label; see `psvit.studies.results.results`. Each
            says in ``taken_from`` which file they are from, and the machine and versions that made them.
        searched: the Arch that the search of such a group found, as plain data.
        search_seconds: that it took, by group; None where that is not known.
        data: what the images of such a group were, by group: the entries `DATA` of its results.
        notes: what was not taken, and why.
    """

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    searched: dict[str, Any] = field(default_factory=dict)
    search_seconds: dict[str, float | None] = field(default_factory=dict)
    data: dict[str, Row] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


NOTHING = Known()

DATA = ("train_images", "shape")
"""Of a group's results: how many images it was trained on; their size, channels and classes."""


def known_of(path: str | Path | None, study: Study, computed_in: str) -> Known:
    """The networks of `study` that the results in a file hold: of the same data, recipe, MACs, fields and seeds.

    A network is left out if one of its seeds failed, or if the results do not say in which precision it was trained.

    Args:
        path: results.json of a study; None for none.
        study: the study to run.
        computed_in: the precision of the trainings here; those of a known network must have the same.

    Raises:
        UserError: the file holds no results of a study, of another split, or none of these networks that can be taken.
    """
    if path is None:
        return NOTHING
    given = f"--known {path}"
    before, old, source = _read(Path(path), given)
    if before["reads"] != study.reads:
        raise UserError(f"{given} was made with reads {before['reads']}, not {study.reads}: its figures do not compare")
    found = Known()
    others: Counter[str | None] = Counter()  # networks of the same settings, by what they were computed in
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
    passed_over = [_passed_over(precision, count, computed_in) for precision, count in others.items()]
    if not found.rows:
        reason = "; ".join(passed_over) or "it holds no network of this study with the same settings"
        raise UserError(f"{given} is of no use here ({reason}): leave out --known")
    return replace(found, notes=tuple(f"{given}: {told}" for told in passed_over))


def precision_of(machine: Mapping[str, Any]) -> str | None:
    """What a training's products were computed in.

    Args:
        machine: as results keep it.

    Returns:
        None where it is not known: with --precision auto, an older psvit did not record the precision.
    """
    asked = machine.get("precision", "auto")
    known: str | None = machine.get("computed_in", None if asked == "auto" else asked)
    return known


def _passed_over(precision: str | None, count: int, computed_in: str) -> str:
    why = f"computed in {precision}" if precision else "of a precision that was not recorded"
    return f"{count} network{'s' * (count > 1)} of the same settings not taken: {why}, and here it is {computed_in}"


def _read(path: Path, given: str) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Settings of the study in a file, its groups (as asked, as found) by name, and where its trainings are from.

    Raises:
        UserError: the file holds no results of a study.
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
    """A group's settings from older results, with the defaults of the settings that were added since.

    Not for a folder of images: it was split in another way then, so such a setting stays unknown.
    """
    if Path(os.path.expanduser(group["data"]["data"])).is_dir():
        return dict(group)
    data, recipe = (json.loads(json.dumps(default)) for default in (asdict(DataConfig()), asdict(Recipe())))
    return {**group, "data": data | group["data"], "recipe": recipe | group["recipe"]}


def _shared(group: Mapping[str, Any]) -> dict[str, Any]:
    """What all networks of a group share, but for settings that change no figure."""
    whole = of_now(group)
    return {**whole, "data": {k: v for k, v in whole["data"].items() if k not in IDLE}, "networks": None}
