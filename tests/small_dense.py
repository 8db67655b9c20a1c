"""Small backbones, detectors and segmenters, and how they are trained."""

from pathlib import Path
from typing import Any

from torch import nn

from psvit.arch.model_config import ModelConfig
from psvit.data.objects.object_sets import DenseData
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.engine.train_config import Machine, RunConfig
from psvit.tasks.dense.backbone import open_features
from psvit.tasks.dense.dense_config import DenseRecipe
from psvit.tasks.detection.detect import Detection
from psvit.tasks.detection.detector_config import DetectConfig, DetectorConfig
from psvit.tasks.detection.detectors import build_detector
from psvit.tasks.detection.pyramid import Backbone
from psvit.tasks.segmentation.segment import Segmentation
from psvit.tasks.segmentation.segmenter_config import SegmenterConfig
from psvit.tasks.segmentation.segmenters import build_segmenter

CPU = Machine("cpu", "float32", 1)
MACHINE = ["--device", "cpu", "--threads", "1", "--precision", "float32"]
VIT: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2}
ARCH = ModelConfig.of("AS-A", widths=(16, 32), head_dim=8, patch_size=4)


# ---- detectors

HEADS = DetectorConfig(channels=16, rois=8, proposals=20, head_width=16, mask_layers=1)
SCENES = DenseDataConfig(scenes=16, img_size=48, validation=0.25)  # 16 to train on, 4 of the validation split
FEW = DenseDataConfig(scenes=8, img_size=48, validation=0.25)  # 8 and 2
TRAIN = ["detect", "train", "--scenes", "16", "--img-size", "48", "--validation", "0.25", "--epochs", "2", *MACHINE,
         "--channels", "16", "--rois", "8", "--proposals", "20", "--head-width", "16", "--mask-layers", "1",
         "--lr", "0.003", "--warmup", "0"]  # fmt: skip


def backbone(name: str, size: tuple[int, int] | None = (64, 64), neck: Any = "auto", **more: Any) -> Backbone:
    model = ModelConfig.of(name, **more) if name.startswith("A") else ModelConfig.of(name, model_args=more)
    return Backbone(open_features(model, size, 1, 0.0)[0], neck, 16).eval()


def detector(built: Backbone, name: Any, **changes: Any) -> Any:
    config = DetectorConfig(**{**vars(HEADS), "detector": name, **changes}).filled((64, 64), True)
    return build_detector(built, config, 3, (0.5,), (0.2,))


def detection(img_size: tuple[int, int] | None = (64, 64), in_chans: int = 1, **head: Any) -> Detection:
    return Detection(DetectorConfig(**head), tuple("abc"), in_chans, (0.5,), (0.2,), img_size)


def config(output: Path, *, model: ModelConfig | None = None, data: DenseDataConfig = SCENES,
             detector: DetectorConfig = HEADS, **recipe: Any) -> DetectConfig:  # fmt: skip
    calm = {"epochs": 1, "batch_size": 4, "lr": 0.003, "warmup": 0.0, **recipe}
    return DetectConfig(model or ModelConfig(), data, DenseRecipe(**calm), CPU, RunConfig(str(output)), detector)


# ---- segmenters


def features(model: ModelConfig = ARCH, size: tuple[int, int] = (64, 64), in_chans: int = 1) -> Any:
    return open_features(model, size, in_chans)


def segmenter(decoder: Any, model: ModelConfig = ARCH, size: tuple[int, int] = (64, 64), **args: Any) -> nn.Module:
    body, described = features(model, size)
    return build_segmenter(body, described, SegmenterConfig(decoder, **{"channels": 32, **args}), 4)


def segmentation(data: DenseData | None = None, **head: Any) -> Segmentation:
    config = SegmenterConfig(**{"channels": 32, "dropout": 0.0, "crop_size": (48, 48), **head})
    if data is None:
        return Segmentation(config, tuple("abcd"), 1, (0.5,), (0.25,), None)
    return Segmentation(config, data.classes, data.in_chans, data.mean, data.std, data.img_size)
