"""A backbone -> a segmenter: a decoder of segmentation_models_pytorch over timm's features.

smp expects a list of maps, where map i has stride 2^i and map 0 is the image. Its encoder for timm requires strides
that begin at 1, 2 or 4 and double. Ours takes a backbone with its weights and maps of any strides, and builds missing
maps. It is registered in `smp.encoders.encoders`, as smp documents.

Legend: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import log2
from types import ModuleType
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from psvit.errors import UserError, need, one_line
from psvit.tasks.dense.backbone import take_weights
from psvit.tasks.segmentation.segmenter_config import SegmenterConfig

NAME = "psvit"
"""Name of our encoder in smp."""

STEM = 2
"""Level of the finest map that decoders other than unet need: stride 4."""


def decoders() -> ModuleType:
    """segmentation_models_pytorch; UserError if it is not installed."""
    package = "segmentation-models-pytorch"
    return need("decoders need", "segmentation_models_pytorch", package=package, extra="dense")


class FeaturesEncoder(nn.Module):
    """An encoder for smp's decoders: images (B, C, H, W) -> maps at strides 1, 2, 4, ..., 2^last.

    Maps below level `first` that the backbone lacks have no channels, as in smp's encoders. From it on, missing finer
    maps are transposed convolutions of the next coarser map, as in ViTDet's pyramid (Li et al. 2022, section 3), and
    missing coarser maps are max-pooled. A map beyond level `last` is upsampled to it.

    Args:
        body: timm's features.
        in_chans: image channels.
        first: level of the finest map with channels; None for that of the backbone.
        last: level of the coarsest map.
        depth: number of levels, passed by smp; equals `last`.
        output_stride: passed by smp.
    """

    def __init__(
        self, body: Any, in_chans: int, first: int | None, last: int, depth: int, output_stride: int = 32
    ) -> None:
        super().__init__()
        self.model, self.last = body, last
        self.channels_last = getattr(body, "output_fmt", "NCHW") == "NHWC"
        strides, dims = list(body.feature_info.reduction()), list(body.feature_info.channels())
        self.places = {level: place for place, level in enumerate(levels_of(strides))}  # the last map of each stride
        channels = {min(level, last): dims[place] for level, place in sorted(self.places.items())}
        for level in range(max(self.places) + 1, last + 1):
            channels[level] = channels[level - 1]
        self.finer = nn.ModuleDict()
        for level in range(last - 1, (last if first is None else first) - 1, -1):
            if level not in channels:
                channels[level] = max(channels[level + 1] // 2, 1)
                self.finer[str(level)] = nn.Sequential(
                    nn.ConvTranspose2d(channels[level + 1], channels[level], 2, 2),
                    LayerNorm2d(channels[level]),
                    nn.GELU(),
                )
        self.out_channels = [in_chans, *(channels.get(level, 0) for level in range(1, last + 1))]
        self.output_stride = 2**last

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Called by smp; does nothing, since the backbone has the right channels."""

    def make_dilated(self, output_stride: int) -> None:
        """Called by smp; does nothing, since `last` sets the stride."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images with sides that are multiples of the coarsest stride -> maps (B, C', H / 2^i, W / 2^i)."""
        maps = self.model(x)
        if self.channels_last:  # as Swin's
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        found = {level: maps[place] for level, place in self.places.items()}
        coarsest = max(found)
        if coarsest > self.last:
            size = [side // 2**self.last for side in x.shape[2:]]
            found[self.last] = F.interpolate(found[coarsest], size=size, mode="bilinear", align_corners=False)
        for level in range(coarsest + 1, self.last + 1):
            found[level] = F.max_pool2d(found[level - 1], 2)
        for name, layer in self.finer.items():  # from coarse to fine
            found[int(name)] = layer(found[int(name) + 1])
        empty = {level: x.new_empty(len(x), 0, *(side // 2**level for side in x.shape[2:]))
                 for level in range(1, self.last + 1) if level not in found}  # fmt: skip
        return [x, *((found | empty)[level] for level in range(1, self.last + 1))]


def levels_of(strides: Sequence[int]) -> list[int]:
    """The level of each stride, its base-2 logarithm.

    Raises:
        UserError: a stride is not a power of two.
    """
    levels = [log2(stride) for stride in strides]
    if any(level != int(level) for level in levels):
        raise UserError(
            f"the backbone's maps are of strides {', '.join(map(str, strides))}: decoders double maps until they are "
            "the image, so give one whose strides are powers of two, for example by --patch-size 16"
        )
    return [int(level) for level in levels]


def build_segmenter(
    body: Any, described: dict[str, Any], config: SegmenterConfig, num_classes: int, source: str = "the backbone"
) -> nn.Module:
    """Build smp's model with a decoder on a backbone.

    Args:
        body: timm's features, with initial weights.
        described: their description, see `psvit.tasks.dense.backbone.open_features`.
        config: settings with defaults filled in, see `SegmenterConfig.filled`.
        num_classes: K, with the background if there is one.
        source: the backbone, for messages.

    Returns:
        A model: normalized images (B, C, H, W), with sides that are multiples of `multiple_of` -> logits (B, K, H, W).
    """
    smp = decoders()
    in_chans, channels = int(described["model_args"]["in_chans"]), int(config.channels or 256)
    common = {"encoder_weights": None, "in_channels": in_chans, "classes": num_classes}
    if config.decoder == "dpt":
        return _dpt(smp, body, described, channels, common, source)
    coarsest = max(levels_of(body.feature_info.reduction()))
    first: int | None = STEM
    last = max(coarsest, STEM + 1)
    if config.decoder == "unet":
        first = None
        own: dict[str, Any] = {"decoder_channels": [max(channels // 2**step, 8) for step in range(last)]}
    elif config.decoder == "fpn":  # fpn reads the four coarsest
        last = max(coarsest, STEM + 3)
        first = last - 3
        # two channels per group at least, or a map of one pixel could not be normalized
        own = {"decoder_pyramid_channels": channels, "decoder_segmentation_channels": max(channels // 64, 2) * 32,
               "decoder_dropout": config.dropout, "upsampling": 2**first}  # fmt: skip
    elif config.decoder == "upernet":
        own = {"decoder_channels": channels}
    elif config.decoder == "segformer":
        own = {"decoder_segmentation_channels": channels}
    else:
        last = min(last, STEM + 2)  # stride 16, or 8 if the backbone ends there
        own = {"decoder_channels": channels, "decoder_aspp_dropout": config.dropout, "encoder_output_stride": 2**last}
    encoders = smp.encoders.encoders
    encoders[NAME] = {
        "encoder": partial(FeaturesEncoder, body, in_chans, first, last),
        "params": {},
        "pretrained_config": {},
    }
    try:
        model: nn.Module = smp.create_model(config.decoder, NAME, encoder_depth=last, **common, **own)
    finally:
        del encoders[NAME]  # or it would keep the backbone alive
    return model


def _dpt(
    smp: ModuleType, body: Any, described: dict[str, Any], channels: int, common: dict[str, Any], source: str
) -> nn.Module:
    """Build DPT, which builds the backbone itself and reads its intermediate layers."""
    args = {name: value for name, value in described["model_args"].items() if name not in ("in_chans", "num_classes")}
    if not described["architecture"].startswith("psvit"):
        known = timm.get_pretrained_cfg(described["architecture"])
        args |= {"dynamic_img_size": True} if known is not None and known.fixed_input_size else {}
    # the patches that PSViT's features begin with are not intermediate layers
    strides = [one["reduction"] for one in body.feature_info.info if not one["module"].startswith("patches")]
    levels_of(strides)
    # the four coarsest maps of a pyramid, or four layers spread over a plain transformer
    pyramid = sorted({stride: place for place, stride in enumerate(strides)}.values())
    depth = min(4, len(pyramid) if len(pyramid) > 1 else len(strides))
    spread = [(step + 1) * len(strides) // depth - 1 for step in range(depth)]
    chosen = pyramid[-depth:] if len(pyramid) > 1 else spread
    try:
        model: nn.Module = smp.DPT(
            f"tu-{described['architecture']}",
            encoder_depth=depth,
            encoder_output_indices=chosen,
            decoder_readout="ignore",
            decoder_intermediate_channels=[channels] * depth,
            decoder_fusion_channels=channels,
            num_classes=0,
            **common,
            **args,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"--decoder dpt cannot read {source} ({one_line(error)}): take another decoder") from error
    encoder: Any = model.encoder
    if hasattr(encoder.model, "prune_intermediate_layers"):  # unused layers would have no gradient
        encoder.model.prune_intermediate_layers(chosen, prune_norm=True, prune_head=True)
    take_weights(encoder, {name.removeprefix("model."): value for name, value in body.state_dict().items()}, source)
    return model


def multiple_of(model: Any) -> int:
    """The sides of images for a segmenter must be multiples of this."""
    encoder = model.encoder
    if isinstance(encoder, FeaturesEncoder):
        return encoder.output_stride
    # DPT scales its maps to strides 4, 8, ... and adds each to the next, twice as large
    return max(*encoder.output_strides, 2 ** (len(encoder.output_strides) + 1))
