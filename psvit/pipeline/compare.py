"""Networks trained alike at equal MACs, and compared on the test split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

from psvit.arch import cost
from psvit.arch.arch import Arch, image_sides, parse_genotype
from psvit.arch.model_config import ModelConfig, TimmModel
from psvit.arch.quantities import parse_macs
from psvit.arch.variants import default_arch, with_changes
from psvit.data.datasets import Data
from psvit.engine.open_model import timm_macs
from psvit.engine.resuming import refuse_run
from psvit.engine.train_config import RunConfig, TrainConfig
from psvit.errors import UserError
from psvit.models.build import build_timm, check_tokens
from psvit.models.macs import count_macs
from psvit.pipeline.run_config import CompareConfig
from psvit.report.tables import Table
from psvit.tasks.classification.classify import train
from psvit.tasks.classification.evaluate import evaluate_checkpoint


def folders_of(config: CompareConfig) -> dict[str, Path]:
    """The folder of each network's training, by name.

    Raises:
        UserError: they hold a run already, or none where one is to be resumed.
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
        config: where it is kept.
        networks: the networks, by name.
        like: data, recipe and machine of each training.
        say: takes lines for the user.

    Returns:
        A row for each network with its MACs, parameters, accuracy in percent, loss in nats, and its error over the
        first network's (None where that makes none), as plain data; see `best_on_validation` for the one to use.

    Raises:
        UserError: a wrong setting, or a folder that already holds a run.
    """
    folders = folders_of(config)
    rows: list[dict[str, Any]] = []
    for number, (name, model) in enumerate(networks.items(), start=1):
        say(f"\n{number} of {len(networks)}: {name}")
        rows.append(_row(name, model, config, like, folders[name], say))
    for row in rows:
        row["error_ratio"] = error_ratio(row["top1"], rows[0]["top1"])
    return rows


def best_on_validation(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of the network to use: the best on the validation split, of equals the one of least loss there.

    It does not see the test split, whose figure of a network chosen by it would promise too much.

    Returns:
        None where a network has no validation split.
    """
    if any(row["validation_top1"] is None for row in rows):
        return None
    best = max(rows, key=lambda row: (row["validation_top1"], -row["validation_loss"]))
    return str(best["name"])


def error_ratio(top1: float, first: float) -> float | None:
    """The errors of a network over the first's; None where that makes none. Both are right in so many percent."""
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
    say(f"test      top-1 {metrics.top1:.2f} %")
    return {
        "name": name,
        "network": network_name(folder / "best", model),
        "macs": kept["macs"],
        "params": kept["params"],
        **metrics.to_dict(),
        "per_class": dict(zip(opened.classes, metrics.per_class(), strict=True)),
        "validation_top1": best.get("top1"),
        "validation_loss": best.get("loss"),
        "epoch": best["epoch"],
        "checkpoint": str(folder / "best"),
    }


