"""psvit benchmark: any timm or psvit models side by side on this machine, beside what the machine can do at all.

MACs fall and latency often does not, so both stand in one row, with the fraction of this machine's own
matrix-product peak. Absolute speed drifts while a machine warms up or serves others; therefore the models take turns,
one batch each a round, and are compared round by round.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from rich.markup import escape
from rich.table import Table
from timm.data.config import resolve_model_data_config
from timm.layers.config import set_fused_attn, use_fused_attn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import psvit
from psvit.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16"]
Mode = Literal["eager", "compile"]
Build = Callable[[str, "int | None"], nn.Module]
"""``build(name, img_size)``: the model in eval mode, float32, on the CPU; img_size None is the model's own."""

MIN_SECONDS = 0.02
"""A timing lasts at least this long; a faster call is repeated within it."""
PEAK_SECONDS = 0.25
"""`matmul_peak` skips products expected to last longer than this."""
PEAK_SHAPES = (
    (512, 512, 512),
    (1024, 1024, 1024),
    (16 * 197, 768, 768),  # the projection of a ViT-B: tall, as the products of a transformer are
    (2048, 2048, 2048),
    (64 * 197, 768, 3072),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
)


@dataclass(frozen=True)
class BenchmarkSettings:
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
                raise UserError(f"{_flag(name)} {values!r} is not a list of one or more names")
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
                raise UserError(f"{_flag(name)} {value!r} is not a positive whole number")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise UserError(f"--device {self.device!r} is not auto, cpu, cuda, cuda:INDEX or mps")


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and their lower and upper quartile: half of the numbers lie between."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The quartiles by linear interpolation (numpy's default); of one number, the number itself."""
        if len(values) == 1:
            return cls(*values, *values, *values)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)


@dataclass(frozen=True)
class Speed:
    """How fast one model ran.

    Args:
        images_per_second: over the rounds.
        ms_per_image: over the rounds; the milliseconds of a batch over its size.
        ratio: images a second relative to the first model, round by round; None when the first model failed.
    """

    images_per_second: Spread
    ms_per_image: Spread
    ratio: Spread | None


def summarise(seconds: Sequence[Sequence[float] | None], batch_size: int) -> list[Speed | None]:
    """Speeds from the seconds a batch took: one list a model, one number a round, None for a model that failed.

    The ratio is the median of the ratios within each round, not the ratio of the medians. The models of one round run
    within a moment of each other, so a machine that slows down by a third half-way slows both sides of each ratio,
    and the ratio stays.
    """
    first = seconds[0]
    speeds: list[Speed | None] = []
    for own in seconds:
        if own is None:
            speeds.append(None)
            continue
        ratio = None if first is None else Spread.of([a / b for a, b in zip(first, own, strict=True)])
        images = Spread.of([batch_size / second for second in own])
        millis = Spread.of([1000 * second / batch_size for second in own])
        speeds.append(Speed(images_per_second=images, ms_per_image=millis, ratio=ratio))
    return speeds


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
        settings: as given.
        machine: versions, CPU, threads, device.
        peaks: matrix-product peak of each dtype on the device, in GMAC/s.
        rows: by dtype, then mode, then model.
    """

    settings: BenchmarkSettings
    machine: dict[str, Any]
    peaks: dict[str, float]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "settings": _plain(asdict(self.settings)),
            "machine": self.machine,
            "peaks": self.peaks,
            "rows": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Rebuild a Report from `to_dict`."""
        rows = tuple(Row.from_dict(row) for row in data["rows"])
        return cls(BenchmarkSettings(**data["settings"]), dict(data["machine"]), dict(data["peaks"]), rows)


# Counting ------------------------------------------------------------------------------------------------------------


