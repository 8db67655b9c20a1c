"""The list of a network's images: the split and the content of each. No torch here.

A run keeps it beside its checkpoints, so that an evaluation knows the images that the network has seen.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from psvit.data.sources import natural, printable, quoted
from psvit.errors import UserError, one_line
from psvit.files import replacing

IMAGES, EARLIER = "images.csv", "images-" + "[0-9a-f]" * 8 + ".csv"
"""The list's file, and the pattern of earlier ones that it replaced."""

SPLITS = ("unused", "train", "validation", "test")
"""The splits of a list; of equal images in several, all belong to the last."""

MANY = 5000
"""From this many images on, reading takes seconds and has a progress bar."""

CHUNK = 256
"""Images that a thread reads at a time: a task for each of a million would take a gigabyte."""


class Listed(NamedTuple):
    """One image: its split, its class, its path below the set's folder (with /), and the digest of its bytes.

    The digest is empty if the file cannot be read.
    """

    split: str
    label: str
    path: str
    digest: str


@dataclass(frozen=True)
class ImageList:
    """The images of a set, each in its split; `before`: digests of the training images of a run's earlier lists."""

    rows: tuple[Listed, ...]
    before: frozenset[str] = frozenset()

    @cached_property
    def _split_by(self) -> tuple[dict[tuple[str, str], str], dict[str, str], dict[str, str]]:
        """Splits by path and digest (paths are compared composed, so two files may have one), by digest, by path."""
        ordered = sorted(self.rows, key=lambda row: SPLITS.index(row.split))
        return (
            {(row.path, row.digest): row.split for row in self.rows},
            {row.digest: row.split for row in ordered if row.digest},
            {row.path: row.split for row in self.rows},
        )

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the list."""
        text = "\n".join("\t".join(row) for row in sorted(self.rows))
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def split_of(self, path: str, digest: str) -> str | None:
        """The split of an image that is as it was, has moved, or has changed; None if it is new."""
        by_both, by_digest, by_path = self._split_by
        return by_both.get((path, digest)) or by_digest.get(digest) or by_path.get(path)

    def is_of(self, digests: Iterable[str]) -> bool:
        """Whether a folder with these digests is the one listed here: it holds at least half of the images."""
        there = set(digests)
        return 2 * sum(row.digest in there for row in self.rows) >= len(self.rows)

    def trained(self, digests: Iterable[str]) -> int:
        """How many of these images were trained on."""
        known = self.before | self.learned()
        return sum(digest in known for digest in digests)

    def learned(self) -> frozenset[str]:
        """The digests of the training split."""
        return frozenset(row.digest for row in self.rows if row.split == "train" and row.digest)

    def changes(self, now: ImageList) -> list[str]:
        """What has changed since: lines such as ``2 added, such as cat/9.jpg``."""
        left: dict[str, list[Listed]] = {}
        for row in (Counter(self.rows) - Counter(now.rows)).elements():
            left.setdefault(row.path, []).append(row)
        kinds: dict[str, list[str]] = {"added": [], "gone": [], "with other bytes": [], "in another split or class": []}
        for row in (Counter(now.rows) - Counter(self.rows)).elements():
            was = left[row.path].pop() if left.get(row.path) else None
            if was is None:
                kinds["added"].append(row.path)
            elif was.digest != row.digest:
                kinds["with other bytes"].append(row.path)
            else:
                kinds["in another split or class"].append(row.path)
        kinds["gone"] = [row.path for rows in left.values() for row in rows]
        return [f"{len(paths)} {kind}, such as {printable(paths[0])}" for kind, paths in kinds.items() if paths]

    def repeated(self) -> list[str]:
        """Images of equal content in several splits, or in several classes: lines that name some."""
        groups: dict[str, list[Listed]] = {}
        for row in self.rows:
            if row.digest and row.split != "unused":
                groups.setdefault(row.digest, []).append(row)
        lines = []
        for kind, at, way_out in (("splits", 0, "; --join-duplicates puts them into one"), ("classes", 1, "")):
            found = [group for group in groups.values() if len({row[at] for row in group}) > 1]
            if found:
                some = "; ".join(" = ".join(printable(row.path) for row in group[:3]) for group in found[:2])
                lines.append(f"images of equal bytes in several {kind}: {len(found)} ({some}){way_out}")
        return lines

    def classes(self) -> set[str]:
        """The classes of all images."""
        return {row.label for row in self.rows}

    def counts(self) -> Counter[str]:
        """Images of each split."""
        return Counter(row.split for row in self.rows)

    def write(self, path: Path) -> None:
        """Write it as CSV, whole or not at all; an earlier list, which checkpoints may name, is renamed."""
        earlier = read_image_list(path)
        if earlier is not None and earlier.fingerprint != self.fingerprint:
            earlier.write(path.with_name(f"{path.stem}-{earlier.fingerprint[:8]}{path.suffix}"))
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            table = csv.writer(file)
            table.writerow(Listed._fields)
            table.writerows(self.rows)


def read_image_list(path: Path) -> ImageList | None:
    """The list in a file; None if there is none.

    Raises:
        UserError: it is broken.
    """
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            head, *rows = csv.reader(file)
            if tuple(head) != Listed._fields:
                raise ValueError(f"its head is {head}")
            listed = tuple(Listed(*row) for row in rows)
        if strange := {row.split for row in listed} - set(SPLITS):
            raise ValueError(f"it has a split {min(strange)!r}")
        return ImageList(listed)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is not a list of images ({one_line(error)}): start anew with --overwrite") from error


def find_image_list(near: Path, fingerprint: object) -> ImageList | None:
    """The list of this fingerprint in a checkpoint's folder, or in one of the two above it; None if it is not there."""
    for folder in (near, *near.resolve().parents[:2]) if fingerprint else ():
        lists: list[ImageList] = []
        for path in list_files(folder):
            with suppress(UserError):  # a user's own file of that name
                lists += filter(None, [read_image_list(path)])
        for found in lists:
            if found.fingerprint == fingerprint:
                return replace(found, before=frozenset().union(*(one.learned() for one in lists)))
    return None


