"""Masks within boxes -> masks of the image, at the boxes' true places."""

from __future__ import annotations

from math import ceil, floor

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


class Pasting(GeneralizedRCNNTransform):
    """torchvision's resizing of images on the way in and of what is found on the way out, but for the masks.

    torchvision cuts a box to whole pixels before it enlarges its mask to it, and so moves the mask by up to a pixel:
    nothing for a large object, much for one of twenty pixels.
    """

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """What was found in the images as the network saw them -> in the images as they were."""
        if self.training:
            return result
        for found, seen, size in zip(result, image_shapes, original_image_sizes, strict=True):
            found["boxes"] = resize_boxes(found["boxes"], list(seen), list(size))
            if "masks" in found:
                found["masks"] = paste(found["masks"], found["boxes"], size)
        return result


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes in the image (bilinear, at the centres of its pixels; 0 outside of the boxes).

    Args:
        masks: (n, 1, h, w) probabilities, spread over the whole of each box.
        boxes: (n, 4) x0, y0, x1, y1 in pixels.
        size: height and width of the image.

    Returns:
        (n, 1, H, W).
    """
    height, width = size
    pasted = masks.new_zeros(len(masks), 1, height, width)
    for mask, box, canvas in zip(masks, boxes.tolist(), pasted, strict=True):
        x0, y0, x1, y1 = box
        left, top = max(floor(x0), 0), max(floor(y0), 0)
        right, bottom = min(ceil(x1), width), min(ceil(y1), height)
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            continue
        columns = (torch.arange(left, right, device=masks.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
        rows = (torch.arange(top, bottom, device=masks.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (h, w, 2)
        canvas[:, top:bottom, left:right] = F.grid_sample(mask[None], grid[None].to(mask.dtype), align_corners=False)[0]
    return pasted
