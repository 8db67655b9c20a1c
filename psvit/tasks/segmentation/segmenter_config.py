"""Settings of a segmenter and its training. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from psvit.config import Config, Count, Fraction, Rule
from psvit.data.objects.objects_config import ClassMapDataConfig, DenseDataConfig
from psvit.errors import UserError
from psvit.tasks.dense.dense_config import DenseConfig, is_small

DecoderName = Literal["fpn", "unet", "upernet", "deeplabv3plus", "segformer", "dpt"]
DECODERS = ("fpn", "unet", "upernet", "deeplabv3plus", "segformer", "dpt")
LossName = Literal["cross-entropy", "cross-entropy+dice"]

GROUP = 32
"""Channels of a decoder are a multiple of this, the number of groups in fpn's norms."""
CROP = 512
"""Side in pixels of the training crop; images of one size may be smaller."""

Channels = Annotated[Count, Rule(f"a multiple of {GROUP}", lambda value: value % GROUP == 0)]
Sides = Annotated[tuple[Count, ...], Rule("a height and a width: give one or two", lambda sides: len(sides) in (1, 2))]


@dataclass(frozen=True)
class SegmenterConfig(Config):
    """The decoder on the backbone, from segmentation_models_pytorch.

    Args:
        decoder: fpn, unet, upernet, deeplabv3plus, segformer or dpt.
        channels: channels of the decoder, in unet of its coarsest map; by default 256, or 128 for scenes up to 128 px.
        dropout: dropout of whole channels, for fpn and deeplabv3plus.
        loss: cross-entropy, or cross-entropy+dice: their sum, which learns small classes sooner.
        crop_size: height and width in pixels of the random crop in training; by default 512 by 512, or less if all
            images have one smaller size.
    """

    decoder: DecoderName = "fpn"
    channels: Channels | None = None
    dropout: Fraction = 0.1
    loss: LossName = "cross-entropy+dice"
    crop_size: Sides | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_size is not None:
            object.__setattr__(self, "crop_size", (self.crop_size[0], self.crop_size[-1]))

    def filled(self, img_size: tuple[int, int] | None) -> SegmenterConfig:
        """These settings with defaults filled in, for images of this size (None: of different sizes)."""
        height, width = img_size or (CROP, CROP)
        defaults: dict[str, Any] = {
            "channels": 128 if is_small(img_size) else 256,
            "crop_size": (min(height, CROP), min(width, CROP)),
        }
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})


@dataclass(frozen=True)
class SegmentConfig(DenseConfig):
    """Everything that the training of a segmenter depends on."""

    data: DenseDataConfig = field(default_factory=ClassMapDataConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)

    def __post_init__(self) -> None:
        if self.recipe.batch_size == 1 and self.segmenter.decoder in ("upernet", "deeplabv3plus"):
            raise UserError(f"--batch-size 1 is too small for {self.segmenter.decoder}: it norms one value of each "
                            "image over the batch; give 2 or more, or --decoder fpn")  # fmt: skip
