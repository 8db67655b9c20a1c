"""Results of an earlier study: its networks that are asked for again, alike, need no training. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psvit.errors import UserError, one_line
from psvit.study.plan import SEARCHED, Study
from psvit.training.recipes import Machine

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """What was trained before.

    Args:
        rows: of the networks whose settings are the same, by group and label; see `psvit.study.results.results`. Each
            says in ``taken_from`` which file they are from, and the machine and versions that made them.
        searched: the Arch that the search of such a group found, as plain data.
        search_seconds: that it took, by group; None where that is not known.
    """

    rows: Mapping[tuple[str, str], Row] = field(default_factory=dict)
    searched: Mapping[str, Any] = field(default_factory=dict)
    search_seconds: Mapping[str, float | None] = field(default_factory=dict)


NOTHING = Known()


def known_of(path: str | Path | None, study: Study, machine: Machine, computed_in: str) -> Known:
    """The networks of `study` that the results in a file hold: of the same data, recipe, MACs, fields and seeds.

    A network of which a seed failed is not among them.

    Args:
        path: results.json of a study; None for none.
        study: what is asked now.
        machine: of each training; its precision has to be that of the results.
        computed_in: what that precision comes to here; it has to be that of the results too, where they tell it.

    Raises:
        UserError: the file holds no results of a study, of another split or precision, or none of these networks.
    """
    if path is None:
        return NOTHING
    given = f"--known {path}"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        before, made_on = data["settings"], data["machine"]
        old = {group["name"]: (group, rows) for group, rows in zip(before["groups"], data["groups"], strict=True)}
        precision, came_to = made_on["precision"], made_on.get("computed_in", computed_in)
        source = {"file": Path(path).name, "machine": made_on, "versions": data["versions"]}
    except OSError as error:
        raise UserError(f"{given} cannot be read ({error.strerror}): give the results.json of a study") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{given} holds no results of a study ({one_line(error)}): give a results.json") from error
    asked = json.loads(json.dumps(study.to_dict()))
    for name, now, then in (("reads", study.reads, before["reads"]), ("--precision", machine.precision, precision)):
        if now != then:
            raise UserError(f"{given} was made with {name} {then}, not {now}: its figures are not comparable")
    if came_to != computed_in:
        raise UserError(
            f"{given} was computed in {came_to}, and --precision {precision} comes to {computed_in} here: its figures "
            "are not comparable"
        )
    rows: dict[tuple[str, str], Row] = {}
    searched: dict[str, Any] = {}
    seconds: dict[str, float | None] = {}
    for group in asked["groups"]:
        earlier, found = old.get(group["name"], ({}, {}))
        if _alike(group) != _alike(earlier):
            continue
        done = {row["label"]: row for row in found["rows"] if row["mean"] is not None and not row["failed"]}
        for network in group["networks"]:
            if network in earlier["networks"] and network["label"] in done:
                rows[group["name"], network["label"]] = {"taken_from": source, **done[network["label"]]}
                if network["network"] == SEARCHED:
                    searched[group["name"]] = found["searched"]
                    seconds[group["name"]] = found.get("search_seconds")
    if not rows:
        raise UserError(f"{given} holds no network of this study with the same settings: leave out --known")
    return Known(rows, searched, seconds)


def _alike(group: Mapping[str, Any]) -> dict[str, Any]:
    """What all networks of a group share."""
    return {name: value for name, value in group.items() if name != "networks"}
