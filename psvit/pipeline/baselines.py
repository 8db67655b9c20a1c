"""The networks that a run or a study compares, by the names that comparisons know them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from psvit.arch import cost
from psvit.arch.arch import Arch, image_sides, parse_genotype
from psvit.arch.model_config import ModelConfig, TimmModel
from psvit.arch.quantities import parse_macs
from psvit.arch.variants import default_arch, with_changes
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
        data: for the size of the images.
        given: networks that are taken as they are, by name.
        macs: MACs for the others; by default config.macs, or those of the default network.

    Raises:
        UserError: an unknown name, or MACs that a network cannot have.
    """
    shape = (data.img_size, data.in_chans, len(data.classes))
    base = default_arch(data.img_size)
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
    """A network by the name that comparisons know it by, scaled to given MACs.

    Args:
        name: deit, deit12, psvit_1d, psvit_2d, a genotype, or a model of timm, of which ResNets are scaled.
        base: the network that psvit_2d stands for, and whose patches and widths the others take.
        data: for the size of the images.
        macs: MACs to scale to; None leaves a psvit network as `base` and `changes` make it.
        changes: further fields of `Arch` that differ.

    Raises:
        UserError: an unknown name, or MACs that the network cannot have.
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
    """Those of `base`; further stages are as wide as its last."""
    stages = len(parse_genotype(genotype))
    return (*base.widths, *[base.widths[-1]] * stages)[:stages]


def _scaled_timm(name: str, target: float | None, data: Data) -> ModelConfig:
    """A ResNet of timm with channels for the target MACs; any other model of timm as it is."""
    shape: dict[str, Any] = {"img_size": data.img_size, "in_chans": data.in_chans, "num_classes": len(data.classes)}
    input_size = (data.in_chans, *image_sides(data.img_size))
    if target is None or not name.startswith("resnet"):
        config = ModelConfig(TimmModel(name))
        timm_macs(config, input_size, len(data.classes))  # what cannot run is told before hours of training
        return config

    def channels(unit: int) -> dict[str, Any]:  # in eighths of a channel, since whole ones are coarse steps
        return {"channels": [round(unit * 2**stage / 8) for stage in range(4)]}

    @cache
    def macs(unit: int) -> int:
        return count_macs(lambda: build_timm(name, **channels(unit), **shape), input_size)

    low, high = 16, 32
    while macs(high) < target:  # from below, since wide networks are slow to build
        low, high = high, 2 * high
    while high - low > 1:  # MACs grow with the channels: halve the interval
        middle = (low + high) // 2
        low, high = (middle, high) if macs(middle) < target else (low, middle)
    nearest = min((low, high), key=lambda unit: abs(macs(unit) - target))
    if abs(macs(nearest) / target - 1) > 0.02:
        raise cost.UnreachableError(
            f"{name} comes no closer to {target / 1e6:.4g} M MACs than {macs(nearest) / 1e6:.4g} M"
        )
    return ModelConfig(TimmModel(name), model_args=channels(nearest))
