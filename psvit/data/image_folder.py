"""A folder of images -> its classes and splits, as people have them; what leaves them open is refused. No torch here.

The rule is docs/howto/own-data.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from psvit.data.image_files import ImageFile, PassedOver, find_images, normalized
from psvit.data.sources import natural, printable, quoted
from psvit.errors import UserError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Names of the folders of splits, in any case."""

DATES = re.compile(r"(?<![^/])(19|20)\d\d([-_./]?\d\d){0,2}(?![^/])")
"""Years, months and days in a path, which tell no classes apart."""


class Labelled(NamedTuple):
    """An image file with its class.

    `key` is its path below its split's folder, which names the class: the same wherever the set lies. `where` is its
    path below the set's folder.
    """

    path: str
    label: str
    key: str
    where: str


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """A folder of images, read.

    Args:
        classes: names of all classes, in natural order.
        splits: the images of train, validation and test, as far as they have folders of their own; without any, all are
            of train.
        folders: the name of each split's folder; empty without any.
        passed: what is left out, and why.
        notes: lines that the user should read.
        origins: where each split comes from, in words; empty where its folder tells it.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Labelled]]
    folders: dict[str, str]
    passed: PassedOver
    notes: tuple[str, ...]
    origins: dict[str, str] = field(default_factory=dict)


def split_named(name: str) -> str | None:
    """The split that a folder of this name is, or None."""
    small = normalized(name).casefold()
    return next((split for split, names in SPLITS.items() if small in names), None)


def read_image_folder(root: Path, given: str, class_folders: str | None = None) -> ImageFolder:
    """Find the images beneath a folder, with their classes and splits.

    Args:
        root: the folder.
        given: what the user called it.
        class_folders: outer or inner: which folders are the classes where images lie deeper than one folder; None
            takes what is plain, and refuses the rest.

    Raises:
        UserError: no image is in a class folder, or it is open which folders are classes or splits.
    """
    return _Reading(root, f"--data {given!r}", class_folders).read()


@dataclass
class _Reading:
    root: Path
    given: str
    class_folders: str | None
    passed: PassedOver = field(default_factory=PassedOver)
    notes: list[str] = field(default_factory=list)

    def read(self) -> ImageFolder:
        files, self.passed = find_images(self.root)
        tops: dict[str, list[ImageFile]] = {}
        for file in files:
            tops.setdefault(file.parts[0] if len(file.parts) > 1 else "", []).append(file)
        self._leave_out("images outside of a class folder", tops.pop("", []))
        self._refuse_undecodable(tops)
        folders = self._split_folders(tops)
        if not folders:
            splits = {"train": self._labelled([file for top in tops.values() for file in top], 0)}
        else:
            for name in tops:
                if split_named(name) is None:
                    self._leave_out(f"images in {name}/, which is no split", tops[name])
            splits = {split: self._labelled(tops[name], 1) for split, name in folders.items()}
        splits = self._check_classes(splits, folders)
        classes = {image.label for images in splits.values() for image in images}
        if not classes:
            raise UserError(f"{self.given}: no class folder of it holds an image{self._found()}: put each class's "
                            "images into a folder of its name")  # fmt: skip
        return ImageFolder(
            classes=tuple(sorted(classes, key=natural)),
            splits=splits,
            folders={split: name for split, name in folders.items() if split in splits},
            passed=self.passed,
            notes=tuple(self.notes),
        )

    def _leave_out(self, why: str, files: Sequence[ImageFile]) -> None:
        self.passed.add(why, *("/".join(file.parts) for file in files))

    def _found(self) -> str:
        return f" ({'; '.join(self.passed.lines())})" if self.passed.names else ""

    def _refuse_undecodable(self, tops: dict[str, list[ImageFile]]) -> None:
        """Checkpoints and reports could not be written with such names of classes."""
        folders = {name: None for files in tops.values() for file in files for name in file.parts[:-1]}
        for name in (str(self.root), *folders):
            if printable(name) != name:
                raise UserError(f"{self.given}: the name of the folder {name!r} is not UTF-8: rename it")

    def _split_folders(self, tops: dict[str, list[ImageFile]]) -> dict[str, str]:
        """The folder of each split; none where all folders are classes."""
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
        for name in labelled:
            split = named[name]
            if split in found:
                raise UserError(f"{self.given} has two folders for one split, {found[split]}/ and {name}/: put their "
                                "images into one, or move one elsewhere")  # fmt: skip
            found[split] = name
        for name in named:
            if name not in labelled:
                self._leave_out(f"images in {name}/, which has no class folders", tops[name])
        return found

    def _labelled(self, files: Sequence[ImageFile], depth: int) -> list[Labelled]:
        """The images below a split's folder, which lies `depth` folders below the root."""
        inside = [file for file in files if len(file.parts) > depth + 1]
        self._leave_out("images outside of a class folder", [file for file in files if len(file.parts) <= depth + 1])
        nested = [file for file in inside if len(file.parts) > depth + 2]
        inner = bool(nested) and self._classes_are_inner(inside, nested, depth)
        found = []
        for file in inside:
            below = file.parts[depth:]
            label = below[-2] if inner else below[0]
            found.append(Labelled(file.path, label, "/".join(below), "/".join(file.parts)))
        return found

    def _classes_are_inner(self, inside: Sequence[ImageFile], nested: Sequence[ImageFile], depth: int) -> bool:
        """Whether the folder that an image lies in is its class, not the outermost.

        Raises:
            UserError: it is open, or the classes would not be what they are called.
        """
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
        """The splits whose classes are known from training; what they lack is said."""
        if "train" not in splits:
            return splits
        known = {image.label for image in splits["train"]}
        kept = {"train": splits["train"]}
        for split in ("validation", "test"):
            if split not in splits:
                continue
            name, own = folders[split], {image.label for image in splits[split]}
            if len(own) == 1 and not own & known:
                why = f"images in {name}/, whose only folder {next(iter(own))}/ is no class of {folders['train']}/"
                self.passed.add(why, *(image.where for image in splits[split]))
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
