"""Runs a study: its searches, trainings and results; a killed study can be resumed."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from psvit.data.image_cache import remove_cache
from psvit.engine.accelerator import computed_in
from psvit.engine.hardware import machine_info, resolve_device, versions
from psvit.engine.interrupts import interrupts
from psvit.engine.train_config import Machine
from psvit.errors import UserError
from psvit.files import recover, sole_writer, write_json
from psvit.report.command import command_line
from psvit.studies.definition import Study
from psvit.studies.known import known_of
from psvit.studies.plan import Plan
from psvit.studies.study_config import StudyConfig
from psvit.studies.study_folder import LATENCY, RESULTS, STUDY, begun_groups, check_folder, clear_study, recorded
from psvit.studies.study_page import write_report
from psvit.studies.task_runner import TaskRunner, alike


def run_study(
    study: Study, config: StudyConfig, machine: Machine, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train all networks of a study with all their seeds, and write the results.

    Args:
        study: the study to run.
        config: the folder, and how many trainings run at a time.
        machine: device and precision of each training; auto is the study's precision; one CPU thread each by default.
        say: prints lines for the user.

    Returns:
        The results (see `Plan.results`) with the machine, the versions and ``wall_seconds`` of all runs of the study in
        this folder, except killed ones (None if an older psvit started it).

    Raises:
        UserError: a wrong setting, MACs that a network cannot reach, a folder of another study; all trainings failed.
        StoppedError: Ctrl-C; the message says how to resume.
    """
    folder = Path(config.output or f"runs/study/{study.name}")
    command = command_line(shlex.join(["psvit", "study", study.source or study.name]), config, StudyConfig())
    command = command_line(command, machine, Machine())
    if machine.precision == "auto":
        machine = replace(machine, precision=study.precision)
    machine = _one_thread(machine)
    if config.groups:
        study = study.only([*config.groups, *(begun_groups(folder) if config.resume else ())])
    if not config.dry_run:
        check_folder(folder, study, config)
    jobs = config.jobs or (os.cpu_count() or 1 if resolve_device(machine.device).type == "cpu" else 1)
    known = known_of(config.known, study, computed_in(machine))
    planned = Plan(study, folder, machine, known)
    for note in known.notes:
        say(f"note      {note}")
    if config.dry_run:
        return planned.tell(say)
    with sole_writer(folder, f"--output {folder}"):
        return _run_study(planned, config, jobs, command, say)


def _run_study(
    planned: Plan, config: StudyConfig, jobs: int, command: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """All searches, trainings and results, with the study's folder locked."""
    study, folder, machine = planned.study, planned.folder, planned.machine
    for name in (STUDY, LATENCY):
        recover(folder / name)
    if config.overwrite:
        clear_study(folder, study.name)
    begun = time.perf_counter()
    others = [group[0] for group in alike(planned.trials({}))]  # trainings that do not depend on a search
    images = planned.image_lists()
    with recorded(folder, study, machine, images) as seconds:
        with interrupts() as interrupt:
            runner = TaskRunner(jobs, lambda: interrupt.asked is not None, say, folder)
            found = runner.run([*planned.searches, *others])[: len(planned.searches)]
            archs = {search.group: arch for search, arch in zip(planned.searches, found, strict=True)}
            kept = runner.train(planned.trials(archs))
        remove_cache(folder)  # not one in another place, by --image-cache-dir
        milliseconds = planned.latencies(archs, say)
        data = {
            **json.loads(json.dumps(planned.results(kept, archs, milliseconds))),
            "wall_seconds": seconds(),
            "machine": {
                **machine_info(resolve_device(machine.device)),
                "jobs": jobs,
                "threads": machine.threads,
                "precision": machine.precision,
                "computed_in": computed_in(machine),
            },
            "versions": versions(),
        }
        write_json(folder / RESULTS, data)
        if config.results:
            write_json(Path(config.results), data)
        page, *_ = write_report(folder, data, command)
        trained = {one["folder"] for one in kept.values()}
        if all(folder / one in runner.resumed for one in trained):
            say(f"finished  {folder}: all {len(trained)} trainings were done, its results are written again")
        else:
            say(f"{len(trained)} trainings, {(time.perf_counter() - begun) / 60:.1f} minutes")
    say(f"report    {page}")
    failed = [result["error"] for result in kept.values() if "error" in result]
    if failed and len(failed) == len(kept):
        raise UserError(f"every training failed, the first with: {failed[0]}")
    return data


def _one_thread(machine: Machine) -> Machine:
    """On a CPU use one thread, so that results do not depend on how many trainings run at a time."""
    if machine.threads is None and resolve_device(machine.device).type == "cpu":
        return replace(machine, threads=1)
    return machine
