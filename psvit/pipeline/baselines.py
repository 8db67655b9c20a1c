"""The networks that a run or a study compares, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from psvit.arch import cost
from psvit.arch.arch import ATTEND, Arch, image_sides, parse_genotype
from psvit.arch.model_config import ModelConfig, TimmModel
from psvit.arch.quantities import parse_macs
from psvit.arch.variants import default_arch, paper_arch, with_changes
from psvit.data.datasets import Data
from psvit.engine.open_model import timm_macs
from psvit.errors import UserError
from psvit.models.build import build_timm, check_tokens
from psvit.models.macs import count_macs
from psvit.pipeline.run_config import CONTENDERS, CompareConfig, is_ours

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})


def baselines(
    config: CompareConfig, data: Data, given: Mapping[str, ModelConfig], macs: float | None = None
) -> dict[str, ModelConfig]:
    """The networks to compare, by name, each scaled to the same MACs.

    Args:
        config: the names, and what differs from the networks made by hand.
        data: gives the image size, channels and classes.
        given: networks used as they are, by name.
        macs: MACs of the others; by default config.macs, or those of psvit_plus.

    Raises:
        UserError: an unknown name, or MACs that a network cannot reach.
    """
    fields = ("genotype", "patch_size", "head_dim")
    changes = {name: value for name in fields if (value := getattr(config, name)) is not None}
    if macs is None and config.macs is not None:
        macs = parse_macs(config.macs)
    if macs is None:
        shape = (data.img_size, data.in_chans, len(data.classes))
        macs = cost.macs(contender("psvit_plus", data.img_size, changes), *shape)
    return {
        name: given[name] if name in given else baseline(name, data, macs, changes if is_ours(name) else {})
        for name in config.models
    }


def baseline(
    name: str, data: Data, macs: float | None, changes: Mapping[str, Any] = NO_CHANGES, paper: Arch | None = None
) -> ModelConfig:
    """A network by its name in comparisons, scaled to given MACs.

    Args:
        name: one of `CONTENDERS`, a genotype, or a model of timm (only ResNets are scaled).
        data: gives the image size, channels and classes.
        macs: MACs to scale to; None for no scaling.
        changes: other fields of `Arch`.
        paper: as in `contender`.

    Raises:
        UserError: an unknown name, or MACs that the network cannot reach.
    """
    if not is_ours(name):
        if changes:
            raise UserError(f"{name} is a model of timm, which has no {next(iter(changes))}: leave it out")
        return _scaled_timm(name, macs, data)
    if name not in CONTENDERS:
        changes, name = {**changes, "genotype": name}, "psvit_2d"
    arch = contender(name, data.img_size, changes, paper)
    check_tokens(arch, data.img_size)
    if macs is not None:
        arch = cost.scale_to(arch, macs, data.img_size, data.in_chans, len(data.classes))
    return ModelConfig(arch)


def contender(
    name: str, img_size: cost.ImgSize, changes: Mapping[str, Any] = NO_CHANGES, paper: Arch | None = None
) -> Arch:
    """The Arch of one of `CONTENDERS`, before it is scaled.

    ``psvit_plus`` and ``plain_twin`` (its stem and layers, no pooling between them and no sharing) begin from
    `default_arch`; the others, which keep to the paper, from `paper`.

    Args:
        name: of the network.
        img_size: side of the images, or (height, width), in pixels.
        changes: other fields of `Arch`; of a genotype, deit and plain_twin take the depth, and additional stages
            repeat the last width.
        paper: the network called psvit_2d; by default `paper_arch`.

    Raises:
        UserError: changes that do not fit.
    """
    changes = dict(changes)
    base = default_arch(img_size) if name in ("psvit_plus", "plain_twin") else paper or paper_arch(img_size)
    if (genotype := changes.pop("genotype", None)) is not None:
        stages = len(parse_genotype(genotype))
        widths = (*base.widths, *[base.widths[-1]] * stages)[:stages]
        base = with_changes(base, genotype=genotype, widths=widths, head_dim=base.head_dim)
    arch = {
        "deit": deit_of(base),
        "deit12": replace(deit_of(base), genotype=12 * ATTEND),
        "psvit_1d": replace(base, pooling="1d", class_token=True, windows=()),
        "plain_twin": base.plain(),
    }.get(name, base)
    return with_changes(arch, **{"head_dim": arch.head_dim, **changes})


def deit_of(arch: Arch) -> Arch:
    """The DeiT of the same depth, patches and first width."""
    deit = replace(arch, pooling="1d", class_token=True, windows=(), stem="patch", mlp="plain")
    return replace(deit.plain(), mlp_ratio=Arch.mlp_ratio)


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
