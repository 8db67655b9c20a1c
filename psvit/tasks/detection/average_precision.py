"""True and predicted objects -> COCO's average precision, by faster-coco-eval or pycocotools.

Objects are converted to COCO annotations at once: with run lengths as masks, a split takes little memory.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from psvit.data.objects.objects import Objects
from psvit.data.objects.outlines import mask_tools
from psvit.errors import need

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six metrics of COCO: mean over IoU 0.50:0.95, at 0.50, at 0.75, and by area of objects."""

Annotation = dict[str, Any]


def coco_classes() -> tuple[Any, Any]:
    """The classes COCO and COCOeval, by faster-coco-eval or pycocotools; UserError if neither is installed."""
    modules = ("faster_coco_eval", "pycocotools.coco")
    found = need("average precision needs", *modules, package="faster-coco-eval", extra="dense")
    if hasattr(found, "COCOeval_faster"):
        return found.COCO, found.COCOeval_faster
    return found.COCO, import_module("pycocotools.cocoeval").COCOeval


def true_objects(image: int, objects: Objects) -> list[Annotation]:
    """The true objects of an image as annotations."""
    found = _annotations(image, objects.boxes, objects.labels, objects.masks)
    for one, area, crowd in zip(found, objects.areas.tolist(), objects.crowd.tolist(), strict=True):
        one |= {"area": area, "iscrowd": int(crowd)}
    return found


def found_objects(image: int, output: dict[str, Tensor]) -> list[Annotation]:
    """The output of torchvision's detector (labels from 1, masks (n, 1, H, W) bool) as annotations."""
    plain = {name: value.cpu().numpy() for name, value in output.items()}
    masks = plain["masks"][:, 0] if "masks" in plain else None
    found = _annotations(image, plain["boxes"], plain["labels"] - 1, masks)
    for one, score in zip(found, plain["scores"].tolist(), strict=True):
        one["score"] = score
    return found


def _annotations(image: int, boxes: Any, labels: Any, masks: NDArray[np.bool_] | None) -> list[Annotation]:
    found: list[Annotation] = [
        {"image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for label, (x0, y0, x1, y1) in zip(labels.tolist(), boxes.tolist(), strict=True)
    ]
    if masks is not None:
        for one, mask in zip(found, masks, strict=True):
            one["segmentation"] = mask_tools().encode(np.asfortranarray(mask.astype(np.uint8)))
    return found


def average_precision(
    images: Sequence[dict[str, int]],
    truth: Sequence[Annotation],
    found: Sequence[Annotation],
    classes: Sequence[str],
    kind: str,
) -> dict[str, Any]:
    """Compute COCO's metrics in percent.

    Args:
        images: id, height and width of each.
        truth: `true_objects` of all images; found: `found_objects` of all images.
        classes: class names, by class number.
        kind: ``"box"`` or ``"mask"``, for the IoU.

    Returns:
        `METRICS` by name, None without objects of that size, and ``per_class``: AP by class name.

    Raises:
        UserError: neither library is installed.
    """
    coco, evaluation = coco_classes()
    # COCO would take the area of the box for a result with box and mask
    unused = "bbox" if kind == "mask" else "segmentation"
    results = [{key: value for key, value in one.items() if key != unused} for one in found]
    dataset = {
        "info": {},
        "images": list(images),
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": [{"id": number, **one} for number, one in enumerate(truth, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        true, nothing = coco(), coco()
        true.dataset, nothing.dataset = dataset, {**dataset, "annotations": []}
        true.createIndex()
        nothing.createIndex()
        measured = evaluation(true, true.loadRes(results) if results else nothing, "segm" if kind == "mask" else "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    precision = measured.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all areas, most detections
    per_class = {}
    for place, name in enumerate(classes):
        values = precision[:, :, place]
        per_class[name] = _percent(values[values > -1].mean()) if (values > -1).any() else None
    return {**dict(zip(METRICS, map(_percent, measured.stats), strict=False)), "per_class": per_class}


def _percent(value: float) -> float | None:
    return round(100 * float(value), 4) if value >= 0 else None  # -1: no objects
