"""The budget of a search, and the cost of a network as the sum of its parts. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from psvit.arch.arch import Arch
from psvit.arch.cost import Parts
from psvit.arch.quantities import COUNTS, format_count, parse_quantity
from psvit.arch.steps import Elements, Step
from psvit.errors import UserError

if TYPE_CHECKING:
    from psvit.latency.table import LatencyTable

Cost = tuple[float, ...]
"""MACs, parameters and, with a latency table, seconds for a batch."""

KINDS = ("macs", "params", "latency")
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Prices:
    """The cost of each part of a network; a network costs the sum of its parts.

    Args:
        like: the settings that all networks share, all but genotype, widths and elements.
        stages: the most stages that a network has.
        img_size: side or (height, width) in pixels, in_chans: image channels, num_classes: classes.
        seconds: the latency table; None if latency is not limited.
    """

    def __init__(
        self,
        like: Arch,
        stages: int,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        seconds: LatencyTable | None = None,
    ) -> None:
        self._parts = lru_cache(partial(_parts, like, stages, img_size, in_chans, num_classes))
        self.seconds = seconds
        self.kinds = KINDS if seconds is not None else KINDS[:2]
        self.nothing: Cost = (0.0,) * len(self.kinds)
        self._known: dict[Step, Cost] = {}

    def step(self, step: Step) -> Cost:
        """The cost of a layer and of the pooling before it."""
        if step not in self._known:
            table, parts = self.seconds, self._parts(step.elements)
            cost = self._cost(parts.layer(step.kind, step.stage, step.width), table.layer(step) if table else None)
            if step.pooled_from:
                pooling = parts.pool(step.stage, step.pooled_from, step.width)
                cost = plus(self._cost(pooling, table.pool(step) if table else None), cost)
            self._known[step] = cost
        return self._known[step]

    def first(self, step: Step) -> Cost:
        """The cost of the stem before the first layer."""
        return self._cost(
            self._parts(step.elements).embed(step.width), self.seconds.embed(step) if self.seconds else None
        )

    def last(self, step: Step) -> Cost:
        """The cost of the head behind the last layer."""
        return self._cost(
            self._parts(step.elements).head(step.width), self.seconds.head(step) if self.seconds else None
        )

    def of(self, steps: Sequence[Step]) -> Cost:
        """The cost of a whole network."""
        costs = [self.first(steps[0]), *map(self.step, steps), self.last(steps[-1])]
        return tuple(map(sum, zip(*costs, strict=True)))

    def _cost(self, macs_and_params: tuple[int, int], seconds: float | None) -> Cost:
        return (*map(float, macs_and_params), *(() if seconds is None else (seconds,)))


def _parts(
    like: Arch, stages: int, img_size: int | tuple[int, int], in_chans: int, num_classes: int, elements: Elements
) -> Parts:
    return Parts(replace(like, **elements._asdict()), stages, img_size, in_chans, num_classes)


def plus(a: Cost, b: Cost) -> Cost:
    """The sum of two costs, kind by kind."""
    return tuple(x + y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Budget:
    """Upper limits on the cost of a network.

    Args:
        macs: multiply-accumulates for one image.
        params: parameters.
        latency: seconds of a batch.

    Raises:
        UserError: a limit that is not positive.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for kind, limit in self.given.items():
            if not 0 < limit < float("inf"):
                raise UserError(f"--budget {kind}={limit:g} is not a positive number")

    @classmethod
    def parse(cls, texts: Iterable[str], plain_macs: float, plain_params: float) -> Budget:
        """Read the values of ``--budget``.

        Args:
            texts: such as ``0.5x`` (of the plain twin's MACs), ``600M`` or ``macs=600M``, ``params=5M``,
                ``params=0.5x``, ``latency=5ms``.
            plain_macs: MACs of the plain twin, plain_params: its parameters.

        Raises:
            UserError: another value, or one kind of limit given twice.
        """
        given: dict[str, tuple[str, float]] = {}
        for text in texts:
            name, _, value = text.rpartition("=")
            name = name or "macs"
            if name not in KINDS:
                raise UserError(f"--budget {text!r} limits {name!r}: the limits are {', '.join(KINDS)}")
            twin = {"macs": plain_macs, "params": plain_params}.get(name)
            limit = parse_quantity(value, TIMES if name == "latency" else COUNTS | ({"x": twin} if twin else {}))
            if limit is None:
                example = "latency=5ms" if name == "latency" else "600M, 0.5x or params=5M"
                raise UserError(f"--budget {text!r} is not a positive limit such as {example}")
            if name in given:
                raise UserError(f"--budget limits {name} twice, {given[name][0]!r} and {text!r}: give it once")
            given[name] = text, limit
        return cls(**{name: limit for name, (_, limit) in given.items()})

    @property
    def given(self) -> dict[str, float]:
        """The limits, by kind."""
        return {kind: getattr(self, kind) for kind in KINDS if getattr(self, kind) is not None}

    def __bool__(self) -> bool:
        return bool(self.given)

    def limits(self, prices: Prices) -> Cost:
        """The limits in the order of `Cost`; infinity for no limit.

        Raises:
            UserError: a latency without a latency table.
        """
        if self.latency is not None and "latency" not in prices.kinds:
            raise UserError("a budget of latency needs measured prices: give Prices a latency table")
        return tuple(self.given.get(kind, float("inf")) for kind in prices.kinds)

    def text(self, prices: Prices) -> str:
        """The limits as text."""
        return self.text_of(self.limits(prices), prices)

    def text_of(self, cost: Cost, prices: Prices) -> str:
        """The limited kinds of a cost, as text."""
        return " and ".join(
            readable(kind, own) for kind, own in zip(prices.kinds, cost, strict=True) if kind in self.given
        )


def readable(kind: str, value: float) -> str:
    """``("macs", 6e8)`` -> ``"600 M MACs"``; ``("latency", 0.005)`` -> ``"5 ms"``."""
    if kind == "latency":
        return f"{1000 * value:.4g} ms"
    return f"{format_count(value)} {'MACs' if kind == 'macs' else 'parameters'}"
