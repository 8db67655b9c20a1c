"""The tasks of a study: a training of a network with one seed, or a search, each in its own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from psvit.arch.model_config import to_plain
from psvit.engine.accelerator import computed_in
from psvit.engine.checkpoints import read_metrics
from psvit.engine.hardware import versions
from psvit.engine.resuming import RUN_CONFIG, differing
from psvit.engine.run_folder import read_log
from psvit.engine.train_config import Machine, TrainConfig
from psvit.errors import UserError, flag
from psvit.files import recover, write_json
from psvit.pipeline.compare import network_name
from psvit.search.search import search
from psvit.search.search_config import SearchConfig
from psvit.search.search_folder import SECONDS
from psvit.studies.definition import IDLE, Split
from psvit.tasks.classification.classify import train
from psvit.tasks.classification.evaluate import evaluate_checkpoint

TRIAL = "trial.json"
OUTPUT = "output.txt"
"""The printed output of a task."""

PARTS = ("model", "data", "recipe", "machine")
"""The parts of a training's settings that its results depend on."""


def read_record(path: Path, *names: str) -> dict[str, Any] | None:
    """The content of a JSON file in a study's folder; None if there is no file.

    Args:
        path: the file.
        names: required entries.

    Raises:
        UserError: it is broken.
    """
    try:
        found: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        _ = [found[name] for name in names]
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is broken ({error!r}): remove it, or start anew with --overwrite") from error


def check_precision(folder: Path, before: str | None, machine: Machine) -> None:
    """Refuse to mix precisions.

    Args:
        folder: of the earlier results.
        before: their precision; None if an older psvit did not record it.
        machine: of this run.

    Raises:
        UserError: auto was another or an unrecorded precision.
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
        reads: the split whose metrics count.
        config: of the training; its run.output is the trial's folder.
        study: the study, as given by the user.
        macs: MACs to which the group's networks are scaled, as text; None for no scaling.
    """

    group: str
    label: str
    seed: int
    reads: Split
    config: TrainConfig
    study: str
    macs: str | None
    required: ClassVar[bool] = False  # if it fails, the study continues

    @property
    def folder(self) -> Path:
        """Its folder."""
        return Path(self.config.run.output)

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.group}, {self.label}, seed {self.seed}"

    def kept(self) -> dict[str, Any] | None:
        """The result if the trial is finished, else None.

        Raises:
            UserError: the folder holds a training with other settings or in another precision.
        """
        path = self.folder / TRIAL
        recover(path)
        if (found := read_record(path, "made_with", "result")) is not None:
            self._check_same(found["made_with"], found.get("scaled_to"))
            check_precision(self.folder, found.get("computed_in"), self.config.machine)
            result: dict[str, Any] = found["result"]
            return result
        if (begun := read_record(self.folder / RUN_CONFIG, "config")) is not None:
            self._check_same({**_flat(begun["config"]), "reads": self.reads}, None)
        return None

    def _check_same(self, before: Mapping[str, Any], macs: str | None) -> None:
        now = json.loads(json.dumps(self.made_with()))
        other = differing(before, now)
        if not other:
            return
        name = other[0]
        if name in asdict(self.config.machine):
            told = f"{flag(name)} {before.get(name)}, not {now.get(name)}"
        elif name in asdict(self.config.model.flags()) and macs not in (None, self.macs):
            told = f"macs {macs}, not {self.macs} as {self.study} says"
        else:
            told = f"{name} {json.dumps(before.get(name))}, not {json.dumps(now.get(name))} as {self.study} says"
        raise UserError(
            f"{self.folder} was trained with {told}: resume with the same settings, give another --output, or "
            "start anew with --overwrite"
        )

    def made_with(self) -> dict[str, Any]:
        """The settings that its results depend on, as one flat dict."""
        return {**_flat(to_plain(self.config)), "reads": self.reads}

    def __call__(self) -> dict[str, Any]:
        """Train, evaluate, save the result and return it; a finished trial is not repeated.

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
        log = read_log(self.folder)
        if self.reads == "test":
            metrics, _ = evaluate_checkpoint(str(self.folder / "best"), self.config.data, self.config.machine)
            measured: Mapping[str, Any] = metrics.to_dict()
        else:
            measured = {name: log[-1][name] for name in ("top1", "top5", "loss", "images")}
        facts = read_metrics(self.folder / "last")
        images = log[0]["step"] * self.config.recipe.global_batch(1)  # of an epoch
        return {
            "network": network_name(self.folder / "last", self.config.model),
            "macs": facts["macs"],
            "params": facts["params"],
            "lr": self.config.recipe.scaled_lr(1),
            **measured,
            "validation_top1": best["top1"],
            "epoch": best["epoch"],
            "history": [[line["epoch"], line["top1"], line["train_loss"]] for line in log],
            "steps": log[-1]["step"],
            "seconds": sum(images / max(line["images_per_second"], 0.1) for line in log),
        }


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a training's results depend on, by name."""
    return {name: value for part in PARTS for name, value in config[part].items() if name not in IDLE}


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
        """Its folder."""
        return Path(self.config.search.output)

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.group}, search"

    def kept(self) -> dict[str, Any] | None:
        """None: a finished search reads its own result again, and checks its settings."""
        return None

    def seconds(self) -> float | None:
        """Seconds of the supernet's training and the scoring; None if the search was interrupted."""
        parts = read_record(self.folder / SECONDS)
        return None if parts is None else round(sum(parts.values()), 1)

    def __call__(self) -> dict[str, Any]:
        """Run or resume the search; returns the chosen Arch as plain data.

        Raises:
            UserError: the search failed.
            StoppedError: it was stopped.
        """
        folder = replace(self.config.search, resume=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / OUTPUT).open("a", encoding="utf-8") as file, redirect_stdout(file):
            found = search(replace(self.config, search=folder), lambda line: print(line, flush=True))
        return found.arch.to_dict()
