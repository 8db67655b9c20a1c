"""Sets that timm reads: by index (hfds, torch) or as streams (wds, tfds, hfids)."""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.dataset_factory import create_dataset

from psvit.data.data_config import KNOWN, DataConfig
from psvit.data.sources import (
    CACHE,
    TEST_SPLITS,
    ArraySource,
    LazySource,
    Source,
    Stream,
    convert_image,
    load_image,
    natural,
    no_images,
    quoted,
)
from psvit.errors import UserError, one_line

PREFIXES = ("hfds", "hfids", "tfds", "torch", "wds")
"""The parts before the / in names of sets."""


class _TimmSource(Source):
    """A set that timm reads by index: its ImageDataset, or a set of torchvision."""

    def __init__(self, dataset: Any, title: str) -> None:
        self.dataset, self.title = dataset, title
        self.reader: Any = getattr(dataset, "reader", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, i: int) -> Image.Image:
        if self.reader is None:
            return convert_image(self.dataset[i][0])
        return load_image(self.reader[i][0])

    def label(self, i: int) -> int:
        return self._targets[i]

    def name(self, i: int) -> str:
        return str((self.reader and self.reader.filename(i)) or f"{self.title} #{i}")

    def labels(self) -> Sequence[int]:
        return self._targets

    def arrays(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]] | None:
        return None if self._held is None else self._held.arrays(indices)

    @cached_property
    def _held(self) -> ArraySource | None:
        """The pixels of a set of torchvision in memory: CIFAR's (N, H, W, 3), MNIST's (N, H, W)."""
        pixels = np.asarray(getattr(self.dataset, "data", ()) if self.reader is None else ())
        if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or pixels.shape[3:] == (3,)):
            return None
        return ArraySource(pixels, np.asarray(self._targets), self.title)

    @cached_property
    def _targets(self) -> list[int]:
        if hasattr(self.reader, "iter_targets"):
            return [int(target) for target in self.reader.iter_targets()]
        if getattr(self.dataset, "targets", None) is not None:
            targets = np.asarray(self.dataset.targets)
            return [int(t) for t in (targets if targets.ndim == 1 else targets[:, 0])]
        return [int((self.reader or self.dataset)[i][1]) for i in range(len(self))]


def open_timm(config: DataConfig) -> tuple[Source | Stream, Source | Stream, Source | Stream, tuple[str, ...]]:
    """Open a set by its timm name: train, validation (empty if it is yet to be cut) and test split, class names.

    Raises:
        UserError: timm does not find the set, or it cannot be split as configured.
    """
    prefix, _, name = config.data.partition("/")
    if name.lower() in ("image_folder", "folder"):  # timm would test on the training images if there is no test split
        raise UserError(f"--data {config.data!r} is a folder: give the folder itself, {config.data_dir or 'its path'}")
    if prefix.lower() == "wds":
        return _open_shards(config)
    if prefix.lower() in ("tfds", "hfids"):
        return _open_streams(config)
    dataset = _create(config, ("train",))
    train = _TimmSource(dataset, config.data)
    if not len(train):
        raise UserError(f"--data {config.data!r} holds no training images: get it again, or give another set")
    classes = _class_names(dataset) or tuple(map(str, range(max(train.labels()) + 1)))
    return train, no_images(), LazySource(partial(_open_test, config, classes)), classes


def _open_test(config: DataConfig, classes: tuple[str, ...]) -> Source:
    torchvision = config.data.lower().startswith("torch/")  # timm knows these test splits only as validation
    test = _TimmSource(_create(config, ("validation",) if torchvision else TEST_SPLITS), f"{config.data} test")
    names = _class_names(test.dataset) or classes
    if names != classes or (len(test) and not 0 <= min(test.labels()) <= max(test.labels()) < len(classes)):
        different = quoted(sorted(set(names) ^ set(classes))) or "their numbers"
        raise UserError(f"the test split of {config.data!r} has other classes than its training split: {different}")
    return test


def _create(config: DataConfig, splits: Sequence[str], **options: Any) -> Any:
    """timm's create_dataset on the first existing one of the splits."""
    prefix, _, name = config.data.partition("/")
    root = config.data_dir
    if prefix.lower() == "torch":
        root = root or str(CACHE)
        options["download"] = name.lower() in ("cifar10", "cifar100", "mnist", "kmnist", "qmnist", "fashion_mnist")
    errors = []
    for split in splits:
        try:
            return create_dataset(config.data, root=root, split=split, **options)
        except Exception as error:  # readers raise many exception classes
            errors.append(error)
    raise UserError(
        f"--data {config.data!r}, split {' or '.join(splits)}, cannot be opened by timm "
        f"({type(errors[0]).__name__}: {one_line(errors[0])}): give {KNOWN}"
    ) from errors[0]


