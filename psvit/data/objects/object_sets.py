"""A name or a folder -> DenseData: images with boxes and masks, or with class maps, in three splits. No torch here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from psvit.data.image_files import PassedOver, find_images, normalized
from psvit.data.image_folder import ImageFolder, Labelled
from psvit.data.image_list import ImageList
from psvit.data.image_sets import ImageSet, split_images
from psvit.data.objects.annotated import Annotated, AnnotatedSource
from psvit.data.objects.class_maps import MapSource, open_maps, open_voc_maps
from psvit.data.objects.coco import find_coco, read_coco
from psvit.data.objects.mask_folders import find_other_masks
from psvit.data.objects.objects import IGNORED, DenseSource, DenseSubset
from psvit.data.objects.objects_config import WITH_CLASS_MAPS, WITH_OBJECTS, DenseDataConfig
from psvit.data.objects.scenes import LEAST_SIDE, SIDE, ScenesSource
from psvit.data.objects.voc import find_voc, read_voc
from psvit.data.sources import printable, quoted
from psvit.data.splits import DIGITS, cut, digits
from psvit.errors import UserError

SCENES = "digits-scenes"
TEST_SCENES = 500
"""Their seed is fixed: all runs are tested on the same scenes."""


@dataclass(frozen=True, eq=False)
class DenseData:
    """An opened set of images with boxes and masks, or with class maps.

    Args:
        name: what the user called it.
        classes: class names, by class number; of class maps with the background, where the set has one.
        in_chans: 1 (grey) or 3 (RGB).
        mean: of each channel, for pixels in 0..1.
        std: of each channel.
        mirror: an image keeps its classes when mirrored left to right.
        train: training images, without the validation split.
        validation: cut from the training split; empty if config.validation is 0.
        test: the test split.
        has_masks: objects have masks.
        img_size: height and width of the images of all splits; None if they differ.
        workers: loading processes.
        notes: lines that the user should read.
        files: of a folder, its image files, each in its split.
    """

    name: str
    classes: tuple[str, ...]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    train: DenseSource
    validation: DenseSource
    test: DenseSource
    has_masks: bool
    img_size: tuple[int, int] | None
    workers: int = 0
    notes: tuple[str, ...] = ()
    files: ImageSet | None = None

    def split(self, name: str) -> DenseSource:
        """The split of this name: train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def sizes(self) -> set[tuple[int, int]]:
        """Heights and widths of the images of all splits, as far as they are known without decoding them."""
        if self.img_size is not None:
            return {self.img_size}
        parts = (self.train, self.validation, self.test)
        return {size for part in parts for at in range(len(part)) if (size := part.size_of(at)) is not None}


def open_objects(
    config: DenseDataConfig, kept: ImageList | None = None, evaluated: tuple[str, ...] | None = None
) -> DenseData:
    """Open a set of images with boxes, and masks where it has them.

    Args:
        config: which set, and how to cut it.
        kept: the list of a network's images: they keep their splits.
        evaluated: the classes of a network that is to be evaluated: of another folder than that of `kept`, one without
            splits is a test split as a whole, and need not have all classes.

    Raises:
        UserError: the set is not known or not found, is broken, or has too few images.
    """
    if config.data == SCENES:
        return _open_scenes(config)
    root = _folder(config, WITH_OBJECTS, "the detector scales them (--short-side and --long-side of train)")
    if folder := find_voc(root):
        return _in_splits(config, _open_voc(config, folder, evaluated), kept, evaluated is not None)
    if files := find_coco(root):
        found = _open_coco(config, root, files, crowds=False, evaluated=evaluated)
        return _in_splits(config, found, kept, evaluated is not None)
    raise UserError(
        f"--data {config.data!r} holds no boxes: give a folder with annotations/instances_train.json, as in COCO, "
        "or with JPEGImages and Annotations, as in Pascal VOC"
    )


def open_class_maps(
    config: DenseDataConfig, kept: ImageList | None = None, evaluated: tuple[str, ...] | None = None
) -> DenseData:
    """Open a set of images with a class for each pixel; arguments as of `open_objects`.

    Raises:
        UserError: the set is not known or not found, is broken, or has too few images.
    """
    if config.data == SCENES:
        return _with_background(_open_scenes(config))
    root = _folder(config, WITH_CLASS_MAPS, "training cuts pieces of one size from them (--crop-size)")
    maps = open_voc_maps(folder, config.strict) if (folder := find_voc(root)) else None
    maps = maps or open_maps(root, config.strict, evaluated)
    if maps is not None:
        found = _Found(root, maps.classes, maps.source, maps.splits, maps.folders, False, maps.notes, maps.named)
        return _in_splits(config, found, kept, evaluated is not None)
    if files := find_coco(root):
        own = None if evaluated is None else evaluated[1:]  # without the background
        data = _in_splits(config, _open_coco(config, root, files, True, own), kept, evaluated is not None)
        if not data.has_masks:
            raise UserError(f"--data {config.data!r} has boxes, but no masks: class maps cannot be drawn from them")
        if len(data.classes) >= IGNORED:
            raise UserError(f"--data {config.data!r} has {len(data.classes)} classes: a class map holds "
                            f"{IGNORED - 1} at most")  # fmt: skip
        return _with_background(data)
    if (masks := find_other_masks(root)) is not None:
        raise UserError(f"{masks} holds no images: put the masks there, as PNG, called as their images")
    raise UserError(
        f"--data {config.data!r} holds no class maps: give a folder with images/ and masks/, or one in the layout "
        "of ADE20K, COCO or Pascal VOC"
    )


