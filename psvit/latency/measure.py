"""The median seconds that a batch takes, through whole networks or parts of them, measured in turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch

from psvit.engine.hardware import check_dtype, cpu_threads, fresh_compiler, resolve_device
from psvit.engine.memory import keep_freed_memory
from psvit.errors import UserError, one_line
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.timing import MIN_SECONDS, Stopwatch, interleave

Call = tuple[Hashable, Callable[[], object]]
"""What is timed, after its name: a text, or an Arch."""

Networks = Mapping[Any, Callable[[], Any]]
"""What builds each network, by the name of the result."""


def measure_networks(
    networks: Networks,
    config: LatencyConfig,
    device: str | torch.device,
    threads: int | None = None,
    skip: bool = False,
) -> dict[Any, float]:
    """Median seconds of a batch through each network; they take turns, and all are in memory at once.

    Args:
        networks: psvit's or timm's, each at the image size that it is made for.
        config: batch, number format, mode and rounds.
        device: as `resolve_device` takes it.
        threads: CPU threads; by default what torch chooses.
        skip: leave out the networks that cannot be built or run, instead of refusing them.

    Raises:
        UserError: a device, a number format or a mode that cannot be had, or a network that cannot run so.
    """
    where = resolve_device(str(device))
    check_dtype(where, config.latency_dtype)
    with measuring(config, threads):
        return race(network_calls(networks, config, where, skip), config, where, skip)


def network_calls(
    networks: Networks, config: LatencyConfig, device: torch.device, skip: bool = False
) -> Iterator[Call]:
    """A batch through each network, as it will be timed."""
    for name, build in networks.items():
        with suppress(*(UserError, RuntimeError) if skip else ()):  # no such network, no memory
            network = build()
            sides = (config.latency_batch, *network.pretrained_cfg["input_size"])
            images = torch.randn(sides).to(device, getattr(torch, config.latency_dtype))
            yield name, inference(network.to(device, images.dtype).eval(), (images,), config)


def inference(part: Callable[..., object], inputs: Sequence[Any], config: LatencyConfig) -> Callable[[], object]:
    """A call of the part without gradients, compiled where the config asks for it."""
    run = torch.compile(part, dynamic=False) if config.latency_mode == "compile" else part

    def infer() -> None:
        with torch.inference_mode():
            run(*inputs)

    return infer


def race(calls: Iterable[Call], config: LatencyConfig, device: torch.device, skip: bool = False) -> dict[Any, float]:
    """Median seconds of each call over the rounds, in each of which every call has one turn.

    Args:
        calls: what is timed.
        config: rounds; the rest for messages.
        device: where.
        skip: leave out calls that fail.

    Raises:
        UserError: a call failed, and is not left out.
    """

    def refusal(name: Hashable, error: Exception) -> UserError:
        return UserError(
            f"the latency of {name} cannot be measured on {device} in {config.latency_dtype}, "
            f"{config.latency_mode}: {one_line(error, kind=True)}; choose another --latency-batch, --latency-dtype "
            "or --latency-mode"
        )

    watches = {name: Stopwatch(call, device, MIN_SECONDS) for name, call in calls}
    for name, watch in list(watches.items()):
        try:
            watch.warm(2)
        except RuntimeError as error:  # no memory, no kernel, no compiler
            if not skip:
                raise refusal(name, error) from error
            del watches[name]
    medians = {}
    for name, timings in zip(watches, interleave(list(watches.values()), config.latency_rounds), strict=True):
        if not isinstance(timings, Exception):
            medians[name] = statistics.median(timings)
        elif not skip:
            raise refusal(name, timings) from timings
    return medians


@contextmanager
def measuring(config: LatencyConfig, threads: int | None) -> Iterator[None]:
    """So many threads, freed memory kept, an empty compiler; the caller's random numbers stay as they are."""
    keep_freed_memory()
    gc.collect()
    compiler = fresh_compiler() if config.latency_mode == "compile" else nullcontext()
    with cpu_threads(threads), torch.random.fork_rng(devices=[]), compiler:
        yield
