"""Devices, precision, processes through Accelerate, memory; and randomness that is a function of the step."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import timm.layers
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from timm.models import FeatureHookNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from psvit.engine.machine import resolve_device
from psvit.engine.train_config import Machine
from psvit.errors import UserError, one_line

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds within which a second Ctrl-C counts as the first: torchrun passes on what the terminal has sent already."""

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def open_machine(machine: Machine) -> Accelerator:
    """An Accelerator for the device and precision asked for; under ``accelerate launch`` or ``torchrun``, one of many.

    Raises:
        UserError: a device or a precision that is not there.
    """
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    device = resolve_device(machine.device)
    precision = computed_in(machine)
    if precision == "float16" and device.type != "cuda":
        raise UserError(
            f"--precision float16 works on CUDA only, the device is {device.type}: take bfloat16 or float32"
        )
    if precision == "bfloat16" and not has_bfloat16(device):
        raise UserError(f"--precision bfloat16 is not there on {device.type}: take float32")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if ":" in machine.device:  # else Accelerate gives each process its own
        if processes > 1:
            raise UserError(f"--device {machine.device} is one device for {processes} processes: give --device cuda")
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    # Accelerate holds on to the precision and device of its first use; a second training may want others
    AcceleratorState._reset_state(reset_partial_state=processes == 1)
    return Accelerator(mixed_precision=PRECISIONS[precision], cpu=device.type == "cpu")


def by_the_first(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What the first process makes, for all: measurements differ from process to process."""
    made: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            made[0] = make()
        except UserError as error:  # the others would wait for ever
            made[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(made)
    if made[1] is not None:
        raise UserError(made[1])
    result: T = made[0]
    return result


def computed_in(machine: Machine) -> str:
    """The precision of a training's products: what auto comes to on this machine."""
    return best_precision(resolve_device(machine.device)) if machine.precision == "auto" else machine.precision


def best_precision(device: torch.device) -> str:
    """bfloat16 where the device computes in it natively, else float32."""
    if device.type == "cpu":  # any CPU emulates it; it pays only where the instruction set has it
        return "bfloat16" if _cpu_has("avx512_bf16", "amx_bf16", "bf16") else "float32"
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device can compute in bfloat16 at all."""
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())


def _cpu_has(*features: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            flags = next((line for line in info if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return not set(features).isdisjoint(flags.split())


@contextmanager
def attention_for_training(device: torch.device) -> Iterator[None]:
    """Build networks, timm's too, with explicit attention for a CPU, fused for other devices.

    The backward pass of torch's fused CPU kernel took 73 % of a step in bfloat16 (a plain DeiT at 50 tokens, batch 128,
    one core): with explicit attention, whose numbers are the same, it trained 3.3 times faster.
    """
    fused = timm.layers.use_fused_attn() > 0
    if device.type == "cpu":
        timm.layers.set_fused_attn(False)
    try:
        yield
    finally:
        timm.layers.set_fused_attn(fused)


def recompute_activations(model: nn.Module, name: str) -> None:
    """Have the networks in `model` compute their activations again in the backward pass, by timm's switch for it.

    Args:
        model: a network of psvit or timm, or what is built around one; the rest of it keeps its activations.
        name: what messages call it.

    Raises:
        UserError: there is no such network in it, or one that cannot.
    """
    try:
        if not _switch(model):
            raise AssertionError("it has no gradient checkpointing")
    except (AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{name} cannot compute its activations again ({one_line(error)}): leave out --grad-checkpointing"
        ) from error


def _switch(model: nn.Module) -> bool:
    if isinstance(model, FeatureHookNet) and "body" in model:  # its own switch passes over a network kept whole
        return _switch(model["body"])
    if callable(switch := getattr(model, "set_grad_checkpointing", None)):
        switch(True)
        return True
    return sum(_switch(child) for child in model.children()) > 0  # every child, not only the first that can


@contextmanager
def norms_at_rest(model: nn.Module) -> Iterator[None]:
    """Batch norms of `model` that run within, in training, leave what they remember of batches as it is.

    For a backward pass that computes activations again: they have seen the batch in the forward pass.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    seen: list[Tensor | None] = [
        None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, seen, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make all randomness of one step (drop path, mixup, dropout) a function of (seed, step, rank).

    Hence no generator's state has to be kept: a run resumed at any step draws what the uninterrupted one drew.
    """
    state = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


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
