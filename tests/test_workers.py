"""Tasks done by other processes: stopped, failed, died."""

import math
import multiprocessing
import os
import signal
from functools import partial
from typing import Any

import pytest

from psvit.studies import worker_pool as workers
from psvit.studies.worker_pool import DiedError, StoppedError, work_all


def test_every_task_is_done_by_other_processes() -> None:
    found: dict[int, Any] = {}
    work_all([partial(math.sqrt, 4), os.getpid, partial(math.sqrt, 9)], 2, found.__setitem__)
    assert (found[0], found[2]) == (2, 3)
    assert found[1] != os.getpid()
    work_all([], 2, found.__setitem__)
    assert multiprocessing.active_children() == []


BEYOND_REACH = """
import signal, time
from psvit.studies.worker_pool import StoppedError
time.sleep(0.5)  # as while torch is imported
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
end = time.monotonic() + 30
while not heard and time.monotonic() < end:
    time.sleep(0.01)
if heard:
    raise StoppedError("stopped at step 1")
"""


def test_a_request_to_stop_reaches_a_task_that_is_not_ready_yet() -> None:
    done: list[int] = []
    with pytest.raises(StoppedError):
        work_all(
            [partial(exec, BEYOND_REACH, {}), os.getpid], 1, lambda number, value: done.append(number), lambda: True
        )
    assert done == [], "it was heard, and no other was begun"
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("error", ["StoppedError('at step 1')", "KeyboardInterrupt"])
def test_a_task_that_was_stopped_stops_the_work_and_has_not_failed(error: str) -> None:
    """A signal to the whole group may reach a task before the process that asks whether it was stopped."""
    found: dict[int, Any] = {}
    halted = partial(exec, f"from psvit.studies.worker_pool import StoppedError\nraise {error}", {})
    with pytest.raises(StoppedError):
        work_all([partial(math.sqrt, 4), halted, partial(math.sqrt, 9)], 1, found.__setitem__)
    assert found == {0: 2}
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_told() -> None:
    found: dict[int, Any] = {}
    with pytest.raises(DiedError, match=r"the process of task 2 died: was it out of memory\?"):
        work_all([partial(math.sqrt, 4), partial(os._exit, 0), partial(math.sqrt, 9)], 1, found.__setitem__)
    assert found == {0: 2}
    assert multiprocessing.active_children() == []


def test_a_task_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"task 1 failed\nTraceback(.|\n)*invalid literal"):
        work_all([partial(int, "x")], 1, lambda number, value: None)
    with pytest.raises(OSError, match=r"FileNotFoundError: .*/no/such/file"):
        work_all([partial(open, "/no/such/file")], 1, lambda number, value: None)
    assert multiprocessing.active_children() == []


def test_workers_do_not_keep_the_parents_signals_blocked() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    work_all([os.getpid], 1, lambda number, value: None)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert workers.STOPS == (signal.SIGINT, signal.SIGTERM)
