"""Tasks of a study -> what they came to, on several processes, each told when it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.errors import UserError
from psvit.studies.jobs import arch_of
from psvit.studies.trials import Search, Trial
from psvit.studies.worker_pool import DiedError, StoppedError, work_all


class Crew:
    """Does the tasks of a study on several processes, and tells of each.

    Args:
        jobs: tasks at a time.
        stopped: whether the user wants to stop.
        say: takes lines for the user.
        folder: of the study, for the message that says how to resume.
    """

    def __init__(self, jobs: int, stopped: Callable[[], bool], say: Callable[[str], None], folder: Path) -> None:
        self.jobs, self.stopped, self.say, self.folder = jobs, stopped, say, folder
        self.done: dict[Path, dict[str, Any]] = {}
        self.before: set[Path] = set()

    def train(self, trials: Sequence[Trial]) -> dict[tuple[str, str, int], dict[str, Any]]:
        """What each training came to, the folder that keeps it and the Arch, by group, label and seed."""
        groups = alike(trials)
        done = [first(group) for group in groups]
        found: dict[tuple[str, str, int], dict[str, Any]] = {}
        for group, trial, result in zip(groups, done, self.work(done), strict=True):
            arch = arch_of(trial.config.model)
            kept = {
                **result,
                "folder": trial.folder.relative_to(self.folder).as_posix(),
                "arch": None if arch is None else arch.to_dict(),
            }
            found |= {(one.group, one.label, one.seed): kept for one in group}
        return found

    def work(self, tasks: Sequence[Trial | Search]) -> list[dict[str, Any]]:
        """Do `tasks`; what each returned. A training that fails comes as ``{"error": message}``.

        Raises:
            StoppedError: the user stopped.
            UserError: a search failed, a process died, or a task was done before with other settings.
        """
        done_now = {number: self.done[task.folder] for number, task in enumerate(tasks) if task.folder in self.done}
        kept = {number: task.kept() for number, task in enumerate(tasks) if number not in done_now}
        before = {number: result for number, result in kept.items() if result is not None}
        found = {**done_now, **before}
        todo = [number for number in range(len(tasks)) if number not in found]
        if new := {tasks[number].folder for number in before} - self.before:
            self.before |= new
            self.say(f"{len(self.before)} of {len(tasks)} are finished already")

        def done(place: int, value: Any) -> None:
            number = todo[place]
            task = tasks[number]
            if isinstance(value, UserError):
                if task.required:
                    raise value
                value = {"error": str(value)}
            found[number] = self.done[task.folder] = value
            self.say(f"{len(found):>3} of {len(tasks)}  {task.title}: {_told(value)}")

        try:
            work_all([tasks[number] for number in todo], self.jobs, done, self.stopped)
        except StoppedError as error:
            raise StoppedError(f"stopped, all is kept in {self.folder}: go on with --resume") from error
        except DiedError as error:
            title = tasks[todo[error.number]].title
            raise UserError(
                f"the process of {title} died (out of memory?), what is finished is kept in {self.folder}: go on with "
                "--resume, perhaps with fewer --jobs"
            ) from error
        return [found[number] for number in range(len(tasks))]


def alike(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trainings in groups of equal settings, of which one has to be done."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(json.dumps(trial.made_with(), sort_keys=True), []).append(trial)
    return list(groups.values())


def first(trials: Sequence[Trial]) -> Trial:
    """Of trainings with equal settings the one that is finished, or else the first."""
    return next((trial for trial in trials if trial.kept() is not None), trials[0])


def _told(value: Mapping[str, Any]) -> str:
    if "error" in value:
        return str(value["error"])
    if "genotype" in value:
        return str(Arch.from_dict(dict(value)))
    return f"top-1 {value['top1']:.2f} %, {value['macs'] / 1e6:.2f} M MACs, {value['seconds'] / 60:.1f} minutes"
