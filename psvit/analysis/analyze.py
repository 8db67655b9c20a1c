"""A model and images -> how redundant its maps and tokens are: figures, numbers, and a page that says it in words."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.progress import track

import psvit
from psvit.analysis.advice import Advice, AnalyzeConfig, advise, may_pool, may_share, rule, suggested
from psvit.analysis.analysis_page import FIGURES, FILES, PAGE, drawings, page
from psvit.analysis.maps import Change, Layer, find_layers
from psvit.analysis.measures import (
    Batches,
    First,
    Heads,
    Second,
    first_pass,
    guesses,
    matched,
    partners,
    second_pass,
    sharing,
    source_of,
)
from psvit.analysis.subject import Subject, draw_images, open_subject
from psvit.analysis.using import commands, in_python
from psvit.analysis.verdict import search_command, train_command, words
from psvit.arch import cost
from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.data.loading import eval_batches
from psvit.data.samples import Batch, ImageSplit
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import read_metrics
from psvit.engine.train_config import Machine
from psvit.engine.trained_on import known_images
from psvit.errors import UserError
from psvit.files import check_writable, write_json
from psvit.models.macs import explicit_attention, macs_of
from psvit.report.figures import save

NUMBERS = "redundancy.json"
DIGITS = 6
"""Of every number that is written."""


def analyze(
    model: ModelConfig,
    data: DataConfig,
    machine: Machine,
    config: AnalyzeConfig,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure a model's redundancy on images of the validation split, and leave numbers, figures and a page.

    It runs in float32 with explicit attention, in two passes over the images, and a third for the suggestion. The
    test split is not read.

    Args:
        model: a checkpoint folder, a model of timm, a variant, a genotype, or the folder of a search.
        data: the images.
        machine: device and threads.
        config: how many images, thresholds, the output folder.
        say: takes lines for the user.

    Returns:
        What ``redundancy.json`` holds.

    Raises:
        UserError: a model without attention maps, unknown names, an output folder that holds an analysis already.
    """
    folder = Path(config.output)
    _check_folder(folder, config.overwrite)
    device = open_machine(replace(machine, precision="float32")).device
    opened = open_data(data, known_images(model.name, read_metrics(model.name)))
    subject = open_subject(model, data, opened)
    subject.model.to(device)
    probe = torch.randn(2, subject.in_chans, *subject.img_size, generator=torch.Generator().manual_seed(0))
    layers, left_out = find_layers(subject.model, model.name, probe.to(device))
    split = draw_images(opened.validation, config.images, data)

    def batches() -> Iterator[Batch]:
        images = ImageSplit(split, subject.transform, strict=data.strict)
        left = config.images  # of a stream, whose images cannot be chosen
        loaded = eval_batches(images, batch_size=config.batch_size, workers=opened.workers)
        total = -(-min(left, len(split)) // config.batch_size)
        for batch in track(loaded, "images", total, console=errors, transient=True, disable=not errors.is_terminal):
            yield Batch(batch.images[:left], batch.labels[:left], batch.unreadable)
            left -= len(batch.labels)
            if left <= 0:
                return

    errors = Console(stderr=True)
    height, width = subject.img_size
    say(f"network   {model.name}: {len(layers)} layers, {subject.weights} weights; float32, {device}")
    say(f"images    {min(config.images, len(split))} of the validation split of {opened.name}, {height}x{width} pixels")
    found = measure(subject, layers, batches, device, say)
    judged = subject.weights != "random" and not found.guesses
    advice = advise(found.rows, found.correlation, config) if judged else Advice()
    arch = subject.arch(layers)
    report: dict[str, Any] = {
        "model": model.name,
        "weights": subject.weights,
        "network": None if arch is None else str(arch),
        "arch": None if arch is None else arch.to_dict(),
        "macs": _macs(subject, arch), "params": sum(p.numel() for p in subject.model.parameters()),
        "num_classes": subject.model.num_classes,
        "data": {"name": opened.name, "split": "validation", "images": found.first.images, "img_size": [height, width],
                 "in_chans": subject.in_chans, "classes": len(opened.classes)},
        "loss": found.second.loss, "top1": found.second.top1, "no_changes_because": found.unlabelled or None,
        "left_out": left_out,
        "layers": found.rows,
        **found.matrices(),
        "suggestion": {"share": [i + 1 for i in advice.share], "pool_behind": [i + 1 for i in advice.pool],
                       "unlike_but_free": [i + 1 for i in advice.free], "genotype": advice.genotype,
                       "network": None, "macs": None, "params": None, "cost": None, "commands": []},
        "use": {"python": in_python(subject, model.name), "commands": commands(subject, model, data)},
        "rule": rule(config, not found.unlabelled) if judged else None,
        "config": {"data": asdict(data), "analysis": {
            name: value for name, value in asdict(config).items() if name not in ("output", "overwrite")}},
        "versions": {"psvit": psvit.__version__, "torch": torch.__version__, "timm": timm.__version__,
                     "python": platform.python_version()},
    }  # fmt: skip
    new = None
    if advice.genotype is not None:
        new = None if arch is None else suggested(arch, advice.genotype)
        if not found.unlabelled:
            say(f"once more, for {advice.genotype} without training")
            report["suggestion"]["cost"] = _together(subject, layers, found.heads, advice, batches, device)
        report["suggestion"] |= _prices(new, subject)
        report["suggestion"]["commands"] = _commands(new, report, data, opened.img_size)
    report["verdict"] = words(report, advice if judged else None, config)
    report = _rounded(report)
    _write(folder, report, new)
    return report


# Measuring -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """What two passes over the images found.

    Args:
        rows: of every layer, as plain data.
        heads: which heads of every two layers belong together.
        cosine, correlation: of their maps (L, L).
        first, second: the passes.
        unlabelled: why no changes of the loss are told; empty if they are.
        guesses: since the network is hardly better than guessing.
    """

    rows: list[dict[str, Any]]
    heads: Heads
    cosine: list[list[float | None]]
    correlation: list[list[float | None]]
    first: First
    second: Second
    unlabelled: str
    guesses: bool

    def matrices(self) -> dict[str, Any]:
        """What was measured of every two layers, as plain data."""
        divergence, averaged = self.second.divergence
        cosine, correlation = (matrix.tolist() for matrix in self.first.averaged)
        pairs = [{"layers": [i + 1, j + 1], "heads": [[a + 1, b + 1] for a, b in zip(*both, strict=True)]}
                 for (i, j), both in self.heads.items() if i < j]  # fmt: skip
        return {
            "maps": {
                "matched": {"correlation": self.correlation, "cosine": self.cosine, "divergence": divergence},
                "averaged": {"correlation": correlation, "cosine": cosine, "divergence": averaged},
                "partners": pairs,
            },
            "cka": self.first.cka.tolist(),
        }


def measure(
    subject: Subject, layers: Sequence[Layer], batches: Batches, device: torch.device, say: Callable[[str], None]
) -> Found:
    """Two passes over the images: maps and tokens, then divergences and the cost of every single change."""
    first = first_pass(subject.model, layers, batches, device)
    heads = partners(layers, first)
    cosine, correlation = matched(layers, first, heads)
    rows = [_row(i, layers, first, subject.img_size) for i in range(len(layers))]
    shares = [i for i in range(len(rows)) if may_share(rows, i)]
    pools = [i for i in range(len(rows)) if may_pool(rows, i)]
    changes = [sharing(layers, heads, {i: i - 1}) for i in shares]
    changes += [Change(windows={i: _windows(layers[i], 1)}) for i in pools]
    say(f"maps and tokens of {first.images} images measured; once more, for divergences"
        + ("" if subject.unlabelled else f" and {len(changes)} changes"))  # fmt: skip
    second = second_pass(subject.model, layers, heads, changes, batches, device, not subject.unlabelled)
    unlabelled, guessing = subject.unlabelled, False
    if second.top1 is not None and second.guess is not None:
        guessing = guesses(second.top1, second.guess, first.images)
    if guessing:
        unlabelled = (f"a top-1 of {second.top1:.1f} % is hardly better than guessing, since {second.guess:.1f} % of "
                      f"the {first.images} images are of one class")  # fmt: skip
        second = replace(second, costs=[])
    costs = dict(zip([*(("sharing", i) for i in shares), *(("pooling", i) for i in pools)], second.costs, strict=False))
    for i, row in enumerate(rows):
        for kind in ("sharing", "pooling"):
            row[kind] = asdict(costs[kind, i]) if (kind, i) in costs else None
        if i and (value := correlation[i - 1][i]) is not None:
            row["before"] = {
                "correlation": value, "cosine": cosine[i - 1][i], "divergence": second.divergence[0][i - 1][i],
                "by_construction": source_of(layers, i) != i,
            }  # fmt: skip
    return Found(rows, heads, cosine, correlation, first, second, unlabelled, guessing)


def _row(i: int, layers: Sequence[Layer], first: First, img_size: tuple[int, int]) -> dict[str, Any]:
    """What the first pass found of layer i, as plain data."""
    layer, distances = layers[i], first.distances[i]
    distance = None
    if distances is not None and layer.positions is not None:
        mean = sum(distances) / len(distances)
        uniform = float(layer.within(torch.cdist(layer.positions, layer.positions)).mean())
        distance = {"heads": distances, "mean": mean, "of_side": mean / max(img_size), "uniform": uniform}
    return {
        "layer": i + 1, "name": layer.name, "kind": layer.kind, "stage": layer.stage + 1, "tokens": layer.tokens,
        "prefix": layer.prefix, "grid": layer.grid, "one_row": layer.one_row, "width": layer.width,
        "heads": layer.heads, "window": layer.window_size, "before": None,
        "other_image": {"correlation": first.other[1][i], "cosine": first.other[0][i]},
        "map_entropy": first.entropies[i], "tokens_are": first.tokens[i], "distance": distance,
        "cka_before": float(first.cka[i - 1, i]) if i else None,
    }  # fmt: skip


def _windows(layer: Layer, poolings: int) -> torch.Tensor:
    windows = layer.windows(poolings)
    assert windows is not None, "a layer without a grid was to be pooled"
    return windows


def _together(
    subject: Subject, layers: Sequence[Layer], heads: Heads, advice: Advice, batches: Batches, device: torch.device
) -> dict[str, float]:
    """What the whole suggestion costs at once; a second pooling in a stage gathers the windows of the first."""
    poolings = advice.poolings
    times = {i: sum(layers[j].stage == layers[i].stage for j in poolings if j <= i) for i in poolings}
    change = Change(
        maps=sharing(layers, heads, advice.sources).maps,
        windows={i: _windows(layers[i], count) for i, count in times.items()},
    )
    return asdict(second_pass(subject.model, layers, {}, [change], batches, device, True).costs[0])


# Reporting -----------------------------------------------------------------------------------------------------------


def _macs(subject: Subject, arch: Arch | None) -> int:
    """MACs of one image: exact from the Arch, or counted by torch."""
    if arch is not None:
        return cost.macs(arch, subject.img_size, subject.in_chans, subject.model.num_classes)
    device = next(subject.model.parameters()).device
    with explicit_attention():
        counted = macs_of(subject.model.cpu(), (subject.in_chans, *subject.img_size), train=False)
    subject.model.to(device)
    return counted


def _prices(new: Arch | None, subject: Subject) -> dict[str, Any]:
    if new is None:
        return {}
    shape = (subject.img_size, subject.in_chans, subject.model.num_classes)
    return {"network": str(new), "macs": cost.macs(new, *shape), "params": cost.params(new, *shape)}


def _commands(new: Arch | None, report: Mapping[str, Any], data: DataConfig, own_size: tuple[int, int]) -> list[str]:
    """What would try the suggestion: a training of it, and a search at its MACs."""
    height, width = report["data"]["img_size"]
    size = None if (height, width) == own_size and data.img_size is None else [height, width]
    given = {"data": data.data, "data_dir": data.data_dir, "img_size": [height] if size and height == width else size}
    trains = [] if new is None else [train_command(new, given)]
    return [*trains, search_command(given, report["suggestion"]["macs"])]


def _rounded(value: Any) -> Any:
    """Plain data with six digits of every number, and None for what is none, since JSON has no NaN."""
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
    """Figures, page and numbers; of an earlier analysis nothing stays, and other files are not touched."""
    for name in (*FILES, PAGE, NUMBERS):
        (folder / name).unlink(missing_ok=True)
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    pictures = drawings(report)
    for name, picture in pictures.items():
        save(picture, folder / FIGURES / name)
    page(report, pictures, new).write(folder / PAGE)
    write_json(folder / NUMBERS, report)
