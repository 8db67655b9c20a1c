"""Networks of a space as genes, for crossover and mutation."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from typing import Any

from psvit.arch.arch import ATTEND, POOL, SHARE, Arch
from psvit.arch.steps import Elements, Step, elements_of, steps_of
from psvit.errors import UserError
from psvit.search.space import Space, State, bounds

Genes = dict[str, Any]


class Genome:
    """Encodes networks of a space as genes, and decodes them.

    The genes: ``stem``, ``mlp`` and ``mlp_ratio``; ``depth`` in layers; ``gap 1``, ``gap 2``, ...: the layer after that
    many layers, ``A``, ``S``, or ``-`` for a pooling and an A; ``width 1``, ...: index of each stage's width. A gene
    with a single value is left out.

    Args:
        space: the networks to encode.
    """

    def __init__(self, space: Space) -> None:
        self.space, self._of_depth = space, dict[int, Space]()
        low, high = bounds(space.depth)
        for depth in range(low, high + 1):
            with suppress(UserError):  # too few layers for the stages
                self._of_depth[depth] = replace(space, depth=depth)
        letters = (ATTEND, *[SHARE] * (space.max_share > 0), *[POOL] * (len(space.widths) > 1))
        elements = (space.stems, space.mlps, space.mlp_ratios)
        choices: dict[str, tuple[Any, ...]] = dict(zip(Elements._fields, elements, strict=True))
        choices["depth"] = tuple(self._of_depth)
        choices |= {f"gap {layers}": letters for layers in range(1, high)}
        choices |= {f"width {i}": tuple(range(len(widths))) for i, widths in enumerate(space.widths, start=1)}
        self.choices = {name: choice for name, choice in choices.items() if len(choice) > 1}

    def child(self, mother: Arch, father: Arch, rng: random.Random) -> Arch:
        """Uniform crossover of two networks; one gene on average is mutated.

        A gene that the chosen parent lacks (a gap behind its end, a further stage) is drawn at random.
        """
        fresh = {name: rng.choice(choice) for name, choice in self.choices.items()}
        pair = self.encode(mother), self.encode(father)
        genes = {name: rng.choice(pair).get(name, fresh[name]) for name in fresh}
        return self.decode({name: fresh[name] if rng.random() * len(genes) < 1 else genes[name] for name in genes})

    def decode(self, genes: Genes) -> Arch:
        """The network with these genes, repaired where they break a rule of the space.

        Each layer is chosen among the steps from which a network of that depth can be reached: the step of the gene,
        or else the first of A, S and pooling, at the nearest width. So an S too many becomes an A, and a pooling is
        added where there would be too few stages.
        """
        space = self._of_depth[genes.get("depth", bounds(self.space.depth)[1])]
        steps: list[Step] = []
        state: State | None = None
        while moves := space.moves(state):
            steps.append(self._nearest(moves, genes.get(f"gap {len(steps)}", ATTEND), genes))
            state = space.state(len(steps) - 1, steps[-1])
        return space.arch(steps)

    def _nearest(self, moves: list[Step], letter: str, genes: Genes) -> Step:
        def distance(step: Step) -> tuple[int, bool, int, int]:
            width = self.space.widths[step.stage][genes.get(f"width {step.stage + 1}", 0)]
            others = sum(genes.get(name, own) != own for name, own in step.elements._asdict().items())
            order = (ATTEND, SHARE, POOL).index(_letter(step))
            return others, _letter(step) != letter, order, abs(step.width - width)

        return min(moves, key=distance)

    def encode(self, arch: Arch) -> Genes:
        """The genes of a network, without those that it does not use."""
        genes: Genes = {**elements_of(arch)._asdict(), "depth": arch.depth}
        genes |= {f"gap {layers}": _letter(step) for layers, step in enumerate(steps_of(arch))}
        genes |= {f"width {i + 1}": self.space.widths[i].index(width) for i, width in enumerate(arch.widths)}
        return {name: value for name, value in genes.items() if name in self.choices}


def _letter(step: Step) -> str:
    return POOL if step.pooled_from else step.kind
