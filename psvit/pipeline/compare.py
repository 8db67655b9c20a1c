"""Train networks with one recipe at equal MACs, and compare them on the test split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import hypot, sqrt
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.engine.resuming import RUN_CONFIG, refuse_run
from psvit.engine.train_config import RunConfig, TrainConfig
from psvit.engine.trainer import DivergedError
from psvit.pipeline.run_config import CompareConfig
from psvit.report.tables import Table
from psvit.search.choice import SLACK, Ties
from psvit.tasks.classification.classify import train
from psvit.tasks.classification.evaluate import evaluate_checkpoint


def folders_of(config: CompareConfig) -> dict[str, Path]:
    """The folder of each network's training, by name.

    Raises:
        UserError: one of them holds a run already, without --resume or --overwrite.
    """
    folder = Path(config.output)
    folders = {name: folder / name.replace("/", "_") for name in config.models}
    for run in () if config.resume or config.overwrite else (folder, *folders.values()):
        refuse_run(run)
    return folders


def compare(
    config: CompareConfig,
    networks: Mapping[str, ModelConfig],
    like: TrainConfig,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train every network with one recipe, and evaluate each once on the test split.

    Args:
        config: gives the folder.
        networks: the networks, by name.
        like: data, recipe and machine of each training.
        say: prints lines for the user.

    Returns:
        For each network a row of plain data: MACs, parameters, accuracy in percent, loss in nats, and `error_ratio` to
        the first network. A network whose training diverged has none.

    Raises:
        UserError: a wrong setting, a folder that already holds a run, or all trainings diverged.
    """
    folders = folders_of(config)
    rows: list[dict[str, Any]] = []
    for number, (name, model) in enumerate(networks.items(), start=1):
        say(f"\n{number} of {len(networks)}: {name}")
        try:
            rows.append(_row(name, model, config, like, folders[name], say))
        except DivergedError as error:
            say(f"left out  {name}: {error}")
            if number == len(networks) and not rows:
                raise
    for row in rows:
        row["error_ratio"] = error_ratio(row["top1"], rows[0]["top1"])
    return rows


def best_on_validation(rows: Sequence[Mapping[str, Any]], ties: Ties = "latency") -> str | None:
    """The name of the network to use: of those that validation cannot tell from the best, the fastest on this machine.

    Cannot be told: at most one standard error of the best one's accuracy behind it. What takes up to 2 % more is as
    fast; of these the best. Without ``latency_ms`` in every row the best of all (equally many right: lowest loss). The
    choice does not see the test split, so the test metrics of the chosen network are not biased by it.

    Args:
        rows: of `compare`, timed.
        ties: which of the networks that cannot be told apart: the fastest, or that of fewest MACs.

    Returns:
        The name; None without a validation split.
    """
    if any(row["validation_top1"] is None for row in rows):
        return None

    def score(row: Mapping[str, Any]) -> tuple[float, float]:
        return row["validation_top1"], -row["validation_loss"]

    best = max(rows, key=score)
    cost = "macs" if ties == "macs" else "latency_ms"
    if any(row.get(cost) is None for row in rows):
        return str(best["name"])
    least = best["validation_top1"] - standard_error(best["validation_top1"], best["validation_images"])
    tied = [row for row in rows if row["validation_top1"] >= least]
    least_cost = min(row[cost] for row in tied)
    return str(max((row for row in tied if row[cost] <= SLACK * least_cost), key=score)["name"])


def error_ratio(top1: float, first: float) -> float | None:
    """Ratio of error rates, from accuracies in percent; None if the first network makes no errors."""
    return None if first >= 100 else (100 - top1) / (100 - first)


