"""The search space: all networks of a depth, a number of stages and a longest run of S. No torch here.

The space is a prefix tree: a node is a layer, and networks that begin with the same layers share nodes. The first layer
fixes the elements, what a network is made of throughout. Counting, sampling, pricing and scoring all walk this tree.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, product
from typing import TYPE_CHECKING, NamedTuple

from psvit.arch.arch import ATTEND, DEFAULT_WIDTHS, POOL, SHARE, Arch, MlpKind
from psvit.arch.stem_convolutions import Stem
from psvit.arch.steps import Elements, Step, elements_of, steps_of
from psvit.errors import UserError
from psvit.search.budget import Prices

if TYPE_CHECKING:
    from psvit.latency.table import LatencyTable

Shape = tuple[int | tuple[int, int], int, int]
"""Size of the images, their channels, the number of classes."""


class State(NamedTuple):
    """All that decides which layers may follow: layers so far, run of S, stage, width, elements."""

    layers: int
    run: int
    stage: int
    width: int
    elements: Elements


@dataclass(frozen=True)
class Space:
    """A set of networks for images of one size.

    Args:
        depth: number of layers, or its least and greatest.
        stages: number of stages (one more than poolings), or its least and greatest.
        max_share: longest run of S.
        earliest_pool: least number of layers before the first pooling.
        widths: for each stage, the channels to choose from; a later stage is never narrower than the one before.
            By default one choice a stage: 192, 256, 384, 512.
        stems: to choose from, one for a whole network; by default that of `like`, as for the two that follow.
        mlps: kinds of MLPs, mlp_ratios: their hidden channels over the width.
        like: the settings that all networks share.
        img_size: side or (height, width) in pixels, in_chans: image channels, num_classes: classes.

    Raises:
        UserError: an invalid value, or an empty space.
    """

    depth: int | tuple[int, ...] = 12
    stages: int | tuple[int, ...] = 3
    max_share: int = 2
    earliest_pool: int = 1
    widths: tuple[tuple[int, ...], ...] = ()
    stems: tuple[Stem, ...] = ()
    mlps: tuple[MlpKind, ...] = ()
    mlp_ratios: tuple[float, ...] = ()
    like: Arch = field(default_factory=lambda: Arch(ATTEND))
    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for name in ("depth", "stages"):
            low, high = bounds(getattr(self, name))
            if not 1 <= low <= high:
                raise UserError(f"--{name} {low} {high} is not a range: give one positive number, or two, least first")
        if self.max_share < 0:
            raise UserError(f"--max-share {self.max_share} is negative: 0 means that no layer shares")
        if self.earliest_pool < 1:
            raise UserError(f"--earliest-pool {self.earliest_pool} is not at least 1: a stage holds a layer")
        if self.like.windows:
            raise UserError(f"windows {self.like.windows} are not searched: give them to the network that is found")
        for name, own in (("stems", self.like.stem), ("mlps", self.like.mlp), ("mlp_ratios", self.like.mlp_ratio)):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name) or (own,))))
        stages = bounds(self.stages)[1]
        if not self.widths:
            if stages > len(DEFAULT_WIDTHS):
                raise UserError(f"{stages} stages need widths to choose from: give them, for every stage")
            object.__setattr__(self, "widths", tuple((width,) for width in DEFAULT_WIDTHS[:stages]))
        choices = tuple(tuple(sorted(set(choice))) for choice in self.widths)
        object.__setattr__(self, "widths", choices[:stages])
        if len(choices) < stages or not all(choices):
            raise UserError(f"there are {len(choices)} choices of widths for {stages} stages: give one for each stage")
        for stage, choice in enumerate(choices):
            for width, elements in product(choice, self.elements):  # whole heads; the first stage's fit the stem
                given = elements._asdict() | ({"stem": "patch"} if stage else {})
                like = replace(self.like, genotype=ATTEND, widths=(width,), **given)
                if not stage:
                    object.__setattr__(self, "like", like)  # such that the elements can be changed
        if not self.count():
            low, high = bounds(self.depth)
            raise UserError(
                f"no network of {high} layers has {bounds(self.stages)[0]} stages, runs of S of at most "
                f"{self.max_share} and {self.earliest_pool} layers before the first pooling: give more layers"
                + (f" than {low}" if low == high else "")
            )

    def count(self) -> int:
        """The exact number of networks."""
        return self.count_from(None)

    def enumerate(self) -> Iterator[Arch]:
        """Yield every network, in the order of the tree."""
        return (self.arch(steps) for steps in self._walk((), None))

    def sample(
        self, rng: random.Random, within: Callable[[Sequence[Step], bool], bool] = lambda steps, ends: True
    ) -> Arch:
        """Draw a network; exactly uniform if `within` leaves out none.

        Args:
            rng: random numbers.
            within: (first layers of a network, whether it ends there) -> False to leave out all that begin so.
        """
        steps: list[Step] = []
        state: State | None = None
        while True:
            moves = [step for step in self.moves(state) if within([*steps, step], False)]
            weights = [self.count_from(self.state(len(steps), step)) for step in moves]
            tickets = sum(weights) + (self.ends(state) and within(steps, True))
            if not tickets:  # of several limits each can be kept from here, but not all by one network
                steps, state = [], None
                continue
            ticket = rng.randrange(tickets)
            chosen = next((i for i, reached in enumerate(accumulate(weights)) if ticket < reached), None)
            if chosen is None:
                return self.arch(steps)
            steps.append(moves[chosen])
            state = self.state(len(steps) - 1, steps[-1])

    def different(self, number: int, rng: random.Random) -> list[Arch]:
        """`number` distinct networks, or all if there are fewer, in random order."""
        if self.count() <= number:
            archs = list(self.enumerate())
            rng.shuffle(archs)
            return archs
        found: dict[Arch, None] = {}
        while len(found) < number:
            found[self.sample(rng)] = None
        return list(found)

    @property
    def shape(self) -> Shape:
        """Size of the images, their channels, the number of classes."""
        return self.img_size, self.in_chans, self.num_classes

    @property
    def elements(self) -> tuple[Elements, ...]:
        """What a network may be made of throughout."""
        return tuple(Elements(*one) for one in product(self.stems, self.mlps, self.mlp_ratios))

    def prices(self, seconds: LatencyTable | None = None) -> Prices:
        """The cost of the parts of networks: MACs, parameters and, with a latency table, seconds."""
        return Prices(self.like, len(self.widths), *self.shape, seconds)

    def __contains__(self, arch: object) -> bool:
        if not isinstance(arch, Arch):
            return False
        own = {"genotype": arch.genotype, "widths": arch.widths, **elements_of(arch)._asdict()}
        alike = replace(self.like, **own, class_token=arch.class_token) == arch
        state: State | None = None
        for layers, step in enumerate(steps_of(arch)):
            if step not in self.moves(state):
                return False
            state = self.state(layers, step)
        return alike and arch.class_token == self.like.class_token and self.ends(state)

    def arch(self, steps: Sequence[Step]) -> Arch:
        """The network that consists of these layers."""
        genotype = "".join((POOL if step.pooled_from else "") + step.kind for step in steps)
        widths = tuple(step.width for place, step in enumerate(steps) if step.pooled_from or place == 0)
        return replace(self.like, genotype=genotype, widths=widths, **steps[0].elements._asdict())

    def moves(self, state: State | None) -> list[Step]:
        """The layers that may follow, so that a network can still be completed."""
        if state is None:
            steps = [Step(ATTEND, 0, 0, width, 0, elements) for elements in self.elements for width in self.widths[0]]
            return [step for step in steps if self.count_from(self.state(0, step))]
        layers, run, stage, width, elements = state
        if layers >= bounds(self.depth)[1]:
            return []
        steps = [Step(ATTEND, 0, stage, width, 0, elements)]
        if run < self.max_share:
            steps.append(Step(SHARE, run + 1, stage, width, 0, elements))
        if stage + 1 < bounds(self.stages)[1] and (stage > 0 or layers >= self.earliest_pool):
            wider = [wide for wide in self.widths[stage + 1] if wide >= width]
            steps += [Step(ATTEND, 0, stage + 1, wide, width, elements) for wide in wider]
        return [step for step in steps if self.count_from(self.state(layers, step))]

    @staticmethod
    def state(layers: int, step: Step) -> State:
        """The state behind `step`, which follows `layers` layers."""
        return State(layers + 1, step.run, step.stage, step.width, step.elements)

    def ends(self, state: State | None) -> bool:
        """Whether a network may end here."""
        return state is not None and state.layers >= bounds(self.depth)[0] and state.stage + 1 >= bounds(self.stages)[0]

    @cached_property
    def _counts(self) -> dict[State | None, int]:
        return {}

    def count_from(self, state: State | None) -> int:
        """The number of networks that begin with the layers up to `state`."""
        if state not in self._counts:
            if state is not None and state.layers == bounds(self.depth)[1]:
                self._counts[state] = int(self.ends(state))
            else:
                layers = 0 if state is None else state.layers
                following = sum(self.count_from(self.state(layers, step)) for step in self.moves(state))
                self._counts[state] = following + self.ends(state)
        return self._counts[state]

    def _walk(self, steps: tuple[Step, ...], state: State | None) -> Iterator[tuple[Step, ...]]:
        if self.ends(state):
            yield steps
        for step in self.moves(state):
            yield from self._walk((*steps, step), self.state(len(steps), step))


def bounds(value: int | tuple[int, ...]) -> tuple[int, int]:
    """(least, greatest) of a number or a range."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
