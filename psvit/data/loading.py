"""Images -> batches: a training sample depends only on (seed, epoch, position).

Not on the number of workers, nor on what ran before. So a run that was killed goes on in mid-epoch to bitwise
equal weights. B, C, H, W: batch, channels, height, width.
"""

from __future__ import annotations

import random
import re
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from psvit.data.sources import Source, Stream, printable
from psvit.errors import UserError, one_line

Key = tuple[int, int]
"""The index of an image, and the draw: the number that seeds its augmentation."""

Transform = Callable[[Image.Image], Tensor]

TRIES = 16
"""An unreadable training image is replaced by one of the next, at most this many in a row."""


class Sample(NamedTuple):
    """One image, transformed, and what is to be said of it; None if it could not be read in evaluation, which drops it.

    `label` is a class number in classification, and what a task wants to be known in others; `unreadable` holds
    NAME (REASON) of this image, or of those that it stands in for.
    """

    image: Tensor | None
    label: Any
    unreadable: tuple[str, ...]


class Batch(NamedTuple):
    """Images (B, C, H, W) float32, labels (B,) int64, and the files that could not be read: NAME (REASON).

    Tasks other than classification have targets of their own for labels, and a list of images where sizes differ.
    """

    images: Any
    labels: Any
    unreadable: tuple[str, ...]


def _named(name: str, error: OSError) -> str:
    """What is told of an image that cannot be used; most reasons begin with its name, which is told once."""
    reason = one_line(error, limit=1000).removeprefix(f"image {printable(name)}")  # it may hold long paths
    return f"{name} ({reason.lstrip(' :')})"


class Split(Dataset[Sample], ABC):
    """A split with its transforms: a key (index, draw) -> Sample.

    An unreadable image is named in the sample. Training puts the next readable one in its place; evaluation drops it.

    Args:
        training: replace unreadable images.
        strict: stop at the first unreadable image with a UserError.
    """

    def __init__(self, *, training: bool = False, strict: bool = False) -> None:
        self.training, self.strict = training, strict

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """What a message calls image i."""

    @abstractmethod
    def read(self, i: int) -> Any:
        """Image i with its target, as stored; OSError if it cannot be read."""

    @abstractmethod
    def transformed(self, item: Any) -> tuple[Tensor, Any]:
        """What `read` gave -> tensor and target; randomness comes from the global generators, which are seeded."""

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> the batch; those without an image are dropped, and named."""
        images = [sample.image for sample in samples if sample.image is not None]
        labels = [sample.label for sample in samples if sample.image is not None]
        return Batch(*self.stacked(images, labels), tuple(name for sample in samples for name in sample.unreadable))

    def stacked(self, images: list[Tensor], labels: list[Any]) -> tuple[Any, Any]:
        """Images and labels of a batch."""
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
                unreadable.append(_named(self.name(i), error))
            else:
                return Sample(*self.drawn(item, draw), tuple(unreadable))
        if self.training:
            raise UserError(
                f"{len(unreadable)} images in a row cannot be read, from {unreadable[0]} to {unreadable[-1]}: "
                "mend or remove these files"
            )
        return Sample(None, -1, tuple(unreadable))

    def drawn(self, item: Any, draw: int) -> tuple[Tensor, Any]:
        """`transformed`, with the randomness of one draw in training."""
        if self.training:
            _seed(draw)
        return self.transformed(item)


class ImageSplit(Split):
    """Images with their class numbers.

    Args:
        source: the images.
        transform: image -> tensor (C, H, W); its randomness comes from the key's draw alone.
        training: replace unreadable images; shuffle the order if the source is a stream.
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
        return self.numbered.name(i)

    def read(self, i: int) -> tuple[Image.Image, int]:
        """Image i and its class number."""
        return self.numbered.image(i), self.numbered.label(i)

    @property
    def numbered(self) -> Source:
        """The source, which has images by number."""
        if isinstance(self.source, Stream):
            raise TypeError("a streamed set has no image by number: use train_batches or eval_batches")
        return self.source

    def transformed(self, item: tuple[Image.Image, int]) -> tuple[Tensor, int]:
        """PIL image and class number -> (C, H, W) and the number."""
        return self.transform(item[0]), item[1]


def _seed(draw: int) -> None:
    random.seed(draw)
    np.random.seed(draw % 2**32)
    torch.default_generator.manual_seed(draw)  # torch.manual_seed would seed the GPU's generator too


