"""``psvit search``: the network for your data and your budget."""

from __future__ import annotations

import os
import shlex
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

    found = search(config)
    if os.environ.get("RANK", "0") != "0":  # with several processes, only the first prints
        return 0
    print()
    print_table(front_table(read_front(found.folder)))
    data = ["--data", config.data.data] + (["--data-dir", config.data.data_dir] if config.data.data_dir else [])
    print(f"\nreport    {found.folder / 'report.html'}")
    print(f"next      psvit train --model {shlex.quote(str(found.folder / 'arch.json'))} {shlex.join(data)}")
    return 0
