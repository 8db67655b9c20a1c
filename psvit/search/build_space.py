"""Settings and data -> the space around the default network, the budget, and the default network in that space."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import floor
from typing import Any

from accelerate import Accelerator

from psvit.arch import cost
from psvit.arch.arch import ATTEND, Arch
from psvit.arch.variants import SMALL, default_arch
from psvit.data.datasets import Data
from psvit.engine.accelerator import by_the_first
from psvit.errors import UserError
from psvit.search.budget import Budget
from psvit.search.feasible_set import FeasibleSet
from psvit.search.measured import member_seconds
from psvit.search.search_config import SearchConfig
from psvit.search.space import Shape, Space

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
    whole = tuple(max(1, round(width / given["head_dim"])) * given["head_dim"] for width in like.widths)
    like = replace(like, widths=whole, **given)
    depth = chosen.depth or ((4, 8) if small else (12,))
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
        replace(like, genotype=ATTEND, widths=like.widths[:1]), *shape,
    )  # fmt: skip
    return space, budget


def default_member(feasible: FeasibleSet) -> Arch:
    """The default network in the space: its genotype, at the widths within the budget that keep its proportions best.

    Where the space has none, the network that uses most of the budget.
    """
    space, default = feasible.space, default_arch(feasible.space.img_size)
    stages = len(default.widths)
    found = []
    for widths in product(*space.widths) if len(space.widths) >= stages else ():
        arch = replace(space.like, genotype=default.genotype, widths=widths[:stages])
        if arch in feasible:
            factors = [width / own for width, own in zip(arch.widths, default.widths, strict=True)]
            found.append((round(max(factors) / min(factors), 2), -feasible.costs(arch)[0], arch.widths))
    return replace(space.like, genotype=default.genotype, widths=min(found)[2]) if found else feasible.nearest()


def _scaled_to(like: Arch, budget: Budget, shape: Shape, config: SearchConfig, accelerator: Accelerator | None) -> Arch:
    """The default network scaled to the tightest limit."""
    base = cost.macs(like, *shape)
    targets = [] if budget.macs is None else [budget.macs]
    if budget.params is not None:  # parameters grow with the MACs: bisect for the MACs at this limit
        low, high = base / 1000, base * 1000
        for _ in range(20):
            middle = (low * high) ** 0.5
            fewer = cost.params(_near(like, middle, shape), *shape) < budget.params
            low, high = (middle, high) if fewer else (low, middle)
        targets.append(low)
    if budget.latency is not None and accelerator is not None:
        here = accelerator
        seconds = by_the_first(here, lambda: member_seconds([like], shape, config, here)[0])
        targets.append(base * budget.latency / seconds)
    return _near(like, min(targets), shape)


def _near(like: Arch, macs: float, shape: Shape) -> Arch:
    """`like` scaled to about this many MACs; the narrowest, or `like` itself, if whole heads do not allow it."""
    try:
        scaled = cost.scale_to(like, macs, *shape, tolerance=0.2)
    except UserError:
        smallest = tuple(like.head_dim for _ in like.widths)
        return replace(like, widths=smallest) if macs < cost.macs(like, *shape) else like
    return replace(like, widths=tuple(_whole(width, like.head_dim) for width in scaled.widths))


def width_choices(like: Arch, stages: int, count: int) -> tuple[tuple[int, ...], ...]:
    """For each stage, `count` widths around that of `like`.

    They go from 0.5 to 1.5 times its width (2 times in later stages), since pooling and sharing leave MACs for width.
    """
    widths = [*like.widths, *[like.widths[-1]] * stages][:stages]
    if count == 1:
        return tuple((_whole(width, like.head_dim),) for width in widths)
    found = []
    for stage, width in enumerate(widths):
        low, high = 0.5 * width, (1.5 if stage == 0 else 2.0) * width
        steps = [low * (high / low) ** (number / (count - 1)) for number in range(count)]
        found.append(tuple(sorted({_whole(step, like.head_dim) for step in steps})))
    return tuple(found)


def _whole(width: float, head_dim: int) -> int:
    return max(1, floor(width / head_dim + 0.5)) * head_dim
