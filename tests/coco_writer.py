"""Images with objects -> a folder in COCO's layout, which any detection tool reads. No torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psvit.data.objects.libraries import mask_tools
from psvit.data.objects.objects import DenseSource
from psvit.errors import UserError
from psvit.files import replacing, write_json


def write_coco(
    source: DenseSource, classes: Sequence[str], folder: Path, split: str = "train", overwrite: bool = False
) -> Path:
    """Write a split as a COCO folder: FOLDER/SPLIT/000000.png, ... and FOLDER/annotations/instances_SPLIT.json.

    Args:
        source: images with objects.
        classes: class names, by class number.
        folder: of the set; its other splits stay as they are.
        split: its name.
        overwrite: replace a split that was written so before.

    Raises:
        UserError: the split is already there, and not to be replaced; or its folder holds anything that an earlier
            writing did not leave.
    """
    path, pictures = folder / "annotations" / f"instances_{split}.json", folder / split
    for there in (path, pictures):
        if there.exists() and not overwrite:
            raise UserError(f"{there} exists: give another folder, or ask for --overwrite")
    if pictures.exists() and (foreign := sorted(_names(pictures) - _written(path))):
        raise UserError(
            f"{pictures / foreign[0]} is no image of a split written before, and is not replaced: give another folder"
        )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with replacing(pictures) as temporary:
        temporary.mkdir()
        for i in range(len(source)):
            image, objects = source.image(i), source.objects(i)
            image.save(temporary / f"{i:06d}.png")
            images.append({"id": i, "file_name": f"{i:06d}.png", "width": image.width, "height": image.height})
            for n, (box, label, area) in enumerate(zip(objects.boxes, objects.labels, objects.areas, strict=True)):
                x0, y0, x1, y1 = map(float, box)
                entry = {"id": len(annotations) + 1, "image_id": i, "category_id": int(label) + 1,
                         "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(area),
                         "iscrowd": int(objects.crowd[n])}  # fmt: skip
                if objects.masks is not None:
                    runs = mask_tools().encode(np.asfortranarray(objects.masks[n].astype(np.uint8)))
                    entry["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
                annotations.append(entry)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    return path


def _names(pictures: Path) -> set[str]:
    return {there.name for there in pictures.iterdir()} if pictures.is_dir() else {"."}


def _written(path: Path) -> set[str]:
    """Names of the images that `write_coco` left beside these annotations."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["images"]
        return {name for i, entry in enumerate(listed) if entry["file_name"] == (name := f"{i:06d}.png")}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
