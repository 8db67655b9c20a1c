"""What is in an image, and the images of one split with what is in them. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psvit.errors import UserError

IGNORED = 255
"""The class number of pixels that neither training nor evaluation looks at."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects in one image.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in pixels; x1 and y1 are where the box ends, so its width is x1 - x0.
        labels: (n,) class numbers from 0; there is no number for the background.
        masks: (n, H, W) pixels of each object that can be seen; None in a set without masks.
        crowd: (n,) crowds and difficult objects: not trained on, ignored in evaluation.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def areas(self) -> NDArray[np.float32]:
        """(n,) pixels of each mask; of each box in a set without masks."""
        if self.masks is not None:
            return self.masks.sum(axis=(1, 2)).astype(np.float32)
        return np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1, dtype=np.float32)


class DenseSource(ABC):
    """The images of one split, by number. Nothing is decoded before it is asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, i: int) -> Image.Image:
        """Image i, mode L or RGB; OSError if it cannot be read."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What a message calls image i: its file name, where it has one."""

    def size_of(self, i: int) -> tuple[int, int] | None:
        """Height and width of image i, without decoding it; None where that does not tell."""
        return None

    def objects(self, i: int) -> Objects:
        """Objects of image i; UserError in a set that has none."""
        raise UserError(f"{self.name(i)} has no boxes: its set labels pixels only; give --data a COCO or VOC folder")

    def class_map(self, i: int) -> NDArray[np.int64]:
        """(H, W) class number of each pixel of image i, 255 = ignored; UserError in a set that has none."""
        raise UserError(f"{self.name(i)} has no class map: give --data a folder of images and masks")


class DenseSubset(DenseSource):
    """Some images of another source."""

    def __init__(self, source: DenseSource, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, i: int) -> Image.Image:
        """The other's image."""
        return self.source.image(int(self.indices[i]))

    def name(self, i: int) -> str:
        """The other's name for it."""
        return self.source.name(int(self.indices[i]))

    def size_of(self, i: int) -> tuple[int, int] | None:
        """What the other knows of its size."""
        return self.source.size_of(int(self.indices[i]))

    def objects(self, i: int) -> Objects:
        """The other's objects."""
        return self.source.objects(int(self.indices[i]))

    def class_map(self, i: int) -> NDArray[np.int64]:
        """The other's class map."""
        return self.source.class_map(int(self.indices[i]))


class BoxesAlone(DenseSubset):
    """Another source without its masks: what a detector of boxes learns from."""

    def __init__(self, source: DenseSource) -> None:
        super().__init__(source, range(len(source)))

    def objects(self, i: int) -> Objects:
        """The other's objects, without masks."""
        return replace(super().objects(i), masks=None)


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(n, 4) tightest boxes around masks (n, H, W); zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
