"""Settings and data -> the space around the default network, the budget, and the default network in that space."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil, floor, lcm, log
from typing import Any

from accelerate import Accelerator

from psvit.arch import cost
from psvit.arch.arch import ATTEND, Arch
from psvit.arch.stem_convolutions import MIN_STEM_CHANNELS, stem_multiple
from psvit.arch.steps import elements_of
from psvit.arch.variants import SMALL, default_arch
from psvit.data.datasets import Data
from psvit.engine.accelerator import by_the_first
from psvit.search.budget import Budget
from psvit.search.feasible_set import FeasibleSet
from psvit.search.journal import Name
from psvit.search.measured import member_seconds
from psvit.search.search_config import SearchConfig
from psvit.search.space import Shape, Space

STEPS = 600
"""The default network is widened in this many steps, from a 64th of its widths to 64 times them."""

Widths = tuple[tuple[int, ...], ...]


def build_space(
    config: SearchConfig, data: Data, accelerator: Accelerator | None = None, widths: Widths = ()
) -> tuple[Space, Budget]:
    """Build the space and the budget from the settings.

    Args:
        config: settings of the search.
        data: gives the size of the images and the classes.
        accelerator: the device; needed for a latency budget.
        widths: choices for each stage; by default from the settings.

    Raises:
        UserError: an invalid budget or space.
    """
    chosen, shape = config.space, (data.img_size, data.in_chans, len(data.classes))
    small = max(data.img_size) <= SMALL
    like = default_arch(data.img_size)
    given: dict[str, Any] = {"head_dim": chosen.head_dim or (like.head_dim if small else 32)}
    if chosen.patch_size:
        given |= {"patch_size": chosen.patch_size, "stride": chosen.patch_size}
    if chosen.pooling == "1d":
        given |= {"pooling": "1d", "class_token": True}
    if chosen.stems:
        given["stem"] = chosen.stems[0]
    whole = tuple(max(1, round(width / given["head_dim"])) * given["head_dim"] for width in like.widths)
    like = replace(like, widths=whole, **given)
    depth = chosen.depth or ((4, 8) if small else (8, 12))
    plain = like.plain()
    budget = Budget.parse(config.search.budget, cost.macs(plain, *shape), cost.params(plain, *shape))
    if not config.search.budget:
        budget = Budget(macs=cost.macs(like, *shape))
    choices = widths or tuple(tuple(map(int, text.split(","))) for text in chosen.stage_widths)
    if not choices:
        scaled = _scaled_to(like, budget, shape, config, accelerator)
        choices = width_choices(scaled, chosen.stages[-1], chosen.width_choices)
    space = Space(
        depth, chosen.stages, chosen.max_share, chosen.earliest_pool, choices,
        chosen.stems, chosen.mlps, chosen.mlp_ratios,
        replace(like, genotype=ATTEND, widths=like.widths[:1]), *shape,
    )  # fmt: skip
    return space, budget


def default_member(feasible: FeasibleSet) -> Arch:
    """The default network in the space: its genotype, at the widths within the budget that keep its proportions best.

    Of its elements, or the nearest that the space has. Without such a network, the one that uses most of the budget.
    """
    space, default = feasible.space, default_arch(feasible.space.img_size)
    stem, mlp, ratio = elements_of(default)
    elements = min(space.elements, key=lambda one: (one.stem != stem, one.mlp != mlp, abs(log(one.mlp_ratio / ratio))))
    stages, found = len(default.widths), []
    for widths in product(*space.widths) if len(space.widths) >= stages else ():
        arch = Name(default.genotype, widths[:stages], *elements).arch(space.like)
        if arch in feasible:
            factors = [width / own for width, own in zip(arch.widths, default.widths, strict=True)]
            found.append((round(max(factors) / min(factors), 2), -feasible.costs(arch)[0], arch.widths))
    return Name(default.genotype, min(found)[2], *elements).arch(space.like) if found else feasible.nearest()


def _scaled_to(like: Arch, budget: Budget, shape: Shape, config: SearchConfig, accelerator: Accelerator | None) -> Arch:
    """The default network as wide as the budget allows, in its proportions as far as whole heads allow."""
    macs = budget.macs or float("inf")
    if budget.latency is not None and accelerator is not None:
        here = accelerator
        seconds = by_the_first(here, lambda: member_seconds([like], shape, config, here)[0])
        macs = min(macs, cost.macs(like, *shape) * budget.latency / seconds)

    def fits(arch: Arch) -> bool:
        return cost.macs(arch, *shape) <= macs and cost.params(arch, *shape) <= (budget.params or float("inf"))

    widened = _widened(like, 0.0)
    for step in range(STEPS):
        if not fits(wider := _widened(like, 64 ** (2 * step / STEPS - 1))):
            break
        widened = wider
    return widened


def _widened(like: Arch, factor: float) -> Arch:
    return replace(like, widths=tuple(_whole(like, stage, factor * width) for stage, width in enumerate(like.widths)))


def width_choices(like: Arch, stages: int, count: int) -> tuple[tuple[int, ...], ...]:
    """For each stage, `count` widths around that of `like`, which is one of them.

    They go from 0.5 to 1.5 times its width (2 times in later stages), since pooling and sharing leave MACs for width.
    """
    widths = [*like.widths, *[like.widths[-1]] * stages][:stages]
    if count == 1:
        return tuple((_whole(like, stage, width),) for stage, width in enumerate(widths))
    found = []
    for stage, width in enumerate(widths):
        low, high = 0.5 * width, (1.5 if stage == 0 else 2.0) * width
        steps = [low * (high / low) ** (number / (count - 1)) for number in range(count)]
        nearest = min(range(count), key=lambda number: abs(log(steps[number] / width)))
        steps[nearest] = width
        found.append(tuple(sorted({_whole(like, stage, step) for step in steps})))
    return tuple(found)


def _whole(like: Arch, stage: int, width: float) -> int:
    """The nearest width of whole heads, in the first stage one that fits the stem."""
    unit, least = like.head_dim, 1
    if stage == 0 and like.stem != "patch":
        multiple = stem_multiple(like.stem, like.stride)
        unit, least = lcm(unit, multiple), MIN_STEM_CHANNELS * multiple
    return max(ceil(least / unit), floor(width / unit + 0.5)) * unit
