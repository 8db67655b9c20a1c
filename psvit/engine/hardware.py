"""The hardware: devices, number formats, CPU, and the versions of libraries."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch

import psvit
from psvit.engine.train_config import Dtype
from psvit.errors import UserError, one_line


def resolve_device(name: str) -> torch.device:
    """The torch device; ``"auto"`` is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: no such device; the message lists the available ones.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device(next((kind for kind in ("cuda:0", "mps") if kind in there), "cpu"))
    if (name if name != "cuda" else "cuda:0") not in there:
        raise UserError(f"--device {name} is not on this machine: torch {torch.__version__} finds {', '.join(there)}")
    return torch.device(name)


def best_precision(device: torch.device) -> str:
    """bfloat16 if the device supports it natively, else float32."""
    if device.type == "cpu":  # any CPU can emulate it, but only native instructions are faster
        native = {"avx512_bf16", "amx_bf16", "bf16"} & set(_cpuinfo("flags", "Features").split())
        return "bfloat16" if native else "float32"
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device can compute in bfloat16 at all."""
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())


def check_dtype(device: torch.device, dtype: Dtype) -> None:
    """Try a matrix product in `dtype`.

    Raises:
        UserError: the device cannot compute in it.
    """
    try:
        ones = torch.ones(8, 8, device=device, dtype=getattr(torch, dtype))
        torch.mm(ones, ones)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"--dtype {dtype} does not work on device {device}: {one_line(error, kind=True)}") from error


def versions() -> dict[str, str]:
    """Versions of psvit, torch, timm and Python."""
    return {
        "psvit": psvit.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def machine_info(device: torch.device) -> dict[str, Any]:
    """Versions, CPU, device and threads, to be published with measurements."""
    return {
        **versions(),
        "platform": platform.platform(),
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _cpuinfo(*names: str) -> str:
    """The first value of one of `names` in /proc/cpuinfo; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Raise the limit of torch.compile: by default the ninth model of one class would silently run eager."""
    import torch._dynamo as dynamo  # slow to import

    limits = ("recompile_limit", "cache_size_limit")  # the second before torch 2.6
    limit = next(name for name in limits if hasattr(dynamo.config, name))
    dynamo.reset()
    try:
        with dynamo.config.patch({limit: 10_000}):
            yield
    finally:
        dynamo.reset()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Use `count` CPU threads (None: no change) while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
