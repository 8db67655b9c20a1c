"""Means, intervals and comparisons of a few trainings with different seeds. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import fmean, variance
from typing import Literal

from scipy.stats import t as student

CONFIDENCE = 0.95

Verdict = Literal["holds", "does not hold", "open"]
ONE_SEED = ", one seed"
"""Follows a verdict on networks of which one was trained once: its interval borrows the scatter of another."""
GUESSES = ", over one that guesses"
"""Follows a verdict over a network that has learned next to nothing."""


@dataclass(frozen=True)
class Spread:
    """How much a network of a study scatters with its seeds, for comparisons in which one side was trained once.

    Args:
        variance: of the figure.
        freedom: degrees of freedom behind it; 0 if no network was trained twice.
    """

    variance: float
    freedom: int


def widest(samples: Sequence[Sequence[float]]) -> Spread:
    """The scatter of the sample that scatters most.

    Networks of one study scatter by very different amounts, and one that was trained once may be of the restless ones:
    a mean of all would promise more than is known.
    """
    spreads = [Spread(variance(values), len(values) - 1) for values in samples if len(values) > 1]
    return max(spreads, key=lambda spread: spread.variance, default=Spread(inf, 0))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of `values`, by Student's t; None of fewer than two."""
    if len(values) < 2:
        return None
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * sqrt(variance(values) / len(values))
    return fmean(values) - half, fmean(values) + half


def difference(a: Sequence[float], b: Sequence[float], spread: Spread) -> tuple[float, float, float]:
    """Mean of `a` less mean of `b`, with the 95 % interval of the difference: (difference, low, high).

    By Welch's t-test. Where one side has one value, both take the variance of `spread` (see `widest`); without any the
    interval is infinite.
    """
    delta = fmean(a) - fmean(b)
    if len(a) > 1 and len(b) > 1:
        parts = variance(a) / len(a), variance(b) / len(b)
        total = sum(parts)
        if total == 0:
            return delta, delta, delta
        freedom = total**2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    elif spread.freedom:
        total, freedom = spread.variance * (1 / len(a) + 1 / len(b)), spread.freedom
    else:
        return delta, -inf, inf
    half = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * sqrt(total)
    return delta, delta - half, delta + half


def ratio(a: Sequence[float], b: Sequence[float], spread: Spread) -> tuple[float, float, float]:
    """Mean of `a` over mean of `b`, with its 95 % interval: (ratio, low, high). All values are positive.

    The interval is that of the difference of the logarithms (`difference`); `spread` is of the logarithms too.
    """
    _, low, high = difference([log(value) for value in a], [log(value) for value in b], spread)
    point, centre = fmean(a) / fmean(b), fmean(map(log, a)) - fmean(map(log, b))
    return point, point * exp(low - centre), point * exp(high - centre) if high < inf else inf


def verdict(low: float, high: float, bound: float) -> Verdict:
    """What the interval of a ratio, or of a difference, says of "at most `bound`"."""
    return "holds" if high <= bound else "does not hold" if low > bound else "open"
