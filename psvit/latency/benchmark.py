"""psvit benchmark: speed and MACs of timm and psvit models, as a fraction of the machine's matrix-product peak.

Absolute speed drifts while a machine warms up or runs other programs. So the models take turns, one timing each per
round, and are compared round by round.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from psvit.engine.hardware import check_dtype, cpu_threads, fresh_compiler, machine_info, resolve_device
from psvit.engine.memory import keep_freed_memory, page_faults
from psvit.engine.train_config import Dtype
from psvit.errors import UserError, one_line
from psvit.latency.benchmark_config import BenchmarkConfig, Mode
from psvit.latency.benchmark_report import Report, Row, check_output, write_report
from psvit.latency.peak import matmul_peak
from psvit.latency.timing import MIN_SECONDS, Stopwatch, interleave, summarise
from psvit.models.fold import for_inference
from psvit.models.macs import explicit_attention, macs_of

Build = Callable[[str, "int | None"], nn.Module]
"""``build(name, img_size)``: the model in eval mode, float32, on the CPU; img_size None is the model's own."""

Step = Callable[[Callable[[], nn.Module], tuple[int, int, int], Dtype, bool], Callable[[], object]]
"""``step(build, input_size, dtype, compiled)``: a call that makes one optimizer step with a new model."""


def benchmark(
    config: BenchmarkConfig,
    build: Build,
    progress: Callable[[str], None] = lambda message: None,
    steps: Mapping[str, Step] | None = None,
) -> Report:
    """Measure every model in every dtype and mode; write the report to ``config.output`` if that is given.

    If a model cannot run in one combination, its row holds the error.

    Args:
        config: what to measure.
        build: builds a model by name.
        progress: takes a line about the next step.
        steps: with config.train, the training steps to time for each model, by name.

    Raises:
        ValueError: the device or a dtype is not available, the output exists, steps are missing, or `build` raised a
            UserError.
    """
    if config.train and not steps:
        raise ValueError("to time training, hand in the steps")
    keep_freed_memory(largest=not config.train)
    device = resolve_device(config.device)
    for dtype in config.dtype:
        check_dtype(device, dtype)
    if config.output is not None:
        check_output(Path(config.output), config.overwrite)
    contest = _Contest(config, build, progress, device, (steps or {}) if config.train else {})
    with cpu_threads(config.threads):
        entries = {name: contest.enter(name) for name in dict.fromkeys(config.models)}
        peaks: dict[str, float] = {}
        rows: list[Row] = []
        for dtype in config.dtype:
            # the larger of the peaks before and after, since absolute speed drifts
            before = contest.peak(dtype)
            raced = [contest.race(dtype, mode, entries) for mode in config.mode]
            peaks[dtype] = max(before, contest.peak(dtype))
            rows += [row for race in raced for row in finish(race, config.batch_size, peaks[dtype])]
        report = Report(config, machine_info(device), peaks, tuple(rows))
    if config.output is not None:
        write_report(report, config.output, config.overwrite)
    return report


def finish(rows: Sequence[Row], batch_size: int, peak: float) -> list[Row]:
    """Fill in what follows from the seconds of the rows of one dtype and mode.

    Ratios are to the first row: of all rows for inference, of the same model's for steps of training.
    """
    groups = [list(group) for _, group in groupby(rows, lambda row: row.step and row.model)]
    speeds = [speed for group in groups for speed in summarise([row.seconds or None for row in group], batch_size)]
    finished = []
    for row, speed in zip(rows, speeds, strict=True):
        if speed is not None and row.macs_timed is not None:
            rate = row.macs_timed / 1e9 * speed.images_per_second.median
            row = replace(row, speed=speed, gmacs_per_second=rate, peak_fraction=rate / peak)
        finished.append(row)
    return finished


