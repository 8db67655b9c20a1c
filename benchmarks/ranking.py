"""Does the supernet rank networks as training each alone does? Members of one space, trained alone and scored.

python benchmarks/ranking.py alone --seed 1       train the members alone (one process a seed; resumes by itself)
python benchmarks/ranking.py supernet --name X    train a supernet as the further flags say, and score the members
python benchmarks/ranking.py worth --name X       train what that supernet chose, beside the default network
python benchmarks/ranking.py report               the taus; --output docs/results/ranking.json keeps them
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
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from psvit import cost
from psvit.arch.arch import Arch
from psvit.arch.variants import default_arch
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.engine.memory import keep_freed_memory
from psvit.engine.train_config import Machine, Recipe, RunConfig, TrainConfig, light
from psvit.files import write_json
from psvit.search.budget import Budget
from psvit.search.feasible_set import FeasibleSet
from psvit.search.front import rank
from psvit.search.halving import rank_all
from psvit.search.scoring import Scorer, Slices
from psvit.search.search_config import ScoringConfig, SupernetConfig
from psvit.search.space import Space
from psvit.search.supernet_training import supernet_training, train_supernet

RUNS = Path("runs/ranking")
MACS = 5e6
WIDTHS = ((16, 32, 48, 64, 80), (32, 48, 64, 96, 128), (48, 64, 96, 128, 160, 192))
SPACE = Space(
    depth=(4, 8), stages=(1, 3), widths=WIDTHS, like=Arch("A", widths=(16,), head_dim=16, patch_size=4),
    img_size=28, in_chans=1, num_classes=10,
)  # fmt: skip


def feasible() -> FeasibleSet:
    """Members of 4.75 to 5 M MACs: what is saved by pooling and sharing has bought width."""
    return FeasibleSet(SPACE, Budget(macs=MACS), least=0.95)


def members() -> list[Arch]:
    """Ten drawn evenly over the feasible set, then three more of one stage and four of two, which are few in it."""
    rng, found = random.Random(0), feasible()
    drawn = rng.sample(found.members or [], 10)
    for stages, more in ((1, 3), (2, 4)):
        kind = [arch for arch in found.members or [] if len(arch.stages) == stages and arch not in drawn]
        drawn += rng.sample(kind, more)
    return drawn


def data(seed: int) -> DataConfig:
    """8,000 training images and 6,000 of the validation split, the same for every seed."""
    return DataConfig("fashion-mnist", limit=8_000, validation=0.1, seed=seed, split_seed=0)


def recipe() -> Recipe:
    """The light recipe, for as many epochs as the prototype's budget allows."""
    return replace(light(), epochs=6)


def train_alone(arch: Arch, seed: int, folder: Path) -> dict[str, Any]:
    """Train one network; the metrics of its last epoch on the validation split."""
    from psvit.arch.model_config import ModelConfig
    from psvit.tasks.classification.classify import train

    log = folder / "log.jsonl"
    if not log.exists() or len(log.read_text().splitlines()) < recipe().epochs:
        run = RunConfig(str(folder), overwrite=True)
        machine = Machine("cpu", "float32", 1)
        train(TrainConfig(ModelConfig(arch), data(seed), recipe(), machine=machine, run=run))
    last: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return last


def alone(seed: int) -> None:
    """Train every member with one seed."""
    for number, arch in enumerate(members()):
        last = train_alone(arch, seed, RUNS / f"alone-{seed}" / f"{number}")
        print(f"{number:>2} {arch!s:<36} top-1 {last['top1']:.2f} loss {last['loss']:.4f}", flush=True)


def supernet(name: str, options: SupernetConfig, epochs: int, seed: int) -> dict[str, Any]:
    """Train a supernet, score the members on the whole validation split; seconds of both."""
    config = TrainConfig(
        data=data(seed), recipe=replace(recipe(), epochs=epochs), machine=Machine("cpu", "float32", 1),
        run=RunConfig(str(RUNS / f"supernet-{name}"), overwrite=True),
    )  # fmt: skip
    found, opened = feasible(), open_data(data(seed))
    start = time.perf_counter()
    net, accelerator = train_supernet(found, supernet_training(config, options, SPACE, {"macs": MACS}), opened)
    trained = time.perf_counter()
    slices = Slices(opened, 0, 250)
    scores = Scorer(net, accelerator).score(members(), slices.batches(len(slices)))
    scored = time.perf_counter()
    journal = RUNS / f"supernet-{name}" / "journal.jsonl"
    journal.unlink(missing_ok=True)
    every = rank_all(found, net, slices, accelerator, journal, ScoringConfig())
    winner = rank(every, SPACE, found.prices)[0]
    return {
        "name": name, "options": asdict(options), "epochs": epochs, "seed": seed,
        "train_seconds": trained - start, "score_seconds": time.perf_counter() - scored,
        "loss": [score.loss for score in scores], "top1": [score.top1 for score in scores],
        "winner": winner.arch.to_dict(),
    }  # fmt: skip


