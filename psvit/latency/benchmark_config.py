"""What to measure, as plain settings: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from psvit.config import Config, Count, Rule, Text
from psvit.data.data_config import DataName
from psvit.engine.train_config import Device, Dtype
from psvit.errors import UserError

EACH_ONCE = Rule("one or more formats or modes, each once", lambda values: 0 < len(values) == len(set(values)))
Mode = Literal["eager", "compile"]


@dataclass(frozen=True)
class BenchmarkConfig(Config):
    """What to measure, and how.

    Args:
        models: names of at least one model; ratios are to the first.
        batch_size: images per batch.
        dtype: number formats, one or more of float32, bfloat16, float16; weights and input are cast to it
            (with train: float32 weights under autocast).
        mode: one or both of eager and compile (torch.compile, static shapes, its time reported apart).
        img_size: side of the square input in pixels; by default each model's own.
        device: cpu, cuda, cuda:1, mps, or auto: the fastest kind available.
        rounds: timings of each model; in each round every model has one turn.
        warmup: untimed batches before the first round, at least 1: compilation happens there.
        threads: CPU threads; by default what torch chooses.
        train: time steps of training instead of inference: with ready images (bare), by psvit, and by timm.
        data: with train, the set to train on, as for psvit train; by default noise in memory.
        data_dir: folder of the files of a named set.
        output: JSON file to write the report to.
        overwrite: replace an output that exists.
    """

    models: Annotated[tuple[Text, ...], Rule("one or more names", len)]
    batch_size: Count = 16
    dtype: Annotated[tuple[Dtype, ...], EACH_ONCE] = ("float32",)
    mode: Annotated[tuple[Mode, ...], EACH_ONCE] = ("eager",)
    img_size: Count | None = None
    device: Device = "auto"
    rounds: Count = 15
    warmup: Count = 3
    threads: Count | None = None
    train: bool = False
    data: DataName | None = None
    data_dir: str | None = None
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and not self.train:
            raise UserError(f"--data {self.data} needs --train: inference is timed on random images")


@dataclass(frozen=True)
class LatencyConfig(Config):
    """How latency is measured.

    Args:
        latency_batch: images in the batch whose time is the latency.
        latency_dtype: number format of weights and images: float32, bfloat16 or float16.
        latency_mode: eager or compile (torch.compile).
        latency_rounds: timings of each part and network; the median counts.
    """

    latency_batch: Count = 1
    latency_dtype: Dtype = "float32"
    latency_mode: Mode = "eager"
    latency_rounds: Count = 9
