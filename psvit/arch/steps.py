"""An Arch as a sequence of layers, each with the pooling before it. No torch here."""

from __future__ import annotations

from typing import NamedTuple

from psvit.arch.arch import SHARE, Arch, MlpKind
from psvit.arch.stem_convolutions import Stem


class Elements(NamedTuple):
    """What a network is made of throughout: the fields `stem`, `mlp` and `mlp_ratio` of its `Arch`."""

    stem: Stem = "patch"
    mlp: MlpKind = "plain"
    mlp_ratio: float = 4.0


class Step(NamedTuple):
    """One layer of a network, with the pooling before it if any: a node of a search space's tree.

    Attributes:
        kind: ``A`` or ``S``.
        run: position in a row of S, from 1; 0 for an A.
        stage: number of its stage, from 0.
        width: channels.
        pooled_from: channels before the pooling in front of this layer, 0 if there is none.
        elements: of the whole network.
    """

    kind: str
    run: int
    stage: int
    width: int
    pooled_from: int
    elements: Elements = Elements()


def elements_of(arch: Arch) -> Elements:
    """The elements of a network."""
    return Elements(arch.stem, arch.mlp, arch.mlp_ratio)


def steps_of(arch: Arch) -> tuple[Step, ...]:
    """The layers of a network as steps."""
    steps: list[Step] = []
    elements = elements_of(arch)
    for stage, layers in enumerate(arch.stages):
        run = 0
        for place, kind in enumerate(layers):
            run = run + 1 if kind == SHARE else 0
            pooled_from = arch.widths[stage - 1] if stage and place == 0 else 0
            steps.append(Step(kind, run, stage, arch.widths[stage], pooled_from, elements))
    return tuple(steps)
