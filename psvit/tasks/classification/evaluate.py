"""Evaluate a classifier (top-1, top-5, loss, accuracy per class), and predict the classes of images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from psvit.config import Count, checked
from psvit.data.augment import eval_source, for_arrays
from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, open_data
from psvit.data.image_list import ImageList
from psvit.data.loading import check_readable, eval_batches
from psvit.data.samples import Batch, ImageSplit
from psvit.data.sources import convert_image, load_image
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import (
    CONFIG,
    class_names,
    read_config,
    read_metrics,
)
from psvit.engine.open_model import load_checkpoint, set_size
from psvit.engine.train_config import Machine
from psvit.engine.trained_on import (
    TRAINED_ON,
    known_images,
    set_name,
)
from psvit.errors import UserError, one_line


@dataclass
class Metrics:
    """Sums over evaluated images, and the metrics computed from them.

    Args:
        loss_sum: sum of the cross-entropies, in nats.
        hits: number of images with a right first choice, by class.
        hits5: the same for the first five choices.
        images: number of images, by class.
        unreadable: images that could not be read, as NAME (REASON).
        trained_on: number of evaluated images that the network was trained on, by their digests; None if not known.
    """

    loss_sum: float
    hits: list[int]
    hits5: list[int]
    images: list[int]
    unreadable: tuple[str, ...] = field(default=())
    trained_on: int | None = None

    @property
    def count(self) -> int:
        """Number of evaluated images."""
        return sum(self.images)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.count

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * sum(self.hits) / self.count

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100 * sum(self.hits5) / self.count

    def to_dict(self) -> dict[str, float | int]:
        """The metrics, as plain data."""
        return {"top1": round(self.top1, 4), "top5": round(self.top5, 4), "loss": self.loss, "images": self.count}

    def per_class(self) -> list[float | None]:
        """Top-1 accuracy of each class in percent; None for a class without images."""
        return [100 * hit / n if n else None for hit, n in zip(self.hits, self.images, strict=True)]


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], num_classes: int, accelerator: Accelerator) -> Metrics:
    """Evaluate `model` on the batches of this process; the metrics are over all processes.

    Args:
        model: images (B, C, H, W) -> logits (B, num_classes); set to evaluation mode.
        batches: see `psvit.data.loading.eval_batches`.
        num_classes: classes.
        accelerator: device, precision and processes.

    Raises:
        UserError: no image could be read in any process.
    """
    model.eval()
    device = accelerator.device
    sums = torch.zeros(3, num_classes, dtype=torch.float64, device="cpu")
    loss_sum = torch.zeros(1, dtype=torch.float64)
    unreadable: list[str] = []
    for batch in batches:
        unreadable += batch.unreadable
        if not len(batch.labels):
            continue
        images, labels = batch.images.to(device), batch.labels.to(device)
        with accelerator.autocast():
            logits = model(images)
        logits = logits.float()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").double().cpu()
        ranked = logits.topk(min(5, num_classes), dim=-1).indices == labels[:, None]
        for row, hits in enumerate((ranked[:, 0], ranked.any(dim=-1), torch.ones_like(labels, dtype=torch.bool))):
            sums[row] += torch.bincount(labels[hits].cpu(), minlength=num_classes)
    if accelerator.num_processes > 1:
        unreadable = gather_object(unreadable)
    total = _sum_over_processes(torch.cat([sums.flatten(), loss_sum]), accelerator)
    hits, hits5, images_of = total[:-1].view(3, num_classes).long().tolist()
    check_readable(sum(images_of), unreadable)
    return Metrics(float(total[-1]), hits, hits5, images_of, tuple(unreadable))


def _sum_over_processes(values: Tensor, accelerator: Accelerator) -> Tensor:
    if accelerator.num_processes == 1:
        return values
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    reduced: Tensor = accelerator.reduce(values.to(accelerator.device, dtype), reduction="sum")
    return reduced.cpu()


@dataclass(frozen=True)
class Classifier:
    """A classifier from a checkpoint or an exported file.

    Args:
        source: its folder or file, for messages.
        model: images (B, C, H, W) -> logits (B, num_classes), in evaluation mode; with `num_classes`, timm's
            `pretrained_cfg`, which holds the preprocessing, and `set_input_size` unless it takes any size.
        classes: class names, by class number.
        metadata: metrics.json of the checkpoint, or the metadata of the file.
    """

    source: str
    model: Any
    classes: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def images(self) -> ImageList | None:
        """The list of images of its training, with their splits; None if there is no list beside it."""
        return known_images(self.source, self.metadata)

    def lost(self, data: DataConfig) -> bool:
        """Whether a folder has the name of the one that it was trained on, but the list of images is missing."""
        entry = self.metadata.get(TRAINED_ON) or {}
        return "images" in entry and self.images is None and entry.get("data") == set_name(data.data)


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def open_checkpoint(folder: str, instead: str | None = None, say: Callable[[str], None] = _on_stderr) -> Classifier:
    """Open the classifier in a checkpoint folder.

    Args:
        folder: the checkpoint.
        instead: way out for a checkpoint of another task, see `psvit.engine.checkpoints.read_config`.
        say: takes a line for the user if class names are missing.

    Raises:
        UserError: see `psvit.engine.open_model.load_checkpoint`.
    """
    named = read_config(folder, instead).get("label_names")
    model = load_checkpoint(folder)
    names = class_names(named, model.num_classes)
    if named and list(names) != named:
        say(
            f"note      {Path(folder) / CONFIG} does not hold a name for each of the network's {len(names)} classes: "
            "they are called by their numbers; write the names into its label_names"
        )
    return Classifier(folder, model, names, read_metrics(folder))


def evaluate_checkpoint(
    folder: str, data: DataConfig, machine: Machine, split: str = "test", batch_size: int = 128
) -> tuple[Metrics, Data]:
    """Evaluate a checkpoint folder; see `evaluate_classifier`."""
    return evaluate_classifier(open_checkpoint(folder), data, machine, split, batch_size)


def evaluate_classifier(
    classifier: Classifier,
    data: DataConfig,
    machine: Machine,
    split: str = "test",
    batch_size: int = 128,
    opened: Data | None = None,
) -> tuple[Metrics, Data]:
    """Evaluate a classifier on a split of a data set, with its own preprocessing.

    The folder that it was trained on has the splits of the training, or, without their list, those of the same cut. All
    images of another folder without splits are the test split. An `opened` set has its own splits.

    Returns:
        The metrics, and the opened set.

    Raises:
        UserError: the data have other classes, the split is empty, or the network does not take the size.
    """
    checked(batch_size, Count, "--batch-size")
    accelerator = open_machine(machine)
    model = classifier.model.to(accelerator.device)
    sized = replace(data, img_size=data.img_size or tuple(model.pretrained_cfg["input_size"][1:]))
    if opened is None:
        opened = open_data(sized, classifier.images, None if classifier.lost(data) else classifier.classes)
    check_classes(classifier.source, classifier.classes, model.num_classes, opened)
    if data.img_size is not None:
        set_size(model, opened.img_size)
    source = {"test": opened.test, "validation": opened.validation, "train": opened.train}[split]
    if opened.files is not None:
        opened.files.check_split(split, data.data)
    source = eval_source(source, _preprocessing(model, opened.img_size), opened.cache)
    batches = eval_batches(
        ImageSplit(source, preprocess(model, opened.img_size), strict=data.strict),
        batch_size=batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=opened.workers,
    )
    metrics = evaluate(model, batches, model.num_classes, accelerator)
    if opened.files is not None:
        metrics.trained_on = opened.files.trained_on(split, classifier.images, metrics.unreadable)
    return metrics, opened


def check_classes(folder: str, label_names: Sequence[str] | None, num_classes: int, data: Data) -> None:
    """Refuse data whose classes are not the checkpoint's.

    Raises:
        UserError: the number of classes or their names differ.
    """
    known = class_names(list(label_names or ()), num_classes)
    if len(known) != len(data.classes):
        raise UserError(
            f"{folder} knows {len(known)} classes, {data.name} has {len(data.classes)}: it is another set's"
        )
    if differing := [pair for pair in zip(known, data.classes, strict=True) if pair[0] != pair[1]]:
        mine, theirs = differing[0]
        raise UserError(f"{folder} knows the class {mine!r} where {data.name} has {theirs!r}: it is another set's")


def preprocess(model: Any, img_size: tuple[int, int] | None = None) -> Callable[[Image.Image], Tensor]:
    """The preprocessing of the model: any PIL image -> (C, H, W); `img_size` (height, width) replaces its size."""
    config = _preprocessing(model, img_size)
    channels = config["input_size"][0]
    timms = partial(_converted, transform=create_transform(**config), in_chans=channels)  # workers have to pickle it
    return for_arrays(timms, config)


def _preprocessing(model: Any, img_size: tuple[int, int] | None) -> dict[str, Any]:
    """timm's configuration of the model's preprocessing."""
    config = resolve_data_config({}, model=model)
    channels, *sides = config["input_size"]
    return {**config, "input_size": (channels, *(img_size or sides))}


def _converted(image: Image.Image, transform: Callable[[Image.Image], Tensor], in_chans: int) -> Tensor:
    return transform(convert_image(image, in_chans))


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image.

    Args:
        image: its path.
        labels: class names, the likeliest first.
        probabilities: of these classes.
    """

    image: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


