"""Headers of image files: sizes as stored and upright, and which of them annotations refer to. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from psvit.data.sources import add_pillow_plugins, stored_orientation, upright_size


class Header(NamedTuple):
    """Height and width as stored and upright by the EXIF orientation; whether there is an orientation."""

    stored: tuple[int, int]
    upright: tuple[int, int]
    oriented: bool


def read_header(path: str) -> Header | None:
    """The header of an image file; None if it cannot be read."""
    add_pillow_plugins()
    try:
        with Image.open(path) as image:
            return Header((image.height, image.width), upright_size(image), stored_orientation(image) != 1)
    except Exception:  # Pillow raises anything on broken files
        return None


def read_headers(paths: Sequence[str]) -> list[Header | None]:
    """The headers of image files, read in threads."""
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(read_header, paths))


def made_as_stored(
    headers: Sequence[Header | None], sizes: Sequence[tuple[int, int] | None], what: str
) -> tuple[list[bool], list[str]]:
    """Whether the annotations of each image refer to the pixels as stored, not to the upright image.

    Images rotated by a quarter turn tell which, since their sizes differ. If all of these agree, it holds for all
    images with an orientation.

    Args:
        headers: of the images.
        sizes: height and width according to the annotations of each image, if known.
        what: annotations or masks, for the lines.

    Returns:
        True or False for each image, and lines for the user.
    """
    pairs = list(zip(headers, sizes, strict=True))
    oriented = [header is not None and header.oriented for header in headers]
    stored = [header is not None and header.stored == size != header.upright for header, size in pairs]
    upright = [header is not None and header.upright == size != header.stored for header, size in pairs]
    if any(stored) and not any(upright):
        stored = oriented
    if count := sum(stored):
        return stored, [f"images whose EXIF orientation {what} ignore, read as they are stored: {count}"]
    count = 0 if any(upright) else sum(oriented)
    unknown = f"images with an EXIF orientation, read upright; sizes do not tell whether {what} are for that: {count}"
    return stored, [unknown] if count else []
