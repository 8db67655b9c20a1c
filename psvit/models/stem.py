"""The stem: image -> the first tokens, by patches or by convolutions.

Legend: B batch, h x w grid of tokens, C image channels, C' width of the first stage.
"""

from __future__ import annotations

from typing import Any

import torch.fx
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from psvit.arch.arch import Arch
from psvit.arch.stem_convolutions import stem_convolutions
from psvit.models.fold import fold_pairs
from psvit.models.pooling import Grid, map_to_tokens


def pad_to_multiple(images: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) -> the same with zeros to the right and below, until `stride` divides both sides."""
    right, below = -images.shape[3] % stride, -images.shape[2] % stride
    return F.pad(images, (0, right, 0, below)) if right or below else images


torch.fx.wrap("pad_to_multiple")  # it branches on sizes: torch.fx keeps it whole


class PatchEmbed(nn.Module):
    """A convolution whose kernel is a patch: (B, C, H, W) -> tokens (B, h w, C') and their grid (h, w).

    An image that the stride does not divide is padded with zeros, right and below. Patches overlap where the stride
    is smaller than the patch.
    """

    def __init__(self, patch_size: int, stride: int, in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.stride = stride
        overlap = (patch_size - stride) // 2
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride, overlap, **dd)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Images (B, C, H, W) -> tokens (B, h w, C') and their grid (h, w)."""
        x = self.proj(pad_to_multiple(x, self.stride))
        # the convolution's output is channels first in memory, which would slow down every later norm and sum
        return map_to_tokens(x).contiguous(), (x.shape[2], x.shape[3])


class ConvStem(nn.Module):
    """Convolutions of stride 2, then a linear map: (B, C, H, W) -> tokens (B, h w, C') and their grid (h, w).

    The stem of Xiao et al. 2021, "Early Convolutions Help Transformers See Better" (arXiv 2106.14881, section 3): 3 x 3
    convolutions, each with a norm and an activation, channels doubling up to the width. Xiao et al. use batch norms and
    ReLU; here, as in the rest of the network, norms are layer norms over the channels and activations GELU, so small
    batches, weight averages and frozen stems need no care. Images are padded as for patches, so the grid is the same.

    Args:
        stride: pixels from token to token: 2, 4, 8, ...
        in_chans: image channels.
        dim: width of the tokens.
    """

    def __init__(self, stride: int, in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.stride = stride
        first, *later = [conv.channels for conv in stem_convolutions("conv", stride, dim)]
        # the same name as in PatchEmbed: timm adapts the weights of first_conv to other numbers of image channels
        self.proj = _halving(in_chans, first, **dd)
        layers: list[nn.Module] = [LayerNorm2d(first, **dd), nn.GELU()]
        before = first
        for after in later:
            layers += [_halving(before, after, **dd), LayerNorm2d(after, **dd), nn.GELU()]
            before = after
        self.convs = nn.Sequential(*layers, nn.Conv2d(dim, dim, 1, **dd))

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Images (B, C, H, W) -> tokens (B, h w, C') and their grid (h, w)."""
        x = self.convs(self.proj(pad_to_multiple(x, self.stride)))
        return map_to_tokens(x).contiguous(), (x.shape[2], x.shape[3])


def _halving(before: int, after: int, **dd: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False, **dd)


class PoolStem(nn.Module):
    """Convolutions, each followed by max pooling: (B, C, H, W) -> tokens (B, h w, C') and their grid (h, w).

    The first token pooling of the network. After the tokeniser of CCT (Hassani et al. 2021, arXiv 2104.05704): 3 x 3
    convolutions with max pooling behind each, channels doubling up to the width. Our reading adds batch norms, which
    fold into the convolutions for inference, and GELU, on the pooled map, where it is four times cheaper. Where two
    poolings do not reach the stride, the first convolutions stride too. Images are padded as for patches.

    Args: as `ConvStem`.
    """

    def __init__(self, stride: int, in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.stride = stride
        first, *later = stem_convolutions("pool", stride, dim)
        # the same name as in PatchEmbed: timm adapts the weights of first_conv to other numbers of image channels
        self.proj = nn.Conv2d(in_chans, first.channels, 3, first.stride, 1, bias=False, **dd)
        layers: list[nn.Module] = _pooled(first.channels, **dd)
        before = first.channels
        for after, apart, _ in later:
            layers += [nn.Conv2d(before, after, 3, apart, 1, bias=False, **dd), *_pooled(after, **dd)]
            before = after
        self.convs = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Images (B, C, H, W) -> tokens (B, h w, C') and their grid (h, w)."""
        x = self.convs(self.proj(pad_to_multiple(x, self.stride)))
        return map_to_tokens(x).contiguous(), (x.shape[2], x.shape[3])

    def reparameterize(self) -> None:
        """Fold the norms into the convolutions, for inference; timm's `reparameterize_model` calls it."""
        self.proj, *layers = fold_pairs([self.proj, *self.convs])  # type: ignore[assignment]
        self.convs = nn.Sequential(*layers)


def _pooled(channels: int, **dd: Any) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels, **dd), nn.MaxPool2d(2), nn.GELU()]


Tokenizer = PatchEmbed | ConvStem | PoolStem


def build_stem(arch: Arch, in_chans: int, dim: int = 0, **dd: Any) -> Tokenizer:
    """The stem that `arch` describes, for tokens of `dim` channels; by default the width of its first stage."""
    dim = dim or arch.widths[0]
    if arch.stem == "patch":
        return PatchEmbed(arch.patch_size, arch.stride, in_chans, dim, **dd)
    return (ConvStem if arch.stem == "conv" else PoolStem)(arch.stride, in_chans, dim, **dd)
