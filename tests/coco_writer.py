"""Images with objects -> a folder in COCO's layout, which any detection tool reads. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psvit.data.objects.objects import DenseSource
from psvit.data.objects.outlines import mask_tools
from psvit.files import write_json


def write_coco(source: DenseSource, classes: Sequence[str], folder: Path, split: str = "train") -> Path:
    """Write a split: FOLDER/SPLIT/000000.png, ... and FOLDER/annotations/instances_SPLIT.json."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True)
    for i in range(len(source)):
        image, objects = source.image(i), source.objects(i)
        image.save(folder / split / f"{i:06d}.png")
        images.append({"id": i, "file_name": f"{i:06d}.png", "width": image.width, "height": image.height})
        for n, (box, label, area) in enumerate(zip(objects.boxes, objects.labels, objects.areas, strict=True)):
            x0, y0, x1, y1 = map(float, box)
            entry = {
                "id": len(annotations) + 1, "image_id": i, "category_id": int(label) + 1, "area": float(area),
                "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(objects.crowd[n]),
            }  # fmt: skip
            if objects.masks is not None:
                runs = mask_tools().encode(np.asfortranarray(objects.masks[n].astype(np.uint8)))
                entry["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
            annotations.append(entry)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    path = folder / "annotations" / f"instances_{split}.json"
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    return path