def _with_background(data: DenseData) -> DenseData:
    return replace(data, classes=("background", *data.classes))


def _folder(config: DenseDataConfig, known: str, instead: str) -> Path:
    """The folder that is named as the data, of those `known`; `instead` says how its images come to one size."""
    root = Path(os.path.expanduser(config.data))
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "is neither a folder nor a known set"
        raise UserError(f"--data {config.data!r} {what}: give {known}")
    if config.img_size is not None:
        raise UserError(f"--img-size is the side of digits-scenes: images of {config.data!r} keep their sizes, and "
                        f"{instead}; leave it out")  # fmt: skip
    return root


@dataclass(frozen=True, eq=False)
class _Found:
    """What a folder holds: classes, all images, the split that it gives each (train where it gives none).

    `folders` names what gives each split: a folder (with / behind it) or a file. `named` holds what the notes count.
    """

    root: Path
    classes: tuple[str, ...]
    source: AnnotatedSource | MapSource
    splits: tuple[str, ...]
    folders: dict[str, str]
    has_masks: bool
    notes: tuple[str, ...]
    named: frozenset[str]


def _open_coco(
    config: DenseDataConfig, root: Path, files: dict[str, Path], crowds: bool, evaluated: tuple[str, ...] | None
) -> _Found:
    notes: tuple[str, ...] = ()
    if "train" in files and "" in files:
        notes = (f"{files['']} is not used: {files['train']} is trained on",)
    elif not {"train", ""} & set(files) and evaluated is None:
        there = quoted([path.name for path in files.values()])
        raise UserError(f"{root} has annotations in {there}, but none to train on: add a file with train in its name, "
                        "as in annotations/instances_train.json")  # fmt: skip
    learned = next(split for split in ("train", "", *files) if split in files)
    first = read_coco(files[learned], root, learned or "train", config.strict, evaluated=evaluated)
    _check_objects(files[learned], first.images, crowds, first.notes)
    images, splits = list(first.images), [learned or "train"] * len(first.images)
    notes += first.notes
    counted = first.named
    for split in ("validation", "test"):
        if split in files and split != learned:
            read = read_coco(files[split], root, split, config.strict, first.classes)
            notes += read.notes
            if first.has_masks and not read.has_masks:
                notes += (f"{files[split]} has no masks: there boxes take their place",)
            counted |= read.named
            images += read.images
            splits += [split] * len(read.images)
    named = {split: os.path.relpath(path, root) for split, path in files.items() if split} if learned else {}
    source = AnnotatedSource(images, first.has_masks)
    return _Found(root, first.classes, source, tuple(splits), named, first.has_masks, notes, counted)


def _open_voc(config: DenseDataConfig, folder: Path, evaluated: tuple[str, ...] | None) -> _Found:
    read = read_voc(folder, config.strict, evaluated)
    learned = next(split for split in ("train", *read.splits) if read.splits.get(split))
    _check_objects(folder, read.splits[learned], crowds=False, notes=read.notes)
    images = [image for part in read.splits.values() for image in part]
    splits = tuple(split for split, part in read.splits.items() for _ in part)
    source = AnnotatedSource(images, False)
    return _Found(folder, read.classes, source, splits, read.lists, False, read.notes, read.named)


def _check_objects(where: Path, images: Sequence[Annotated], crowds: bool, notes: Sequence[str]) -> None:
    """Refuse a training split without an object to learn from; with `crowds` a crowd is one. `notes` may say why."""
    if not any(len(one.labels) if crowds else (~one.crowd).any() for one in images):
        kind = "an object" if crowds else "an object that is neither a crowd nor difficult"
        found = f" (found on the way: {'; '.join(notes)})" if notes else ""
        raise UserError(f"{where}: none of the {len(images)} images of the training split has {kind}: there is nothing "
                        f"to learn; annotate some{found}")  # fmt: skip