@contextmanager
def explicit_attention() -> Iterator[None]:
    """Attention as two visible matrix products: for models built and run within, so that QK^T and AV are counted.

    timm reads its switch when a layer is built; torch's own layers and direct calls of
    scaled_dot_product_attention choose their kernel when they run, and the counters of older torch versions pass
    over the fused ones.
    """
    fused, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    set_fused_attn(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        set_fused_attn(fused, experimental)
        torch.backends.mha.set_fastpath_enabled(fastpath)


def count_macs(build_model: Callable[[], nn.Module], input_size: Sequence[int], train: bool = False) -> int:
    """Multiply-accumulates of one image, counted by torch while the model runs, attention products included.

    Matrix products and convolutions count; norms, activations, softmax and additions do not.

    Args:
        build_model: builds a fresh model on the CPU; it is called once, with fused attention off, and its model is
            spent afterwards.
        input_size: channels, height, width.
        train: count the backward pass too.
    """
    with explicit_attention():
        return _count(build_model(), input_size, train)


def _count(model: nn.Module, input_size: Sequence[int], train: bool) -> int:
    image = torch.zeros(1, *input_size)
    model.eval()  # the same products as in training; a batch norm over one image would refuse
    if not train:
        model.requires_grad_(False)  # parameters that want gradients under no_grad trip torch's module tracker
    # not inference_mode: composite operations stay whole there and hide their products
    with torch.set_grad_enabled(train), FlopCounterMode(display=False) as counter:
        output = model(image)
        if train:
            _loss(output).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops()) // 2


def _loss(output: object) -> Tensor:
    """A scalar of any output, for a dense backward pass."""
    if isinstance(output, Tensor):
        return output.float().mean()
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(parts, (list, tuple)) or not parts:
        raise TypeError(f"cannot train on an output of type {type(output).__name__}")
    return torch.stack([_loss(part) for part in parts]).sum()


