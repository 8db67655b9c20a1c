"""One training of a study: a network, a seed, its figures, kept in a folder of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from psvit.arch.model_config import to_plain
from psvit.engine.accelerator import computed_in
from psvit.engine.hardware import versions
from psvit.engine.resuming import (
    LOG,
    RUN_CONFIG,
    differing,
)
from psvit.engine.run_folder import clear_run
from psvit.engine.train_config import Machine, TrainConfig
from psvit.errors import UserError, flag
from psvit.files import recover, write_json
from psvit.pipeline.compare import network_name
from psvit.search.search import search
from psvit.search.search_config import SearchConfig
from psvit.search.search_folder import INHERITED, OWN, SECONDS, SUPERNET, journals_of
from psvit.studies.plan import IDLE, Split
from psvit.tasks.classification.classify import train
from psvit.tasks.classification.evaluate import evaluate_checkpoint

TRIAL = "trial.json"
OUTPUT = "output.txt"
"""What a training said."""

PARTS = ("model", "data", "recipe", "machine")
"""The parts of its settings that a training's figures depend on."""


def clear_trial(folder: Path) -> None:
    """Remove what a trial wrote, and nothing else that the user may keep in its folder."""
    clear_run(folder)
    for name in (TRIAL, OUTPUT):
        (folder / name).unlink(missing_ok=True)


def clear_search(folder: Path) -> None:
    """Remove what a search wrote, and nothing else that the user may keep in its folder."""
    for name in (SUPERNET, INHERITED):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in [*journals_of(folder), *(folder / name for name in (*OWN, OUTPUT))]:
        path.unlink(missing_ok=True)


def check_precision(folder: Path, before: str | None, machine: Machine) -> None:
    """Refuse to mix precisions.

    Args:
        folder: of what was computed before.
        before: its precision; None where an older psvit did not keep it.
        machine: of what is asked now.

    Raises:
        UserError: auto came to another precision then, or to one that is not told.
    """
    now = computed_in(machine)
    if machine.precision != "auto" or before == now:
        return
    told = f"was computed in {before}" if before else "does not tell in which precision it was computed"
    onward = "resume on the machine it was begun on, give" if before else "give"
    raise UserError(
        f"{folder} {told}, and --precision auto comes to {now} here: {onward} another --output, or start anew with "
        "--overwrite"
    )


