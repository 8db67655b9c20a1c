"""Attention maps -> what each place of the image gets, of one layer and of all together.

Legend: H, W pixels of the image that the network takes, N tokens of a layer (P prefix tokens, then places).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from psvit.analysis.layers import Layer


def token_of_pixels(layer: Layer, first: Layer, size: tuple[int, int], stride: int | None) -> Tensor:
    """(H, W) the number of the token, from 0 without prefix tokens, in which each pixel lies.

    A token after poolings covers the pixels of all tokens that it was pooled from: a block of the grid in 2D, in 1D a
    run of patches in reading order, which may go on in the next row.

    Args:
        layer: which tokens; `first`: the first layer, whose tokens are the patches. Both have a grid.
        size: H and W.
        stride: pixels from patch to patch in a PSViT, where the pooling windows are known. None: another model; its
            grid divides the image into equal parts.
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
    """What each place gets of a map, as a multiple of an equal share 1 / N.

    Within windows an equal share is what a place would get if every token attended alike to all that it sees: 1 / N
    too where the windows tile the grid; where they overlap, a place in two of them is seen by more tokens.

    Args:
        attn: (N, N), rows sum to 1.
        prefix: P.
        by_class_token: by the first token alone, which classifies (its row); else by the average place (the mean of
            their rows), as networks classify that average their tokens.
        keys: (N, n) which tokens each token attends to; None: all. There are no prefix tokens beside windows.

    Returns:
        (N - P,): 1 where it gets an equal share. Without windows the mean is 1 less what the prefix tokens get.
    """
    row = attn[0] if by_class_token else attn[prefix:].mean(dim=0)
    times = row[prefix:] * attn.shape[-1]
    if keys is None:
        return times
    return times * keys.shape[1] / torch.bincount(keys.flatten(), minlength=len(times))


def rollout(maps: Sequence[Tensor], layers: Sequence[Layer]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): the product of ``(A + I) / 2`` over the layers, poolings between them.

    Rollout follows which token is mixed into which, and nothing else: no values, no MLPs. Of a pooling it follows the
    windows: a pooled token is the mean of its window, and a prefix token passes. The convolution at a pooling, which
    also looks at neighbouring windows, is not followed, nor which token a maximum takes. Where windows of attention
    overlap, each computes the tokens in both for itself: the one whose result is kept is followed.

    Args:
        maps: of each layer (N, N), the mean of its heads.
        layers: theirs, of a PSViT, or of a model without pooling.

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
    """(N, K) -> (N', K): the means of windows of the layer's places; prefix rows as they are."""
    windows = layer.windows(poolings)
    assert windows is not None
    windows = windows.to(rows.device)
    sizes = torch.bincount(windows).to(rows.dtype)
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, windows, rows[layer.prefix :])
    return torch.cat([rows[: layer.prefix], sums / sizes[:, None]])
