"""Detection or segmentation on digits-scenes: PSViT-2D, ResNet-18 and a plain ViT at equal backbone MACs and epochs.

    python benchmarks/dense.py detect --results docs/results/detection.json
    python benchmarks/dense.py segment --results docs/results/segmentation.json
    python benchmarks/dense.py detect --split validation --seeds 0 --networks psvit_2d_conv A-AS-AS_64-64-96

One head or decoder and one recipe for all. Each training is a command of psvit of its own in a folder of its own, each
checkpoint is evaluated once on the test split; what is there already is not done again, so the script goes on where it
was stopped. `--jobs 2` runs two at a time, each on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig, ModelFlags
from psvit.arch.quantities import parse_macs
from psvit.data.objects.object_sets import open_objects
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.engine.hardware import machine_info, versions
from psvit.errors import UserError
from psvit.files import write_json
from psvit.pipeline.baselines import baseline
from psvit.report.command import command_line
from psvit.studies.statistics import difference, interval, widest
from psvit.tasks.dense.backbone import DENSE

TITLES = {
    "psvit_2d": "PSViT-2D",
    "psvit_2d_windows": "PSViT-2D, first stage in windows, patches overlap",
    "psvit_2d_conv": "PSViT-2D, first stage in windows, convolutional stem",
    "psvit_2d_wide": "PSViT-2D, wide first stage in windows, convolutional stem",
    "resnet18": "ResNet-18",
    "resnet18_50-64-84-128": "ResNet-18, wide first stage",
    "vit": "plain ViT, simple pyramid",
}
PAIRS = [
    ("psvit_2d", "vit"),
    ("psvit_2d", "resnet18"),
    ("psvit_2d_conv", "vit"),
    ("psvit_2d_conv", "resnet18"),
    ("psvit_2d_conv", "psvit_2d"),
    ("psvit_2d_wide", "vit"),
    ("psvit_2d_wide", "resnet18"),
    ("psvit_2d_wide", "resnet18_50-64-84-128"),
    ("psvit_2d_wide", "psvit_2d_conv"),
]


@dataclass(frozen=True)
class Task:
    """What is learned on the scenes.

    Args:
        figures: what is compared, as `psvit evaluate` calls it, and its title.
        shown: further figures of the test split.
        whole: MACs beside the backbone's, as metrics.json calls them, and what they include.
        title: of the head or decoder.
        flags: of all trainings alike.
        networks: that are compared, where none are named.
        once: those besides that are trained with one seed.
    """

    figures: dict[str, str]
    shown: tuple[str, ...]
    whole: tuple[str, str]
    title: str
    flags: tuple[str, ...]
    networks: tuple[str, ...]
    once: tuple[str, ...] = ()


# few boxes, so that three seeds take an hour or two; scenes vary enough by themselves
TASKS = {
    "detect": Task(
        {"box_ap": "box AP", "mask_ap": "mask AP"},
        ("box_ap50", "mask_ap50"),
        ("pyramid_macs", "with pyramid"),
        "Mask R-CNN",
        ("--rois", "32", "--proposals", "100", "--anchor-scale", "3", "--jitter", "1", "1"),
        ("psvit_2d", "psvit_2d_wide", "resnet18", "vit"),
    ),
    "segment": Task(
        {"miou": "mIoU, %"},
        ("pixel_accuracy",),
        ("segmenter_macs", "with decoder"),
        "FPN decoder",
        ("--decoder", "fpn", "--jitter", "1", "1"),
        ("psvit_2d", "psvit_2d_wide", "resnet18", "vit"),
    ),
}


def networks(macs: float, names: list[str]) -> dict[str, ModelConfig]:
    """The backbones by name, each scaled to `macs` for one scene.

    A-AS-AS_48-64-176 is DENSE with another genotype and other widths, resnet18_50-60-90-120 as it is given.
    """
    data: Any = open_objects(DenseDataConfig())
    paper = Arch("AS-ASS-AS", widths=(32, 64, 128), head_dim=16, patch_size=4)
    bases = {
        "psvit_2d": ("psvit_2d", paper),
        "psvit_2d_windows": ("psvit_2d", replace(paper, windows=(8, 0, 0), patch_size=8)),
        "psvit_2d_conv": ("psvit_2d", replace(paper, windows=(8, 0, 0), stem="conv")),
        "psvit_2d_wide": ("psvit_2d", DENSE),
        # tokens of 4 pixels would leave a plain ViT a width of 8: attention between 576 of them takes the rest
        "vit": ("deit", replace(paper, patch_size=8, stride=8)),
        "resnet18": ("resnet18", paper),
    }
    found = {name: baseline(bases[name][0], data, macs, paper=bases[name][1]) for name in names if name in bases}
    for name in [name for name in names if name not in bases]:
        model, _, widths = name.partition("_")
        channels = tuple(map(int, widths.split("-")))
        if model == "resnet18":
            found[name] = ModelConfig.of(model, model_args={"channels": list(channels)})
        else:
            found[name] = baseline("psvit_2d", data, macs, paper=replace(DENSE, genotype=model, widths=channels))
    return found


def psvit(words: list[str], log: Path) -> str:
    """Run a command of psvit on one thread; its output goes to `log` too."""
    command, one = [sys.executable, "-m", "psvit", *words], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=one)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ psvit {' '.join(words)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        raise UserError(f"psvit {words[0]} {words[1]} failed: see {log}")
    return done.stdout


def finished(folder: Path, epochs: int) -> bool:
    """Whether a training has all its epochs behind it."""
    log = folder / "log.jsonl"
    return log.exists() and len(log.read_text(encoding="utf-8").splitlines()) == epochs


def trial(task: str, name: str, model: ModelConfig, seed: int, values: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one backbone with one seed, or read what came of it."""
    figures, shown, whole = TASKS[task].figures, TASKS[task].shown, TASKS[task].whole[0]
    folder = Path(values.output) / f"{name}-{seed}"
    result = folder / f"{values.split}.json"
    if not finished(folder, values.epochs):
        backbone = command_line("", model.flags(), ModelFlags())
        words = [task, "train", *shlex.split(backbone), *values.train, "--seed", str(seed), "--split-seed", "0",
                 "--threads", "1", "--output", str(folder)]  # fmt: skip
        words += ["--resume"] if (folder / "run_config.json").exists() else []
        psvit(words, folder.with_suffix(".log"))
    if not result.exists():
        found = psvit([task, "evaluate", str(folder / "best"), "--split-seed", "0", "--seed", str(seed), "--json",
                       *values.evaluate], folder.with_suffix(".log"))  # fmt: skip
        write_json(result, json.loads(found.splitlines()[-1]))
    kept = json.loads((folder / "best" / "metrics.json").read_text(encoding="utf-8"))
    tested = json.loads(result.read_text(encoding="utf-8"))
    row = {
        "name": name, "seed": seed, **{key: kept[key] for key in ("macs", whole, "backbone_params", "params")},
        "epoch": kept["epoch"], **{f"validation_{key}": kept[key] for key in figures},
        **{key: tested[key] for key in (*figures, *shown, "images")},
    }  # fmt: skip
    print(
        f"{name:<18} seed {seed}: {values.split} " + ", ".join(f"{key} {row[key]:.2f}" for key in figures), flush=True
    )
    return row


