"""Image files that are decoded once: reduced to what a split needs, and kept in one file beside the run.

An image is reduced whether it is kept or not, so the pixels never depend on the cache. No torch here.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil, sqrt
from multiprocessing import RawArray
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

import PIL
from PIL import Image

from psvit.data.sources import FileSource, Source, Stream, Subset, load_image
from psvit.errors import one_line

NAME = "images.sqlite"
"""The file of the cache."""

DEFAULT_GIGABYTES = 8.0

PATIENCE = 60.0
"""Seconds to wait for another process that writes."""

PAGE = 16384
"""Bytes of a page of the file: images are read 1.5 times as fast as from SQLite's pages of 4096."""


class Reduction(Protocol):
    """How a file is read. Reductions of one repr give the same pixels."""

    def decode(self, path: str) -> Image.Image:
        """The image of a file, reduced; OSError if it cannot be read."""
        ...


@dataclass(frozen=True)
class ToShorterSide:
    """Reduces larger images until their shorter side has `side` pixels."""

    side: int

    def decode(self, path: str) -> Image.Image:
        """The image of a file, reduced; a JPEG is decoded at a part of its size where that is enough."""
        image = load_image(path, at_least=self.side * 3 // 2)
        short = min(image.size)
        if short <= self.side:
            return image
        width, height = (round(length * self.side / short) for length in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


@dataclass(frozen=True)
class ByFirstStep:
    """Reduces by the first step of an evaluation's transform, after which that step changes nothing."""

    step: Callable[[Image.Image], Image.Image]
    in_chans: int

    def decode(self, path: str) -> Image.Image:
        """The image of a file, reduced."""
        return self.step(load_image(path, self.in_chans))


IDEMPOTENT = ("Resize", "ResizeKeepRatio")
"""Steps of timm's evaluation that leave alone what they have resized."""


class ImageCache:
    """Images in one SQLite file; several processes of one machine may use it at a time, and any may be killed.

    Args:
        folder: of the file, which is created with the first image.
        gigabytes: the file's bound. It also takes at most half of the free disk.
    """

    _connection: sqlite3.Connection | None = None

    def __init__(self, folder: Path, gigabytes: float) -> None:
        self.path, self.bound = folder / NAME, round(gigabytes * 1e9)
        self.trouble = RawArray("c", 400)  # why no more images are kept; shared with loading processes
        self.said = self.broken = False

    def read(self, path: str, reduction: Reduction) -> Image.Image:
        """The reduced image of a file, kept if possible.

        Raises:
            OSError: the file cannot be read as an image; it is not kept.
        """
        try:
            about = os.stat(path)
        except OSError:
            return reduction.decode(path)  # which says what is wrong
        times = about.st_mtime_ns, about.st_ctime_ns  # some tools that edit a file keep the first
        facts = (os.path.abspath(path), about.st_size, *times, repr(reduction), PIL.__version__)
        key = blake2b(repr(facts).encode("utf-8", "surrogateescape"), digest_size=16).digest()
        if (kept := self._find(key)) is not None:
            return kept
        image = reduction.decode(path)
        self._keep(key, image)
        return image

    def note(self) -> str | None:
        """A line for the user if the file takes no more images; only once."""
        if self.said or not self.trouble.value:
            return None
        self.said = True
        trouble = self.trouble.value.decode(errors="replace")
        return f"{self.path} {trouble}: images that it does not hold are decoded in every epoch"

    def close(self) -> None:
        """Close the file, until it is used again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    __del__ = close

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_connection": None}

    def _say(self, trouble: str) -> None:
        self.trouble.value = trouble.encode()[: len(self.trouble) - 1]

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)  # each image at once
            _OPEN.add(self)
            for line in (
                f"PRAGMA page_size = {PAGE}",
                "PRAGMA journal_mode = WAL",
                "PRAGMA synchronous = NORMAL",
                "CREATE TABLE IF NOT EXISTS images (key BLOB PRIMARY KEY, width INTEGER, height INTEGER, pixels BLOB)",
            ):
                self._connection.execute(line)
        return self._connection

    def _find(self, key: bytes) -> Image.Image | None:
        if self.broken:
            return None
        try:
            row = self._opened().execute("SELECT width, height, pixels FROM images WHERE key = ?", (key,)).fetchone()
        except (sqlite3.Error, OSError) as error:
            self.broken = True
            self._say(f"cannot be used ({one_line(error)})")
            return None
        if row is None:
            return None
        width, height, pixels = row
        return Image.frombytes("L" if len(pixels) == width * height else "RGB", (width, height), pixels)

    def _keep(self, key: bytes, image: Image.Image) -> None:
        if self.broken or self.trouble.value:
            return
        try:
            file, pixels = self._opened(), image.tobytes()
            taken = PAGE * file.execute("PRAGMA page_count").fetchone()[0]
            if taken + len(pixels) > self.bound:
                self._say(f"is full ({self.bound / 1e9:g} GB by --image-cache)")
            elif taken + len(pixels) > shutil.disk_usage(self.path.parent).free:
                self._say(f"is full ({taken / 1e9:.3g} GB, half of the free disk)")
            else:
                file.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", (key, *image.size, pixels))
        except (sqlite3.Error, OSError) as error:  # such as a full disk
            self._say(f"takes no more images ({one_line(error)})")


def cache_of(folder: str | None, gigabytes: float | None) -> ImageCache | None:
    """The cache in a folder; None without a folder or with a bound of 0. By default the bound is 8 GB."""
    bound = DEFAULT_GIGABYTES if gigabytes is None else gigabytes
    return ImageCache(Path(os.path.expanduser(folder)), bound) if folder is not None and bound else None


_OPEN: WeakSet[ImageCache] = WeakSet()


def _close_all() -> None:
    for cache in list(_OPEN):
        cache.close()


if hasattr(os, "register_at_fork"):  # SQLite's connections must not be carried into a loading process
    os.register_at_fork(before=_close_all)


def remove_cache(folder: Path) -> None:
    """Remove the file of a cache in a folder, if there is one."""
    _close_all()
    for suffix in ("", "-wal", "-shm"):
        (folder / (NAME + suffix)).unlink(missing_ok=True)


class ReducedFiles(FileSource):
    """Image files that are reduced as they are read.

    Args:
        files: the files.
        reduction: how.
        cache: keeps the reduced images; None decodes them each time.
    """

    def __init__(self, files: FileSource, reduction: Reduction, cache: ImageCache | None) -> None:
        super().__init__(files.paths, files.targets)
        self.reduction, self.cache = reduction, cache

    def image(self, i: int) -> Image.Image:
        """Image i, reduced."""
        path = self.paths[i]
        return self.reduction.decode(path) if self.cache is None else self.cache.read(path, self.reduction)


def reduced_for_training(
    source: Source | Stream, img_size: tuple[int, int], scale: tuple[float, float], cache: ImageCache | None
) -> Source | Stream:
    """Image files no larger than random crops need, so that reducing first enlarges none; other sources as they are.

    Args:
        source: the images.
        img_size: height and width that crops are resized to.
        scale: least and greatest area of a crop, as fractions of the image.
        cache: keeps the images.
    """
    return _reduced(source, ToShorterSide(ceil(max(img_size) / sqrt(scale[0]))), cache)


def reduced_for_evaluation(
    source: Source | Stream, first: Callable[[Image.Image], Image.Image], in_chans: int, cache: ImageCache | None
) -> Source | Stream:
    """Image files after the first step of an evaluation, if there is a cache; other sources as they are.

    Args:
        source: the images.
        first: the first step of timm's transform, which gives bitwise the same for the reduced image.
        in_chans: channels that an image is converted to before that step.
        cache: keeps the images.
    """
    if cache is None or type(first).__name__ not in IDEMPOTENT:
        return source
    return _reduced(source, ByFirstStep(first, in_chans), cache)


def _reduced(source: Source | Stream, reduction: Reduction, cache: ImageCache | None) -> Source | Stream:
    if type(source) is Subset:
        inner = _reduced(source.source, reduction, cache)
        return Subset(inner, source.indices) if isinstance(inner, Source) else source
    return ReducedFiles(source, reduction, cache) if isinstance(source, FileSource) else source
