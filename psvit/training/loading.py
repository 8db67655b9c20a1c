"""Images -> batches: a training sample depends only on (seed, epoch, position).

Not on the number of workers, nor on what ran before. So a run that was killed goes on in mid-epoch to bitwise
equal weights. B, C, H, W: batch, channels, height, width.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from psvit.errors import UserError

Key = tuple[int, int]
"""The index of an image, and the draw: the number that seeds its augmentation."""

Transform = Callable[[Image.Image], Tensor]

TRIES = 16
"""An unreadable training image is replaced by one of the next, at most this many in a row."""


def load_image(file: str | Path | IO[bytes], in_chans: int = 3) -> Image.Image:
    """Read and decode an image file: mode L for 1 channel, RGB for 3. The EXIF orientation is left alone, as in timm.

    Raises:
        OSError: the file cannot be read as an image, is cut short, or is a decompression bomb.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return convert_image(image, in_chans)
    except Exception as error:  # on broken bytes Pillow's plugins raise anything: SyntaxError, struct.error, ...
        name = getattr(file, "name", "from memory") if hasattr(file, "read") else file
        raise OSError(f"image {name} cannot be read: {error}") from error


def convert_image(image: Image.Image, in_chans: int = 3) -> Image.Image:
    """Bring an image of any mode to 8 bit L or RGB.

    What is transparent becomes white: a plain conversion would bring back whatever colour is hidden beneath.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _scale_to_8_bit(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if in_chans == 1 else "RGB")


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    # Pillow's own convert() clips at 255. The first range that holds the pixels is a rule that keeps the images of
    # a set comparable, where stretching each to its own extremes would not.
    pixels = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = pixels.min(), pixels.max()
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = 0.0, next((top for top in ranges if high <= top), high)
    return Image.fromarray(np.rint((pixels - low) * 255.0 / max(high - low, 1e-12)).astype(np.uint8))


class Source(ABC):
    """The images of one split, by number. Nothing is decoded before `image` asks for it."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, i: int) -> Image.Image:
        """Image i, mode L or RGB; OSError if it cannot be read."""

    @abstractmethod
    def label(self, i: int) -> int:
        """Class number of image i."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What a message calls image i: its file name, where it has one."""

    def labels(self) -> Sequence[int] | None:
        """Every class number, without decoding an image; None: not known before the images are read."""
        return [self.label(i) for i in range(len(self))]


class ArraySource(Source):
    """Grey images held in memory: pixels (N, H, W) uint8, targets (N,)."""

    def __init__(self, pixels: NDArray[np.uint8], targets: NDArray[Any], title: str) -> None:
        self.pixels, self.targets, self.title = pixels, targets, title

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, i: int) -> Image.Image:
        """Image i, mode L."""
        return Image.fromarray(self.pixels[i])

    def label(self, i: int) -> int:
        """Class number of image i."""
        return int(self.targets[i])

    def name(self, i: int) -> str:
        """For example ``digits #12``."""
        return f"{self.title} #{i}"


class FileSource(Source):
    """Image files with their class numbers."""

    def __init__(self, paths: Sequence[str], targets: Sequence[int], in_chans: int = 3) -> None:
        self.paths, self.targets, self.in_chans = paths, targets, in_chans

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> Image.Image:
        """Decode file i."""
        return load_image(self.paths[i], self.in_chans)

    def label(self, i: int) -> int:
        """Class number of file i."""
        return self.targets[i]

    def name(self, i: int) -> str:
        """Path of file i."""
        return self.paths[i]


class _View(Source):
    """A source that shows images of another."""

    @abstractmethod
    def _at(self, i: int) -> tuple[Source, int]: ...

    def image(self, i: int) -> Image.Image:
        source, at = self._at(i)
        return source.image(at)

    def label(self, i: int) -> int:
        source, at = self._at(i)
        return source.label(at)

    def name(self, i: int) -> str:
        source, at = self._at(i)
        return source.name(at)


