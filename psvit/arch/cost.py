"""MACs and parameters of an Arch, exact integers. No torch here.

A MAC is one multiplication with its addition. Counted: all matrix products and convolutions, QK^T and AV included.
Not counted: norms, softmax, biases, activations, maxima and means of poolings. MACs are never called FLOPs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import gcd, prod

from psvit.arch.arch import SHARE, Arch, even_parts, image_sides
from psvit.arch.stem_convolutions import MIN_STEM_CHANNELS, stem_convolutions, stem_multiple
from psvit.errors import UserError

ImgSize = int | tuple[int, int]

MLP_BOUNDS = (1.5, 2.0)
"""Largest factor by which `scale_to` changes mlp_ratio: normally, and as a last resort."""

MIN_HEAD_DIM = 8
"""Smallest head_dim that `scale_to` chooses."""


STEMS = {"patch": "patch embedding", "conv": "convolutional stem", "pool": "pooling stem"}


class UnreachableError(UserError):
    """No width of a network has the requested MACs."""


@dataclass(frozen=True)
class LayerCost:
    """The cost of one part of the network for one image.

    Attributes:
        name: for example ``stage 2 layer 3``.
        kind: ``embed``, ``A``, ``S``, ``pool`` or ``head``.
        stage: number of its stage, from 0.
        grid: token rows and columns of its output.
        tokens: tokens of its output, class token included.
        width: channels of its output.
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
    """The parts of the network from image to logits, each with its cost for one image.

    `img_size` is a side or a (height, width) in pixels; position embeddings are counted for this size.

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
    parts = Parts(arch, len(arch.widths), img_size, in_chans, num_classes)
    width = arch.widths[0]
    yield LayerCost(STEMS[arch.stem], "embed", 0, parts.grids[0], parts.tokens[0], width, *parts.embed(width))
    for stage, (layers, grid, width) in enumerate(zip(arch.stages, parts.grids, arch.widths, strict=True)):
        tokens = parts.tokens[stage]
        if stage > 0:
            pooled = parts.pool(stage, arch.widths[stage - 1], width)
            yield LayerCost(f"pooling {stage}", "pool", stage, grid, tokens, width, *pooled)
        for number, kind in enumerate(layers, start=1):
            name = f"stage {stage + 1} layer {number}"
            yield LayerCost(name, kind, stage, grid, tokens, width, *parts.layer(kind, stage, width))
    yield LayerCost("head", "head", stage, grid, tokens, num_classes or width, *parts.head(width))


class Parts:
    """(MACs, parameters) of the parts of networks like `like`, for one image.

    The cost of a network is the sum over its parts. `layer_costs` adds them up, and a search adds them up along its
    tree without building an Arch for every network.

    Args:
        like: gives all fields except genotype and widths; its windows, if any, are for `stages` stages.
        stages: the most stages of a network.
        img_size: side or (height, width) in pixels.
        in_chans: image channels.
        num_classes: classes.

    Raises:
        UserError: an image size that is not positive.
    """

    def __init__(
        self, like: Arch, stages: int, img_size: ImgSize = 224, in_chans: int = 3, num_classes: int = 1000
    ) -> None:
        self.like, self.in_chans, self.num_classes = like, in_chans, num_classes
        self.prefix = int(bool(like.class_token))
        self.grids = like.grids(image_sides(img_size), stages)
        self.tokens = tuple(prod(grid) + self.prefix for grid in self.grids)

    def embed(self, width: int) -> tuple[int, int]:
        """Stem, position embeddings and class token, with a first stage of `width` channels."""
        like, patches = self.like, prod(self.grids[0])
        embeddings = (patches + self.prefix) * width + self.prefix * width  # positions, class token
        macs, weights, before, cells = 0, 0, self.in_chans, patches * like.stride**2
        for after, stride, pooled in stem_convolutions(like.stem, like.stride, width):
            cells //= stride**2
            macs += cells * 9 * before * after
            weights += 9 * before * after + 2 * after  # the norm
            cells //= 4 if pooled else 1
            before = after
        if like.stem != "pool":  # patches, or the linear map behind the convolutions
            last = width**2 if like.stem == "conv" else self.in_chans * like.patch_size**2 * width
            macs, weights = macs + patches * last, weights + last + width
        return macs, weights + embeddings

    def layer(self, kind: str, stage: int, width: int) -> tuple[int, int]:
        """A layer of `kind` A or S in `stage` (from 0)."""
        hidden, qkv_bias = int(width * self.like.mlp_ratio), self.like.qkv_bias
        own = 1 if kind == SHARE else 3  # projections: v, or q, k and v
        reuses_map = kind == SHARE and self.like.sharing == "map"
        computed = 1 if reuses_map else 3
        products = 1 if reuses_map else 2  # A V, or Q K^T and A V
        rest = width**2 + 2 * width * hidden  # output projection, MLP
        biases = (own * qkv_bias + 1) * width + hidden + width
        norms = 4 * width
        windows, inside = self.windows(stage)
        macs = windows * (inside * (computed * width**2 + rest) + products * inside**2 * width)
        if self.like.mlp == "local":
            taps = 3 if self.like.pooling == "1d" else 9
            macs += windows * (inside - self.prefix) * taps * hidden
            rest += (taps + 1) * hidden
        return macs, own * width**2 + rest + biases + norms

    def windows(self, stage: int) -> tuple[int, int]:
        """Number of windows in `stage` and tokens in each; without windows (1, all tokens).

        Tokens in two overlapping windows are computed, and counted, twice.
        """
        most = self.like.window(stage)
        if not most:
            return 1, self.tokens[stage]
        (rows, height), (columns, wide) = (even_parts(side, most) for side in self.grids[stage])
        return rows * columns, height * wide

    def pool(self, stage: int, before: int, after: int) -> tuple[int, int]:
        """The pooling at the start of `stage`, from `before` channels to `after`."""
        like = self.like
        convolved_first = like.pool_order == "conv-pool" and like.pool_op != "stride"
        cells = prod(self.grids[stage - 1] if convolved_first else self.grids[stage])
        taps = like.pool_kernel ** (1 if like.pooling == "1d" else 2)
        if like.pool_conv == "full":
            weights, biases = taps * before * after, after
        else:
            weights, biases = taps * before + before * after, before + after
        biases += after if like.pool_norm else 0  # a norm's weight and bias, in place of a bias
        prefix_weights = before * after if self.prefix and before != after else 0
        prefix_biases = after if prefix_weights else 0
        return cells * weights + prefix_weights, weights + biases + prefix_weights + prefix_biases

    def head(self, width: int) -> tuple[int, int]:
        """The final norm and the classifier, after a last stage of `width` channels."""
        weights = width * self.num_classes
        return weights, 2 * width + weights + self.num_classes


def scale_to(
    arch: Arch,
    target: float,
    img_size: ImgSize = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    tolerance: float = 0.02,
) -> Arch:
    """Widen or narrow `arch` until its MACs are within `tolerance` of `target`; all comparisons at equal MACs use this.

    The ratios of the widths are kept as far as whole heads allow, and `mlp_ratio` changes by at most a factor of 1.5,
    whichever distorts less. If that is not close enough head_dim is halved; if it cannot be, `mlp_ratio` changes by up
    to 2.

    Raises:
        UnreachableError: no width comes within the tolerance; the message names the nearest.
        UserError: a target that is not positive.
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
    fitted = [_with_mlp_for(c, target, cost(c), cost(replace(c, mlp_ratio=c.mlp_ratio + 1))) for c in candidates]
    close += [c for c in fitted if abs(cost(c) / target - 1) <= tolerance]
    halves = arch.head_dim % 2 == 0 and arch.head_dim > MIN_HEAD_DIM
    for bound in MLP_BOUNDS[: 1 if halves else 2]:
        if near := [c for c in close if 1 / bound <= c.mlp_ratio / arch.mlp_ratio <= bound]:
            return min(near, key=lambda c: (round(_distortion(arch, c), 2), abs(cost(c) - target)))
    if halves:
        return scale_to(replace(arch, head_dim=arch.head_dim // 2), target, img_size, in_chans, num_classes, tolerance)
    nearest = min(candidates, key=lambda c: abs(cost(c) - target))
    raise UnreachableError(
        f"no width of {arch.genotype} with head_dim {arch.head_dim} costs {target / 1e6:.4g} M MACs: "
        f"the nearest costs {cost(nearest) / 1e6:.4g} M; choose another target or a smaller head_dim"
    )


def _widened(arch: Arch, factor: float) -> Arch:
    steps, least = _steps(arch)
    units = [width * factor / arch.head_dim / step for width, step in zip(arch.widths, steps, strict=True)]
    heads = [max(few, step * round(unit)) for unit, step, few in zip(units, steps, least, strict=True)]
    return replace(arch, widths=tuple(arch.head_dim * h for h in heads))


def _steps(arch: Arch) -> tuple[list[int], list[int]]:
    """For each stage, the step of its width in heads and its fewest heads; a stem of convolutions raises them."""
    steps, least = [1] * len(arch.widths), [1] * len(arch.widths)
    if arch.stem != "patch":
        multiple = stem_multiple(arch.stem, arch.stride)
        steps[0] = multiple // gcd(multiple, arch.head_dim)
        least[0] = steps[0] * -(-MIN_STEM_CHANNELS * multiple // (steps[0] * arch.head_dim))
        for stage, (before, width) in enumerate(pairwise(arch.widths), start=1):
            least[stage] = least[stage - 1] if width >= before else 1
    return steps, least


def _neighbours(arch: Arch, factor: float) -> Iterator[tuple[int, ...]]:
    steps, least = _steps(arch)
    options = [
        sorted({max(few, step * (int(width * factor / arch.head_dim / step) + more)) for more in (-1, 0, 1, 2)})
        for width, step, few in zip(arch.widths, steps, least, strict=True)
    ]
    for heads in product(*options):
        if all(a <= b or wa > wb for (a, b), (wa, wb) in zip(pairwise(heads), pairwise(arch.widths), strict=True)):
            yield tuple(arch.head_dim * h for h in heads)


def _distortion(arch: Arch, candidate: Arch) -> float:
    factors = [new / old for new, old in zip(candidate.widths, arch.widths, strict=True)]
    ratio = candidate.mlp_ratio / arch.mlp_ratio
    return max(factors) / min(factors) * max(ratio, 1 / ratio)


def _with_mlp_for(arch: Arch, target: float, cost: int, cost_of_one_more: int) -> Arch:
    ratio = arch.mlp_ratio + (target - cost) / (cost_of_one_more - cost)
    return replace(arch, mlp_ratio=max(0.25, round(ratio, 2)))
