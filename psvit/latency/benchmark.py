"""psvit benchmark: any timm or psvit models side by side on this machine, beside what the machine can do at all.

MACs fall and latency often does not, so both stand in one row, with the fraction of this machine's own
matrix-product peak. Absolute speed drifts while a machine warms up or serves others; therefore the models take turns,
one batch each a round, and are compared round by round.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from psvit.engine.hardware import check_dtype, cpu_threads, fresh_compiler, machine_info, resolve_device
from psvit.engine.memory import keep_freed_memory, page_faults
from psvit.engine.train_config import Dtype
from psvit.errors import UserError, one_line
from psvit.files import check_writable, replacing
from psvit.latency.benchmark_config import BenchmarkConfig, Mode
from psvit.latency.peak import matmul_peak
from psvit.latency.timing import MIN_SECONDS, Speed, Spread, Stopwatch, interleave, summarise
from psvit.models.macs import explicit_attention, loss_of, macs_of

Build = Callable[[str, "int | None"], nn.Module]
"""``build(name, img_size)``: the model in eval mode, float32, on the CPU; img_size None is the model's own."""


@dataclass(frozen=True)
class Row:
    """One model in one dtype and mode.

    Args:
        model: its name.
        dtype: the number format.
        mode: eager or compile.
        input_size: channels, height, width.
        parameters: how many.
        macs: multiply-accumulates of the forward pass of one image, explicit attention, as papers report them.
        macs_timed: of what was timed, for one image: `macs`, or with train those of forward and backward.
        seconds: of one batch, one number a round.
        speed: what follows from seconds.
        gmacs_per_second: macs_timed times the median images a second, in 1e9.
        peak_fraction: gmacs_per_second over the matrix-product peak in this dtype. Convolutions by Winograd or FFT
            do fewer multiplications than they are counted for and may exceed 1.
        compile_seconds: the first call in mode compile: compilation and one batch.
        page_faults: of one batch, the median round's; None where the system does not count them.
        error: one line: why the model could not run here; then what could not be known is None or empty.
    """

    model: str
    dtype: Dtype
    mode: Mode
    input_size: tuple[int, int, int] | None = None
    parameters: int | None = None
    macs: int | None = None
    macs_timed: int | None = None
    seconds: tuple[float, ...] = ()
    speed: Speed | None = None
    gmacs_per_second: float | None = None
    peak_fraction: float | None = None
    compile_seconds: float | None = None
    page_faults: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """Rebuild a Row from `to_dict`."""
        values = dict(data) | {"seconds": tuple(data["seconds"])}
        if data["input_size"] is not None:
            values["input_size"] = tuple(data["input_size"])
        if data["speed"] is not None:
            spreads = {key: value and Spread(**value) for key, value in data["speed"].items()}
            values["speed"] = Speed(**spreads)
        return cls(**values)


