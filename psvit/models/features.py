"""timm's ``features_only`` for a PSViT: the maps of its stages, preceded by finer maps of the image.

Decoders expect maps from stride 4 on (segmentation_models_pytorch refuses other backbones), but a PSViT-2D begins at
its patches' stride, 8 or 16. The finer maps are the image in smaller patches, with one channel per pixel of a patch:
they keep all detail and need no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx
import torch.nn.functional as F
from timm.models import FeatureInfo
from torch import Tensor, nn

from psvit.arch.arch import Arch
from psvit.errors import UserError
from psvit.models.psvit import PSViT, stages_to_take
from psvit.models.stem import pad_to_multiple

FINEST = 4
"""The finest stride that decoders expect."""


def fine_strides(arch: Arch) -> list[int]:
    """Strides of the finer maps: 4, 8, ... up to half the patches' stride.

    Empty if doubling from 4 does not reach the patches' stride, and in 1D, where later stages have no maps.
    """
    if arch.pooling == "1d":
        return []
    strides, stride = [], FINEST
    while stride < arch.stride:
        strides.append(stride)
        stride *= 2
    return strides if stride == arch.stride else []


def image_patches(images: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) -> (B, C stride², ceil(H / stride), ceil(W / stride)): the pixels of each patch as its channels."""
    return F.pixel_unshuffle(pad_to_multiple(images, stride), stride)


torch.fx.wrap("image_patches")  # it branches on sizes: torch.fx keeps it whole


class Features(nn.Module):
    """Images (B, C, H, W) -> a list of maps (B, C', ceil(H / stride), ceil(W / stride)), finest first.

    Args:
        model: the network; stages after the last requested map are dropped.
        out_indices: which maps, as in timm: all (None), the last n (an int), or a list of indices, negative ones from
            the end. Maps of stages come last: ``out_indices=3`` are the last three stages.
        norm: apply the final norm to the last stage's map.

    Raises:
        UserError: an index out of range, or no map of a stage.
    """

    def __init__(self, model: PSViT, out_indices: int | Sequence[int] | None = None, norm: bool = False) -> None:
        super().__init__()
        fine = fine_strides(model.arch)
        taken = maps_to_take(model.arch, out_indices)
        self.strides = [fine[index] for index in taken if index < len(fine)]
        self.stages = [index - len(fine) for index in taken if index >= len(fine)]
        self.norm = norm
        patches = [
            {"num_chs": model.in_chans * stride**2, "reduction": stride, "module": f"patches.{stride}"}
            for stride in fine
        ]
        self.feature_info = FeatureInfo([*patches, *map(dict, model.feature_info)], tuple(taken))
        model.prune_intermediate_layers(self.stages, prune_norm=not norm)
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) -> the maps, finest first."""
        patches = [image_patches(x, stride) for stride in self.strides]
        maps = self.model.forward_intermediates(x, indices=self.stages, norm=self.norm, intermediates_only=True)
        return [*patches, *maps]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        self.model.set_grad_checkpointing(enable)


def maps_to_take(arch: Arch, out_indices: int | Sequence[int] | None) -> list[int]:
    """Indices of the maps for timm's `out_indices`, in order.

    Raises:
        UserError: an index out of range, or no map of a stage.
    """
    fine = fine_strides(arch)
    count = len(fine) + len(arch.widths)
    there = f"there are {count}, 0 to {count - 1}, of strides {', '.join(map(str, [*fine, *arch.strides]))}"
    try:
        taken = sorted(set(stages_to_take(count, out_indices)))
    except UserError as error:
        raise UserError(f"out_indices {out_indices} are not stages or maps before them: {there}") from error
    if taken[-1] < len(fine):
        raise UserError(
            f"out_indices {out_indices} are maps before the first stage: take {len(fine)} or a later one too; {there}"
        )
    return taken
