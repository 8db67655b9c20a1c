"""A folder of images -> three splits; splits without a folder are cut. No torch here.

The cut is by a hash of the class and relative path of each image, so no image changes its split, on any machine, when
others are added, removed or renamed. Images that a network was trained on keep their splits.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from psvit.data.data_config import KNOWN, DataConfig
from psvit.data.digests import digests
from psvit.data.image_folder import ImageFolder, Labelled, read_image_folder
from psvit.data.image_list import SPLITS, ImageList, Listed
from psvit.data.sources import FileSource, natural, printable, quoted
from psvit.data.splits import TEST_FRACTION, cut_by_hash, hashed_position
from psvit.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images of a folder with their splits.

    Args:
        classes: class names, by class number.
        rows: the images; splits: the split of each: train, validation, test, or unused.
        origins: where each split comes from, for the user.
        notes: lines for the user.
        known: the digests of the images, if already computed.
    """

    classes: tuple[str, ...]
    rows: tuple[Labelled, ...]
    splits: tuple[str, ...]
    origins: dict[str, str]
    notes: tuple[str, ...]
    known: tuple[str, ...] = ()

    def source(self, split: str) -> FileSource:
        """The images of a split."""
        number = {name: at for at, name in enumerate(self.classes)}
        chosen = [row for row, own in zip(self.rows, self.splits, strict=True) if own == split]
        return FileSource([row.path for row in chosen], [number[row.label] for row in chosen])

    def check_split(self, split: str, name: str) -> None:
        """Refuse to evaluate on an empty split; `name` is the set as the user gave it."""
        if split not in self.splits:
            there = ", ".join(sorted(set(self.splits) - {"unused"}))
            raise UserError(f"--split {split} of {name!r} holds no image, but {there} does: give another --split")

    def trained_on(self, split: str, known: ImageList | None, unreadable: Sequence[str] = ()) -> int | None:
        """The number of images of a split that a network was trained on, by its list; None without a list.

        Images in `unreadable`, as NAME (REASON), do not count.
        """
        if known is None:
            return None
        left_out = {text[: at.start()] for text in unreadable for at in re.finditer(r" \(", text)}
        listed = zip(self.rows, self.images.rows, strict=True)
        return known.trained(
            one.digest for row, one in listed if one.split == split and printable(row.path) not in left_out
        )

    @cached_property
    def images(self) -> ImageList:
        """The list of the images; reads all files unless the digests are known."""
        known = self.known or digests([row.path for row in self.rows])
        listed = zip(self.splits, self.rows, known, strict=True)
        return ImageList(tuple(Listed(split, row.label, row.where, digest) for split, row, digest in listed))


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenedSet:
    """An opened set of images; the attributes that all tasks share.

    Args:
        name: as the user gave it.
        classes: class names, by class number.
        in_chans: 1 (grey) or 3 (RGB).
        mean: of each channel, for pixels in 0..1.
        std: of each channel.
        mirror: mirroring an image does not change its class.
        workers: loading processes.
        notes: lines for the user.
        files: for a folder, its image files with their splits.
    """

    name: str
    classes: tuple[str, ...]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    workers: int = 0
    notes: tuple[str, ...] = ()
    files: ImageSet | None = None


def default_workers() -> int:
    """Default number of loading processes for files."""
    return min(4, os.cpu_count() or 1)


def open_image_set(
    config: DataConfig, kept: ImageList | None = None, evaluated: tuple[str, ...] | None = None
) -> ImageSet:
    """Read a folder of images, and cut the splits without a folder.

    Args:
        config: which folder, and how to cut.
        kept: list of images that keep their splits.
        evaluated: the classes of a network to evaluate. Then a folder without splits, unless it is that of `kept`, is
            entirely a test split, and may lack classes.

    Raises:
        UserError: see `read_image_folder`; or no image can be trained on.
    """
    root = data_folder(config, KNOWN)
    folder = read_image_folder(root, config.data, config.class_folders)
    if "train" not in folder.splits and evaluated is None:
        there = ", ".join(f"{name}/" for name in folder.folders.values())
        raise UserError(
            f"--data {config.data!r} has {there}, but no train/{folder.left_out.in_brackets()}: put the images to "
            "train on there"
        )
    if evaluated is not None and set(folder.classes) <= set(evaluated):
        folder = replace(folder, classes=evaluated)
    return split_images(folder, config, kept, evaluated is not None)


