"""Attention maps -> the attention to each position of the image, of one layer and of all together (rollout).

Legend: H, W pixels of the network's input, N tokens of a layer (P prefix tokens, then positions).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psvit.analysis.layers import Layer


def token_of_pixels(layer: Layer, first: Layer, size: tuple[int, int], stride: int | None) -> Tensor:
    """(H, W): the index of each pixel's token, not counting prefix tokens.

    A pooled token covers the pixels of all its patches: in 2D a block of the grid, in 1D a run of patches in reading
    order, which may continue in the next row.

    Args:
        layer: the layer of the tokens; `first`: the first layer, whose tokens are the patches. Both have a grid.
        size: H and W.
        stride: pixels from patch to patch of a PSViT. None for other models, whose grid divides the image equally.
    """
    height, width = size
    y, x = torch.arange(height), torch.arange(width)
    rows, columns = first.grid if stride is not None else layer.grid  # type: ignore[misc]  # both have one
    if stride is None:
        return (y * rows // height)[:, None] * columns + x * columns // width
    patches = (y // stride)[:, None] * columns + x // stride
    windows = first.windows(layer.stage - first.stage)
    assert windows is not None
    return windows[patches]


def attended(attn: Tensor, prefix: int, by_class_token: bool, keys: Tensor | None = None) -> Tensor:
    """The attention to each position, as a multiple of an equal share 1 / N.

    With windows, an equal share is the attention to a position if all tokens attended uniformly within their windows;
    where windows overlap it is more than 1 / N.

    Args:
        attn: (N, N), rows sum to 1.
        prefix: P.
        by_class_token: attention of the first token, which classifies; else the mean over all positions, for networks
            that average their tokens.
        keys: (N, n), the tokens that each token attends to; None: all. Windows exclude prefix tokens.

    Returns:
        (N - P,): 1 for an equal share. Without windows the mean is 1 minus the attention to prefix tokens.
    """
    row = attn[0] if by_class_token else attn[prefix:].mean(dim=0)
    times = row[prefix:] * attn.shape[-1]
    if keys is None:
        return times
    return times * keys.shape[1] / torch.bincount(keys.flatten(), minlength=len(times))


def rollout(maps: Sequence[Tensor], layers: Sequence[Layer]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): the product of ``(A + I) / 2`` over the layers, with poolings between.

    Rollout ignores values and MLPs. A pooling counts as the mean over its windows (prefix tokens stay): its convolution
    and the choice of a maximum are ignored. In overlapping attention windows, the one whose result is kept counts.

    Args:
        maps: for each layer (N, N), the mean over its heads.
        layers: of a PSViT, or of a model without pooling.

    Returns:
        (N of the last layer, N of the first); rows sum to 1.
    """
    rolled = torch.eye(len(maps[0]), dtype=maps[0].dtype, device=maps[0].device)
    befores: list[Layer | None] = [None, *layers[:-1]]
    for attn, layer, before in zip(maps, layers, befores, strict=True):
        if before is not None and before.stage != layer.stage:
            rolled = _pooled_rows(rolled, before, layer.stage - before.stage)
        rolled = (attn @ rolled + rolled) / 2
    return rolled


def _pooled_rows(rows: Tensor, layer: Layer, poolings: int) -> Tensor:
    """(N, K) -> (N', K): means over the layer's pooling windows; prefix rows stay as they are."""
    windows = layer.windows(poolings)
    assert windows is not None
    windows = windows.to(rows.device)
    sizes = torch.bincount(windows).to(rows.dtype)
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, windows, rows[layer.prefix :])
    return torch.cat([rows[: layer.prefix], sums / sizes[:, None]])
