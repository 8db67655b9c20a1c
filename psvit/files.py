"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from psvit.errors import UserError


def check_writable(folder: Path, given: str) -> None:
    """Refuse a folder in which nothing can be written, before the work whose results go there.

    Args:
        folder: it need not be there yet; nothing is left in it, and it is not made.
        given: what the user gave, as ``--output runs/train``.

    Raises:
        UserError: nothing can be written there, and why.
    """
    there = folder
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if there.is_dir():
            TemporaryFile(dir=there).close()
            return
        reason = f"{there} is a file"
    except OSError as error:  # no right, a full disk, a name that is too long, or a file system of the kernel's
        reason = f"no file can be made in {there}: {error.strerror or error}"
    raise UserError(f"{given} cannot be written ({reason}): name another place")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; what was written there takes its place at the end, or nothing does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def _replace_folder(new: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Mend what a killed process left of `replacing` `path`: half-written files, a folder between its two renamings."""
    old = path.with_name(f".{path.name}.old")
    if old.is_dir():
        shutil.rmtree(old) if path.exists() else old.rename(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
