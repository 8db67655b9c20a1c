"""A study that is killed or stopped and resumed is the uninterrupted one."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_studies import STUDY, TRIALS, check_equal, made, words
from tiny import Cli, start

from psvit.errors import StoppedError
from psvit.studies.study_folder import RESULTS

pytestmark = pytest.mark.usefixtures("threads_kept")

LONG = {**STUDY, "data": {**STUDY["data"], "limit": 240}, "recipe": {"epochs": 4, "batch_size": 8}}  # 30 steps an epoch


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long study, without interruption."""
    return made(tmp_path_factory.mktemp("uninterrupted") / "study", LONG)


def until(reached: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait, minutes on a machine that has other things to do."""
    end = time.monotonic() + 600
    while not reached():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.005)


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that one has started, and those that these have."""
    found, new = [], [process.pid]
    while new:
        pid = new.pop()
        path = Path(f"/proc/{pid}/task/{pid}/children")
        try:
            own = [int(word) for word in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            own = []
        found += own
        new += own
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def in_the_midst(folder: Path) -> bool:
    """Whether a training is finished, and another has saved a state."""
    return all(any(folder.glob(f"*/*/seed-*/{name}")) for name in ("trial.json", "state.pt"))  # looks into none of them


@pytest.fixture
def running(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The long study on two processes, in a group of its own."""
    process = start(*words(tmp_path / "study", LONG), "--jobs", "2", start_new_session=True)
    yield process
    for pid in (process.pid, *children(process)):  # only where the test has failed
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(
    running: "subprocess.Popen[str]", cli: Cli, tmp_path: Path, uninterrupted: Path, here: None
) -> None:
    until(lambda: in_the_midst(tmp_path / "study"), running)
    started = children(running)
    assert len(started) >= 2
    running.kill()
    running.communicate()
    until(lambda: not any(map(alive, started)))  # the workers end with their parent
    assert not (tmp_path / "study" / RESULTS).exists()
    cli.ok(*words(tmp_path / "study", LONG), "--resume")
    check_equal(tmp_path / "study", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C at the start", "SIGTERM"])
def test_stopped_and_resumed_is_uninterrupted(
    how: str, running: "subprocess.Popen[str]", cli: Cli, tmp_path: Path, uninterrupted: Path, here: None
) -> None:
    at_the_start = how == "Ctrl-C at the start"
    until(lambda: len(children(running)) >= 2 if at_the_start else in_the_midst(tmp_path / "study"), running)
    started = children(running)
    if how == "SIGTERM":
        running.terminate()
    else:  # a terminal's Ctrl-C reaches the whole group
        os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 2
    assert said == f"psvit: stopped, all is kept in {tmp_path / 'study'}: go on with --resume\n"
    until(lambda: not any(map(alive, started)))
    assert len(list((tmp_path / "study").rglob("trial.json"))) < len(TRIALS)
    cli.ok(*words(tmp_path / "study", LONG), "--resume")
    check_equal(tmp_path / "study", uninterrupted)


def test_a_stopped_search_and_training_have_not_failed_and_are_resumed_as_uninterrupted(
    cli: Cli, tmp_path: Path, finished: Path, briefly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    def first(tasks: Sequence[Callable[[], Any]], *_: object) -> None:
        for task in tasks[:2]:  # the search, and a training
            with pytest.raises(StoppedError) as error:
                task()
            stopped.append(str(error.value))
        raise StoppedError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("psvit.studies.task_runner.work_all", first)
        patch.setattr("psvit.engine.interrupts.Interrupt.requested", lambda self, accelerator: True)
        assert "stopped, all is kept in" in cli.refused(*words(tmp_path / "study"))
    assert [line.split(", saved")[0] for line in stopped] == ["stopped at step 1 of 3", "stopped at step 1 of 6"]
    assert not (tmp_path / "study" / RESULTS).exists()
    cli.ok(*words(tmp_path / "study"), "--resume")
    check_equal(tmp_path / "study", finished)
