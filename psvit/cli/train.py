"""``psvit train``: train one network."""

from __future__ import annotations

from collections.abc import Sequence

from psvit.cli.flags import with_recipe
from psvit.engine.train_config import TrainConfig

DESCRIPTION = """Train one network: a psvit variant, a genotype, any model of timm, or a checkpoint to start from.
Example:            psvit train --model AS-ASS-AS --patch-size 1 --head-dim 16 --widths 48 96 144 --data digits
On several devices: accelerate launch -m psvit train ..., or torchrun --nproc-per-node 2 -m psvit train ..."""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags and train."""
    config = with_recipe("train", DESCRIPTION, lambda recipe: TrainConfig(recipe=recipe), arguments)

    from psvit.tasks.classification.classify import train

    train(config)
    return 0
