"""Small segmenters and how they are trained."""

from typing import Any

from torch import nn

from psvit.arch.model_config import ModelConfig
from psvit.tasks.dense.backbone import open_features
from psvit.tasks.segmentation.segmenter_config import SegmenterConfig
from psvit.tasks.segmentation.segmenters import build_segmenter

ARCH = ModelConfig.of("AS-A", widths=(16, 32), head_dim=8, patch_size=4)


def features(model: ModelConfig = ARCH, size: tuple[int, int] = (64, 64), in_chans: int = 1) -> Any:
    return open_features(model, size, in_chans)


def segmenter(decoder: Any, model: ModelConfig = ARCH, size: tuple[int, int] = (64, 64), **args: Any) -> nn.Module:
    body, described = features(model, size)
    return build_segmenter(body, described, SegmenterConfig(decoder, **{"channels": 32, **args}), 4)