@dataclass(frozen=True)
class Report:
    """What was measured, where, and how.

    Args:
        config: as given.
        machine: versions, CPU, threads, device.
        peaks: matrix-product peak of each dtype on the device, in GMAC/s.
        rows: by dtype, then mode, then model.
    """

    config: BenchmarkConfig
    machine: dict[str, Any]
    peaks: dict[str, float]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "config": _plain(asdict(self.config)),
            "machine": self.machine,
            "peaks": self.peaks,
            "rows": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Rebuild a Report from `to_dict`."""
        rows = tuple(Row.from_dict(row) for row in data["rows"])
        return cls(BenchmarkConfig(**data["config"]), dict(data["machine"]), dict(data["peaks"]), rows)


# The benchmark -------------------------------------------------------------------------------------------------------


def benchmark(config: BenchmarkConfig, build: Build, progress: Callable[[str], None] = lambda message: None) -> Report:
    """Measure every model in every dtype and mode; write the report to ``config.output`` if that is given.

    A model that cannot run in one combination has a row that says why; the others go on.

    Args:
        config: what to measure.
        build: makes a model of a name.
        progress: is told in a line what comes next.

    Raises:
        ValueError: the device or a dtype is not to be had, the output exists, or `build` raised a UserError.
    """
    keep_freed_memory()
    device = resolve_device(config.device)
    for dtype in config.dtype:
        check_dtype(device, dtype)
    if config.output is not None:
        _check_output(Path(config.output), config.overwrite)
    contest = _Contest(config, build, progress, device)
    with cpu_threads(config.threads):
        entries = {name: contest.enter(name) for name in dict.fromkeys(config.models)}
        peaks: dict[str, float] = {}
        rows: list[Row] = []
        for dtype in config.dtype:
            # The peak before and after, the larger of both: absolute speed drifts.
            before = contest.peak(dtype)
            raced = [contest.race(dtype, mode, entries) for mode in config.mode]
            peaks[dtype] = max(before, contest.peak(dtype))
            rows += [row for race in raced for row in finish(race, config.batch_size, peaks[dtype])]
        report = Report(config, machine_info(device), peaks, tuple(rows))
    if config.output is not None:
        write_report(report, config.output, config.overwrite)
    return report


def finish(rows: Sequence[Row], batch_size: int, peak: float) -> list[Row]:
    """The rows of one dtype and mode, with all that follows from their seconds."""
    finished = []
    for row, speed in zip(rows, summarise([row.seconds or None for row in rows], batch_size), strict=True):
        if speed is not None and row.macs_timed is not None:
            rate = row.macs_timed / 1e9 * speed.images_per_second.median
            row = replace(row, speed=speed, gmacs_per_second=rate, peak_fraction=rate / peak)
        finished.append(row)
    return finished


@dataclass(frozen=True)
class _Contest:
    """The steps of `benchmark`, and what they all need."""

    config: BenchmarkConfig
    build: Build
    progress: Callable[[str], None]
    device: torch.device

    def enter(self, name: str) -> Row:
        """What of a model's row holds in every dtype and mode."""
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
            raise  # a name that does not exist: said before minutes of measurement
        except Exception as error:
            return replace(row, error=one_line(error, kind=True))

    def peak(self, dtype: Dtype) -> float:
        self.progress(f"{dtype}: matrix-product peak")
        return matmul_peak(self.device, getattr(torch, dtype))

    def race(self, dtype: Dtype, mode: Mode, entries: Mapping[str, Row]) -> list[Row]:
        """A row with seconds, or an error, for each model."""
        rows = [replace(entries[name], dtype=dtype, mode=mode) for name in self.config.models]
        watches: dict[int, Callable[[], float]] = {}
        faults: list[list[float]] = [[] for _ in rows]
        gc.collect()  # the models of the race before leave the device
        with fresh_compiler() if mode == "compile" else nullcontext():
            for index, row in enumerate(rows):
                if row.error is not None:
                    continue
                self.progress(f"{dtype} {mode}: warming up {row.model}")
                try:
                    watch = Stopwatch(self.call(row), self.device, MIN_SECONDS)
                    first = watch.warm(self.config.warmup)
                except Exception as error:
                    rows[index] = replace(row, error=one_line(error, kind=True))
                    continue
                watches[index] = _counting_faults(watch, faults[index])
                rows[index] = replace(row, compile_seconds=first if mode == "compile" else None)
            self.progress(f"{dtype} {mode}: {self.config.rounds} rounds, {len(watches)} models")
            results = interleave(list(watches.values()), self.config.rounds)
        for index, result in zip(watches, results, strict=True):
            if isinstance(result, Exception):
                rows[index] = replace(rows[index], error=one_line(result, kind=True))
            else:
                pages = statistics.median(faults[index]) if faults[index] else None
                rows[index] = replace(rows[index], seconds=tuple(result), page_faults=pages)
        return rows

    def call(self, row: Row) -> Callable[[], object]:
        """One batch through the model of a row, as it will be timed."""
        train, dtype = self.config.train, getattr(torch, row.dtype)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(self.config.batch_size, *(row.input_size or ()), generator=generator).to(self.device)
        model = self.build(row.model, self.config.img_size).to(self.device).train(train)
        if not train:
            model, image = model.to(dtype), image.to(dtype)
        run: Callable[[Tensor], object] = torch.compile(model, dynamic=False) if row.mode == "compile" else model

        def infer() -> None:
            with torch.inference_mode():
                run(image)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, dtype, enabled=row.dtype != "float32"):
                output = run(image)
            loss_of(output).backward()

        return step if train else infer


def _counting_faults(watch: Stopwatch, faults: list[float]) -> Callable[[], float]:
    """The watch, which also notes the page faults of one call; its clock does not run meanwhile."""

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


# The report ----------------------------------------------------------------------------------------------------------


def _check_output(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path} exists: name another file, or give --overwrite")
    check_writable(path.parent, f"--output {path}")


def write_report(report: Report, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write the report as JSON, whole or not at all.

    Raises:
        ValueError: the file exists and `overwrite` is not given.
    """
    path = Path(path)
    _check_output(path, overwrite)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")


def table(report: Report) -> Table:
    """The report for a terminal: one section for each dtype and mode, medians with quartiles in brackets."""
    config, machine = report.config, report.machine
    peaks = ", ".join(f"{dtype} {peak:.4g}" for dtype, peak in report.peaks.items())
    title = f"{'training step' if config.train else 'inference'}, batch {config.batch_size}, {machine['device']}"
    caption = (
        f"median [quartiles] of {config.rounds} interleaved rounds; × first: median of the rounds' ratios\n"
        f"matrix-product peak in GMAC/s: {peaks}\n"
        f"{machine['device_name'] or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    )
    result = Table(title=title, caption=escape(caption))
    for heading in ("model", "input", "dtype", "mode"):
        result.add_column(heading)
    for heading in ("Mparams", "GMACs", "images/s", "ms/image", "× first", "GMAC/s", "of peak", "compile s"):
        result.add_column(heading, justify="right")
    if any(row.error for row in report.rows):
        result.add_column("could not run")
    for index, row in enumerate(report.rows):
        if index and index % len(config.models) == 0:
            result.add_section()
        result.add_row(*(escape(cell) for cell in _cells(row)))
    return result


def _cells(row: Row) -> list[str]:
    speed = row.speed
    cells = [
        row.model,
        "×".join(map(str, row.input_size or ())),
        row.dtype,
        row.mode,
        "" if row.parameters is None else f"{row.parameters / 1e6:.2f}",
        "" if row.macs is None else f"{row.macs / 1e9:.3f}",
        _spread(speed.images_per_second if speed else None, ".4g"),
        f"{speed.ms_per_image.median:.4g}" if speed else "",
        _spread(speed.ratio if speed else None, ".3f"),
        "" if row.gmacs_per_second is None else f"{row.gmacs_per_second:.4g}",
        "" if row.peak_fraction is None else f"{row.peak_fraction:.0%}",
        "" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
    ]
    return cells + ([row.error] if row.error else [])


def _spread(spread: Spread | None, form: str) -> str:
    return "" if spread is None else f"{spread.median:{form}} [{spread.low:{form}}, {spread.high:{form}}]"


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Tuples to lists, so that what is written equals what is read back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