def worth(name: str) -> dict[str, Any]:
    """Train the network that a supernet chose, the default genotype at its MACs, and the best drawn member, alike.

    The drawn members were trained with the seeds 1 and 2. The best of ten is so by luck too, so it, the searched and
    the default network are compared on two further seeds besides.
    """
    row = json.loads((RUNS / f"supernet-{name}.json").read_text())
    known = report()
    drawn = [statistics.mean(known["alone"][seed][n] for seed in ("1", "2")) for n in range(10)]
    winner = Arch.from_dict(row["winner"])
    archs = {
        "searched": winner,
        "default": cost.scale_to(default_arch(28), cost.macs(winner, 28, 1, 10), 28, 1, 10),
        "best drawn": members()[drawn.index(max(drawn))],
    }
    rows = []
    for what, arch in archs.items():
        lasts = [
            train_alone(arch, seed, RUNS / f"worth-{name}-{what.replace(' ', '-')}-{seed}") for seed in range(1, 5)
        ]
        top1 = [last["top1"] for last in lasts]
        rows.append({
            "name": what, "arch": arch.to_dict(), "macs": cost.macs(arch, 28, 1, 10), "top1": top1,
            "mean": statistics.mean(top1), "fresh": statistics.mean(top1[2:]),
        })  # fmt: skip
    spread = [statistics.variance(one["top1"]) for one in rows]
    above = statistics.mean(rows[0]["top1"][:2]) - statistics.mean(drawn)
    return {
        "supernet": name, "rows": rows, "drawn": drawn, "drawn_mean": statistics.mean(drawn), "drawn_best": max(drawn),
        "seed_noise": known["seed_noise"], "seed_noise_of_rows": math.sqrt(statistics.mean(spread)),
        "above_drawn_in_seed_noises": above / known["seed_noise"],
        "train_seconds": row["train_seconds"], "score_seconds": row["score_seconds"], "alone_seconds": seconds_alone(),
    }  # fmt: skip


def seconds_alone() -> float:
    """Median seconds of the trainings that stood beside no other, from their logged speed."""
    speeds = []
    for log in RUNS.glob("worth-*/log.jsonl"):
        speeds.append(statistics.median(json.loads(line)["images_per_second"] for line in log.read_text().splitlines()))
    images = min(8_000, 8_000 // recipe().batch_size * recipe().batch_size)
    return recipe().epochs * images / statistics.median(speeds)


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b."""
    return float(kendalltau(a, b).statistic)


def report() -> dict[str, Any]:
    """Taus between supernets and stand-alone accuracy, beside the ceiling that seed noise allows."""
    alone = {}
    for folder in sorted(RUNS.glob("alone-*")):
        lines = [(folder / f"{number}" / "log.jsonl").read_text().splitlines() for number in range(len(members()))]
        alone[folder.name[6:]] = [json.loads(last[-1])["top1"] for last in lines]
    seeds = list(alone)
    mean = [statistics.mean(values) for values in zip(*alone.values(), strict=True)]
    pooled = [number for number, arch in enumerate(members()) if len(arch.widths) > 1]
    spreads = [statistics.variance(values) for values in zip(*alone.values(), strict=True)]
    noise, noise_pooled = (math.sqrt(statistics.mean(spreads[n] for n in own)) for own in (range(len(mean)), pooled))
    groups = {"all": range(len(mean)), "drawn": range(10), "pooled": pooled}
    for stages in (2, 3):
        groups[f"{stages} stages"] = [n for n, arch in enumerate(members()) if len(arch.widths) == stages]
    rows = []
    for path in sorted(RUNS.glob("supernet-*.json")):
        row = json.loads(path.read_text())
        for what, sign in (("loss", -1), ("top1", 1)):
            figures = [sign * value for value in row[what]]
            for group, numbers in groups.items():
                row[f"tau_{what}_{group}"] = tau([figures[n] for n in numbers], [mean[n] for n in numbers])
        rows.append(row)
    ceiling = {
        group: tau(*([alone[seed][n] for n in numbers] for seed in seeds[:2])) for group, numbers in groups.items()
    }
    return {
        "members": [{"arch": arch.to_dict(), "macs": cost.macs(arch, 28, 1, 10)} for arch in members()],
        "region": feasible().count(), "alone": alone, "seed_noise": noise,
        "seed_noise_pooled": noise_pooled, "groups": {group: len(numbers) for group, numbers in groups.items()},
        "ceiling": ceiling, "supernets": rows,
    }  # fmt: skip


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["alone", "supernet", "worth", "report"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="default")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--draws", type=int, default=SupernetConfig.draws)
    parser.add_argument("--sandwich", action="store_true")
    parser.add_argument("--distill", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.what == "alone":
        alone(arguments.seed)
    elif arguments.what == "supernet":
        chosen = {field.name: getattr(arguments, field.name) for field in fields(SupernetConfig)}
        row = supernet(arguments.name, SupernetConfig(**chosen), arguments.epochs, arguments.seed)
        write_json(RUNS / f"supernet-{arguments.name}.json", row)
    elif arguments.what == "worth":
        figures = worth(arguments.name)
        print(json.dumps(figures, indent=1))
        if arguments.output:
            write_json(arguments.output, figures)
    else:
        results = report()
        print(f"seed noise {results['seed_noise']:.2f} points, ceiling {results['ceiling']}")
        for row in results["supernets"]:
            taus = " ".join(f"{key[4:]} {value:+.2f}" for key, value in row.items() if key.startswith("tau"))
            print(f"{row['name']:<24} {row['train_seconds']:>5.0f} s  {taus}")
        if arguments.output:
            write_json(arguments.output, results)


if __name__ == "__main__":
    main()
