"""A stage: a pooling and the layers after it.

Legend: B batch, N tokens, C width of the stage.
"""

# without `from __future__ import annotations`: TorchScript cannot read the copy that torch.fx makes of forward

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psvit.arch.arch import ATTEND, SHARE, Arch
from psvit.models.attention import Attend, Block, Share, ShareProjections
from psvit.models.mlp import LocalMixer, Mlp
from psvit.models.pooling import Grid, TokenPool
from psvit.models.windows import join_windows, split_windows, window_grid

for function in (split_windows, join_windows, window_grid):
    torch.fx.wrap(function.__name__)  # they branch on sizes: torch.fx keeps them whole


class Stage(nn.Module):
    """A pooling (none in the first stage) and the layers after it.

    With `window`, its layers treat each window of at most `window` x `window` tokens as a separate image (so drop path
    skips windows, not images); poolings and later stages mix them. Windows change no parameters.
    """

    def __init__(self, pool: TokenPool | None, blocks: Sequence[Block], window: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.blocks = nn.ModuleList(blocks)
        self.window = window
        self.grad_checkpointing = False

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, N, C) and its grid -> (B, N', C') and its grid."""
        if self.pool is not None:
            x, grid = self.pool(x, grid)
        seen = grid
        if self.window:
            x, seen = split_windows(x, grid, self.window), window_grid(grid, self.window)
        attn: Tensor | None = None
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, attn = checkpoint(block, x, attn, seen, use_reentrant=False)
            else:
                x, attn = block(x, attn, seen)
        if self.window:
            x = join_windows(x, grid, self.window)
        return x, grid


def build_stages(
    arch: Arch, output_stride: int | None, attn_drop: float, proj_drop: float, drop_path_rate: float, **dd: Any
) -> list[Stage]:
    """The stages of `arch`; stochastic depth grows linearly from 0 to `drop_path_rate` at the last layer."""
    drop_paths = iter(torch.linspace(0, drop_path_rate, arch.depth, device="cpu").tolist())
    stages: list[Stage] = []
    before, dilation = 0, 0
    for layers, dim, heads, hidden in zip(arch.stages, arch.widths, arch.num_heads, arch.hidden_widths, strict=True):
        pool = None
        if before:
            if output_stride is not None and arch.strides[len(stages)] > output_stride:
                dilation = 2 * dilation or 1
            pool = TokenPool(before, dim, arch, dilation, **dd)
        blocks = []
        for kind, following in zip(layers, layers[1:] + ATTEND, strict=True):
            drops = {"attn_drop": attn_drop, "proj_drop": proj_drop, **dd}
            if kind == ATTEND:
                hands_on = following == SHARE and arch.sharing == "map"
                attends = Attend(dim, heads, arch.qkv_bias, map_is_shared=hands_on, **drops)
                attn: nn.Module = attends
            elif arch.sharing == "map":
                attn = Share(dim, heads, arch.qkv_bias, **drops)
            else:
                attn = ShareProjections(attends, dim, heads, arch.qkv_bias, **drops)
            mixer = LocalMixer(hidden, arch, 2 * dilation or 1, **dd) if arch.mlp == "local" else None
            blocks.append(Block(attn, Mlp(dim, hidden, mixer, proj_drop, **dd), dim, next(drop_paths), **dd))
        stages.append(Stage(pool, blocks, arch.window(len(stages))))
        before = dim
    return stages