def network_name(checkpoint: Path, model: ModelConfig) -> str:
    """What the network of a checkpoint is, in few letters: its Arch, or the name of a model of timm."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    arch: dict[str, Any] = config.get("psvit", {}).get("arch", {})
    return str(Arch.from_dict(arch)) if arch else model.name


def contenders(
    config: CompareConfig, data: Data, given: Mapping[str, ModelConfig], macs: float | None = None
) -> dict[str, ModelConfig]:
    """The networks to compare, by name, each scaled to the same MACs.

    Args:
        config: the names, and what differs from the default network.
        data: for the size of the images.
        given: networks that are taken as they are, by name.
        macs: MACs for the others; by default config.macs, or those of the default network.

    Raises:
        UserError: an unknown name, or MACs that a network cannot have.
    """
    shape = (data.img_size, data.in_chans, len(data.classes))
    base = default_arch(data.img_size)
    head_dim = base.head_dim if config.head_dim is None else config.head_dim
    changes = {"head_dim": head_dim, "patch_size": config.patch_size}
    genotype = base.genotype if config.genotype is None else config.genotype
    base = with_changes(base, genotype=genotype, widths=_widths(base, genotype), **changes)
    if macs is None:
        macs = cost.macs(base, *shape) if config.macs is None else parse_macs(config.macs)
    return {name: given[name] if name in given else contender(name, base, data, macs) for name in config.models}


def contender(
    name: str, base: Arch, data: Data, macs: float | None, changes: Mapping[str, Any] | None = None
) -> ModelConfig:
    """A network by the name that comparisons know it by, scaled to given MACs.

    Args:
        name: deit, deit12, psvit_1d, psvit_2d, a genotype, or a model of timm, of which ResNets are scaled.
        base: the network that psvit_2d stands for, and whose patches and widths the others take.
        data: for the size of the images.
        macs: MACs to scale to; None leaves a psvit network as `base` and `changes` make it.
        changes: further fields of `Arch` that differ.

    Raises:
        UserError: an unknown name, or MACs that the network cannot have.
    """
    sequence = replace(base, pooling="1d", class_token=True, windows=())
    archs = {
        "deit": sequence.plain(),
        "deit12": replace(sequence.plain(), genotype="A" * 12),
        "psvit_1d": sequence,
        "psvit_2d": base,
    }
    if name not in archs and not set(name) <= set("AS-"):
        if changes:
            raise UserError(f"{name} is a model of timm, which has no {next(iter(changes))}: leave it out")
        return _scaled_timm(name, macs, data)
    arch = archs.get(name) or replace(base, genotype=name, widths=_widths(base, name))
    arch = with_changes(arch, **{"head_dim": base.head_dim, **dict(changes or {})})
    check_tokens(arch, data.img_size)
    if macs is not None:
        arch = cost.scale_to(arch, macs, data.img_size, data.in_chans, len(data.classes))
    return ModelConfig(arch)


def _widths(base: Arch, genotype: str) -> tuple[int, ...]:
    """Those of `base`; further stages are as wide as its last."""
    stages = len(parse_genotype(genotype))
    return (*base.widths, *[base.widths[-1]] * stages)[:stages]


def _scaled_timm(name: str, target: float | None, data: Data) -> ModelConfig:
    """A ResNet of timm with channels for the target MACs; any other model of timm as it is."""
    shape: dict[str, Any] = {"img_size": data.img_size, "in_chans": data.in_chans, "num_classes": len(data.classes)}
    input_size = (data.in_chans, *image_sides(data.img_size))
    if target is None or not name.startswith("resnet"):
        config = ModelConfig(TimmModel(name))
        timm_macs(config, input_size, len(data.classes))  # what cannot run is told before hours of training
        return config

    def channels(unit: int) -> dict[str, Any]:  # in eighths of a channel, since whole ones are coarse steps
        return {"channels": [round(unit * 2**stage / 8) for stage in range(4)]}

    @cache
    def macs(unit: int) -> int:
        return count_macs(lambda: build_timm(name, **channels(unit), **shape), input_size)

    low, high = 16, 32
    while macs(high) < target:  # from below, since wide networks are slow to build
        low, high = high, 2 * high
    while high - low > 1:  # MACs grow with the channels: halve the interval
        middle = (low + high) // 2
        low, high = (middle, high) if macs(middle) < target else (low, middle)
    nearest = min((low, high), key=lambda unit: abs(macs(unit) - target))
    if abs(macs(nearest) / target - 1) > 0.02:
        raise cost.UnreachableError(
            f"{name} comes no closer to {target / 1e6:.4g} M MACs than {macs(nearest) / 1e6:.4g} M"
        )
    return ModelConfig(TimmModel(name), model_args=channels(nearest))


def comparison_table(results: Mapping[str, Any]) -> Table:
    """The rows of `compare`; the one that is ``chosen`` is bold, ``latency_ms`` is shown where all rows have it."""
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


def standard_error(percent: float, images: int) -> float:
    """Of an accuracy in percent, measured on so many images (binomial)."""
    return sqrt(percent * (100 - percent) / images)
