"""Where evolution is kept: the storages of Optuna, opened, mended after a kill, and their errors in one line.

Optuna is imported by what uses it: the command line reads the settings, and is to be quick.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit.errors import UserError, one_line
from psvit.files import FullDiskError, full_disk

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage


def check_storage(url: str) -> None:
    """Open a storage and leave it again.

    Raises:
        UserError: it cannot be used; the message hides a password.
    """
    with using(url, Exception):
        open_storage(url)


def open_storage(url: str) -> BaseStorage:
    """The storage of a URL, or of the path of a journal file."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from sqlalchemy.exc import IntegrityError

    if url.startswith("journal://") or "://" not in url:
        path = Path(url.removeprefix("journal://")).resolve()  # Optuna waits for ever at a relative path's stale lock
        lock = JournalFileSymlinkLock(str(path))
        path.open("ab").close()
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock))
    url, options = _driven(url)
    for _ in range(20):
        try:
            return _with_indexes(RDBStorage(url, options))
        except Exception as error:  # another worker may be making the tables this very moment
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(0.2)
    return _with_indexes(RDBStorage(url, options))


def _driven(url: str) -> tuple[str, dict[str, Any]]:
    """The URL with the driver of our extra where it is PostgreSQL's and names none, and the options of its engine."""
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    if url.startswith("sqlite"):
        return url, {"connect_args": {"timeout": 60}}  # it writes for one at a time: wait
    options: dict[str, Any] = {"pool_pre_ping": True}  # servers drop idle connections: look before use
    if url.startswith("postgresql+psycopg") and "connect_timeout" not in url:
        options["connect_args"] = {"connect_timeout": 20}  # psycopg waits for two minutes
    return url, options


def _with_indexes(storage: RDBStorage) -> RDBStorage:
    """`storage` with the indexes that a process killed while it made the tables left out.

    Optuna makes indexes with their table or never, and without that of the studies two could have one name.
    """
    from optuna.storages._rdb.models import BaseModel

    for table in BaseModel.metadata.tables.values():
        for index in table.indexes:
            index.create(storage.engine, checkfirst=True)
    return storage


def _mend(path: Path, begin: bytes = b'{"op_code":') -> None:
    """Drop a line that a killed process cut off, or the next line would be written behind it.

    Raises:
        UserError: the file is no journal of Optuna, so nothing is to be written into it.
    """
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if not begin.startswith(raw[: len(begin)]) or not begin.startswith(raw[whole:][: len(begin)]):
        raise UserError(f"--storage {path} is no journal of Optuna: give another one")
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)


@contextmanager
def using(url: str, *also: type[Exception]) -> Iterator[None]:
    """Work with Optuna, in silence.

    Args:
        url: of the storage.
        also: errors that are the storage's, besides those of databases and files.

    Raises:
        UserError: the storage fails, or its disk is full.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    kinds: tuple[type[Exception], ...] = (SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError, *also)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except kinds as error:
        if reason := full_disk(error):
            raise FullDiskError.of(hidden(url.removeprefix("sqlite:///")), reason) from error
        cause: BaseException = error
        while cause.__cause__ is not None:  # the driver's own words
            cause = cause.__cause__
        way_out = "check it"
        if isinstance(cause, ImportError):
            ours = _driven(url)[0].startswith("postgresql+psycopg:")
            way_out = 'pip install "psvit[postgres]"' if ours else "install its driver"
        message = f"--storage {url} fails ({one_line(cause, kind=True)}): {way_out}, or give another one"
        raise UserError(hidden(message)) from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def hidden(text: str) -> str:
    """The text with stars for the passwords of URLs, behind the user or among the options."""
    return re.sub(r"(password=)[^&\s]+", r"\1***", re.sub(r"(//[^/:@\s]*:)\S+@", r"\1***@", text))