@dataclass(frozen=True)
class Trial:
    """A training of a study.

    Args:
        group: its group, label: of its network.
        seed: of the training.
        reads: the split whose figures count.
        config: of the training; its run.output is the trial's folder.
        study: the study, as the user named it.
        macs: to which the study scales the group's networks, as text; None for none.
    """

    group: str
    label: str
    seed: int
    reads: Split
    config: TrainConfig
    study: str
    macs: str | None
    required: ClassVar[bool] = False  # a study goes on without it

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return Path(self.config.run.output)

    @property
    def title(self) -> str:
        """For lines to the user."""
        return f"{self.group}, {self.label}, seed {self.seed}"

    def kept(self) -> dict[str, Any] | None:
        """The result of a trial that is finished; None if it is not.

        Raises:
            UserError: it was trained with other settings, or in another precision.
        """
        path = self.folder / TRIAL
        recover(path)
        if not path.is_file():
            self._check_begun()
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            before, result = dict(found["made_with"]), dict(found["result"])
            _ = [result[name] for name in ("network", "macs", "params", "top1", "history")]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is broken ({error!r}): remove its folder, or start anew with --overwrite"
            ) from error
        self._check_same(before, self.made_with(), found.get("scaled_to"))
        check_precision(self.folder, found.get("computed_in"), self.config.machine)
        return result

    def _check_begun(self) -> None:
        """Refuse to go on with a training of other settings, before a study begins, and not as one that failed."""
        path = self.folder / RUN_CONFIG
        if not path.is_file():
            return
        try:
            config = json.loads(path.read_text(encoding="utf-8"))["config"]
            before = _flat([dict(config[part]) for part in PARTS])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is broken ({error!r}): remove its folder, or start anew with --overwrite"
            ) from error
        now = {name: value for name, value in self.made_with().items() if name != "reads"}
        self._check_same(before, now, None)

    def _check_same(self, before: Mapping[str, Any], made_with: Mapping[str, Any], macs: str | None) -> None:
        now = json.loads(json.dumps(made_with))
        other = differing(before, now)
        if not other:
            return
        name = other[0]
        old, new = ("null" if made.get(name) is None else made[name] for made in (before, now))
        if name in asdict(self.config.machine):
            told = f"{flag(name)} {old}, not {new}"
        elif name in asdict(self.config.model.flags()) and macs not in (None, self.macs):
            told = f"macs {macs}, not {self.macs} as {self.study} says"
        elif name in asdict(self.config.model.flags()):
            told = f"another network, {name} {old}, than {self.study} asks for, {name} {new} (other macs change it too)"
        else:
            told = f"{name} {old}, not {new} as {self.study} says"
        raise UserError(
            f"{self.folder} was trained with {told}: resume with the same settings, give another --output, or start "
            "anew with --overwrite"
        )

    def made_with(self) -> dict[str, Any]:
        """All settings that its figures depend on, flat."""
        config = to_plain(self.config)
        return {**_flat([config[part] for part in PARTS]), "reads": self.reads}

    def __call__(self) -> dict[str, Any]:
        """Train, evaluate, keep the result and return it; what is finished already is not done again.

        Raises:
            UserError: the training failed.
            StoppedError: it was stopped.
        """
        if (kept := self.kept()) is not None:
            return kept
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / OUTPUT).open("a", encoding="utf-8") as file, redirect_stdout(file):
            result = self._result()
        kept = {
            "made_with": self.made_with(),
            "computed_in": computed_in(self.config.machine),
            "scaled_to": self.macs,
            "result": result,
            "versions": versions(),
        }
        write_json(self.folder / TRIAL, kept)
        return result

    def _result(self) -> dict[str, Any]:
        run = replace(self.config.run, resume=True)
        best = train(replace(self.config, run=run), lambda line: print(line, flush=True))
        log = [json.loads(line) for line in (self.folder / LOG).read_text(encoding="utf-8").splitlines()]
        if self.reads == "test":
            metrics, _ = evaluate_checkpoint(str(self.folder / "best"), self.config.data, self.config.machine)
            figures: dict[str, Any] = dict(metrics.to_dict())
        else:
            figures = {name: log[-1][name] for name in ("top1", "top5", "loss", "images")}
        facts = json.loads((self.folder / "last" / "metrics.json").read_text(encoding="utf-8"))
        return {
            "network": network_name(self.folder / "last", self.config.model),
            "macs": facts["macs"],
            "params": facts["params"],
            **figures,
            "validation_top1": best["top1"],
            "epoch": best["epoch"],
            "history": [[line["epoch"], line["top1"], line["train_loss"]] for line in log],
            "steps": log[-1]["step"],
            "seconds": sum(self.trained_images(log) / max(line["images_per_second"], 0.1) for line in log),
        }

    def trained_images(self, log: list[dict[str, Any]]) -> int:
        """Images that an epoch took."""
        return int(log[0]["step"] * self.config.recipe.global_batch(1))


def _flat(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of a training by name, but for those that change no figure."""
    return {k: v for part in parts for k, v in part.items() if k not in IDLE}


@dataclass(frozen=True)
class Search:
    """The search for a group's network.

    Args:
        group: its name.
        config: of the search; its folder is the trial's.
    """

    group: str
    config: SearchConfig
    required: ClassVar[bool] = True

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return Path(self.config.search.output)

    @property
    def title(self) -> str:
        """For lines to the user."""
        return f"{self.group}, search"

    def kept(self) -> dict[str, Any] | None:
        """None: a search that is finished finds its own result again, and checks its settings."""
        return None

    def seconds(self) -> float | None:
        """Seconds that the supernet's training and the scoring took; None of a search that was interrupted."""
        try:
            return round(sum(json.loads((self.folder / SECONDS).read_text(encoding="utf-8")).values()), 1)
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def __call__(self) -> dict[str, Any]:
        """Search, or go on with the search; the Arch that it chose, as plain data.

        Raises:
            UserError: the search failed.
            StoppedError: it was stopped.
        """
        folder = replace(self.config.search, resume=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / OUTPUT).open("a", encoding="utf-8") as file, redirect_stdout(file):
            found = search(replace(self.config, search=folder), lambda line: print(line, flush=True))
        return found.arch.to_dict()
