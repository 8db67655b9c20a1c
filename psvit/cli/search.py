"""``psvit search``: the network for your data and your budget."""

from __future__ import annotations

import os
from collections.abc import Sequence

from psvit.cli.flags import with_recipe
from psvit.search.search_config import SearchConfig

DESCRIPTION = """Find where to pool, which maps to share and how wide to be, for your images and your budget.
Example: psvit search --data fashion-mnist --budget 12M --epochs 8"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, search, and print the front."""
    config = with_recipe("search", DESCRIPTION, lambda recipe: SearchConfig(recipe=recipe), arguments)

    from psvit.report.tables import print_table
    from psvit.search.front import front_table, read_front
    from psvit.search.search import search
    from psvit.search.search_page import train_command

    found = search(config)
    if os.environ.get("RANK", "0") != "0":  # with several processes, only the first prints
        return 0
    print()
    print_table(front_table(read_front(found.folder)))
    print(f"\nreport    {found.folder / 'report.html'}")
    print(f"next      {train_command(found.folder, config)}")
    return 0
