"""Measured seconds of parts -> predicted seconds of networks, and how good the predictions are.

Parts that run alone have their weights in the cache and no overhead of a network, so their sum is biased. A scale and
an offset are fitted to some whole networks, and the predictions are validated on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from psvit.arch.arch import ATTEND, Arch
from psvit.arch.steps import Step, steps_of
from psvit.errors import UserError


@dataclass(frozen=True)
class Point:
    """Predicted and measured seconds for a batch through a network."""

    genotype: str
    widths: tuple[int, ...]
    predicted: float
    measured: float


@dataclass(frozen=True)
class Validation:
    """Quality of the predictions on networks that the table was not fitted to.

    Attributes:
        networks: number of networks.
        kendall: Kendall's tau of predicted and measured seconds, spearman: Spearman's rank correlation; None if all
            are equal.
        median_error: median of the absolute relative errors, worst_error: their maximum.
        r2: coefficient of determination; None if the measurements do not vary.
        points: the networks.
    """

    networks: int
    kendall: float | None
    spearman: float | None
    median_error: float
    worst_error: float
    r2: float | None
    points: tuple[Point, ...] = ()

    def __str__(self) -> str:
        ranks = [
            f"{name} {value:.3f}, "
            for name, value in (("Kendall's tau", self.kendall), ("Spearman", self.spearman), ("R2", self.r2))
            if value is not None
        ]
        errors = f"median error {self.median_error:.1%}, worst {self.worst_error:.1%}"
        return f"{''.join(ranks)}{errors} on {self.networks} other networks"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Validation:
        """Rebuild a Validation from `to_dict`."""
        points = tuple(Point(**{**point, "widths": tuple(point["widths"])}) for point in data["points"])
        return cls(**{**data, "points": points})


@dataclass(frozen=True)
class LatencyTable:
    """Predicted seconds for a batch, part by part; a network takes the sum of its parts.

    Args:
        seconds: of each part by its name, as measured alone.
        scale: factor on every part.
        offset: seconds of a network beyond its parts; added to the stem.
        validation: quality of the predictions; None if the space has too few networks.
        about: everything that the measurement depends on.
    """

    seconds: Mapping[str, float]
    scale: float = 1.0
    offset: float = 0.0
    validation: Validation | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def embed(self, step: Step) -> float:
        """Seconds of the stem before the first layer, with the offset."""
        return self._part("embed", step.elements.stem, step.width) + self.offset

    def layer(self, step: Step) -> float:
        """Seconds of a layer. An S right after an A includes the extra cost of the A's explicit map."""
        _, mlp, ratio = step.elements
        place = step.stage, step.width, mlp, f"{ratio:g}"
        seconds = self._part(step.kind, *place)
        if step.run == 1:
            seconds += self._part("explicit", *place) - self._part(ATTEND, *place)
        return seconds

    def pool(self, step: Step) -> float:
        """Seconds of the pooling before a layer."""
        return self._part("pool", step.stage, step.pooled_from, step.width)

    def head(self, step: Step) -> float:
        """Seconds of the last norm, the global pooling and the classifier behind the last layer."""
        return self._part("head", step.stage, step.width)

    def of(self, arch: Arch) -> float:
        """Seconds of a whole network."""
        steps = steps_of(arch)
        parts = [self.embed(steps[0]), self.head(steps[-1])]
        parts += [self.pool(step) for step in steps if step.pooled_from]
        parts += map(self.layer, steps)
        return math.fsum(parts)  # independent of the order, so that networks of the same parts tie

    def calibrated(self, archs: Sequence[Arch], measured: Sequence[float]) -> LatencyTable:
        """This table with scale and offset fitted to the measured seconds of networks."""
        raw = replace(self, scale=1.0, offset=0.0)
        scale, offset = fit([raw.of(arch) for arch in archs], measured)
        return replace(self, scale=scale, offset=offset)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = {"about": dict(self.about), "scale": self.scale, "offset": self.offset, "seconds": dict(self.seconds)}
        return own | {"validation": self.validation and self.validation.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Rebuild a LatencyTable from `to_dict`."""
        return cls(**{**data, "validation": data["validation"] and Validation.from_dict(data["validation"])})

    def _part(self, *name: object) -> float:
        try:
            return self.scale * self.seconds[part_name(*name)]
        except KeyError as error:
            raise UserError(f"the latency table has no {error}: measure one for this space by open_table") from error


def part_name(*name: object) -> str:
    """``("pool", 1, 192, 256)`` -> ``"pool 1 192 256"``: the name of a part in a table."""
    return " ".join(map(str, name))


def fit(sums: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """Fit ``scale * sum + offset`` to `measured` by least squares of the relative errors.

    The offset is 0 if the sums are all equal or the fitted scale is not positive.
    """
    own, seconds = np.asarray(sums), np.asarray(measured)
    mean = seconds.mean()
    columns = np.stack([own / seconds, mean / seconds], axis=1)  # scaled alike, for a meaningful rank
    (scale, offset), _, rank, _ = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=1e-6)
    if rank < 2 or scale <= 0:
        return float(columns[:, 0].sum() / (columns[:, 0] ** 2).sum()), 0.0
    return float(scale), float(offset * mean)


def validate(table: LatencyTable, archs: Sequence[Arch], measured: Sequence[float]) -> Validation:
    """Compare the table's predictions with the measured seconds of whole networks."""
    predicted, seconds = np.array([table.of(arch) for arch in archs]), np.asarray(measured)
    errors = np.abs(predicted / seconds - 1)
    vary = len(set(measured)) > 1
    differ = vary and len(set(predicted)) > 1
    residual, variance = ((seconds - predicted) ** 2).sum(), ((seconds - seconds.mean()) ** 2).sum()
    return Validation(
        networks=len(archs),
        kendall=float(kendalltau(predicted, seconds).statistic) if differ else None,
        spearman=float(spearmanr(predicted, seconds).statistic) if differ else None,
        median_error=float(np.median(errors)),
        worst_error=float(errors.max()),
        r2=float(1 - residual / variance) if vary else None,
        points=tuple(
            Point(arch.genotype, arch.widths, float(own), float(second))
            for arch, own, second in zip(archs, predicted, seconds, strict=True)
        ),
    )
