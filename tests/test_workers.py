"""Tasks in processes of their own: stopped, failed, died."""

import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from psvit.errors import StoppedError, UserError
from psvit.studies.worker_pool import DiedError, work_all


def script(code: str) -> Any:
    """A task that runs Python code."""
    return partial(exec, code, {})


def test_every_task_is_done_by_another_process() -> None:
    found: dict[int, Any] = {}
    work_all([partial(math.sqrt, 4), os.getpid, os.getppid, script("print('noise')")], 2, found.__setitem__)
    assert (found[0], found[2], found[3]) == (2, os.getpid(), None)
    assert found[1] != os.getpid()
    work_all([], 2, found.__setitem__)


SAVES = """
import signal, time
from pathlib import Path
from psvit.errors import StoppedError, UserError
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
Path({ready!r}).touch()
while not heard:
    time.sleep(0.01)
Path({saved!r}).touch()
raise StoppedError("stopped at step 1")
"""


def test_a_request_to_stop_lets_a_task_save_its_state(tmp_path: Path) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    done: list[int] = []
    tasks = [script(SAVES.format(ready=str(ready), saved=str(saved))), os.getpid]
    with pytest.raises(StoppedError):
        work_all(tasks, 1, lambda number, value: done.append(number), ready.exists)
    assert saved.exists()
    assert done == [], "no other was begun"


def test_a_process_that_is_not_ready_yet_is_stopped_too() -> None:
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        work_all([script("import time\ntime.sleep(100)")], 1, lambda number, value: None, lambda: True)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "how", ["raise StoppedError('at step 1')", "raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGTERM)"]
)
def test_a_task_that_was_stopped_stops_the_work_and_has_not_failed(how: str) -> None:
    found: dict[int, Any] = {}
    halted = script(f"import os, signal\nfrom psvit.errors import StoppedError\n{how}")
    with pytest.raises(StoppedError):
        work_all([partial(math.sqrt, 4), halted, partial(math.sqrt, 9)], 1, found.__setitem__)
    assert found == {0: 2}


def test_a_process_that_dies_is_told() -> None:
    found: dict[int, Any] = {}
    with pytest.raises(DiedError, match=r"the process of task 2 died: was it out of memory\?"):
        work_all([partial(math.sqrt, 4), partial(os._exit, 0), partial(math.sqrt, 9)], 1, found.__setitem__)
    assert found == {0: 2}


@pytest.mark.parametrize(
    ("task", "kind", "told"),
    [
        (partial(int, "x"), RuntimeError, r"task 1 failed\nTraceback(.|\n)*invalid literal"),
        (partial(open, "/no/such/file"), OSError, "FileNotFoundError: .*/no/such/file"),
        (script("raise OSError(28, 'No space left on device', 'runs/x')"), UserError, "the disk of runs/x is full"),
    ],
)
def test_an_error_that_is_not_the_tasks_alone_ends_the_work(task: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        work_all([task], 1, lambda number, value: None)
