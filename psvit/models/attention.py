"""Self-attention that computes or shares its map, and the layer around it.

Legend: B batch, N tokens, C width, H heads, D = C / H head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import DropPath, use_fused_attn
from torch import Tensor, nn

from psvit.models.pooling import Grid


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) -> (B, H, N, D)."""
    B, N, C = x.shape
    return x.reshape(B, N, num_heads, C // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, C)."""
    B, H, N, D = x.shape
    return x.transpose(1, 2).reshape(B, N, H * D)


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """Softmax of scaled query-key products: two (B, H, N, D) -> (B, H, N, N), rows sum to 1."""
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)


class Attend(nn.Module):
    """Self-attention that computes its own map (an A of the genotype; as in DeiT).

    The map is computed explicitly if the next layer shares it, else inside the fused kernel. Both paths agree.

    Args:
        dim: width C.
        num_heads: heads H; divides C.
        qkv_bias: biases of the query, key and value projections.
        attn_drop: dropout of the map, proj_drop: of the output.
        map_is_shared: the next layer shares this layer's map.
        dd: device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        map_is_shared: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.map_is_shared = map_is_shared
        self.fused_attn = use_fused_attn() > 0
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) -> (B, N, C) and the map (B, H, N, N) if the next layer shares it; `attn` is not used."""
        q, k, v = split_heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        if self.fused_attn and not self.map_is_shared:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
            attn = None
        else:
            # autocast leaves the softmax in float32: cast here, not in every layer that shares the map
            attn = attention_map(q, k).to(v.dtype)
            x = self.attn_drop(attn) @ v
        x = self.proj_drop(self.proj(merge_heads(x)))
        return x, attn if self.map_is_shared else None


class Share(nn.Module):
    """Self-attention that reuses the map of the layer before it (an S of the genotype): values only, no Q, no K.

    Args: as `Attend`; the map is always returned, since the next layer may share it too.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0, **dd: Any
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) and the map (B, H, N, N) of the layer before -> (B, N, C) and the same map."""
        assert attn is not None, "a layer that shares needs the map of the layer before it"
        v = split_heads(self.v(x), self.num_heads)
        x = merge_heads(self.attn_drop(attn) @ v)
        return self.proj_drop(self.proj(x)), attn


class ShareProjections(nn.Module):
    """An S that shares the query and key projections of an `Attend` (tied weights), not its map; for ablations.

    It computes its own map, so it saves the parameters of Q and K but no MACs.

    Args: as `Attend`, and
        attends: the layer whose projections are shared.
    """

    def __init__(
        self,
        attends: Attend,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = attends.qkv
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) -> (B, N, C) and no map; `attn` is not used."""
        C = x.shape[-1]
        bias = self.qkv.bias[: 2 * C] if self.qkv.bias is not None else None
        q, k = split_heads(F.linear(x, self.qkv.weight[: 2 * C], bias), 2 * self.num_heads).chunk(2, dim=1)
        v = split_heads(self.v(x), self.num_heads)
        x = merge_heads(self.attn_drop(attention_map(q, k).to(v.dtype)) @ v)
        return self.proj_drop(self.proj(x)), None


class Block(nn.Module):
    """One layer, pre-norm as in DeiT: ``x + attn(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        attn: an `Attend`, a `Share` or a `ShareProjections`.
        mlp: tokens (B, N, C) and their grid -> (B, N, C).
        dim: width C.
        drop_path: probability that a residual branch is skipped for a sample.
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module, dim: int, drop_path: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = mlp
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, attn: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor | None]:
        """(B, N, C), the map of the layer before and the grid -> (B, N, C) and the map for the next layer."""
        update, attn = self.attn(self.norm1(x), attn)
        x = x + self.drop_path1(update)
        x = x + self.drop_path2(self.mlp(self.norm2(x), grid))
        return x, attn


@contextmanager
def attention_for_training(device: torch.device) -> Iterator[None]:
    """Build networks, also timm's, with explicit attention on a CPU and fused attention on other devices.

    On a CPU in bfloat16, the backward pass of torch's fused kernel took 73 % of a step (plain DeiT, 50 tokens, batch
    128, one core); explicit attention gives the same numbers and trained 3.3 times faster.
    """
    fused = timm.layers.use_fused_attn() > 0
    if device.type == "cpu":
        timm.layers.set_fused_attn(False)
    try:
        yield
    finally:
        timm.layers.set_fused_attn(fused)
