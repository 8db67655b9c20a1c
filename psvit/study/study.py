"""A study, run: its searches, its trainings, its results; killed at any moment, it goes on where it was."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from psvit.arch import Arch
from psvit.errors import UserError, one_line
from psvit.files import check_writable, recover, sole_writer, write_json
from psvit.measure.machine import machine_info, resolve_device
from psvit.report.command import command_line
from psvit.search.latency import measure_models
from psvit.search.settings import LatencySettings, SearchFolder, SearchSettings, SpaceSettings, SupernetSettings
from psvit.study.known import NOTHING, Known, known_of
from psvit.study.plan import SEARCHED, Group, Network, Study, check_slugs, slug
from psvit.study.report import PAGE, TABLES, figure_files, write_report
from psvit.study.results import Kept, results
from psvit.study.settings import StudySettings
from psvit.study.study_file import search_settings
from psvit.study.trials import OUTPUT, TRIAL, Search, Trial, check_precision, clear_search, clear_trial, computed_in
from psvit.study.workers import DiedError, StoppedError, work_all
from psvit.training.checkpoints import parse_macs
from psvit.training.compare import contender, model_settings
from psvit.training.data import Data, open_data
from psvit.training.learning import make_optimizer
from psvit.training.machine import interrupts
from psvit.training.recipes import Machine, ModelSettings, RunSettings, TrainSettings
from psvit.training.run_folder import versions
from psvit.training.settings import DataSettings
from psvit.variants import default_arch, with_changes

RESULTS = "results.json"
STUDY = "study.json"
"""What the study of a folder asks, and the seconds it took."""

LATENCY = "latency.json"
"""The milliseconds of a study's networks."""

Milliseconds = Mapping[tuple[str, str], float | None]
"""Of a batch through each network, by group and label."""

TRIALS, SEARCHES = "*/*/seed-*", "*/search"
"""Where they are kept in a study's folder."""


