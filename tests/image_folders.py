"""Folders of images as people have them, written quickly: each picture is a few pixels, and no two are alike."""

import unicodedata
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.data.image_sets import ImageSet

_NUMBERS = count()

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
"""One name, as Linux and as a Mac write it."""

APPLE_DOUBLE = b"\0\5\26\7" + bytes(100)
"""What a Mac leaves beside a file on a foreign disk."""


def picture(ending: str = ".png") -> bytes:
    """The bytes of a picture that differs from all others."""
    number = next(_NUMBERS)
    pixels = np.frombuffer(np.uint64(number).tobytes() * 6, np.uint8).reshape(4, 4, 3)
    file = BytesIO()
    Image.fromarray(pixels).save(file, Image.registered_extensions()[ending])
    return file.getvalue()


def fill(folder: Path, images: int, ending: str = ".png", start: int = 0) -> None:
    """Write pictures 000.png, 001.png, ... into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + images):
        (folder / f"{number:03d}{ending}").write_bytes(picture(ending))


def classes(root: Path, images: int, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write so many pictures of each class."""
    for name in names:
        fill(root / name, images)
    return root


def opened(root: Path, **config: object) -> ImageSet:
    """The folder's images, each in its split."""
    files = open_data(DataConfig(str(root), **config)).files  # type: ignore[arg-type]
    assert files is not None
    return files


def by_split(files: ImageSet) -> dict[str, str]:
    """The split of each image, by its path below the root."""
    return {row.where: split for row, split in zip(files.rows, files.splits, strict=True)}


def labels(files: ImageSet) -> dict[str, str]:
    """The class of each image, by its path below the root."""
    return {row.where: row.label for row in files.rows}