@dataclass(frozen=True)
class _Contest:
    """The steps of `benchmark`."""

    config: BenchmarkConfig
    build: Build
    progress: Callable[[str], None]
    device: torch.device
    steps: Mapping[str, Step]

    def enter(self, name: str) -> Row:
        """The part of a model's row that is the same in every dtype and mode."""
        self.progress(f"counting {name}")
        row = Row(name, self.config.dtype[0], self.config.mode[0])
        try:
            with explicit_attention():
                model = self.build(name, self.config.img_size)
                size = _input_size(model, self.config.img_size)
                row = replace(row, input_size=size, parameters=sum(p.numel() for p in model.parameters()))
                macs_timed = macs_of(model, size, self.config.train)  # the plain count switches the gradients off
                macs = macs_of(model, size, train=False) if self.config.train else macs_timed
                return replace(row, macs=macs, macs_timed=macs_timed)
        except UserError:
            raise  # an unknown name: stop before minutes of measurement
        except Exception as error:
            return replace(row, error=one_line(error, kind=True))

    def peak(self, dtype: Dtype) -> float:
        self.progress(f"{dtype}: matrix-product peak")
        return matmul_peak(self.device, getattr(torch, dtype))

    def race(self, dtype: Dtype, mode: Mode, entries: Mapping[str, Row]) -> list[Row]:
        """Time all models in turns: a row with seconds or an error for each."""
        rows = [
            replace(entries[name], dtype=dtype, mode=mode, step=step)
            for name in self.config.models
            for step in self.steps or (None,)
        ]
        watches: dict[int, Callable[[], float]] = {}
        faults: list[list[float]] = [[] for _ in rows]
        gc.collect()  # frees the models of the previous race
        with fresh_compiler() if mode == "compile" else nullcontext():
            for index, row in enumerate(rows):
                if row.error is not None:
                    continue
                self.progress(f"{dtype} {mode}: warming up {row.model}{f', {row.step}' if row.step else ''}")
                try:
                    watch = Stopwatch(self.call(row), self.device, MIN_SECONDS)
                    first = watch.warm(self.config.warmup)
                except Exception as error:
                    rows[index] = replace(row, error=one_line(error, kind=True))
                    continue
                watches[index] = _counting_faults(watch, faults[index])
                rows[index] = replace(row, compile_seconds=first if mode == "compile" else None)
            calls = f"{len(watches)} {'steps' if self.steps else 'models'}"
            self.progress(f"{dtype} {mode}: {self.config.rounds} rounds, {calls}")
            results = interleave(list(watches.values()), self.config.rounds)
        for index, result in zip(watches, results, strict=True):
            if isinstance(result, Exception):
                rows[index] = replace(rows[index], error=one_line(result, kind=True))
            else:
                pages = statistics.median(faults[index]) if faults[index] else None
                rows[index] = replace(rows[index], seconds=tuple(result), page_faults=pages)
        return rows

    def call(self, row: Row) -> Callable[[], object]:
        """The call to time: one batch through the model of a row."""
        compiled = row.mode == "compile"
        if row.step is not None:
            assert row.input_size is not None, "entered"
            new = partial(self.build, row.model, self.config.img_size)
            return self.steps[row.step](new, row.input_size, row.dtype, compiled)
        generator, dtype = torch.Generator().manual_seed(0), getattr(torch, row.dtype)
        image = torch.randn(self.config.batch_size, *(row.input_size or ()), generator=generator).to(self.device, dtype)
        model = for_inference(self.build(row.model, self.config.img_size), self.device, dtype)
        run: Callable[[Tensor], object] = torch.compile(model, dynamic=False) if compiled else model

        def infer() -> None:
            with torch.inference_mode():
                run(image)

        return infer


def _counting_faults(watch: Stopwatch, faults: list[float]) -> Callable[[], float]:
    """The watch, which also counts page faults per call, outside of the timing."""

    def timed() -> float:
        before = page_faults()
        seconds = watch()
        after = page_faults()
        if before is not None and after is not None:
            faults.append((after - before) / watch.repeats)
        return seconds

    return timed


def _input_size(model: nn.Module, img_size: int | None) -> tuple[int, int, int]:
    channels, height, width = resolve_model_data_config(model)["input_size"]
    if isinstance(own := getattr(model, "in_chans", None), int):
        channels = own
    return (channels, height, width) if img_size is None else (channels, img_size, img_size)