def run_study(
    study: Study, settings: StudySettings, machine: Machine, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train all networks of a study with all their seeds, and write what they came to.

    Args:
        study: what is asked.
        settings: where it is kept, how many trainings at a time.
        machine: device and precision of each training, auto being the study's; on a CPU each takes one thread unless
            told otherwise.
        say: takes lines for the user.

    Returns:
        The results; see `Plan.results`, with the machine and the versions beside them, and ``wall_seconds``, those of
        all runs of the study in this folder but for killed ones.

    Raises:
        UserError: a wrong setting, MACs that a network cannot have, a folder of another study; all trainings failed.
        StoppedError: Ctrl-C; the message says how to resume.
    """
    folder = Path(settings.output or f"runs/study/{study.name}")
    command = command_line(shlex.join(["psvit", "study", study.source or study.name]), settings, StudySettings())
    command = command_line(command, machine, Machine())
    if machine.precision == "auto":
        machine = replace(machine, precision=study.precision)
    machine = _one_thread(machine)
    if not settings.dry_run:
        _check_folder(folder, study, settings)
    jobs = settings.jobs or (os.cpu_count() or 1 if resolve_device(machine.device).type == "cpu" else 1)
    planned = Plan(study, folder, machine, known_of(settings.known, study, machine, computed_in(machine)))
    if settings.dry_run:
        return planned.tell(say)
    with sole_writer(folder, f"--output {folder}"):
        return _run_study(planned, settings, jobs, command, say)


def _run_study(
    planned: Plan, settings: StudySettings, jobs: int, command: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """All searches, trainings and results, alone in the study's folder."""
    study, folder, machine = planned.study, planned.folder, planned.machine
    for name in (STUDY, LATENCY):
        recover(folder / name)
    if settings.overwrite:
        planned.clear()
    others = [first(group) for group in alike(planned.trials({}))]  # they need not wait for the searches
    with _recorded(folder, study, machine) as seconds:  # not before: a study of other settings has been refused
        begun = seconds()
        with interrupts() as interrupt:
            crew = Crew(jobs, lambda: interrupt.asked is not None, say, folder)
            found = crew.work([*planned.searches, *others])[: len(planned.searches)]
            archs = {search.group: arch for search, arch in zip(planned.searches, found, strict=True)}
            kept = crew.train(planned.trials(archs))
        milliseconds = planned.latencies(archs, say)
        data = {
            **json.loads(json.dumps(planned.results(kept, archs, milliseconds))),
            "wall_seconds": round(seconds()),
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
        if settings.results:
            write_json(Path(settings.results), data)
        page, *_ = write_report(folder, data, command)
        say(f"{len({one['folder'] for one in kept.values()})} trainings, {(seconds() - begun) / 60:.1f} minutes")
    say(f"report    {page}")
    failed = [result["error"] for result in kept.values() if "error" in result]
    if failed and len(failed) == len(kept):
        raise UserError(f"every training failed, the first with: {failed[0]}")
    return data


class Plan:
    """What a study has to do, checked before anything is trained.

    Args:
        study: what is asked.
        folder: of the study.
        machine: of each training.
        known: networks that need no training.

    Raises:
        UserError: MACs that a network cannot have, names that would share a folder, a hold-out of 0, an optimizer that
            timm has not.
    """

    def __init__(self, study: Study, folder: Path, machine: Machine, known: Known = NOTHING) -> None:
        self.study, self.folder, self.machine, self.known = study, folder, machine, known
        self.opened: dict[DataSettings, Data] = {}
        check_slugs([group.name for group in study.groups], "groups")
        for group in study.groups:
            own = ["search"] if group.searches else []  # a folder beside the networks'
            check_slugs([*own, *(network.label for network in group.networks)], "networks")
            if group.data.holdout == 0:
                raise UserError(f"group {group.name} has holdout 0: the best epoch is chosen on a hold-out, give 0.1")
            try:
                make_optimizer(nn.Linear(1, 1), group.recipe, 1)
            except UserError as error:
                raise UserError(f"recipe of group {group.name}: {error}") from error
        self.models = {
            (group.name, network.label): self._model(group, network)
            for group in study.groups
            for network in group.networks
            if network.network != SEARCHED
        }
        self.searches = [
            self._search(group)
            for group in study.groups
            if any(one.network == SEARCHED and (group.name, one.label) not in known.rows for one in group.networks)
        ]

    def trials(self, archs: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
        """The trainings: first those of every network's first seed, then the second's, and so on.

        Args:
            archs: what the searches found, by group; networks that still have to be searched are left out.
        """
        models = self.networks(archs)
        found = [
            (turn, self._trial(group, network, seed, models[group.name, network.label]))
            for group in self.study.groups
            for network in group.networks
            if (group.name, network.label) in models and (group.name, network.label) not in self.known.rows
            for turn, seed in enumerate(network.seeds)
        ]
        return [trial for _, trial in sorted(found, key=lambda pair: pair[0])]

    def networks(self, archs: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], ModelSettings]:
        """The networks by group and label; `archs` as of `trials`."""
        return self.models | {
            (group.name, network.label): model_settings(Arch.from_dict(dict(archs[group.name])))
            for group in self.study.groups
            for network in group.networks
            if network.network == SEARCHED and group.name in archs
        }

    def tell(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Say what there is to do, and return nothing."""
        for search in self.searches:
            say(f"{search.title}: {' '.join(search.settings.search.budget)}")
        for group in self.study.groups:
            images = len(self._data(group).train)
            say(f"{group.name}: {group.data.data}, {images} images, {group.recipe.epochs} epochs")
            for network in group.networks:
                model = self.models.get((group.name, network.label))
                what = "what the search finds" if model is None else described(model)
                what = "known" if (group.name, network.label) in self.known.rows else what
                say(f"  {network.label}: {what}, seeds {' '.join(map(str, network.seeds))}")
        return {}

    def results(self, kept: Kept, archs: Mapping[str, Any], milliseconds: Milliseconds) -> dict[str, Any]:
        """The results of what the trainings came to, the searches found and the networks take.

        Returns:
            See `psvit.study.results.results`. Each row has ``latency_ms`` besides, None of a network that could not be
            measured, and ``latency`` says how; a group that searches has ``search_seconds``: of the supernet's training
            and the scoring, None of a search that was interrupted.
        """
        searched = {**self.known.searched, **archs}
        found = results(self.study, kept, searched, self.shapes(), self.train_images(), self.known)
        took = dict(self.known.search_seconds) | {search.group: search.seconds() for search in self.searches}
        for entry, group in zip(found["groups"], self.study.groups, strict=True):
            for row in entry["rows"]:
                row["latency_ms"] = milliseconds.get((group.name, row["label"]))
            if group.searches:
                entry["search_seconds"] = took.get(group.name)
        return {**found, "latency": asdict(LatencySettings())}

    def latencies(self, archs: Mapping[str, Any], say: Callable[[str], None]) -> Milliseconds:
        """Milliseconds of a batch through each network, those of an earlier study too, on the machine of the trainings.

        They are measured once, since another measurement has other figures. Where a network comes to it, or on another
        machine, all are measured anew: only what takes turns can be compared.
        """
        settings, device, shapes = LatencySettings(), resolve_device(self.machine.device), self.shapes()
        models = self.networks({**self.known.searched, **archs})
        keys = {where: json.dumps([asdict(model), shapes[where[0]]]) for where, model in models.items()}
        info = machine_info(device)
        measured = {name: info[name] for name in ("torch", "device", "device_name", "cpu")}
        measured |= {"threads": self.machine.threads or info["threads"], **asdict(settings)}
        kept = _kept_latencies(self.folder / LATENCY, measured)
        if not kept.keys() >= set(keys.values()):
            different = {key: (models[where], shapes[where[0]]) for where, key in keys.items()}
            say(f"measuring the latency of {len(different)} networks")
            seconds = measure_models(different, settings, device, self.machine.threads)
            kept = {key: None if one is None else round(1000 * one, 4) for key, one in seconds.items()}
            rows = [
                {**dict(zip(("model", "shape"), json.loads(key), strict=True)), "milliseconds": one}
                for key, one in kept.items()
            ]
            write_json(self.folder / LATENCY, {**measured, "networks": rows})
        return {where: kept[key] for where, key in keys.items()}

    def shapes(self) -> dict[str, dict[str, Any]]:
        """Of each group's images: their size, channels and classes."""
        opened = {group.name: self._data(group) for group in self.study.groups}
        return {
            name: {"img_size": list(data.img_size), "in_chans": data.in_chans, "num_classes": len(data.classes)}
            for name, data in opened.items()
        }

    def train_images(self) -> dict[str, int]:
        """On how many images each group is trained."""
        return {group.name: len(self._data(group).train) for group in self.study.groups}

    def clear(self) -> None:
        """Remove what this study wrote, and nothing else that is in its folder."""
        trials = {path.parent for name in (TRIAL, OUTPUT) for path in self.folder.glob(f"{TRIALS}/{name}")}
        searches = {path.parent for path in self.folder.glob(f"{SEARCHES}/{OUTPUT}")}
        for folders, clear in ((trials, clear_trial), (searches, clear_search)):
            for folder in sorted(folders):
                with sole_writer(folder, str(folder)):
                    clear(folder)
                for place in (folder, *folder.parents[: len(folder.relative_to(self.folder).parts) - 1]):
                    with suppress(OSError):  # it holds something of the user's
                        place.rmdir()
        for name in (STUDY, LATENCY, RESULTS, PAGE, TABLES):
            (self.folder / name).unlink(missing_ok=True)
        for path in figure_files(self.folder, self.study.name, 99):  # the study may have had more than now
            path.unlink(missing_ok=True)

    def _data(self, group: Group) -> Data:
        if group.data not in self.opened:
            self.opened[group.data] = open_data(group.data)
        return self.opened[group.data]

    def _model(self, group: Group, network: Network) -> ModelSettings:
        data, changes = self._data(group), dict(network.changes)
        base = default_arch(data.img_size)
        try:
            macs = parse_macs(group.macs) if group.macs and network.scaled else None
            if "genotype" in changes:
                base = with_changes(base, genotype=changes.pop("genotype"))
            return contender(network.network, base, data, macs, changes)
        except UserError as error:
            raise UserError(f"network {network.label} of group {group.name}: {error}") from error

    def _trial(self, group: Group, network: Network, seed: int, model: ModelSettings) -> Trial:
        folder = self.folder / slug(group.name) / slug(network.label) / f"seed-{seed}"
        settings = TrainSettings(
            model=model,
            data=replace(group.data, seed=seed),
            recipe=group.recipe,
            machine=self.machine,
            run=RunSettings(str(folder)),
        )
        return Trial(
            group.name,
            network.label,
            seed,
            self.study.reads,
            settings,
            self.study.source or self.study.name,
            group.macs,
        )

    def _search(self, group: Group) -> Search:
        what = f"search of group {group.name}"
        parts = search_settings(dict(group.search), what)
        parts["search"] |= {
            "budget": (str(group.macs),),
            "output": str(self.folder / slug(group.name) / "search"),
        }
        try:
            settings = SearchSettings(
                search=SearchFolder(**parts["search"]),
                space=SpaceSettings(**parts["space"]),
                supernet=SupernetSettings(**parts["supernet"]),
                data=group.data,
                recipe=group.recipe,
                machine=self.machine,
            )
        except UserError as error:
            raise UserError(f"{what}: {one_line(error)}") from error
        return Search(group.name, settings)


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
            arch = arch_of(trial.settings.model)
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


def arch_of(model: ModelSettings) -> Arch | None:
    """The Arch of a planned network; None of a model of timm."""
    changes = model.arch_changes
    return Arch(model.model, **changes) if "widths" in changes else None


def described(model: ModelSettings) -> str:
    """A network in few words."""
    arch = arch_of(model)
    if arch is None:
        return " ".join([model.model, *(f"{name} {value}" for name, value in model.model_args.items())])
    return str(arch)


def _told(value: Mapping[str, Any]) -> str:
    if "error" in value:
        return str(value["error"])
    if "genotype" in value:
        return str(Arch.from_dict(dict(value)))
    return f"top-1 {value['top1']:.2f} %, {value['macs'] / 1e6:.2f} M MACs, {value['seconds'] / 60:.1f} minutes"


def _one_thread(machine: Machine) -> Machine:
    """A training has the same numbers however many run at a time: on a CPU each takes one thread."""
    if machine.threads is None and resolve_device(machine.device).type == "cpu":
        return replace(machine, threads=1)
    return machine


def _check_folder(folder: Path, study: Study, settings: StudySettings) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder as --output")
    check_writable(folder, f"--output {folder}")
    if settings.results and Path(settings.results).is_dir():
        raise UserError(f"--results {settings.results} is a folder: give a file")
    begun = any((folder / name).exists() for name in (STUDY, RESULTS))
    begun = begun or any(any(folder.glob(f"{kind}/{OUTPUT}")) for kind in (TRIALS, SEARCHES))
    if settings.resume and not begun:
        raise UserError(f"{folder} holds no study to resume: leave out --resume, or check --output")
    if begun and not (settings.resume or settings.overwrite):
        raise UserError(
            f"{folder} already holds a study: give --resume to go on, --overwrite to replace it, or another --output"
        )
    if settings.resume:
        _check_same(folder, study)


def _check_same(folder: Path, study: Study) -> None:
    """Refuse to go on with another study: it may have more than the folder's, not less.

    Raises:
        UserError: another name or split, quick or not, or a group or a network that the folder's study has besides.
    """
    before, path = _begun(folder), folder / STUDY
    if not before:  # an older psvit has begun it
        return
    try:
        networks = {group["name"]: [one["label"] for one in group["networks"]] for group in before["groups"]}
        name, reads, quick = (before[key] for key in ("name", "reads", "quick"))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is broken ({error!r}): remove it, or start anew with --overwrite") from error
    own = {group.name: [network.label for network in group.networks] for group in study.groups}
    gone = [f"group {group!r}" for group in networks if group not in own]
    gone += [
        f"network {label!r} of group {group!r}"
        for group in networks
        for label in networks[group]
        if group in own and label not in own[group]
    ]
    if name != study.name:
        told = f"the study {name!r}, not {study.name!r}"
    elif reads != study.reads:
        told = f"a study that reads {reads}, not {study.reads}"
    elif quick != study.quick:
        told = f"a study {'with' if quick else 'without'} --quick"
    elif gone:
        told = f"a study with the {gone[0]}, which {study.source or study.name} has not"
    else:
        return
    raise UserError(
        f"{folder} holds {told}: resume with the study that it holds, give another --output, or start anew with "
        "--overwrite"
    )


@contextmanager
def _recorded(folder: Path, study: Study, machine: Machine) -> Iterator[Callable[[], float]]:
    """Keep in the folder what is asked of it, in which precision, and the seconds of all its runs.

    A run that was stopped or failed is counted, one that was killed (SIGKILL) is not: nothing is left to write.

    Yields:
        The seconds so far, those of earlier runs included.

    Raises:
        UserError: the folder's study was computed in another precision.
    """
    before, start = _begun(folder), time.perf_counter()
    check_precision(folder, before.get("computed_in"), machine)
    kept = {**study.to_dict(), "computed_in": computed_in(machine)}

    def seconds() -> float:
        return round(float(before.get("wall_seconds", 0)) + time.perf_counter() - start, 1)

    write_json(folder / STUDY, {**kept, "wall_seconds": seconds()})
    try:
        yield seconds
    finally:
        write_json(folder / STUDY, {**kept, "wall_seconds": seconds()})


def _kept_latencies(path: Path, measured: Mapping[str, Any]) -> dict[str, float | None]:
    """The milliseconds that a study's folder keeps, if they were measured so; by model and shape, as JSON."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if measured != {name: kept[name] for name in measured}:
            return {}
        return {json.dumps([one["model"], one["shape"]]): one["milliseconds"] for one in kept["networks"]}
    except (OSError, ValueError, KeyError, TypeError):  # none, or a broken one: they are measured anew
        return {}


def _begun(folder: Path) -> dict[str, Any]:
    """What the folder's study.json holds; nothing where there is none.

    Raises:
        UserError: it is broken.
    """
    path = folder / STUDY
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is broken ({error!r}): remove it, or start anew with --overwrite") from error
