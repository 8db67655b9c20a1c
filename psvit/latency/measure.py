"""Measure the median seconds for a batch through networks or their parts, in turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from psvit.engine.hardware import check_dtype, cpu_threads, fresh_compiler, resolve_device
from psvit.engine.memory import keep_freed_memory
from psvit.errors import UserError, one_line
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.timing import MIN_SECONDS, Stopwatch, interleave
from psvit.models.fold import for_inference

Call = tuple[Hashable, Callable[[], object]]
"""The name (a text or an Arch) of a timing, and the call to time."""

Networks = Mapping[Any, Callable[[], Any]]
"""Functions that build the networks, by name."""


def measure_networks(
    networks: Networks,
    config: LatencyConfig,
    device: str | torch.device,
    threads: int | None = None,
    skip: bool = False,
) -> dict[Any, float]:
    """Median seconds for a batch through each network, in turns; all are in memory at once.

    Args:
        networks: of psvit or timm, each at its own image size.
        config: batch, number format, mode and rounds.
        device: as `resolve_device` takes it.
        threads: CPU threads; by default what torch chooses.
        skip: leave out networks that cannot be built or run, instead of raising.

    Raises:
        UserError: a device, number format or mode is not available, or a network cannot run.
    """
    where = resolve_device(str(device))
    check_dtype(where, config.latency_dtype)
    with measuring(config, threads):
        return race(network_calls(networks, config, where, skip), config, where, skip)


def network_calls(
    networks: Networks, config: LatencyConfig, device: torch.device, skip: bool = False
) -> Iterator[Call]:
    """Yield the call to time for each network as one would serve it: one batch."""
    for name, build in networks.items():
        try:
            network = build()
            sides = (config.latency_batch, *network.pretrained_cfg["input_size"])
            images = torch.randn(sides).to(device, getattr(torch, config.latency_dtype))
            served = for_inference(network, device, images.dtype)
        except (UserError, RuntimeError) as error:  # no such network, no memory
            if skip:
                continue
            raise error if isinstance(error, UserError) else _refusal(name, error, config, device) from error
        yield name, inference(served, (images,), config)


def inference(part: Callable[..., object], inputs: Sequence[Any], config: LatencyConfig) -> Callable[[], object]:
    """A call of `part` without gradients, compiled if the config says so."""
    run = torch.compile(part, dynamic=False) if config.latency_mode == "compile" else part

    def infer() -> None:
        with torch.inference_mode():
            run(*inputs)

    return infer


def race(calls: Iterable[Call], config: LatencyConfig, device: torch.device, skip: bool = False) -> dict[Any, float]:
    """Median seconds of each call over the rounds; in a round every call has one turn.

    Args:
        calls: the calls to time.
        config: number of rounds; the rest is for messages.
        device: the device of the calls.
        skip: leave out calls that fail.

    Raises:
        UserError: a call failed, unless `skip` is set.
    """

    watches = {name: Stopwatch(call, device, MIN_SECONDS) for name, call in calls}
    for name, watch in list(watches.items()):
        try:
            watch.warm(2)
        except RuntimeError as error:  # no memory, no kernel, no compiler
            if not skip:
                raise _refusal(name, error, config, device) from error
            del watches[name]
    medians = {}
    for name, timings in zip(watches, interleave(list(watches.values()), config.latency_rounds), strict=True):
        if not isinstance(timings, Exception):
            medians[name] = statistics.median(timings)
        elif not skip:
            raise _refusal(name, timings, config, device) from timings
    return medians


def _refusal(name: Hashable, error: Exception, config: LatencyConfig, device: torch.device) -> UserError:
    return UserError(
        f"the latency of {name} cannot be measured on {device} in {config.latency_dtype}, {config.latency_mode}: "
        f"{one_line(error, kind=True)}; choose another --latency-batch, --latency-dtype or --latency-mode"
    )


@contextmanager
def measuring(config: LatencyConfig, threads: int | None) -> Iterator[None]:
    """Set threads, keep freed memory, reset the compiler; restore the caller's random state at the end."""
    keep_freed_memory(largest=True)
    gc.collect()
    compiler = fresh_compiler() if config.latency_mode == "compile" else nullcontext()
    with cpu_threads(threads), torch.random.fork_rng(devices=[]), compiler:
        try:
            yield
        finally:
            keep_freed_memory()  # the caller may train
