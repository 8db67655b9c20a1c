"""A name or a folder -> DenseData: images with boxes and masks, or with class maps, in three splits. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psvit.dense.data.annotated import Annotated, AnnotatedSource
from psvit.dense.data.class_maps import MASK_SUFFIXES, find_other_masks, open_maps, open_voc_maps
from psvit.dense.data.coco import find_coco, read_coco
from psvit.dense.data.objects import IGNORED, DenseSource, DenseSubset
from psvit.dense.data.scenes import LEAST_SIDE, SIDE, ScenesSource
from psvit.dense.data.settings import WITH_CLASS_MAPS, WITH_OBJECTS, DenseDataSettings
from psvit.dense.data.voc import find_voc, read_voc
from psvit.errors import UserError
from psvit.training.sources import quoted
from psvit.training.splits import DIGITS, TEST_FRACTION, cut, digits

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
        train: training images, without the hold-out.
        holdout: cut from the training split; empty if settings.holdout is 0.
        test: the test split.
        has_masks: objects have masks.
        img_size: height and width of the images of all splits; None if they differ.
        workers: loading processes.
        notes: lines that the user should read.
    """

    name: str
    classes: tuple[str, ...]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    train: DenseSource
    holdout: DenseSource
    test: DenseSource
    has_masks: bool
    img_size: tuple[int, int] | None
    workers: int = 0
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> DenseSource:
        """The split of this name: train, holdout or test."""
        return {"train": self.train, "holdout": self.holdout, "test": self.test}[name]

    def sizes(self) -> set[tuple[int, int]]:
        """Heights and widths of the images of all splits, as far as they are known without decoding them."""
        if self.img_size is not None:
            return {self.img_size}
        parts = (self.train, self.holdout, self.test)
        return {size for part in parts for at in range(len(part)) if (size := part.size_of(at)) is not None}


def open_objects(settings: DenseDataSettings) -> DenseData:
    """Open a set of images with boxes, and masks where it has them.

    Raises:
        UserError: the set is not known or not found, is broken, or has too few images.
    """
    if settings.data == SCENES:
        return _open_scenes(settings)
    root = _folder(settings, WITH_OBJECTS, "the detector scales them (--short-side and --long-side of train)")
    if folder := find_voc(root):
        return _open_voc(settings, folder)
    if find_coco(root)[0]:
        return _open_coco(settings, root, crowds=False)
    raise UserError(
        f"--data {settings.data!r} holds no boxes: give a folder with annotations/instances_train.json, as in COCO, "
        "or with JPEGImages and Annotations, as in Pascal VOC"
    )


def open_class_maps(settings: DenseDataSettings) -> DenseData:
    """Open a set of images with a class for each pixel.

    Raises:
        UserError: the set is not known or not found, is broken, or has too few images.
    """
    if settings.data == SCENES:
        return _with_background(_open_scenes(settings))
    root = _folder(settings, WITH_CLASS_MAPS, "training cuts pieces of one size from them (--crop-size)")
    maps = open_voc_maps(folder, settings.strict) if (folder := find_voc(root)) else open_maps(root, settings.strict)
    if maps is not None:
        return _in_splits(settings, maps.classes, maps.train, maps.test, False, maps.notes)
    if find_coco(root)[0]:
        data = _with_background(_open_coco(settings, root, crowds=True))
        if not data.has_masks:
            raise UserError(f"--data {settings.data!r} has boxes, but no masks: class maps cannot be drawn from them")
        if len(data.classes) > IGNORED:
            raise UserError(f"--data {settings.data!r} has {len(data.classes) - 1} classes: a class map holds "
                            f"{IGNORED - 1} at most")  # fmt: skip
        return data
    if (masks := find_other_masks(root)) is not None:
        raise UserError(f"{masks} holds no {', '.join(MASK_SUFFIXES)}: save masks as PNG, since JPEG changes class "
                        "numbers")  # fmt: skip
    raise UserError(
        f"--data {settings.data!r} holds no class maps: give a folder with images/ and masks/, or one in the layout "
        "of ADE20K, COCO or Pascal VOC"
    )


def _with_background(data: DenseData) -> DenseData:
    return replace(data, classes=("background", *data.classes))


def _folder(settings: DenseDataSettings, known: str, instead: str) -> Path:
    """The folder that is named as the data, of those `known`; `instead` says how its images come to one size."""
    root = Path(settings.data).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "is neither a folder nor a known set"
        raise UserError(f"--data {settings.data!r} {what}: give {known}")
    if settings.img_size is not None:
        raise UserError(f"--img-size is the side of digits-scenes: images of {settings.data!r} keep their sizes, and "
                        f"{instead}; leave it out")  # fmt: skip
    return root


def _open_coco(settings: DenseDataSettings, root: Path, crowds: bool) -> DenseData:
    files, notes = find_coco(root)
    train = read_coco(files["train"], root, "train", settings.strict)
    _check_objects(files["train"], train.images, crowds, train.notes)
    notes += train.notes
    test: DenseSource | None = None
    if "test" in files:
        read = read_coco(files["test"], root, "test", settings.strict, train.classes)
        notes += read.notes
        if train.has_masks and not read.has_masks:
            notes += (f"{files['test']} has no masks: there boxes take their place",)
        test = AnnotatedSource(read.images, train.has_masks)
    return _in_splits(
        settings, train.classes, AnnotatedSource(train.images, train.has_masks), test, train.has_masks, notes
    )


