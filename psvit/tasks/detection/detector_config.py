"""Settings of a detector and its training. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from psvit.config import Config, Count, Fraction, Rule
from psvit.data.objects.objects_config import DenseDataConfig, ObjectDataConfig
from psvit.errors import UserError
from psvit.tasks.dense.dense_config import DenseConfig, is_small

DetectorName = Literal["mask_rcnn", "faster_rcnn", "retinanet"]
Neck = Literal["auto", "fpn", "simple"]


@dataclass(frozen=True)
class DetectorConfig(Config):
    """The detector on the backbone, from torchvision.

    Args:
        detector: mask_rcnn, faster_rcnn or retinanet; by default mask_rcnn if the set has masks, else faster_rcnn.
        neck: fpn (feature pyramid), simple (ViTDet's pyramid on one map), or auto: simple for a backbone with one
            stride in all stages.
        channels: channels of the pyramid; by default 256, or 64 for scenes up to 128 px.
        short_side: length of the shorter side after resizing; by default 800, or unchanged for scenes up to 128 px.
        long_side: greatest length of the longer side; by default 1333.
        anchor_scale: side of an anchor divided by the stride of its level; by default 8, or 3 for scenes up to 128 px.
        proposals: proposals of the first stage (torchvision's rpn_post_nms_top_n_test, and twice as many in training;
            RetinaNet's topk_candidates); by default 1000, or 100 for scenes up to 128 px.
        rois: boxes per image that train the second stage (torchvision's box_batch_size_per_image); by default
            512, or 32 for scenes up to 128 px.
        head_width: hidden channels of the box head; by default 1024, or 256 for scenes up to 128 px.
        mask_layers: convolutions of the mask head; by default 4, or 2 for scenes up to 128 px.
        detections: most boxes per image.
        score_threshold: boxes with a lower score are dropped.
        frozen_norm: freeze batch norms of the backbone (for pretrained weights and small batches).
    """

    detector: DetectorName | None = None
    neck: Neck = "auto"
    channels: Count | None = None
    short_side: Count | None = None
    long_side: Count | None = None
    anchor_scale: Annotated[float, Rule("a positive number below 1000", lambda value: 0 < value < 1000)] | None = None
    proposals: Count | None = None
    rois: Count | None = None
    head_width: Count | None = None
    mask_layers: Count | None = None
    detections: Count = 100
    score_threshold: Fraction = 0.05
    frozen_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_side and self.long_side and self.short_side > self.long_side:
            raise UserError(f"--short-side {self.short_side} is more than --long-side {self.long_side}")

    def filled(self, img_size: tuple[int, int] | None, has_masks: bool) -> DetectorConfig:
        """These settings with defaults filled in, for images of this size (None: of different sizes).

        Raises:
            UserError: the detector needs masks, and the set has none.
        """
        if self.detector == "mask_rcnn" and not has_masks:
            raise UserError("--detector mask_rcnn needs masks, the set has boxes only: take faster_rcnn or retinanet")
        defaults: dict[str, Any] = dict(FULL)
        if img_size is not None and is_small(img_size):
            defaults = LIGHT | {"short_side": min(img_size), "long_side": max(img_size)}
        defaults["detector"] = "mask_rcnn" if has_masks else "faster_rcnn"
        # if only one side is given, the default of the other must not limit it
        short, long = defaults["short_side"], defaults["long_side"]
        if self.short_side is not None:
            defaults["long_side"] = max(long, -(-self.short_side * long // short))
        elif self.long_side is not None:
            defaults["short_side"] = min(max(short, -(-self.long_side * short // long)), self.long_side)
        return replace(self, **{n: v for n, v in defaults.items() if getattr(self, n) is None})


FULL = {
    "channels": 256, "short_side": 800, "long_side": 1333, "anchor_scale": 8.0, "proposals": 1000, "rois": 512,
    "head_width": 1024, "mask_layers": 4,
}  # fmt: skip
"""Defaults of torchvision."""
LIGHT = {
    "channels": 64, "anchor_scale": 3.0, "proposals": 100, "rois": 32, "head_width": 256, "mask_layers": 2,
}  # fmt: skip
"""Defaults for small scenes, which two CPU cores train in minutes."""


@dataclass(frozen=True)
class DetectConfig(DenseConfig):
    """Everything that the training of a detector depends on."""

    data: DenseDataConfig = field(default_factory=ObjectDataConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
