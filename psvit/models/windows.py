"""Attention windows: a grid of tokens is split into windows, so that memory grows linearly with the image.

All windows of a grid have the same size, at most `most` x `most` tokens, and are as few as possible: 15 rows with
`most` 14 are two windows of 8. If they do not tile the grid (2 x 8 > 15), the last row or column of windows starts
earlier and overlaps the one before. Thus there is no padding and no mask (ViTDet, arXiv 2203.16527, pads with zeros,
which its attention sees), and the fused kernel keeps its fastest path. Tokens in the overlap are computed twice; the
result of the earlier window is kept.

Legend: B batch, N = h w tokens, C width, H heads, W windows of n tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psvit.arch.arch import even_parts
from psvit.models.pooling import Grid


def split_windows(x: Tensor, grid: Grid, most: int) -> Tensor:
    """(B, h w, C) and the grid (h, w) -> (B W, n, C), the windows of an image row by row."""
    rows, height = even_parts(grid[0], most)
    columns, width = even_parts(grid[1], most)
    x = x.reshape(-1, grid[0], grid[1], x.shape[-1])
    x = _whole_last(_whole_last(x, 1, rows, height), 2, columns, width)
    x = x.reshape(-1, rows, height, columns, width, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, height * width, x.shape[-1])


def window_grid(grid: Grid, most: int) -> Grid:
    """Rows and columns of tokens in each window of `split_windows`."""
    return even_parts(grid[0], most)[1], even_parts(grid[1], most)[1]


def join_windows(x: Tensor, grid: Grid, most: int) -> Tensor:
    """Inverse of `split_windows`: (B W, n, C) and the grid (h, w) -> (B, h w, C)."""
    rows, height = even_parts(grid[0], most)
    columns, width = even_parts(grid[1], most)
    x = x.reshape(-1, rows, columns, height, width, x.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * height, columns * width, x.shape[-1])
    x = _once(_once(x, 1, grid[0], height), 2, grid[1], width)
    return x.reshape(-1, grid[0] * grid[1], x.shape[-1])


def window_keys(grid: Grid, most: int) -> Tensor:
    """(N, n): for each token, the n tokens of its window (the one that `join_windows` keeps)."""
    windows = split_windows(torch.arange(grid[0] * grid[1]).reshape(1, -1, 1), grid, most).squeeze(2)
    return windows[_kept(grid, most) // windows.shape[1]]


def join_maps(attn: Tensor, grid: Grid, most: int) -> Tensor:
    """Attention maps of windows (B W, H, n, n) -> of the grid (B, H, N, N), 0 between windows.

    The row of a token comes from the window that `join_windows` keeps.
    """
    keys, kept = window_keys(grid, most).to(attn.device), _kept(grid, most).to(attn.device)
    windows = even_parts(grid[0], most)[0] * even_parts(grid[1], most)[0]
    rows = attn.unflatten(0, (-1, windows)).transpose(1, 2).flatten(2, 3)  # (B W, H, n, n) -> (B, H, W n, n)
    rows = rows[:, :, kept]  # (B, H, N, n)
    return rows.new_zeros(*rows.shape[:3], len(keys)).scatter_(-1, keys.expand_as(rows), rows)


def _kept(grid: Grid, most: int) -> Tensor:
    """(N,): for each token, its index among the W n tokens of all windows, in the window that `join_windows` keeps."""
    (rows, height), (columns, width) = (even_parts(side, most) for side in grid)
    numbers = torch.arange(rows * columns * height * width).reshape(rows * columns, height * width, 1)
    return join_windows(numbers, grid, most).flatten()


def _whole_last(x: Tensor, dim: int, parts: int, size: int) -> Tensor:
    """Repeat tokens along `dim` to make `parts` whole parts: the last one starts earlier."""
    length, before = x.shape[dim], (parts - 1) * size
    if parts * size == length:
        return x
    return torch.cat([x.narrow(dim, 0, before), x.narrow(dim, length - size, size)], dim)


def _once(x: Tensor, dim: int, length: int, size: int) -> Tensor:
    """Drop the repeated tokens of the last part along `dim`, so that `length` tokens are left."""
    repeated, before = x.shape[dim] - length, x.shape[dim] - size
    if repeated == 0:
        return x
    return torch.cat([x.narrow(dim, 0, before), x.narrow(dim, before + repeated, size - repeated)], dim)
