"""Loading processes that die or run out of memory, and Ctrl-C while waiting for images."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from image_sources import Numbered
from PIL import Image
from tiny import config, log, same_weights
from torch import Tensor

from psvit.arch.model_config import ModelConfig
from psvit.data.loading import train_batches
from psvit.data.samples import Batch, ImageSplit
from psvit.engine.accelerator import open_machine
from psvit.engine.interrupts import AskedToStop, InterruptedTrainingError, interrupts
from psvit.errors import UserError
from psvit.tasks.classification.classify import ClassifierTrainer, train

pytestmark = pytest.mark.usefixtures("one_thread")


class Dying(ImageSplit):
    """A split whose reading ends its process by a signal."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(Numbered(20), lambda image: torch.zeros(1, 1, 1), training=True)
        self.by = by

    def read(self, i: int) -> tuple[Image.Image, int]:
        os.kill(os.getpid(), self.by)
        raise AssertionError("it lives")


@pytest.mark.parametrize(("by", "says"), [
    (signal.SIGKILL, r"\(killed by signal: Killed\): see whether the memory is full, "),
    (signal.SIGBUS, r"\(killed by signal: Bus error\): enlarge the shared memory, "),
], ids=["killed", "bus error"])  # fmt: skip
def test_a_dead_loading_process_is_reported_in_one_line(by: signal.Signals, says: str) -> None:
    with pytest.raises(UserError, match=rf"^a loading process died {says}or give fewer --workers, or 0; a run"):
        list(train_batches(Dying(by), batch_size=2, batches=4, epoch=0, seed=0, workers=2))
    alive = ImageSplit(Numbered(20), lambda image: torch.zeros(1, 1, 1), training=True)
    assert len(list(train_batches(alive, batch_size=2, batches=4, epoch=0, seed=0, workers=2))) == 4


def test_a_full_shared_memory_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7_8>: No space left on device (28)")

    split = ImageSplit(Numbered(20), lambda image: torch.zeros(1, 1, 1), training=True)
    monkeypatch.setattr(Tensor, "share_memory_", full)  # the loading processes are forks
    with pytest.raises(UserError, match=r"^the shared memory is too small .* \(No space left on device \(28\)\): give"):
        list(train_batches(split, batch_size=2, batches=4, epoch=0, seed=0, workers=2))
    assert len(list(train_batches(split, batch_size=2, batches=4, epoch=0, seed=0))) == 4  # --workers 0 helps


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(tmp_path / "run")
    whole = ClassifierTrainer.epoch_batches

    def stuck(self: ClassifierTrainer, epoch: int, done: int) -> Iterator[Batch]:
        for number, batch in enumerate(whole(self, epoch, done)):
            if (epoch, number) == (1, 1):
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("it waited on")
            yield batch

    train(replace(chosen, run=replace(chosen.run, output=str(tmp_path / "whole"))))
    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "epoch_batches", stuck)
        with pytest.raises(InterruptedTrainingError, match="stopped at step 4 of 6"):
            train(chosen)
    train(replace(chosen, run=replace(chosen.run, resume=True)))
    assert same_weights(tmp_path / "run" / "last", tmp_path / "whole" / "last")
    assert log(tmp_path / "run") == log(tmp_path / "whole")


def test_no_process_of_several_stops_alone() -> None:
    with interrupts() as interrupt, interrupt.at_once(SimpleNamespace(num_processes=2)):  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)
    with interrupts() as interrupt:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(AskedToStop), interrupt.at_once(open_machine(config().machine)):
            raise AssertionError("asked before")


def test_a_batch_norm_with_one_value_is_refused(tmp_path: Path) -> None:
    chosen = config(tmp_path, model=ModelConfig.of("resnet18"), batch_size=1)
    with pytest.raises(UserError, match=r"^--batch-size 1 is too small .* give --batch-size 2 or more$"):
        train(chosen)