def data_folder(config: DataConfig, known: str) -> Path:
    """The folder that --data names; `known` says what it may be.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(os.path.expanduser(config.data))
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "is neither a folder nor a known set"
        raise UserError(f"--data {config.data!r} {what}: give {known}")
    return root


def split_images(
    folder: ImageFolder, config: DataConfig, kept: ImageList | None = None, evaluated: bool = False
) -> ImageSet:
    """Cut the splits without a folder; images need not have classes.

    Args:
        folder: the images, by split.
        config: how to cut.
        kept: list of images that keep their splits.
        evaluated: a network is evaluated, see `open_image_set`.

    Raises:
        UserError: --limit leaves a class without an image.
    """
    cutting = _Cutting(folder, config)
    if kept is not None or config.join_duplicates:
        cutting.digests = tuple(digests([row.path for row in cutting.rows]))
    if kept is not None and evaluated and not kept.is_of(cutting.digests):
        cutting.notes.append("this is another folder than the network was trained on")
        kept = None
    if evaluated and kept is None and not folder.folders:
        cutting.splits = ["test"] * len(cutting.rows)
        cutting.origins = {"test": "all images"}
    else:
        cutting.cut()
        if kept is not None:
            cutting.keep(kept)
        if config.join_duplicates:
            cutting.join()
        if config.limit is not None:
            cutting.limit(config.limit, len(folder.classes))
    return ImageSet(
        classes=folder.classes,
        rows=tuple(cutting.rows),
        splits=tuple(cutting.splits),
        origins=cutting.origins,
        notes=(*cutting.notes, *folder.left_out.notes()),
        known=cutting.digests,
    )


class _Cutting:
    """The images of a folder, and the split of each, which the methods set."""

    def __init__(self, folder: ImageFolder, config: DataConfig) -> None:
        self.config = config
        self.rows = [row for rows in folder.splits.values() for row in rows]
        self.splits = [split for split, rows in folder.splits.items() for _ in rows]
        folders = {split: f"{name}/" for split, name in folder.folders.items()}
        self.origins = dict(folder.origins) or folders or {"train": "the class folders"}
        self.notes = [*folder.notes]
        self.by_folder: set[str] = set()
        self.digests: tuple[str, ...] = ()

    def cut(self) -> None:
        """Cut a test split and a validation split if they have no folders."""
        if "test" not in self.origins and "validation" in self.origins:
            self.splits = ["test" if split == "validation" else split for split in self.splits]
            self.origins["test"] = self.origins.pop("validation")
        self.by_folder = {split for split in ("validation", "test") if split in self.origins}
        if "test" not in self.origins:
            self._cut_off("test", TEST_FRACTION, "test")
        if "validation" not in self.origins:
            # do not reword the salt: it decides which images are in the validation split
            self._cut_off("validation", self.config.validation, f"hold-out {self.config.seed_of_split}")
        elif not self.config.validation:
            self.splits = ["unused" if split == "validation" else split for split in self.splits]
            self.notes.append(f"{self.origins.pop('validation')} is not used: --validation is 0")

    def _cut_off(self, split: str, fraction: float, salt: str) -> None:
        """Cut a fraction of the training split by a hash."""
        if not fraction or "train" not in self.origins:
            return
        members = self._members("train")
        labels = [self.rows[at].label for at in members]
        off, ranked = cut_by_hash([self.rows[at].key for at in members], labels, fraction, salt)
        for at in np.flatnonzero(off):
            self.splits[members[at]] = split
        what = "class and path" if any(labels) else "the path"
        self.origins[split] = f"cut from {self.origins['train']} by a hash of {what} ({fraction:.0%})"
        without = sorted(set(labels) - {labels[at] for at in np.flatnonzero(off)}, key=natural)
        if without:
            self.notes.append(f"too few images for a part of the {split} split{_named(without)}; add some")
        if small := [label for label in ranked if label not in without]:
            self.notes.append(
                f"too few images to cut the {split} split by a threshold{_named(small)}; it takes those of the lowest "
                "hashes, so added images may move others"
            )

    def _members(self, split: str) -> list[int]:
        return [at for at, own in enumerate(self.splits) if own == split]

    def keep(self, kept: ImageList) -> None:
        """Give known images the split that they had, unless a folder sets it."""
        for at, (row, digest) in enumerate(zip(self.rows, self.digests, strict=True)):
            before = kept.split_of(row.where, digest)
            if before is not None and self.by_folder.isdisjoint((before, self.splits[at])):
                self.splits[at] = before
        cut = {*self.origins, *self.splits} - self.by_folder - {"unused"}
        self.origins |= dict.fromkeys(cut, "as the training kept it")

    def join(self) -> None:
        """Put identical images into one split: test before validation before training."""
        last: dict[str, int] = {}
        for digest, split in zip(self.digests, self.splits, strict=True):
            last[digest] = max(last.get(digest, 0), SPLITS.index(split))
        before = self.splits
        self.splits = [
            SPLITS[last[digest]] if digest else split for digest, split in zip(self.digests, before, strict=True)
        ]
        if moved := sum(a != b for a, b in zip(before, self.splits, strict=True)):
            self.notes.append(f"images moved to the split of others with equal bytes (--join-duplicates): {moved}")

    def limit(self, most: int, classes: int) -> None:
        """Keep `most` training images, balanced over the classes, those of the lowest hashes."""
        if most < classes:
            raise UserError(f"--limit {most} is below the {classes} classes: give each one image")
        salt = f"limit {self.config.seed_of_split}"
        rank: Counter[str] = Counter()
        ranked = []
        for at in sorted(self._members("train"), key=lambda at: hashed_position(self.rows[at].key, salt)):
            label = self.rows[at].label
            ranked.append((rank[label], label, at))
            rank[label] += 1
        for _, _, at in sorted(ranked)[most:]:
            self.splits[at] = "unused"


def _named(labels: Sequence[str]) -> str:
    return f": {quoted(labels)}" if any(labels) else ""  # without classes the label is empty
