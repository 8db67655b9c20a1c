"""Files are whole or not there, and a run's folder belongs to one process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_studies import STUDY, write
from tiny import MACHINE, RUN, TRAIN, Cli, read

from psvit.errors import UserError
from psvit.files import LOCK, recover, replacing, sole_writer, write_json

HOLD = """
import os, sys, time
from pathlib import Path
from psvit.files import sole_writer
with sole_writer(Path(sys.argv[1]), "it"):
    child = os.fork()
    if child == 0:  # as those that load images, which outlive a killed training by seconds
        os.close(1)
        time.sleep(600)
    print(child, flush=True)
    sys.stdin.read()
    os.kill(child, 9)
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds this folder, and has forked a child."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_a_cut_off_replacement_is_recovered(tmp_path: Path) -> None:
    new, old = tmp_path / "best", tmp_path / ".best.old"
    (tmp_path / ".best.77.tmp").mkdir()
    (tmp_path / ".best.78.tmp").write_text("half")
    old.mkdir()
    (old / "x").write_text("old")
    recover(new)  # killed between the two renamings
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (new / "x").read_text() == "old"
    old.mkdir()
    (old / "x").write_text("older")
    recover(new)  # killed before the old one was deleted
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (new / "x").read_text() == "old"


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "it.json"
    write_json(path, {"ä": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "ä": 1\n}\n'

    def breaks() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks()
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert read(path) == {"ä": 1}
    assert [file.name for file in path.parent.iterdir()] == ["it.json"]


COMMANDS = {
    "train": TRAIN,
    "search": ["search", *RUN[1 : RUN.index("--models")]],
    "run": RUN,
    "study": ["study", "STUDY"],
    "detect": ["detect", "train", "--limit", "8", *MACHINE],
    "segment": ["segment", "train", "--limit", "8", *MACHINE],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_another_process_writes_is_refused(
    command: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psvit.files.PATIENCE", 0.0)
    folder = tmp_path / "run"
    study = write(tmp_path / "study.yaml", STUDY)
    words = [study if word == "STUDY" else word for word in COMMANDS[command]]
    with held(folder) as process:
        for given in ([], ["--overwrite"]):
            said = cli.refused(*words, *given, "--output", folder)
            assert f"--output {folder} is being written by another psvit (process {process.pid})" in said
            assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_folder_is_free_again_when_its_process_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as process:
        process.kill()
        process.wait()
        with sole_writer(folder, "it"):
            (folder / "best").mkdir()
    assert [path.name for path in folder.iterdir()] == ["best"]


def test_a_wait_for_a_process_that_is_ending(tmp_path: Path) -> None:
    with held(tmp_path / "run") as process:
        assert process.stdin is not None
        process.stdin.close()  # it ends, in its own time
        with sole_writer(tmp_path / "run", "it"):
            assert (tmp_path / "run" / LOCK).read_text() == str(os.getpid())


def test_nothing_is_left_of_a_folder_that_nothing_came_into(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "a" / "b", "it"):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match="oh"), sole_writer(tmp_path / "a" / "b", "it"):
        raise UserError("oh")
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
