"""Devices and freed memory of this machine."""

import platform

import pytest
import torch
from small_networks import CPU

from psvit import UserError
from psvit.engine import memory
from psvit.engine.hardware import resolve_device
from psvit.engine.memory import keep_freed_memory, page_faults


def test_resolve_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cuda:0")
    assert resolve_device("cuda").type == "cuda"
    with pytest.raises(UserError, match=r"--device cuda:1 is not on this machine.*cpu, cuda:0"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == CPU
    with pytest.raises(UserError, match="--device mps"):
        resolve_device("mps")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives freed memory back at once")
@pytest.mark.parametrize(("mib", "largest"), [(16, False), (48, True)])
def test_freed_memory_is_kept(mib, largest):
    def faults():
        before = page_faults()
        for _ in range(4):
            _ = [torch.zeros(mib * 2**18).fill_(1) for _ in range(96 // mib)]  # all alive at once
        return page_faults() - before

    keep_freed_memory(largest)
    faults()
    # 98,000 when every block is mapped anew; a system short of memory may take some back meanwhile
    assert min(faults() for _ in range(3)) < 1000
    keep_freed_memory()


def test_where_freed_memory_cannot_be_kept_nothing_happens(monkeypatch):
    def refuse(name):
        raise OSError("no library")

    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    keep_freed_memory()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