def _row(
    name: str,
    model: ModelConfig,
    config: CompareConfig,
    like: TrainConfig,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    run = RunConfig(str(folder), config.resume, config.overwrite, config.save_every)
    best = train(replace(like, model=model, run=run), say)
    metrics, opened = evaluate_checkpoint(str(folder / "best"), like.data, like.machine)
    kept = json.loads((folder / "best" / "metrics.json").read_text(encoding="utf-8"))
    record = json.loads((folder / RUN_CONFIG).read_text(encoding="utf-8"))
    recipe = record["config"]["recipe"]
    say(f"test      top-1 {metrics.top1:.2f} %")
    return {
        "name": name,
        "network": network_name(folder / "best", model),
        "macs": kept["macs"],
        "params": kept["params"],
        "lr": recipe["lr"] or recipe["base_lr"] * record["global_batch"] / 512,
        **metrics.to_dict(),
        "per_class": dict(zip(opened.classes, metrics.per_class(), strict=True)),
        "validation_top1": best.get("top1"),
        "validation_loss": best.get("loss"),
        "validation_images": best.get("images"),
        "epoch": best["epoch"],
        "checkpoint": str(folder / "best"),
    }


def network_name(checkpoint: Path, model: ModelConfig) -> str:
    """A short name of a checkpoint's network: its Arch, or the name of a model of timm."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    arch: dict[str, Any] = config.get("psvit", {}).get("arch", {})
    return str(Arch.from_dict(arch)) if arch else model.name


def comparison_table(results: Mapping[str, Any]) -> Table:
    """The rows of `compare`, the ``chosen`` one in bold; ``latency_ms`` is shown if all rows have it."""
    rows, timed = results["rows"], all(row.get("latency_ms") is not None for row in results["rows"])
    headings = ("name", "network", "M MACs", "M params", "validation %", "test %", "loss", "error / first")
    return Table(
        (*headings, *["ms"] * timed),
        [
            (row["name"], f"`{row['network']}`", f"{row['macs'] / 1e6:,.2f}", f"{row['params'] / 1e6:,.3f}",
             "" if row["validation_top1"] is None else f"{row['validation_top1']:.2f}",
             f"{row['top1']:.2f} ± {standard_error(row['top1'], row['images']):.2f}", f"{row['loss']:.3f}",
             "–" if row["error_ratio"] is None else f"{row['error_ratio']:.2f}",
             *([f"{row['latency_ms']:.3g}"] if timed else []))
            for row in rows
        ],
        left=2,
        caption="One run each, one seed. ± is the standard error by the number of test images; another seed adds more."
        + timed * " ms: latency of a batch on this machine, measured in turns.",
        highlight=[place for place, row in enumerate(rows) if row["name"] == results["chosen"]],
    )  # fmt: skip


THE_SEARCH = "the search"
GAINS = (
    ("pooling and sharing", ("searched", "psvit_plus"), "plain_twin"),
    (f"{THE_SEARCH}, over a network made by hand", ("searched",), "psvit_plus"),
    (f"{THE_SEARCH}, over one drawn at random", ("searched",), "random"),
    ("all of it, over ResNet-18", ("searched", "psvit_plus"), "resnet18"),
)
"""What is gained, by which network (the first of these that was trained), over which."""


def gains_table(results: Mapping[str, Any]) -> Table | None:
    """What pooling, sharing and the search gain, from the rows of `compare`; None if no two of them tell.

    The search gains nothing to tell of where its pilot took the default network.
    """
    rows, pays = results["rows"], (results.get("pilot") or {}).get("pays", True)
    by_name, found = {row["name"]: row for row in rows}, []
    timed = all(row.get("latency_ms") for row in rows)
    for what, names, other in GAINS:
        name = next((name for name in names if name in by_name), None)
        if name is None or other not in by_name or (what.startswith(THE_SEARCH) and not pays):
            continue
        better, worse = by_name[name], by_name[other]
        error = hypot(*(standard_error(row["top1"], row["images"]) for row in (better, worse)))
        points = better["top1"] - worse["top1"]
        time = [f"{better['latency_ms'] / worse['latency_ms']:.2f}"] if timed else []
        told = "" if abs(points) > 2 * error else "within two standard errors"
        found.append((what, f"{name} over {other}", f"{points:+.2f} ± {error:.2f}", *time, told))
    headings = "what is gained", "", "points", *["ms / ms"] * timed, ""
    note = "Points of test top-1 at equal MACs, ± their standard error by the number of test images."
    return Table(headings, found, 2, note) if found else None


def standard_error(percent: float, images: int) -> float:
    """Standard error of an accuracy in percent measured on `images` images (binomial)."""
    return sqrt(percent * (100 - percent) / images)
