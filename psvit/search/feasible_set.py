"""The networks of a space within a budget. No torch here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice

from psvit.arch.arch import ATTEND, Arch
from psvit.arch.steps import Step, steps_of
from psvit.errors import UserError
from psvit.search.budget import Budget, Cost, Prices, plus
from psvit.search.space import Space, State

LISTED = 100_000
"""A set of at most this many networks is listed in memory."""

CLOSE = 0.1
"""MACs that differ by at most this fraction are close."""

TRIES = 100_000
"""`FeasibleSet.nearest` stops after this many networks."""


class FeasibleSet:
    """The networks of a space within a budget; iterating yields each once, in the order of the tree.

    Branches without a network within the budget are pruned, so iterating takes time in proportion to the set.

    Args:
        space: the networks to choose from.
        budget: limits on their cost.
        prices: the cost of their parts; by default MACs and parameters.
        least: networks that use less than this fraction of every limit are left out.

    Raises:
        UserError: no network is cheap enough; the message names the cheapest, or the nearest.
    """

    def __init__(self, space: Space, budget: Budget, prices: Prices | None = None, least: float = 0.0) -> None:
        self.space, self.budget, self.prices, self.least = space, budget, prices or space.prices(), least
        self.limits = budget.limits(self.prices)
        self._rests: dict[tuple[bool, State], Cost] = {}
        self._counts: dict[int | None, int] = {}
        if budget and (beyond := self._nearest_infeasible()) is not None:
            raise UserError(self._refusal(beyond))

    def __iter__(self) -> Iterator[Arch]:
        return (self.space.arch(steps) for steps, _ in self._walk())

    def __contains__(self, arch: object) -> bool:
        return isinstance(arch, Arch) and arch in self.space and self._fits(self.costs(arch))

    def costs(self, arch: Arch) -> Cost:
        """The cost of a network, by the kinds in `prices.kinds`."""
        return self.prices.of(steps_of(arch))

    @cached_property
    def members(self) -> list[Arch] | None:
        """All networks in the order of the tree; None if there are more than `LISTED`."""
        walked = [steps for steps, _ in islice(self._walk(), LISTED + 1)]
        return None if len(walked) > LISTED else [self.space.arch(steps) for steps in walked]

    def count(self, at_most: int | None = None) -> int:
        """The number of networks, counted up to `at_most`."""
        if at_most not in self._counts:
            self._counts[at_most] = sum(1 for _ in islice(self._walk(), at_most))
        return self._counts[at_most]

    def sample(self, rng: random.Random) -> Arch:
        """Draw a network: uniformly from at most `LISTED` networks, else nearly so.

        A larger set is walked layer by layer, among the layers that can still be completed within the budget, each
        weighted by the number of networks of the space that begin so. `least` then holds if 1,000 draws find it.
        """
        if self.members is not None:
            return rng.choice(self.members)
        arch = self._draw(rng)
        for _ in range(1000 if self.least else 0):
            if self._fits(self.costs(arch)):
                break
            arch = self._draw(rng)
        return arch

    def sample_near(self, other: Arch, rng: random.Random) -> Arch:
        """Draw a network whose MACs differ by at most `CLOSE` from those of another, or the closest of 50 drawn."""
        macs, drawn = self.costs(other)[0], []
        for _ in range(50):
            arch = self.sample(rng)
            apart = abs(self.costs(arch)[0] / macs - 1)
            if apart <= CLOSE:
                return arch
            drawn.append((apart, arch))
        return min(drawn, key=lambda pair: pair[0])[1]

    def nearest(self) -> Arch:
        """The network that uses the largest fraction of any limit."""
        best: tuple[float, tuple[Step, ...]] | None = None
        for tries, (steps, cost) in enumerate(self._walk()):
            used = self._used(cost)
            if best is None or used > best[0]:
                best = used, steps
            if best[0] > 0.9999 or tries > TRIES:
                break
        assert best is not None, "a set without networks is refused when it is made"
        return self.space.arch(best[1])

    def _used(self, cost: Cost) -> float:
        return max((own / limit for own, limit in zip(cost, self.limits, strict=True)), default=0.0)

    def _fits(self, cost: Cost) -> bool:
        used = [own / limit for own, limit in zip(cost, self.limits, strict=True) if limit < float("inf")]
        return all(part <= 1 for part in used) and (not used or max(used) >= self.least)

    def _walk(self) -> Iterator[tuple[tuple[Step, ...], Cost]]:
        def walk(steps: tuple[Step, ...], state: State | None, cost: Cost) -> Iterator[tuple[tuple[Step, ...], Cost]]:
            if state is not None and self.space.ends(state):
                whole = plus(cost, self.prices.last(steps[-1]))
                if self._fits(whole):
                    yield steps, whole
            for step in self.space.moves(state):
                following = self.space.state(len(steps), step)
                spent = self._spent(cost, state, step)
                if self._below(plus(spent, self._rest(following, min))) and self._enough(spent, following):
                    yield from walk((*steps, step), following, spent)

        return walk((), None, self.prices.nothing)

    def _draw(self, rng: random.Random) -> Arch:
        def within(steps: Sequence[Step], ends: bool) -> bool:
            cost = self.prices.first(steps[0])
            for step in steps:
                cost = plus(cost, self.prices.step(step))
            last = steps[-1]
            rest = self.prices.last(last) if ends else self._rest(self.space.state(len(steps) - 1, last), min)
            return self._below(plus(cost, rest))

        return self.space.sample(rng, within)

    def _spent(self, cost: Cost, state: State | None, step: Step) -> Cost:
        """The cost of the layers up to `step`; `cost` is that of the layers before it."""
        before = self.prices.first(step) if state is None else cost
        return plus(before, self.prices.step(step))

    def _below(self, cost: Cost) -> bool:
        return all(own <= limit for own, limit in zip(cost, self.limits, strict=True))

    def _enough(self, spent: Cost, state: State) -> bool:
        return not self.least or self._used(plus(spent, self._rest(state, max))) >= self.least

    def _rest(self, state: State, choose: Callable[[float, float], float]) -> Cost:
        """The minimum or maximum cost of completing a network from here, kind by kind."""
        key = (choose is min, state)
        if key not in self._rests:
            found: list[Cost] = []
            if self.space.ends(state):
                found.append(self.prices.last(Step(ATTEND, 0, state.stage, state.width, 0, state.elements)))
            for step in self.space.moves(state):
                found.append(plus(self.prices.step(step), self._rest(self.space.state(state.layers, step), choose)))
            rest = found[0]
            for other in found[1:]:
                rest = tuple(choose(a, b) for a, b in zip(rest, other, strict=True))
            self._rests[key] = rest
        return self._rests[key]

    def _nearest_infeasible(self) -> tuple[Step, ...] | None:
        """The network that exceeds the budget least, by the largest ratio of cost to limit; None if one fits.

        Branch and bound: depth first, cheapest branch first.
        """
        best: list[tuple[float, tuple[Step, ...]]] = []

        def walk(steps: tuple[Step, ...], state: State | None, cost: Cost) -> bool:
            if state is not None and self.space.ends(state):
                used = self._used(plus(cost, self.prices.last(steps[-1])))
                if used <= 1:
                    return True
                if not best or used < best[0][0]:
                    best[:] = [(used, steps)]
            branches = []
            for step in self.space.moves(state):
                following = self.space.state(len(steps), step)
                spent = self._spent(cost, state, step)
                branches.append((self._used(plus(spent, self._rest(following, min))), step, following, spent))
            for bound, step, following, spent in sorted(branches):
                if (not best or bound < best[0][0]) and walk((*steps, step), following, spent):
                    return True
            return False

        return None if walk((), None, self.prices.nothing) else best[0][1]

    def _refusal(self, nearest: tuple[Step, ...]) -> str:
        arch = self.space.arch(nearest)
        cost = self.prices.of(nearest)
        one = len(self.budget.given) == 1
        return (
            f"no network of the space is within {self.budget.text(self.prices)}: the "
            f"{'cheapest' if one else 'nearest'}, {arch.genotype} with widths {'-'.join(map(str, arch.widths))}, costs "
            f"{self.budget.text_of(cost, self.prices)}; raise --budget, or allow smaller --stage-widths or less --depth"
        )