def _open_voc(settings: DenseDataSettings, folder: Path) -> DenseData:
    read = read_voc(folder, settings.strict)
    _check_objects(folder, read.train, crowds=False, notes=read.notes)
    test = None if read.test is None else AnnotatedSource(read.test, False)
    return _in_splits(settings, read.classes, AnnotatedSource(read.train, False), test, False, read.notes)


def _check_objects(where: Path, images: Sequence[Annotated], crowds: bool, notes: Sequence[str]) -> None:
    """Refuse a training split without an object to learn from; with `crowds` a crowd is one. `notes` may say why."""
    if not any(len(one.labels) if crowds else (~one.crowd).any() for one in images):
        kind = "an object" if crowds else "an object that is neither a crowd nor difficult"
        found = f" (found on the way: {'; '.join(notes)})" if notes else ""
        raise UserError(f"{where}: none of the {len(images)} images of the training split has {kind}: there is nothing "
                        f"to learn; annotate some{found}")  # fmt: skip


def _in_splits(
    settings: DenseDataSettings,
    classes: tuple[str, ...],
    train: DenseSource,
    test: DenseSource | None,
    has_masks: bool,
    notes: tuple[str, ...],
) -> DenseData:
    """Set a test split aside where there is none, cut the hold-out, and keep to --limit.

    Raises:
        UserError: there are too few images, or one is in both splits.
    """
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    files = _files(train)
    if test is None:
        kept, off = _cut(files, TEST_FRACTION, np.random.default_rng(0))
        train, test, files = DenseSubset(train, kept), DenseSubset(train, off), [files[at] for at in kept]
        notes += (f"{settings.data} has no test split: {TEST_FRACTION:.0%} of its images are set aside as one, "
                  "always the same",)  # fmt: skip
    else:
        trained = set(files)
        if both := [test.name(at) for at, file in enumerate(_files(test)) if file in trained]:
            raise UserError(f"{settings.data}: {len(both)} images of the test split are in the training split too: "
                            f"{quoted(both)}; what is tested on must not be trained on")  # fmt: skip
    rng = np.random.default_rng(settings.seed_of_split)
    kept, off = _cut(files, settings.holdout, rng)
    if settings.limit is not None:
        kept = np.sort(rng.permutation(kept)[: settings.limit])
    return DenseData(
        name=settings.data,
        classes=classes,
        in_chans=3,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        mirror=True,
        train=DenseSubset(train, kept),
        holdout=DenseSubset(train, off),
        test=test,
        has_masks=has_masks,
        img_size=_one_size(train, test),
        workers=min(4, os.cpu_count() or 1) if settings.workers is None else settings.workers,
        notes=notes,
    )


def _files(source: DenseSource) -> list[str]:
    """The real path of each image, whatever links and dots lead to it."""
    folders: dict[str, str] = {}
    found = []
    for at in range(len(source)):
        folder, name = os.path.split(source.name(at))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name)
        found.append(os.path.realpath(path) if os.path.islink(path) else path)
    return found


def _one_size(*sources: DenseSource) -> tuple[int, int] | None:
    """Height and width of all images, if they have but one; looks no further than to a second."""
    found: set[tuple[int, int]] = set()
    for source in sources:
        for at in range(len(source)):
            if (size := source.size_of(at)) is not None:
                found.add(size)
            if len(found) > 1:
                return None
    return found.pop() if found else None


def _cut(
    files: Sequence[str], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of images that stay and of those cut off, at least one on both sides; a file stays on one of them."""
    number = {file: at for at, file in enumerate(dict.fromkeys(files))}
    count = len(number)
    if fraction and count < 2:
        raise UserError("there are too few images: training, the hold-out and a test split that is cut need one each; "
                        "add images, or give --holdout 0")  # fmt: skip
    order = rng.permutation(count)
    off = min(max(round(fraction * count), 1), count - 1) if fraction else 0
    is_off = np.isin([number[file] for file in files], order[:off])
    return np.flatnonzero(~is_off), np.flatnonzero(is_off)


def _open_scenes(settings: DenseDataSettings) -> DenseData:
    side = SIDE if settings.img_size is None else settings.img_size
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    if min(size) < LEAST_SIDE:
        raise UserError(
            f"--img-size {' '.join(map(str, size))} is too small for digits-scenes: below {LEAST_SIDE} pixels its "
            f"digits cannot be read; give {LEAST_SIDE} or more"
        )
    (pixels, labels), test = digits()
    seed = settings.seed_of_split
    kept, off = cut(labels, settings.holdout, np.random.default_rng(seed), DIGITS)
    count = max(round(settings.holdout * settings.scenes), 1) if settings.holdout else 0
    limited = min(settings.limit or settings.scenes, settings.scenes)
    # the first number keeps the three splits' randomness apart; the test split's own is whatever --seed says
    return DenseData(
        name=settings.data,
        classes=DIGITS,
        in_chans=1,
        mean=(0.5,),  # mean and std of the training pixels
        std=(0.19,),
        mirror=False,
        train=ScenesSource(pixels[kept], labels[kept], (0, seed), limited, size, "digits-scenes train"),
        holdout=ScenesSource(pixels[off], labels[off], (1, seed), count, size, "digits-scenes hold-out"),
        test=ScenesSource(*test, (2,), TEST_SCENES, size, "digits-scenes test"),
        has_masks=True,
        img_size=size,
        workers=settings.workers or 0,
    )
