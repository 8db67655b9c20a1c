"""A folder -> the image files beneath it: what counts as one, what is passed over and why. No torch here.

The one rule for training, evaluation and prediction, and for sets with boxes and masks: docs/howto/own-data.md.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from psvit.data.sources import add_pillow_plugins, natural, printable
from psvit.errors import UserError

NO_PHOTOGRAPHS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
"""Formats whose endings Pillow knows, but which it cannot decode by itself."""

SYSTEM = {
    "@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "__pycache__", "system volume information",
    "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
"""Names, in small letters, that systems and tools leave in folders; besides all that begin with a dot."""

PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif"}
"""Packages that teach Pillow to read files of an ending."""


@cache
def image_suffixes() -> frozenset[str]:
    """Endings, in small letters, of the formats that Pillow can decode here; HEIC where pillow-heif is installed."""
    add_pillow_plugins()
    known = Image.registered_extensions()
    return frozenset(
        suffix.lower()
        for suffix, name in known.items()
        if name not in NO_PHOTOGRAPHS and (name in Image.OPEN or name == "MPO")  # MPO is opened as JPEG
    )


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by a system."""
    return name.startswith(".") or name.lower() in SYSTEM


def normalized(name: str) -> str:
    """A name as it is compared: composed (NFC), since file systems differ in how they write é."""
    return unicodedata.normalize("NFC", name)


READ_FOLDERS = "folders that are read already, by another name"
READ_FILES = "files that are read already, by another name"


class ImageFile(NamedTuple):
    """A file, and the names that lead to it from the root, composed (NFC): folders, then the file's own."""

    path: str
    parts: tuple[str, ...]


@dataclass
class PassedOver:
    """What was left out, by reason, each with the names of all it is true of."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, why: str, *names: str) -> None:
        """Count files or folders that are left out for a reason."""
        if names:
            self.names.setdefault(why, []).extend(map(printable, names))

    def lines(self) -> list[str]:
        """For each reason how many, and some of them."""
        return [f"{len(names)} {why}: {_some(names)}" for why, names in self.names.items()]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@dataclass
class _Walk:
    """Files and folders met so far, each once: folders before what links lead to."""

    root: str
    files: list[ImageFile] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    passed: PassedOver = field(default_factory=PassedOver)
    seen: set[tuple[int, int]] = field(default_factory=set)
    links: deque[tuple[str, tuple[str, ...]]] = field(default_factory=deque)
    entered: list[tuple[str, ...]] = field(default_factory=list)

    def tree(self, folder: str, parts: tuple[str, ...]) -> None:
        """All beneath a folder but what links lead to, which is kept for later."""
        pending = [(folder, parts)]
        while pending:
            place, above = pending.pop()
            inside = self._entries(place, above)
            pending += reversed(inside)

    def _entries(self, folder: str, above: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
        """The folders directly in one; its files are noted."""
        try:
            about = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self.passed.add("folders that cannot be opened", "/".join(above) or ".")
            return []
        if not self.first(about.st_dev, about.st_ino):
            self.passed.add(READ_FOLDERS, "/".join(above))
            return []
        self.entered.append(above)
        folders = []
        for entry in entries:
            parts = (*above, normalized(entry.name))
            if is_hidden(entry.name):
                kind = "folders" if _is_folder(entry) else "files"
                self.passed.add(f"hidden or system {kind}", "/".join(parts))
            elif entry.is_symlink():
                self.links.append((entry.path, parts))
            elif entry.is_dir():
                folders.append((entry.path, parts))
            else:
                self._file(entry.path, parts, about.st_dev, entry.inode(), regular=entry.is_file())
        return folders

    def follow(self, link: str, parts: tuple[str, ...]) -> None:
        """What a link leads to, if it was not met before."""
        try:
            about = os.stat(link)
        except OSError:  # also of a link that leads to itself
            self.passed.add("links that lead nowhere", "/".join(parts))
            return
        if stat.S_ISDIR(about.st_mode):
            self.tree(link, parts)
        else:
            self._file(link, parts, about.st_dev, about.st_ino, regular=stat.S_ISREG(about.st_mode))

    def _file(self, path: str, parts: tuple[str, ...], device: int, inode: int, regular: bool) -> None:
        if not regular:
            self.passed.add("neither files nor folders", "/".join(parts))
        elif not is_image(parts[-1]):
            self.others.append("/".join(parts))
        elif not self.first(device, inode):
            self.passed.add(READ_FILES, "/".join(parts))
        else:
            self.files.append(ImageFile(path, parts))

    def first(self, device: int, inode: int) -> bool:
        """Whether this file or folder is met for the first time."""
        if not inode:  # a file system without numbers
            return True
        first = (device, inode) not in self.seen
        self.seen.add((device, inode))
        return first


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def find_images(root: Path) -> tuple[list[ImageFile], PassedOver]:
    """All image files beneath a folder, in natural order, and what was passed over.

    Links are followed, but not to a folder that the root is in. A file that several names lead to counts once, by the
    name that no link is part of where there is one; folders likewise, so a cycle of links ends. What is hidden or a
    system's is passed over with all in it.
    """
    walk = _Walk(str(root))
    for above in root.resolve().parents:
        with suppress(OSError):
            walk.first(above.stat().st_dev, above.stat().st_ino)
    walk.tree(str(root), ())
    while walk.links:
        walk.follow(*walk.links.popleft())
    found = sorted(walk.files, key=lambda file: (natural("/".join(file.parts)), file.path))
    for why, names in _by_ending(walk.others):
        walk.passed.add(why, *names)
    walk.passed.add("folders without an image", *_empty(walk))
    return found, walk.passed


def _by_ending(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    endings: dict[str, list[str]] = {}
    for name in names:
        endings.setdefault(os.path.splitext(name)[1].lower(), []).append(name)
    for ending, some in sorted(endings.items(), key=lambda pair: -len(pair[1])):
        package = f" (pip install {PLUGINS[ending]})" if ending in PLUGINS else ""
        why = f"{ending} files, which Pillow cannot read{package}" if ending else "files without an ending"
        yield why, some


def _empty(walk: _Walk) -> list[str]:
    """Folders with no image anywhere beneath; of one within another, the outer alone."""
    told = [tuple(name.split("/")) for why in (READ_FOLDERS, READ_FILES) for name in walk.passed.names.get(why, ())]
    met = [file.parts for file in walk.files] + told
    full = {parts[:depth] for parts in met for depth in range(len(parts))}
    return ["/".join(parts) for parts in walk.entered if parts and parts not in full and parts[:-1] in full]


def images_in(names: Sequence[str]) -> tuple[list[Path], PassedOver]:
    """The files named, as they are, and all images beneath the folders named; each file once.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    found: dict[str, Path] = {}
    passed = PassedOver()
    for name in names:
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            files, left = find_images(path)
            if not files:
                more = f" ({'; '.join(left.lines())})" if left.names else ""
                raise UserError(f"the folder {path} holds no images{more}: check the path")
            for why, others in left.names.items():
                passed.add(why, *(str(path / other) for other in others))
            paths = [Path(file.path) for file in files]
        elif path.exists():
            paths = [path]
        else:
            raise UserError(f"there is no file or folder {path}: check the path")
        for one in paths:
            found.setdefault(os.path.realpath(one), one)
    return list(found.values()), passed
