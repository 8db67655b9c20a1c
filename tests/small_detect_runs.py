"""Small trainings of detectors."""

from pathlib import Path
from typing import Any

from psvit.arch.model_config import ModelConfig
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.engine.train_config import Machine, RunConfig
from psvit.tasks.dense.dense_config import DenseRecipe
from psvit.tasks.detection.detector_config import DetectConfig, DetectorConfig

CPU = Machine("cpu", "float32", 1)
SCENES = DenseDataConfig(scenes=16, img_size=48, validation=0.25)  # 16 to train on, 4 of the validation split
HEADS = DetectorConfig(channels=16, rois=8, proposals=20, head_width=16, mask_layers=1)
MACHINE = ["--device", "cpu", "--threads", "1", "--precision", "float32"]
TRAIN = ["detect", "train", "--scenes", "16", "--img-size", "48", "--validation", "0.25", "--epochs", "2", *MACHINE,
         "--channels", "16", "--rois", "8", "--proposals", "20", "--head-width", "16", "--mask-layers", "1",
         "--lr", "0.003", "--warmup-epochs", "0"]  # fmt: skip
FEW = DenseDataConfig(scenes=8, img_size=48, validation=0.25)  # 8 to train on, 2 of the validation split
KEPT = ["--ema-decay", "0.9", "--drop-path", "0.2", "--color-jitter", "0.3", "--save-every", "1", "--keep-state"]
SHORT = [*TRAIN, *KEPT, "--batch-size", "4"]  # 4 steps an epoch
LONG = [*TRAIN, *KEPT, "--batch-size", "2"]  # 8


def config(output: Path, *, model: ModelConfig | None = None, data: DenseDataConfig = SCENES,
             detector: DetectorConfig = HEADS, **recipe: Any) -> DetectConfig:  # fmt: skip
    calm = {"epochs": 1, "batch_size": 4, "lr": 0.003, "warmup_epochs": 0, **recipe}
    return DetectConfig(model or ModelConfig(), data, DenseRecipe(**calm), CPU, RunConfig(str(output)), detector)


VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2}
