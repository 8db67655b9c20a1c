"""``psvit train``: one network, trained."""

from __future__ import annotations

from collections.abc import Sequence

from psvit.cli.flags import Flags, settings_from
from psvit.errors import UserError
from psvit.training.recipes import RECIPES, TrainSettings

DESCRIPTION = """Train one network: a psvit variant, a genotype, any model of timm, or a checkpoint to start from.
Example: psvit train --model AS-ASS-AS --patch-size 1 --head-dim 16 --widths 48 96 144 --data digits.
On several devices: accelerate launch -m psvit train ..., or torchrun --nproc-per-node 2 -m psvit train ..."""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags and train."""
    name = recipe_name(arguments)
    defaults = TrainSettings(recipe=RECIPES[name]())
    flags = Flags("train", DESCRIPTION, *vars(defaults).values())
    flags.add("--recipe", default=name, help="light or deit: where the defaults of the training come from.")
    values = flags.parse(arguments)

    from psvit.measure.machine import keep_freed_memory

    keep_freed_memory()
    from psvit.training.loop import train

    train(settings_from(values, defaults))
    return 0


def recipe_name(arguments: Sequence[str]) -> str:
    """The recipe that the arguments name, before all others are parsed: its values are their defaults."""
    names = [a.partition("=")[2] or b for a, b in zip(arguments, [*arguments[1:], ""], strict=True)
             if a == "--recipe" or a.startswith("--recipe=")]  # fmt: skip
    name = names[-1] if names else "light"
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}: the recipes are {', '.join(RECIPES)}")
    return name