def summary(task: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each backbone: means over the seeds, with 95 % intervals."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    lines = []
    for name, group in groups.items():
        shared = {key: group[0][key] for key in ("macs", TASKS[task].whole[0], "backbone_params")}
        line: dict[str, Any] = {
            "name": name,
            "title": TITLES.get(name, name.replace("_", " ")),
            **shared,
            "seeds": [row["seed"] for row in group],
        }
        for figure in TASKS[task].figures:
            values = [row[figure] for row in group]
            span = interval(values)
            line |= {f"{figure}_by_seed": values, figure: fmean(values)}
            line[f"{figure}_half"] = (span[1] - span[0]) / 2 if span is not None else None
        lines.append(line)
    return lines


def comparisons(task: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences between backbones in points, with 95 % intervals over the seeds."""
    lines = []
    names = list(dict.fromkeys(row["name"] for row in rows))
    if len(rows) == len(names):  # one seed tells nothing of the scatter
        return []
    for first, second in PAIRS:
        if first in names and second in names:
            line: dict[str, Any] = {"name": f"{TITLES[first]} over {TITLES[second]}"}
            for figure in TASKS[task].figures:
                samples = {name: [row[figure] for row in rows if row["name"] == name] for name in names}
                delta, low, high = difference(samples[first], samples[second], widest(list(samples.values())))
                verdict = "ahead" if low > 0 else "behind" if high < 0 else "open"
                found = f"**{verdict}**: {delta:+.2f} [{low:+.2f}, {high:+.2f}]"
                line[figure] = {"delta": delta, "low": low, "high": high, "verdict": verdict, "found": found}
            lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--networks", nargs="+", help="by default those of the task, in the results page")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--once", nargs="*", default=[], help="networks that are trained with the first seed alone")
    parser.add_argument("--macs", default="100M")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=1600)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--split", choices=["test", "validation"], default="test", help="what the checkpoints are read on"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", help="folder of the trainings (default runs/detect or runs/segment)")
    parser.add_argument("--results", help="JSON file for what came of it")
    values = parser.parse_args()
    task: str = values.task
    if values.networks is None:
        values.networks, values.once = list(TASKS[task].networks), [*TASKS[task].once, *values.once]
    values.output = values.output or f"runs/{task}"
    values.train = ["--scenes", str(values.scenes), "--epochs", str(values.epochs), "--lr", str(values.lr),
                    *TASKS[task].flags]  # fmt: skip
    values.evaluate = ["--scenes", str(values.scenes), "--split", values.split, "--threads", "1"]
    found = networks(parse_macs(values.macs), [*values.networks, *values.once])
    with ThreadPoolExecutor(values.jobs) as pool:
        trials = [pool.submit(trial, task, name, found[name], seed, values) for seed in values.seeds for name in found
                 if name in values.networks or seed == values.seeds[0]]  # fmt: skip
        rows = [one.result() for one in trials]
    keys = ("networks", "once", "seeds", "macs", "epochs", "scenes", "lr", "split", "train")
    whole, title = TASKS[task].whole, TASKS[task].title
    results = {"task": {"command": task, "title": title, "figures": TASKS[task].figures, "whole": whole},
               "config": {key: getattr(values, key) for key in keys},
               "models": {name: command_line("", model.flags(), ModelFlags()) for name, model in found.items()},
               "summary": summary(task, rows), "comparisons": comparisons(task, rows), "rows": rows,
               "machine": machine_info(torch.device("cpu")), "versions": versions()}  # fmt: skip
    for line in results["summary"]:
        print(line)
    if values.results:
        write_json(Path(values.results), results)


if __name__ == "__main__":
    main()
