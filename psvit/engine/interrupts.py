"""On Ctrl-C and SIGTERM a training stops after its step and saves its state."""

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
"""Seconds in which a second Ctrl-C is ignored: torchrun forwards a signal that the terminal has sent already."""


class InterruptedTrainingError(StoppedError):
    """The user stopped a training; its state is saved."""

    def __init__(self, folder: Path, step: int, total_steps: int) -> None:
        super().__init__(f"stopped at step {step} of {total_steps}, saved in {folder}: go on with --resume")


class AskedToStop(KeyboardInterrupt):
    """A request to stop at once, raised while waiting for images."""


class Interrupt:
    """A request to stop by Ctrl-C or SIGTERM, checked by the training loop after each step."""

    def __init__(self) -> None:
        self.asked: float | None = None
        self.waits = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            if self.waits:
                raise AskedToStop
        elif now - self.asked > PATIENCE:  # the second request stops at once
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self, accelerator: Accelerator) -> Iterator[None]:
        """Within the block (waiting for images, which may never come), a single process stops at once.

        Raises:
            AskedToStop: on a request before or within the block.
        """
        self.waits = accelerator.num_processes == 1
        try:
            if self.waits and self.asked is not None:
                raise AskedToStop
            yield
        finally:
            self.waits = False

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process has a request, so that all stop after the same step."""
        if accelerator.num_processes == 1:
            return self.asked is not None
        asked = torch.tensor(float(self.asked is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum"))


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Turn Ctrl-C and SIGTERM into a request while the block runs; a second one interrupts at once.

    Signals ignored by the parent stay ignored, such as Ctrl-C for background jobs of a shell.
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