class Subset(_View):
    """Some images of another source."""

    def __init__(self, source: Source, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def _at(self, i: int) -> tuple[Source, int]:
        return self.source, int(self.indices[i])


class LazySource(_View):
    """A source that is opened when it is first asked for anything: so nothing looks into a test split by accident."""

    def __init__(self, open_source: Callable[[], Source]) -> None:
        self.open_source = open_source

    @cached_property
    def source(self) -> Source:
        """The source itself; asking for it opens it."""
        return self.open_source()

    def __len__(self) -> int:
        return len(self.source)

    def _at(self, i: int) -> tuple[Source, int]:
        return self.source, i


class Stream:
    """A split that can only be read from its start: timm's iterable sets (WebDataset, TFDS, hfids).

    Args:
        open_stream: opens timm's set afresh; called with is_training, seed, batch_size.
    """

    def __init__(self, open_stream: Callable[..., Any]) -> None:
        self.open_stream = open_stream

    @cached_property
    def length(self) -> int:
        """Number of images by the set's own account."""
        return len(self.open_stream(is_training=False, seed=0, batch_size=1))

    def __len__(self) -> int:
        return self.length

    def labels(self) -> None:
        """Not known before the images are read."""
        return


class Sample(NamedTuple):
    """One image, transformed; None if it could not be read in evaluation, which drops it."""

    image: Tensor | None
    label: int
    unreadable: tuple[str, ...]


class Batch(NamedTuple):
    """Images (B, C, H, W) float32, labels (B,) int64, and the names of the files that could not be read."""

    images: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]


class ImageSplit(Dataset[Sample]):
    """A split with its transform: a key (index, draw) -> Sample.

    An unreadable image is named in the sample. Training puts the next readable one in its place; evaluation drops it.

    Args:
        source: the images.
        transform: image -> tensor (C, H, W); its randomness comes from the key's draw alone.
        training: replace unreadable images; shuffle the order if the source is a stream.
        strict: stop at the first unreadable image with a UserError.
    """

    def __init__(
        self, source: Source | Stream, transform: Transform, *, training: bool = False, strict: bool = False
    ) -> None:
        if isinstance(source, Stream) and strict:
            raise UserError("strict cannot hold for a streamed set: timm's reader skips unreadable images unseen")
        self.source, self.transform, self.training, self.strict = source, transform, training, strict

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample:
        if isinstance(self.source, Stream):
            raise TypeError("a streamed set has no image by number: use train_batches or eval_batches")
        index, draw = key
        unreadable: list[str] = []
        for step in range(min(TRIES, len(self)) if self.training else 1):
            i = (index + step) % len(self)
            try:
                image = self.source.image(i)
            except OSError as error:
                unreadable.append(self.source.name(i))
                if self.strict:
                    reason = " ".join(str(error).split())
                    raise UserError(f"strict: {unreadable[-1]}: {reason}; mend or remove the file") from error
            else:
                return Sample(self._transformed(image, draw), self.source.label(i), tuple(unreadable))
        if self.training:
            raise UserError(
                f"{len(unreadable)} images in a row cannot be read, from {unreadable[0]} to {unreadable[-1]}: "
                "mend or remove these files"
            )
        return Sample(None, -1, tuple(unreadable))

    def _transformed(self, image: Image.Image, draw: int) -> Tensor:
        if not self.training:
            return self.transform(image)
        with _seeded(draw):
            return self.transform(image)


@contextmanager
def _seeded(draw: int) -> Iterator[None]:
    # In-process loading shares the generators with the model (dropout, drop path): give them back as they were.
    # torch.manual_seed would seed the GPU's generator too, so only the CPU's is touched.
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(draw)
    np.random.seed(draw % 2**32)
    torch.default_generator.manual_seed(draw)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def train_batches(
    split: ImageSplit,
    *,
    batch_size: int,
    batches: int,
    epoch: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    repeats: int = 1,
) -> Iterator[Batch]:
    """Yield the micro-batches start, start + 1, ..., batches - 1 of one rank's epoch.

    The order is a permutation drawn from (seed, epoch); when it is used up a fresh one follows. Micro-batch j of
    rank r takes the positions ``[(j * world_size + r) * batch_size : + batch_size]``. With repeats an image fills that
    many positions in a row, each with its own draw, and the order keeps its length (DeiT's repeated augmentation).

    A streamed set takes a simpler path. Its order comes from timm's reader, seeded by (seed, epoch): equal for an equal
    number of workers only. Resuming reads and throws away the first `start` batches.
    """
    if isinstance(split.source, Stream):
        if repeats != 1:
            raise UserError(f"repeats {repeats} needs images by number, but the set is streamed: leave it at 1")
        stream = _StreamBatches(split, batch_size, (seed, epoch), rank, world_size)
        number = -1
        for number, batch in enumerate(islice(_load(stream, None, workers, seed + epoch), batches)):
            if number >= start:
                yield batch
        if number < 0 < batches:
            raise UserError("the set's training split yields no images: check its files, or use fewer processes")
        return
    if len(split) == 0:
        raise UserError("the split to train on holds no images: lower holdout, or give more data")
    keys = _epoch_keys(len(split), batch_size, batches, epoch, seed, start, rank, world_size, repeats)
    yield from _load(_KeyedBatches(split), keys, workers, seed + epoch)


