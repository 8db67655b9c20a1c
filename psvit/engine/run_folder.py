"""The folder of a training: settings, log, checkpoints, and the state for --resume."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from psvit.data.image_cache import remove_cache
from psvit.data.image_list import IMAGES, ImageList, check_unchanged, list_files, read_image_list
from psvit.data.image_sets import ImageSet
from psvit.engine.checkpoints import read_metrics, save_weights, write_checkpoint
from psvit.engine.resuming import LOG, RUN_CONFIG, STATE, TABLE, begun, check_same, record_of, refuse_run
from psvit.engine.state import TrainState
from psvit.engine.train_config import LearnConfig
from psvit.engine.trained_on import TRAINED_ON, cut_of
from psvit.errors import UserError
from psvit.files import check_writable, opened_for_torch, recover, replacing, write_json, writing

FILES, CHECKPOINTS = (RUN_CONFIG, IMAGES, STATE, LOG, TABLE), ("best", "last")


def clear_run(path: Path) -> None:
    """Remove the files of a training, but no other files in the folder."""
    for name in (*CHECKPOINTS, "tensorboard"):
        shutil.rmtree(path / name, ignore_errors=True)
    for listed in list_files(path):
        listed.unlink()
    remove_cache(path)
    for name in reversed(FILES):  # the config last: it identifies the run
        (path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Description:
    """The network of a training, for messages and checkpoints.

    Args:
        title: the network, for the user.
        facts: macs, params and other entries of metrics.json.
        checkpoint: config.json of the checkpoints; empty if only weights are saved, in the file `weights`.
        weights: name of that file.
        trained_on: settings of its validation split besides `cut_of`.
        next_command: suggestion for the user after the training; may be empty.
    """

    title: str
    facts: Mapping[str, Any]
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    next_command: Sequence[str] = ()


class RunFolder:
    """Writes the files of a run, in the first process only.

    Args:
        config: of the training.
        accelerator: tells the processes apart.

    Raises:
        UserError: the folder holds a run (without --resume or --overwrite) or one with other settings, is a file, or is
            not writable.
    """

    def __init__(self, config: LearnConfig, accelerator: Accelerator) -> None:
        self.path, self.config, self.accelerator = Path(config.run.output), config, accelerator
        self.description = Description("", {})
        self.images: ImageList | None = None
        self.record = record_of(config, accelerator)
        self.tensorboard: Any = None
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
        """The metrics of the best epoch if the run to resume is already finished (then `say` says so), else None."""
        if not self.resumes or not (history := self._finished_history()):
            return None
        if self.config.run.keep_state and self.load_state()["train"]["step"] < history[-1]["step"]:
            return None
        best = read_metrics(self.path / "best").get("epoch")
        if best is None or not (self.path / "last").is_dir():
            return None
        self.finish()
        if self.accelerator.is_main_process:
            say(f"finished  {self.path}: all {self.config.recipe.epochs} epochs are done, there is nothing to resume")
        return dict(next(line for line in history if line["epoch"] == best))

    def kept_images(self) -> ImageList | None:
        """The image list of the run to resume; None without one."""
        return read_image_list(self.path / IMAGES) if self.resumes else None

    def take_images(self, files: ImageSet | None, kept: ImageList | None) -> tuple[str, ...]:
        """Keep the list of a folder's images for `begin` to write; returns notes on them for the user.

        Raises:
            UserError: they differ from the images of the run to resume, or its list is missing.
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

    def begin(self, description: Description) -> None:
        """Create the folder or continue in it; nothing is written before, while settings may still be refused."""
        self.description = description
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if not self.resumes:
                clear_run(self.path)
                write_json(self.path / RUN_CONFIG, self.record)
            for name in (*CHECKPOINTS, *FILES, *filter(None, [description.weights])):
                recover(self.path / name)
            if self.images is not None:
                self.images.write(self.path / IMAGES)
        self.accelerator.wait_for_everyone()

    def load_state(self) -> dict[str, Any]:
        """The saved state; empty if none was saved yet.

        Raises:
            UserError: a broken file.
        """
        path = self.path / STATE
        if not path.is_file():
            history = self._finished_history()  # a finished run keeps only its checkpoints
            return {"train": {"step": history[-1]["step"], "history": history}} if history else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about a broken file; the error below reports it
                saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{path} is broken ({type(error).__name__}): start anew with --overwrite") from error
        if not isinstance(saved, dict) or not {"model", "optimizer", "ema", "scaler", "train"} <= set(saved):
            raise UserError(f"{path} is not a training's state: start anew with --overwrite")
        return saved

    def _finished_history(self) -> list[dict[str, Any]]:
        """The log if all epochs are done, else empty."""
        history = read_log(self.path)
        return history if history and history[-1]["epoch"] >= self.config.recipe.epochs else []

    def save_state(self, saved: Mapping[str, Any], state: TrainState) -> None:
        """Save the trainer's state and progress for --resume."""
        if self.accelerator.is_main_process:
            with replacing(self.path / STATE) as temporary, opened_for_torch(temporary) as file:
                torch.save({**saved, "train": vars(state)}, file)
        self.accelerator.wait_for_everyone()  # if one exited now, the launcher would kill the process that writes

    def save_epoch(self, weights: Mapping[str, Tensor], saved: Mapping[str, Any], state: TrainState) -> None:
        """Save the last checkpoint, the best one if improved, the log, and then the state."""
        if self.accelerator.is_main_process:
            self._save_checkpoints(weights, state)
            self._write_log(state)
        self.save_state(saved, state)

    def _save_checkpoints(self, weights: Mapping[str, Tensor], state: TrainState) -> None:
        described = self.description
        if described.weights:
            with replacing(self.path / described.weights) as temporary:
                save_weights(temporary, weights)
            return
        trained_on = {**cut_of(self.config.data), **described.trained_on}
        if self.images is not None:
            trained_on["images"] = self.images.fingerprint
        metrics = {**state.history[-1], **described.facts, TRAINED_ON: trained_on}
        for name in CHECKPOINTS if state.improved else ("last",):
            write_checkpoint(self.path / name, described.checkpoint, weights, metrics)

    def _write_log(self, state: TrainState) -> None:
        line = state.history[-1]
        with writing(self.path / "tensorboard"):
            if self.tensorboard is None:  # one file per process
                self.tensorboard = _tensorboard(self.path / "tensorboard")
            if self.tensorboard is not None:
                for name, value in line.items():
                    if name not in ("epoch", "step") and value is not None:
                        self.tensorboard.add_scalar(name, value, line["epoch"])
                self.tensorboard.flush()
        with replacing(self.path / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(state.history[0]))
            table.writeheader()
            table.writerows(state.history)
        with replacing(self.path / LOG) as temporary:  # last: it marks a run as finished
            temporary.write_text("".join(json.dumps(line) + "\n" for line in state.history), encoding="utf-8")

    def finish(self) -> None:
        """Delete the state and the image cache, unless keep_state; the checkpoints stay."""
        if self.accelerator.is_main_process and not self.config.run.keep_state:
            (self.path / STATE).unlink(missing_ok=True)
            if self.config.data.image_cache_dir is None:
                remove_cache(self.path)
        if self.tensorboard is not None:
            self.tensorboard.close()
        self.accelerator.wait_for_everyone()


def _tensorboard(folder: Path) -> Any:
    """A TensorBoard writer; None if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, one per epoch; empty without a log."""
    path = folder / LOG
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
