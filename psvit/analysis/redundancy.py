"""Measures of redundancy of attention maps, tokens and layers, as pure functions.

Legend: B images, H heads, M maps of one image, N tokens, K keys, C width, n all images of an analysis.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

FLAT = 1e-6
"""A map whose relative deviation from its mean is smaller than this counts as uniform, with correlation 0."""

LEAST_IMAGES = 4
"""The unbiased estimator of HSIC needs at least this many."""


# Maps ----------------------------------------------------------------------------------------------------------------


def map_similarity(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and Pearson's correlation of all pairs of maps of one image, over all their entries.

    Entries of a map have the mean 1 / N, so two nearly uniform maps have a cosine near 1; the correlation is the cosine
    without that mean. Both are computed from the centred maps: ``<a, b> = <a - m, b - m> + N K m m'``.

    Args:
        maps: (M, N, K), attention maps of one image.

    Returns:
        Cosine and correlation, two (M, M) between -1 and 1; the correlation with a uniform map is 0.
    """
    flat = maps.flatten(1).float()  # (M, N, K) -> (M, N K)
    mean = flat.mean(dim=1, keepdim=True)
    centred = flat - mean
    product = (centred @ centred.T).double()
    squares = product.diagonal()
    level = (flat.shape[1] * mean.square().squeeze(1)).double()  # squared norms of the means
    norms = (squares + level).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    cosine = (product + (level[:, None] * level[None, :]).sqrt()) / (norms[:, None] * norms[None, :])
    shaped = squares > FLAT**2 * level
    spread = torch.where(shaped, squares, torch.ones_like(squares)).sqrt()
    correlation = product / (spread[:, None] * spread[None, :]) * (shaped[:, None] & shaped[None, :])
    return cosine.clamp(-1, 1), correlation.clamp(-1, 1)


