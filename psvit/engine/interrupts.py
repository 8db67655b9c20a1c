"""Ctrl-C and SIGTERM: a training stops after its step, and is saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator

from psvit.errors import StoppedError

PATIENCE = 1.0
"""Seconds within which a second Ctrl-C counts as the first: torchrun passes on what the terminal has sent already."""


class InterruptedTrainingError(StoppedError):
    """The user stopped a training; its state is saved."""

    def __init__(self, folder: Path, step: int, total_steps: int) -> None:
        super().__init__(f"stopped at step {step} of {total_steps}, saved in {folder}: go on with --resume")


class AskedToStop(KeyboardInterrupt):
    """The user or the system asks to stop where nothing has to be ended first."""


class Interrupt:
    """Whether the user (Ctrl-C) or the system (SIGTERM) has asked to stop; the loop looks after each step."""

    def __init__(self) -> None:
        self.asked: float | None = None
        self.waits = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            if self.waits:
                raise AskedToStop
        elif now - self.asked > PATIENCE:  # the second time, at once
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self, accelerator: Accelerator) -> Iterator[None]:
        """Stop within, where a process alone waits for images, which may never come.

        Raises:
            AskedToStop: it was asked to, before or within.
        """
        self.waits = accelerator.num_processes == 1
        try:
            if self.waits and self.asked is not None:
                raise AskedToStop
            yield
        finally:
            self.waits = False

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked: all of them have to stop after the same step."""
        if accelerator.num_processes == 1:
            return self.asked is not None
        asked = torch.tensor(float(self.asked is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum"))


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Turn Ctrl-C and SIGTERM into a request while the block runs; a second one interrupts at once.

    A signal that the caller ignores, as a shell does Ctrl-C for what it starts in the background, stays ignored.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        for number in heard:
            signal.signal(number, interrupt._request)
        yield interrupt
    finally:
        for number in heard:
            signal.signal(number, before[number])
