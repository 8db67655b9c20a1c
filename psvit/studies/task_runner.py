"""Runs the searches and trainings of a study in several processes, and prints progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.errors import StoppedError, UserError
from psvit.studies.plan import arch_of
from psvit.studies.trials import Search, Trial
from psvit.studies.worker_pool import DiedError, work_all


class TaskRunner:
    """Runs the tasks of a study, each once.

    Args:
        jobs: tasks at a time.
        stopped: returns whether the user wants to stop.
        say: prints lines for the user.
        folder: of the study, for messages.
    """

    def __init__(self, jobs: int, stopped: Callable[[], bool], say: Callable[[str], None], folder: Path) -> None:
        self.jobs, self.stopped, self.say, self.folder = jobs, stopped, say, folder
        self.results: dict[Path, dict[str, Any]] = {}  # by the task's folder
        self.resumed: set[Path] = set()  # folders of tasks finished by an earlier run

    def train(self, trials: Sequence[Trial]) -> dict[tuple[str, str, int], dict[str, Any]]:
        """Run the trainings; returns their results, each with its folder and Arch, by group, label and seed."""
        groups = alike(trials)
        found: dict[tuple[str, str, int], dict[str, Any]] = {}
        for group, result in zip(groups, self.run([group[0] for group in groups]), strict=True):
            folder, arch = group[0].folder.relative_to(self.folder), arch_of(group[0].config.model)
            kept = {**result, "folder": folder.as_posix(), "arch": None if arch is None else arch.to_dict()}
            found |= {(one.group, one.label, one.seed): kept for one in group}
        return found

    def run(self, tasks: Sequence[Trial | Search]) -> list[dict[str, Any]]:
        """Run `tasks` and return their results; that of a failed training is ``{"error": message}``.

        Raises:
            StoppedError: the user stopped.
            UserError: a search failed, a process died, or a task was done before with other settings.
        """
        new = [task for task in tasks if task.folder not in self.results]
        kept = {task.folder: result for task in new if (result := task.kept()) is not None}
        self.results |= kept
        if kept:
            self.resumed |= kept.keys()
            self.say(f"{len(self.resumed)} of {len(tasks)} are finished already")
        todo = [task for task in new if task.folder not in kept]

        def done(number: int, value: Any) -> None:
            task = todo[number]
            if isinstance(value, UserError):
                if task.required:
                    raise value
                value = {"error": str(value)}
            self.results[task.folder] = value
            finished = sum(one.folder in self.results for one in tasks)
            self.say(f"{finished:>3} of {len(tasks)}  {task.title}: {_summary(value)}")

        try:
            work_all(todo, self.jobs, done, self.stopped)
        except StoppedError as error:
            raise StoppedError(f"stopped, all is kept in {self.folder}: go on with --resume") from error
        except DiedError as error:
            raise UserError(
                f"the process of {todo[error.number].title} died (out of memory?), what is finished is kept in "
                f"{self.folder}: go on with --resume, perhaps with fewer --jobs"
            ) from error
        return [self.results[task.folder] for task in tasks]


def alike(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trainings grouped by equal settings, finished ones first; only the first of each group is run."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(json.dumps(trial.made_with(), sort_keys=True), []).append(trial)
    return [sorted(group, key=lambda trial: trial.kept() is None) for group in groups.values()]


def _summary(value: Mapping[str, Any]) -> str:
    if "error" in value:
        return str(value["error"])
    if "genotype" in value:
        return str(Arch.from_dict(dict(value)))
    return f"top-1 {value['top1']:.2f} %, {value['macs'] / 1e6:.2f} M MACs, {value['seconds'] / 60:.1f} minutes"