def list_files(folder: Path) -> list[Path]:
    """The lists in a folder, the earlier ones too."""
    return [path for name in (IMAGES, EARLIER) for path in folder.glob(name)]


def check_unchanged(kept: ImageList | None, now: ImageList | None, accept: bool, where: Path) -> tuple[str, ...]:
    """Lines that say how images have changed since a run began in the folder `where`.

    Raises:
        UserError: they have changed, and `accept` is not set; or the classes have.
    """
    if kept is None or now is None:
        return ()
    changes = kept.changes(now)
    if fixed := kept.classes() != now.classes():  # the network has an output for each
        names = quoted(sorted(kept.classes() ^ now.classes(), key=natural))
        changes.append(f"classes are added or gone, {names}")
    if changes and not (accept and not fixed):
        accepting = "" if fixed else ", give --accept-changes to go on with them as they are,"
        raise UserError(
            f"the images have changed since {where} began: {'; '.join(changes)}: bring them back{accepting} or start "
            "anew with --overwrite"
        )
    return tuple(f"changed since the run began: {change}" for change in changes)


def digests(paths: Sequence[str]) -> list[str]:
    """The digest of each file's bytes; empty where it cannot be read."""
    quiet = len(paths) < MANY or not Console(stderr=True).is_terminal
    chunks = [paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        found = pool.map(lambda chunk: [_digest(path) for path in chunk], chunks)
        shown = track(found, "reading images", len(chunks), console=Console(stderr=True), transient=True, disable=quiet)
        return [digest for chunk in shown for digest in chunk]


def _digest(path: str) -> str:
    try:
        about = os.stat(path)
        return _digest_of(path, about.st_size, about.st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=2_000_000)
def _digest_of(path: str, size: int, changed: int) -> str:  # a run opens its images for each network
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()
