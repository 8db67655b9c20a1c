"""A folder -> the image files beneath it, and the files left out (docs/howto/own-data.md). No torch here."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from psvit.data.findings import Findings
from psvit.data.sources import add_pillow_plugins, natural
from psvit.errors import UserError

NO_PHOTOGRAPHS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
"""Formats that Pillow cannot decode without other programs."""

SYSTEM = {
    "@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "__pycache__", "system volume information",
    "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
"""Lower-case names of files and folders made by systems and tools, besides those that begin with a dot."""

PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif"}
"""Packages with Pillow plug-ins, by file ending."""


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case endings of the formats that Pillow can decode; HEIC if pillow-heif is installed."""
    add_pillow_plugins()
    return frozenset(
        suffix.lower()
        for suffix, name in Image.registered_extensions().items()
        if name not in NO_PHOTOGRAPHS and (name in Image.OPEN or name == "MPO")  # MPO is opened as JPEG
    )


def is_image(name: str) -> bool:
    """Whether this is the name of an image."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Whether this is the name of a hidden or system file or folder."""
    return name.startswith(".") or name.lower() in SYSTEM


def normalized(name: str) -> str:
    """A name in Unicode NFC, since file systems differ in how they write é."""
    return unicodedata.normalize("NFC", name)


READ_FOLDERS = "folders already read under another name"
READ_FILES = "files already read under another name"

Parts = tuple[str, ...]
"""The path of a file or folder below the root, as names in NFC."""


class ImageFile(NamedTuple):
    """A file, and its path below the root."""

    path: str
    parts: Parts


class _Walk:
    """Walks a folder and visits each file and folder once; links are followed last."""

    def __init__(self, root: Path) -> None:
        self.files: list[ImageFile] = []
        self.left_out = Findings("left out")
        self.others: dict[str, list[str]] = {}  # files that are no images, by ending
        self.seen: set[tuple[int, int]] = set()
        self.links: deque[tuple[str, Parts]] = deque()
        self.entered: list[Parts] = []
        for above in root.resolve().parents:
            with suppress(OSError):
                self._is_new(above.stat())
        self._tree(str(root), ())
        while self.links:
            self._follow(*self.links.popleft())

    def _tree(self, folder: str, parts: Parts) -> None:
        """Add all files below a folder; links are queued."""
        pending = [(folder, parts)]
        while pending:
            pending += reversed(self._enter(*pending.pop()))

    def _enter(self, folder: str, above: Parts) -> list[tuple[str, Parts]]:
        """Add the files directly in a folder; return its folders."""
        try:
            about = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self.left_out.add("folders that cannot be opened", "/".join(above) or ".")
            return []
        if not self._is_new(about):
            self.left_out.add(READ_FOLDERS, "/".join(above))
            return []
        self.entered.append(above)
        folders = []
        for entry in entries:
            parts = (*above, normalized(entry.name))
            if is_hidden(entry.name):
                kind = "folders" if os.path.isdir(entry.path) else "files"
                self.left_out.add(f"hidden or system {kind}", "/".join(parts))
            elif entry.is_symlink():
                self.links.append((entry.path, parts))
            elif entry.is_dir():
                folders.append((entry.path, parts))
            else:
                self._file(entry.path, parts)
        return folders

    def _follow(self, link: str, parts: Parts) -> None:
        if os.path.isdir(link):
            self._tree(link, parts)
        else:
            self._file(link, parts)

    def _file(self, path: str, parts: Parts) -> None:
        name = "/".join(parts)
        try:
            about = os.stat(path)
        except OSError:  # also for a link to itself
            self.left_out.add("links that lead nowhere", name)
            return
        if not stat.S_ISREG(about.st_mode):
            self.left_out.add("neither files nor folders", name)
        elif not is_image(name):
            self.others.setdefault(os.path.splitext(name)[1].lower(), []).append(name)
        elif not self._is_new(about):
            self.left_out.add(READ_FILES, name)
        else:
            self.files.append(ImageFile(path, parts))

    def _is_new(self, about: os.stat_result) -> bool:
        """Whether this file or folder is visited for the first time."""
        number = (about.st_dev, about.st_ino)
        new = number not in self.seen or not about.st_ino  # some file systems have no numbers
        self.seen.add(number)
        return new

    def empty(self) -> list[str]:
        """The outermost folders without an image below them."""
        named = self.left_out.names
        told = [tuple(name.split("/")) for why in (READ_FOLDERS, READ_FILES) for name in named.get(why, ())]
        met = [file.parts for file in self.files] + told
        full = {parts[:depth] for parts in met for depth in range(len(parts))}
        return ["/".join(parts) for parts in self.entered if parts and parts not in full and parts[:-1] in full]


def find_images(root: Path) -> tuple[list[ImageFile], Findings]:
    """All image files below a folder, in natural order, and the files left out.

    Links are followed, but not to a folder that contains the root. A file or folder with several names counts once,
    under a name without a link if there is one, so cycles of links end. Hidden and system folders are left out.
    """
    walk = _Walk(root)
    for ending, names in sorted(walk.others.items(), key=lambda pair: -len(pair[1])):
        package = f" (pip install {PLUGINS[ending]})" if ending in PLUGINS else ""
        why = f"{ending} files, which Pillow cannot read{package}" if ending else "files without an ending"
        walk.left_out.add(why, *names)
    walk.left_out.add("folders without an image", *walk.empty())
    return sorted(walk.files, key=lambda file: (natural("/".join(file.parts)), file.path)), walk.left_out


def images_in(names: Sequence[str]) -> tuple[list[Path], Findings]:
    """The given files, and all images below the given folders; each file once.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    found: dict[str, Path] = {}
    left_out = Findings("left out")
    for name in names:
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            files, left = find_images(path)
            if not files:
                raise UserError(f"the folder {path} holds no images{left.in_brackets()}: check the path")
            for why, others in left.names.items():
                left_out.add(why, *(str(path / other) for other in others))
            paths = [Path(file.path) for file in files]
        elif path.exists():
            paths = [path]
        else:
            raise UserError(f"there is no file or folder {path}: check the path")
        for one in paths:
            found.setdefault(os.path.realpath(one), one)
    return list(found.values()), left_out
