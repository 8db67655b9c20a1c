"""The MLP of a layer, plain or with a local mixer between its two linear maps.

Legend: B batch, N = P + h w tokens (P prefix tokens, then the grid), C width, C' hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from psvit.arch.arch import Arch
from psvit.models.pooling import Grid, map_to_tokens, tokens_to_map


class LocalMixer(nn.Module):
    """A depthwise convolution over 3 tokens of the sequence (1D), or 3 x 3 of the grid (2D); the prefix passes beside.

    Args:
        dim: channels.
        arch: gives the pooling and the class token.
        dilation: tokens from tap to tap.
    """

    def __init__(self, dim: int, arch: Arch, dilation: int = 1, **dd: Any) -> None:
        super().__init__()
        self.one_row = arch.pooling == "1d"
        self.num_prefix_tokens = int(bool(arch.class_token))
        sides, padding = ((1, 3), (0, dilation)) if self.one_row else ((3, 3), (dilation, dilation))
        self.conv = nn.Conv2d(dim, dim, sides, 1, padding, dilation, groups=dim, **dd)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, P + h w, C) and (h, w) -> (B, P + h w, C)."""
        prefix, tokens = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        tokens = tokens_to_map(tokens, (1, grid[0] * grid[1]) if self.one_row else grid)
        tokens = map_to_tokens(self.conv(tokens))
        return torch.cat([prefix, tokens], dim=1) if self.num_prefix_tokens else tokens


class Mlp(nn.Module):
    """Two linear maps with a GELU between them, behind a local mixer if there is one.

    Args:
        dim: width C.
        hidden_dim: hidden width C'.
        mixer: on hidden tokens, between the first linear map and the GELU (after LocalViT, arXiv 2104.05707).
        drop: dropout after each linear map.
    """

    def __init__(
        self, dim: int, hidden_dim: int, mixer: LocalMixer | None = None, drop: float = 0.0, **dd: Any
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.mixer = mixer
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, N, C) and the grid (h, w) -> (B, N, C)."""
        x = self.fc1(x)
        if self.mixer is not None:
            x = self.mixer(x, grid)
        x = self.drop(self.act(x))
        return self.drop(self.fc2(x))
