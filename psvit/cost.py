"""What an Arch costs: its MACs and parameters, exact to the integer. No torch here.

A MAC is one multiplication with its addition. Counted: every matrix product and convolution, QK^T and AV included.
Not counted: norms, softmax, biases, activations, pooling windows. We never call MACs FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from psvit.arch import SHARE, Arch, image_sides
from psvit.errors import UserError

ImgSize = int | tuple[int, int]

MLP_BOUND = 1.5
"""How far `scale_to` changes an mlp_ratio, as a factor."""

MIN_HEAD_DIM = 8
"""`scale_to` makes heads no smaller."""


@dataclass(frozen=True)
class LayerCost:
    """The cost of one part of the network for one image.

    Attributes:
        name: where it is, for example ``stage 2 layer 3``.
        kind: ``embed``, ``A``, ``S``, ``pool`` or ``head``.
        stage: number of its stage, from 0.
        grid: token rows and columns that it puts out.
        tokens: tokens that it puts out, class token included.
        width: channels that it puts out.
        macs: multiply-accumulates.
        params: parameters.
    """

    name: str
    kind: str
    stage: int
    grid: tuple[int, int]
    tokens: int
    width: int
    macs: int
    params: int


def layer_costs(arch: Arch, img_size: ImgSize = 224, in_chans: int = 3, num_classes: int = 1000) -> list[LayerCost]:
    """The parts of the network from image to logits, with what each costs for one image.

    `img_size` is a side or a (height, width) in pixels; position embeddings are those of this size.

    Raises:
        UserError: an image size that is not positive.
    """
    return list(_layer_costs(arch, img_size, in_chans, num_classes))


def macs(arch: Arch, img_size: ImgSize = 224, in_chans: int = 3, num_classes: int = 1000) -> int:
    """MACs of the network for one image of `img_size` pixels."""
    return sum(layer.macs for layer in _layer_costs(arch, img_size, in_chans, num_classes))


def params(arch: Arch, img_size: ImgSize = 224, in_chans: int = 3, num_classes: int = 1000) -> int:
    """Parameters of the network, built for images of `img_size` pixels."""
    return sum(layer.params for layer in _layer_costs(arch, img_size, in_chans, num_classes))


def _layer_costs(arch: Arch, img_size: ImgSize, in_chans: int, num_classes: int) -> Iterator[LayerCost]:
    prefix = int(bool(arch.class_token))
    grids = arch.grids(image_sides(img_size))
    width, patches = arch.widths[0], prod(grids[0])
    weights = in_chans * arch.patch_size**2 * width
    embeddings = (patches + prefix) * width + prefix * width  # positions, class token
    yield LayerCost(
        "patch embedding", "embed", 0, grids[0], patches + prefix, width,
        macs=patches * weights, params=weights + width + embeddings,
    )  # fmt: skip
    for stage, (layers, grid, width) in enumerate(zip(arch.stages, grids, arch.widths, strict=True)):
        tokens = prod(grid) + prefix
        if stage > 0:
            pool_macs, pool_params = _pooling(arch, arch.widths[stage - 1], width, grids[stage - 1], grid)
            yield LayerCost(f"pooling {stage}", "pool", stage, grid, tokens, width, pool_macs, pool_params)
        for number, kind in enumerate(layers, start=1):
            layer_macs, layer_params = _layer(kind, tokens, width, arch.hidden_widths[stage], arch.qkv_bias)
            name = f"stage {stage + 1} layer {number}"
            yield LayerCost(name, kind, stage, grid, tokens, width, layer_macs, layer_params)
    head = width * num_classes
    yield LayerCost(
        "head", "head", len(grids) - 1, grids[-1], tokens, num_classes or width,
        macs=head, params=2 * width + head + num_classes,
    )  # fmt: skip


def _layer(kind: str, tokens: int, width: int, hidden: int, qkv_bias: bool) -> tuple[int, int]:
    projections = 1 if kind == SHARE else 3  # v, or q, k and v
    products = 1 if kind == SHARE else 2  # A V, or Q K^T and A V
    weights = (projections + 1) * width**2 + 2 * width * hidden
    biases = (projections * qkv_bias + 1) * width + hidden + width
    norms = 4 * width
    return tokens * weights + products * tokens**2 * width, weights + biases + norms


def _pooling(
    arch: Arch, before: int, after: int, grid_before: tuple[int, int], grid_after: tuple[int, int]
) -> tuple[int, int]:
    convolved_first = arch.pool_order == "conv-pool" and arch.pool_op != "stride"
    cells = prod(grid_before if convolved_first else grid_after)
    taps = arch.pool_kernel ** (1 if arch.pooling == "1d" else 2)
    if arch.pool_conv == "full":
        weights, biases = taps * before * after, after
    else:
        weights, biases = taps * before + before * after, before + after
    prefix_weights = before * after if arch.class_token and before != after else 0
    prefix_biases = after if prefix_weights else 0
    return cells * weights + prefix_weights, weights + biases + prefix_weights + prefix_biases


def scale_to(
    arch: Arch,
    target: float,
    img_size: ImgSize = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    tolerance: float = 0.02,
) -> Arch:
    """Widen or narrow the same genotype until its MACs are within `tolerance` of `target`.

    The ratios of the widths are kept as far as whole heads allow. Where no widths of whole heads come close enough,
    `mlp_ratio` makes up the rest, by half at the most; where that is not enough, the heads' size is halved.
    Every comparison at equal MACs goes through here.

    Raises:
        UserError: no width of this genotype comes within the tolerance; the message names the nearest.
    """

    def cost(candidate: Arch) -> int:
        return macs(candidate, img_size, in_chans, num_classes)

    if not target > 0:
        raise UserError(f"a target of {target} MACs is not positive")
    low, high = 0.0, 1.0
    while cost(_widened(arch, high)) < target:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(_widened(arch, middle)) < target else (low, middle)
    candidates = [replace(arch, widths=widths) for widths in _neighbours(arch, high)]
    close = [c for c in candidates if abs(cost(c) / target - 1) <= tolerance]
    if close:
        return min(close, key=lambda c: (round(_distortion(arch, c), 2), abs(cost(c) - target)))
    adjusted = [_with_mlp_for(c, target, cost(c), cost(replace(c, mlp_ratio=c.mlp_ratio + 1))) for c in candidates]
    adjusted = [
        c
        for c in adjusted
        if abs(cost(c) / target - 1) <= tolerance and 1 / MLP_BOUND <= c.mlp_ratio / arch.mlp_ratio <= MLP_BOUND
    ]
    if not adjusted and arch.head_dim % 2 == 0 and arch.head_dim > MIN_HEAD_DIM:
        return scale_to(replace(arch, head_dim=arch.head_dim // 2), target, img_size, in_chans, num_classes, tolerance)
    if not adjusted:
        nearest = min(candidates, key=lambda c: abs(cost(c) - target))
        raise UserError(
            f"no width of {arch.genotype} with head_dim {arch.head_dim} costs {target / 1e6:.4g} M MACs: "
            f"the nearest costs {cost(nearest) / 1e6:.4g} M; choose another target or a smaller head_dim"
        )
    return min(adjusted, key=lambda c: (abs(c.mlp_ratio / arch.mlp_ratio - 1), abs(cost(c) - target)))


def _widened(arch: Arch, factor: float) -> Arch:
    heads = [max(1, round(width * factor / arch.head_dim)) for width in arch.widths]
    return replace(arch, widths=tuple(arch.head_dim * h for h in heads))


def _neighbours(arch: Arch, factor: float) -> Iterator[tuple[int, ...]]:
    centre = [width * factor / arch.head_dim for width in arch.widths]
    options = [sorted({max(1, int(c) + step) for step in (-1, 0, 1, 2)}) for c in centre]
    for heads in product(*options):
        if all(a <= b or wa > wb for a, b, wa, wb in _pairs(heads, arch.widths)):
            yield tuple(arch.head_dim * h for h in heads)


def _pairs(heads: Sequence[int], widths: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    yield from zip(heads, heads[1:], widths, widths[1:], strict=False)


def _distortion(arch: Arch, candidate: Arch) -> float:
    factors = [new / old for new, old in zip(candidate.widths, arch.widths, strict=True)]
    return max(factors) / min(factors)


def _with_mlp_for(arch: Arch, target: float, cost: int, cost_of_one_more: int) -> Arch:
    ratio = arch.mlp_ratio + (target - cost) / (cost_of_one_more - cost)
    return replace(arch, mlp_ratio=max(0.25, round(ratio, 2)))
