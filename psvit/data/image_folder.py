"""A folder of images -> its classes and splits, if they are clear (docs/howto/own-data.md). No torch here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from psvit.data.findings import Findings
from psvit.data.image_files import ImageFile, find_images, normalized
from psvit.data.sources import natural, printable, quoted
from psvit.errors import UserError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Names of the folders of splits, in lower case."""

DATES = re.compile(r"(?<![^/])(19|20)\d\d([-_./]?\d\d){0,2}(?![^/])")
"""Years, months and days in a path, which are not classes."""


class Labelled(NamedTuple):
    """An image file with its class; `key` is its path below the folder of its split, `where` that below the set."""

    path: str
    label: str
    key: str
    where: str


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The content of a folder of images.

    Args:
        classes: names of all classes, in natural order.
        splits: the images of train, validation and test by their folders; without such folders all are of train.
        folders: name of the folder of each split; empty if there are none.
        left_out: files left out, by reason.
        notes: lines for the user.
        origins: where each split comes from, for the user; empty if from folders.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Labelled]]
    folders: dict[str, str]
    left_out: Findings
    notes: tuple[str, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)


def split_named(name: str) -> str | None:
    """The split that this folder name stands for, or None."""
    small = normalized(name).casefold()
    return next((split for split, names in SPLITS.items() if small in names), None)


def read_image_folder(root: Path, given: str, class_folders: str | None = None) -> ImageFolder:
    """Find the images beneath a folder, with their classes and splits.

    Args:
        root: the folder.
        given: its name as the user gave it.
        class_folders: outer or inner: which folders are the classes if images lie deeper than one folder; None refuses
            ambiguous folders.

    Raises:
        UserError: no image is in a class folder, or it is ambiguous which folders are classes or splits.
    """
    return _Reading(root, f"--data {given!r}", class_folders).read()


