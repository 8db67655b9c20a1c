"""Training settings that detectors and segmenters share, and named recipes. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field

from psvit.config import Count, Fraction
from psvit.data.objects.objects_config import DenseAugment, DenseDataConfig
from psvit.engine.train_config import LearnConfig, Schedule, Step

SMALL = 128
"""Scenes up to this side are small: they get small networks, and a detector does not resize them."""


def is_small(img_size: tuple[int, int] | None) -> bool:
    """Whether images of this height and width are small; False for different sizes (None)."""
    return img_size is not None and max(img_size) <= SMALL


@dataclass(frozen=True)
class DenseRecipe(Schedule):
    """The training recipe of a detector or a segmenter."""

    epochs: Count = 12
    batch_size: Count = 8
    base_lr: Step = 0.128
    warmup: Fraction = 0.1
    clip_grad: Step | None = 1.0
    drop_path: Fraction = 0.05
    ema_decay: Fraction = 0.0
    augment: DenseAugment = field(default_factory=DenseAugment)


def scratch() -> DenseRecipe:
    """For an untrained backbone on small scenes: 2e-3 for batches of 8, chosen on digits-scenes (validation split).

    ``psvit detect train --data digits-scenes --epochs 8``
    """
    return DenseRecipe()


def finetune() -> DenseRecipe:
    """For a trained backbone on photographs: 1e-4 for batches of 16, as in ViTDet (not measured here yet).

    ``psvit detect train --recipe finetune --data FOLDER --model runs/train/best --batch-size 2 --accumulate 8``
    """
    return DenseRecipe(batch_size=16, base_lr=3.2e-3, drop_path=0.1, augment=DenseAugment(jitter=(0.5, 2.0)))


RECIPES = {"scratch": scratch, "finetune": finetune}


@dataclass(frozen=True)
class DenseConfig(LearnConfig):
    """Everything that the training of a detector or a segmenter depends on, except its head."""

    data: DenseDataConfig = field(default_factory=DenseDataConfig)
    recipe: DenseRecipe = field(default_factory=DenseRecipe)
