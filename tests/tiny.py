"""A network of 24 thousand parameters, 48 images of 8 x 8 pixels, and the command line called in this process."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from psvit.arch.model_config import ModelConfig
from psvit.cli import main
from psvit.data.data_config import Augment, DataConfig
from psvit.engine.interrupts import Interrupt
from psvit.engine.train_config import Machine, Recipe, RunConfig, TrainConfig, light

NETWORK = ["--model", "AS-A", "--widths", "16", "32", "--head-dim", "8", "--patch-size", "2"]
DATA = ["--data", "digits", "--limit", "48", "--validation", "0.02"]  # 48 training images, 30 of the validation split
MACHINE = ["--device", "cpu", "--threads", "1", "--precision", "float32"]
TRAIN = ["train", *NETWORK, *DATA, *MACHINE, "--batch-size", "16", "--epochs", "2"]  # 3 steps an epoch
EVERYTHING = ["--ema-decay", "0.9", "--mixup", "0.8", "--cutmix", "1", "--drop-path", "0.3", "--random-erasing", "0.5",
              "--auto-augment", "rand-m9-mstd0.5-inc1", "--accumulate", "2", "--lr", "0.003"]  # fmt: skip
SPACE_FLAGS = ["--depth", "2", "4", "--stages", "1", "2", "--stage-widths", "16,24", "24,32,48", "--head-dim", "4",
               "--patch-size", "2", "--mlp-ratios", "2", "--budget", "400k", "--least", "0.5"]  # fmt: skip
RUN = ["run", "--data", "digits", "--limit", "64", *SPACE_FLAGS, *MACHINE, "--batch-size", "16", "--epochs", "2",
       "--first-slice", "20", "--finalists", "4", "--insist", "--models", "deit", "resnet18", "searched"]  # fmt: skip

ARCH = ModelConfig.of("AS-A", widths=(16, 32), head_dim=8, patch_size=2)
DIGITS = DataConfig("digits", limit=48, validation=0.02)
CPU = Machine("cpu", "float32", 1)


class Result(NamedTuple):
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str


class Cli:
    """``psvit ARGUMENTS`` in this process; a traceback fails the test."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *arguments: object) -> Result:
        self.capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = self.capfd.readouterr()
        return Result(code, out, err)

    def ok(self, *arguments: object) -> str:
        """The output of a command that succeeds."""
        code, out, err = self(*arguments)
        assert code == 0, err
        return out

    def refused(self, *arguments: object) -> str:
        """The one line of a command that is refused."""
        code, _, err = self(*arguments)
        assert code == 2
        assert err.startswith("psvit: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return err


def config(output: Path | str = "unused", *, data: DataConfig = DIGITS, machine: Machine = CPU, run: Any = None,
             model: ModelConfig = ARCH, distillation: Any = None, **recipe: Any) -> TrainConfig:  # fmt: skip
    """Settings of a tiny training; keywords are fields of its recipe."""
    calm: dict[str, Any] = {"epochs": 2, "batch_size": 16, "drop_path": 0.0, "clip_grad": None, "weight_decay": 0.0}
    calm["base_lr"] = 4e-3
    calm["augment"] = Augment(scale=(1, 1), ratio=(1, 1), color_jitter=0)
    chosen = Recipe(**{**vars(light()), **calm, **recipe})
    more = {"distillation": distillation} if distillation is not None else {}
    return TrainConfig(model, data, chosen, machine=machine, run=RunConfig(str(output), **(run or {})), **more)


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder."""
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoint folders hold bitwise the same weights."""
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def read(path: Path) -> Any:
    """Data of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, but for the speed."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def start(*arguments: object, launcher: tuple[str, ...] = ("-m", "psvit"), **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    words = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


SLOWED = """
import sys, time
from itertools import count
from torch.optim.optimizer import register_optimizer_step_post_hook
from psvit.cli import main
steps = count(1)
register_optimizer_step_post_hook(lambda *_: time.sleep(0.4 if next(steps) > {step} else 0))
sys.exit(main())
"""


def start_slowed(step: int, *arguments: object) -> subprocess.Popen[str]:
    """A training in its own process that slows down after this step, so that a signal can reach it."""
    return start(*arguments, launcher=("-c", SLOWED.format(step=step)))


def saved_behind(step: int, run: Path, process: subprocess.Popen[str]) -> int:
    """Wait until a running training has saved a state after this step; returns the saved step."""
    for _ in range(40000):  # minutes, on a machine that has other things to do
        assert process.poll() is None, process.communicate()
        if (run / "state.pt").exists():
            saved = int(torch.load(run / "state.pt", weights_only=True)["train"]["step"])
            if saved > step:
                return saved
        time.sleep(0.004)
    raise AssertionError("it never came so far")


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C after so many steps of the next training."""
    seen = []

    def requested(self: Interrupt, accelerator: object) -> bool:
        seen.append(1)
        return len(seen) == step

    monkeypatch.setattr(Interrupt, "requested", requested)


def torchrun() -> tuple[str, ...]:
    """What starts two processes; it finds a port by itself."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def check_gradients(model: Any, x: Tensor) -> None:
    """Every parameter gets a gradient, and the same one where layers are computed again in the backward pass."""
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    for one in (model, twin):
        one(x).square().sum().backward()
    for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert a.grad.any(), name
        torch.testing.assert_close(b.grad, a.grad, msg=name)


def image_folder(root: Path, classes: tuple[str, ...] = ("ant", "bee"), each: int = 6) -> Path:
    """PNG files of 12 x 10 noise pixels, a folder for each class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root
