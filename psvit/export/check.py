"""An exported file beside the network that it comes from: the same numbers, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from psvit.errors import UserError
from psvit.export.graph import example_images
from psvit.latency.timing import MIN_SECONDS, Spread, Stopwatch, interleave

Classify = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> logits (B, classes)."""


@torch.inference_mode()
def largest_difference(
    reference: Classify, exported: Classify, input_size: tuple[int, int, int], batch_sizes: Sequence[int]
) -> float:
    """The largest absolute difference of their logits, over batches of normal noise."""
    largest = 0.0
    for seed, batch_size in enumerate(batch_sizes, start=1):
        images = example_images(input_size, batch_size, seed)
        difference = (reference(images) - exported(images)).abs().max()
        largest = max(largest, float(difference.nan_to_num(nan=float("inf"))))
    return largest


def check_difference(difference: float, tolerance: float, what: str) -> None:
    """Refuse an exported file that computes something else.

    Raises:
        UserError: the difference is above the tolerance.
    """
    if difference > tolerance:
        raise UserError(
            f"{what} differs from the network by {difference:.2g}, above --tolerance {tolerance:g}: nothing is written"
        )


@dataclass(frozen=True)
class Timing:
    """How long one of several that took turns took at one batch size.

    Args:
        name: what ran.
        batch_size: images at a time.
        seconds: of a batch, one number a round.
    """

    name: str
    batch_size: int
    seconds: tuple[float, ...]

    @property
    def ms_per_batch(self) -> Spread:
        """Milliseconds of a batch, over the rounds."""
        return Spread.of([1000 * second for second in self.seconds])

    def speed_over(self, other: Timing) -> Spread:
        """How many times as fast as another of the same rounds; the ratio is taken round by round."""
        return Spread.of([theirs / own for theirs, own in zip(other.seconds, self.seconds, strict=True)])


@torch.inference_mode()
def time_in_turns(
    models: Mapping[str, Classify], input_size: tuple[int, int, int], batch_size: int, rounds: int
) -> list[Timing]:
    """Time several models on one batch, one turn each in every round."""
    images = example_images(input_size, batch_size)
    cpu = torch.device("cpu")
    watches = [Stopwatch(partial(model, images), cpu, MIN_SECONDS) for model in models.values()]
    for watch in watches:
        watch.warm(2)
    timings = []
    for name, result in zip(models, interleave(watches, rounds), strict=True):
        if isinstance(result, Exception):
            raise result
        timings.append(Timing(name, batch_size, tuple(result)))
    return timings


def rows_of(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Timings as plain data: a row for each, with its speed over those that stand before it at its batch size.

    A spread is [lower quartile, median, upper quartile].
    """
    rows = []
    for place, timing in enumerate(timings):
        before = [other for other in timings[:place] if other.batch_size == timing.batch_size]
        speeds = {other.name: _quartiles(timing.speed_over(other), 3) for other in before}
        ms = _quartiles(timing.ms_per_batch, 4)
        rows.append({"name": timing.name, "batch_size": timing.batch_size, "ms_per_batch": ms, "speed_over": speeds})
    return rows


def _quartiles(spread: Spread, digits: int) -> list[float]:
    return [round(value, digits) for value in (spread.low, spread.median, spread.high)]


def timing_table(timings: Sequence[Timing]) -> Table:
    """Timings for a terminal: one section for each batch size, medians with quartiles in brackets."""
    names = list(dict.fromkeys(timing.name for timing in timings))
    table = Table(caption=escape("median [quartiles] of interleaved rounds"))
    for heading in ("batch", "run by", "ms a batch", *(f"speed over {name}" for name in names[:-1])):
        table.add_column(heading, justify="left" if heading == "run by" else "right")
    rows = rows_of(timings)
    for before, row in zip((None, *rows), rows, strict=False):
        if before is not None and before["batch_size"] != row["batch_size"]:
            table.add_section()
        speeds = [_cell(row["speed_over"][name], ".2f") if name in row["speed_over"] else "" for name in names[:-1]]
        table.add_row(str(row["batch_size"]), row["name"], _cell(row["ms_per_batch"], ".4g"), *speeds)
    return table


def _cell(quartiles: Sequence[float], form: str) -> str:
    low, median, high = quartiles
    return escape(f"{median:{form}} [{low:{form}}, {high:{form}}]")
