"""Does a budget of latency hold when the winner is measured, and how well does the table of parts predict?

    python benchmarks/latency.py --output docs/results/search-latency.json

Searches digits (short trainings: accuracy is not the matter here) within three budgets of latency on this machine, then
measures the three networks found once more, in turns. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import torch

from psvit.engine.hardware import machine_info
from psvit.engine.memory import keep_freed_memory
from psvit.engine.train_config import light
from psvit.files import write_json
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.measure import measure_networks
from psvit.models.build import build_arch
from psvit.models.psvit import PSViT
from psvit.search.journal import Name
from psvit.search.search import Found, search
from psvit.search.search_config import SearchConfig, SearchRunConfig, SpaceConfig


def _build(found: Found) -> PSViT:
    space = found.feasible.space
    return build_arch(found.arch, space.img_size, in_chans=space.in_chans, num_classes=space.num_classes)


def main() -> None:
    """Parse the command line, search, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[8.0, 14.0, 20.0], help="in milliseconds a batch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    latency = LatencyConfig(latency_batch=arguments.batch, latency_rounds=arguments.rounds)
    recipe = {**vars(light()), "epochs": 2}
    rows, found = [], []
    for budget in arguments.budgets:
        with tempfile.TemporaryDirectory() as folder:
            config = SearchConfig(
                SearchRunConfig(budget=(f"latency={budget}ms",), output=folder, overwrite=True, insist=True),
                SpaceConfig(least=0.9), latency=latency, recipe=type(light())(**recipe),
            )  # fmt: skip
            found.append(search(config))
            front = json.loads((Path(folder) / "front.json").read_text())
            chosen = {name: front["chosen"][name] for name in (*Name._fields, "rank")}
            rows.append({"budget_ms": budget, **chosen, "members": front["members"],
                         "predicted_ms": front["chosen"]["latency_ms"], "measured_ms": front["measured_ms"],
                         "table": {k: v for k, v in front["latency_table"].items() if k != "points"}})  # fmt: skip
    seconds = measure_networks({place: partial(_build, one) for place, one in enumerate(found)}, latency, "cpu")
    for place, row in enumerate(rows):
        row |= {"again_ms": 1000 * seconds[place], "over": row["measured_ms"] / row["budget_ms"] - 1}
    result = {"config": vars(latency), "searches": rows, "machine": machine_info(torch.device("cpu"))}
    print(result)
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
