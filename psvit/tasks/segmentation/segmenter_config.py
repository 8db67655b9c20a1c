"""How a segmenter is built and trained, as plain settings. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from psvit.data.objects.objects_config import ClassMapDataConfig, DenseDataConfig
from psvit.engine.train_config import check_fraction, check_whole
from psvit.errors import UserError
from psvit.tasks.dense.dense_config import DenseConfig, is_small

DecoderName = Literal["fpn", "unet", "upernet", "deeplabv3plus", "segformer", "dpt"]
DECODERS = ("fpn", "unet", "upernet", "deeplabv3plus", "segformer", "dpt")
LossName = Literal["cross-entropy", "cross-entropy+dice"]

GROUP = 32
"""Channels of a decoder come in multiples of this: fpn's norms have as many groups."""
CROP = 512
"""Side in pixels of what is cut from images of different sizes; of images of one size it is the most."""


@dataclass(frozen=True)
class SegmenterConfig:
    """The decoder over the backbone; it is one of segmentation_models_pytorch's.

    Args:
        decoder: fpn, unet, upernet, deeplabv3plus, segformer or dpt.
        channels: of the decoder, at its coarsest map in unet; by default 256, or 128 for scenes up to 128 px.
        dropout: of whole channels in training; fpn and deeplabv3plus have one.
        loss: cross-entropy, or cross-entropy+dice: their sum, which learns small classes sooner.
        crop_size: height and width in pixels of what training cuts from an image at random; by default 512 by
            512; where all images are of one size, a side of less than that is cut whole.
    """

    decoder: DecoderName = "fpn"
    channels: int | None = None
    dropout: float = 0.1
    loss: LossName = "cross-entropy+dice"
    crop_size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise UserError(f"--decoder {self.decoder!r} is not one of {', '.join(DECODERS)}")
        if self.loss not in ("cross-entropy", "cross-entropy+dice"):
            raise UserError(f"--loss {self.loss!r} is not cross-entropy or cross-entropy+dice")
        if self.channels is not None:
            check_whole("channels", self.channels)
            if self.channels % GROUP:
                raise UserError(f"--channels {self.channels} is not a multiple of {GROUP}")
        check_fraction("dropout", self.dropout)
        crop: object = self.crop_size
        if crop is not None:
            sides = tuple(crop) if isinstance(crop, (list, tuple)) else (crop,)
            for side in sides:
                check_whole("crop_size", side)
            if len(sides) not in (1, 2):
                raise UserError(f"--crop-size {' '.join(map(str, sides))} is not a height and a width: give one or two")
            object.__setattr__(self, "crop_size", (sides[0], sides[-1]))

    def filled(self, img_size: tuple[int, int] | None) -> SegmenterConfig:
        """These settings with a value for each default, for images of this size (None: of different sizes)."""
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
