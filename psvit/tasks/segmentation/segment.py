"""Semantic segmentation: settings -> a trained segmenter -> mean intersection over union; class maps of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from psvit.config import Count, checked
from psvit.data.loading import Batch, check_readable
from psvit.data.objects.batches import ClassMapSplit, check_validation
from psvit.data.objects.libraries import decoders
from psvit.data.objects.object_sets import DenseData, open_class_maps
from psvit.data.objects.objects import IGNORED
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
from psvit.tasks.dense.dense_trainer import DenseTrainer
from psvit.tasks.dense.evaluation import open_fitting, own_batches, read_pixels, source_of
from psvit.tasks.dense.facts import network_facts, padded, seen_lines
from psvit.tasks.segmentation.mean_iou import SegmentationFigures, confusion_matrix
from psvit.tasks.segmentation.segmenter_config import SegmentConfig, SegmenterConfig
from psvit.tasks.segmentation.segmenters import Canvas, build_segmenter, multiple_of

TASK, METRIC = "segmentation", "miou"


def train_segmenter(config: SegmentConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train a segmenter and leave its best and last checkpoints in the run's folder.

    Args:
        config: everything that the training depends on.
        say: takes lines for the user.

    Returns:
        The figures of the best epoch: miou and pixel_accuracy in percent and loss in nats on the validation split,
        epoch, ...

    Raises:
        UserError, InterruptedTrainingError: see `psvit.tasks.classification.classify.train`.
    """
    accelerator = open_machine(config.machine)
    run = RunFolder(config, accelerator)
    if (best := run.finished(say)) is not None:
        return best
    decoders()
    kept = run.kept_images()
    data = open_class_maps(config.data, kept)
    known = run.take_images(data.files, kept)
    check_validation(ClassMapSplit(data.validation))
    segmenter = config.segmenter.filled(data.img_size)
    if config.recipe.batch_size == 1 and segmenter.decoder in ("upernet", "deeplabv3plus"):
        raise UserError(f"--batch-size 1 is too small for {segmenter.decoder}: it norms one value of each image over "
                        "the batch; give 2 or more, or --decoder fpn")  # fmt: skip
    seed_step(config.data.seed, INIT)
    with attention_for_training(accelerator.device):
        body, described = open_features(config.model, size_of(segmenter), data.in_chans, config.recipe.drop_path)
        model = build_segmenter(body, described, segmenter, len(data.classes), config.model.name)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    saved = task_config(TASK, data, described, segmenter=asdict(segmenter))
    facts, size = segmenter_facts(model, saved), size_of(segmenter)
    seen = seen_lines(size, multiple_of(model), body, (facts["macs"], facts["segmenter_macs"]), "decoder",
                      config.model.name, "--crop-size")  # fmt: skip
    trainer = SegmenterTrainer(model, config, accelerator, data, segmenter)
    description = describe(segmenter.decoder, saved, facts, config)
    return trainer.fit(run, description, [*describe_data(data), *known, *seen], say)


def size_of(segmenter: SegmenterConfig) -> tuple[int, int]:
    """Height and width of what a segmenter learns from; its settings are filled."""
    assert segmenter.crop_size is not None
    return segmenter.crop_size[0], segmenter.crop_size[-1]


def _build(saved: dict[str, Any]) -> nn.Module:
    """The segmenter that a config describes, with weights drawn anew."""
    config = SegmenterConfig(**saved["segmenter"])
    body = build_features(saved["backbone"], size_of(config))
    return build_segmenter(body, saved["backbone"], config, len(saved["label_names"]))


