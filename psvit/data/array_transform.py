"""Images in memory -> normalized tensors, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from psvit.data.data_config import Augment

PLAIN = Augment(scale=(1, 1), hflip=0, color_jitter=0)
"""No augmentation."""

TRIES = 10
"""Random crops that are tried before the central one is taken, as in timm."""

Uniforms = NDArray[np.float64]
"""Numbers in [0, 1), one for each image (B,)."""


class ArrayTransform:
    """A transform of images, and of whole batches of pixels where it needs no more than crops, mirroring and shifts.

    Args:
        per_image: image -> normalized tensor (C, H, W).
        size: height and width of the tensors.
        mean: by channel, of pixels in 0..1.
        std: by channel.
        augment: the random part of `per_image`.
    """

    def __init__(
        self,
        per_image: Callable[[Image.Image], Tensor],
        size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Augment = PLAIN,
    ) -> None:
        self.per_image, self.size, self.augment = per_image, size, augment
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image -> (C, H, W)."""
        return self.per_image(image)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether `batch` does the same as `per_image` to images of this shape, (H, W) or (H, W, C)."""
        asked, (height, width, *colours) = self.augment, shape
        if asked.auto_augment or asked.color_jitter or asked.random_erasing:
            return False
        if colours not in ([], [1], [self.mean.shape[1]]):
            return False
        # Pillow averages pixels where it makes an image smaller, which sampling does not
        larger = height <= self.size[0] and width <= self.size[1]
        return self._whole(height, width) or (larger and asked.interpolation == "bilinear")

    def _whole(self, height: int, width: int) -> bool:
        """Whether images of this size stay as they are, without a crop or a resize."""
        asked = self.augment
        return (
            (height, width) == self.size
            and asked.scale[0] == 1
            and central_crop(height, width, asked.ratio) == (0, 0, height, width)
        )

    def batch(self, pixels: NDArray[np.uint8], draws: NDArray[np.int64]) -> Tensor:
        """Augment and normalize a batch; each image's random numbers depend on its draw alone.

        Args:
            pixels: (B, H, W) or (B, H, W, C), of a shape that `takes` allows.
            draws: (B,), seeds of the images.

        Returns:
            (B, C, H, W) float32.
        """
        asked, (height, width) = self.augment, pixels.shape[1:3]
        images: NDArray[Any] = pixels.reshape(*pixels.shape[:3], -1).transpose(0, 3, 1, 2)  # (B, C, H, W)
        if not self._whole(height, width):
            boxes = random_boxes(uniforms(draws, 4, 2 * TRIES + 2), height, width, asked.scale, asked.ratio)
            images = crop(images, boxes, self.size)
        chosen, down, right = uniforms(draws, 0, 3)
        if asked.hflip:
            images = np.where((chosen < asked.hflip)[:, None, None, None], images[..., ::-1], images)
        if asked.shift:
            images = shift(images, asked.shift, down, right)
        tensor = torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
        return (tensor - self.mean).div_(self.std)


def uniforms(draws: NDArray[np.int64], first: int, count: int) -> NDArray[np.float64]:
    """Numbers first, first + 1, ... of each draw's sequence, in [0, 1): (B,) -> (count, B).

    The sequence is SplitMix64's: a number is a function of the draw and its place, so batches can be cut anyhow.
    """
    steps = np.arange(first + 1, first + count + 1, dtype=np.uint64)[:, None]
    bits = draws.astype(np.uint64) + steps * np.uint64(0x9E3779B97F4A7C15)  # wraps around at 2^64
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def shift(images: NDArray[Any], most: int, down: Uniforms, right: Uniforms) -> NDArray[Any]:
    """Move each image (B, C, H, W) by at most `most` pixels each way; black pixels move in."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))  # (B, C, 2 most + 1, 2 most + 1, H, W)
    top, left = ((part * (2 * most + 1)).astype(np.int64) for part in (down, right))
    chosen: NDArray[Any] = windows[np.arange(len(images)), :, top, left]
    return chosen


def random_boxes(
    numbers: NDArray[np.float64], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> NDArray[np.int64]:
    """Random crops of images, as timm and torchvision draw them.

    Args:
        numbers: (2 x TRIES + 2, B), in [0, 1).
        height: of the images.
        width: of the images.
        scale: least and greatest area, as fractions of the image.
        ratio: least and greatest width over height.

    Returns:
        (4, B): top, left, height and width of each crop.
    """
    areas, shapes, (down, right) = numbers[:TRIES], numbers[TRIES:-2], numbers[-2:]
    area = (scale[0] + areas * (scale[1] - scale[0])) * height * width
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** shapes
    wide = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    high = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (wide <= width) & (high <= height)
    first, each = fits.argmax(axis=0), np.arange(fits.shape[1])
    high, wide = high[first, each], wide[first, each]
    top, left = ((part * (room + 1)).astype(np.int64) for part, room in ((down, height - high), (right, width - wide)))
    central = np.array(central_crop(height, width, ratio))[:, None]
    return np.where(fits.any(axis=0), np.stack([top, left, high, wide]), central)


def central_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest crop at the centre whose width over height is within `ratio`: top, left, height, width."""
    high, wide = height, width
    if width / height < ratio[0]:
        high = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (height - high) // 2, (width - wide) // 2, high, wide


def crop(images: NDArray[np.uint8], boxes: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge the part of each image (B, C, H, W) within its box to `size`, bilinearly."""
    top, left, high, wide = torch.from_numpy(boxes).float()[:, :, None]
    rows = _places(top, high, size[0]) * (2 / max(images.shape[2] - 1, 1)) - 1  # (B, H), from -1 to 1
    columns = _places(left, wide, size[1]) * (2 / max(images.shape[3] - 1, 1)) - 1
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)  # (B, H, W, 2)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    found: NDArray[np.float32] = F.grid_sample(pixels, grid, align_corners=True, padding_mode="border").numpy()
    return found


def _places(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where the centres of `size` pixels fall within boxes (B, 1), never beyond their outer pixels: (B, size)."""
    inner = (torch.arange(size) + 0.5) * length / size - 0.5
    return start + torch.minimum(inner.clamp(min=0), length - 1)
