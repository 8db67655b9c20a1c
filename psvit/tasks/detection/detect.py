"""Detection and instance segmentation: training loss, average precision, predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from psvit.data.loading import check_readable
from psvit.data.objects.batches import ObjectSplit
from psvit.data.objects.object_sets import DenseData, open_objects
from psvit.data.objects.objects import BoxesAlone
from psvit.data.objects.objects_config import DenseAugment
from psvit.data.objects.transforms import Vary
from psvit.data.samples import Batch
from psvit.tasks.dense.dense_config import is_small
from psvit.tasks.dense.dense_task import DenseTask
from psvit.tasks.detection.average_precision import average_precision, coco_classes, found_objects, true_objects
from psvit.tasks.detection.detector_config import DetectorConfig
from psvit.tasks.detection.detectors import build_detector
from psvit.tasks.detection.pyramid import Backbone, check_read


@dataclass(frozen=True)
class Detection(DenseTask):
    """The task of `psvit detect`, with torchvision's detectors; see `psvit.tasks.dense.dense_task.DenseTask`."""

    head: DetectorConfig

    name = "detection"
    head_key = "detector"
    head_type = DetectorConfig
    counted_part, counted_key = "pyramid", "pyramid_macs"
    size_flag = "--short-side"
    split_type = ObjectSplit
    open_data: ClassVar[Any] = staticmethod(open_objects)
    check_library: ClassVar[Any] = staticmethod(coco_classes)

    @classmethod
    def filled(cls, head: DetectorConfig, data: DenseData) -> DetectorConfig:
        """The settings with defaults filled in."""
        return head.filled(data.img_size, data.has_masks)

    @property
    def head_name(self) -> str:
        """The name of the detector."""
        return str(self.head.detector)

    @property
    def metric(self) -> str:
        """The average precision of masks if the detector has masks, else of boxes."""
        return "mask_ap" if self.head.detector == "mask_rcnn" else "box_ap"

    @property
    def backbone_size(self) -> tuple[int, int] | None:
        """The size of small scenes; None for other images, which are resized."""
        return self.img_size if is_small(self.img_size) else None

    def seen_size(self, sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
        """The size of the largest image after resizing; the upper limit if no size is known."""
        short, long = int(self.head.short_side or 800), int(self.head.long_side or 1333)
        scaled = ((size, min(short / min(size), long / max(size))) for size in sizes)
        resized = ((max(1, int(size[0] * scale)), max(1, int(size[1] * scale))) for size, scale in scaled)
        return max(resized, key=lambda size: (size[0] * size[1], size), default=(short, long))

    def build(self, body: nn.Module, described: dict[str, Any], source: str = "the backbone") -> nn.Module:
        """torchvision's detector, see `build_detector`."""
        if self.head.frozen_norm:
            body = freeze_batch_norm_2d(body)
        backbone = Backbone(body, self.head.neck, int(self.head.channels or 256))
        return build_detector(backbone, self.head, len(self.classes), self.mean, self.std)

    def multiple(self, model: Any) -> int:
        """torchvision pads images to multiples of this."""
        return int(model.transform.size_divisible)

    def counted(self, model: Any) -> tuple[nn.Module, nn.Module]:
        """The backbone with its pyramid, since the MACs of the heads depend on the detections."""
        return model.backbone, model.backbone.body

    def check_counted(self, part: Any, shape: Sequence[int]) -> None:
        """Refuse a simple pyramid that leaves weights of the backbone without a gradient."""
        if part.simple and len(set(part.body.feature_info.reduction())) > 1:
            check_read(part, shape)

    def train_split(self, data: DenseData, augment: DenseAugment, strict: bool) -> ObjectSplit:
        """The training split; without masks for a detector of boxes, since they would change its boxes."""
        source = data.train if self.metric == "mask_ap" else BoxesAlone(data.train)
        return ObjectSplit(source, Vary(augment, data.mirror, data.mean), strict=strict)

    def loss(self, model: nn.Module, batch: Batch, accelerator: Accelerator) -> Tensor:
        """The sum of the losses of the detector: a scalar."""
        images = [image.to(accelerator.device) for image in batch.images]
        targets = [{name: value.to(accelerator.device) for name, value in target.items()} for target in batch.labels]
        with accelerator.autocast():
            losses = model(images, targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], data: DenseData, accelerator: Accelerator
    ) -> DetectionMetrics:
        """Average precision over the images of all processes.

        Raises:
            UserError: no library for average precision is installed, or no image can be read.
        """
        images, truth, found, unreadable = list[Any](), list[Any](), list[Any](), list[str]()
        for batch in batches:
            unreadable += batch.unreadable
            for (number, (height, width), objects), output in zip(
                batch.labels, detected(model, batch.images, accelerator), strict=True
            ):
                images.append({"id": number, "height": height, "width": width})
                truth += true_objects(number, objects)
                found += found_objects(number, output)
        if accelerator.num_processes > 1:
            images, truth, found, unreadable = map(gather_object, (images, truth, found, unreadable))
        check_readable(len(images), unreadable)
        box = average_precision(images, truth, found, self.classes, "box")
        masks = data.has_masks and self.metric == "mask_ap"
        mask = average_precision(images, truth, found, self.classes, "mask") if masks else None
        return DetectionMetrics(box, mask, len(images), tuple(unreadable))

    def predict(self, model: nn.Module, image: str, pixels: Tensor, accelerator: Accelerator) -> Detections:
        """The objects in an image with a score of at least `score_threshold`."""
        [output] = detected(model, [pixels], accelerator)
        labels = tuple(self.classes[int(label) - 1] for label in output["labels"])
        masks = output["masks"][:, 0] if "masks" in output else None
        return Detections(image, output["boxes"], labels, tuple(output["scores"].tolist()), masks, pixels)


def detected(model: nn.Module, images: Sequence[Tensor], accelerator: Accelerator) -> list[dict[str, Tensor]]:
    """Outputs of a detector for images (C, H, W) in 0..1, on the CPU, with floats in float32."""
    with accelerator.autocast():
        outputs = model([image.to(accelerator.device) for image in images]) if len(images) else []
    return [{name: (value.float() if value.is_floating_point() else value).cpu() for name, value in output.items()}
            for output in outputs]  # fmt: skip


@dataclass(frozen=True)
class DetectionMetrics:
    """Average precision of a detector, in percent.

    Args:
        box: metrics of boxes, see `psvit.tasks.detection.average_precision`.
        mask: the same for masks, or None.
        images: number of evaluated images.
        unreadable: images that could not be used, as NAME (REASON).
    """

    box: dict[str, Any]
    mask: dict[str, Any] | None
    images: int
    unreadable: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain data, without those per class."""
        kinds = {"box": self.box} | ({"mask": self.mask} if self.mask is not None else {})
        flat = {f"{kind}_{name}": value for kind, metrics in kinds.items() for name, value in metrics.items()
                if name != "per_class"}  # fmt: skip
        return {**flat, "images": self.images}


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image file.

    Args:
        image: its path.
        boxes: (n, 4) x0, y0, x1, y1 in pixels, by descending score.
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
