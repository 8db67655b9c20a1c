"""Batches from DataLoader, and clear errors when a loading process dies or shared memory is too small."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from psvit.data.samples import Batch, Key
from psvit.errors import UserError, one_line


def load(
    dataset: Dataset[Batch | UserError], keys: Iterable[list[Key]] | None, workers: int, seed: int
) -> Iterator[Batch]:
    """Yield a batch for each list of keys, or all batches of an iterable data set.

    Raises:
        UserError: the data set returned one, a loading process died, or shared memory is full.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,  # the data set returns whole batches
        sampler=keys,
        num_workers=workers,
        collate_fn=_shared,
        worker_init_fn=_ignore_ctrl_c,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else DataLoader would draw from the global generator
    )
    batches = iter(loader)
    if workers:
        _explain_deaths_anywhere()
    while True:
        with _deaths_explained():
            batch = next(batches, None)
        if batch is None:
            return
        if isinstance(batch, UserError):
            raise batch
        yield Batch(batch.images, batch.labels, tuple(batch.unreadable))  # pinning turns the tuple into a list


def _ignore_ctrl_c(worker: int) -> None:
    # Ctrl-C in a terminal reaches the workers too, but training still needs batches up to its checkpoint
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _shared(batch: Any) -> Any:
    """Move a batch to shared memory in the loading process, since DataLoader would hide a failure."""
    if get_worker_info() is None or isinstance(batch, UserError):
        return batch
    try:
        for tensor in _tensors(batch):
            tensor.share_memory_()
    except RuntimeError as error:
        reason = re.sub(r".*?>\W*", "", one_line(error), count=1)  # without the name of torch's file
        return UserError(
            f"the shared memory is too small for the batches of the loading processes ({reason}): give --workers 0, or "
            "enlarge it, as by docker run --shm-size 2g; a run goes on with --resume"
        )
    return batch


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


@contextmanager
def _deaths_explained() -> Iterator[None]:
    """Turn DataLoader's RuntimeError about a dead loading process into one line."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, UserError):  # raised by the handler below, and wrapped by DataLoader
            raise error.__cause__ from None
        how = re.search(r"killed by signal: [^.]+|exited unexpectedly", str(error))
        if how is None or not str(error).startswith("DataLoader worker"):
            raise
        way_out = "enlarge the shared memory" if "Bus error" in how[0] else "see whether the memory is full"
        raise UserError(
            f"a loading process died ({how[0]}): {way_out}, or give fewer --workers, or 0; a run goes on with --resume"
        ) from error


def _explain_deaths_anywhere() -> None:
    """Wrap torch's SIGCHLD handler, which raises in the main thread at any line when a worker dies."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    of_torch = signal.getsignal(signal.SIGCHLD)
    if not callable(of_torch) or not str(getattr(of_torch, "__module__", "")).startswith("torch."):
        return

    def handler(number: int, frame: FrameType | None) -> None:
        with _deaths_explained():
            of_torch(number, frame)

    signal.signal(signal.SIGCHLD, handler)
