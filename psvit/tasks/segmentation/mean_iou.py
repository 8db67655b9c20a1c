"""Mean intersection over union of class maps, from an exact confusion matrix.

Legend: K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psvit.data.objects.objects import IGNORED


def confusion_matrix(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true (rows) and predicted (columns) class: (K, K) int64.

    Args:
        predicted: class numbers, of any shape.
        truth: class numbers, of the same shape; 255 is ignored.
        num_classes: K.
    """
    counted = truth != IGNORED
    pairs = truth[counted].long() * num_classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass(frozen=True, eq=False)
class SegmentationMetrics:
    """Metrics of a split.

    Args:
        counts: (K, K) pixels by true (rows) and predicted class.
        loss: mean cross-entropy over pixels with a class, in nats.
        classes: K names.
        images: number of evaluated images.
        unreadable: images that could not be used, as NAME (REASON).
    """

    counts: Tensor
    loss: float
    classes: Sequence[str]
    images: int
    unreadable: tuple[str, ...] = ()

    @property
    def per_class(self) -> dict[str, float | None]:
        """Intersection over union of each class in percent; None for a class without true or predicted pixels."""
        hits = self.counts.diagonal()
        union = self.counts.sum(dim=0) + self.counts.sum(dim=1) - hits
        return {name: 100 * int(hit) / int(all_) if all_ else None
                for name, hit, all_ in zip(self.classes, hits, union, strict=True)}  # fmt: skip

    @property
    def miou(self) -> float:
        """The mean of `per_class` in percent, without None."""
        values = [value for value in self.per_class.values() if value is not None]
        return sum(values) / len(values)

    @property
    def pixel_accuracy(self) -> float:
        """Percentage of pixels with the right class."""
        return 100 * int(self.counts.diagonal().sum()) / int(self.counts.sum())

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain data, without those per class."""
        shown = {"miou": round(self.miou, 4), "pixel_accuracy": round(self.pixel_accuracy, 4)}
        return {**shown, "loss": self.loss, "images": self.images}
