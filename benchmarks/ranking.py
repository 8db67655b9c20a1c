"""Does the supernet rank networks as training each alone does? Members of the default space, trained alone and scored.

    python benchmarks/ranking.py alone               train the members alone; resumes; --worker 0 --workers 2
    python benchmarks/ranking.py supernet --name X   train a supernet as further flags say, score the members
    python benchmarks/ranking.py report              the taus; --output docs/results/search-ranking.json

All three take the same --limit, --epochs and --macs: the setting, by default all images, 4 epochs, 6 M MACs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from scipy.stats import kendalltau
from stand_alone import SHAPE, Setting, train_share

from psvit import cost
from psvit.arch.arch import Arch
from psvit.data.datasets import open_data
from psvit.engine.memory import keep_freed_memory
from psvit.engine.train_config import RunConfig, TrainConfig
from psvit.files import write_json
from psvit.search.build_space import build_space
from psvit.search.feasible_set import FeasibleSet
from psvit.search.scoring import Scorer, Slices
from psvit.search.search_config import SupernetConfig
from psvit.search.supernet_training import supernet_training, train_supernet

DRAWN = {2: 12, 3: 16}
"""Members by number of stages."""


def feasible(setting: Setting) -> FeasibleSet:
    """Members of nearly equal MACs: what is saved by pooling and sharing has bought width."""
    space, budget = build_space(setting.search(setting.folder), open_data(setting.data(0)))
    return FeasibleSet(space, budget, least=0.95)


def members(setting: Setting) -> list[Arch]:
    """Members drawn evenly from those of equally many stages."""
    rng, found = random.Random(0), feasible(setting).members or []
    return [
        arch
        for stages, number in DRAWN.items()
        for arch in rng.sample([arch for arch in found if len(arch.widths) == stages], number)
    ]


def supernet(setting: Setting, name: str, options: SupernetConfig, epochs: int, seed: int) -> dict[str, Any]:
    """Train a supernet, or go on with it, and score the members on the whole validation split."""
    config = TrainConfig(
        data=setting.data(seed), recipe=replace(setting.recipe(), epochs=epochs), machine=setting.machine(),
        run=RunConfig(str(setting.folder / f"supernet-{name}"), resume=True),
    )  # fmt: skip
    found, opened = feasible(setting), open_data(setting.data(seed))
    start = time.perf_counter()
    net, accelerator = train_supernet(
        found, supernet_training(config, options, found.space, found.budget.given), opened
    )
    trained = time.perf_counter()
    slices = Slices(opened, 0, 250)
    scores = Scorer(net, accelerator).score(members(setting), slices.batches(len(slices)))
    return {
        "name": name, "options": asdict(options), "epochs": epochs, "seed": seed, "train_seconds": trained - start,
        "loss": [score.loss for score in scores], "top1": [score.top1 for score in scores],
    }  # fmt: skip


def tau(a: Sequence[float], b: Sequence[float], places: Sequence[int]) -> float:
    """Kendall's tau-b of the values at some places."""
    return float(kendalltau([a[place] for place in places], [b[place] for place in places]).statistic)


def report(setting: Setting, seeds: Sequence[int]) -> dict[str, Any]:
    """Taus of supernets and of the number of parameters with stand-alone accuracy, and the ceiling of seed noise."""
    drawn = members(setting)
    alone = {str(seed): [setting.result(arch, seed)["top1"] for arch in drawn] for seed in seeds}
    mean = [statistics.mean(values) for values in zip(*alone.values(), strict=True)]
    spreads = [statistics.variance(values) for values in zip(*alone.values(), strict=True)] if len(seeds) > 1 else [0.0]
    groups = {"all": [*range(len(drawn))]}
    for stages in DRAWN:
        groups[f"{stages} stages"] = [place for place, arch in enumerate(drawn) if len(arch.widths) == stages]
    rows = []
    for path in sorted(setting.folder.glob("supernet-*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        loss = [-value for value in row["loss"]]
        rows.append(row | {f"tau_loss_{group}": tau(loss, mean, places) for group, places in groups.items()})
    params = [cost.params(arch, *SHAPE) for arch in drawn]
    first, second = [*alone.values(), mean][:2]
    return {
        "setting": asdict(setting),
        "members": [
            {"arch": arch.to_dict(), "macs": cost.macs(arch, *SHAPE), "params": own}
            for arch, own in zip(drawn, params, strict=True)
        ],
        "region": feasible(setting).count(), "alone": alone, "seed_noise": math.sqrt(statistics.mean(spreads)),
        "groups": {group: len(places) for group, places in groups.items()},
        "ceiling": {group: tau(first, second, places) for group, places in groups.items()},
        "params": {group: tau(params, mean, places) for group, places in groups.items()},
        "supernets": rows,
    }  # fmt: skip


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["alone", "supernet", "report"])
    parser.add_argument("--name", default="default")
    parser.add_argument("--supernet-epochs", type=int, help="by default one and a half times --epochs, as in a search")
    parser.add_argument("--supernet-seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=SupernetConfig.draws)
    parser.add_argument("--sandwich", action="store_true")
    parser.add_argument("--distill", action="store_true")
    setting, given = Setting.from_flags(parser)
    keep_freed_memory()
    if given.what == "alone":
        train_share(setting, members(setting), given)
    elif given.what == "supernet":
        options = SupernetConfig(**{field.name: getattr(given, field.name) for field in fields(SupernetConfig)})
        epochs = given.supernet_epochs or math.ceil(1.5 * setting.epochs)
        row = supernet(setting, given.name, options, epochs, given.supernet_seed)
        write_json(setting.folder / f"supernet-{given.name}.json", row)
    else:
        results = report(setting, given.seeds)
        print(f"seed noise {results['seed_noise']:.2f} points")
        for name in ("ceiling", "params"):
            print(f"{name:<24}", " ".join(f"{group} {value:+.2f}" for group, value in results[name].items()))
        for row in results["supernets"]:
            taus = " ".join(f"{key[9:]} {value:+.2f}" for key, value in row.items() if key.startswith("tau"))
            print(f"{row['name']:<24} {taus} {row['train_seconds']:>6.0f} s")
        if given.output:
            write_json(given.output, results)


if __name__ == "__main__":
    main()
