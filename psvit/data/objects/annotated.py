"""Image files with annotated objects, for COCO and Pascal VOC. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psvit.data.findings import Findings
from psvit.data.objects.objects import DenseFiles, Objects
from psvit.data.objects.outlines import Shape, draw
from psvit.data.sources import load_image
from psvit.errors import UserError, one_line

ROUNDING = 1.0
"""A box may exceed its image by this many pixels without a note: annotation tools round."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """One annotated object: box x0, y0, x1, y1 in pixels; `name` is for messages."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    shape: Shape | None
    name: str


@dataclass(frozen=True, eq=False)
class Annotated:
    """One image file: height and width, boxes (n, 4) within it, labels (n,), crowd (n,), n outlines.

    `as_stored`: the annotations refer to the pixels as stored, without the EXIF orientation.
    """

    path: str
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    shapes: tuple[Shape | None, ...]
    as_stored: bool = False


def annotate(
    path: str, size: tuple[int, int], found: Sequence[Annotation], findings: Findings, as_stored: bool = False
) -> Annotated:
    """Clip boxes to the image; drop those without area inside."""
    height, width = size
    boxes = np.asarray([one.box for one in found], dtype=np.float32).reshape(-1, 4)
    clipped = np.clip(boxes, 0, np.asarray((width, height, width, height), dtype=np.float32))
    known = np.all(np.isfinite(boxes), axis=1)
    good = known & np.all(clipped[:, :2] < clipped[:, 2:], axis=1)
    moved = good & (np.abs(clipped - np.where(known[:, None], boxes, 0)).max(axis=1) > ROUNDING)
    for what, wrong in (
        ("boxes that are not four numbers, dropped", ~known),
        ("boxes without area in their image, dropped", known & ~good),
        ("boxes that stand out of their image, clipped", moved),
    ):
        for at in np.flatnonzero(wrong):
            findings.add(what, found[int(at)].name)
    kept = [one for one, fine in zip(found, good.tolist(), strict=True) if fine]
    return Annotated(
        path=path,
        size=size,
        boxes=clipped[good],
        labels=np.asarray([one.label for one in kept], dtype=np.int64),
        crowd=np.asarray([one.crowd for one in kept], dtype=bool),
        shapes=tuple(one.shape for one in kept),
        as_stored=as_stored,
    )


def check_objects(where: Path, images: Sequence[Annotated], notes: Sequence[str], crowds: bool = False) -> None:
    """Refuse a training split without objects; with `crowds` crowds count. `notes` are added to the message."""
    if not any(len(one.labels) if crowds else (~one.crowd).any() for one in images):
        kind = "an object" if crowds else "an object that is neither a crowd nor difficult"
        found = f" (found on the way: {'; '.join(notes)})" if notes else ""
        raise UserError(
            f"{where}: no image of the training split has {kind}: there is nothing to learn; annotate some{found}"
        )


class AnnotatedSource(DenseFiles):
    """Annotated image files.

    Args:
        images: the files.
        has_masks: objects have masks; the box is the mask of an object without an outline or with an empty one.
    """

    def __init__(self, images: Sequence[Annotated], has_masks: bool) -> None:
        self.images, self.has_masks = images, has_masks

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> Image.Image:
        """Decode file i, mode RGB; OSError also if its size differs from the annotated one."""
        one = self.images[i]
        image = load_image(one.path, as_stored=one.as_stored)
        if image.size[::-1] != one.size:
            raise OSError(
                f"image {self.name(i)} is {image.width} x {image.height} pixels, but its annotations are for "
                f"{one.size[1]} x {one.size[0]}: it may have been scaled or turned since"
            )
        return image

    def path(self, i: int) -> str:
        """Path of file i."""
        return self.images[i].path

    def size_of(self, i: int) -> tuple[int, int]:
        """The annotated height and width of file i."""
        return self.images[i].size

    def objects(self, i: int) -> Objects:
        """Objects of file i; OSError if a mask cannot be decoded."""
        one = self.images[i]
        masks = np.array([*self._masks(i)], dtype=bool).reshape(-1, *one.size) if self.has_masks else None
        return Objects(one.boxes, one.labels, masks, one.crowd)

    def class_map(self, i: int) -> NDArray[np.int64]:
        """(H, W): 0 for the background, else class number + 1; the smaller of overlapping objects counts."""
        one = self.images[i]
        if not self.has_masks:
            raise UserError(f"{one.path} has boxes, but no masks: a class map cannot be drawn from them")
        classes = np.zeros(one.size, dtype=np.int64)
        drawn = zip(self._masks(i), one.labels, strict=True)
        for mask, label in sorted(drawn, key=lambda pair: -int(pair[0].sum())):
            classes[mask] = label + 1
        return classes

    def _masks(self, i: int) -> Iterator[NDArray[np.bool_]]:
        one = self.images[i]
        for box, shape in zip(one.boxes, one.shapes, strict=True):
            try:
                mask = draw(shape, one.size) if shape is not None else None
                yield mask if mask is not None and mask.any() else _filled(box, one.size)
            except (ValueError, RuntimeError) as error:  # runs that do not add up
                raise OSError(f"image {one.path}: a mask cannot be decoded ({one_line(error)})") from error


def _filled(box: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    mask[y0:y1, x0:x1] = True
    return mask
