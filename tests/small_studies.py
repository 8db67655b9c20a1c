"""A small study and a long one, and how their results are compared."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import MACHINE, read, same_weights

from psvit.cli import main
from psvit.errors import UserError
from psvit.studies.study_folder import RESULTS

NETWORK = {"network": "AS-A", "widths": [16, 32], "head_dim": 8, "patch_size": 2, "macs": "keep"}
SEARCH = {
    "depth": [2],
    "stages": [1, 2],
    "stage_widths": ["16", "16,32"],
    "head_dim": 8,
    "patch_size": 2,
    "least": 0,
    "ties": "macs",
}
STUDY: dict[str, Any] = {
    "title": "Does it work?",
    "data": {"data": "digits", "limit": 48, "validation": 0.02},
    "recipe": {"epochs": 2, "batch_size": 16},
    "groups": {
        "small": {"seeds": [0, 1], "networks": {"shares": NETWORK, "attends": {**NETWORK, "network": "AA-A"}}},
        "found": {
            "macs": "250k",
            "search": {**SEARCH, "supernet_epochs": 1},
            "networks": {"searched": "searched", "again": NETWORK},
        },
    },
    "claims": [{"claim": "sharing", "better": ["small", "shares"], "worse": ["small", "attends"]}],
}
TRIALS = ("small/shares/seed-0", "small/shares/seed-1", "small/attends/seed-0", "small/attends/seed-1",
          "found/searched/seed-0")  # fmt: skip


def in_turn(
    tasks: Sequence[Callable[[], Any]],
    jobs: int,
    done: Callable[[int, Any], None],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """`work_all` in this process."""
    for number, task in enumerate(tasks):
        try:
            value = task()
        except UserError as error:
            value = UserError(str(error))
        done(number, value)


def write(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def words(folder: Path, data: Any = STUDY) -> list[str]:
    """The command for a study that is kept in `folder`."""
    return ["study", str(write(folder.parent / "mine.yaml", data)), "--output", str(folder), *MACHINE]


def without_time(data: Any) -> Any:
    """Results without what differs from run to run."""
    free = ("seconds", "training_seconds", "search_seconds", "wall_seconds", "latency_ms", "machine")
    if isinstance(data, dict):
        return {key: without_time(value) for key, value in data.items() if key not in free}
    return [without_time(value) for value in data] if isinstance(data, list) else data


def check_equal(a: Path, b: Path) -> None:
    assert without_time(read(a / RESULTS)) == without_time(read(b / RESULTS))
    for trial in TRIALS:
        for name in ("best", "last"):
            assert same_weights(a / trial / name, b / trial / name)


def made(folder: Path, data: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psvit.studies.task_runner.work_all", in_turn)
        assert main(words(folder, data)) == 0
    return folder


def on_a_machine(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let auto come to `precision`."""
    monkeypatch.setattr("psvit.engine.accelerator.best_precision", lambda device: precision)
