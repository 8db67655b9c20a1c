"""Small backbones and detectors, and images with objects."""

from typing import Any

from psvit.arch.model_config import ModelConfig
from psvit.tasks.dense.backbone import open_features
from psvit.tasks.detection.detector_config import DetectorConfig
from psvit.tasks.detection.detectors import build_detector
from psvit.tasks.detection.pyramid import Backbone

VIT: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2}
SMALL: dict[str, Any] = {"channels": 16, "rois": 8, "proposals": 20, "head_width": 16, "mask_layers": 1}


# ---- backbones


def backbone(name: str, size: tuple[int, int] | None = (64, 64), neck: Any = "auto", **more: Any) -> Backbone:
    model = ModelConfig.of(name, **more) if name.startswith("A") else ModelConfig.of(name, model_args=more)
    return Backbone(open_features(model, size, 1, 0.0)[0], neck, 16).eval()


# ---- detectors


def detector(built: Backbone, name: Any, **changes: Any) -> Any:
    config = DetectorConfig(name, **(SMALL | changes)).filled((64, 64), True)
    return build_detector(built, config, 3, (0.5,), (0.2,))
