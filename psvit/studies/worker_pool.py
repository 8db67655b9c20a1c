"""Tasks in processes of their own, several at a time, which stop with the one that started them. No torch."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Thread
from typing import Any

from psvit.errors import StoppedError, UserError, one_line
from psvit.files import FullDiskError, full_disk

Task = Callable[[], Any]
"""Something to do; it can be pickled, as can what it returns."""

POLL = 0.1
"""Seconds between two looks at the processes."""

PATIENCE = 60.0
"""Seconds in which a process that is asked to stop may save its state."""


class DiedError(UserError):
    """The process of a task died; `number` is the task's, from 0."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the process of task {number + 1} died: was it out of memory?")
        self.number = number


def work_all(
    tasks: Sequence[Task],
    jobs: int,
    done: Callable[[int, Any], None],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Do all tasks, `jobs` at a time, each in a process of its own.

    Args:
        tasks: what to do, in this order.
        jobs: processes at a time.
        done: takes the number of each task that is finished, and what it returned, or the UserError that it raised.
        stopped: whether the user wants to stop. The running tasks then get a SIGTERM, save their state and end.

    Raises:
        StoppedError: the user stopped, or a task was stopped by a signal.
        DiedError: the process of a task died.
        OSError, FullDiskError: a task met one.
        RuntimeError: a task failed otherwise.
    """
    todo = list(enumerate(tasks))
    running: dict[int, _Process] = {}
    try:
        while todo or running:
            while todo and len(running) < jobs:
                number, task = todo.pop(0)
                running[number] = _Process(task)
            if stopped():
                raise StoppedError("stopped")
            time.sleep(POLL)
            for number in [number for number, process in running.items() if process.has_ended()]:
                done(number, running.pop(number).result(number))
    finally:
        for process in running.values():
            process.ask_to_stop()
        for process in running.values():
            process.end()


class _Process:
    """A process that does one task. Its own session keeps a terminal's Ctrl-C from it: it is this process's to act."""

    def __init__(self, task: Task) -> None:
        self.answer = TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-P", "-c", f"from psvit.studies.worker_pool import work; work({os.getpid()})"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with TemporaryFile() as question:
            pickle.dump(task, question)
            question.seek(0)
            self.process = subprocess.Popen(
                command, stdin=question, stdout=self.answer, start_new_session=True, env=environment
            )

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def result(self, number: int) -> Any:
        """What the task returned, or its UserError; other errors are raised."""
        if self.process.returncode == -signal.SIGTERM:  # before it was ready to save anything
            raise StoppedError("stopped")
        try:
            self.answer.seek(0)
            value = pickle.load(self.answer)
        except (EOFError, pickle.UnpicklingError) as error:
            raise DiedError(number) from error
        finally:
            self.answer.close()
        if isinstance(value, RuntimeError):
            raise RuntimeError(f"task {number + 1} failed\n{value}")
        if isinstance(value, (StoppedError, FullDiskError, OSError)):  # not the failure of this task alone
            raise value
        return value

    def ask_to_stop(self) -> None:
        self.process.terminate()

    def end(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.process.kill()
        self.process.wait()
        self.answer.close()


def work(parent: int) -> None:
    """Do the task on standard input, and write its outcome to standard output: what a process of `work_all` runs.

    Args:
        parent: the process that started it. When that is killed, this one ends too, since a study that is resumed
            would train the same network again beside it.
    """

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what the task prints is no part of the answer
        pickle.dump(outcome(pickle.load(sys.stdin.buffer)), answer)


def outcome(task: Task) -> Any:
    """What a task returned, or its error, in a form that can be pickled; RuntimeError holds a traceback."""
    try:
        return task()
    except (StoppedError, KeyboardInterrupt) as error:
        return StoppedError(str(error) or "stopped")
    except UserError as error:
        return (FullDiskError if isinstance(error, FullDiskError) else UserError)(str(error))
    except OSError as error:
        if reason := full_disk(error):
            return FullDiskError.of(error.filename or "the study", reason)
        return OSError(one_line(error, kind=True, limit=1000))
    except BaseException:
        return RuntimeError(traceback.format_exc())
