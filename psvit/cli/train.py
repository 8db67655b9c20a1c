"""``psvit train``: one network, trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jsonargparse import Namespace

from psvit.cli.flags import Flags, config_from
from psvit.engine.train_config import RECIPES, Schedule, TrainConfig
from psvit.errors import UserError

T = TypeVar("T")

DESCRIPTION = """Train one network: a psvit variant, a genotype, any model of timm, or a checkpoint to start from.
Example:            psvit train --model AS-ASS-AS --patch-size 1 --head-dim 16 --widths 48 96 144 --data digits
On several devices: accelerate launch -m psvit train ..., or torchrun --nproc-per-node 2 -m psvit train ..."""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags and train."""
    config = with_recipe("train", DESCRIPTION, lambda recipe: TrainConfig(recipe=recipe), arguments)

    from psvit.engine.hardware import keep_freed_memory

    keep_freed_memory()
    from psvit.tasks.classification.classify import train

    train(config)
    return 0


def with_recipe(
    command: str,
    description: str,
    defaults: Callable[[Any], T],
    arguments: Sequence[str],
    recipes: Mapping[str, Callable[[], Schedule]] = RECIPES,
    apart: Sequence[str] = (),
) -> T:
    """Parse the flags of a command whose defaults come from a recipe, which is one of its flags itself.

    Args:
        command: its name.
        description: what it does, an example.
        defaults: a recipe -> the settings.
        arguments: of the command line.
        recipes: by name, the default first.
        apart: names of fields that become no flags.

    Raises:
        UserError: an argument that does not fit.
    """

    def parse(name: str, arguments: Sequence[str]) -> tuple[Namespace, T]:
        instance = defaults(recipes[name]())
        flags = Flags(command, description, *vars(instance).values(), apart=apart)
        flags.add("--recipe", choices=list(recipes), default=name, help="where the defaults of the training come from")
        return flags.parse(arguments), instance

    name = _recipe_name(arguments, recipes)
    if any(argument.startswith("--config") for argument in arguments):  # a YAML file may name it too
        name = parse(name, [a for a in arguments if not re.match(r"-h|--help|--print-config", a)])[0].recipe
    values, instance = parse(name, arguments)
    return config_from(values, instance)


def _recipe_name(arguments: Sequence[str], recipes: Mapping[str, Any]) -> str:
    """The recipe that the arguments name, before all others are parsed."""
    names = [a.partition("=")[2] or b for a, b in zip(arguments, [*arguments[1:], ""], strict=True)
             if a == "--recipe" or a.startswith("--recipe=")]  # fmt: skip
    name = names[-1] if names else next(iter(recipes))
    if name not in recipes:
        raise UserError(f"there is no recipe {name!r}: the recipes are {', '.join(recipes)}")
    return name
