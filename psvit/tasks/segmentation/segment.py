"""Semantic segmentation: training loss, mean intersection over union, predicted class maps."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel, gather_object
from torch import Tensor, nn

from psvit.data.loading import check_readable
from psvit.data.objects.batches import ClassMapSplit
from psvit.data.objects.object_sets import DenseData, open_class_maps
from psvit.data.objects.objects import IGNORED
from psvit.data.objects.objects_config import DenseAugment
from psvit.data.objects.transforms import Vary
from psvit.data.samples import Batch
from psvit.errors import UserError, one_line
from psvit.tasks.dense.dense_task import DenseTask
from psvit.tasks.segmentation.mean_iou import SegmentationMetrics, confusion_matrix
from psvit.tasks.segmentation.segmenter_config import SegmenterConfig
from psvit.tasks.segmentation.segmenters import build_segmenter, decoders, multiple_of


@dataclass(frozen=True)
class Segmentation(DenseTask):
    """The task of `psvit segment`, with smp's segmenters; see `psvit.tasks.dense.dense_task.DenseTask`."""

    head: SegmenterConfig

    name = "segmentation"
    head_key = "segmenter"
    head_type = SegmenterConfig
    metric = "miou"
    counted_part, counted_key = "decoder", "segmenter_macs"
    size_flag = "--crop-size"
    sync_norms = True
    split_type = ClassMapSplit
    open_data: ClassVar[Any] = staticmethod(open_class_maps)
    check_library: ClassVar[Any] = staticmethod(decoders)

    @classmethod
    def filled(cls, head: SegmenterConfig, data: DenseData) -> SegmenterConfig:
        """The settings with defaults filled in."""
        return head.filled(data.img_size)

    @property
    def head_name(self) -> str:
        """The name of the decoder."""
        return self.head.decoder

    @property
    def backbone_size(self) -> tuple[int, int]:
        """The size of the training crop."""
        assert self.head.crop_size is not None
        return self.head.crop_size[0], self.head.crop_size[-1]

    def seen_size(self, sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
        """The size of the training crop."""
        return self.backbone_size

    def build(self, body: nn.Module, described: dict[str, Any], source: str = "the backbone") -> nn.Module:
        """smp's model, see `build_segmenter`."""
        return build_segmenter(body, described, self.head, len(self.classes), source)

    def multiple(self, model: nn.Module) -> int:
        """`logits` pads images to multiples of this."""
        return multiple_of(model)

    def counted(self, model: Any) -> tuple[nn.Module, nn.Module]:
        """The whole network, and its backbone."""
        return model, model.encoder.model

    def train_split(self, data: DenseData, augment: DenseAugment, strict: bool) -> ClassMapSplit:
        """The training split, with images and class maps cropped to one size."""
        vary = Vary(augment, data.mirror, data.mean, IGNORED, self.backbone_size)
        return ClassMapSplit(data.train, vary, strict=strict)

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 of any size -> logits (B, K, H, W).

        Images are padded right and below with their mean, and the logits are cropped.

        Raises:
            UserError: the network takes images of one size only.
        """
        height, width = images.shape[2:]
        multiple = multiple_of(extract_model_from_parallel(model))
        mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        padded = F.pad((images - mean) / std, (0, -width % multiple, 0, -height % multiple))
        try:
            logits: Tensor = model(padded)
        except AssertionError as error:  # raised by timm's networks of one size
            raise UserError(
                f"this network cannot take an image of {height} x {width} pixels: {one_line(error)}"
            ) from error
        return logits[:, :, :height, :width]

    def loss(self, model: nn.Module, batch: Batch, accelerator: Accelerator) -> Tensor:
        """Mean cross-entropy over all pixels in nats, plus the Dice loss if configured.

        Ignored pixels count as 0, so images have equal weight, and averaging over processes equals one large batch.
        The validation loss is a mean over pixels with a class, so it is larger if many are ignored.
        """
        images, classes = batch.images.to(accelerator.device), batch.labels.to(accelerator.device)
        with accelerator.autocast():
            logits = self.logits(model, images)
        loss = F.cross_entropy(logits.float(), classes, ignore_index=IGNORED, reduction="none").mean()
        if self.head.loss == "cross-entropy+dice":
            loss = loss + decoders().losses.DiceLoss("multiclass", ignore_index=IGNORED)(logits.float(), classes)
        return loss

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], data: DenseData, accelerator: Accelerator
    ) -> SegmentationMetrics:
        """Mean intersection over union on uncropped images, over all processes.

        The loss is the mean cross-entropy over pixels with a class; do not compare it with the training loss.

        Raises:
            UserError: no image can be read, or no pixel has a class.
        """
        num_classes, device = len(self.classes), accelerator.device
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        loss_sum, images_seen = 0.0, 0
        unreadable: list[str] = []
        for batch in batches:
            unreadable += batch.unreadable
            images_seen += len(batch.images)
            for _, pairs in groupby(zip(batch.images, batch.labels, strict=True), key=lambda pair: pair[0].shape):
                images, truth = (torch.stack(tensors).to(device) for tensors in zip(*pairs, strict=True))
                with accelerator.autocast():
                    batched = self.logits(model, images)
                # one by one, since the loss of a batch needs several times the memory of its logits
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
        return SegmentationMetrics(counts, loss_sum / labelled, self.classes, images_seen, tuple(unreadable))

    def predict(self, model: nn.Module, image: str, pixels: Tensor, accelerator: Accelerator) -> ClassMap:
        """The class of each pixel of an image."""
        with accelerator.autocast():
            logits = self.logits(model, pixels[None].to(accelerator.device))
        return ClassMap(image, logits[0].float().argmax(dim=0).cpu(), self.classes, pixels)


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
        """The area of each predicted class in percent of the image, the largest first."""
        counts = torch.bincount(self.classes.flatten(), minlength=len(self.names))
        shares = {name: 100 * int(count) / self.classes.numel() for name, count in zip(self.names, counts, strict=True)}
        return dict(sorted(((name, share) for name, share in shares.items() if share), key=lambda one: -one[1]))

    @property
    def background(self) -> bool:
        """Whether class 0 is the background."""
        return self.names[0] == "background"
