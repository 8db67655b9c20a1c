"""Atomic writing of files and folders, locks, and errors of a full disk."""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from psvit.errors import UserError, one_line

if sys.platform != "win32":
    import fcntl

LOCK = ".psvit.lock"
PATIENCE = 2.0
"""Seconds to wait for an ending process to release its folder."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk: no space, quota exceeded, file too large."""


class FullDiskError(UserError):
    """A disk is full; files written before are intact, and a run can be resumed."""

    @classmethod
    def of(cls, place: str | Path, reason: str) -> FullDiskError:
        """The error for the disk that holds `place`."""
        return cls(
            f"the disk of {place} is full ({reason}): make room and give the command again, with --resume if it "
            "began a run"
        )


def full_disk(error: BaseException) -> str | None:
    """The reason if an error or one of its causes is a full disk, else None."""
    found: BaseException | None = error
    seen: list[BaseException] = []  # some libraries raise an error from itself
    while found is not None and found not in seen:
        seen.append(found)
        number = re.search(r"\(os error (\d+)\)", str(found))  # the format of Rust libraries
        code = found.errno if isinstance(found, OSError) else int(number[1]) if number else None
        if code in FULL:
            return os.strerror(code)
        if "database or disk is full" in str(found):  # SQLite
            return one_line(found)
        found = found.__cause__ or found.__context__
    return None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raise FullDiskError instead of whatever a library raises when the disk is full while it writes `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library raises its own type
        if reason := full_disk(error):
            raise FullDiskError.of(Path(path).parent, reason) from error
        raise


def check_writable(folder: Path, given: str) -> None:
    """Check, before long work, that its results can be written to `folder`.

    Args:
        folder: need not exist; it is not created.
        given: the flag and its value for the message, for example ``--output runs/train``.

    Raises:
        UserError: `folder` is not writable; the message says why.
    """
    there = folder
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if there.is_dir():
            with TemporaryFile(dir=there) as file:
                file.write(bytes(2**16))  # a full disk can still create empty files
            return
        reason = f"{there} is a file"
    except OSError as error:  # no permission, a name too long, /proc and the like
        if full := full_disk(error):
            raise FullDiskError.of(folder, full) from error
        reason = f"no file can be made in {there}: {error.strerror or error}"
    raise UserError(f"{given} cannot be written ({reason}): name another place")


@contextmanager
def sole_writer(folder: Path, given: str) -> Iterator[None]:
    """Lock a run's folder, so that two processes do not mix their files.

    The lock ends with the process, even when it is killed. filelock uses flock, which data loader processes inherit and
    hold for seconds after a kill. On systems without such locks nothing is locked.

    Args:
        folder: created if needed, and removed again if it stays empty.
        given: the flag and its value for the message, for example ``--output runs/train``.

    Raises:
        UserError: another process holds the lock.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = _held(folder / LOCK, given)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        if lock is not None:
            os.close(lock)
        with suppress(OSError):  # not empty
            for place in made:
                place.rmdir()


def _held(path: Path, given: str) -> int | None:
    """The open lock file once this process holds it; None on systems without locks."""
    waited = time.monotonic() + PATIENCE
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            return None
        with suppress(FileNotFoundError):  # the last holder has just removed the folder
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(lock, 20).decode(errors="replace")
                os.close(lock)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return None
                if time.monotonic() > waited:
                    raise UserError(
                        f"{given} is being written by another psvit (process {holder or 'unknown'}): wait until it has "
                        "ended, or name another place"
                    ) from error
                time.sleep(0.05)
                continue
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                with suppress(OSError):  # a full disk: the next write reports it
                    os.truncate(lock, 0)
                    os.write(lock, str(os.getpid()).encode())
                return lock
            os.close(lock)  # the last holder has just removed the file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file or folder written there replaces `path` at the end, unless an error is raised.

    Raises:
        FullDiskError: the disk is full; `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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


class _Patient(io.RawIOBase):
    """A file that keeps its first error and ignores all later writes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)


@contextmanager
def opened_for_torch(path: Path) -> Iterator[Any]:
    """Open a file for ``torch.save`` and the like; errors in writing are raised only after it returns.

    torch's C++ writer hides such an error behind another one, and sometimes aborts the process.

    Raises:
        OSError: the first error in writing.
    """
    with path.open("wb") as file:
        patient = _Patient(file)
        yield patient
        if patient.error is not None:
            raise patient.error


def recover(path: Path) -> None:
    """Clean up after a process killed within `replacing(path)`: temporary files, a folder renamed halfway."""
    old = path.with_name(f".{path.name}.old")
    if old.is_dir():
        shutil.rmtree(old) if path.exists() else old.rename(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
