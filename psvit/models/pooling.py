"""Token pooling between stages, over the sequence (1D) or the grid (2D): a convolution, and pooling with stride 2.

Legend: B batch, N = h w tokens, C width, P prefix tokens (the class token).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit.arch.arch import Arch
from psvit.models.fold import fold_pairs

Grid = tuple[int, int]


def tokens_to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, h w, C) -> (B, C, h, w); a view, channels last in memory."""
    B, _, C = tokens.shape
    return tokens.transpose(1, 2).reshape(B, C, grid[0], grid[1])


def map_to_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return x.flatten(2).transpose(1, 2)


class TokenPool(nn.Module):
    """Halve the sequence (1D) or each side of the grid (2D), rounding up, and change to the next stage's width.

    An odd side keeps its last row or column (7 -> 4). In 1D the output grid is one row of tokens. The class token is
    not pooled; it goes through a linear map if the width changes.

    Args:
        in_dim: width before.
        out_dim: width after.
        arch: gives the pooling and its `pool_order`, `pool_conv`, `pool_kernel`, `pool_op` and `pool_norm`; its class
            token, if any, is the P = 1 prefix token.
        dilation: 0 to halve. Otherwise all tokens are kept and the kernel is dilated by this factor, so every second
            token in each direction equals the result of halving.
        dd: device and dtype of the parameters.
    """

    def __init__(self, in_dim: int, out_dim: int, arch: Arch, dilation: int = 0, **dd: Any) -> None:
        super().__init__()
        self.one_row = arch.pooling == "1d"
        self.order = arch.pool_order
        self.op = arch.pool_op
        self.num_prefix_tokens = int(bool(arch.class_token))
        self.dilation = dilation
        self.window = (1, 2) if self.one_row else (2, 2)
        sides = (1, arch.pool_kernel) if self.one_row else (arch.pool_kernel, arch.pool_kernel)
        stride = self.window if self.op == "stride" and not dilation else (1, 1)
        apart = max(dilation, 1)
        if dilation and self.op != "stride" and self.order == "pool-conv":
            apart *= 2  # the pooling before the convolution did not halve
        padding = (sides[0] // 2 * apart, sides[1] // 2 * apart)
        bias = not arch.pool_norm
        if arch.pool_conv == "full":
            conv: nn.Module = nn.Conv2d(in_dim, out_dim, sides, stride, padding, apart, bias=bias, **dd)
        else:
            conv = nn.Sequential(
                nn.Conv2d(in_dim, in_dim, sides, stride, padding, apart, groups=in_dim, **dd),
                nn.Conv2d(in_dim, out_dim, 1, bias=bias, **dd),
            )
        self.conv = conv
        self.norm: nn.Module = nn.BatchNorm2d(out_dim, **dd) if arch.pool_norm else nn.Identity()
        self.act = nn.GELU() if arch.pool_norm else nn.Identity()
        widens_prefix = self.num_prefix_tokens > 0 and in_dim != out_dim
        self.prefix_proj = nn.Linear(in_dim, out_dim, **dd) if widens_prefix else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, P + h w, C) and (h, w) -> (B, P + h' w', C') and (h', w')."""
        prefix, tokens = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        x = tokens_to_map(tokens, (1, grid[0] * grid[1]) if self.one_row else grid)
        if self.op == "stride":
            x = self.norm(self.conv(x))
        elif self.order == "conv-pool":
            x = self.pool(self.norm(self.conv(x)))
        else:
            x = self.norm(self.conv(self.pool(x)))
        x = self.act(x)
        tokens, grid = map_to_tokens(x), (x.shape[2], x.shape[3])
        if self.num_prefix_tokens:
            tokens = torch.cat([self.prefix_proj(prefix), tokens], dim=1)
        return tokens, grid

    def reparameterize(self) -> None:
        """Fold the norm into the convolution, for inference; timm's `reparameterize_model` calls it."""
        convolutions = list(self.conv) if isinstance(self.conv, nn.Sequential) else [self.conv]
        *folded, self.norm = fold_pairs([*convolutions, self.norm])
        self.conv = nn.Sequential(*folded) if len(folded) > 1 else folded[0]

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2)), or all of (h, w) if dilated; in 1D h is 1 and stays."""
        if self.dilation:
            return pool_in_place(x, self.op, self.dilation)
        if self.op == "max":
            return F.max_pool2d(x, self.window, ceil_mode=True)
        return F.avg_pool2d(x, self.window, ceil_mode=True)


def pool_in_place(x: Tensor, op: str, apart: int) -> Tensor:
    """(B, C, h, w) -> the same shape: maximum or average over the 2 x 2 tokens at each token and `apart` to its right
    and below; at the right and lower edges over fewer.
    """
    edges = (0, apart, 0, apart)
    if op == "max":
        return F.max_pool2d(F.pad(x, edges, value=float("-inf")), 2, 1, dilation=apart)
    return _window_sums(F.pad(x, edges), apart) / _window_sums(F.pad(torch.ones_like(x[:1, :1]), edges), apart)


def _window_sums(x: Tensor, apart: int) -> Tensor:
    x = x[:, :, :-apart] + x[:, :, apart:]
    return x[:, :, :, :-apart] + x[:, :, :, apart:]
