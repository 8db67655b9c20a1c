"""A disk that is full at any moment ends a command in one line, and what was saved goes on to bitwise the same."""

import errno
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny import RUN, Cli, config, log, same_weights

from psvit.engine import run_folder
from psvit.files import FullDiskError, full_disk, opened_for_torch, replacing, write_json
from psvit.search.storage import one_line_errors
from psvit.studies.worker_pool import outcome
from psvit.tasks.classification.classify import train

pytestmark = pytest.mark.usefixtures("one_thread")

SEARCH = ["search", *RUN[1 : RUN.index("--models")]]
MOMENTS = [pytest.param(moment, marks=[pytest.mark.slow] if moment in (1, 3, 4, 8) else []) for moment in range(1, 9)]


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system writes no file beyond this size: the full disk of somebody who is not root."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def broken_off(moment: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The disk is full from the file of this number on; the names of the files up to it."""
    told: list[str] = []
    whole = run_folder.replacing

    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        told.append(path.name)
        with whole(path) as temporary:
            if len(told) >= moment:
                no_space()
            yield temporary

    for module in ("psvit.engine.run_folder", "psvit.engine.checkpoints"):
        monkeypatch.setattr(f"{module}.replacing", full)
    return told


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_goes_on_as_if_there_had_been_room(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"save_every": 2}
    train(config(tmp_path / "whole", run=run))
    with monkeypatch.context() as patch:
        told = broken_off(moment, patch)
        with pytest.raises(FullDiskError, match=r"/run is full \(No space left on device\): make room and give"):
            train(config(tmp_path / "run", run=run))
    assert len(told) == moment
    train(config(tmp_path / "run", run={**run, "resume": True}))
    for name in ("best", "last"):
        assert same_weights(tmp_path / "run" / name, tmp_path / "whole" / name)
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


@pytest.mark.parametrize("moment", [3, "journal"])
def test_a_search_goes_on_as_if_there_had_been_room(
    moment: int | str, run_folder: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if moment == "journal":
            patch.setattr("psvit.search.journal.os.fsync", no_space)
        else:
            broken_off(int(moment), patch)
        assert "is full (No space left on device): make room" in cli.refused(*SEARCH, "--output", tmp_path / "run")
    cli.ok(*SEARCH, "--output", tmp_path / "run", "--resume")
    for name in ("arch.json", "front.csv", "supernet/supernet.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run_folder / "search" / name).read_bytes()


def save_state(path: Path) -> None:
    with replacing(path) as temporary, opened_for_torch(temporary) as file:
        torch.save({"weights": torch.zeros(30000)}, file)


def save_config(path: Path) -> None:
    write_json(path, list(range(30000)))


@pytest.mark.parametrize("save", [save_state, save_config])
@pytest.mark.parametrize("size", [1, 4096, 50000])
def test_what_was_saved_before_stays_whole(save: Callable[[Path], None], size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with largest_file(size), pytest.raises(FullDiskError, match=rf"{tmp_path} is full \(File too large\)"):
        save(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    save(path)  # and with room it is replaced
    assert path.stat().st_size > 50000


def test_each_library_has_its_own_words_for_a_full_disk() -> None:
    hidden = RuntimeError("unexpected pos 64 vs 0")  # as torch, in handling the first
    hidden.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert full_disk(hidden) == "No space left on device"
    rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert full_disk(rust) == "No space left on device"
    assert full_disk(OSError(errno.EDQUOT, "x")) == os.strerror(errno.EDQUOT)
    assert full_disk(sqlite3.OperationalError("database or disk is full")) == "database or disk is full"
    for other in (OSError(errno.EACCES, "no right"), RuntimeError("(os error 13)"), OSError("broken")):
        assert full_disk(other) is None


def test_a_storage_and_a_study_tell_of_it() -> None:
    url = "sqlite:////x/evolution.db"
    with pytest.raises(FullDiskError, match=r"the disk of /x/evolution.db is full"), one_line_errors(url):
        no_space()

    def task() -> None:
        raise FullDiskError.of("runs", "No space left on device")

    for one in (task, no_space):  # it ends the study, and is no failure of one training
        assert isinstance(outcome(one), FullDiskError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_what_is_said_goes_to_a_full_disk() -> None:
    words = [sys.executable, "-m", "psvit", "show", "AS-A"]
    with open("/dev/full", "w") as full:
        said = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
        assert said.returncode == 2
        assert said.stderr.startswith("psvit: the disk of the output is full (No space left on device): make room")
        assert said.stderr.count("\n") == 1
        assert subprocess.run(words, stdout=full, stderr=full).returncode == 2
