"""Measure the latency table of a family of networks on a device: parts, calibration, cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from timm.layers import use_fused_attn
from torch import Tensor

from psvit.arch.arch import ATTEND, POOL, SHARE, Arch, MlpKind, image_sides
from psvit.arch.cost import Parts
from psvit.arch.stem_convolutions import Stem
from psvit.arch.steps import Elements
from psvit.data.sources import CACHE
from psvit.engine.hardware import check_dtype, cpu_threads, machine_info, resolve_device
from psvit.errors import UserError, one_line
from psvit.files import write_json
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.measure import Call, inference, measuring, network_calls, race
from psvit.latency.table import LatencyTable, part_name, validate
from psvit.models.build import build_arch
from psvit.models.fold import for_inference
from psvit.models.psvit import PSViT

FORMAT = 4
"""Version of how parts are built and measured; tables of other versions are measured again."""

WHOLE = 24
"""Number of whole networks to measure: half to fit scale and offset, half to validate the fit."""


@dataclass(frozen=True)
class Family:
    """The networks whose parts are measured.

    Args:
        like: their common settings.
        widths: the choices for each stage.
        shares: whether layers share attention.
        img_size: side or (height, width) in pixels.
        in_chans: image channels.
        num_classes: classes.
        elements: to choose from.
    """

    like: Arch
    widths: tuple[tuple[int, ...], ...]
    shares: bool
    img_size: int | tuple[int, int]
    in_chans: int
    num_classes: int
    elements: tuple[Elements, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, equal for equal parts."""
        chosen = ("genotype", "widths", *Elements._fields)
        like = {name: value for name, value in self.like.to_dict().items() if name not in chosen}
        return {**asdict(self), "like": like, "img_size": image_sides(self.img_size)}


def open_table(
    family: Family,
    networks: Sequence[Arch],
    config: LatencyConfig,
    device: str | torch.device,
    threads: int | None = None,
    say: Callable[[str], None] = print,
    cache: Path | None = None,
) -> LatencyTable:
    """The latency table of a family on a device, from the cache or measured.

    Args:
        family: the networks whose parts are measured.
        networks: up to `WHOLE` distinct networks of the family, to calibrate and validate the table.
        config: batch, number format, mode, rounds.
        device: as `resolve_device` takes it.
        threads: CPU threads; by default what torch chooses.
        say: takes lines for the user.
        cache: folder of tables; by default in the cache of the user.

    Raises:
        UserError: a device, number format or mode is not available.
    """
    where = resolve_device(str(device))
    check_dtype(where, config.latency_dtype)
    with cpu_threads(threads):
        about = _about(family, networks, config, where)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    path = (cache or CACHE / "latency") / f"{key}.json"
    try:
        table = LatencyTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
        if table.about != about or not all(
            isinstance(number, float) for number in (table.scale, table.offset, *table.seconds.values())
        ):
            raise ValueError("it is not the table that its name tells")
        say(f"latency table {path}: {table.validation or 'not validated'}")
        return table
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        say(f"the latency table {path} is broken ({one_line(error, kind=True)}): measuring it anew")
    table = replace(_measure(family, networks, config, where, threads, say), about=about)
    try:
        write_json(path, table.to_dict())
    except (OSError, UserError) as error:  # the table is still usable
        say(f"the latency table cannot be kept: {one_line(error)}")
    return table


