"""An Arch as a sequence of layers, each with the pooling before it. No torch here."""

from __future__ import annotations

from typing import NamedTuple

from psvit.arch.arch import SHARE, Arch


class Step(NamedTuple):
    """One layer of a network, with the pooling before it if any: a node of a search space's tree.

    Attributes:
        kind: ``A`` or ``S``.
        run: position in a row of S, from 1; 0 for an A.
        stage: number of its stage, from 0.
        width: channels.
        pooled_from: channels before the pooling in front of this layer, 0 if there is none.
    """

    kind: str
    run: int
    stage: int
    width: int
    pooled_from: int


def steps_of(arch: Arch) -> tuple[Step, ...]:
    """The layers of a network as steps."""
    steps: list[Step] = []
    for stage, layers in enumerate(arch.stages):
        run = 0
        for place, kind in enumerate(layers):
            run = run + 1 if kind == SHARE else 0
            pooled_from = arch.widths[stage - 1] if stage and place == 0 else 0
            steps.append(Step(kind, run, stage, arch.widths[stage], pooled_from))
    return tuple(steps)
