"""Detection and instance segmentation: settings -> a trained detector -> average precision, boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from psvit.config import Count, checked
from psvit.data.loading import Batch, check_readable
from psvit.data.objects.batches import ObjectSplit, check_validation
from psvit.data.objects.libraries import coco_classes
from psvit.data.objects.object_sets import DenseData, open_objects
from psvit.data.objects.objects import BoxesAlone
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.data.objects.transforms import Vary
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import load_weights, read_weights
from psvit.engine.display import describe_data
from psvit.engine.run_folder import RunFolder
from psvit.engine.seeding import INIT, seed_step
from psvit.engine.train_config import Machine
from psvit.errors import UserError
from psvit.models.attention import attention_for_training
from psvit.models.macs import explicit_attention
from psvit.tasks.dense.backbone import build_features, open_features
from psvit.tasks.dense.dense_checkpoints import building, describe, read_task, task_config
from psvit.tasks.dense.dense_config import is_small
from psvit.tasks.dense.dense_trainer import DenseTrainer
from psvit.tasks.dense.evaluation import open_fitting, own_batches, read_pixels, source_of
from psvit.tasks.dense.facts import network_facts, padded, seen_lines
from psvit.tasks.detection.average_precision import Detected, Truth, average_precision, encode_rle
from psvit.tasks.detection.detector_config import DetectConfig, DetectorConfig, Neck
from psvit.tasks.detection.detectors import build_detector
from psvit.tasks.detection.pyramid import Backbone, check_read

TASK = "detection"


def train_detector(config: DetectConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train a detector and leave its best and last checkpoints in the run's folder.

    Args:
        config: everything that the training depends on.
        say: takes lines for the user.

    Returns:
        The figures of the best epoch: box_ap and mask_ap in percent on the validation split, epoch, ...

    Raises:
        UserError, InterruptedTrainingError: see `psvit.tasks.classification.classify.train`.
    """
    coco_classes()  # not to miss it after an epoch
    accelerator = open_machine(config.machine)
    run = RunFolder(config, accelerator)
    if (best := run.finished(say)) is not None:
        return best
    kept = run.kept_images()
    data = open_objects(config.data, kept)
    known = run.take_images(data.files, kept)
    check_validation(ObjectSplit(data.validation))
    detector = config.detector.filled(data.img_size, data.has_masks)
    seed_step(config.data.seed, INIT)
    with attention_for_training(accelerator.device):
        body, described = open_features(config.model, body_size(data.img_size), data.in_chans, config.recipe.drop_path)
        saved = task_config(TASK, data, described, detector=asdict(detector))
        model: Any = assemble(body, detector, saved)
    metric = "mask_ap" if detector.detector == "mask_rcnn" else "box_ap"
    size = seen_size(detector, data.sizes())
    facts = detector_facts(model, described, size)
    seen = seen_lines(size, model.transform.size_divisible, body, (facts["macs"], facts["pyramid_macs"]), "pyramid",
                      config.model.name, "--short-side", largest=data.img_size is None)  # fmt: skip
    trainer = DetectorTrainer(model, config, accelerator, data, metric)
    description = describe(str(detector.detector), saved, facts, config)
    return trainer.fit(run, description, [*describe_data(data), *known, *seen], say)


def assemble(body: nn.Module, detector: DetectorConfig, saved: dict[str, Any]) -> nn.Module:
    """The detector of these settings over a backbone, for the classes and pixels of a checkpoint's config."""
    pixels = saved["preprocessing"]
    if detector.frozen_norm:
        body = freeze_batch_norm_2d(body)
    backbone = Backbone(body, detector.neck, int(detector.channels or 256))
    return build_detector(backbone, detector, len(saved["label_names"]), pixels["mean"], pixels["std"])


def body_size(img_size: Sequence[int] | None) -> tuple[int, int] | None:
    """The size that a backbone is made for: that of small scenes; others are resized, and its own (None) will do."""
    size = (img_size[0], img_size[1]) if img_size is not None else None
    return size if is_small(size) else None


