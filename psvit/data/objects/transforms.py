"""An image with its objects or class map -> tensors, augmented together by torchvision's transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_image

from psvit.data.objects.objects import Objects, boxes_of
from psvit.data.objects.objects_config import DenseAugment

LEAST_SIDE = 1.0
"""Boxes with a shorter side than this many pixels after a crop are dropped."""

ROUNDING = 1.0
"""An annotated box within this many pixels of the box of its mask counts as that."""


def to_tensor(image: Image.Image) -> Tensor:
    """PIL image -> (C, H, W) float32 in 0..1."""
    return v2.functional.to_dtype(to_image(image), torch.float32, scale=True).as_subclass(Tensor)


class Jitter(v2.ScaleJitter):
    """torchvision's scale jitter with exact nearest interpolation of masks.

    torchvision's `nearest` shifts a mask by half a pixel against its image. Sides of thin images stay at least one
    pixel.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The `size` to resize to, drawn at random."""
        params: dict[str, Any] = super().make_params(flat_inputs)
        return {**params, "size": tuple(max(1, side) for side in params["size"])}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """An image or a mask -> the same, resized to `params["size"]`."""
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        shape = inpt.shape  # (..., H, W); torchvision ignores the interpolation mode of masks
        planes = inpt.as_subclass(Tensor).reshape(-1, 1, *shape[-2:]).float()
        resized = F.interpolate(planes, params["size"], mode="nearest-exact").to(inpt.dtype)
        return tv_tensors.wrap(resized.reshape(*shape[:-2], *params["size"]), like=inpt)


class Vary:
    """Resizes, crops, mirrors and colours an image with its boxes and masks.

    Args:
        augment: settings.
        mirror: mirroring does not change the classes.
        mean: of each channel in 0..1, fills pixels outside of the image.
        outside: class number of these pixels in class maps; 0 in masks of objects.
        crop: height and width in pixels of the crop; None for the size of the image.
    """

    def __init__(
        self,
        augment: DenseAugment,
        mirror: bool,
        mean: tuple[float, ...],
        outside: int = 0,
        crop: tuple[int, int] | None = None,
    ) -> None:
        self.augment, self.crop = augment, crop
        self.fill: dict[Any, Any] = {tv_tensors.Image: list(mean), tv_tensors.Mask: outside}
        self.flip = v2.RandomHorizontalFlip(augment.hflip if mirror else 0.0)
        strength = augment.color_jitter
        self.colour: Any = v2.ColorJitter(strength, strength, strength) if strength else v2.Identity()

    def __call__(self, image: Image.Image, *others: Any) -> tuple[Any, ...]:
        """A PIL image and tv_tensors of its size -> the augmented image (C, H, W) in 0..1 and tensors."""
        size = (image.height, image.width)
        varied: tuple[Any, ...] = (v2.functional.to_dtype(to_image(image), torch.float32, scale=True), *others)
        low, high = self.augment.jitter
        if (low, high) != (1.0, 1.0):
            varied = Jitter(size, (low, high))(*varied)
        if (low, high) != (1.0, 1.0) or self.crop is not None:
            varied = v2.RandomCrop(self.crop or size, pad_if_needed=True, fill=self.fill)(*varied)
        varied = self.flip(*varied)
        return self.colour(*varied)


def vary_objects(vary: Vary, image: Image.Image, objects: Objects) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its objects -> (C, H, W) in 0..1 and torchvision's target; crowds are left out.

    Boxes move with the image. A box that fits its mask is recomputed from the visible part of the mask.

    Returns:
        The image, and boxes (n, 4) in pixels, labels (n,) from 1, and masks (n, H, W) uint8 if the set has them.
    """
    kept = ~objects.crowd
    size = (image.height, image.width)
    boxes, labels = objects.boxes[kept], torch.from_numpy(objects.labels[kept]) + 1
    on = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size)
    if objects.masks is None:
        shown, on = vary(image, on)
        found: Tensor = on.as_subclass(Tensor).float().reshape(-1, 4)
        target = {"boxes": found, "labels": labels}
        whole = torch.ones(len(found), dtype=torch.bool)
    else:
        masks = objects.masks[kept]
        shown, moved, on = vary(image, tv_tensors.Mask(torch.from_numpy(masks).to(torch.uint8)), on)
        plain = moved.as_subclass(Tensor)
        # an annotated box may be larger than the mask; then it is kept
        own = torch.from_numpy((np.abs(boxes - boxes_of(masks)) <= ROUNDING).all(axis=1))
        seen = torch.from_numpy(boxes_of(plain.numpy().astype(bool)))
        found = torch.where(own[:, None], seen, on.as_subclass(Tensor).float().reshape(-1, 4))
        target = {"boxes": found, "labels": labels, "masks": plain}
        whole = (plain > 0).flatten(1).any(dim=1)
    whole &= ((found[:, 2:] - found[:, :2]) >= LEAST_SIDE).all(dim=1)
    return shown.as_subclass(Tensor), {name: value[whole] for name, value in target.items()}


def vary_class_map(vary: Vary | None, image: Image.Image, classes: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """An image and the class of each pixel (H, W) -> (C, H, W) in 0..1 and (H, W) int64."""
    mask = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(classes)))
    shown, mask = (to_tensor(image), mask) if vary is None else vary(image, mask)
    return shown.as_subclass(Tensor), mask.as_subclass(Tensor).long()
