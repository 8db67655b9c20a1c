"""Files, arrays and streams -> the images of one split, by index or as a stream. No torch here."""

from __future__ import annotations

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError


def cache_folder() -> Path:
    """psvit's folder in the user's cache, or in the temporary folder for a user without a home."""
    home = os.path.expanduser("~")  # stays ~ without HOME and without an entry for the user
    places = [os.environ.get("XDG_CACHE_HOME", ""), os.path.join(home, ".cache"), tempfile.gettempdir()]
    return Path(next(filter(os.path.isabs, places))) / "psvit"


CACHE = cache_folder()

TEST_SPLITS = ("test", "validation", "val", "valid")
"""Names of a test split; the first that exists is used."""


@cache
def add_pillow_plugins() -> None:
    """Register Pillow's plug-ins: HEIC where pillow-heif is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def load_image(
    file: str | Path | IO[bytes], in_chans: int = 3, as_stored: bool = False, at_least: int | None = None
) -> Image.Image:
    """Read and decode an image file, upright: mode L for 1 channel, RGB for 3; only the first frame.

    Args:
        file: its path, or an open file.
        in_chans: 1 or 3.
        as_stored: ignore the EXIF orientation.
        at_least: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where each side keeps this many pixels.

    Raises:
        OSError: the file cannot be read as an image, is cut short, or is a decompression bomb.
    """
    add_pillow_plugins()
    try:
        with Image.open(file) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()
            return convert_image(image, in_chans, as_stored)
    except Exception as error:  # Pillow raises anything on broken files: SyntaxError, struct.error, ...
        name = printable(str(getattr(file, "name", "from memory") if hasattr(file, "read") else file))
        unknown = isinstance(error, UnidentifiedImageError)  # other messages would repeat the name
        reason = "it is of no format that Pillow knows" if unknown else getattr(error, "strerror", None) or error
        raise OSError(f"image {name} cannot be read: {reason}") from error


def convert_image(image: Image.Image, in_chans: int = 3, as_stored: bool = False) -> Image.Image:
    """Convert an image of any mode to 8-bit L or RGB, upright by its EXIF orientation, or as stored.

    Transparent pixels become white; a plain conversion would show their hidden colours.
    """
    image = image if as_stored else upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _scale_to_8_bit(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if in_chans == 1 else "RGB")


ORIENTATION = 0x0112
"""The EXIF tag of the orientation."""

QUARTER_TURNS = 5
"""From this orientation on, width and height are swapped."""


def upright(image: Image.Image) -> Image.Image:
    """The image rotated by its EXIF orientation."""
    with suppress(Exception):  # keep images with a broken EXIF block
        if image.getexif().get(ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def stored_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, from its header: 1 (upright) to 8."""
    with suppress(Exception):
        # image.getexif() would decode a whole PNG to look for a block after the pixels
        found = Image.Image.getexif(image).get(ORIENTATION, 1)
        return found if found in range(1, 9) else 1
    return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of `upright(image)`, from the header."""
    turned = stored_orientation(image) >= QUARTER_TURNS
    return (image.width, image.height) if turned else (image.height, image.width)


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    # Pillow's convert() clips at 255. Scaling by the first fixed range that holds the pixels keeps the images of a set
    # comparable; stretching each image to its own range would not.
    pixels = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = pixels.min(), pixels.max()
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = 0.0, next((top for top in ranges if high <= top), high)
    return Image.fromarray(np.rint((pixels - low) * 255.0 / max(high - low, 1e-12)).astype(np.uint8))


class Images(ABC):
    """The images of one split, by index; decoded on demand."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, i: int) -> Image.Image:
        """Image i, mode L or RGB; OSError if it cannot be read."""

    @abstractmethod
    def name(self, i: int) -> str:
        """The name of image i in messages: its file name, or for example ``digits #12``."""


class Source(Images):
    """Images with class numbers."""

    @abstractmethod
    def label(self, i: int) -> int:
        """Class number of image i."""

    def labels(self) -> Sequence[int] | None:
        """All class numbers, without decoding images; None if they are not known."""
        return [self.label(i) for i in range(len(self))]

    def arrays(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]] | None:
        """Pixels (B, H, W) or (B, H, W, C) and class numbers (B,) of some images; None if they are not in memory."""
        return None


class ArraySource(Source):
    """Images held in memory: pixels (N, H, W) or (N, H, W, 3) uint8, targets (N,)."""

    def __init__(self, pixels: NDArray[np.uint8], targets: NDArray[Any], title: str) -> None:
        self.pixels, self.targets, self.title = pixels, targets, title

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, i: int) -> Image.Image:
        """Image i, mode L or RGB."""
        return Image.fromarray(self.pixels[i])

    def label(self, i: int) -> int:
        """Class number of image i."""
        return int(self.targets[i])

    def name(self, i: int) -> str:
        """For example ``digits #12``."""
        return f"{self.title} #{i}"

    def arrays(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Pixels, as they are held, and class numbers (B,) of some images."""
        return self.pixels[indices], self.targets[indices]


class FileSource(Source):
    """Image files with their class numbers."""

    def __init__(self, paths: Sequence[str], targets: Sequence[int]) -> None:
        self.paths, self.targets = paths, targets

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> Image.Image:
        """Decode file i."""
        return load_image(self.paths[i])

    def label(self, i: int) -> int:
        """Class number of file i."""
        return self.targets[i]

    def name(self, i: int) -> str:
        """Printable path of file i."""
        return printable(self.paths[i])


S = TypeVar("S", bound=Images)


class Chosen(Images, Generic[S]):
    """A subset of another source."""

    def __init__(self, source: S, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, i: int) -> Image.Image:
        """The other source's image."""
        return self.source.image(int(self.indices[i]))

    def name(self, i: int) -> str:
        """Its name."""
        return self.source.name(int(self.indices[i]))


class Subset(Chosen[Source], Source):
    """A subset of a source with class numbers."""

    def label(self, i: int) -> int:
        """Its class number."""
        return self.source.label(int(self.indices[i]))

    def arrays(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]] | None:
        """The other source's."""
        return self.source.arrays(self.indices[indices])


class LazySource(Subset):
    """A source that is opened when first used, so that no test split is read by accident."""

    def __init__(self, open_source: Callable[[], Source]) -> None:
        self.open_source = open_source

    @cached_property
    def source(self) -> Source:  # type: ignore[override]
        """The source; opened on first access."""
        return self.open_source()

    @cached_property
    def indices(self) -> NDArray[np.int64]:  # type: ignore[override]
        """The indices of all images."""
        return np.arange(len(self.source))


class Stream:
    """A split that can only be read from its start: timm's iterable sets (WebDataset, TFDS, hfids).

    Args:
        open_stream: opens timm's set anew; called with is_training, seed, batch_size.
    """

    def __init__(self, open_stream: Callable[..., Any]) -> None:
        self.open_stream = open_stream

    @cached_property
    def length(self) -> int:
        """Number of images according to the set."""
        return len(self.open_stream(is_training=False, seed=0, batch_size=1))

    def __len__(self) -> int:
        return self.length

    def labels(self) -> None:
        """None: class numbers are not known before the images are read."""
        return


def no_images() -> Source:
    """An empty split."""
    return FileSource((), ())


def natural(text: str) -> tuple[list[str | int], str]:
    """Key for natural sorting: numbers by value, letters without case."""
    parts = re.split(r"(\d+)", text.lower())
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], text


def printable(text: str) -> str:
    """The text with bytes that are not UTF-8, as in file names, escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def quoted(names: Sequence[str]) -> str:
    """The first five names, and the number of others, for a message."""
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