def _epoch_keys(
    size: int,
    batch_size: int,
    batches: int,
    epoch: int,
    seed: int,
    start: int,
    rank: int,
    world_size: int,
    repeats: int,
) -> Iterator[list[Key]]:
    shuffled_turn = -1
    for number in range(start, batches):
        first = (number * world_size + rank) * batch_size
        keys = []
        for position in range(first, first + batch_size):
            turn, place = divmod(position, size)
            if turn != shuffled_turn:
                rng = np.random.default_rng((seed, epoch, turn))
                order, draws, shuffled_turn = rng.permutation(size), rng.integers(2**63, size=size), turn
            keys.append((int(order[place // repeats]), int(draws[place])))
        yield keys


def eval_batches(
    split: ImageSplit, *, batch_size: int, rank: int = 0, world_size: int = 1, workers: int = 0
) -> Iterator[Batch]:
    """Yield every image exactly once over all ranks: rank r takes the images ``r::world_size``. No padding.

    Unreadable images are dropped and named in a batch, so batches may be smaller; an empty one is never yielded.
    """
    if len(split) == 0:
        raise UserError("the split to evaluate on holds no images: raise holdout, or choose another split")
    if isinstance(split.source, Stream):
        batches = _load(_StreamBatches(split, batch_size, (0, 0), rank, world_size), None, workers, 0)
    else:
        mine = range(rank, len(split), world_size)
        keys = ([(i, 0) for i in mine[at : at + batch_size]] for at in range(0, len(mine), batch_size))
        batches = _load(_KeyedBatches(split), keys, workers, 0)
    held: Batch | None = None  # one batch is held back, so that no name is lost when nothing readable follows
    names: tuple[str, ...] = ()
    for batch in batches:
        names += batch.unreadable
        if len(batch.labels):
            if held is not None:
                yield held
            held, names = batch._replace(unreadable=names), ()
    if held is not None:
        yield held._replace(unreadable=held.unreadable + names)
    elif names:
        raise UserError(f"none of {len(names)} images can be read, the first is {names[0]}: check the data folder")


class _KeyedBatches(Dataset["Batch | UserError"]):
    """Keys -> batch. A worker hands a UserError back as a value: DataLoader would bury its line in a traceback."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __getitem__(self, keys: list[Key]) -> Batch | UserError:
        try:
            return _collate([self.split[key] for key in keys])
        except UserError as error:
            return error


class _StreamBatches(IterableDataset["Batch | UserError"]):
    """Reader -> batches, in the reader's order; in training without end, a pass after a pass."""

    def __init__(self, split: ImageSplit, batch_size: int, seed: Key, rank: int, world_size: int) -> None:
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        rng = np.random.default_rng((*self.seed, self.rank, 0 if worker is None else worker.id))
        images = self._images()
        while chunk := list(islice(images, self.batch_size)):
            draws = rng.integers(2**63, size=len(chunk))
            pairs = zip(chunk, draws, strict=True)
            yield _collate(
                [Sample(self.split._transformed(image, int(draw)), int(label), ()) for (image, label), draw in pairs]
            )

    def _images(self) -> Iterator[tuple[Image.Image, int]]:
        assert isinstance(self.split.source, Stream)
        for turn in count():
            seed = int(np.random.SeedSequence((*self.seed, turn)).generate_state(1)[0])
            training = self.split.training
            dataset = self.split.source.open_stream(is_training=training, seed=seed, batch_size=self.batch_size)
            if not training:
                # timm pads an evaluation so that its ranks get equal shares; we read all and take every n-th instead
                dataset.reader.dist_rank, dataset.reader.dist_num_replicas = 0, 1
                yield from islice(dataset, self.rank, None, self.world_size)
                return
            dataset.reader.dist_rank, dataset.reader.dist_num_replicas = self.rank, self.world_size
            images = iter(dataset)
            first = next(images, None)
            if first is None:  # more workers than shards: this one has nothing to read
                return
            yield first
            yield from images


def _collate(samples: Sequence[Sample]) -> Batch:
    images = [sample.image for sample in samples if sample.image is not None]
    labels = [sample.label for sample in samples if sample.image is not None]
    names = tuple(name for sample in samples for name in sample.unreadable)
    return Batch(torch.stack(images) if images else torch.empty(0), torch.tensor(labels, dtype=torch.int64), names)


def _load(
    dataset: Dataset[Batch | UserError], keys: Iterable[list[Key]] | None, workers: int, seed: int
) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,  # the data set makes whole batches itself
        sampler=keys,
        num_workers=workers,
        collate_fn=_same,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else DataLoader draws from the model's generator
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield Batch(batch.images, batch.labels, tuple(batch.unreadable))  # pinning turns the tuple into a list


def _same(batch: Any) -> Any:
    return batch
