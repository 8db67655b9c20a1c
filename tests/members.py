"""The members of a small space with made-up scores, and dominance by its definition."""

import random
from typing import Any

from psvit import Arch
from psvit.arch.steps import Step
from psvit.search.budget import Prices
from psvit.search.front import Ranked
from psvit.search.journal import Score, name_of
from psvit.search.space import Space

SPACE = Space(
    depth=(2, 4),
    stages=(1, 2),
    widths=((16, 32), (32, 48)),
    like=Arch("A", widths=(16,), head_dim=16, patch_size=4),
    img_size=8,
    in_chans=1,
    num_classes=3,
)
MEMBERS = list(SPACE.enumerate())


class Seconds:
    """A latency table in which a shared layer is slow, so that latency and MACs order members differently."""

    def embed(self, step: Step) -> float:
        return 0.001

    def layer(self, step: Step) -> float:
        return 0.005 if step.kind == "S" else 0.002

    def pool(self, step: Step) -> float:
        return 0.001

    def head(self, step: Step) -> float:
        return 0.001


TIMED = Prices(SPACE.like, 2, 8, 1, 3, Seconds())


def score(arch: Arch, loss: float, images: int = 100, top1: float = 50.0) -> Score:
    return Score(name_of(arch), loss, top1, images)


def some_scores(seed: int = 0) -> list[Score]:
    """Every member on 10 images, every third on 40 too, every ninth on 160."""
    rng = random.Random(seed)
    return [
        score(arch, rng.random(), images, round(100 * rng.random(), 2))
        for step, images in ((1, 10), (3, 40), (9, 160))
        for arch in MEMBERS[::step]
    ]


def facts(chosen: Ranked, **more: Any) -> dict[str, Any]:
    name = {**name_of(chosen.arch)._asdict(), "widths": list(chosen.arch.widths)}
    return {"data": "digits", "budget": {"macs": 2e6, "latency": 0.005}, "chosen": name, **more}


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
