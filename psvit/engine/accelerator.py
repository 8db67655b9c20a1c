"""Device, precision and processes of a training, through Accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from psvit.engine.hardware import best_precision, has_bfloat16, resolve_device
from psvit.engine.train_config import Machine
from psvit.errors import UserError

T = TypeVar("T")

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def open_machine(machine: Machine) -> Accelerator:
    """An Accelerator for this device and precision, also under ``accelerate launch`` and ``torchrun``.

    Raises:
        UserError: an unavailable device or precision.
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
    if ":" in machine.device:  # otherwise Accelerate gives each process its own device
        if processes > 1:
            raise UserError(f"--device {machine.device} is one device for {processes} processes: give --device cuda")
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    # Accelerate keeps the precision and device of its first use; a second training may use others
    AcceleratorState._reset_state(reset_partial_state=processes == 1)
    return Accelerator(mixed_precision=PRECISIONS[precision], cpu=device.type == "cpu")


def by_the_first(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Call `make` in the first process and return its result in all: measurements differ between processes."""
    made: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            made[0] = make()
        except UserError as error:  # raise it in all processes, else the others would wait forever
            made[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(made)
    if made[1] is not None:
        raise UserError(made[1])
    result: T = made[0]
    return result


def computed_in(machine: Machine) -> str:
    """The precision of a training, with auto resolved for this machine."""
    return best_precision(resolve_device(machine.device)) if machine.precision == "auto" else machine.precision