@torch.inference_mode()
def predict(
    classifier: Classifier, paths: Sequence[Path], machine: Machine, top: int = 5, batch_size: int = 64
) -> Iterator[Prediction | UserError]:
    """Yield the likeliest classes of each image file; for an unreadable one, a UserError with the reason.

    Args:
        classifier: see `open_checkpoint`.
        paths: image files.
        machine: device and precision.
        top: number of classes per image.
        batch_size: images per batch.
    """
    checked(top, Count, "--top")
    checked(batch_size, Count, "--batch-size")
    accelerator = open_machine(machine)
    model, names = classifier.model.to(accelerator.device), classifier.classes
    transform = preprocess(model)
    for start in range(0, len(paths), batch_size):
        opened = [_opened(path, transform) for path in paths[start : start + batch_size]]
        images = [image for image in opened if isinstance(image, Tensor)]
        if images:
            with accelerator.autocast():
                logits = model(torch.stack(images).to(accelerator.device))
            ranked = logits.float().softmax(dim=-1).topk(min(top, logits.shape[-1]), dim=-1)
        row = 0
        for path, image in zip(paths[start : start + batch_size], opened, strict=True):
            if isinstance(image, UserError):
                yield image
                continue
            labels = tuple(names[index] for index in ranked.indices[row].tolist())
            yield Prediction(str(path), labels, tuple(ranked.values[row].tolist()))
            row += 1


def _opened(path: Path, transform: Callable[[Image.Image], Tensor]) -> Tensor | UserError:
    try:
        return transform(load_image(path, in_chans=3))
    except OSError as error:
        return UserError(one_line(error, limit=1000))  # it names the path, which may be long
