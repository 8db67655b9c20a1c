"""Whether a folder holds a run, and whether its settings allow to resume it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from psvit.arch.model_config import to_plain
from psvit.engine.accelerator import by_the_first, computed_in
from psvit.engine.hardware import versions
from psvit.errors import UserError, flag

RUN_CONFIG, STATE, LOG, TABLE = "run_config.json", "state.pt", "log.jsonl", "log.csv"
RESULTS = "results.json"  # of a comparison, in the folder above its runs
SEARCHED = ("front.json", "arch.json", "journal.jsonl", "supernet", "pilot-1", "pilot.json")  # of a search
FREE_TO_CHANGE = (
    "run.",
    "search.output",
    "search.resume",
    "search.overwrite",
    "search.save_every",
    "machine.threads",
    "data.workers",
    "data.accept_changes",
    "data.image_cache",
    "evolution.storage",
)  # settings that may change on resume
PATHS = ("data", "data_dir", "model", "teacher")  # may be another spelling of the same path


def refuse_run(path: Path) -> None:
    """Refuse a folder in which a run has saved anything.

    Raises:
        UserError: it holds a run.
    """
    if any((path / name).exists() for name in (STATE, LOG, RESULTS, *SEARCHED)):
        raise UserError(
            f"{path} already holds a run: give --resume to go on, --overwrite to replace it, or another --output"
        )


def begun(path: Path, resume: bool, accelerator: Accelerator) -> bool:
    """Whether the folder holds a run to resume, as seen by the first process; if not, ``--resume`` starts a new one.

    Raises:
        UserError: a run without its config.
    """
    if not resume:
        return False
    if found := by_the_first(accelerator, (path / RUN_CONFIG).is_file):
        return found
    other = next((name for name in (STATE, LOG, RESULTS, *SEARCHED) if (path / name).exists()), None)
    if other is not None:
        raise UserError(
            f"{path} holds {other}, but no {RUN_CONFIG}: give another --output, or start anew with --overwrite"
        )
    return False


def record_of(config: Any, accelerator: Accelerator) -> dict[str, Any]:
    """The content of run_config.json: the config, its global batch and precision on this machine, versions."""
    return {
        "config": to_plain(config),
        "global_batch": config.recipe.global_batch(accelerator.num_processes),
        "computed_in": computed_in(config.machine),
        "versions": versions(),
    }


def check_same(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse to resume a run with different settings.

    Args:
        path: the run's folder.
        record: the settings now; see `record_of`.

    Raises:
        UserError: run_config.json is broken, or a setting differs.
    """
    try:
        before = json.loads((path / RUN_CONFIG).read_text(encoding="utf-8"))
        old, batch, computed = flat(before["config"]), before["global_batch"], before["computed_in"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / RUN_CONFIG} is broken ({error!r}): start anew with --overwrite") from error
    now = json.loads(json.dumps(record))
    new = flat(now["config"])
    for name in differing(old, new):
        if name.startswith(FREE_TO_CHANGE):
            continue
        raise UserError(
            f"{path} was trained with {flag(name.rpartition('.')[2])} {_plainly(old.get(name))}, not "
            f"{_plainly(new.get(name))}: resume with the same settings, or start anew with --overwrite"
        )
    if computed != now["computed_in"]:  # --precision auto, on another machine
        raise UserError(
            f"{path} was computed in {computed}, and --precision {new['machine.precision']} is "
            f"{now['computed_in']} here: resume it on a machine like the one it was begun on, or start anew "
            "with --overwrite"
        )
    if batch != now["global_batch"]:
        raise UserError(
            f"{path} has a global batch of {batch}, not {now['global_batch']}: resume with as many processes"
        )


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sorted names of the settings that differ."""
    return [name for name in sorted({*old, *new}) if not same_value(name, old.get(name), new.get(name))]


def same_value(name: str, old: Any, new: Any) -> bool:
    """Whether a setting is unchanged; paths may be spelled differently, such as ``I/`` or ``./I`` for ``I``."""
    if old == new:
        return True
    if name.rpartition(".")[2] not in PATHS or not (isinstance(old, str) and isinstance(new, str)):
        return False
    before, now = (Path(os.path.expanduser(text)) for text in (old, new))
    return before.exists() and now.exists() and before.samefile(now)


def _plainly(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict with dotted names."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        nested = isinstance(value, dict) and name != "model_args"
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found
