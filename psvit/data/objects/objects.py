"""The objects in an image, and sources of images with objects or class maps. No torch here."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psvit.data.sources import Chosen, Images, printable
from psvit.errors import UserError

IGNORED = 255
"""The class number of pixels that training and evaluation ignore."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects in one image.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in pixels; the width is x1 - x0.
        labels: (n,) class numbers from 0, without the background.
        masks: (n, H, W) visible pixels of each object; None in a set without masks.
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
        """(n,) area of each mask in pixels, or of each box if there are no masks."""
        if self.masks is not None:
            return self.masks.sum(axis=(1, 2)).astype(np.float32)
        return np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1, dtype=np.float32)


class DenseSource(Images):
    """Images with objects or class maps."""

    def size_of(self, i: int) -> tuple[int, int] | None:
        """Height and width of image i, if known without decoding it."""
        return None

    def objects(self, i: int) -> Objects:
        """Objects of image i; UserError in a set that has none."""
        raise UserError(f"{self.name(i)} has no boxes: its set labels pixels only; give --data a COCO or VOC folder")

    def class_map(self, i: int) -> NDArray[np.int64]:
        """(H, W) class number of each pixel of image i, 255 = ignored; UserError in a set that has none."""
        raise UserError(f"{self.name(i)} has no class map: give --data a folder of images and masks")


class DenseFiles(DenseSource):
    """Image files."""

    @abstractmethod
    def path(self, i: int) -> str:
        """Path of file i."""

    def name(self, i: int) -> str:
        """Printable path of file i."""
        return printable(self.path(i))


@dataclass(frozen=True, eq=False)
class Found:
    """The content of a folder.

    Args:
        root: the folder.
        classes: class names, by class number.
        source: all its images.
        splits: the split of each image; train if the folder has no splits.
        origins: the file or folder (ending with /) of each split; empty without splits.
        notes: lines for the user.
        named: names of files in the notes.
        masks: paths of mask files, if any.
        has_masks: objects have masks.
    """

    root: Path
    classes: tuple[str, ...]
    source: DenseFiles
    splits: tuple[str, ...]
    origins: dict[str, str]
    notes: tuple[str, ...]
    named: frozenset[str]
    masks: tuple[str, ...] = ()
    has_masks: bool = False


class DenseSubset(Chosen[DenseSource], DenseSource):
    """A subset of another source."""

    def size_of(self, i: int) -> tuple[int, int] | None:
        """Its size."""
        return self.source.size_of(int(self.indices[i]))

    def objects(self, i: int) -> Objects:
        """Its objects."""
        return self.source.objects(int(self.indices[i]))

    def class_map(self, i: int) -> NDArray[np.int64]:
        """Its class map."""
        return self.source.class_map(int(self.indices[i]))


class BoxesAlone(DenseSubset):
    """Another source without its masks, for detectors of boxes."""

    def __init__(self, source: DenseSource) -> None:
        super().__init__(source, range(len(source)))

    def objects(self, i: int) -> Objects:
        """Its objects, without masks."""
        return replace(super().objects(i), masks=None)


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(n, 4) tightest boxes around masks (n, H, W); zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
