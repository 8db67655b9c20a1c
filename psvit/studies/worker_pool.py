"""A pool that runs each task in a new process; the processes end with their parent. No torch."""

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
"""A picklable function with a picklable result."""

POLL = 0.1
"""Seconds between two checks of the processes."""

PATIENCE = 60.0
"""Seconds for a process to save its state after a request to stop."""


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
    """Run all tasks, `jobs` at a time, each in a new process.

    Args:
        tasks: started in this order.
        jobs: processes at a time.
        done: called with the index of each finished task and its result, or the UserError that it raised.
        stopped: returns whether the user wants to stop. Running tasks then get a SIGTERM, save their state and end.

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
    """A process for one task, in its own session: a terminal's Ctrl-C goes only to the parent."""

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
        """The task's result or its UserError; other errors are raised."""
        if self.process.returncode == -signal.SIGTERM:  # stopped before it could save anything
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
        if isinstance(value, (StoppedError, FullDiskError, OSError)):  # other tasks would fail too
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
    """Entry point of a process of `work_all`: run the task on standard input, write its outcome to standard output.

    Args:
        parent: id of the parent process. If it is killed, this process ends too: a resumed study would train the same
            network at the same time.
    """

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # printed lines go to stderr
        pickle.dump(outcome(pickle.load(sys.stdin.buffer)), answer)


def outcome(task: Task) -> Any:
    """The result of a task, or its error in picklable form; RuntimeError holds a traceback."""
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
