"""A PostgreSQL of the tests' own, where its programs are installed (Debian: postgresql)."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pwd import getpwnam
from typing import Any

import pytest

PASSWORD = "s3cret"


@contextmanager
def server() -> Iterator[str]:
    """The URL of a server that ends with the block; skips the test where there is none, or no driver."""
    pytest.importorskip("psycopg", exc_type=ImportError)
    if (programs := _programs()) is None:
        pytest.skip("PostgreSQL is not installed")
    other: dict[str, Any] = {}
    if os.geteuid() == 0:  # which the server refuses to run as
        nobody = getpwnam("nobody")
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}
    folder = Path(tempfile.mkdtemp(prefix="psvit-", dir="/tmp"))  # root's own temporary folder is closed to others
    try:
        (folder / "password").write_text(PASSWORD)
        if other:
            shutil.chown(folder, other["user"])
        words = [programs / "initdb", "-D", folder / "data", "-U", "psvit", "--pwfile", folder / "password"]
        words += ["--auth=scram-sha-256", "--no-locale", "--encoding=UTF8", "--no-sync"]
        subprocess.run(words, check=True, cwd=folder, stdout=subprocess.DEVNULL, **other)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
        with (folder / "log").open("w+") as log:
            process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, **other)
            try:
                url = f"postgresql://psvit:{PASSWORD}@127.0.0.1:{port}/postgres"
                _wait_for(url, process, folder / "log")
                yield url
            finally:
                process.send_signal(signal.SIGINT)  # its fast end, which waits for no client
                process.wait()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path | None:
    """The folder of initdb and postgres; Debian keeps it out of PATH, but psql in."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if shutil.which("psql") else []
    return next((folder for folder in reversed(folders) if (folder / "initdb").is_file()), None)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    for _ in range(600):
        assert process.poll() is None, log.read_text()
        with suppress(psycopg.OperationalError):
            return psycopg.connect(url).close()
        time.sleep(0.05)
    raise AssertionError(log.read_text())
