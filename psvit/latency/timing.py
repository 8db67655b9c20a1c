"""Timings of calls in turns, and their statistics: medians, quartiles, ratios round by round."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)

MIN_SECONDS = 0.02
"""The shortest timing; faster calls are repeated within it."""


@dataclass(frozen=True)
class Spread:
    """Median, lower and upper quartile of some numbers."""

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
    """Speeds from the seconds for a batch: one list per model, one number per round, None for a model that failed.

    The ratio is the median of the ratios within each round, not the ratio of the medians, so drift of the machine
    cancels out.
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


class Stopwatch:
    """Times one call; ``watch()`` returns its seconds.

    A fast call is repeated until a timing lasts about `min_seconds`; `warm` sets the number of repeats.

    Args:
        call: the call to time.
        device: synchronised before the clock is read.
        min_seconds: the shortest timing.
        clock: returns seconds, from any origin.
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
            # at least double, so that it ends; at most tenfold, in case one reading is too short
            wanted = math.ceil(self.min_seconds / seconds) if seconds > 0 else 10 * self.repeats
            self.repeats = min(max(wanted, 2 * self.repeats), 10 * self.repeats)
        return first

    def __call__(self) -> float:
        """Seconds of one call."""
        _wait_for(self.device)
        start = self.clock()
        for _ in range(self.repeats):
            self.call()
        _wait_for(self.device)
        return (self.clock() - start) / self.repeats


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def interleave(watches: Sequence[Callable[[], float]], rounds: int) -> list[list[float] | Exception]:
    """Call every watch once per round, in an order that rotates from round to round.

    A watch that raises is left out from then on, and its result is the exception.
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


def seconds_in_turns(watches: Mapping[Name, Stopwatch], rounds: int) -> dict[Name, list[float]]:
    """Warm every watch up, then call each once per round: seconds by name, one for each round.

    Raises:
        Exception: whatever a call raised.
    """
    for watch in watches.values():
        watch.warm(2)
    seconds: dict[Name, list[float]] = {}
    for name, timings in zip(watches, interleave(list(watches.values()), rounds), strict=True):
        if isinstance(timings, Exception):
            raise timings
        seconds[name] = timings
    return seconds
