"""Means, confidence intervals and comparisons of trainings with different seeds. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import fmean, variance
from typing import Any, Literal

from scipy.stats import t as student
from scipy.stats import ttest_1samp, ttest_ind

CONFIDENCE = 0.95

Verdict = Literal["holds", "does not hold", "open"]


@dataclass(frozen=True)
class Spread:
    """The variance over seeds, for comparisons with a network that was trained once.

    Args:
        variance: of the metric.
        freedom: its degrees of freedom; 0 if no network was trained twice.
    """

    variance: float
    freedom: int


def widest(samples: Sequence[Sequence[float]]) -> Spread:
    """The largest variance of the samples.

    Variances of a study's networks differ widely, so their mean would be too optimistic for a network trained once.
    """
    spreads = [Spread(variance(values), len(values) - 1) for values in samples if len(values) > 1]
    return max(spreads, key=lambda spread: spread.variance, default=Spread(inf, 0))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of `values`, by Student's t; None for fewer than two values."""
    return None if len(values) < 2 else _interval(ttest_1samp, values, 0)


def difference(a: Sequence[float], b: Sequence[float], spread: Spread) -> tuple[float, float, float]:
    """Mean of `a` minus mean of `b`, with the 95 % interval of the difference: (difference, low, high).

    By Welch's t-test. If one side has a single value, both use the variance of `spread` (see `widest`); without one the
    interval is infinite.
    """
    delta = fmean(a) - fmean(b)
    if len(a) > 1 and len(b) > 1:
        return delta, *_interval(ttest_ind, a, b, equal_var=False)
    if not spread.freedom:
        return delta, -inf, inf
    error = sqrt(spread.variance * (1 / len(a) + 1 / len(b)))
    half = float(student.ppf((1 + CONFIDENCE) / 2, spread.freedom)) * error
    return delta, delta - half, delta + half


def _interval(test: Callable[..., Any], *samples: Any, **options: Any) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about equal values, whose interval is still exact
        low, high = test(*samples, **options).confidence_interval(CONFIDENCE)
    return float(low), float(high)


def ratio(a: Sequence[float], b: Sequence[float], spread: Spread) -> tuple[float, float, float]:
    """Mean of `a` over mean of `b`, with its 95 % interval: (ratio, low, high). All values are positive.

    The interval comes from the difference of the logarithms; `spread` is the variance of logarithms too.
    """
    centre, low, high = difference([log(value) for value in a], [log(value) for value in b], spread)
    point = fmean(a) / fmean(b)
    return point, point * exp(low - centre), point * exp(high - centre) if high < inf else inf


def verdict(low: float, high: float, bound: float) -> Verdict:
    """The verdict on "at most `bound`" from a confidence interval."""
    return "holds" if high <= bound else "does not hold" if low > bound else "open"
