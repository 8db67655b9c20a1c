"""The folder of a study: its files, its record, and the checks before it is resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from psvit.data.image_cache import remove_cache
from psvit.engine.accelerator import computed_in
from psvit.engine.run_folder import clear_run
from psvit.engine.train_config import Machine
from psvit.errors import UserError
from psvit.files import check_writable, sole_writer, write_json
from psvit.search.search_folder import clear_search
from psvit.studies.definition import Study
from psvit.studies.study_config import StudyConfig
from psvit.studies.study_page import PAGE, TABLES, figure_files
from psvit.studies.trials import OUTPUT, TRIAL, check_precision, read_record

RESULTS = "results.json"
STUDY = "study.json"
"""The settings of the study in a folder, and its seconds."""

LATENCY = "latency.json"
"""The latencies of a study's networks."""

TRIALS, SEARCHES = "*/*/seed-*", "*/search"
"""Patterns of their folders in a study's folder."""


def check_folder(folder: Path, study: Study, config: StudyConfig) -> None:
    """Check that the folder can be used for this study.

    Raises:
        UserError: a file, not writable, another study, or a study without --resume or --overwrite.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder as --output")
    check_writable(folder, f"--output {folder}")
    if config.results and Path(config.results).is_dir():
        raise UserError(f"--results {config.results} is a folder: give a file")
    begun = any((folder / name).exists() for name in (STUDY, RESULTS)) or _outputs(folder)
    if begun and not (config.resume or config.overwrite):
        raise UserError(
            f"{folder} already holds a study: give --resume to go on, --overwrite to replace it, or another --output"
        )
    if config.resume:
        _check_same(folder, study)


def _outputs(folder: Path) -> bool:
    """Whether a training or a search has begun."""
    return any(any(folder.glob(f"{kind}/{OUTPUT}")) for kind in (TRIALS, SEARCHES))


def begun_groups(folder: Path) -> list[str]:
    """Names of the groups of the study in a folder; empty without one."""
    before = read_record(folder / STUDY, "groups")
    return [] if before is None else [group["name"] for group in before["groups"]]


def _check_same(folder: Path, study: Study) -> None:
    """Refuse to resume another study; groups and networks may be added, but not removed."""
    before = read_record(folder / STUDY, "name", "reads", "quick", "groups")
    if before is None:  # of an older psvit
        return
    own = {(group.name, network.label) for group in study.groups for network in group.networks}
    there = [(group["name"], network["label"]) for group in before["groups"] for network in group["networks"]]
    gone = [(group, label) for group, label in there if (group, label) not in own]
    if before["name"] != study.name:
        told = f"the study {before['name']!r}, not {study.name!r}"
    elif before["reads"] != study.reads:
        told = f"a study that reads {before['reads']}, not {study.reads}"
    elif before["quick"] != study.quick:
        told = f"a study {'with' if before['quick'] else 'without'} --quick"
    elif gone:
        told = "a study with the network {1!r} of group {0!r}, ".format(*gone[0])
        told += f"which {study.source or study.name} does not have"
    else:
        return
    raise UserError(
        f"{folder} holds {told}: resume with the study that it holds, give another --output, or start anew with "
        "--overwrite"
    )


@contextmanager
def recorded(
    folder: Path, study: Study, machine: Machine, images: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Callable[[], float | None]]:
    """Record in the folder the study, its precision and images, and the seconds of all its runs (except killed ones).

    Args:
        folder: of the study.
        study: the study to run.
        machine: of the trainings.
        images: fingerprints of the images of groups that are trained on a folder, by group.

    Yields:
        A function that returns the seconds so far, including earlier runs; None if an older psvit did not record them.

    Raises:
        UserError: the study was computed in another precision, or the images of a group have changed.
    """
    before, start = read_record(folder / STUDY) or {}, time.perf_counter()
    if before or _outputs(folder):
        check_precision(folder, before.get("computed_in"), machine)
    listed: dict[str, str] = before.get("images") or {}
    if changed := [group for group, fingerprint in listed.items() if images.get(group, fingerprint) != fingerprint]:
        raise UserError(f"the images of group {changed[0]!r} have changed since {folder} began, whose trainings are "
                        "to be compared: bring them back, or start anew with --overwrite")  # fmt: skip
    listed = {**listed, **images}
    kept = {**study.to_dict(), "computed_in": computed_in(machine), **({"images": listed} if listed else {})}
    earlier = before.get("wall_seconds", None if _outputs(folder) else 0)

    def seconds() -> float | None:
        return None if earlier is None else round(float(earlier) + time.perf_counter() - start, 1)

    write_json(folder / STUDY, {**kept, "wall_seconds": seconds()})
    try:
        yield seconds
    finally:
        write_json(folder / STUDY, {**kept, "wall_seconds": seconds()})


def kept_latencies(path: Path, measured: Mapping[str, Any]) -> dict[str, float | None]:
    """The latencies in a study's folder, by network and shape; empty unless measured with these settings."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if measured != {name: kept[name] for name in measured}:
            return {}
        return dict(kept["milliseconds"])
    except (OSError, ValueError, KeyError, TypeError):  # missing or broken: measure again
        return {}


def clear_study(folder: Path, study: str) -> None:
    """Remove the files of a study of this name, but no other files in its folder."""
    trials = {path.parent for name in (TRIAL, OUTPUT) for path in folder.glob(f"{TRIALS}/{name}")}
    for place in sorted(trials | {path.parent for path in folder.glob(f"{SEARCHES}/{OUTPUT}")}):
        with sole_writer(place, str(place)):
            clear_run(place) if place in trials else clear_search(place)
            for name in (TRIAL, OUTPUT):
                (place / name).unlink(missing_ok=True)
        for empty in (place, *place.parents[: len(place.relative_to(folder).parts) - 1]):
            with suppress(OSError):  # it holds other files
                empty.rmdir()
    remove_cache(folder)
    written = [folder / name for name in (STUDY, LATENCY, RESULTS, PAGE, TABLES)]
    for path in (*written, *figure_files(folder, study, 99)):  # an earlier version may have had more figures
        path.unlink(missing_ok=True)