def _measure(
    family: Family,
    networks: Sequence[Arch],
    config: LatencyConfig,
    device: torch.device,
    threads: int | None,
    say: Callable[[str], None],
) -> LatencyTable:
    """Measure parts and whole networks in the same rounds, so that drift of the machine affects all alike."""
    half = max(1, len(networks) // 2)
    with measuring(config, threads):
        parts = list(part_calls(family, config, device))
        say(
            f"measuring the latency of {len(parts)} parts and {len(networks)} networks: batch {config.latency_batch}, "
            f"{config.latency_dtype}, {config.latency_mode}, {config.latency_rounds} rounds on {device}"
        )
        builds = {
            arch: partial(build_arch, arch, family.img_size, in_chans=family.in_chans, num_classes=family.num_classes)
            for arch in networks
        }
        seconds = race([*parts, *network_calls(builds, config, device)], config, device)
    fitted, others = networks[:half], networks[half:]
    table = LatencyTable({str(name): seconds[name] for name, _ in parts})
    table = table.calibrated(fitted, [seconds[arch] for arch in fitted])
    if others:
        table = replace(table, validation=validate(table, others, [seconds[arch] for arch in others]))
    judged = table.validation or "not validated, the space has one network"
    say(f"latency: {table.scale:.3f} × the parts {1000 * table.offset:+.3f} ms; {judged}")
    return table


def part_calls(family: Family, config: LatencyConfig, device: torch.device) -> Iterator[Call]:
    """Yield the call to time for each part: one batch. The parts are taken from real networks."""
    dtype, batch, like = getattr(torch, config.latency_dtype), config.latency_batch, family.like
    parts = Parts(like, len(family.widths), family.img_size)

    def network(genotype: str, *widths: int, stem: Stem = "patch", mlp: MlpKind = "plain", ratio: float = 1) -> Any:
        arch = replace(like, genotype=genotype, widths=widths, stem=stem, mlp=mlp, mlp_ratio=ratio)
        model = PSViT(arch, family.img_size, family.in_chans, family.num_classes)
        return for_inference(model, device, dtype)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(batch, *shape).to(device, dtype)

    def part(call: Callable[..., object], inputs: Sequence[Any], *name: object) -> Call:
        return part_name(*name), inference(call, inputs, config)

    images = numbers(family.in_chans, *image_sides(family.img_size))
    for stem, width in product(dict.fromkeys(one.stem for one in family.elements), family.widths[0]):
        yield part(network(ATTEND, width, stem=stem).embed, [images], "embed", stem, width)
    for stage, choices in enumerate(family.widths):
        tokens, grid = parts.tokens[stage], parts.grids[stage]
        for width in choices:
            x, attn = numbers(tokens, width), numbers(width // like.head_dim, tokens, tokens).softmax(-1)
            yield part(_head_of(network(ATTEND, width)), [x], "head", stage, width)
            for mlp, ratio in dict.fromkeys((one.mlp, one.mlp_ratio) for one in family.elements):
                place = stage, width, mlp, f"{ratio:g}"
                attend = network(ATTEND, width, mlp=mlp, ratio=ratio).stages[0].blocks[0]
                yield part(attend, [x, None, grid], ATTEND, *place)
                if family.shares:
                    explicit, share = network(ATTEND + SHARE, width, mlp=mlp, ratio=ratio).stages[0].blocks
                    yield part(explicit, [x, None, grid], "explicit", *place)
                    yield part(share, [x, attn, grid], SHARE, *place)
            for before in family.widths[stage - 1] if stage else ():
                if before <= width:
                    pool = network(ATTEND + POOL + ATTEND, before, width).stages[1].pool
                    inputs = [numbers(parts.tokens[stage - 1], before), parts.grids[stage - 1]]
                    yield part(pool, inputs, "pool", stage, before, width)


def _head_of(network: PSViT) -> Callable[[Tensor], Tensor]:
    return lambda x: network.forward_head(network.norm(x))


def _about(family: Family, networks: Sequence[Arch], config: LatencyConfig, device: torch.device) -> dict[str, Any]:
    """Everything that the measurement depends on, as JSON gives it back."""
    info = machine_info(device)
    about = {
        "format": FORMAT,
        **{name: info[name] for name in ("torch", "timm", "threads", "float32_matmul_precision")},
        "device": device.type,
        "device_name": info["device_name"] or info["cpu"],
        "fused_attention": bool(use_fused_attn()),
        **asdict(config),
        **family.to_dict(),
        "networks": [str(arch) for arch in networks],
    }
    return dict(json.loads(json.dumps(about)))
