"""Digests of files. They are kept in the user's cache, so an unchanged file is read only once. No torch here."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import lru_cache
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from psvit.data.sources import CACHE

MANY = 5000
"""Reading this many files takes seconds, so there is a progress bar."""

CHUNK = 256
"""Files per task of a thread: a million tasks would take a gigabyte."""

STORE = CACHE / "digests.sqlite"

SETTLED = 2 * 10**9
"""Nanoseconds after which a file counts as written: a later change shows in its times, however coarse they are."""


class _Stamp(NamedTuple):
    """What tells whether a file is as it was: its absolute path, bytes, and times of change in ns."""

    path: str
    size: int
    modified: int
    changed: int


def digests(paths: Sequence[str]) -> list[str]:
    """The digest of the bytes of each file; empty if it cannot be read."""
    stamps = [_stamp(path) for path in paths]
    known = _kept(filter(None, stamps))
    left = [stamp for stamp in stamps if stamp is not None and stamp not in known]
    now = time.time_ns()
    quiet = len(left) < MANY or not Console(stderr=True).is_terminal
    chunks = [left[at : at + CHUNK] for at in range(0, len(left), CHUNK)]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        found = pool.map(lambda chunk: [_digest(stamp) for stamp in chunk], chunks)
        shown = track(found, "reading images", len(chunks), console=Console(stderr=True), transient=True, disable=quiet)
        read = dict(zip(left, (digest for chunk in shown for digest in chunk), strict=True))
    _keep({stamp: digest for stamp, digest in read.items() if digest and now - stamp.changed > SETTLED})
    known.update(read)
    return ["" if stamp is None else known[stamp] for stamp in stamps]


def _stamp(path: str) -> _Stamp | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return _Stamp(os.path.abspath(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _digest(stamp: _Stamp) -> str:
    try:
        return _read(stamp)
    except OSError:
        return ""


@lru_cache(maxsize=2_000_000)
def _read(stamp: _Stamp) -> str:  # a pipeline opens its images for each network, and the store may be of no use
    found = hashlib.blake2b(digest_size=16)
    with open(stamp.path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def _key(stamp: _Stamp) -> bytes:
    return hashlib.blake2b(os.fsencode(stamp.path), digest_size=16).digest()


def _times(stamp: _Stamp) -> str:
    return " ".join(map(str, stamp[1:]))


def _opened() -> sqlite3.Connection:
    STORE.parent.mkdir(parents=True, exist_ok=True)
    store = sqlite3.connect(STORE, timeout=10)
    store.execute("CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, times TEXT, digest TEXT) WITHOUT ROWID")
    return store


def _kept(stamps: Iterable[_Stamp]) -> dict[_Stamp, str]:
    """The digests that are known; none if the store cannot be used."""
    found: dict[_Stamp, str] = {}
    with suppress(sqlite3.Error, OSError), closing(_opened()) as store:
        for stamp in stamps:
            row = store.execute("SELECT times, digest FROM digests WHERE path = ?", (_key(stamp),)).fetchone()
            if row is not None and row[0] == _times(stamp):
                found[stamp] = row[1]
    return found


def _keep(found: Mapping[_Stamp, str]) -> None:
    """Write digests to the store, if it can be used."""
    rows = [(_key(stamp), _times(stamp), digest) for stamp, digest in found.items()]
    with suppress(sqlite3.Error, OSError), closing(_opened()) as store, store:
        store.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
