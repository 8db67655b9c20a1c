"""Settings of a study on the command line, as plain data: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from psvit.errors import UserError


@dataclass(frozen=True)
class StudyConfig:
    """Where a study is kept, and how it is run.

    Args:
        output: folder of the study; by default runs/study/NAME.
        results: JSON file to write the results to as well, for example docs/results/NAME.json.
        known: results.json of an earlier study: networks that it trained alike are taken from it, not trained again.
        quick: a small version of the study, for minutes instead of hours; its figures mean little.
        jobs: trainings at a time; by default one for each processor, or one on other devices than a CPU.
        resume: go on with the study that the folder holds, or begin it; trainings that are finished are kept.
        overwrite: throw away the study that the folder holds.
        dry_run: list the trainings, train nothing.
    """

    output: str | None = None
    results: str | None = None
    known: str | None = None
    quick: bool = False
    jobs: int | None = None
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite contradict each other: give one of them")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs {self.jobs!r} is not a whole number of at least 1")
