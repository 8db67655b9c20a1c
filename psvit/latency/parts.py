"""The seconds that a batch takes, measured: part by part for the table of a space, or whole networks."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import use_fused_attn
from torch import Tensor

from psvit.arch.arch import ATTEND, POOL, SHARE, Arch, image_sides
from psvit.arch.cost import Parts
from psvit.arch.model_config import ModelConfig
from psvit.data.sources import CACHE
from psvit.engine.hardware import check_dtype, cpu_threads, fresh_compiler, machine_info, resolve_device
from psvit.engine.memory import keep_freed_memory
from psvit.engine.open_model import load_checkpoint, open_model
from psvit.errors import UserError, one_line
from psvit.files import write_json
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.table import LatencyTable, part_name, validate
from psvit.latency.timing import MIN_SECONDS, Stopwatch, interleave
from psvit.models.build import build_arch, check_tokens
from psvit.models.psvit import PSViT
from psvit.search.space import Space, bounds

FORMAT = 1
"""Counts up when parts are made or measured in another way: older tables are then measured anew."""

CALIBRATED, VALIDATED = 12, 12
"""Whole networks that fit the scale and the offset, and others that tell how good the fit is."""

SEED = 0
"""Of the draw of these networks."""

Name = str | Arch
"""Of a part, or a whole network."""

Call = tuple[Name, Callable[[], object]]
"""What is timed, and its name."""


def open_table(
    space: Space,
    config: LatencyConfig,
    device: str | torch.device,
    threads: int | None = None,
    say: Callable[[str], None] = print,
    cache: Path | None = None,
) -> LatencyTable:
    """The latency table of a space on a device: read from the cache, else measured, and written there.

    Args:
        space: the networks; their parts are measured.
        config: batch, number format, mode, rounds.
        device: as `resolve_device` takes it.
        threads: CPU threads; by default what torch chooses.
        say: takes lines for the user.
        cache: folder of tables; by default in the user's cache.

    Raises:
        UserError: a device, a number format, a mode or an image size that cannot be had.
    """
    where = resolve_device(str(device))
    check_dtype(where, config.latency_dtype)
    with cpu_threads(threads):
        about = _about(space, config, where)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    path = (cache or CACHE / "latency") / f"{key}.json"
    try:
        table = LatencyTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
        if table.about != about or not _has_figures(table):
            raise ValueError("it is not the table that its name tells")
        say(f"latency table {path}: {table.validation or 'not validated'}")
        return table
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        say(f"the latency table {path} is broken ({one_line(error, kind=True)}): measuring it anew")
    table = replace(_measure(space, config, where, threads, say), about=about)
    try:
        write_json(path, table.to_dict())
    except OSError as error:  # the figures are there all the same
        say(f"the latency table cannot be kept: {one_line(error)}")
    return table


def measure_networks(
    archs: Sequence[Arch],
    space: Space,
    config: LatencyConfig,
    device: str | torch.device,
    threads: int | None = None,
) -> list[float]:
    """Median seconds of a batch of each network; the networks take turns. All are in memory at once.

    Raises:
        UserError: a device, a number format or a mode that cannot be had, or images too small for a network.
    """
    where = resolve_device(str(device))
    check_dtype(where, config.latency_dtype)
    with _measuring(config, threads):
        seconds = _race(_network_calls(archs, space, config, where), config, where)
    return [seconds[arch] for arch in archs]


def _measure(
    space: Space, config: LatencyConfig, device: torch.device, threads: int | None, say: Callable[[str], None]
) -> LatencyTable:
    """Race parts and whole networks in the same rounds, so that a machine which drifts drifts for all alike."""
    archs = _some(space, CALIBRATED + VALIDATED)
    deepest = [choices[-1] for choices in space.widths[: bounds(space.stages)[1]]]
    check_tokens(replace(space.like, genotype=POOL.join(ATTEND * len(deepest)), widths=tuple(deepest)), space.img_size)
    fitted = archs[: max(1, len(archs) * CALIBRATED // (CALIBRATED + VALIDATED))]
    others = archs[len(fitted) :]
    with _measuring(config, threads):
        parts = list(part_calls(space, config, device))
        say(
            f"measuring the latency of {len(parts)} parts and {len(archs)} networks: batch {config.latency_batch}, "
            f"{config.latency_dtype}, {config.latency_mode}, {config.latency_rounds} rounds on {device}"
        )
        seconds = _race([*parts, *_network_calls(archs, space, config, device)], config, device)
    table = LatencyTable({str(name): seconds[name] for name, _ in parts})
    table = table.calibrated(fitted, [seconds[arch] for arch in fitted])
    if others:
        table = replace(table, validation=validate(table, others, [seconds[arch] for arch in others]))
    judged = table.validation or "not validated, the space has one network"
    say(f"latency: {table.scale:.3f} × the parts {1000 * table.offset:+.3f} ms; {judged}")
    return table


def _some(space: Space, number: int) -> list[Arch]:
    """So many different networks of the space, or all if there are no more."""
    rng = random.Random(SEED)
    if space.count() <= number:
        archs = list(space.enumerate())
        rng.shuffle(archs)
        return archs
    found: dict[Arch, None] = {}
    while len(found) < number:
        found[space.sample(rng)] = None
    return list(found)


def part_calls(space: Space, config: LatencyConfig, device: torch.device) -> Iterator[Call]:
    """A batch through each part, as it will be timed. The parts are cut from networks, so they are what runs there."""
    dtype, batch = getattr(torch, config.latency_dtype), config.latency_batch
    parts = Parts(space.like, bounds(space.stages)[1], space.img_size)

    def network(genotype: str, *widths: int) -> Any:
        arch = replace(space.like, genotype=genotype, widths=widths)
        return PSViT(arch, space.img_size, space.in_chans, space.num_classes).to(device, dtype).eval()

    def numbers(*shape: int) -> Tensor:
        return torch.randn(batch, *shape).to(device, dtype)

    def part(call: Callable[..., object], inputs: Sequence[Any], *name: object) -> Call:
        return part_name(*name), _infer(call, inputs, config)

    for stage, choices in enumerate(space.widths[: len(parts.tokens)]):
        tokens = parts.tokens[stage]
        for width in choices:
            single, x = network(ATTEND, width), numbers(tokens, width)
            if stage == 0:
                images = numbers(space.in_chans, *image_sides(space.img_size))
                yield part(single.embed, [images], "embed", width)
            yield part(single.stages[0].blocks[0], [x, None], ATTEND, stage, width)
            yield part(_head_of(single), [x], "head", stage, width)
            if space.max_share:
                attend, share = network(ATTEND + SHARE, width).stages[0].blocks
                yield part(attend, [x, None], "explicit", stage, width)
                attn = numbers(width // space.like.head_dim, tokens, tokens).softmax(-1)
                yield part(share, [x, attn], SHARE, stage, width)
            for before in space.widths[stage - 1] if stage else ():
                if before <= width:
                    pool = network(ATTEND + POOL + ATTEND, before, width).stages[1].pool
                    inputs = [numbers(parts.tokens[stage - 1], before), parts.grids[stage - 1]]
                    yield part(pool, inputs, "pool", stage, before, width)


def _head_of(network: PSViT) -> Callable[[Tensor], Tensor]:
    return lambda x: network.forward_head(network.norm(x))


def _network_calls(archs: Sequence[Arch], space: Space, config: LatencyConfig, device: torch.device) -> Iterator[Call]:
    """A batch through each network, as it will be timed."""
    for arch in dict.fromkeys(archs):
        network = build_arch(arch, space.img_size, in_chans=space.in_chans, num_classes=space.num_classes)
        yield arch, _network_call(network, config, device)


def measure_checkpoints(
    folders: Mapping[str, Path], config: LatencyConfig, device: torch.device, threads: int | None = None
) -> dict[str, float]:
    """Seconds of a batch through the network of each checkpoint folder, measured in turns; any model of timm.

    Args:
        folders: checkpoint folders, by the name that the figures go by.
        config: batch, number format, mode and rounds.
        device: where.
        threads: on a CPU; by default torch's choice.

    Raises:
        UserError: a broken checkpoint, or a network that the device cannot run so.
    """
    calls = ((name, _network_call(load_checkpoint(folder), config, device)) for name, folder in folders.items())
    with _measuring(config, threads):
        return {str(name): seconds for name, seconds in _race(calls, config, device).items()}


def measure_models(
    models: Mapping[str, tuple[ModelConfig, Mapping[str, Any]]],
    config: LatencyConfig,
    device: torch.device,
    threads: int | None = None,
) -> dict[str, float | None]:
    """Seconds of a batch through each network, measured in turns; any model of timm, with random weights.

    Args:
        models: networks and the img_size, in_chans and num_classes of their images, by the name that the figures go by.
        config: batch, number format, mode and rounds.
        device: where.
        threads: on a CPU; by default torch's choice.

    Returns:
        None of a network that cannot be built, or that the device cannot run so.
    """

    def calls() -> Iterator[Call]:
        for name, (model, shape) in models.items():
            with suppress(UserError, RuntimeError):  # no such network, no memory
                yield name, _network_call(open_model(model, **shape), config, device)

    with _measuring(config, threads):
        found = _race(calls(), config, device, skip=True)
    return {name: found.get(name) for name in models}


def _network_call(network: Any, config: LatencyConfig, device: torch.device) -> Callable[[], object]:
    """A batch through a network of the image size that it is made for."""
    sides = (config.latency_batch, *network.pretrained_cfg["input_size"])
    images = torch.randn(sides).to(device, getattr(torch, config.latency_dtype))
    return _infer(network.to(device, images.dtype).eval(), (images,), config)


def _infer(part: Callable[..., object], inputs: Sequence[Any], config: LatencyConfig) -> Callable[[], object]:
    run = torch.compile(part, dynamic=False) if config.latency_mode == "compile" else part

    def infer() -> None:
        with torch.inference_mode():
            run(*inputs)

    return infer


def _race(calls: Iterable[Call], config: LatencyConfig, device: torch.device, skip: bool = False) -> dict[Name, float]:
    """Median seconds of each call over the rounds, in each of which every call has one turn.

    Args:
        calls: what is timed.
        config: rounds; the rest for messages.
        device: where.
        skip: leave out calls that fail.

    Raises:
        UserError: a call failed, and is not left out.
    """

    def refusal(name: Name, error: Exception) -> UserError:
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
def _measuring(config: LatencyConfig, threads: int | None) -> Iterator[None]:
    """So many threads, memory that stays, a compiler that holds every part; the caller's random numbers are left."""
    keep_freed_memory()
    gc.collect()
    compiler = fresh_compiler() if config.latency_mode == "compile" else nullcontext()
    with cpu_threads(threads), torch.random.fork_rng(devices=[]), compiler:
        yield


def _about(space: Space, config: LatencyConfig, device: torch.device) -> dict[str, Any]:
    """All that the figures depend on, as it comes back from JSON."""
    info = machine_info(device)
    like = {name: value for name, value in space.like.to_dict().items() if name not in ("genotype", "widths")}
    return {
        "format": FORMAT,
        **{name: info[name] for name in ("torch", "timm", "threads", "float32_matmul_precision")},
        "device": device.type,
        "device_name": info["device_name"] or info["cpu"],
        "fused_attention": bool(use_fused_attn()),
        **asdict(config),
        "like": like,
        # all of the space, since the networks that calibrate are drawn from it
        **{name: list(bounds(getattr(space, name))) for name in ("depth", "stages")},
        **{name: getattr(space, name) for name in ("max_share", "earliest_pool", "in_chans", "num_classes")},
        "img_size": list(image_sides(space.img_size)),
        "widths": [list(choices) for choices in space.widths],
        "networks": [CALIBRATED, VALIDATED, SEED],
    }


def _has_figures(table: LatencyTable) -> bool:
    return all(isinstance(figure, float) for figure in (table.scale, table.offset, *table.seconds.values()))
