"""The results of a benchmark: rows, their file, their table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from psvit.engine.train_config import Dtype
from psvit.errors import UserError
from psvit.files import check_writable, replacing
from psvit.latency.benchmark_config import BenchmarkConfig, Mode
from psvit.latency.timing import Speed, Spread


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


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a folder, a file that must not be replaced, and a place that cannot be written."""
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
    check_output(path, overwrite)
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