def seen_size(detector: DetectorConfig, sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
    """Height and width that the largest of images of these sizes is resized to; the most there may be if none is known.

    The largest is the one of most pixels once resized.
    """
    short, long = int(detector.short_side or 800), int(detector.long_side or 1333)
    scaled = ((size, min(short / min(size), long / max(size))) for size in sizes)
    resized = ((max(1, int(size[0] * scale)), max(1, int(size[1] * scale))) for size, scale in scaled)
    return max(resized, key=lambda size: (size[0] * size[1], size), default=(short, long))


def detector_facts(model: Any, described: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """MACs of the backbone, without and with its pyramid, for one image resized to `size`, and parameters.

    Raises:
        UserError: the backbone cannot take images of this size, or has weights that the pyramid does not read.
    """
    shape = (int(described["model_args"]["in_chans"]), *padded(size, model.transform.size_divisible))
    neck: Neck = "simple" if model.backbone.simple else "fpn"
    with explicit_attention():
        backbone: Any = Backbone(build_features(described, None), neck, model.backbone.out_channels)
        facts = network_facts(shape, "pyramid_macs", (backbone, backbone.body), (model, model.backbone.body))
        if neck == "simple" and len(set(backbone.body.feature_info.reduction())) > 1:
            check_read(backbone, shape)
    return facts


class DetectorTrainer(DenseTrainer):
    """What changes while a detector learns.

    Args:
        model: torchvision's detector.
        config: of the training.
        accelerator: device, precision, processes.
        data: images with boxes, and masks where it has them.
        metric: box_ap or mask_ap.
    """

    split_type = ObjectSplit

    def __init__(
        self, model: nn.Module, config: DetectConfig, accelerator: Accelerator, data: DenseData, metric: str
    ) -> None:
        vary = Vary(config.recipe.augment, data.mirror, data.mean)
        if metric == "box_ap":  # it has no use for masks, and masks would cut its boxes
            data = replace(data, train=BoxesAlone(data.train))
        super().__init__(model, config, accelerator, data, vary, metric)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The sum of the detector's losses: a scalar, in nats and parts of a box's side."""
        device = self.accelerator.device
        images = [image.to(device) for image in batch.images]
        targets = [{name: value.to(device) for name, value in target.items()} for target in batch.labels]
        with self.accelerator.autocast():
            losses = self.model(images, targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def figures(self, split: ObjectSplit) -> Figures:
        """Average precision on a split."""
        return evaluate_detector(
            self.evaluated, split, self.data, self.accelerator, self.recipe.batch_size, self.workers
        )


@dataclass(frozen=True)
class Figures:
    """Average precision of a detector, in percent.

    Args:
        box: figures by name, see `psvit.tasks.detection.average_precision`, and per_class.
        mask: the same of masks, or None.
        images: evaluated images.
        unreadable: names of images that could not be used, with reasons.
    """

    box: dict[str, Any]
    mask: dict[str, Any] | None
    images: int
    unreadable: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The figures without those of single classes, as plain data."""
        kinds = {"box": self.box} | ({"mask": self.mask} if self.mask is not None else {})
        flat = {f"{kind}_{name}": value for kind, figures in kinds.items() for name, value in figures.items()
                if name != "per_class"}  # fmt: skip
        return {**flat, "images": self.images}


@torch.inference_mode()
def evaluate_detector(
    model: nn.Module, split: ObjectSplit, data: DenseData, accelerator: Accelerator, batch_size: int, workers: int
) -> Figures:
    """Average precision of a detector over a split; every process takes its part of the images.

    Raises:
        UserError: no library for it is installed, or no image can be read.
    """
    model.eval()
    truths: list[Truth] = []
    found: list[Detected] = []
    unreadable: list[str] = []
    for batch in own_batches(split, accelerator, batch_size, workers):
        unreadable += batch.unreadable
        images = [image.to(accelerator.device) for image in batch.images]
        with accelerator.autocast():
            outputs = model(images) if images else []
        for (number, size, objects), output in zip(batch.labels, outputs, strict=True):
            truths.append(Truth.of(number, size, objects))
            found.append(detected_in(number, output))
    if accelerator.num_processes > 1:
        truths, found, unreadable = gather_object(truths), gather_object(found), gather_object(unreadable)
    check_readable(len(truths), unreadable)
    masks = data.has_masks and bool(found) and found[0].masks is not None
    box = average_precision(truths, found, data.classes, "box")
    mask = average_precision(truths, found, data.classes, "mask") if masks else None
    return Figures(box, mask, len(truths), tuple(unreadable))


def detected_in(number: int, output: dict[str, Tensor]) -> Detected:
    """What torchvision's detector says of one image, with class numbers from 0 and masks as run lengths."""
    plain = on_cpu(output)
    masks = encode_rle(plain["masks"][:, 0].numpy()) if "masks" in plain else None
    labels = plain["labels"].numpy().astype(np.int64) - 1
    return Detected(number, plain["boxes"].numpy(), labels, plain["scores"].numpy(), masks)


def on_cpu(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a detector says of one image, on the CPU; boxes and scores in float32."""
    return {name: (value.float() if value.is_floating_point() else value).cpu() for name, value in output.items()}


def load_detector(folder: str | Path, score_threshold: float | None = None) -> tuple[Any, dict[str, Any]]:
    """The detector of a checkpoint folder, in evaluation mode, and its config.

    Raises:
        UserError: no checkpoint of a detector, or a broken one.
    """
    saved = read_task(folder, TASK)
    with building("detector", folder):
        config = DetectorConfig(**saved["detector"])
        if score_threshold is not None:
            config = replace(config, score_threshold=score_threshold)
        body = build_features(saved["backbone"], body_size(saved["img_size"]))
        model = assemble(body, config, saved)
    load_weights(model, read_weights(folder), str(folder))
    return model.eval(), saved


def evaluate_checkpoint(
    folder: str, data: DenseDataConfig, machine: Machine, split: str = "test", batch_size: int = 8
) -> tuple[Figures, DenseData]:
    """Evaluate a detector's checkpoint on a split of a set; scenes are of the size that it was trained on.

    Raises:
        UserError: a broken checkpoint, or data of other classes or channels than it was trained on.
    """
    checked(batch_size, Count, "--batch-size")
    coco_classes()
    accelerator = open_machine(machine)
    model, saved = load_detector(folder)
    opened = open_fitting(open_objects, data, saved, folder)
    images = ObjectSplit(source_of(opened, split), strict=data.strict)
    model.to(accelerator.device)
    return evaluate_detector(model, images, opened, accelerator, batch_size, opened.workers), opened


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image file.

    Args:
        image: its path.
        boxes: (n, 4) x0, y0, x1, y1 in pixels, the surest first.
        labels: class names.
        scores: in 0..1.
        masks: (n, H, W) bool, or None.
        pixels: the image (C, H, W) in 0..1.
    """

    image: str
    boxes: Tensor
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    masks: Tensor | None
    pixels: Tensor


@torch.inference_mode()
def detect(
    folder: str, paths: Iterable[Path], machine: Machine, threshold: float = 0.5
) -> Iterator[Detections | UserError]:
    """Yield what is found in each image file in turn; for one that cannot be read, the reason.

    Args:
        folder: a detector's checkpoint.
        paths: image files.
        machine: device and precision.
        threshold: least score.
    """
    accelerator = open_machine(machine)
    model, saved = load_detector(folder, score_threshold=threshold)
    model.to(accelerator.device)
    names, in_chans = saved["label_names"], saved["preprocessing"]["in_chans"]
    for path in paths:
        pixels = read_pixels(path, in_chans)
        if isinstance(pixels, UserError):
            yield pixels
            continue
        with accelerator.autocast():
            [output] = model([pixels.to(accelerator.device)])
        plain = on_cpu(output)
        labels = tuple(names[int(label) - 1] for label in plain["labels"])
        masks = plain["masks"][:, 0] if "masks" in plain else None
        yield Detections(str(path), plain["boxes"], labels, tuple(plain["scores"].tolist()), masks, pixels)
