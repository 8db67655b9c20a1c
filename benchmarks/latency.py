"""Does a budget of latency hold when the winner is measured, and how well does the table of parts predict?

    python benchmarks/latency.py --output docs/results/search-latency.json

Measures the table of a space on this machine, asks it for the dearest network within budgets from low to high, and
measures those networks afterwards, in turns. No training: which network the budget admits does not depend on weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from psvit.arch import Arch
from psvit.files import write_json
from psvit.measure.machine import keep_freed_memory, machine_info
from psvit.search.budget import Budget, Prices
from psvit.search.latency import measure_networks, open_table
from psvit.search.settings import LatencySettings
from psvit.search.space import Space


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--budgets", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    like = Arch("A", widths=(32,), head_dim=16, patch_size=4)
    widths = ((32, 48, 64, 96), (48, 80, 128, 160), (96, 144, 192, 256))
    space = Space((4, 8), (1, 3), widths=widths, like=like, img_size=28, in_chans=1, num_classes=10)
    settings = LatencySettings(latency_batch=arguments.batch, latency_rounds=arguments.rounds)
    with tempfile.TemporaryDirectory() as cache:
        table = open_table(space, settings, "cpu", cache=Path(cache))
    prices = Prices(space.like, len(widths), 28, 1, 10, table)
    low, high = (min(p.measured for p in table.validation.points), max(p.measured for p in table.validation.points))
    budgets = [low + (high - low) * (n + 0.5) / arguments.budgets for n in range(arguments.budgets)]
    archs = [space.feasible(Budget(latency=limit), prices).nearest() for limit in budgets]
    measured = measure_networks(archs, space, settings, "cpu")
    result = {
        "settings": vars(settings), "validation": table.validation.to_dict(),
        "rows": [
            {"budget_ms": 1000 * limit, "arch": arch.to_dict(), "predicted_ms": 1000 * table.of(arch),
             "measured_ms": 1000 * seconds, "over": seconds / limit - 1}
            for limit, arch, seconds in zip(budgets, archs, measured, strict=True)
        ],
        "machine": machine_info(torch.device("cpu")),
    }  # fmt: skip
    del result["validation"]["points"]
    print(result)
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
