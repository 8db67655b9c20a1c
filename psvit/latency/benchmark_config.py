"""What to measure, as plain settings: no torch, so that a command line is quick to build."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from psvit.engine.train_config import Dtype
from psvit.errors import UserError, flag

Mode = Literal["eager", "compile"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure, and how.

    Args:
        models: names to compare, at least one; the first is the one the others are relative to.
        batch_size: images in a batch.
        dtype: number formats, one or more of float32, bfloat16, float16; weights and input are cast to it
            (with train: float32 weights under autocast).
        mode: one or both of eager and compile (torch.compile, static shapes, its time reported apart).
        img_size: side of the square input in pixels; by default each model's own.
        device: cpu, cuda, cuda:1, mps, or auto: the fastest kind there is.
        rounds: timings of each model; in each round every model has one turn.
        warmup: untimed batches before the first round, at least 1: compilation happens there.
        threads: CPU threads; by default what torch chooses.
        train: time forward and backward in training mode instead of inference; no optimizer step.
        output: JSON file to write the report to.
        overwrite: replace an output that exists.
    """

    models: tuple[str, ...]
    batch_size: int = 16
    dtype: tuple[Dtype, ...] = ("float32",)
    mode: tuple[Mode, ...] = ("eager",)
    img_size: int | None = None
    device: str = "auto"
    rounds: int = 15
    warmup: int = 3
    threads: int | None = None
    train: bool = False
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("models", "dtype", "mode"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                called = name if name == "models" else flag(name)
                raise UserError(f"{called} {values!r} is not a list of one or more names")
            object.__setattr__(self, name, tuple(values))
        if not all(isinstance(model, str) and model for model in self.models):
            raise UserError(f"models {self.models!r} holds something that is not a name")
        for name, choices in (("dtype", get_args(Dtype)), ("mode", get_args(Mode))):
            values = getattr(self, name)
            for value in values:
                if value not in choices:
                    raise UserError(f"--{name} {value!r} is not one of {', '.join(choices)}")
            if len(set(values)) < len(values):
                raise UserError(f"--{name} {' '.join(values)} names one twice: give each once")
        for name in ("batch_size", "img_size", "rounds", "warmup", "threads"):
            value = getattr(self, name)
            if value is None and name in ("img_size", "threads"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{flag(name)} {value!r} is not a positive whole number")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise UserError(f"--device {self.device!r} is not auto, cpu, cuda, cuda:INDEX or mps")


@dataclass(frozen=True)
class LatencyConfig:
    """How latency is measured.

    Args:
        latency_batch: images in the batch whose time is the latency.
        latency_dtype: number format of weights and images: float32, bfloat16 or float16.
        latency_mode: eager or compile (torch.compile).
        latency_rounds: timings of each part and network, of which the median counts.
    """

    latency_batch: int = 1
    latency_dtype: Dtype = "float32"
    latency_mode: Mode = "eager"
    latency_rounds: int = 9

    def __post_init__(self) -> None:
        for name in ("latency_batch", "latency_rounds"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{flag(name)} {value!r} is not a positive whole number")
