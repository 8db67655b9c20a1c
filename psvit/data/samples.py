"""One image -> one sample, samples -> a batch; unreadable images are replaced or dropped."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from psvit.data.array_transform import ArrayTransform
from psvit.data.sources import Source, Stream, printable
from psvit.errors import UserError, one_line

Key = tuple[int, int]
"""The index of an image, and the seed of its augmentation."""

Transform = Callable[[Image.Image], Tensor]

TRIES = 16
"""At most this many images in a row are tried in place of an unreadable training image."""


class Sample(NamedTuple):
    """A transformed image (None if unreadable), its class number or target, and unreadable files as NAME (REASON)."""

    image: Tensor | None
    label: Any
    unreadable: tuple[str, ...]


class Batch(NamedTuple):
    """Images (B, C, H, W) float32, labels (B,) int64, and unreadable files as NAME (REASON).

    Dense tasks have targets in place of labels, and a list of images if sizes differ.
    """

    images: Any
    labels: Any
    unreadable: tuple[str, ...]


class Split(Dataset[Sample], ABC):
    """A split with its transforms: a key (index, draw) -> Sample.

    Args:
        training: replace an unreadable image by the next readable one; evaluation drops it.
        strict: stop at the first unreadable image with a UserError.
    """

    def __init__(self, *, training: bool = False, strict: bool = False) -> None:
        self.training, self.strict = training, strict

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """The name of image i in messages."""

    @abstractmethod
    def read(self, i: int) -> Any:
        """Image i with its target, untransformed; OSError if it cannot be read."""

    @abstractmethod
    def transformed(self, item: Any) -> tuple[Tensor, Any]:
        """The result of `read` -> tensor and target; uses the global generators, which are seeded."""

    def batch(self, keys: Sequence[Key]) -> Batch:
        """The batch of some keys; the global generators are left as they were."""
        with generators_kept():
            return self.collate([self[key] for key in keys])

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> a batch without the unreadable images."""
        images = [sample.image for sample in samples if sample.image is not None]
        labels = [sample.label for sample in samples if sample.image is not None]
        return Batch(*self.stacked(images, labels), tuple(name for sample in samples for name in sample.unreadable))

    def stacked(self, images: list[Tensor], labels: list[Any]) -> tuple[Any, Any]:
        """Stack the images and labels of a batch."""
        return torch.stack(images) if images else torch.empty(0), torch.tensor(labels, dtype=torch.int64)

    def __getitem__(self, key: Key) -> Sample:
        index, draw = key
        unreadable: list[str] = []
        for step in range(min(TRIES, len(self)) if self.training else 1):
            i = (index + step) % len(self)
            try:
                item = self.read(i)
            except OSError as error:
                if self.strict:
                    reason = " ".join(str(error).split())
                    raise UserError(f"--strict: {self.name(i)}: {reason}; mend or remove the file") from error
                unreadable.append(_with_reason(self.name(i), error))
            else:
                return Sample(*self.drawn(item, draw), tuple(unreadable))
        if self.training:
            raise UserError(
                f"{len(unreadable)} images in a row cannot be read, from {unreadable[0]} to {unreadable[-1]}: "
                "mend or remove these files"
            )
        return Sample(None, -1, tuple(unreadable))

    def drawn(self, item: Any, draw: int) -> tuple[Tensor, Any]:
        """`transformed`; in training with generators seeded by `draw`."""
        if self.training:
            random.seed(draw)
            np.random.seed(draw % 2**32)
            torch.default_generator.manual_seed(draw)  # torch.manual_seed would seed the GPU's generator too
        return self.transformed(item)


class ImageSplit(Split):
    """Images with their class numbers.

    Args:
        source: the images; a stream is shuffled in training.
        transform: image -> tensor (C, H, W); may use the global generators. An `ArrayTransform` takes images in
            memory a batch at a time.
        training: replace unreadable images.
        strict: stop at the first unreadable image with a UserError.
    """

    def __init__(
        self, source: Source | Stream, transform: Transform, *, training: bool = False, strict: bool = False
    ) -> None:
        super().__init__(training=training, strict=strict)
        if isinstance(source, Stream) and strict:
            raise UserError("--strict cannot hold for a streamed set: timm's reader skips unreadable images unseen")
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        """What a message calls image i."""
        return self._numbered().name(i)

    def batch(self, keys: Sequence[Key]) -> Batch:
        """The batch of some keys: all at once where the images are in memory and the transform allows it."""
        if isinstance(self.transform, ArrayTransform):
            indices, draws = np.asarray(keys, dtype=np.int64).T
            held = self._numbered().arrays(indices)
            if held is not None and self.transform.takes(held[0].shape[1:]):
                images = self.transform.batch(held[0], draws)
                return Batch(images, torch.from_numpy(held[1].astype(np.int64)), ())
        return super().batch(keys)

    def read(self, i: int) -> tuple[Image.Image, int]:
        """Image i and its class number."""
        return self._numbered().image(i), self._numbered().label(i)

    def _numbered(self) -> Source:
        if isinstance(self.source, Stream):
            raise TypeError("a streamed set has no image by number: use train_batches or eval_batches")
        return self.source

    def transformed(self, item: tuple[Image.Image, int]) -> tuple[Tensor, int]:
        """PIL image and class number -> (C, H, W) and the number."""
        return self.transform(item[0]), item[1]


def _with_reason(name: str, error: OSError) -> str:
    """NAME (REASON), where the reason does not repeat the name."""
    reason = one_line(error, limit=1000).removeprefix(f"image {printable(name)}")  # it may hold long paths
    return f"{name} ({reason.lstrip(' :')})"


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the global generators, which the model's dropout uses too if loading runs in this process."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
