"""How detectors and segmenters are trained: the settings that they share, and named recipes. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field

from psvit.dense.data.settings import DenseDataSettings
from psvit.errors import UserError
from psvit.training.recipes import LearnSettings, ModelSettings, Schedule

SMALL = 128
"""Scenes of at most this side are small: their networks are too, and a detector does not resize them."""


def is_small(img_size: tuple[int, int] | None) -> bool:
    """Whether images of this height and width are small; those of different sizes (None) are not."""
    return img_size is not None and max(img_size) <= SMALL


@dataclass(frozen=True)
class BackboneSettings(ModelSettings):
    """Which network to build.

    Args:
        model: a psvit variant, a genotype, any model of timm, the folder of a search (its network, from scratch), or a
            checkpoint folder to start from; auto is a small PSViT-2D for images or crops of one size up to 128 px,
            else psvit_2d_tiny.
    """


@dataclass(frozen=True)
class DenseAugment:
    """What training does to a scene and its objects at random, through torchvision's transforms.

    Args:
        hflip: probability of a mirrored scene; taken as 0 where mirroring changes the class.
        jitter: least and greatest factor by which a scene is resized; it is then cut or padded to its size.
        color_jitter: strength of random brightness, contrast and saturation.
    """

    hflip: float = 0.5
    jitter: tuple[float, float] = (0.8, 1.25)
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hflip <= 1:
            raise UserError(f"--hflip {self.hflip!r} is not between 0 and 1: correct it or leave it out")
        if not 0 <= self.color_jitter < float("inf"):
            raise UserError(f"--color-jitter {self.color_jitter!r} is negative: correct it or leave it out")
        pair: object = self.jitter
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not 0 < pair[0] <= pair[1] <= 10:
            raise UserError(
                f"--jitter {pair!r} is not a range: give two positive numbers up to 10, the lower first, as 0.8 1.25"
            )
        object.__setattr__(self, "jitter", tuple(pair))


@dataclass(frozen=True)
class DenseRecipe(Schedule):
    """How the weights are learned."""

    epochs: int = 12
    batch_size: int = 8
    base_lr: float = 0.128
    warmup_epochs: int = 1
    clip_grad: float | None = 1.0
    drop_path: float = 0.05
    ema_decay: float = 0.0
    augment: DenseAugment = field(default_factory=DenseAugment)


def scratch() -> DenseRecipe:
    """A backbone without weights, small scenes; 2e-3 for batches of 8, chosen on the hold-out of digits-scenes.

    ``psvit detect train --data digits-scenes --epochs 8``
    """
    return DenseRecipe()


def finetune() -> DenseRecipe:
    """A trained backbone, photographs: 1e-4 for batches of 16, as ViTDet's (our figures for it: none yet).

    ``psvit detect train --recipe finetune --data FOLDER --model runs/train/best --batch-size 2 --accumulate 8``
    """
    return DenseRecipe(batch_size=16, base_lr=3.2e-3, drop_path=0.1, augment=DenseAugment(jitter=(0.5, 2.0)))


RECIPES = {"scratch": scratch, "finetune": finetune}


@dataclass(frozen=True)
class DenseSettings(LearnSettings):
    """What the training of a detector or a segmenter depends on, whichever it is."""

    model: ModelSettings = field(default_factory=BackboneSettings)
    data: DenseDataSettings = field(default_factory=DenseDataSettings)
    recipe: DenseRecipe = field(default_factory=DenseRecipe)