def divergence(p: Tensor, q: Tensor, entropies: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Jensen-Shannon divergence of two maps (Lin 1991), row by row: ``H((p + q) / 2) - (H(p) + H(q)) / 2``.

    Args:
        p: (..., N, K), rows that sum to 1.
        q: the other map, of the same shape.
        entropies: `row_entropy` of both, if known already.

    Returns:
        (...), the mean over rows in bits: 0 for equal rows, 1 for rows without a common key.
    """
    own, other = entropies if entropies is not None else (row_entropy(p), row_entropy(q))
    rows = row_entropy((p + q) / 2) - (own + other) / 2
    return (rows / math.log(2)).clamp(0, 1).mean(dim=-1)


def row_entropy(rows: Tensor) -> Tensor:
    """Shannon entropy of each row of a map in nats: (..., N, K) -> (..., N)."""
    return torch.special.entr(rows).sum(dim=-1)


def match_heads(similarity: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pair the heads of two layers so that the sum of their similarities is greatest (the Hungarian method).

    Args:
        similarity: (H, H'), of each head of one layer with each of the other.

    Returns:
        Heads of the first layer and their matches in the second; as many as the layer with fewer heads has.
    """
    rows, columns = linear_sum_assignment(similarity.numpy(force=True), maximize=True)
    return tuple(map(int, rows)), tuple(map(int, columns))


def attention_distance(maps: Tensor, positions: Tensor) -> Tensor:
    """Mean attention distance (Dosovitskiy et al. 2021, "an image is worth 16 x 16 words", figure 7).

    The distance from a query's patch to all patches, weighted by the attention, averaged over queries. Prefix tokens
    are left out, and each row is scaled to sum to 1 without them.

    Args:
        maps: (B, H, P + N, P + N), with P >= 0 prefix tokens in front.
        positions: (N, 2), centres of the patches in pixels.

    Returns:
        (B, H) in pixels.
    """
    places = len(positions)
    rows = maps[..., -places:, -places:].float()
    weights = rows / rows.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return (weights * torch.cdist(positions, positions)).sum(dim=-1).mean(dim=-1)


# Tokens --------------------------------------------------------------------------------------------------------------


def pair_cosine(tokens: Tensor) -> Tensor:
    """Mean cosine of all pairs of different tokens of an image: (B, N, C) -> (B,).

    Computed from the sum s of the unit tokens, ``(|s|^2 - N) / (N (N - 1))``, without N x N products.
    """
    units = torch.nn.functional.normalize(tokens.double(), dim=-1)
    count = tokens.shape[1]
    together = units.sum(dim=1).square().sum(dim=-1) - units.square().sum(dim=(1, 2))
    return together / (count * max(count - 1, 1))


def neighbour_cosine(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean cosine of tokens that are neighbours in a row or in a column of the grid: (B, h w, C) -> (B,)."""
    B, _, C = tokens.shape
    units = torch.nn.functional.normalize(tokens.double(), dim=-1).reshape(B, *grid, C)  # (B, h w, C) -> (B, h, w, C)
    across = (units[:, :, 1:] * units[:, :, :-1]).sum(dim=-1).flatten(1)
    down = (units[:, 1:] * units[:, :-1]).sum(dim=-1).flatten(1)
    return torch.cat([across, down], dim=1).mean(dim=1)


def effective_rank(matrix: Tensor) -> Tensor:
    """Effective rank (Roy & Vetterli 2007): exp of the entropy of the singular values, scaled to sum to 1.

    Args:
        matrix: (B, N, C).

    Returns:
        (B,), from 1 (rank one) to min(N, C) (equal singular values); 0 for a matrix of zeros.
    """
    matrix = matrix.double()
    small = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.transpose(1, 2)
    # eigenvalues of the smaller Gram matrix: faster than singular values, and accurate enough in float64
    squares = torch.linalg.eigvalsh(small @ small.transpose(1, 2))
    largest = squares[:, -1:].clamp_min(0)
    values = torch.where(squares > 1e-14 * largest, squares, torch.zeros_like(squares)).sqrt()  # the rest is rounding
    total = values.sum(dim=1, keepdim=True)
    shares = values / total.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(shares).sum(dim=1).exp() * (total.squeeze(1) > 0)


def centred(tokens: Tensor) -> Tensor:
    """Tokens without their mean over the image: (B, N, C) -> the same shape."""
    return tokens - tokens.mean(dim=1, keepdim=True)


def pooled(tokens: Tensor, windows: Tensor) -> Tensor:
    """Replace every token by the mean of its window.

    Args:
        tokens: (B, N, C).
        windows: (N,), the index of each token's window, from 0 without gaps.

    Returns:
        (B, N, C).
    """
    B, _, C = tokens.shape
    sums = tokens.new_zeros(B, int(windows.max()) + 1, C).index_add_(1, windows, tokens)
    sizes = torch.bincount(windows).to(tokens.dtype)
    return (sums / sizes[:, None])[:, windows]


def kept_by_pooling(tokens: Tensor, windows: Tensor) -> Tensor:
    """Fraction of the variance between an image's tokens that averaging over windows keeps: (B, N, C) -> (B,).

    1 if the tokens of each window are equal; about 1/4 for independent tokens and 2 x 2 windows. Unlike the cosine, it
    does not grow with a direction common to all tokens.
    """
    whole = centred(tokens.double())
    before, after = whole.square().sum(dim=(1, 2)), pooled(whole, windows).square().sum(dim=(1, 2))
    return torch.where(before > 0, after / before.clamp_min(torch.finfo(torch.float64).tiny), torch.ones_like(before))


# Layers --------------------------------------------------------------------------------------------------------------


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012, equation 5).

    ``[tr(K M) + sum(K) sum(M) / ((n - 1)(n - 2)) - 2 sum(K M) / (n - 2)] / (n (n - 3))``, diagonals set to 0.

    Args:
        k: (n, n), a kernel matrix over n images.
        m: (n, n), another one over the same images.

    Returns:
        A scalar, near 0 for independent features; may be negative.

    Raises:
        ValueError: fewer than 4 images.
    """
    count = len(k)
    if count < LEAST_IMAGES:
        raise ValueError(f"{count} images: the unbiased estimator of HSIC needs at least {LEAST_IMAGES}")
    k, m = (kernel - kernel.diagonal().diag() for kernel in (k, m))
    product = (k * m).sum()  # tr(K M) of symmetric matrices
    sums = k.sum() * m.sum() / ((count - 1) * (count - 2))
    crossed = 2 * (k.sum(dim=0) @ m.sum(dim=1)) / (count - 2)
    return (product + sums - crossed) / (count * (count - 3))


def cka(features: list[Tensor]) -> Tensor:
    """Linear centred kernel alignment of every pair of layers, unbiased (Nguyen et al. 2021, equations 2 and 3).

    ``HSIC(K, M) / sqrt(HSIC(K, K) HSIC(M, M))`` with ``K = X X^T``, invariant to rotation and scaling of X; layers may
    differ in width.

    Args:
        features: of each layer (n, C), one row per image.

    Returns:
        (layers, layers): 1 for equal features, near 0 for independent ones; NaN for constant features.

    Raises:
        ValueError: fewer than 4 images.
    """
    kernels = []
    for x in features:
        x = x.double()
        x = x - x.mean(dim=0)  # HSIC is invariant to it; reduces rounding errors
        kernels.append(x @ x.T)
    products = torch.stack([torch.stack([hsic(k, m) for m in kernels]) for k in kernels])
    own = products.diagonal()
    return products / (own.clamp_min(0)[:, None] * own.clamp_min(0)[None, :]).sqrt()
