"""Images with masks, image files whose pixels are class numbers. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psvit.data.objects.class_names import packed
from psvit.data.objects.headers import Header
from psvit.data.objects.mask_numbers import FAR, Numbers
from psvit.data.objects.objects import DenseFiles
from psvit.data.sources import load_image, printable
from psvit.errors import UserError, one_line

EXACT = {".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pbm", ".pnm"}
"""Lossless formats, besides lossless WebP."""


class MapSource(DenseFiles):
    """Image files with masks.

    Args:
        pairs: image and mask.
        numbers: the meaning of the numbers in masks.
        headers: of the images.
        stored: whether the mask is for the image as stored, without its EXIF orientation.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        numbers: Numbers,
        headers: Sequence[Header | None],
        stored: Sequence[bool],
    ) -> None:
        self.pairs, self.numbers, self.headers, self.stored = pairs, numbers, headers, stored

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, i: int) -> Image.Image:
        """Decode image i, mode RGB; OSError also if its size differs from the header."""
        image = load_image(self.pairs[i][0], as_stored=self.stored[i])
        if image.size[::-1] != self.size_of(i):
            raise OSError(f"image {self.name(i)} has an EXIF orientation behind its pixels: write it again without")
        return image

    def path(self, i: int) -> str:
        """Path of image i."""
        return str(self.pairs[i][0])

    def size_of(self, i: int) -> tuple[int, int] | None:
        """Height and width of image i from its header; None if it cannot be read."""
        header = self.headers[i]
        return None if header is None else header.stored if self.stored[i] else header.upright

    def class_map(self, i: int) -> NDArray[np.int64]:
        """Class numbers (H, W) of image i; OSError if the mask cannot be read or has another size."""
        size = self.size_of(i)
        if size is None:
            raise OSError(f"image {self.name(i)} cannot be read: its header is broken")
        classes, mask = self._mask(i), printable(str(self.pairs[i][1]))
        if classes.shape != size:
            height, width = classes.shape
            raise OSError(f"mask {mask} is {width} x {height} pixels, its image {size[1]} x {size[0]}")
        return classes

    def _mask(self, i: int) -> NDArray[np.int64]:
        path = self.pairs[i][1]
        return self.numbers.classes(read_mask(path, self.numbers.colours), printable(str(path)))

    def readable(self, indices: Sequence[int]) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield names and class numbers of the readable masks; UserError for a number without a class."""
        for at in indices:
            with suppress(OSError):
                yield printable(str(self.pairs[at][1])), self._mask(at)


def read_mask(path: Path, colours: bool = False) -> NDArray[np.int64]:
    """The numbers (H, W) in a mask: pixel values or palette indices; with `colours` the packed colours.

    Raises:
        OSError: it cannot be read, or holds fractions.
        UserError: it holds colours, and `colours` is not set.
    """
    values, grey = open_mask(path, colours)
    if not grey and not colours:
        raise UserError(f"mask {path} holds colours, where others hold numbers: save class numbers in all")
    return values.astype(np.int64)


def open_mask(path: Path, colours: bool) -> tuple[NDArray[np.integer[Any]], bool]:
    """The values in a mask, with colours packed, and whether it holds numbers; OSError as `read_mask`."""
    try:
        with Image.open(path) as image:
            image.load()
            values = np.asarray(image.convert("RGB") if colours else image)
            mode = "RGB" if colours else image.mode
    except Exception as error:  # Pillow raises anything on broken files
        raise OSError(f"mask {printable(str(path))} cannot be read: {one_line(error)}") from error
    if mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "F") and not mode.startswith("I"):
        raise OSError(f"mask {printable(str(path))} is of the mode {mode}, which holds no class numbers")
    if values.ndim == 3:  # a grey image saved as RGB has equal channels
        parts = values[..., :3] if mode.startswith("RGB") else values[..., :1]
        apart = FAR if is_lossy(path) else 1  # lossy formats change grey to colours
        if colours or np.ptp(parts, axis=-1).max(initial=0) >= apart:
            red, green, blue = np.moveaxis(values[..., :3].astype(np.int64), -1, 0)
            return packed(red, green, blue), False
        values = parts[..., 0]
    if values.dtype.kind in "iu":
        return values, True
    whole = values.astype(np.int64)
    if (whole != values).any():
        raise OSError(f"mask {printable(str(path))} holds fractions, which are no class numbers")
    return whole, True


def is_lossy(path: Path) -> bool:
    """Whether a mask has a lossy format."""
    if path.suffix.lower() in EXACT:
        return False
    with path.open("rb") as file:
        return path.suffix.lower() != ".webp" or b"VP8L" not in file.read(1 << 12)
