"""`analyze`: measure the redundancy of a model's maps and tokens, and write figures, numbers and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from psvit.analysis.advice import Advice, AnalyzeConfig, advise, rule, suggested
from psvit.analysis.analysis_page import FIGURES, FILES, PAGE, drawings, page
from psvit.analysis.analyzed_model import AnalyzedModel, draw_images, open_analyzed
from psvit.analysis.commands import in_python, to_try, to_use
from psvit.analysis.find_layers import find_layers
from psvit.analysis.measuring import measure, together
from psvit.analysis.verdict import words
from psvit.arch import cost
from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, open_data
from psvit.data.loading import eval_batches
from psvit.data.samples import Batch, ImageSplit
from psvit.data.sources import Source, Stream
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import read_metrics
from psvit.engine.hardware import versions
from psvit.engine.train_config import Machine
from psvit.engine.trained_on import known_images
from psvit.errors import UserError
from psvit.files import check_writable, write_json
from psvit.models.macs import explicit_attention, macs_of
from psvit.report.figures import save

NUMBERS = "redundancy.json"
DIGITS = 6
"""Significant digits of all written numbers."""


def analyze(
    model: ModelConfig, data: DataConfig, machine: Machine, config: AnalyzeConfig, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure a model's redundancy on images of the validation split, and write numbers, figures and a page.

    The model runs in float32 with explicit attention, in two passes over the images and a third one for the suggested
    network. The test split is not read.

    Args:
        model: a checkpoint folder, a model of timm, a variant, a genotype, or the folder of a search.
        data: the images.
        machine: device and threads.
        config: how many images, thresholds, the output folder.
        say: prints lines for the user.

    Returns:
        The content of ``redundancy.json``.

    Raises:
        UserError: a model without attention maps, an unknown name, or an output folder with an analysis.
    """
    folder = Path(config.output)
    _check_folder(folder, config.overwrite)
    device = open_machine(replace(machine, precision="float32")).device
    opened = open_data(data, known_images(model.name, read_metrics(model.name)))
    analyzed = open_analyzed(model, data, opened)
    analyzed.model.to(device)
    probe = torch.randn(2, analyzed.in_chans, *analyzed.img_size, generator=torch.Generator().manual_seed(0))
    layers, left_out = find_layers(analyzed.model, model.name, probe.to(device))
    split = draw_images(opened.validation, config.images, data)
    batches = partial(_batches, split, analyzed, opened, config, data.strict)
    height, width = analyzed.img_size
    say(f"network   {model.name}: {len(layers)} layers, {analyzed.weights} weights; float32, {device}")
    say(f"images    {min(config.images, len(split))} of the validation split of {opened.name}, {height}x{width} pixels")
    found = measure(analyzed, layers, batches, device, say)
    judged = analyzed.weights != "random" and not found.guesses
    advice = advise(found.rows, found.correlation, config) if judged else Advice()
    arch = analyzed.arch(layers)
    new = None if arch is None or advice.genotype is None else suggested(arch, advice.genotype)
    suggestion = _suggestion(new, advice, analyzed)
    if advice.genotype is not None:
        if not found.unlabelled:
            say(f"once more, for {advice.genotype} without training")
            suggestion["cost"] = together(analyzed, layers, found.heads, advice, batches, device)
        own_size = analyzed.img_size == opened.img_size and data.img_size is None
        suggestion["commands"] = to_try(new, suggestion["macs"], data, None if own_size else analyzed.img_size)
    report: dict[str, Any] = {
        **_of_model(model, analyzed, arch), "data": _of_data(opened, analyzed, found.first.images),
        "loss": found.second.loss, "top1": found.second.top1, "no_changes_because": found.unlabelled or None,
        "left_out": left_out, "layers": found.rows, **found.matrices(), "suggestion": suggestion,
        "use": {"python": in_python(analyzed, model.name), "commands": to_use(analyzed, model, data)},
        "rule": rule(config, not found.unlabelled) if judged else None,
        "config": {"data": asdict(data), "analysis": {
            name: value for name, value in asdict(config).items() if name not in ("output", "overwrite")}},
        "versions": versions(),
    }  # fmt: skip
    report["verdict"] = words(report, advice if judged else None, config)
    report = _rounded(report)
    _write(folder, report, new)
    return report


