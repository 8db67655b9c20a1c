"""Outlines of objects in COCO's format, polygons or run lengths -> masks. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psvit.errors import need

Size = tuple[int, int]
"""Height and width in pixels."""

Shape = tuple[NDArray[np.float64], ...] | dict[str, Any]
"""The outline of an object: polygons (x0, y0, x1, y1, ...), or run lengths: size and compressed counts."""

FAR = 10
"""Corners beyond this many image sizes are mistakes, and drawing them could take all memory."""


def mask_tools() -> ModuleType:
    """The mask module of faster-coco-eval or pycocotools; UserError if neither is installed."""
    modules = ("faster_coco_eval.core.mask", "pycocotools.mask")
    return need("masks of COCO need", *modules, package="faster-coco-eval", extra="dense")


def read_shape(segmentation: Any, size: Size) -> Shape | None:
    """Read the outline from the `segmentation` of an annotation; None if there is none.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError, OverflowError: it cannot be drawn.
    """
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, dict):
        return _read_runs(segmentation, size)
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
    polygons = [p for p in polygons if p.ndim == 1 and len(p) >= 6 and len(p) % 2 == 0]
    if not polygons or not all((np.abs(p) < FAR * max(size)).all() for p in polygons):
        raise ValueError("no polygon")
    return tuple(polygons)


def _read_runs(segmentation: Mapping[str, Any], size: Size) -> dict[str, Any]:
    if list(segmentation["size"]) != list(size):
        raise ValueError("of another size")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        packed = {"size": list(size), "counts": counts.encode()}
        if mask_tools().area(packed) > size[0] * size[1]:  # faster-coco-eval raises by itself, pycocotools does not
            raise ValueError("more pixels than the image has")
        return packed
    runs: dict[str, Any] = mask_tools().frPyObjects(segmentation, *size)
    if sum(counts) != size[0] * size[1]:
        raise ValueError("the runs do not add up")
    return runs


def _runs(shape: Shape, size: Size) -> Any:
    if isinstance(shape, dict):
        return shape
    tools = mask_tools()
    return tools.merge(tools.frPyObjects([polygon.tolist() for polygon in shape], *size))


def draw(shape: Shape, size: Size) -> NDArray[np.bool_]:
    """The pixels (H, W) of an outline, drawn by COCO's tools."""
    return np.asarray(mask_tools().decode(_runs(shape, size)), dtype=bool)


def bound(shape: Shape, size: Size) -> list[float]:
    """The box around an outline: x, y, width, height."""
    return [float(x) for x in mask_tools().toBbox(_runs(shape, size))]


def is_empty(shape: Shape, size: Size) -> bool:
    """Whether an outline has no pixel: too thin, or outside of the image. False for invalid run lengths."""
    if not isinstance(shape, dict) and any(_is_broad(polygon, size) for polygon in shape):
        return False
    try:
        return not draw(shape, size).any()
    except (ValueError, RuntimeError):  # reported when the objects are read
        return False


def _is_broad(polygon: NDArray[np.float64], size: Size) -> bool:
    """Whether a polygon surely has a pixel in the image; a fast check that saves drawing most of them."""
    x, y = polygon[0::2], polygon[1::2]
    area = abs(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1]) / 2
    left, right, top, bottom = x.min(), x.max(), y.min(), y.max()
    inside = left >= 0 and top >= 0 and right <= size[1] and bottom <= size[0]
    return bool(inside and area >= 2 * (right - left + bottom - top))
