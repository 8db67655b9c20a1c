"""``psvit run``: search, train and compare."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from psvit.cli.flags import with_recipe
from psvit.pipeline.run_config import RunAllConfig

DESCRIPTION = """Search a network for your images and your budget, train it, and compare it at equal MACs with its plain
twin, a ResNet-18, a random network of the space and a hand-made design; each is evaluated once on the test split.
Example: psvit run --data fashion-mnist --budget 12M --epochs 8"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, search, train, and print the comparison."""
    config = with_recipe("run", DESCRIPTION, lambda recipe: RunAllConfig(recipe=recipe), arguments)

    from psvit.pipeline.compare import comparison_table, gains_table
    from psvit.pipeline.run import run
    from psvit.pipeline.run_page import to_use
    from psvit.report.tables import print_table

    results = run(config)
    if os.environ.get("RANK", "0") != "0":  # with several processes, only the first prints
        return 0
    print()
    print_table(comparison_table(results))
    if gains := gains_table(results):
        print()
        print_table(gains)
    row, why = to_use(results)
    print(f"\nuse       {row['name']}: {why}")
    print(f"report    {Path(config.compare.output) / 'report.html'}")
    print(f"next      psvit predict {shlex.quote(row['checkpoint'])} IMAGE ...")
    return 0