@contextmanager
def generators_kept() -> Iterator[None]:
    """In-process loading shares the generators with the model (dropout, drop path): give them back as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def train_batches(
    split: Split,
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
    if isinstance(split, ImageSplit) and isinstance(split.source, Stream):
        if repeats != 1:
            raise UserError(f"--repeats {repeats} needs images by number, but the set is streamed: leave it at 1")
        stream = _StreamBatches(split, batch_size, (seed, epoch), rank, world_size)
        number = -1
        for number, batch in enumerate(islice(_load(stream, None, workers, seed + epoch), batches)):
            if number >= start:
                yield batch
        if number < 0 < batches:
            raise UserError("the set's training split yields no images: check its files, or use fewer processes")
        return
    if len(split) == 0:
        raise UserError("the split to train on holds no images: lower --validation, or give more data")
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
    split: Split, *, batch_size: int, rank: int = 0, world_size: int = 1, workers: int = 0
) -> Iterator[Batch]:
    """Yield every image exactly once over all ranks: rank r takes the images ``r::world_size``. No padding.

    Unreadable images are dropped and named in a batch, so batches may be smaller. An empty one is yielded only by one
    rank of several that can read none of its images: it names them. The others may have some, so what takes the batches
    has to ask `check_readable` of all ranks together.

    Raises:
        UserError: the split is empty; of a single rank, none of its images can be read.
    """
    if len(split) == 0:
        raise UserError("the split to evaluate on holds no images: choose another --split")
    if isinstance(split, ImageSplit) and isinstance(split.source, Stream):
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
    elif names and world_size > 1:
        yield split.collate([])._replace(unreadable=names)
    else:
        check_readable(0, names)


def check_readable(images: int, unreadable: Sequence[str]) -> None:
    """Refuse an evaluation in which no image could be read.

    Args:
        images: those that were read, of all processes.
        unreadable: names of the others, with reasons.

    Raises:
        UserError: there is none but unreadable ones.
    """
    if unreadable and not images:
        raise UserError(
            f"none of {len(unreadable)} images can be read, the first is {unreadable[0]}: check the data folder"
        )


class _KeyedBatches(Dataset["Batch | UserError"]):
    """Keys -> batch. A worker hands a UserError back as a value: DataLoader would bury its line in a traceback."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, keys: list[Key]) -> Batch | UserError:
        try:
            with generators_kept():
                return self.split.collate([self.split[key] for key in keys])
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
            with generators_kept():
                samples = [
                    Sample(*self.split.drawn((image, int(label)), int(draw)), ())
                    for (image, label), draw in zip(chunk, draws, strict=True)
                ]
            yield self.split.collate(samples)

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


def _load(
    dataset: Dataset[Batch | UserError], keys: Iterable[list[Key]] | None, workers: int, seed: int
) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,  # the data set makes whole batches itself
        sampler=keys,
        num_workers=workers,
        collate_fn=_shared,
        worker_init_fn=_ignore_ctrl_c,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else DataLoader draws from the model's generator
    )
    batches = iter(loader)
    if workers:
        _tell_of_deaths()
    while True:
        with _deaths_told():
            batch = next(batches, None)
        if batch is None:
            return
        if isinstance(batch, UserError):
            raise batch
        yield Batch(batch.images, batch.labels, tuple(batch.unreadable))  # pinning turns the tuple into a list


def _ignore_ctrl_c(worker: int) -> None:
    # a terminal's Ctrl-C reaches the workers too: were they to end by it, the batches up to the saving would be missing
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _shared(batch: Any) -> Any:
    """In a loading process, put a batch into shared memory, as its queue would, where a failure is told to nobody."""
    if get_worker_info() is None or isinstance(batch, UserError):
        return batch
    try:
        for tensor in _tensors(batch):
            tensor.share_memory_()
    except RuntimeError as error:
        reason = re.sub(r".*?>\W*", "", one_line(error), count=1)  # behind the name of torch's file
        return UserError(
            f"the shared memory is too small for the batches of the loading processes ({reason}): give --workers 0, or "
            "enlarge it, as by docker run --shm-size 2g; a run goes on with --resume"
        )
    return batch


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


@contextmanager
def _deaths_told() -> Iterator[None]:
    """Turn the RuntimeError by which DataLoader tells of a dead loading process into one line.

    Raises:
        UserError: one has died.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, UserError):  # the handler below was faster, and DataLoader hides what it says
            raise error.__cause__ from None
        how = re.search(r"killed by signal: [^.]+|exited unexpectedly", str(error))
        if how is None or not str(error).startswith("DataLoader worker"):
            raise
        way_out = "enlarge the shared memory" if "Bus error" in how[0] else "see whether the memory is full"
        raise UserError(
            f"a loading process died ({how[0]}): {way_out}, or give fewer --workers, or 0; a run goes on with --resume"
        ) from error


def _tell_of_deaths() -> None:
    """torch's handler for the end of a child raises wherever this process is: what it raises is to be one line."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    of_torch = signal.getsignal(signal.SIGCHLD)
    if not callable(of_torch) or not str(getattr(of_torch, "__module__", "")).startswith("torch."):
        return

    def told(number: int, frame: FrameType | None) -> None:
        with _deaths_told():
            of_torch(number, frame)

    signal.signal(signal.SIGCHLD, told)
