"""A name or a folder -> Data: classes, pixels, and the three splits. The hold-out is cut from the training split."""

from __future__ import annotations

import gzip
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, auto_augment
from timm.data.dataset_factory import create_dataset
from timm.data.readers import img_extensions
from timm.data.transforms_factory import create_transform

from psvit.errors import UserError
from psvit.training.loading import (
    ArraySource,
    FileSource,
    LazySource,
    Source,
    Stream,
    Subset,
    Transform,
    convert_image,
    load_image,
)

CACHE = Path("~/.cache/psvit").expanduser()
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
KNOWN = "digits, fashion-mnist, a folder of images, or hfds/, hfids/, wds/, tfds/, torch/ and a name (as in timm)"

TEST_SPLITS = ("test", "validation", "val", "valid")
"""Names of a test split, the first that is there."""

TEST_FRACTION = 0.2
"""Of each class, in a set without a test split. Its seed is fixed: all runs are tested on the same images."""

SMALL = 64
"""Images of at most this side are small: they are evaluated whole, and a timm set of them keeps their size."""

INTERPOLATION = "bicubic"

_EXTENSIONS: tuple[str, ...] = tuple(img_extensions.get_img_extensions())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class DataSettings:
    """Which images to read, and how.

    Args:
        data: digits, fashion-mnist, a folder, or a name that timm reads, such as hfds/NAME, wds/NAME or torch/cifar10.
        data_dir: folder of a named set's files; by default the set's own place.
        img_size: side in pixels, or height and width; by default 8 for digits, 28 for fashion-mnist, 224 for a folder.
        holdout: fraction of each class cut from the training split, to choose by without touching the test split.
        workers: loading processes; by default 0 for sets in memory, else 4 or the number of processors if lower.
        strict: stop at the first image that cannot be read, instead of skipping and naming it.
        limit: train on this many images only, drawn evenly over the classes (for prototypes).
        seed: seed of the hold-out and of the limit's choice.
    """

    data: str = "digits"
    data_dir: str | None = None
    img_size: int | tuple[int, int] | None = None
    holdout: float = 0.1
    workers: int | None = None
    strict: bool = False
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.data, str) or not self.data.strip():
            raise UserError(f"data {self.data!r} is not a name or a folder: give {KNOWN}")
        size: object = self.img_size
        sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if size is not None and not (len(sides) == 2 and all(_is_int(side, 1) for side in sides)):
            raise UserError(f"img_size {self.img_size!r} is not a positive whole number, or two: height and width")
        if isinstance(self.holdout, bool) or not isinstance(self.holdout, (int, float)) or not 0 <= self.holdout < 1:
            raise UserError(f"holdout {self.holdout!r} is not a fraction: give 0 or more and less than 1, as in 0.1")
        for name, least in (("workers", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and not _is_int(value, least):
                raise UserError(
                    f"{name} {value!r} is not a whole number of at least {least}: correct it or leave it out"
                )
        if not _is_int(self.seed, 0):
            raise UserError(f"seed {self.seed!r} is not a whole number of at least 0: give 0, 1, 2, ...")


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
    known: dict[str, Callable[[DataSettings], Data]] = {"digits": _open_digits, "fashion-mnist": _open_fashion_mnist}
    if settings.data in known:
        data = known[settings.data](settings)
    elif settings.data.partition("/")[0].lower() in ("hfds", "hfids", "tfds", "torch", "wds") and "/" in settings.data:
        data = _open_timm(settings)
    else:
        data = _open_folder(settings)
    if len(data.classes) < 2:
        raise UserError(f"data {data.name!r} has one class only, {data.classes[0]!r}: classification needs two or more")
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
            raise UserError(f"{name} needs images by number, but {data.name!r} is streamed: leave it out")
    return data


def _cut_holdout(data: Data, train: Source, settings: DataSettings) -> Data:
    labels = np.asarray(train.labels())
    rng = np.random.default_rng(settings.seed)
    kept, holdout = _cut(labels, settings.holdout, rng, data.classes)
    if settings.limit is not None:
        if settings.limit < len(data.classes):
            raise UserError(f"limit {settings.limit} is below the {len(data.classes)} classes: give each one image")
        kept = kept[_balanced(labels[kept], settings.limit, rng)]
    return replace(data, train=Subset(train, kept), holdout=Subset(train, holdout))


def _cut(
    labels: NDArray[Any], fraction: float, rng: np.random.Generator, classes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that stay and indices cut off: a fraction of each class, with at least one image on both sides."""
    cut = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels) if fraction else ():
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise UserError(
                f"class {classes[label]!r} has too few images: training, the hold-out and a test split that is cut "
                "need one each; add images or remove the class, or set holdout to 0"
            )
        cut[members[: min(max(round(fraction * len(members)), 1), len(members) - 1)]] = True
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def _balanced(labels: NDArray[Any], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rank = np.empty(len(labels), dtype=np.int64)  # an image's place within its shuffled class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = rng.permutation(len(members))
    return np.sort(np.lexsort((labels, rank))[:limit])


def _open_digits(settings: DataSettings) -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels, labels = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
    classes = tuple(map(str, range(10)))
    train, test = _cut(labels, TEST_FRACTION, np.random.default_rng(0), classes)
    return Data(
        name="digits",
        classes=classes,
        in_chans=1,
        img_size=(8, 8),
        mean=(0.3055,),  # mean and std of the training pixels
        std=(0.3759,),
        mirror=False,
        train=ArraySource(pixels[train], labels[train], "digits train"),
        holdout=_no_images(),
        test=ArraySource(pixels[test], labels[test], "digits test"),
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
        holdout=_no_images(),
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
            f"fashion-mnist is not in {', '.join(map(str, places))} and cannot be downloaded ({_line(error)}): "
            "apt-get install dataset-fashion-mnist, or give the folder of its IDX files as --data_dir"
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
        raise UserError(f"IDX file {path} cannot be read ({_line(error)}): get it again") from error
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
        raise UserError(f"data {settings.data!r} {what}: give {KNOWN}")
    # a folder called train is a split if it holds class folders; else it may be the class of trains
    splits = [p for p in (root / "train", root / "training") if p.is_dir() and any(c.is_dir() for c in p.iterdir())]
    train_root = splits[0] if splits else root
    found = _list_images(train_root)
    classes = tuple(sorted({label for _, label in found}, key=_natural))
    if not classes:
        raise UserError(
            f"data {settings.data!r}: no class folder of {train_root} holds an image ({' '.join(_EXTENSIONS)}): "
            "put each class's images into a folder of its name"
        )
    train: Source = _file_source(found, classes)
    tests = [p for n in TEST_SPLITS if splits and (p := root / n).is_dir()]
    if tests:
        test: Source = _file_source(_check_test(tests[0], classes), classes)
        notes = tuple(
            f"{p} is not used: {tests[0]} is the test split, the hold-out is cut from train" for p in tests[1:]
        )
    else:
        kept, cut = _cut(np.asarray(train.labels()), TEST_FRACTION, np.random.default_rng(0), classes)
        train, test = Subset(train, kept), Subset(train, cut)
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
        holdout=_no_images(),
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
    return sorted(found, key=lambda pair: _natural(pair[0]))


def _natural(text: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", text.lower())
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], text


def _file_source(found: Sequence[tuple[str, str]], classes: Sequence[str]) -> FileSource:
    number = {name: i for i, name in enumerate(classes)}
    return FileSource([path for path, _ in found], [number[label] for _, label in found])


def _check_test(folder: Path, classes: Sequence[str]) -> list[tuple[str, str]]:
    found = _list_images(folder)  # names only: no image is opened
    labels = {label for _, label in found}
    missing, extra = sorted(set(classes) - labels), sorted(labels - set(classes))
    if missing or extra:
        parts = [f"{what} {_names(names)}" for what, names in (("lacks", missing), ("adds", extra)) if names]
        raise UserError(f"the classes of {folder} differ from the training split's: it {' and '.join(parts)}")
    return found


class _TimmSource(Source):
    """A set that timm reads by number: its own ImageDataset, or one of torchvision."""

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

    @cached_property
    def _targets(self) -> list[int]:
        if hasattr(self.reader, "iter_targets"):
            return [int(target) for target in self.reader.iter_targets()]
        if getattr(self.dataset, "targets", None) is not None:
            targets = np.asarray(self.dataset.targets)
            return [int(t) for t in (targets if targets.ndim == 1 else targets[:, 0])]
        return [int((self.reader or self.dataset)[i][1]) for i in range(len(self))]


def _open_timm(settings: DataSettings) -> Data:
    prefix, _, name = settings.data.partition("/")
    if name.lower() in ("image_folder", "folder"):  # there timm takes the training images where it finds no test split
        raise UserError(
            f"data {settings.data!r} is a folder: give the folder itself, {settings.data_dir or 'its path'}"
        )
    train: Source | Stream
    test: Source | Stream
    if prefix.lower() == "wds":
        train, holdout, test, classes = _open_shards(settings)
    elif prefix.lower() in ("tfds", "hfids"):
        train, holdout, test, classes = _open_streams(settings)
    else:
        dataset = _create(settings, ("train",))
        train = _TimmSource(dataset, settings.data)
        holdout = _no_images()
        classes = _class_names(dataset) or tuple(map(str, range(max(train.labels()) + 1)))
        test = LazySource(partial(_open_timm_test, settings, classes))
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
        mirror=name.lower().rpartition("/")[2] not in ("mnist", "kmnist", "qmnist"),
        train=train,
        holdout=holdout,
        test=test,
        workers=_default_workers(),
    )


def _open_timm_test(settings: DataSettings, classes: tuple[str, ...]) -> Source:
    torchvision = settings.data.lower().startswith("torch/")  # where timm looks for validation alone
    test = _TimmSource(_create(settings, ("validation",) if torchvision else TEST_SPLITS), f"{settings.data} test")
    names = _class_names(test.dataset) or classes
    if names != classes or (len(test) and not 0 <= min(test.labels()) <= max(test.labels()) < len(classes)):
        different = _names(sorted(set(names) ^ set(classes))) or "their numbers"
        raise UserError(f"the test split of {settings.data!r} has other classes than its training split: {different}")
    return test


def _create(settings: DataSettings, splits: Sequence[str], **options: Any) -> Any:
    """timm's create_dataset on the first of the splits that is there."""
    prefix, _, name = settings.data.partition("/")
    root = settings.data_dir
    if prefix.lower() == "torch":
        root = root or str(CACHE)
        options["download"] = name.lower() in ("cifar10", "cifar100", "mnist", "kmnist", "qmnist", "fashion_mnist")
    errors = []
    for split in splits:
        try:
            return create_dataset(settings.data, root=root, split=split, **options)
        except Exception as error:  # each reader fails in its own way, with anything from assert to a server's answer
            errors.append(error)
    raise UserError(
        f"data {settings.data!r}, split {' or '.join(splits)}, cannot be opened by timm "
        f"({type(errors[0]).__name__}: {_line(errors[0])}): give {KNOWN}"
    ) from errors[0]


def _class_names(dataset: Any) -> tuple[str, ...]:
    reader = getattr(dataset, "reader", None)
    if reader is None:
        return tuple(map(str, getattr(dataset, "classes", None) or ()))
    numbers: Mapping[str, int] = getattr(reader, "class_to_idx", None) or {}
    return tuple(sorted(numbers, key=lambda name: numbers[name]))


def _open_streams(settings: DataSettings) -> tuple[Stream, Stream | Source, Stream, tuple[str, ...]]:
    """TFDS and hfids. TFDS cuts the hold-out off the end of the training split, not by class."""
    percent = round(100 * settings.holdout)
    if percent and settings.data.lower().startswith("hfids/"):
        raise UserError(f"holdout {settings.holdout} cannot be cut from a stream, {settings.data}: use hfds/, or 0")
    classes = _class_names(_create(settings, ("train",)))
    if not classes:
        raise UserError(f"data {settings.data!r} does not name its classes: use a set that does, or a folder")

    def split(*names: str) -> Stream:
        return Stream(partial(_create, settings, names))

    if not percent:
        return split("train"), _no_images(), split(*TEST_SPLITS), classes
    return split(f"train[:{100 - percent}%]"), split(f"train[{100 - percent}%:]"), split(*TEST_SPLITS), classes


def _open_shards(settings: DataSettings) -> tuple[Stream, Stream | Source, Stream, tuple[str, ...]]:
    """WebDataset: tar files with train, val or test in their names. The hold-out is whole shards, not by class."""
    shards = _find_shards(settings, ("train", "training"))
    labels = {label for shard in shards for label in _shard_labels(shard)}
    classes = tuple(map(str, range(max(labels, default=-1) + 1)))
    if not classes:
        raise UserError(f"the tar files of {settings.data_dir} hold no .cls entry: store each image's class number so")
    cut = min(max(round(settings.holdout * len(shards)), 1), len(shards) - 1) if settings.holdout else 0
    if settings.holdout and not cut:
        raise UserError(
            f"holdout {settings.holdout} takes whole tar files, but {shards[0]} is the only one: split it, or 0"
        )
    order = [shards[i] for i in np.random.default_rng(settings.seed).permutation(len(shards))]
    holdout = Stream(partial(_create_shards, settings, order[:cut])) if cut else _no_images()
    train = Stream(partial(_create_shards, settings, order[cut:]))
    return train, holdout, Stream(partial(_create_shards, settings, None)), classes


def _find_shards(settings: DataSettings, splits: Sequence[str]) -> list[Path]:
    root = Path(settings.data_dir or "").expanduser()
    if not settings.data_dir or not root.is_dir():
        raise UserError(
            f"data_dir {settings.data_dir!r} is not a folder: {settings.data} needs the one of its tar files"
        )
    found = sorted(root.rglob("*.tar"), key=lambda path: _natural(str(path)))
    words = [set(re.split(r"[\W\d_]+", str(path.relative_to(root)).lower())) for path in found]
    for split in splits:
        if shards := [path for path, parts in zip(found, words, strict=True) if split in parts]:
            return shards
    raise UserError(
        f"data_dir {settings.data_dir!r} holds no .tar file with {' or '.join(splits)} in its name: rename them"
    )


def _create_shards(settings: DataSettings, shards: Sequence[Path] | None, **options: Any) -> Any:
    shards = _find_shards(settings, TEST_SPLITS) if shards is None else shards
    # timm warns at each opening that there is no info file; the number of images stands in the split instead
    logging.getLogger("timm.data.readers.reader_wds").addFilter(_is_news)
    size = sum(len(_shard_labels(shard)) for shard in shards)
    names = "::".join(str(path.absolute()) for path in shards)
    return _create(settings, (f"{names}|{size}",), **options)


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
        raise UserError(f"tar file {shard} cannot be read ({_line(error)}): make it again") from error


@dataclass(frozen=True)
class Augment:
    """What training does to an image at random: the part of timm's create_transform that recipes vary.

    Args:
        scale: least and greatest area of the random crop, as fractions of the image's.
        ratio: least and greatest width over height of the random crop.
        hflip: probability of a mirrored image; taken as 0 where mirroring changes the class.
        color_jitter: strength of random brightness, contrast and saturation; unused with auto_augment.
        auto_augment: timm's policy string, such as rand-m9-mstd0.5-inc1 (DeiT's); by default none.
        random_erasing: probability that a random rectangle is replaced by noise.
        interpolation: bilinear, bicubic, or random between the two.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.3
    auto_augment: str | None = None
    random_erasing: float = 0.0
    interpolation: str = INTERPOLATION

    def __post_init__(self) -> None:
        for name, top in (("scale", 1.0), ("ratio", float("inf"))):
            pair = getattr(self, name)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not 0 < pair[0] <= pair[1] <= top:
                raise UserError(
                    f"{name} {pair!r} is not a range: give two positive numbers, the lower first, as 0.5 1.0"
                )
            object.__setattr__(self, name, tuple(pair))
        for name, top in (("hflip", 1.0), ("random_erasing", 1.0), ("color_jitter", float("inf"))):
            if not 0 <= getattr(self, name) <= top:
                raise UserError(
                    f"{name} {getattr(self, name)!r} is not between 0 and {top:g}: correct it or leave it out"
                )
        if self.interpolation not in ("bilinear", "bicubic", "random"):
            raise UserError(f"interpolation {self.interpolation!r} is not bilinear, bicubic or random")


def train_transform(data: Data, augment: Augment) -> Transform:
    """Build timm's training transform: image -> normalized tensor (C, H, W).

    Raises:
        UserError: timm does not know the auto_augment policy.
    """
    try:
        transform = create_transform(
            (data.in_chans, *data.img_size),
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip if data.mirror else 0.0,
            color_jitter=augment.color_jitter,
            auto_augment=augment.auto_augment,
            re_prob=augment.random_erasing,
            re_mode="pixel",  # DeiT's choice
            interpolation=augment.interpolation,
            mean=data.mean,
            std=data.std,
        )
    except (AssertionError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"auto_augment {augment.auto_augment!r} is not a policy of timm's ({_line(error)}): "
            "give for example rand-m9-mstd0.5-inc1, augmix-m3-w3, original or 3a"
        ) from error
    _mend_posterize(transform)
    built: Transform = transform
    return built


def _mend_posterize(transform: Any) -> None:
    # timm's posterize asks for 0 bits at full strength; Pillow used to answer with black, and raises since 13
    for step in transform.transforms:
        policies = getattr(step, "policy", None) or [getattr(step, "ops", ())]
        for op in (op for policy in policies for op in policy):
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def eval_transform(data: Data, crop_pct: float | None = None) -> Transform:
    """Build timm's evaluation transform: resize, centre crop, normalize.

    Args:
        data: the set.
        crop_pct: side of the crop over the resized image's; by default 1 for small images, else 0.9 (DeiT's).
    """
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct {crop_pct!r} is not a fraction: give more than 0 and at most 1, as in 0.9")
    config = preprocessing(data)
    transform: Transform = create_transform(**(config if crop_pct is None else {**config, "crop_pct": crop_pct}))
    return transform


def preprocessing(data: Data) -> dict[str, Any]:
    """What evaluation does to an image, in the words of timm's pretrained_cfg."""
    return {
        "input_size": (data.in_chans, *data.img_size),
        "mean": data.mean,
        "std": data.std,
        "interpolation": INTERPOLATION,
        "crop_pct": 1.0 if max(data.img_size) <= SMALL else 0.9,
    }


def _no_images() -> Source:
    return FileSource((), ())


def _default_workers() -> int:
    return min(4, os.cpu_count() or 1)


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
