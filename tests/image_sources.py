"""Image files, files of Fashion-MNIST, a source of numbered images, and batches compared."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psvit.data import image_cache
from psvit.data.samples import Batch
from psvit.data.sources import Source, Stream, load_image


def save(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    """An image file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def truncated_jpeg(path: Path) -> Path:
    """An image file of which only the beginning is there."""
    save(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:900])
    return path


def write_idx(path: Path, array: np.ndarray) -> None:
    """A file as MNIST's, compressed where its name says so."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def source_of(source: Source | Stream) -> Source:
    """A split of which each image can be asked for."""
    assert isinstance(source, Source)
    return source


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether two passes gave bitwise the same batches."""
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and x.unreadable == y.unreadable
        for x, y in zip(a, b, strict=True)
    )


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files decoded from now on."""
    decoded: list[str] = []

    def counted(path: str, *given: object, **more: object) -> Image.Image:
        decoded.append(path)
        return load_image(path, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(image_cache, "load_image", counted)
    return decoded


class Numbered(Source):
    """Image i is a 1x1 grey of value i; records what is read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def image(self, i: int) -> Image.Image:
        return Image.new("L", (1, 1), i)

    def label(self, i: int) -> int:
        return i

    def name(self, i: int) -> str:
        return f"#{i}"
