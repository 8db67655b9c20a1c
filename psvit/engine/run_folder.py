"""The folder of a training: its settings, log, checkpoints, and the state from which it resumes."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from torch import nn

import psvit
from psvit.arch.model_config import to_plain
from psvit.data.image_list import IMAGES, ImageList, check_unchanged, list_files, read_image_list
from psvit.data.image_sets import ImageSet
from psvit.engine.checkpoints import (
    config_of,
    read_metrics,
    write_checkpoint,
)
from psvit.engine.devices import by_the_first, computed_in
from psvit.engine.open_model import network_facts
from psvit.engine.state import TrainState, rank
from psvit.engine.train_config import LearnConfig
from psvit.engine.trained_on import TRAINED_ON, cut_of
from psvit.engine.trainer import Trainer
from psvit.errors import UserError, flag
from psvit.files import check_writable, opened_for_torch, recover, replacing, write_json, writing

RUN_CONFIG, STATE, LOG, TABLE = "run_config.json", "state.pt", "log.jsonl", "log.csv"
RESULTS = "results.json"  # of a comparison, in the folder above its runs
SEARCHED = ("front.json", "arch.json", "journal.jsonl", "supernet")  # of a search
FILES, CHECKPOINTS = (RUN_CONFIG, IMAGES, STATE, LOG, TABLE), ("best", "last")
FREE_TO_CHANGE = (
    "run.",
    "search.output",
    "search.resume",
    "search.overwrite",
    "search.save_every",
    "machine.threads",
    "data.workers",
    "data.accept_changes",
    "evolution.storage",
)  # what may differ when a run is resumed
PATHS = ("data", "data_dir", "model", "teacher")  # what may be spelled otherwise


def refuse_run(path: Path) -> None:
    """Refuse a folder with a run in it that has saved anything.

    Raises:
        UserError: it holds one.
    """
    if any((path / name).exists() for name in (STATE, LOG, RESULTS, *SEARCHED)):
        raise UserError(
            f"{path} already holds a run: give --resume to go on, --overwrite to replace it, or another --output"
        )


def begun(path: Path, resume: bool, accelerator: Accelerator) -> bool:
    """Whether there is a run to resume, as the first process sees it; ``--resume`` begins one where there is none yet.

    Raises:
        UserError: what is there tells no settings.
    """
    if not resume:
        return False
    if found := by_the_first(accelerator, (path / RUN_CONFIG).is_file):
        return found
    other = next((name for name in (STATE, LOG, RESULTS, *SEARCHED) if (path / name).exists()), None)
    if other is not None:
        raise UserError(
            f"{path} holds {other}, but no {RUN_CONFIG} that would tell whose it is: give another --output, or start "
            "anew with --overwrite"
        )
    return False


def record_of(config: Any, accelerator: Accelerator) -> dict[str, Any]:
    """What a run's run_config.json holds: settings (a dataclass with a recipe), what they come to here, versions."""
    return {
        "config": to_plain(config),
        "global_batch": config.recipe.global_batch(accelerator.num_processes),
        "computed_in": computed_in(config.machine),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what figures depend on."""
    return {
        "psvit": psvit.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def check_same(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings than it was started with.

    Args:
        path: the run's folder; record: see `record_of`.

    Raises:
        UserError: its settings are broken or cannot be read, or one of them differs.
    """
    try:
        before = json.loads((path / RUN_CONFIG).read_text(encoding="utf-8"))
        old, batch = flat(before["config"]), before["global_batch"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / RUN_CONFIG} is broken ({error!r}): start anew with --overwrite") from error
    now = json.loads(json.dumps(record))
    new = flat(now["config"])
    for name in differing(old, new):
        if name.startswith(FREE_TO_CHANGE):
            continue
        if name not in old and not new[name]:
            raise UserError(f"{path} was begun by an older version, which cut the splits of a folder in another way: "
                            "start anew with --overwrite")  # fmt: skip
        raise UserError(
            f"{path} was trained with {flag(name.rpartition('.')[2])} {_plainly(old.get(name))}, not "
            f"{_plainly(new.get(name))}: resume with the same settings, or start anew with --overwrite"
        )
    if before.get("computed_in", now.get("computed_in")) != now.get("computed_in"):  # --precision auto, elsewhere
        raise UserError(
            f"{path} was computed in {before['computed_in']}, and --precision {new['machine.precision']} comes to "
            f"{now['computed_in']} here: resume it on a machine like the one it was begun on, or start anew "
            "with --overwrite"
        )
    if batch != now["global_batch"]:
        raise UserError(
            f"{path} has a global batch of {batch}, not {now['global_batch']}: resume with as many processes"
        )


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ, of both by their dotted names or by their own.

    One that an older version did not know is the same while it is off; but not of a folder, whose splits were cut in
    another way then.
    """
    named = str(new.get("data.data", new.get("data")))
    unknown = set() if Path(named).is_dir() else {name for name in new if name not in old and not new[name]}
    return [name for name in sorted({*old, *new} - unknown) if not same_value(name, old.get(name), new.get(name))]


def same_value(name: str, old: Any, new: Any) -> bool:
    """Whether a setting is as it was; a folder may be spelled otherwise, as ``I/`` or ``./I`` for ``I``."""
    if old == new:
        return True
    if name.rpartition(".")[2] not in PATHS or not (isinstance(old, str) and isinstance(new, str)):
        return False
    before, now = (Path(os.path.expanduser(text)) for text in (old, new))
    return before.exists() and now.exists() and before.samefile(now)


def clear_run(path: Path) -> None:
    """Remove what a training writes, and nothing else that the user may keep in the folder."""
    for name in (*CHECKPOINTS, "tensorboard"):
        shutil.rmtree(path / name, ignore_errors=True)
    for listed in list_files(path):
        listed.unlink()
    for name in reversed(FILES):  # the settings last: without them the rest would be nobody's
        (path / name).unlink(missing_ok=True)


class RunFolder:
    """Writes a run; on all processes but the first, does nothing.

    Args:
        config: of the training.
        accelerator: which process this is.

    Raises:
        UserError: the folder already holds a run (without --resume or --overwrite), or one with other settings, or
            it is a file, or nothing can be written there.
    """

    metric = "top1"
    """The figure by which epochs are ranked, see `psvit.engine.trainer.Learning.metric`."""

    def __init__(self, config: LearnConfig, accelerator: Accelerator) -> None:
        self.path, self.config, self.accelerator = Path(config.run.output), config, accelerator
        self.model: nn.Module
        self.facts: dict[str, Any] = {}
        self.images: ImageList | None = None
        self.record = record_of(config, accelerator)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give a folder as --output")
        if accelerator.is_main_process:
            check_writable(self.path, f"--output {self.path}")
        self.resumes = begun(self.path, config.run.resume, accelerator)
        if self.resumes:
            check_same(self.path, self.record)
        elif not config.run.overwrite:
            refuse_run(self.path)

    def finished(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The figures of the best epoch, if the run to resume has come to its end, which is said; else None."""
        if not self.resumes or not (train := self._finished_state().get("train")):
            return None
        if self.config.run.keep_state and self.load_state()["train"]["step"] < train["step"]:
            return None
        best = read_metrics(self.path / "best").get("epoch")
        if best is None or not (self.path / "last").is_dir():
            return None
        self.finish()
        if self.accelerator.is_main_process:
            say(f"finished  {self.path}: all {self.config.recipe.epochs} epochs are done, there is nothing to resume")
        return dict(next(line for line in train["history"] if line["epoch"] == best))

    def kept_images(self) -> ImageList | None:
        """The list of the images that a run to be resumed began with; None if it keeps none."""
        return read_image_list(self.path / IMAGES) if self.resumes else None

    def take_images(self, files: ImageSet | None, kept: ImageList | None) -> tuple[str, ...]:
        """Take note of a folder's images, which `begin` writes down; lines that say what is to be known of them.

        Raises:
            UserError: they are not those that a run to be resumed began with, or it does not tell which those were.
        """
        saved = self.resumes and any((self.path / name).exists() for name in (STATE, LOG))
        if files is not None and kept is None and saved:
            raise UserError(
                f"{self.path} has no {IMAGES}, the list of the images that it began with: bring it back, or start anew "
                "with --overwrite"
            )
        if files is None or not (self.accelerator.is_main_process or kept is not None):
            return ()
        self.images = files.images
        accept = self.config.data.accept_changes
        return (*check_unchanged(kept, self.images, accept, self.path), *self.images.repeated())

    def begin(self) -> None:
        """Make the folder, or take it up again: the first writing, once nothing of the user's can be wrong any more."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if not self.resumes:
                clear_run(self.path)
                write_json(self.path / RUN_CONFIG, self.record)
            for name in (*CHECKPOINTS, *FILES):
                recover(self.path / name)
            if self.images is not None:
                self.images.write(self.path / IMAGES)
        self.accelerator.wait_for_everyone()

    def describe(self, model: nn.Module, preprocessing: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Take note of what every checkpoint says of the network."""
        self.model, self.preprocessing, self.classes = model, preprocessing, classes
        self.facts = network_facts(model, preprocessing["input_size"], self.config.model)

    @property
    def title(self) -> str:
        """What is trained, for the line that says so."""
        return str(getattr(self.model, "arch", self.config.model.name))

    @property
    def next_command(self) -> list[str]:
        """What the user may want to do after the training; empty for nothing."""
        data = self.config.data
        words = ["psvit", "evaluate", str(self.path / "best"), "--data", data.data]
        words += ["--class-folders", data.class_folders] if data.class_folders else []
        return words + (["--data-dir", data.data_dir] if data.data_dir else [])

    def load_state(self) -> dict[str, Any]:
        """The saved state; empty if the run was stopped before its first saving.

        Raises:
            UserError: a broken file.
        """
        path = self.path / STATE
        if not path.is_file():
            return self._finished_state()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the file is not; the error below says it
                saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{path} is broken ({type(error).__name__}): start anew with --overwrite") from error
        if not isinstance(saved, dict) or not {"model", "optimizer", "ema", "scaler", "train"} <= set(saved):
            raise UserError(f"{path} is not a training's state: start anew with --overwrite")
        return saved

    def _finished_state(self) -> dict[str, Any]:
        """A finished run keeps no state: its log tells how far it is, its last checkpoint holds the weights."""
        history = [json.loads(line) for line in _lines(self.path / LOG)]
        if not history or history[-1]["epoch"] < self.config.recipe.epochs:
            return {}
        best = max(history, key=lambda line: (rank(line, self.metric), line["epoch"]))
        return {"train": {"step": history[-1]["step"], "history": history, "best": best}}

    def save_state(self, trainer: Trainer, state: TrainState) -> None:
        """Save all that --resume needs."""
        if self.accelerator.is_main_process:
            train = {item.name: getattr(state, item.name) for item in fields(state)}
            with replacing(self.path / STATE) as temporary, opened_for_torch(temporary) as file:
                torch.save({**trainer.state_dict(), "train": train}, file)
        self.accelerator.wait_for_everyone()  # were one to leave now, the launcher would end the one that writes

    def save_epoch(self, trainer: Trainer, state: TrainState) -> None:
        """Save the log, the last checkpoint, the best one if it is new, and then the state."""
        if self.accelerator.is_main_process:
            self._save_checkpoints(trainer, state)
            self._write_log(state)
        self.save_state(trainer, state)

    def _save_checkpoints(self, trainer: Trainer, state: TrainState) -> None:
        weights = trainer.evaluated.state_dict()
        metrics = {**state.history[-1], **self.facts, TRAINED_ON: self.trained_on()}
        for name in CHECKPOINTS if state.improved else ("last",):
            write_checkpoint(self.path / name, self.checkpoint_config(), weights, metrics)

    def trained_on(self) -> dict[str, Any]:
        """What tells the checkpoints' images from others; see `psvit.engine.trained_on.cut_of`."""
        return cut_of(self.config.data) | ({"images": self.images.fingerprint} if self.images is not None else {})

    def checkpoint_config(self) -> dict[str, Any]:
        """What the config.json of the checkpoints holds."""
        return config_of(self.model, self.preprocessing, self.classes)

    def _write_log(self, state: TrainState) -> None:
        with writing(self.path / "tensorboard"):
            self._tensorboard(state.history[-1])
        with replacing(self.path / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(state.history[0]))
            table.writeheader()
            table.writerows(state.history)
        with replacing(self.path / LOG) as temporary:  # the last: by it a run is known to be finished
            temporary.write_text("".join(json.dumps(line) + "\n" for line in state.history), encoding="utf-8")

    def _tensorboard(self, line: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        for name, value in line.items():
            if name not in ("epoch", "step") and value is not None:
                self._writer.add_scalar(name, value, line["epoch"])
        self._writer.flush()

    @cached_property
    def _writer(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.path / "tensorboard"))  # one file for the run, as long as it is not resumed

    def finish(self) -> None:
        """The state is large and of no more use; the checkpoints stay."""
        if self.accelerator.is_main_process and not self.config.run.keep_state:
            (self.path / STATE).unlink(missing_ok=True)
        if "_writer" in vars(self) and self._writer is not None:
            self._writer.close()
        self.accelerator.wait_for_everyone()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _plainly(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        nested = isinstance(value, dict) and name != "model_args"
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, one for each epoch; none if it keeps no log."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
