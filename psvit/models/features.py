"""timm's ``features_only`` of a PSViT: the maps of its stages, and before them finer ones.

Decoders of dense tasks expect maps from stride 4 on, a PSViT-2D begins at the stride of its patches, 8 or 16.
segmentation_models_pytorch refuses a backbone whose strides are not 4, 8, 16, ... (or from 2, or from 1). What a PSViT
knows at finer scales is the image itself, so the finer maps are the image cut in smaller patches, one channel for each
pixel of a patch: all detail for a decoder to take up, and no weights that a checkpoint would lack.
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
    """Strides of the maps before those of the stages: 4, 8, ... up to half the patches' stride.

    None where doubling from 4 does not lead to the patches' stride, and none in 1D, whose later stages have no maps.
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
        model: the network; stages behind the last map asked for are dropped.
        out_indices: which maps, as timm counts them: all (None), the last n (an int), or a list that may count from the
            end. The stages are the last ones: ``out_indices=3`` are the maps of three stages alone.
        norm: apply the final norm to the last stage's map.

    Raises:
        UserError: an index outside the maps, or none of a stage's.
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
    """Numbers of the maps that timm's `out_indices` name, in order.

    Raises:
        UserError: an index outside the maps, or none of a stage's: those before hold no network.
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
