"""A split -> the batches of an epoch, for training and evaluation.

A training sample depends only on (seed, epoch, position), not on the number of workers or on earlier samples. So a
killed run can resume within an epoch with bitwise the same weights as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from psvit.data.loading_processes import load
from psvit.data.samples import Batch, ImageSplit, Key, Sample, Split, generators_kept
from psvit.data.sources import Stream
from psvit.errors import UserError


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

    The order is a permutation drawn from (seed, epoch), followed by further ones if needed. Micro-batch j of rank r
    takes the positions ``[(j * world_size + r) * batch_size : + batch_size]``. With repeats an image fills that many
    positions in a row, each with its own draw, and the order keeps its length (DeiT's repeated augmentation).

    The order of a stream comes from timm's reader, seeded by (seed, epoch), and also depends on the number of workers.
    Resuming reads and discards the first `start` batches.
    """
    if isinstance(split, ImageSplit) and isinstance(split.source, Stream):
        if repeats != 1:
            raise UserError(f"--repeats {repeats} needs images by number, but the set is streamed: leave it at 1")
        stream = _StreamBatches(split, batch_size, (seed, epoch), rank, world_size)
        number = -1
        for number, batch in enumerate(islice(load(stream, None, workers, seed + epoch), batches)):
            if number >= start:
                yield batch
        if number < 0 < batches:
            raise UserError("the set's training split yields no images: check its files, or use fewer processes")
        return
    size = len(split)
    if size == 0:
        raise UserError("the split to train on holds no images: lower --validation, or give more data")

    def keys() -> Iterator[list[Key]]:
        shuffled = -1
        for number in range(start, batches):
            first = (number * world_size + rank) * batch_size
            chunk = []
            for position in range(first, first + batch_size):
                turn, place = divmod(position, size)
                if turn != shuffled:
                    rng = np.random.default_rng((seed, epoch, turn))
                    order, draws, shuffled = rng.permutation(size), rng.integers(2**63, size=size), turn
                chunk.append((int(order[place // repeats]), int(draws[place])))
            yield chunk

    yield from load(_KeyedBatches(split), keys(), workers, seed + epoch)


def eval_batches(
    split: Split, *, batch_size: int, rank: int = 0, world_size: int = 1, workers: int = 0
) -> Iterator[Batch]:
    """Yield every image exactly once over all ranks, without padding: rank r takes the images ``r::world_size``.

    Unreadable images are dropped and named in a batch, so batches may be smaller. With several ranks, one that cannot
    read any of its images yields an empty batch with their names: call `check_readable` on the sum over the ranks.

    Raises:
        UserError: the split is empty; with a single rank, none of its images can be read.
    """
    if len(split) == 0:
        raise UserError("the split to evaluate on holds no images: choose another --split")
    if isinstance(split, ImageSplit) and isinstance(split.source, Stream):
        batches = load(_StreamBatches(split, batch_size, (0, 0), rank, world_size), None, workers, 0)
    else:
        mine = range(rank, len(split), world_size)
        keys = ([(i, 0) for i in mine[at : at + batch_size]] for at in range(0, len(mine), batch_size))
        batches = load(_KeyedBatches(split), keys, workers, 0)
    held: Batch | None = None  # held back to take the names of unreadable images after it
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
    """Refuse an evaluation without a readable image.

    Args:
        images: number of images read, over all processes.
        unreadable: the others, as NAME (REASON).

    Raises:
        UserError: no image could be read.
    """
    if unreadable and not images:
        raise UserError(
            f"none of {len(unreadable)} images can be read, the first is {unreadable[0]}: check the data folder"
        )


class _KeyedBatches(Dataset["Batch | UserError"]):
    """Keys -> batch. A UserError is returned as a value: DataLoader would wrap it in a traceback."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, keys: list[Key]) -> Batch | UserError:
        try:
            return self.split.batch(keys)
        except UserError as error:
            return error


class _StreamBatches(IterableDataset["Batch | UserError"]):
    """Reader -> batches, in the order of the reader; in training without end."""

    def __init__(self, split: ImageSplit, batch_size: int, seed: Key, rank: int, world_size: int) -> None:
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        rng = np.random.default_rng((*self.seed, self.rank, 0 if worker is None else worker.id))
        images = self._images()
        while chunk := list(islice(images, self.batch_size)):
            draws = rng.integers(2**63, size=len(chunk)).tolist()
            with generators_kept():
                samples = [
                    Sample(*self.split.drawn((image, int(label)), draw), ())
                    for (image, label), draw in zip(chunk, draws, strict=True)
                ]
            yield self.split.collate(samples)

    def _images(self) -> Iterator[tuple[Image.Image, int]]:
        assert isinstance(self.split.source, Stream)
        training = self.split.training
        for turn in count():
            seed = int(np.random.SeedSequence((*self.seed, turn)).generate_state(1)[0])
            dataset = self.split.source.open_stream(is_training=training, seed=seed, batch_size=self.batch_size)
            # timm pads an evaluation to equal shares of the ranks; instead, read all and take every n-th image
            share = (self.rank, self.world_size) if training else (0, 1)
            dataset.reader.dist_rank, dataset.reader.dist_num_replicas = share
            if not training:
                yield from islice(dataset, self.rank, None, self.world_size)
                return
            images = iter(dataset)
            first = next(images, None)
            if first is None:  # more workers than shards
                return
            yield first
            yield from images
