"""``psvit run``: the main job."""

from __future__ import annotations

from collections.abc import Sequence

from psvit.cli.flags import Flags, settings_from
from psvit.cli.train import recipe_name
from psvit.training.recipes import RECIPES, RunAllSettings

DESCRIPTION = """Train networks alike at equal MACs on your images, evaluate each once on the test split, and compare.
Example: psvit run --data fashion-mnist --macs 25M --epochs 8."""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, train, and print the comparison."""
    name = recipe_name(arguments)
    defaults = RunAllSettings(recipe=RECIPES[name]())
    flags = Flags("run", DESCRIPTION, *vars(defaults).values())
    flags.add("--recipe", default=name, help="light or deit: where the defaults of the training come from.")
    values = flags.parse(arguments)

    from psvit.measure.machine import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    from psvit.training.compare import compare, table

    results = compare(settings_from(values, defaults))
    print()
    Console().print(table(results))
    best = max(results["rows"], key=lambda row: row["top1"])
    print(f"\nnext      psvit predict {best['checkpoint']} IMAGE ...")
    return 0
