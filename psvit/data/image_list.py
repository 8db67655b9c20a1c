"""The list of images of a run, with the split and the digest of each. No torch here.

It is kept beside the checkpoints, so that an evaluation knows which images the network was trained on.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from psvit.data.sources import natural, printable, quoted
from psvit.errors import UserError, one_line
from psvit.files import replacing

IMAGES, EARLIER = "images.csv", "images-" + "[0-9a-f]" * 8 + ".csv"
"""The file of the list, and the pattern of earlier lists."""

SPLITS = ("unused", "train", "validation", "test")
"""The splits of a list; identical images in several splits belong to the last of these."""


class Listed(NamedTuple):
    """One image: split, class, path below the folder of the set (with /), digest of its bytes (empty if unreadable)."""

    split: str
    label: str
    path: str
    digest: str


@dataclass(frozen=True)
class ImageList:
    """The images of a set with their splits; `before`: digests of training images in earlier lists of the run."""

    rows: tuple[Listed, ...]
    before: frozenset[str] = frozenset()

    @cached_property
    def _split_by(self) -> tuple[dict[tuple[str, str], str], dict[str, str], dict[str, str]]:
        """Splits by path and digest (two files may have the same path in NFC), by digest, by path."""
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
        """The split of an image, also if it has moved or changed; None if it is new."""
        by_both, by_digest, by_path = self._split_by
        return by_both.get((path, digest)) or by_digest.get(digest) or by_path.get(path)

    def is_of(self, digests: Iterable[str]) -> bool:
        """Whether a folder with these digests is this set: it holds at least half of the listed images."""
        there = set(digests)
        return 2 * sum(row.digest in there for row in self.rows) >= len(self.rows)

    def trained(self, digests: Iterable[str]) -> int:
        """The number of these images that were trained on."""
        known = self.before | self.learned()
        return sum(digest in known for digest in digests)

    def learned(self) -> frozenset[str]:
        """The digests of the training split."""
        return frozenset(row.digest for row in self.rows if row.split == "train" and row.digest)

    def changes(self, now: ImageList) -> list[str]:
        """Lines about the differences to a newer list, such as ``2 added, such as cat/9.jpg``."""
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
        """Lines that name identical images in several splits or classes."""
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
        """Number of images in each split."""
        return Counter(row.split for row in self.rows)

    def write(self, path: Path) -> None:
        """Write the list as CSV, atomically; an earlier list, which checkpoints may refer to, is renamed."""
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
    """Read the list from a file; None if there is no file.

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
    """Find the list of this fingerprint in the folder of a checkpoint or the two above it; None if it is missing."""
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
    """The files of lists in a folder, with earlier ones."""
    return [path for name in (IMAGES, EARLIER) for path in folder.glob(name)]


def check_unchanged(kept: ImageList | None, now: ImageList | None, accept: bool, where: Path) -> tuple[str, ...]:
    """Lines about changes of the images since a run began in the folder `where`.

    Raises:
        UserError: the images have changed and `accept` is not set, or the classes have changed.
    """
    if kept is None or now is None:
        return ()
    changes = kept.changes(now)
    if fixed := kept.classes() != now.classes():  # they are the outputs of the network
        names = quoted(sorted(kept.classes() ^ now.classes(), key=natural))
        changes.append(f"classes are added or gone, {names}")
    if changes and not (accept and not fixed):
        accepting = "" if fixed else ", give --accept-changes to go on with them as they are,"
        raise UserError(
            f"the images have changed since {where} began: {'; '.join(changes)}: bring them back{accepting} or start "
            "anew with --overwrite"
        )
    return tuple(f"changed since the run began: {change}" for change in changes)