def segmenter_facts(model: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """MACs of one image through the backbone, and through all; parameters of all, and of the backbone."""
    size = size_of(SegmenterConfig(**saved["segmenter"]))
    shape = (saved["preprocessing"]["in_chans"], *padded(size, multiple_of(model)))
    with explicit_attention():
        built: Any = _build(saved)
        return network_facts(shape, "segmenter_macs", (built, built.encoder.model), (model, model.encoder.model))


class SegmenterTrainer(DenseTrainer):
    """What changes while a segmenter learns.

    Args:
        model: images (B, C, H, W) -> logits (B, K, H, W).
        config: of the training.
        accelerator: device, precision, processes.
        data: images with class maps.
        segmenter: with a value for each default.
    """

    split_type = ClassMapSplit

    def __init__(
        self,
        model: Any,
        config: SegmentConfig,
        accelerator: Accelerator,
        data: DenseData,
        segmenter: SegmenterConfig,
    ) -> None:
        vary = Vary(config.recipe.augment, data.mirror, data.mean, IGNORED, size_of(segmenter))
        self.canvas, self.segmenter = Canvas(data.mean, data.std, multiple_of(model)), segmenter
        super().__init__(model, config, accelerator, data, vary, METRIC)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Cross-entropy in nats, a mean over all pixels, where ignored ones count 0; and Dice's loss where asked for.

        So images weigh alike, however many pixels are ignored, and batches summed over processes are one batch. The
        validation split's loss is a mean over the pixels that have a class: it is the greater where many are ignored.
        """
        images, classes = batch.images.to(self.accelerator.device), batch.labels.to(self.accelerator.device)
        with self.accelerator.autocast():
            logits = self.canvas(self.model, images)
        loss = F.cross_entropy(logits.float(), classes, ignore_index=IGNORED, reduction="none").mean()
        if self.segmenter.loss == "cross-entropy+dice":
            loss = loss + decoders().losses.DiceLoss("multiclass", ignore_index=IGNORED)(logits.float(), classes)
        return loss

    def figures(self, split: ClassMapSplit) -> SegmentationFigures:
        """Mean intersection over union on a split."""
        return evaluate_segmenter(
            self.evaluated, self.canvas, split, self.data, self.accelerator, self.recipe.batch_size, self.workers
        )


@torch.inference_mode()
def evaluate_segmenter(
    model: nn.Module,
    canvas: Canvas,
    split: ClassMapSplit,
    data: DenseData,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
) -> SegmentationFigures:
    """Mean intersection over union of a segmenter over the whole images of a split, every process taking its part.

    The loss is a mean over the pixels that have a class, where that of the training counts the others as 0 and adds
    Dice's: the two are not to be compared.

    Raises:
        UserError: no image can be read, or no pixel has a class.
    """
    model.eval()
    num_classes, device = len(data.classes), accelerator.device
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    loss_sum, images_seen = 0.0, 0
    unreadable: list[str] = []
    for batch in own_batches(split, accelerator, batch_size, workers):
        unreadable += batch.unreadable
        images_seen += len(batch.images)
        for _, pairs in groupby(zip(batch.images, batch.labels, strict=True), key=lambda pair: pair[0].shape):
            images, truth = (torch.stack(tensors).to(device) for tensors in zip(*pairs, strict=True))
            with accelerator.autocast():
                batched = canvas(model, images)
            # one by one: what the loss keeps of a batch takes several times the memory of its logits
            for logits, classes in zip(batched.split(1), truth.split(1), strict=True):
                plain = logits.float()
                loss_sum += float(F.cross_entropy(plain, classes, ignore_index=IGNORED, reduction="sum"))
                counts += confusion_matrix(plain.argmax(dim=1).cpu(), classes.cpu(), num_classes)
    if accelerator.num_processes > 1:
        parts = gather_object([(counts, loss_sum, images_seen, unreadable)])
        counts = torch.stack([part[0] for part in parts]).sum(dim=0)
        loss_sum, images_seen = sum(part[1] for part in parts), sum(part[2] for part in parts)
        unreadable = [name for part in parts for name in part[3]]
    check_readable(images_seen, unreadable)
    labelled = int(counts.sum())
    if not labelled:
        raise UserError(
            f"no pixel of {data.name} has a class: every one is {IGNORED}, which is ignored; mend its masks"
        )
    return SegmentationFigures(counts, loss_sum / labelled, data.classes, images_seen, tuple(unreadable))


def load_segmenter(folder: str) -> tuple[nn.Module, Canvas, dict[str, Any]]:
    """The segmenter of a checkpoint folder, in evaluation mode, how images come to it, and its config.

    Raises:
        UserError: no checkpoint of a segmenter, or a broken one.
    """
    saved = read_task(folder, TASK)
    with building("segmenter", folder):
        model = _build(saved)
        pixels = saved["preprocessing"]
        canvas = Canvas(tuple(pixels["mean"]), tuple(pixels["std"]), multiple_of(model))
    load_weights(model, read_weights(folder), str(folder))
    return model.eval(), canvas, saved


def evaluate_checkpoint(
    folder: str, data: DenseDataConfig, machine: Machine, split: str = "test", batch_size: int = 8
) -> tuple[SegmentationFigures, DenseData]:
    """Evaluate a segmenter's checkpoint on a split of a set; scenes are of the size that it was trained on.

    Raises:
        UserError: a broken checkpoint, or data of other classes or channels than it was trained on.
    """
    checked(batch_size, Count, "--batch-size")
    accelerator = open_machine(machine)
    model, canvas, saved = load_segmenter(folder)
    opened = open_fitting(open_class_maps, data, saved, folder)
    images = ClassMapSplit(source_of(opened, split), strict=data.strict)
    model.to(accelerator.device)
    return evaluate_segmenter(model, canvas, images, opened, accelerator, batch_size, opened.workers), opened


@dataclass(frozen=True, eq=False)
class ClassMap:
    """The class of each pixel of one image file.

    Args:
        image: its path.
        classes: (H, W) class numbers.
        names: class names, by class number.
        pixels: the image (C, H, W) in 0..1.
    """

    image: str
    classes: Tensor
    names: tuple[str, ...]
    pixels: Tensor

    @property
    def shares(self) -> dict[str, float]:
        """The part of the image that each class found takes, in percent, the largest first."""
        counts = torch.bincount(self.classes.flatten(), minlength=len(self.names))
        shares = {name: 100 * int(count) / self.classes.numel() for name, count in zip(self.names, counts, strict=True)}
        return dict(sorted(((name, share) for name, share in shares.items() if share), key=lambda one: -one[1]))

    @property
    def background(self) -> bool:
        """Whether class 0 is the background."""
        return self.names[0] == "background"


@torch.inference_mode()
def segment(folder: str, paths: Iterable[Path], machine: Machine) -> Iterator[ClassMap | UserError]:
    """Yield the class map of each image file in turn; for one that cannot be read, the reason.

    Args:
        folder: a segmenter's checkpoint.
        paths: image files.
        machine: device and precision.
    """
    accelerator = open_machine(machine)
    model, canvas, saved = load_segmenter(folder)
    model.to(accelerator.device)
    names, in_chans = tuple(saved["label_names"]), saved["preprocessing"]["in_chans"]
    for path in paths:
        pixels = read_pixels(path, in_chans)
        if isinstance(pixels, UserError):
            yield pixels
            continue
        with accelerator.autocast():
            logits = canvas(model, pixels[None].to(accelerator.device))
        yield ClassMap(str(path), logits[0].float().argmax(dim=0).cpu(), names, pixels)
