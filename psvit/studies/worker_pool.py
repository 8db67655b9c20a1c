"""Tasks on several processes at a time, which stop and resume with the one that started them. No torch."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context, parent_process, resource_tracker, set_start_method
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from psvit.errors import UserError, one_line
from psvit.files import FullDiskError, full_disk

Task = Callable[[], Any]
"""Something to do; it can be pickled, as can what it returns."""

POLL = 0.2
"""Seconds between two looks at whether the user wants to stop."""

STOPS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(UserError):
    """The user, or the system, stopped the work; what was done is kept. A task that is stopped raises it too."""


class DiedError(UserError):
    """The process of a task died; `number` is the task's, from 0."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the process of task {number + 1} died: was it out of memory?")
        self.number = number


class _Worker:
    """A process that does one task after the other. It may have children, such as those that load images."""

    def __init__(self) -> None:
        context = get_context("spawn")  # a fork would copy torch's threads half
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs,), daemon=False)
        resource_tracker.ensure_running()  # its start would lift the mask below
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # inherited: they wait until it is ready
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def stop(self) -> None:
        if self.process.pid is not None and self.process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)


def work_all(
    tasks: Sequence[Task],
    jobs: int,
    done: Callable[[int, Any], None],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Do all tasks, `jobs` at a time, each in a process of its own kind.

    Args:
        tasks: what to do, in this order.
        jobs: processes.
        done: is told the number of each task that is finished, and what it returned: a UserError of the task's comes as
            a value.
        stopped: whether the user wants to stop. Tasks under way are then asked to (SIGTERM), and waited for; so they
            are once a task says that it was stopped, since a signal to the whole group may reach it first.

    Raises:
        StoppedError: the user stopped, or somebody a task.
        DiedError: the process of a task died.
        OSError, FullDiskError: a task met one.
        RuntimeError: a task failed otherwise.
    """
    todo = list(enumerate(tasks))[::-1]
    workers: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int]] = {}
    asked = halted = False
    try:
        workers += [_Worker() for _ in range(min(jobs, len(tasks)))]
        idle = list(workers)
        while todo or busy:
            while idle and todo:
                worker = idle.pop()
                number, task = todo.pop()
                busy[worker.pipe] = (worker, number)
                with suppress(BrokenPipeError):  # it died: its pipe tells so below
                    worker.pipe.send(task)
            if not asked and (halted or stopped()):
                asked = True
                todo.clear()
                for worker, _ in busy.values():
                    worker.stop()
            for pipe in wait(list(busy), timeout=POLL):
                assert isinstance(pipe, Connection)
                worker, number = busy.pop(pipe)
                value = _received(pipe, number)
                if isinstance(value, StoppedError):
                    halted = True
                    todo.clear()
                else:
                    done(number, value)
                idle.append(worker)
        if asked or halted:
            raise StoppedError("stopped")
    finally:
        for worker in workers:
            worker.pipe.close()
            if busy:
                worker.stop()
        for worker in workers:
            worker.process.join(timeout=60)
            worker.process.kill()


def _received(pipe: Connection, number: int) -> Any:
    try:
        kind, value = pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        raise DiedError(number) from error
    if kind == "failed":
        raise RuntimeError(f"task {number + 1} failed\n{value}")
    if isinstance(value, (OSError, FullDiskError)):  # no failure of this task alone
        raise value
    return value


def _work(pipe: Connection) -> None:
    _ask_until_heard()
    set_start_method(None, force=True)  # what loads a training's images starts as it does in `psvit train`
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
            pipe.send(_outcome(task))
        except (EOFError, OSError):  # the parent wants no more
            return
        signal.setitimer(signal.ITIMER_REAL, 0)


def _outcome(task: Task) -> tuple[str, Any]:
    try:
        return "done", task()
    except StoppedError as error:
        return "done", StoppedError(str(error))
    except KeyboardInterrupt:  # asked twice, by the group's signal and by the parent: a training then ends at once
        return "done", StoppedError("stopped")
    except UserError as error:
        return "done", (FullDiskError if isinstance(error, FullDiskError) else UserError)(str(error))
    except OSError as error:
        if reason := full_disk(error):
            return "done", FullDiskError.of(error.filename or "the study", reason)
        return "done", OSError(one_line(error, kind=True, limit=1000))
    except BaseException:
        return "failed", traceback.format_exc()


def _ask_until_heard() -> None:
    """Only a training under way, which saves its state, takes a SIGTERM (training.machine); else it is sent again.

    Ctrl-C reaches the whole group, but is the parent's to pass on: a training would take both for "at once".
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.signal(signal.SIGTERM, lambda number, frame: signal.setitimer(signal.ITIMER_REAL, POLL))
    signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _end_with_the_parent() -> None:
    """Nobody would take the results: a study that goes on would train the same network again beside this one."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
