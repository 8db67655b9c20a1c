"""The flags of `psvit study`. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from psvit.config import Count, Text
from psvit.engine.train_config import FolderConfig


@dataclass(frozen=True)
class StudyConfig(FolderConfig):
    """The folder of a study, and how it is run.

    Args:
        output: folder of the study; by default runs/study/NAME.
        results: JSON file to write the results to as well, for example docs/results/NAME.json.
        known: results.json of an earlier study; networks trained there with the same settings are not trained again.
        quick: a small version of the study, for minutes instead of hours; its metrics mean little.
        jobs: trainings at a time; by default one per processor, or one on devices other than a CPU.
        groups: names of the groups to run now, and those that the folder holds already; by default all. The others may
            follow with --resume.
        dry_run: list the trainings, but do not train.
    """

    output: str | None = None  # type: ignore[assignment]
    results: str | None = None
    known: str | None = None
    quick: bool = False
    jobs: Count | None = None
    groups: tuple[Text, ...] = ()
    dry_run: bool = False
