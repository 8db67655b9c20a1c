"""The results of a benchmark: rows, JSON file, table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from psvit.engine.train_config import Dtype
from psvit.errors import UserError
from psvit.files import check_writable, replacing
from psvit.latency.benchmark_config import BenchmarkConfig, Mode
from psvit.latency.timing import Speed, Spread
from psvit.report.tables import Table


@dataclass(frozen=True)
class Row:
    """One model in one dtype and mode.

    Args:
        model: its name.
        dtype: the number format.
        mode: eager or compile.
        input_size: channels, height, width.
        parameters: how many.
        macs: multiply-accumulates of the forward pass for one image with explicit attention, as papers report them.
        macs_timed: those of the timed call, for one image: `macs`, or in training of forward and backward.
        seconds: for one batch, one number per round.
        speed: statistics of `seconds`.
        gmacs_per_second: macs_timed times the median images a second, in 1e9.
        peak_fraction: gmacs_per_second over the matrix-product peak in this dtype. Convolutions by Winograd or FFT
            do fewer multiplications than they are counted for and may exceed 1.
        compile_seconds: the first call in mode compile: compilation and one batch.
        page_faults: per batch, median over the rounds; None if the system does not count them.
        error: why the model could not run, in one line; missing values are then None or empty.
        step: bare, psvit or timm: the step of training (see `psvit.tasks.classification.training_steps`); None for
            inference.
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
    step: str | None = None

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
    """The results of a benchmark, with the machine and the settings.

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


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a folder, an existing file without --overwrite, and a place that is not writable."""
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path} exists: name another file, or give --overwrite")
    check_writable(path.parent, f"--output {path}")


def write_report(report: Report, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write the report as JSON, whole or not at all.

    Raises:
        ValueError: the file exists and `overwrite` is not set.
    """
    path = Path(path)
    check_output(path, overwrite)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")


def table(report: Report) -> Table:
    """The report as a table: medians with quartiles in brackets; models that could not run are in the caption."""
    config, machine = report.config, report.machine
    first = "× bare" if config.train else "× first"
    headings = ("model", *(["step"] if config.train else []), "input", "dtype", "mode", "Mparams", "GMACs", "images/s",
                "ms/image", first, "GMAC/s", "of peak", "compile s")  # fmt: skip
    caption = [
        f"{'training steps' if config.train else 'inference'}, batch {config.batch_size}, {machine['device']}",
        f"median [quartiles] of {config.rounds} interleaved rounds; {first}: median of the rounds' ratios",
        *_over_timms(report.rows),
        f"matrix-product peak in GMAC/s: {', '.join(f'{dtype} {peak:.4g}' for dtype, peak in report.peaks.items())}",
        f"{machine['device_name'] or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}",
        *(f"could not run: {row.model}, {row.dtype}, {row.mode}: {row.error}" for row in report.rows if row.error),
    ]
    return Table(headings, [_cells(row) for row in report.rows], 5 if config.train else 4, "\n".join(caption))


def _over_timms(rows: Sequence[Row]) -> list[str]:
    """For each model, how many images a second psvit's step makes over timm's, round by round."""
    lines = []
    for ours, timms in pairwise(rows):
        if (ours.step, timms.step) == ("psvit", "timm") and ours.seconds and timms.seconds:
            ratio = Spread.of([theirs / own for own, theirs in zip(ours.seconds, timms.seconds, strict=True)])
            lines.append(f"{ours.model}, {ours.dtype}, {ours.mode}: psvit {_spread(ratio, '.3f')} × timm")
    return lines


def _cells(row: Row) -> list[str]:
    speed = row.speed
    return [
        row.model,
        *([row.step] if row.step is not None else []),
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


def _spread(spread: Spread | None, form: str) -> str:
    return "" if spread is None else f"{spread.median:{form}} [{spread.low:{form}}, {spread.high:{form}}]"


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Tuples to lists, as JSON gives them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
