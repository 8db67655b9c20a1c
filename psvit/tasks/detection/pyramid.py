"""Feature maps -> the feature pyramid for torchvision's detectors.

Legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from timm.layers import Format, LayerNorm2d, nhwc_to
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from psvit.errors import UserError, one_line
from psvit.models.psvit import PSViT
from psvit.tasks.detection.detector_config import Neck


class SimplePyramid(nn.Module):
    """Maps of several strides from the last map of a plain backbone (ViTDet; Li et al. 2022, section 3).

    Args:
        in_channels: channels of the map; out_channels: channels of the pyramid.
        stride: stride of the map in pixels; strides: those of the pyramid, each a power of two times `stride`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, strides: Sequence[int]) -> None:
        super().__init__()
        levels = []
        for target in strides:
            steps, dim = log2(stride / target), in_channels
            layers: list[nn.Module] = []
            for step in range(int(max(steps, 0))):
                layers += [nn.ConvTranspose2d(dim, dim // 2, 2, 2)]
                layers += [LayerNorm2d(dim // 2), nn.GELU()] if step == 0 and steps > 1 else []
                dim //= 2
            if steps < 0:
                layers.append(nn.MaxPool2d(2 ** int(-steps), ceil_mode=True))
            layers += [nn.Conv2d(dim, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
            layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
            levels.append(nn.Sequential(*layers))
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """(B, C, h, w) -> maps (B, C', h', w') by level."""
        return OrderedDict((str(number), level(x)) for number, level in enumerate(self.levels))


class Backbone(nn.Module):
    """The backbone for torchvision's detectors: images (B, C, H, W) -> a dict of maps with `out_channels` each.

    The maps are float32 also under autocast, since torchvision computes anchors in their dtype, and bfloat16 represents
    integers only up to 256.

    Args:
        body: timm's features.
        neck: fpn, simple or auto: simple if all stages have one stride.
        channels: channels of all maps.

    Attributes:
        strides: stride of each map; the last map is a max pooling of the one before.
    """

    def __init__(self, body: Any, neck: Neck, channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, channels
        strides, dims = list(body.feature_info.reduction()), list(body.feature_info.channels())
        # the patches that PSViT's features begin with are not a stage
        stages = {one["reduction"] for one in body.feature_info.get_dicts() if not one["module"].startswith("patches")}
        self.simple = neck == "simple" or (neck == "auto" and len(stages) == 1)
        if self.simple:
            self.strides = pyramid_strides(strides[-1])
            self.neck: nn.Module = SimplePyramid(dims[-1], channels, strides[-1], self.strides)
        elif len(set(strides)) < len(strides):
            raise UserError(f"--neck fpn needs maps of different strides, the backbone's are {strides}: take simple")
        else:
            # finer maps would cost most of the time and are left out, as in torchvision
            first = next((place for place, stride in enumerate(strides) if stride >= 4), 0)
            self.taken = list(range(first, len(strides)))
            self.strides = strides[first:]
            self.neck = FeaturePyramidNetwork(dims[first:], channels, norm_layer=LayerNorm2d)
        self.last = LastLevelMaxPool()
        self.strides = [*self.strides, 2 * self.strides[-1]]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Images (B, C, H, W) -> maps by level: "0", "1", ... and "pool".

        Raises:
            UserError: the body does not take this size.
        """
        maps = self._maps(x)
        if self.simple:
            levels = self.neck(maps[-1])
        else:
            levels = self.neck(OrderedDict((str(n), maps[place]) for n, place in enumerate(self.taken)))
        names, values = list(levels), list(levels.values())
        values, names = self.last(values, values, names)
        return OrderedDict((name, value.float()) for name, value in zip(names, values, strict=True))

    def _maps(self, x: Tensor) -> list[Tensor]:
        try:
            maps: list[Tensor] = self.body(x)
        except (AssertionError, RuntimeError, IndexError) as error:  # depends on the network
            full = any(words in str(error) for words in ("out of memory", "allocate memory"))  # on GPU, on CPU
            if full or isinstance(getattr(self.body, "model", None), PSViT):
                raise
            raise UserError(
                f"the backbone cannot take images of {x.shape[2]} x {x.shape[3]} pixels ({one_line(error)}): "
                "take one that takes any size, as psvit_2d, resnet or vit"
            ) from error
        if getattr(self.body, "output_fmt", Format.NCHW) == Format.NHWC:
            return [nhwc_to(one, Format.NCHW) for one in maps]
        return maps


def check_read(backbone: Backbone, shape: Sequence[int]) -> None:
    """Refuse a pyramid on the last of several maps if some weights serve only the others, as in HRNet.

    They would have no gradient, for which DDP would wait.

    Args:
        backbone: on the meta device.
        shape: shape (C, H, W) of an image.

    Raises:
        UserError: there are such weights.
    """
    backbone.body.requires_grad_(True)  # disabled by counting
    with torch.device("meta"):
        levels = backbone(torch.zeros(1, *shape))
    torch.stack([level.sum() for level in levels.values()]).sum().backward()
    if idle := [name for name, weight in backbone.body.named_parameters() if weight.grad is None]:
        raise UserError(
            f"--neck simple reads the backbone's last map alone, and {len(idle)} of its weights serve the others, as "
            f"{idle[0]}: take fpn"
        )


def pyramid_strides(stride: int) -> list[int]:
    """The four strides of a pyramid on one map; the first is the stride of the map, halved at most twice.

    It is halved only to an integer of at least 4; so 16 gives 4, 8, 16, 32, and 14 gives 7, 14, 28, 56.
    """
    first = stride
    for _ in range(2):
        first = first // 2 if first % 2 == 0 and first >= 8 else first
    return [first * 2**level for level in range(4)]
