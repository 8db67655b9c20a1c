"""A backbone -> a segmenter: a decoder of segmentation_models_pytorch over timm's features.

smp finds the maps of a backbone by their place in a list: place i has the stride 2^i, and place 0 is the image. Its own
encoder for timm takes backbones whose maps begin at stride 1, 2 or 4 and double from one to the next. Ours takes a
backbone with its weights, puts each map at its place, whatever its stride, and makes those that are missing. It is
registered with smp as smp's documentation says (`smp.encoders.encoders`).

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
"""Of our encoder, among smp's."""

STEM = 2
"""Level of the finest map that all decoders but unet need: stride 4."""


def decoders() -> ModuleType:
    """segmentation_models_pytorch; UserError if it is not installed."""
    package = "segmentation-models-pytorch"
    return need("decoders need", "segmentation_models_pytorch", package=package, extra="dense")


class FeaturesEncoder(nn.Module):
    """What smp's decoders take: images (B, C, H, W) -> maps at strides 1, 2, 4, ..., 2^last.

    A map that the backbone lacks has no channels, as in smp's own encoders, up to the level `first`. From there on one
    that is finer than the backbone's is made by a transposed convolution of the next coarser, as in ViTDet's pyramid
    (Li et al. 2022, section 3); one that is coarser, by max pooling. Coarser ones than `last` are scaled up to it.

    Args:
        body: timm's features.
        in_chans: image channels.
        first: level of the finest map that has channels; None to make no map finer than the backbone's.
        last: level of the coarsest map.
        depth: levels that smp asks for; they have to be `last`.
        output_stride: the stride that smp asks for.
    """

    def __init__(
        self, body: Any, in_chans: int, first: int | None, last: int, depth: int, output_stride: int = 32
    ) -> None:
        super().__init__()
        self.model, self.last = body, last
        self.channels_last = getattr(body, "output_fmt", "NCHW") == "NHWC"
        strides, dims = list(body.feature_info.reduction()), list(body.feature_info.channels())
        self.places = {level: place for place, level in enumerate(levels_of(strides))}  # the last one of a stride
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
        """Nothing: the backbone was built for its images."""

    def make_dilated(self, output_stride: int) -> None:
        """Nothing: attention sees the whole image, and `last` has set the stride."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images, whose sides are multiples of the coarsest stride -> maps (B, C', H / 2^i, W / 2^i)."""
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
        for name, layer in self.finer.items():  # from coarse to fine, as they were made
            found[int(name)] = layer(found[int(name) + 1])
        empty = {level: x.new_empty(len(x), 0, *(side // 2**level for side in x.shape[2:]))
                 for level in range(1, self.last + 1) if level not in found}  # fmt: skip
        return [x, *((found | empty)[level] for level in range(1, self.last + 1))]


def levels_of(strides: Sequence[int]) -> list[int]:
    """The level of each stride 2^level.

    Raises:
        UserError: a stride that is no power of two.
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
    """smp's model of that decoder over a backbone.

    Args:
        body: timm's features, with the weights to start from.
        described: what builds them again, see `psvit.tasks.dense.backbone.open_features`.
        config: with a value for each default, see `SegmenterConfig.filled`.
        num_classes: K, with the background where the set has one.
        source: what a message calls the backbone.

    Returns:
        Normalised images (B, C, H, W), whose sides are multiples of `multiple_of` -> logits (B, K, H, W).
        The names of its weights are smp's and timm's own.
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
    elif config.decoder == "fpn":  # it reads the four coarsest
        last = max(coarsest, STEM + 3)
        first = last - 3
        # norms of 32 groups: two channels each at least, or a map of one pixel could not be normed
        own = {"decoder_pyramid_channels": channels, "decoder_segmentation_channels": max(channels // 64, 2) * 32,
               "decoder_dropout": config.dropout, "upsampling": 2**first}  # fmt: skip
    elif config.decoder == "upernet":
        own = {"decoder_channels": channels}
    elif config.decoder == "segformer":
        own = {"decoder_segmentation_channels": channels}
    else:
        last = min(last, STEM + 2)  # stride 16, or 8 for a backbone that ends there
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
        del encoders[NAME]  # it holds this backbone
    return model


def _dpt(
    smp: ModuleType, body: Any, described: dict[str, Any], channels: int, common: dict[str, Any], source: str
) -> nn.Module:
    """DPT reads a network's intermediates rather than its features, and builds the network itself."""
    args = {name: value for name, value in described["model_args"].items() if name not in ("in_chans", "num_classes")}
    if not described["architecture"].startswith("psvit"):
        known = timm.get_pretrained_cfg(described["architecture"])
        args |= {"dynamic_img_size": True} if known is not None and known.fixed_input_size else {}
    # PSViT's features begin with patches of the image, which are no intermediates
    strides = [one["reduction"] for one in body.feature_info.info if not one["module"].startswith("patches")]
    levels_of(strides)
    # the four coarsest maps of a pyramid; of a plain transformer, four spread over its depth
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
    if hasattr(encoder.model, "prune_intermediate_layers"):  # what is not read would wait for its gradient
        encoder.model.prune_intermediate_layers(chosen, prune_norm=True, prune_head=True)
    take_weights(encoder, {name.removeprefix("model."): value for name, value in body.state_dict().items()}, source)
    return model


def multiple_of(model: Any) -> int:
    """What the sides of a segmenter's images have to be multiples of."""
    encoder = model.encoder
    if isinstance(encoder, FeaturesEncoder):
        return encoder.output_stride
    # DPT scales its maps to strides 4, 8, ... and adds each to the next, twice as large
    return max(*encoder.output_strides, 2 ** (len(encoder.output_strides) + 1))
