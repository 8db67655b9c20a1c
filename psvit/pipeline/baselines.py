"""The networks that a run or a study compares, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from psvit.arch import cost
from psvit.arch.arch import Arch, image_sides, parse_genotype
from psvit.arch.model_config import ModelConfig, TimmModel
from psvit.arch.quantities import parse_macs
from psvit.arch.variants import paper_arch, with_changes
from psvit.data.datasets import Data
from psvit.engine.open_model import timm_macs
from psvit.errors import UserError
from psvit.models.build import build_timm, check_tokens
from psvit.models.macs import count_macs
from psvit.pipeline.run_config import CompareConfig


def baselines(
    config: CompareConfig, data: Data, given: Mapping[str, ModelConfig], macs: float | None = None
) -> dict[str, ModelConfig]:
    """The networks to compare, by name, each scaled to the same MACs.

    Args:
        config: the names, and what differs from the default network.
        data: gives the image size, channels and classes.
        given: networks used as they are, by name.
        macs: MACs of the others; by default config.macs, or those of the default network.

    Raises:
        UserError: an unknown name, or MACs that a network cannot reach.
    """
    shape = (data.img_size, data.in_chans, len(data.classes))
    base = paper_arch(data.img_size)
    head_dim = base.head_dim if config.head_dim is None else config.head_dim
    changes = {"head_dim": head_dim, "patch_size": config.patch_size}
    genotype = base.genotype if config.genotype is None else config.genotype
    base = with_changes(base, genotype=genotype, widths=_widths(base, genotype), **changes)
    if macs is None:
        macs = cost.macs(base, *shape) if config.macs is None else parse_macs(config.macs)
    return {name: given[name] if name in given else baseline(name, base, data, macs) for name in config.models}


def baseline(
    name: str, base: Arch, data: Data, macs: float | None, changes: Mapping[str, Any] | None = None
) -> ModelConfig:
    """A network by its name in comparisons, scaled to given MACs.

    Args:
        name: deit, deit12, psvit_1d, psvit_2d, a genotype, or a model of timm (only ResNets are scaled).
        base: the network called psvit_2d; the others take its patches and widths.
        data: gives the image size, channels and classes.
        macs: MACs to scale to; None for no scaling.
        changes: other fields of `Arch` to change.

    Raises:
        UserError: an unknown name, or MACs that the network cannot reach.
    """
    sequence = replace(base, pooling="1d", class_token=True, windows=())
    archs = {
        "deit": sequence.plain(),
        "deit12": replace(sequence.plain(), genotype="A" * 12),
        "psvit_1d": sequence,
        "psvit_2d": base,
    }
    if name not in archs and not set(name) <= set("AS-"):
        if changes:
            raise UserError(f"{name} is a model of timm, which has no {next(iter(changes))}: leave it out")
        return _scaled_timm(name, macs, data)
    arch = archs.get(name) or replace(base, genotype=name, widths=_widths(base, name))
    arch = with_changes(arch, **{"head_dim": base.head_dim, **dict(changes or {})})
    check_tokens(arch, data.img_size)
    if macs is not None:
        arch = cost.scale_to(arch, macs, data.img_size, data.in_chans, len(data.classes))
    return ModelConfig(arch)


def _widths(base: Arch, genotype: str) -> tuple[int, ...]:
    """The widths of `base` for the stages of `genotype`; additional stages repeat the last width."""
    stages = len(parse_genotype(genotype))
    return (*base.widths, *[base.widths[-1]] * stages)[:stages]


def _scaled_timm(name: str, target: float | None, data: Data) -> ModelConfig:
    """A ResNet of timm, its channels scaled to the target MACs; any other model of timm as it is."""
    shape: dict[str, Any] = {"img_size": data.img_size, "in_chans": data.in_chans, "num_classes": len(data.classes)}
    input_size = (data.in_chans, *image_sides(data.img_size))
    if target is None or not name.startswith("resnet"):
        config = ModelConfig(TimmModel(name))
        timm_macs(config, input_size, len(data.classes))  # raises before hours of training if it cannot run
        return config

    def channels(unit: int) -> dict[str, Any]:  # unit: eighths of a channel, for finer steps
        return {"channels": [round(unit * 2**stage / 8) for stage in range(4)]}

    @cache
    def macs(unit: int) -> int:
        return count_macs(lambda: build_timm(name, **channels(unit), **shape), input_size)

    low, high = 16, 32
    while macs(high) < target:  # from below, since wide networks are slow to build
        low, high = high, 2 * high
    while high - low > 1:  # bisection: MACs grow with the channels
        middle = (low + high) // 2
        low, high = (middle, high) if macs(middle) < target else (low, middle)
    nearest = min((low, high), key=lambda unit: abs(macs(unit) - target))
    if abs(macs(nearest) / target - 1) > 0.02:
        raise cost.UnreachableError(
            f"{name} comes no closer to {target / 1e6:.4g} M MACs than {macs(nearest) / 1e6:.4g} M"
        )
    return ModelConfig(TimmModel(name), model_args=channels(nearest))
