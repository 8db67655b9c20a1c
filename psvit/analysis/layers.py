"""A layer with an attention map: its shape, token positions and windows.

Legend: B images, H heads, N tokens (P prefix tokens and an h x w grid), C width, W windows of n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from psvit.arch.arch import even_parts
from psvit.models.windows import join_maps, join_windows, window_keys

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with an attention map.

    Args:
        name: its module, for example blocks.3; drop: the dropout module applied to its map.
        kind: A, or S for a layer of a PSViT that shares the map of the layer before it.
        stage: number of its stage, from 0; a stage's layers have equally many tokens.
        heads: H.
        tokens: N, prefix tokens included.
        prefix: P, tokens in front without a position in the image.
        width: C.
        grid: rows and columns of the other tokens, one row for a pooled sequence (1D); None if there is no grid.
        positions: (h w, 2), their centres in pixels (y, x); None without a grid.
        one_row: pooling is along the sequence (1D), not over the grid.
        window: largest side in tokens of its attention windows; 0: attention to all tokens.
    """

    name: str
    drop: str
    kind: str
    stage: int
    heads: int
    tokens: int
    prefix: int
    width: int
    grid: Grid | None
    positions: Tensor | None
    one_row: bool
    window: int = 0

    @property
    def window_size(self) -> Grid | None:
        """Rows and columns of a window of attention; None without windows."""
        if not self.window or self.grid is None:
            return None
        return even_parts(self.grid[0], self.window)[1], even_parts(self.grid[1], self.window)[1]

    @cached_property
    def keys(self) -> Tensor | None:
        """(N, n): indices of the tokens that each token attends to; None: all."""
        return window_keys(self.grid, self.window) if self.window and self.grid is not None else None

    @property
    def seen(self) -> int:
        """n, the number of tokens that a token attends to; N without windows."""
        return prod(self.window_size) if self.window_size is not None else self.tokens

    def within(self, maps: Tensor) -> Tensor:
        """Maps (..., N, N) -> (..., N, n), without the zeros between windows."""
        keys = self.keys
        return maps if keys is None else maps.gather(-1, keys.to(maps.device).expand(*maps.shape[:-1], -1))

    def whole(self, x: Tensor) -> Tensor:
        """Maps (B W, H, n, n) or tokens (B W, n, C) of windows -> (B, H, N, N) or (B, N, C) of the grid."""
        if not self.window or self.grid is None:
            return x
        return (join_maps if x.ndim == 4 else join_windows)(x, self.grid, self.window)

    def windows(self, poolings: int = 1) -> Tensor | None:
        """(h w,): the pooling window of each token after `poolings` poolings; None without a grid."""
        if self.grid is None:
            return None
        if self.one_row:
            return torch.arange(prod(self.grid)) >> poolings
        rows, columns = (torch.arange(side) >> poolings for side in self.grid)
        return (rows[:, None] * (int(columns[-1]) + 1) + columns).flatten()
