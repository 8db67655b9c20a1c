"""Small trainings of detectors."""

from pathlib import Path
from typing import Any

from psvit.data.objects.objects_config import DenseDataSettings
from psvit.engine.train_config import Machine, ModelSettings, RunSettings
from psvit.tasks.dense.dense_config import DenseRecipe
from psvit.tasks.detection.detector_config import DetectorSettings, DetectSettings

CPU = Machine("cpu", "float32", 1)
SCENES = DenseDataSettings(scenes=16, img_size=48, holdout=0.25)  # 16 to train on, 4 of the hold-out
HEADS = DetectorSettings(channels=16, rois=8, proposals=20, head_width=16, mask_layers=1)
MACHINE = ["--device", "cpu", "--threads", "1", "--precision", "float32"]
TRAIN = ["detect", "train", "--scenes", "16", "--img-size", "48", "--holdout", "0.25", "--epochs", "2", *MACHINE,
         "--channels", "16", "--rois", "8", "--proposals", "20", "--head-width", "16", "--mask-layers", "1",
         "--lr", "0.003", "--warmup-epochs", "0"]  # fmt: skip
FEW = DenseDataSettings(scenes=8, img_size=48, holdout=0.25)  # 8 to train on, 2 of the hold-out
KEPT = ["--ema-decay", "0.9", "--drop-path", "0.2", "--color-jitter", "0.3", "--save-every", "1", "--keep-state"]
SHORT = [*TRAIN, *KEPT, "--batch-size", "4"]  # 4 steps an epoch
LONG = [*TRAIN, *KEPT, "--batch-size", "2"]  # 8


def settings(output: Path, *, model: ModelSettings | None = None, data: DenseDataSettings = SCENES,
             detector: DetectorSettings = HEADS, **recipe: Any) -> DetectSettings:  # fmt: skip
    calm = {"epochs": 1, "batch_size": 4, "lr": 0.003, "warmup_epochs": 0, **recipe}
    return DetectSettings(model or ModelSettings(), data, DenseRecipe(**calm), CPU, RunSettings(str(output)), detector)


VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2}
