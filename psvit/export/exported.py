"""The results of an export: difference to the network, accuracy, speed; and their summary for the user."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psvit.errors import UserError
from psvit.export.export_config import ExportConfig
from psvit.export.graph import example_images
from psvit.latency.timing import MIN_SECONDS, Spread, Stopwatch, seconds_in_turns
from psvit.report.tables import Table

Classify = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> logits (B, classes)."""

EAGER, FLOAT32, INT8 = "torch", "float32", "int8"
"""The network in torch (eager, float32), and the files by precision."""


@dataclass(frozen=True)
class Exported:
    """The results of an export.

    Args:
        files: the written file, two with int8, or folder.
        differences: largest absolute difference to the network's logits, by precision.
        operators: count of each operator in the graph, by precision.
        opset: ONNX opset; None for other formats.
        accuracy: top-1 in percent, by precision, on the images that `measured_on` names.
        measured_on: data set, split and number of images.
        timings: rows of `timing_rows`.
        address: of the repository on the Hub.
    """

    files: tuple[Path, ...]
    differences: Mapping[str, float]
    operators: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    opset: int | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    measured_on: Mapping[str, Any] = field(default_factory=dict)
    timings: Sequence[dict[str, Any]] = ()
    address: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "files": {str(path): path.stat().st_size if path.is_file() else None for path in self.files},
            "largest_difference": dict(self.differences),
            "operators": {name: dict(counts) for name, counts in self.operators.items()},
            "opset": self.opset,
            "top1": {name: round(value, 4) for name, value in self.accuracy.items()},
            "measured_on": dict(self.measured_on),
            "timings": list(self.timings),
            "address": self.address,
        }


@torch.inference_mode()
def largest_difference(
    reference: Classify, exported: Classify, input_size: tuple[int, int, int], batch_sizes: Sequence[int]
) -> float:
    """The largest absolute difference of the logits, over batches of normal noise."""
    largest = 0.0
    for seed, batch_size in enumerate(batch_sizes, start=1):
        images = example_images(input_size, batch_size, seed)
        difference = (reference(images) - exported(images)).abs().max()
        largest = max(largest, float(difference.nan_to_num(nan=float("inf"))))
    return largest


def check_difference(difference: float, tolerance: float, what: str) -> None:
    """Refuse an exported file whose outputs differ.

    Raises:
        UserError: the difference is above the tolerance.
    """
    if difference > tolerance:
        raise UserError(
            f"{what} differs from the network by {difference:.2g}, above --tolerance {tolerance:g}: nothing is written"
        )


@torch.inference_mode()
def time_in_turns(
    models: Mapping[str, Classify], input_size: tuple[int, int, int], batch_size: int, rounds: int
) -> list[dict[str, Any]]:
    """Time several models on one batch, in turns; see `timing_rows`."""
    images = example_images(input_size, batch_size)
    cpu = torch.device("cpu")
    watches = {name: Stopwatch(partial(model, images), cpu, MIN_SECONDS) for name, model in models.items()}
    return timing_rows(seconds_in_turns(watches, rounds), batch_size)


def timing_rows(seconds: Mapping[str, Sequence[float]], batch_size: int) -> list[dict[str, Any]]:
    """A row for each model: milliseconds per batch, and its speed relative to the models before it.

    Args:
        seconds: for a batch, one number per round, by the name of the model.
        batch_size: images per batch.

    Returns:
        name, batch_size, ms_per_batch, speed_over by name; a spread is [lower quartile, median, upper quartile].
    """

    rows: list[dict[str, Any]] = []
    for name, own in seconds.items():
        ratios = {
            row["name"]: [other / mine for other, mine in zip(seconds[row["name"]], own, strict=True)] for row in rows
        }
        rows.append({
            "name": name,
            "batch_size": batch_size,
            "ms_per_batch": _quartiles([1000 * second for second in own], 4),
            "speed_over": {other: _quartiles(values, 3) for other, values in ratios.items()},
        })  # fmt: skip
    return rows


def _quartiles(values: Sequence[float], digits: int) -> list[float]:
    spread = Spread.of(values)
    return [round(value, digits) for value in (spread.low, spread.median, spread.high)]


def timing_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Timings as a table: medians with quartiles in brackets."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    cells = []
    for row in rows:
        speeds = [_cell(row["speed_over"].get(name), ".2f") for name in names[:-1]]
        cells.append([row["name"], str(row["batch_size"]), _cell(row["ms_per_batch"], ".4g"), *speeds])
    headings = ("run by", "batch", "ms a batch", *(f"speed over {name}" for name in names[:-1]))
    return Table(headings, cells, caption="median [quartiles] of interleaved rounds")


def _cell(quartiles: Sequence[float] | None, form: str) -> str:
    return "" if quartiles is None else f"{quartiles[1]:{form}} [{quartiles[0]:{form}}, {quartiles[2]:{form}}]"


def summary(result: Exported, config: ExportConfig) -> list[str]:
    """Lines for the user: the results, and the next command."""
    lines = []
    if result.opset is not None:
        lines.append(f"opset     {result.opset} of ONNX")
    for name, operators in result.operators.items():
        counts = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{operator} {count}" for operator, count in counts)
        lines.append(f"operators {f'{name}: ' if len(result.operators) > 1 else ''}{listed}")
    batches = ", ".join(map(str, config.checked_batches))
    for name, difference in result.differences.items():
        limit = f", tolerance {config.tolerance:g}" if name != INT8 else ""
        lines.append(
            f"parity    {name} differs from the network by at most {difference:.2g} (batches of {batches}{limit})"
        )
    if result.accuracy:
        on = result.measured_on
        accuracy = ", ".join(f"{name} {value:.2f} %" for name, value in result.accuracy.items())
        lines.append(f"accuracy  {accuracy} (top-1 on {on['images']} images, {on['data']}, {on['split']} split)")
    elif config.int8:
        lines.append("accuracy  not measured, and convolutions left in float32: give --data with your images")
    sizes = (f"{path} ({path.stat().st_size / 1e6:.3g} MB)" if path.is_file() else str(path) for path in result.files)
    lines.append("written   " + ", ".join(sizes))
    if result.address:
        lines.append(f"hub       {result.address}")
    if config.format in ("onnx", "timm"):
        lines.append(f"next      psvit predict {shlex.quote(str(result.files[-1]))} IMAGE")
    return lines
