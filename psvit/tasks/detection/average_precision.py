"""Found and true objects -> COCO's average precision, through faster-coco-eval or pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psvit.data.objects.libraries import coco_classes, mask_tools
from psvit.data.objects.objects import Objects

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six figures of COCO's summary: mean over IoU 0.50:0.95, at 0.50, at 0.75, by the area of objects."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What is in one image, in little memory: a split is held whole.

    Args:
        number: of the image in its split.
        size: height and width in pixels.
        objects: boxes, labels and crowds, without masks.
        areas: (n,) pixels of each object.
        masks: n masks as COCO's run lengths, or None.
    """

    number: int
    size: tuple[int, int]
    objects: Objects
    areas: NDArray[np.float32]
    masks: list[dict[str, Any]] | None

    @classmethod
    def of(cls, number: int, size: tuple[int, int], objects: Objects) -> Truth:
        """The objects of image `number`."""
        masks = encode_rle(objects.masks) if objects.masks is not None else None
        return cls(number, size, replace(objects, masks=None), objects.areas, masks)


@dataclass(frozen=True, eq=False)
class Detected:
    """What a detector found in one image.

    Args:
        number: of the image in its split.
        boxes: (n, 4) x0, y0, x1, y1 in pixels.
        labels: (n,) class numbers from 0.
        scores: (n,) in 0..1.
        masks: n masks as COCO's run lengths, or None.
    """

    number: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: list[dict[str, Any]] | None


def average_precision(
    truths: Sequence[Truth], found: Sequence[Detected], classes: Sequence[str], kind: str
) -> dict[str, Any]:
    """COCO's figures in percent.

    Args:
        truths: what is in the images; found: what was found in them.
        classes: class names, by class number.
        kind: ``"box"`` or ``"mask"``, by which overlap is measured.

    Returns:
        `FIGURES` by name, None where no object is of that size, and ``per_class``: AP by class name.

    Raises:
        UserError: neither library is installed.
    """
    coco, evaluation = coco_classes()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = _dataset(truths, classes, masks=kind == "mask")
        truth.createIndex()
        results = _results(found, masks=kind == "mask")
        nothing = coco()
        nothing.dataset = {**truth.dataset, "annotations": []}
        nothing.createIndex()
        taken = truth.loadRes(results) if results else nothing
        measured = evaluation(truth, taken, "segm" if kind == "mask" else "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    figures = {name: _percent(value) for name, value in zip(FIGURES, measured.stats, strict=False)}
    precision = measured.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all areas, most detections
    per_class = {}
    for place, name in enumerate(classes):
        values = precision[:, :, place]
        per_class[name] = _percent(values[values > -1].mean()) if (values > -1).any() else None
    return {**figures, "per_class": per_class}


def _percent(value: float) -> float | None:
    return round(100 * float(value), 4) if value >= 0 else None  # -1: there is nothing to find


def encode_rle(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Masks (n, H, W) as COCO's compressed run lengths."""
    tools = mask_tools()
    return [tools.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def _dataset(truths: Sequence[Truth], classes: Sequence[str], masks: bool) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for truth in truths:
        objects = truth.objects
        for place in range(len(objects)):
            x0, y0, x1, y1 = map(float, objects.boxes[place])
            line = {
                "id": len(annotations) + 1,
                "image_id": truth.number,
                "category_id": int(objects.labels[place]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(truth.areas[place]),
                "iscrowd": int(objects.crowd[place]),
            }
            shape = {"segmentation": truth.masks[place]} if masks and truth.masks is not None else {}
            annotations.append(line | shape)
    return {
        "info": {},
        "images": [{"id": truth.number, "height": truth.size[0], "width": truth.size[1]} for truth in truths],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": annotations,
    }


def _results(found: Sequence[Detected], masks: bool) -> list[dict[str, Any]]:
    results = []
    for one in found:
        for place in range(len(one.labels)):
            line = {
                "image_id": one.number,
                "category_id": int(one.labels[place]),
                "score": float(one.scores[place]),
            }
            if masks and one.masks is not None:  # and no box: its area would be taken for the mask's
                results.append({**line, "segmentation": one.masks[place]})
            else:
                x0, y0, x1, y1 = map(float, one.boxes[place])
                results.append({**line, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    return results