# The machine ---------------------------------------------------------------------------------------------------------


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: this machine or this torch has no such device; the message says what there is.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device(next((kind for kind in ("cuda:0", "mps") if kind in there), "cpu"))
    if (name if name != "cuda" else "cuda:0") not in there:
        raise UserError(f"--device {name} is not on this machine: torch {torch.__version__} finds {', '.join(there)}")
    return torch.device(name)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest plain matrix product on the device, in GMAC/s.

    Several shapes, square and tall, into a buffer that exists already. Of each, the median of the three best of seven
    timings: the best alone may be a clock's luck. Large products are skipped where they would take long.
    """
    generator = torch.Generator().manual_seed(0)
    peak = 0.0
    for m, k, n in PEAK_SHAPES:
        gmacs = m * k * n / 1e9
        if peak and gmacs / peak > PEAK_SECONDS:
            continue
        a = torch.randn(m, k, generator=generator).to(device, dtype)
        b = torch.randn(k, n, generator=generator).to(device, dtype)
        out = torch.empty(m, n, device=device, dtype=dtype)
        watch = Stopwatch(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, MIN_SECONDS)  # type: ignore[misc]
        watch.warm(2)
        peak = max(peak, gmacs / statistics.median(sorted(watch() for _ in range(7))[:3]))
    return peak


def machine_info(device: torch.device) -> dict[str, Any]:
    """What a reader of the numbers needs to know of the machine."""
    return {
        "psvit": psvit.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _check_dtype(device: torch.device, dtype: Dtype) -> None:
    try:
        ones = torch.ones(8, 8, device=device, dtype=getattr(torch, dtype))
        torch.mm(ones, ones)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"--dtype {dtype} does not work on device {device}: {one_line(error)}") from error


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# Timing --------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Times one call; ``watch()`` returns its seconds.

    A fast call is repeated until a timing lasts about `min_seconds`; how often is decided once, by `warm`.

    Args:
        call: what to time.
        device: waited for before the clock is read.
        min_seconds: the shortest timing worth reading.
        clock: seconds, from any origin.
    """

    def __init__(
        self,
        call: Callable[[], object],
        device: torch.device,
        min_seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.call = call
        self.device = device
        self.min_seconds = min_seconds
        self.clock = clock
        self.repeats = 1

    def warm(self, calls: int) -> float:
        """Run some calls, then set `repeats`; returns the seconds of the first, which may compile."""
        first = self()
        for _ in range(calls - 1):
            self()
        while (seconds := self()) * self.repeats < self.min_seconds:
            # At least double, so that it ends; at most tenfold, so that one quick reading does no harm.
            wanted = math.ceil(self.min_seconds / seconds) if seconds > 0 else 10 * self.repeats
            self.repeats = min(max(wanted, 2 * self.repeats), 10 * self.repeats)
        return first

    def __call__(self) -> float:
        """Seconds of one call."""
        _synchronize(self.device)
        start = self.clock()
        for _ in range(self.repeats):
            self.call()
        _synchronize(self.device)
        return (self.clock() - start) / self.repeats


def interleave(watches: Sequence[Callable[[], float]], rounds: int) -> list[list[float] | Exception]:
    """One turn for every watch in every round; the order moves on by one each round, so that none is always first.

    A watch that raises leaves the race and has its exception in place of its timings; the others go on.
    """
    results: list[list[float] | Exception] = [[] for _ in watches]
    for turn in range(rounds):
        for place in range(len(watches)):
            index = (turn + place) % len(watches)
            timings = results[index]
            if isinstance(timings, Exception):
                continue
            try:
                timings.append(watches[index]())
            except Exception as error:
                results[index] = error
    return results


def one_line(error: BaseException, limit: int = 160) -> str:
    """The kind of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


# The benchmark -------------------------------------------------------------------------------------------------------


def benchmark(
    settings: BenchmarkSettings, build: Build, progress: Callable[[str], None] = lambda message: None
) -> Report:
    """Measure every model in every dtype and mode; write the report to ``settings.output`` if that is given.

    A model that cannot run in one combination has a row that says why; the others go on.

    Args:
        settings: what to measure.
        build: makes a model of a name.
        progress: is told in a line what comes next.

    Raises:
        ValueError: the device or a dtype is not to be had, the output exists, or `build` raised a UserError.
    """
    device = resolve_device(settings.device)
    for dtype in settings.dtype:
        _check_dtype(device, dtype)
    if settings.output is not None:
        _check_output(Path(settings.output), settings.overwrite)
    contest = _Contest(settings, build, progress, device)
    with _threads(settings.threads):
        entries = {name: contest.enter(name) for name in dict.fromkeys(settings.models)}
        peaks: dict[str, float] = {}
        rows: list[Row] = []
        for dtype in settings.dtype:
            # The peak before and after, the larger of both: absolute speed drifts.
            before = contest.peak(dtype)
            raced = [contest.race(dtype, mode, entries) for mode in settings.mode]
            peaks[dtype] = max(before, contest.peak(dtype))
            rows += [row for race in raced for row in finish(race, settings.batch_size, peaks[dtype])]
        report = Report(settings, machine_info(device), peaks, tuple(rows))
    if settings.output is not None:
        write_report(report, settings.output, settings.overwrite)
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

    settings: BenchmarkSettings
    build: Build
    progress: Callable[[str], None]
    device: torch.device

    def enter(self, name: str) -> Row:
        """What of a model's row holds in every dtype and mode."""
        self.progress(f"counting {name}")
        row = Row(name, self.settings.dtype[0], self.settings.mode[0])
        try:
            with explicit_attention():
                model = self.build(name, self.settings.img_size)
                size = _input_size(model, self.settings.img_size)
                row = replace(row, input_size=size, parameters=sum(p.numel() for p in model.parameters()))
                macs_timed = _count(model, size, self.settings.train)  # the plain count switches the gradients off
                macs = _count(model, size, train=False) if self.settings.train else macs_timed
                return replace(row, macs=macs, macs_timed=macs_timed)
        except UserError:
            raise  # a name that does not exist: said before minutes of measurement
        except Exception as error:
            return replace(row, error=one_line(error))

    def peak(self, dtype: Dtype) -> float:
        self.progress(f"{dtype}: matrix-product peak")
        return matmul_peak(self.device, getattr(torch, dtype))

    def race(self, dtype: Dtype, mode: Mode, entries: Mapping[str, Row]) -> list[Row]:
        """A row with seconds, or an error, for each model."""
        rows = [replace(entries[name], dtype=dtype, mode=mode) for name in self.settings.models]
        watches: dict[int, Stopwatch] = {}
        gc.collect()  # the models of the race before leave the device
        with _fresh_compiler() if mode == "compile" else nullcontext():
            for index, row in enumerate(rows):
                if row.error is not None:
                    continue
                self.progress(f"{dtype} {mode}: warming up {row.model}")
                try:
                    watch = Stopwatch(self.call(row), self.device, MIN_SECONDS)
                    first = watch.warm(self.settings.warmup)
                except Exception as error:
                    rows[index] = replace(row, error=one_line(error))
                    continue
                watches[index] = watch
                rows[index] = replace(row, compile_seconds=first if mode == "compile" else None)
            self.progress(f"{dtype} {mode}: {self.settings.rounds} rounds, {len(watches)} models")
            results = interleave(list(watches.values()), self.settings.rounds)
        for index, result in zip(watches, results, strict=True):
            if isinstance(result, Exception):
                rows[index] = replace(rows[index], error=one_line(result))
            else:
                rows[index] = replace(rows[index], seconds=tuple(result))
        return rows

    def call(self, row: Row) -> Callable[[], object]:
        """One batch through the model of a row, as it will be timed."""
        train, dtype = self.settings.train, getattr(torch, row.dtype)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(self.settings.batch_size, *(row.input_size or ()), generator=generator).to(self.device)
        model = self.build(row.model, self.settings.img_size).to(self.device).train(train)
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
            _loss(output).backward()  # type: ignore[no-untyped-call]

        return step if train else infer


def _input_size(model: nn.Module, img_size: int | None) -> tuple[int, int, int]:
    channels, height, width = resolve_model_data_config(model)["input_size"]  # type: ignore[no-untyped-call]
    if isinstance(own := getattr(model, "in_chans", None), int):
        channels = own
    return (channels, height, width) if img_size is None else (channels, img_size, img_size)


@contextmanager
def _fresh_compiler() -> Iterator[None]:
    """A cache of torch.compile that holds every model.

    Models of one class share one cache of eight; the ninth would silently run eager.
    """
    import torch._dynamo as dynamo  # slow to import, and only torch.compile needs it

    limits = ("recompile_limit", "cache_size_limit")  # the second is its name before torch 2.6
    limit = next(name for name in limits if hasattr(dynamo.config, name))
    dynamo.reset()
    try:
        with dynamo.config.patch({limit: 10_000}):
            yield
    finally:
        dynamo.reset()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The report ----------------------------------------------------------------------------------------------------------


def _check_output(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path} exists: name another file, or give --overwrite true")


def write_report(report: Report, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write the report as JSON, whole or not at all.

    Raises:
        ValueError: the file exists and `overwrite` is not given.
    """
    path = Path(path)
    _check_output(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def table(report: Report) -> Table:
    """The report for a terminal: one section for each dtype and mode, medians with quartiles in brackets."""
    settings, machine = report.settings, report.machine
    peaks = ", ".join(f"{dtype} {peak:.4g}" for dtype, peak in report.peaks.items())
    title = f"{'training step' if settings.train else 'inference'}, batch {settings.batch_size}, {machine['device']}"
    caption = (
        f"median [quartiles] of {settings.rounds} interleaved rounds; × first: median of the rounds' ratios\n"
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
        if index and index % len(settings.models) == 0:
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


def _flag(name: str) -> str:
    return name if name == "models" else "--" + name


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Tuples to lists, so that what is written equals what is read back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
