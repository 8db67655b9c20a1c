"""Spreads and ratios of times, turns, the stopwatch, the matrix-product peak; never how fast anything is."""

import pytest
import torch
from small_networks import CPU

from psvit.latency import peak as machine
from psvit.latency.peak import matmul_peak
from psvit.latency.timing import Spread, Stopwatch, interleave, summarise


def test_summarise():
    first, second, failed = summarise([[0.5, 1.0, 2.0], [0.25, 0.5, 1.0], None], batch_size=8)
    assert failed is None
    assert first.images_per_second == Spread(6, 8, 12)
    assert first.ms_per_image == Spread(93.75, 125, 187.5)
    assert first.ratio == Spread(1, 1, 1)
    # The machine slowed down fourfold; the ratio of every round is 2 all the same.
    assert second.ratio == Spread(2, 2, 2)


def test_interleave_rotates():
    turns = []

    def watch(name):
        return lambda: turns.append(name) or float(len(turns))

    results = interleave([watch(name) for name in "abc"], rounds=4)
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc"
    assert results == [[1, 6, 8, 10], [2, 4, 9, 11], [3, 5, 7, 12]]


def test_interleave_goes_on_without_the_one_that_fails():
    timings = iter([1.0, RuntimeError("out of memory")])

    def failing():
        if isinstance(timing := next(timings), Exception):
            raise timing
        return timing

    failed, fine = interleave([failing, lambda: 2.0], rounds=4)
    assert str(failed) == "out of memory"
    assert fine == [2.0] * 4


class Clock:
    """Only calls take time."""

    def __init__(self, costs):
        self.now, self.costs, self.calls = 0.0, costs, 0

    def call(self):
        self.now += self.costs[min(self.calls, len(self.costs) - 1)]
        self.calls += 1

    def read(self):
        return self.now


def test_matmul_peak_takes_the_best_shape(monkeypatch):
    class Watch:
        def __init__(self, call, device, min_seconds):
            call()
            self.seconds = iter([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 9.0])

        def warm(self, calls):
            pass

        def __call__(self):
            return next(self.seconds)

    monkeypatch.setattr(machine, "Stopwatch", Watch)
    monkeypatch.setattr(machine, "PEAK_SHAPES", ((16, 16, 16), (32, 16, 16)))
    monkeypatch.setattr(machine, "PEAK_SECONDS", 1e9)
    # The median of the best three, 1, 2 and 3, is 2 seconds.
    assert matmul_peak(CPU, torch.float32) == 32 * 16 * 16 / 1e9 / 2
    monkeypatch.setattr(machine, "PEAK_SECONDS", 3.0)  # the second shape would take 4
    assert matmul_peak(CPU, torch.float32) == 16 * 16 * 16 / 1e9 / 2


@pytest.mark.parametrize(
    ("costs", "first", "repeats"),
    [
        ([64.0, 0.25], 64.0, 4),  # the first call compiles
        ([2.0], 2.0, 1),
        ([0.0] * 50 + [0.125], 0.0, 8),  # a coarse clock
    ],
)
def test_stopwatch_repeats_fast_calls(costs, first, repeats):
    clock = Clock(costs)
    watch = Stopwatch(clock.call, CPU, min_seconds=1.0, clock=clock.read)
    assert watch.warm(3) == first
    assert watch.repeats >= repeats
    calls = clock.calls
    assert watch() == costs[-1]
    assert clock.calls == calls + watch.repeats
