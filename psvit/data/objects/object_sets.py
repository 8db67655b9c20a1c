"""A name or a folder -> DenseData: images with boxes and masks, or with class maps, in three splits. No torch here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from psvit.data.findings import Findings
from psvit.data.image_files import find_images, normalized
from psvit.data.image_folder import ImageFolder, Labelled
from psvit.data.image_list import ImageList
from psvit.data.image_sets import OpenedSet, data_folder, default_workers, split_images
from psvit.data.objects.class_maps import open_maps, open_voc_maps
from psvit.data.objects.coco import open_coco
from psvit.data.objects.mask_folders import find_other_masks
from psvit.data.objects.objects import IGNORED, DenseSource, DenseSubset, Found
from psvit.data.objects.objects_config import WITH_CLASS_MAPS, WITH_OBJECTS, DenseDataConfig
from psvit.data.objects.scenes import LEAST_SIDE, SIDE, ScenesSource
from psvit.data.objects.voc import open_voc
from psvit.data.sources import printable, quoted
from psvit.data.splits import DIGITS, cut, digits
from psvit.errors import UserError

SCENES = "digits-scenes"
TEST_SCENES = 500
"""Number of test scenes; their seed is fixed, so all runs have the same."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseData(OpenedSet):
    """An opened set of images with boxes and masks, or with class maps, whose classes may include a background.

    Args:
        train: training images, without the validation split.
        validation: cut from the training split; empty if config.validation is 0.
        test: the test split.
        has_masks: objects have masks.
        img_size: height and width of the images of all splits; None if they differ.
    """

    train: DenseSource
    validation: DenseSource
    test: DenseSource
    has_masks: bool
    img_size: tuple[int, int] | None

    def split(self, name: str) -> DenseSource:
        """A split by name: train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def sizes(self) -> set[tuple[int, int]]:
        """The known (height, width) of images of all splits, without decoding them."""
        if self.img_size is not None:
            return {self.img_size}
        parts = (self.train, self.validation, self.test)
        return {size for part in parts for at in range(len(part)) if (size := part.size_of(at)) is not None}


def open_objects(
    config: DenseDataConfig, kept: ImageList | None = None, evaluated: tuple[str, ...] | None = None
) -> DenseData:
    """Open a set of images with boxes, and masks if it has them.

    Args:
        config: which set, and how to split it.
        kept: list of images that keep their splits.
        evaluated: the classes of a network to evaluate; see `open_image_set`.

    Raises:
        UserError: the set is unknown, missing or broken, or has too few images.
    """
    if config.data == SCENES:
        return _open_scenes(config)
    root = _folder(config, WITH_OBJECTS, "the detector scales them (--short-side and --long-side of train)")
    found = open_voc(root, config.strict, evaluated) or open_coco(root, config.strict, evaluated)
    if found is None:
        raise UserError(
            f"--data {config.data!r} holds no boxes: give a folder with annotations/instances_train.json, as in COCO, "
            "or with JPEGImages and Annotations, as in Pascal VOC"
        )
    return _in_splits(config, found, kept, evaluated is not None)


def open_class_maps(
    config: DenseDataConfig, kept: ImageList | None = None, evaluated: tuple[str, ...] | None = None
) -> DenseData:
    """Open a set of images with a class for each pixel; arguments as for `open_objects`.

    Raises:
        UserError: the set is unknown, missing or broken, or has too few images.
    """
    if config.data == SCENES:
        return _with_background(_open_scenes(config))
    root = _folder(config, WITH_CLASS_MAPS, "training cuts pieces of one size from them (--crop-size)")
    if maps := open_voc_maps(root, config.strict) or open_maps(root, config.strict, evaluated):
        return _in_splits(config, maps, kept, evaluated is not None)
    own = None if evaluated is None else evaluated[1:]  # without the background
    if found := open_coco(root, config.strict, own, crowds=True):
        if not found.has_masks:
            raise UserError(f"--data {config.data!r} has boxes, but no masks: class maps cannot be drawn from them")
        if len(found.classes) >= IGNORED:
            raise UserError(
                f"--data {config.data!r} has {len(found.classes)} classes: a class map holds {IGNORED - 1} at most"
            )
        return _with_background(_in_splits(config, found, kept, evaluated is not None))
    if (masks := find_other_masks(root)) is not None:
        raise UserError(f"{masks} holds no images: put the masks there, as PNG, called as their images")
    raise UserError(
        f"--data {config.data!r} holds no class maps: give a folder with images/ and masks/, or one in the layout "
        "of ADE20K, COCO or Pascal VOC"
    )


def _with_background(data: DenseData) -> DenseData:
    return replace(data, classes=("background", *data.classes))


def _folder(config: DenseDataConfig, known: str, instead: str) -> Path:
    """The folder given as --data; `instead` tells in a message how its images are resized."""
    root = data_folder(config, known)
    if config.img_size is not None:
        raise UserError(
            f"--img-size is the side of digits-scenes: images of {config.data!r} keep their sizes, and {instead}; "
            "leave it out"
        )
    return root


def _in_splits(config: DenseDataConfig, found: Found, kept: ImageList | None, evaluated: bool) -> DenseData:
    """Cut missing splits by a hash of the path of each image, and apply --limit; UserError if splits overlap."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    source = found.source
    real = _real_paths([source.path(at) for at in range(len(source))])
    _check_apart(config, found, real)
    given = list(zip(found.splits, real, strict=True))
    paths: dict[tuple[str, str], str] = {}  # files listed twice count once
    for at, pair in enumerate(given):
        paths.setdefault(pair, source.path(at))
    splits: dict[str, list[Labelled]] = {}
    for (split, _), path in paths.items():
        where = normalized(os.path.relpath(path, found.root).replace(os.sep, "/"))
        splits.setdefault(split, []).append(Labelled(path, "", where, where))
    origins = found.origins or {"train": "the images"}
    folder = ImageFolder((), splits, found.origins, Findings("left out"), origins=origins)
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
        **parts,
        has_masks=found.has_masks,
        img_size=_one_size(source),
        workers=default_workers() if config.workers is None else config.workers,
        notes=(*found.notes, *_unlisted(found, real), *files.notes),
        files=files,
    )


def _real_paths(paths: Sequence[str]) -> list[str]:
    """The real path of each image, without links and dots."""
    folders: dict[str, str] = {}
    found = []
    for given in paths:
        folder, name = os.path.split(given)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name)
        found.append(os.path.realpath(path) if os.path.islink(path) else path)
    return found


def _check_apart(config: DenseDataConfig, found: Found, real: Sequence[str]) -> None:
    """Refuse files in two splits, unless --join-duplicates is given."""
    places: dict[str, set[str]] = {}
    for file, split in zip(real, found.splits, strict=True):
        places.setdefault(file, set()).add(split)
    both = [file for file, splits in places.items() if len(splits) > 1]
    if both and not config.join_duplicates:
        first, second = sorted(places[both[0]], key=("train", "validation", "test").index)[:2]
        raise UserError(
            f"{config.data}: images of {found.origins.get(second, second)} are in "
            f"{found.origins.get(first, first)} too: {quoted(list(map(printable, both)))}; what is tested on must "
            "not be trained on: take them out of one, or give --join-duplicates to train on the others alone"
        )


def _unlisted(found: Found, real: Sequence[str]) -> tuple[str, ...]:
    """A note on unused images in the folders of the set that no other note counts."""
    used = {*real, *_real_paths(found.masks)}
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
    """Height and width of the images, if they all have the same size."""
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
    # the first number differs by split; the test split does not depend on --seed
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
