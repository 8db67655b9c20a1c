"""``psvit run``: the main job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from psvit.cli.train import with_recipe
from psvit.training.recipes import RunAllSettings

DESCRIPTION = """Train networks alike at equal MACs on your images, evaluate each once on the test split, and compare.
Example: psvit run --data fashion-mnist --macs 25M --epochs 8"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, train, and print the comparison."""
    settings = with_recipe("run", DESCRIPTION, lambda recipe: RunAllSettings(recipe=recipe), arguments)

    from psvit.measure.machine import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    from psvit.training.compare import compare, table

    results = compare(settings)
    print()
    Console(width=None if sys.stdout.isatty() else 140).print(table(results))
    best = max(results["rows"], key=lambda row: row["top1"])
    print(f"\nnext      psvit predict {shlex.quote(best['checkpoint'])} IMAGE ...")
    return 0
