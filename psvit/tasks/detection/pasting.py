"""Masks within boxes -> masks of the image, and back, without rounding the boxes."""

from __future__ import annotations

from math import ceil, floor

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import roi_align

MASK_THRESHOLD = 0.5
"""Probability above which a pixel belongs to an object."""


class PastingTransform(GeneralizedRCNNTransform):
    """torchvision's resizing of input images and results, except for masks.

    torchvision rounds a box to whole pixels before it resizes its mask, which moves the mask by up to a pixel, too much
    for small objects. Here masks are bool pixels (n, 1, H, W), not probabilities, since a hundred of those in a
    photograph would take a gigabyte. Sides of thin images stay at least one pixel.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image (C, H, W) and its target for the network."""
        sides = image.shape[-2:]
        scale = min(self.min_size[-1] / min(sides), self.max_size / max(sides))
        if scale * min(sides) >= 1:
            return super().resize(image, target)
        height, width = (max(1, int(side * scale)) for side in sides)
        thin = GeneralizedRCNNTransform(
            self.min_size, self.max_size, self.image_mean, self.image_std, fixed_size=(width, height)
        )
        return thin.train(self.training).resize(image, target)

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Results in the resized images -> results in the original images."""
        if self.training:
            return result
        for found, seen, size in zip(result, image_shapes, original_image_sizes, strict=True):
            found["boxes"] = resize_boxes(found["boxes"], list(seen), list(size))
            if "masks" in found:
                found["masks"] = paste(found["masks"], found["boxes"], size)
        return result


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks within boxes -> masks of the image, by bilinear sampling at pixel centres.

    Args:
        masks: (n, 1, h, w) probabilities, each over its whole box.
        boxes: (n, 4) x0, y0, x1, y1 in pixels.
        size: height and width of the image.

    Returns:
        (n, 1, H, W) bool.
    """
    height, width = size
    pasted = masks.new_zeros((len(masks), 1, height, width), dtype=torch.bool)
    for mask, box, canvas in zip(masks, boxes.tolist(), pasted, strict=True):
        x0, y0, x1, y1 = box
        left, top = max(floor(x0), 0), max(floor(y0), 0)
        right, bottom = min(ceil(x1), width), min(ceil(y1), height)
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            continue
        columns = (torch.arange(left, right, device=masks.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
        rows = (torch.arange(top, bottom, device=masks.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (h, w, 2)
        there = F.grid_sample(mask[None], grid[None].to(mask.dtype), align_corners=False)[0]
        canvas[:, top:bottom, left:right] = there > MASK_THRESHOLD
    return pasted


def cut(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The inverse of `paste`: masks of the image -> masks over the whole of each box.

    torchvision is off by half a pixel, since it calls `roi_align` without `aligned`: a perfect mask of an object of
    twenty pixels would have an IoU of 0.8.

    Args:
        masks: (n, H, W) of the image, 0 or 1, one for each box.
        boxes: (n, 4) x0, y0, x1, y1 in pixels.
        side: side of the result.

    Returns:
        (n, side, side) in 0..1.
    """
    rois = torch.cat([torch.arange(len(boxes), device=boxes.device)[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks[:, None].to(rois), rois, (side, side), aligned=True)[:, 0]


class AlignedRoIHeads(RoIHeads):
    """torchvision's heads of a Mask R-CNN, with mask targets that match `paste`."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps and proposals, in training with targets -> results (none in training), and losses by name."""
        if self.training:
            proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        regions = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, box_regression = self.box_predictor(regions)
        if self.training:
            assert targets is not None
            of_classes, of_boxes = fastrcnn_loss(class_logits, box_regression, labels, regression)
            objects = [label > 0 for label in labels]
            boxes = [box[kept] for box, kept in zip(proposals, objects, strict=True)]
            logits = self._masks(features, boxes, image_shapes)
            true = [
                cut(target["masks"][index[kept]], box, logits.shape[-1])
                for target, index, kept, box in zip(targets, matched, objects, boxes, strict=True)
            ]
            of_masks = mask_loss(logits, torch.cat(true), torch.cat([*labels])[torch.cat(objects)])
            return [], {"loss_classifier": of_classes, "loss_box_reg": of_boxes, "loss_mask": of_masks}
        found = self.postprocess_detections(class_logits, box_regression, proposals, image_shapes)
        result = [{"boxes": b, "labels": n, "scores": s} for b, s, n in zip(*found, strict=True)]
        logits = self._masks(features, [one["boxes"] for one in result], image_shapes)
        for one, masks in zip(result, maskrcnn_inference(logits, [one["labels"] for one in result]), strict=True):
            one["masks"] = masks
        return result, {}

    def _masks(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Logits of masks (n, classes, h, w) of all boxes."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))


def mask_loss(logits: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the mask of the true class of each object (He et al. 2017, section 3).

    Args:
        logits: (n, classes, h, w).
        masks: (n, h, w) in 0..1.
        labels: (n,) int64.
    """
    if not len(labels):
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits[torch.arange(len(labels), device=labels.device), labels], masks)
