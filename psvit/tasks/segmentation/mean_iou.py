"""Mean intersection over union of class maps, from a table that counts pixels. Sums are exact.

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
    """How many pixels of each class (rows) were taken for each class (columns): (K, K) int64.

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
    """What the counts of a split come to.

    Args:
        counts: (K, K) pixels by true (rows) and predicted class.
        loss: mean cross-entropy of a pixel that has a class, in nats.
        classes: K names.
        images: evaluated images.
        unreadable: names of images that could not be used, with reasons.
    """

    counts: Tensor
    loss: float
    classes: Sequence[str]
    images: int
    unreadable: tuple[str, ...] = ()

    @property
    def per_class(self) -> dict[str, float | None]:
        """Intersection over union in percent of each class; None for one that is neither there nor predicted."""
        hits = self.counts.diagonal()
        union = self.counts.sum(dim=0) + self.counts.sum(dim=1) - hits
        return {name: 100 * int(hit) / int(all_) if all_ else None
                for name, hit, all_ in zip(self.classes, hits, union, strict=True)}  # fmt: skip

    @property
    def miou(self) -> float:
        """The mean of `per_class`, in percent, over the classes that have one."""
        values = [value for value in self.per_class.values() if value is not None]
        return sum(values) / len(values)

    @property
    def pixel_accuracy(self) -> float:
        """Pixels whose class is right, in percent."""
        return 100 * int(self.counts.diagonal().sum()) / int(self.counts.sum())

    def to_dict(self) -> dict[str, Any]:
        """The metrics without those of single classes, as plain data."""
        shown = {"miou": round(self.miou, 4), "pixel_accuracy": round(self.pixel_accuracy, 4)}
        return {**shown, "loss": self.loss, "images": self.images}