def _class_names(dataset: Any) -> tuple[str, ...]:
    reader = getattr(dataset, "reader", None)
    if reader is None:
        return tuple(map(str, getattr(dataset, "classes", None) or ()))
    numbers: Mapping[str, int] = getattr(reader, "class_to_idx", None) or {}
    return tuple(sorted(numbers, key=lambda name: numbers[name]))


def _open_streams(config: DataConfig) -> tuple[Stream, Stream | Source, Stream, tuple[str, ...]]:
    """Open TFDS and hfids. TFDS takes the end of the training split as validation split, not by class."""
    percent = round(100 * config.validation)
    if config.validation and config.data.lower().startswith("hfids/"):
        raise UserError(f"--validation {config.validation} cannot be cut from a stream, {config.data}: use hfds/, or 0")
    if config.validation and not 1 <= percent <= 99:
        raise UserError(
            f"--validation {config.validation} is {percent} % rounded: TFDS cuts whole percents; give 0.01 to "
            f"0.99, or 0"
        )
    classes = _class_names(_create(config, ("train",)))
    if not classes:
        raise UserError(f"--data {config.data!r} does not name its classes: use a set that does, or a folder")

    def split(*names: str) -> Stream:
        return Stream(partial(_create, config, names))

    if not percent:
        return split("train"), no_images(), split(*TEST_SPLITS), classes
    return split(f"train[:{100 - percent}%]"), split(f"train[{100 - percent}%:]"), split(*TEST_SPLITS), classes


def _open_shards(config: DataConfig) -> tuple[Stream, Stream | Source, Stream, tuple[str, ...]]:
    """Open WebDataset: tar files with train, val or test in their names. The validation split is whole shards."""
    shards = _find_shards(config, ("train", "training"))
    labels = {label for shard in shards for label in _shard_labels(shard)}
    classes = tuple(map(str, range(max(labels, default=-1) + 1)))
    if not classes:
        raise UserError(f"the tar files of {config.data_dir} hold no .cls entry: store each image's class number so")
    cut = min(max(round(config.validation * len(shards)), 1), len(shards) - 1) if config.validation else 0
    if config.validation and not cut:
        raise UserError(
            f"--validation {config.validation} takes whole tar files, but {shards[0]} is the only one: split "
            f"it, or give 0"
        )
    order = [shards[i] for i in np.random.default_rng(config.seed_of_split).permutation(len(shards))]
    validation = Stream(partial(_create_shards, config, order[:cut])) if cut else no_images()
    train = Stream(partial(_create_shards, config, order[cut:]))
    return train, validation, Stream(partial(_create_shards, config, None)), classes


def _find_shards(config: DataConfig, splits: Sequence[str]) -> list[Path]:
    root = Path(os.path.expanduser(config.data_dir or ""))
    if not config.data_dir or not root.is_dir():
        raise UserError(f"--data-dir {config.data_dir!r} is not a folder: {config.data} needs the one of its tar files")
    found = sorted(root.rglob("*.tar"), key=lambda path: natural(str(path)))
    words = [set(re.split(r"[\W\d_]+", str(path.relative_to(root)).lower())) for path in found]
    for split in splits:
        if shards := [path for path, parts in zip(found, words, strict=True) if split in parts]:
            return shards
    raise UserError(
        f"--data-dir {config.data_dir!r} holds no .tar file with {' or '.join(splits)} in its name: rename them"
    )


def _create_shards(config: DataConfig, shards: Sequence[Path] | None, **options: Any) -> Any:
    shards = _find_shards(config, TEST_SPLITS) if shards is None else shards
    # timm warns each time about a missing info file; the split holds the number of images instead
    logging.getLogger("timm.data.readers.reader_wds").addFilter(_is_news)
    size = sum(len(_shard_labels(shard)) for shard in shards)
    names = "::".join(str(path.absolute()) for path in shards)
    return _create(config, (f"{names}|{size}",), **options)


def _is_news(record: logging.LogRecord) -> bool:
    return "info file not found" not in record.getMessage()


@cache
def _shard_labels(shard: Path) -> tuple[int, ...]:
    """Class numbers of a tar file, without decoding an image."""
    try:
        with tarfile.open(shard) as tar:
            entries = (tar.extractfile(entry) for entry in tar if entry.name.endswith(".cls"))
            return tuple(int(file.read()) for file in entries if file is not None)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise UserError(f"tar file {shard} cannot be read ({one_line(error)}): make it again") from error
