"""Images with objects or class maps -> samples and batches, for detectors and segmenters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from psvit.data.objects.objects import IGNORED, DenseSource, Objects
from psvit.data.objects.transforms import Vary, to_tensor, vary_class_map, vary_objects
from psvit.data.samples import Split
from psvit.errors import UserError, one_line


class DenseSplit(Split):
    """Images with objects or class maps.

    Args:
        source: the images.
        vary: augmentation in training; None in evaluation.
        strict: stop at the first unreadable image with a UserError.
    """

    def __init__(self, source: DenseSource, vary: Vary | None = None, *, strict: bool = False) -> None:
        super().__init__(training=vary is not None, strict=strict)
        self.source, self.vary = source, vary

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        """The name of image i in messages."""
        return self.source.name(i)

    def counts(self, item: Any) -> bool:
        """Whether an image counts in the metrics."""
        return True


class ObjectSplit(DenseSplit):
    """Images with boxes and masks: a batch is a list of images (C, H, W) in 0..1 and a list of targets.

    In training a target is torchvision's; in evaluation the index of the image, (height, width) and Objects.
    """

    def read(self, i: int) -> tuple[int, Image.Image, Objects]:
        """Index, image and objects of image i."""
        return i, self.source.image(i), self.source.objects(i)

    def transformed(self, item: tuple[int, Image.Image, Objects]) -> tuple[Tensor, Any]:
        """The result of `read` -> (C, H, W) and the target."""
        number, image, objects = item
        if self.vary is not None:
            return vary_objects(self.vary, image, objects)
        return to_tensor(image), (number, (image.height, image.width), objects)

    def stacked(self, images: list[Tensor], labels: list[Any]) -> tuple[Any, Any]:
        """Lists, since images differ in size and number of objects."""
        return images, labels


class ClassMapSplit(DenseSplit):
    """Images with class maps: a batch is images (B, C, H, W) in 0..1 and class numbers (B, H, W), 255 = ignored.

    In evaluation images keep their sizes, and a batch has lists of (C, H, W) and of (H, W).
    """

    def read(self, i: int) -> tuple[Image.Image, NDArray[np.int64]]:
        """Image i and its class map."""
        return self.source.image(i), self.source.class_map(i)

    def counts(self, item: tuple[Image.Image, NDArray[np.int64]]) -> bool:
        """Whether any pixel has a class."""
        return bool((item[1] != IGNORED).any())

    def transformed(self, item: tuple[Image.Image, NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        """The result of `read` -> (C, H, W) and (H, W)."""
        return vary_class_map(self.vary, *item)

    def stacked(self, images: list[Tensor], labels: list[Any]) -> tuple[Any, Any]:
        """One tensor of images and one of class maps in training, lists in evaluation."""
        return (torch.stack(images), torch.stack(labels)) if self.training else (images, labels)


def check_validation(split: DenseSplit) -> None:
    """Before training, refuse a validation split without a usable image; reads up to the first usable one.

    Raises:
        UserError: none of its images can be read, or no pixel of them has a class.
    """
    wrong = ""
    for i in range(len(split)):
        try:
            if split.counts(split.read(i)):
                return
            wrong = wrong or f"{split.name(i)} (every pixel is {IGNORED}, which is ignored)"
        except OSError as error:
            wrong = wrong or one_line(error, limit=1000)  # it names the path, which may be long
    if wrong:
        raise UserError(
            f"none of the {len(split)} images of the validation split can be evaluated, the first is {wrong}: "
            "mend it, give another --split-seed, or go without a validation split by --validation 0"
        )