def _in_splits(config: DenseDataConfig, found: _Found, kept: ImageList | None, evaluated: bool) -> DenseData:
    """Cut the splits that a folder has none of, by a hash of each image's path, and keep to --limit.

    Raises:
        UserError: an image is in two splits.
    """
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    source = found.source
    real = _real_paths([source.path(at) for at in range(len(source))])
    _check_apart(config, found, real)
    given = list(zip(found.splits, real, strict=True))
    paths: dict[tuple[str, str], str] = {}  # a file that is listed twice counts once
    for at, pair in enumerate(given):
        paths.setdefault(pair, source.path(at))
    splits: dict[str, list[Labelled]] = {}
    for (split, _), path in paths.items():
        where = normalized(os.path.relpath(path, found.root).replace(os.sep, "/"))
        splits.setdefault(split, []).append(Labelled(path, "", where, where))
    origins = found.folders or {"train": "the images"}
    folder = ImageFolder((), splits, found.folders, PassedOver(), (), origins)
    files = split_images(folder, config, kept, evaluated)
    split_of = {row.path: split for row, split in zip(files.rows, files.splits, strict=True)}
    placed = np.asarray([split_of[paths[pair]] for pair in given])
    parts = {split: DenseSubset(source, np.flatnonzero(placed == split)) for split in ("train", "validation", "test")}
    return DenseData(
        name=config.data,
        classes=found.classes,
        in_chans=3,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        mirror=True,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        has_masks=found.has_masks,
        img_size=_one_size(source),
        workers=min(4, os.cpu_count() or 1) if config.workers is None else config.workers,
        notes=(*found.notes, *_unlisted(found, real), *files.notes),
        files=files,
    )


def _real_paths(paths: Sequence[str]) -> list[str]:
    """The real path of each image, whatever links and dots lead to it."""
    folders: dict[str, str] = {}
    found = []
    for given in paths:
        folder, name = os.path.split(given)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name)
        found.append(os.path.realpath(path) if os.path.islink(path) else path)
    return found


def _check_apart(config: DenseDataConfig, found: _Found, real: Sequence[str]) -> None:
    """Refuse a file that is in two splits, by whatever path, unless it is to be put into one."""
    places: dict[str, set[str]] = {}
    for file, split in zip(real, found.splits, strict=True):
        places.setdefault(file, set()).add(split)
    both = [file for file, splits in places.items() if len(splits) > 1]
    if both and not config.join_duplicates:
        first, second = sorted(places[both[0]], key=("train", "validation", "test").index)[:2]
        raise UserError(
            f"{config.data}: {len(both)} images of {found.folders.get(second, second)} are in "
            f"{found.folders.get(first, first)} too: {quoted(list(map(printable, both)))}; what is tested on must "
            "not be trained on: take them out of one, or give --join-duplicates to train on the others alone"
        )


def _unlisted(found: _Found, real: Sequence[str]) -> tuple[str, ...]:
    """How many images lie in the set's folders that are not used, and are not told of otherwise."""
    masks = [str(mask) for _, mask in found.source.pairs] if isinstance(found.source, MapSource) else []
    used = {*real, *_real_paths(masks)}
    files, _ = find_images(found.root)
    counts: Counter[str] = Counter()
    for file, path in zip(files, _real_paths([file.path for file in files]), strict=True):
        name = file.parts[-1]
        if path not in used and not found.named & {file.path, "/".join(file.parts), name, os.path.splitext(name)[0]}:
            counts["/".join(file.parts[:-1]) + "/"] += 1
    if not counts:
        return ()
    some = ", ".join(f"{count} in {printable(folder)}" for folder, count in counts.most_common(4))
    return (f"images that no annotation or mask is for, not used: {some}" + ", ..." * (len(counts) > 4),)


def _one_size(source: DenseSource) -> tuple[int, int] | None:
    """Height and width of all images, if they have but one; looks no further than to a second."""
    found: set[tuple[int, int]] = set()
    for at in range(len(source)):
        if (size := source.size_of(at)) is not None:
            found.add(size)
        if len(found) > 1:
            return None
    return found.pop() if found else None


def _open_scenes(config: DenseDataConfig) -> DenseData:
    side = SIDE if config.img_size is None else config.img_size
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    if min(size) < LEAST_SIDE:
        raise UserError(
            f"--img-size {' '.join(map(str, size))} is too small for digits-scenes: below {LEAST_SIDE} pixels its "
            f"digits cannot be read; give {LEAST_SIDE} or more"
        )
    (pixels, labels), test = digits()
    seed = config.seed_of_split
    kept, off = cut(labels, config.validation, np.random.default_rng(seed), DIGITS)
    count = max(round(config.validation * config.scenes), 1) if config.validation else 0
    limited = min(config.limit or config.scenes, config.scenes)
    # the first number keeps the three splits' randomness apart; the test split's own is whatever --seed says
    return DenseData(
        name=config.data,
        classes=DIGITS,
        in_chans=1,
        mean=(0.5,),  # mean and std of the training pixels
        std=(0.19,),
        mirror=False,
        train=ScenesSource(pixels[kept], labels[kept], (0, seed), limited, size, "digits-scenes train"),
        validation=ScenesSource(pixels[off], labels[off], (1, seed), count, size, "digits-scenes validation split"),
        test=ScenesSource(*test, (2,), TEST_SCENES, size, "digits-scenes test"),
        has_masks=True,
        img_size=size,
        workers=config.workers or 0,
    )