def _batches(
    split: Source | Stream, analyzed: AnalyzedModel, opened: Data, config: AnalyzeConfig, strict: bool
) -> Iterator[Batch]:
    """A pass over the images with a progress bar; of a stream, over its first images."""
    errors = Console(stderr=True)
    loaded = eval_batches(ImageSplit(split, analyzed.transform, strict=strict), batch_size=config.batch_size,
                          workers=opened.workers)  # fmt: skip
    left = config.images
    total = -(-min(left, len(split)) // config.batch_size)
    for batch in track(loaded, "images", total, console=errors, transient=True, disable=not errors.is_terminal):
        yield Batch(batch.images[:left], batch.labels[:left], batch.unreadable)
        left -= len(batch.labels)
        if left <= 0:
            return


def _of_data(opened: Data, analyzed: AnalyzedModel, images: int) -> dict[str, Any]:
    return {"name": opened.name, "split": "validation", "images": images, "img_size": list(analyzed.img_size),
            "in_chans": analyzed.in_chans, "classes": len(opened.classes)}  # fmt: skip


def _of_model(model: ModelConfig, analyzed: AnalyzedModel, arch: Arch | None) -> dict[str, Any]:
    return {
        "model": model.name, "weights": analyzed.weights, "network": None if arch is None else str(arch),
        "arch": None if arch is None else arch.to_dict(), "macs": _macs(analyzed, arch),
        "params": sum(p.numel() for p in analyzed.model.parameters()), "num_classes": analyzed.model.num_classes,
    }  # fmt: skip


def _suggestion(new: Arch | None, advice: Advice, analyzed: AnalyzedModel) -> dict[str, Any]:
    """The suggestion, with layers counted from 1; commands and cost are added later."""
    shape = (analyzed.img_size, analyzed.in_chans, analyzed.model.num_classes)
    macs, params = (None if new is None else price(new, *shape) for price in (cost.macs, cost.params))
    return {
        "share": [i + 1 for i in advice.share], "pool_behind": [i + 1 for i in advice.pool],
        "unlike_but_free": [i + 1 for i in advice.free], "genotype": advice.genotype,
        "network": None if new is None else str(new), "macs": macs, "params": params, "cost": None, "commands": [],
    }  # fmt: skip


def _macs(analyzed: AnalyzedModel, arch: Arch | None) -> int:
    """MACs of one image, computed from the Arch or counted by torch."""
    if arch is not None:
        return cost.macs(arch, analyzed.img_size, analyzed.in_chans, analyzed.model.num_classes)
    device = next(analyzed.model.parameters()).device
    with explicit_attention():
        counted = macs_of(analyzed.model.cpu(), (analyzed.in_chans, *analyzed.img_size), train=False)
    analyzed.model.to(device)
    return counted


def _rounded(value: Any) -> Any:
    """Plain data with numbers rounded to `DIGITS`, and None for NaN and infinity."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _rounded(inside) for name, inside in value.items()}
    return [_rounded(inside) for inside in value] if isinstance(value, (list, tuple)) else value


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder as --output")
    check_writable(folder, f"--output {folder}")
    if not overwrite and any((folder / name).exists() for name in (NUMBERS, PAGE)):
        raise UserError(f"{folder} already holds an analysis: give --overwrite to replace it, or another --output")


def _write(folder: Path, report: Mapping[str, Any], new: Arch | None) -> None:
    """Write figures, page and numbers, and remove those of an earlier analysis."""
    for name in (*FILES, PAGE, NUMBERS):
        (folder / name).unlink(missing_ok=True)
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    pictures = drawings(report)
    for name, picture in pictures.items():
        save(picture, folder / FIGURES / name)
    page(report, pictures, new).write(folder / PAGE)
    write_json(folder / NUMBERS, report)