class _Reading:
    """The state of reading a folder."""

    def __init__(self, root: Path, given: str, class_folders: str | None) -> None:
        self.root, self.given, self.class_folders = root, given, class_folders
        self.files, self.left_out = find_images(root)
        self.notes: list[str] = []

    def read(self) -> ImageFolder:
        folders = {name: None for file in self.files for name in file.parts[:-1]}
        for name in (str(self.root), *folders):
            if printable(name) != name:  # such class names cannot be written to checkpoints and reports
                raise UserError(f"{self.given}: the name of the folder {name!r} is not UTF-8: rename it")
        tops: dict[str, list[ImageFile]] = {}
        for file in self.files:
            tops.setdefault(file.parts[0] if len(file.parts) > 1 else "", []).append(file)
        self._leave_out("images outside of a class folder", tops.pop("", []))
        given = self._split_folders(tops)
        if given:
            for name in tops:
                if split_named(name) is None:
                    self._leave_out(f"images in {name}/, which is no split", tops[name])
            splits = {split: self._labelled(tops[name], 1) for split, name in given.items()}
        else:
            splits = {"train": self._labelled([file for top in tops.values() for file in top], 0)}
        splits = self._check_classes(splits, given)
        classes = {image.label for images in splits.values() for image in images}
        if not classes:
            raise UserError(
                f"{self.given}: no class folder of it holds an image{self.left_out.in_brackets()}: put each class's "
                "images into a folder of its name"
            )
        kept = {split: name for split, name in given.items() if split in splits}
        return ImageFolder(tuple(sorted(classes, key=natural)), splits, kept, self.left_out, tuple(self.notes))

    def _leave_out(self, why: str, files: Sequence[ImageFile]) -> None:
        self.left_out.add(why, *("/".join(file.parts) for file in files))

    def _split_folders(self, tops: dict[str, list[ImageFile]]) -> dict[str, str]:
        """The folder of each split; empty if all folders are classes."""
        named = {name: split for name in tops if (split := split_named(name)) is not None}
        labelled = [name for name in named if any(len(file.parts) > 2 for file in tops[name])]
        beside = [name for name in tops if name not in named]
        if named and not beside and not labelled:
            raise UserError(
                f"{self.given}: {_folders(named)} hold images, but no class folders: put each class's images into a "
                f"folder of its name, as in {next(iter(named))}/cat and {next(iter(named))}/dog"
            )
        if not labelled:
            if strange := [name for name, split in named.items() if split != "train"]:
                raise UserError(
                    f"{self.given}: is {strange[0]}/ a class, or a split without classes? It stands beside "
                    f"{_folders(beside)}: rename it or move it elsewhere, or put the classes' folders into train/"
                )
            for name in named:
                self.notes.append(f"{name}/ is taken for a class, since it stands beside {_folders(beside)}")
            return {}
        if beside and len(labelled) == 1 and len(named) == 1:
            others = "" if named[labelled[0]] == "train" else ", rename the folder to train on to train/"
            raise UserError(
                f"{self.given}: is {labelled[0]}/ a split or a class? It holds folders, and stands beside "
                f"{_folders(beside)}: give --data {self.root / labelled[0]}{others}, or move what is not meant away"
            )
        found: dict[str, str] = {}
        for name, split in named.items():
            if name not in labelled:
                self._leave_out(f"images in {name}/, which has no class folders", tops[name])
            elif found.setdefault(split, name) != name:
                raise UserError(
                    f"{self.given} has two folders for one split, {found[split]}/ and {name}/: put their images into "
                    "one, or move one elsewhere"
                )
        return found

    def _labelled(self, files: Sequence[ImageFile], depth: int) -> list[Labelled]:
        """The images below the folder of a split, at this depth below the root."""
        inside = [file for file in files if len(file.parts) > depth + 1]
        self._leave_out("images outside of a class folder", [file for file in files if len(file.parts) <= depth + 1])
        nested = [file for file in inside if len(file.parts) > depth + 2]
        at = -2 if nested and self._classes_are_inner(inside, nested, depth) else depth
        return [
            Labelled(file.path, file.parts[at], "/".join(file.parts[depth:]), "/".join(file.parts)) for file in inside
        ]

    def _classes_are_inner(self, inside: Sequence[ImageFile], nested: Sequence[ImageFile], depth: int) -> bool:
        """Whether the innermost folder of an image is its class; UserError if that is ambiguous."""
        outer: dict[str, set[tuple[str, ...]]] = {}
        for file in nested:
            outer.setdefault(file.parts[depth], set()).add(file.parts[depth + 1 : -1])
        below = {parts[0] for folders in outer.values() for parts in folders}
        if all(split_named(name) for name in below):
            top, split = next(iter(outer)), sorted(below)[0]
            raise UserError(f"{self.given}: the class folders hold splits, as {top}/{split}: put the splits first, as "
                            f"{split}/{top}")  # fmt: skip
        if self.class_folders is not None:
            if self.class_folders == "inner":
                self._refuse_equal_leaves(inside, depth)
            return self.class_folders == "inner"
        tops = {file.parts[depth] for file in inside}
        if len(tops) == 1:
            inside_it = self.root.joinpath(*nested[0].parts[: depth + 1])
            raise UserError(f"{self.given} holds one folder, {tops.pop()}/: give --data {inside_it}, or say which "
                            "folders are the classes by --class-folders outer or inner")  # fmt: skip
        times = Counter(parts for folders in outer.values() for parts in folders)
        if min(times.values()) > 1:
            if len({DATES.sub("", "/".join(parts)).strip("/") for parts in times}) == 1:  # years, or images/, in each
                return False
            names = sorted({"/".join(parts) for parts in times}, key=natural)
            raise UserError(
                f"{self.given}: are {_folders(list(outer))} the classes, or splits of the classes {quoted(names)}? "
                "Give --class-folders outer, or rename them train, val and test"
            )
        top, folders = next(iter(outer.items()))
        raise UserError(
            f"{self.given}: are the classes the outer folders, as {top}, or the inner ones, as "
            f"{'/'.join((top, *sorted(folders)[0]))}? Give --class-folders outer, or inner"
        )

    def _refuse_equal_leaves(self, files: Sequence[ImageFile], depth: int) -> None:
        parents: dict[str, tuple[str, ...]] = {}
        for file in files:
            folder = file.parts[depth:-1]
            if parents.setdefault(folder[-1], folder) != folder:
                raise UserError(
                    f"{self.given}: {'/'.join(parents[folder[-1]])} and {'/'.join(folder)} would be one class, "
                    f"{folder[-1]}: rename one, put them into one folder, or give --class-folders outer"
                )

    def _check_classes(self, splits: dict[str, list[Labelled]], folders: dict[str, str]) -> dict[str, list[Labelled]]:
        """Drop or refuse splits with classes that training lacks; note classes that a split lacks."""
        if "train" not in splits:
            return splits
        known = {image.label for image in splits["train"]}
        kept = {"train": splits["train"]}
        for split in sorted(splits.keys() - {"train"}, reverse=True):
            name, own = folders[split], {image.label for image in splits[split]}
            if len(own) == 1 and not own & known:
                why = f"images in {name}/, whose only folder {next(iter(own))}/ is no class of {folders['train']}/"
                self.left_out.add(why, *(image.where for image in splits[split]))
                continue
            if extra := sorted(own - known, key=natural):
                raise UserError(
                    f"{self.given}: {name}/ has classes that {folders['train']}/ lacks, {quoted(extra)}: rename their "
                    f"folders as in {folders['train']}/, or move them elsewhere"
                )
            if missing := sorted(known - own, key=natural):
                self.notes.append(f"{name}/ has no image of {quoted(missing)}")
            kept[split] = splits[split]
        return kept


def _folders(names: Sequence[str] | dict[str, str]) -> str:
    return ", ".join(f"{name}/" for name in list(names)[:3]) + (", ..." if len(names) > 3 else "")
