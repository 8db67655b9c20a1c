"""Folders of boxes and masks as COCO, Pascal VOC and others lay them out, and what opens them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from refusals import refusal_of

from psvit.data.objects.object_sets import DenseData, open_class_maps, open_objects
from psvit.data.objects.objects import Objects
from psvit.data.objects.objects_config import DenseDataConfig

WIDTH, HEIGHT = 20, 16
SQUARE = [2, 3, 8, 3, 8, 9, 2, 9]
"""Pixels 2 to 7 across, 3 to 8 down."""


def save(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB", value: int = 90) -> Path:
    """An image file of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (value, 20, 30)) if mode == "RGB" else Image.new(mode, size, value)
    image.save(path)
    return path


def drawn(path: Path, pixels: ArrayLike, **how: Any) -> Path:
    """An image file of these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **how)
    return path


def blobs(*values: int, side: int = 24) -> np.ndarray:
    """A mask of broad stripes of these numbers."""
    return np.repeat(np.asarray(values, dtype=np.uint8), side // len(values))[None].repeat(side, axis=0)


def write(path: Path, content: Any) -> Path:
    """A file of this text, or of these data as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def coco(annotations: list[dict[str, Any]], images: int = 2, name: str = "") -> dict[str, Any]:
    """A file of `images` images, with ids from 10, and two categories whose ids have gaps."""
    listed = [{"id": 10 + i, "file_name": f"{name}{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(images)]
    categories = [{"id": 7, "name": "cat"}, {"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}]
    whole = [{"id": at, "iscrowd": 0, "image_id": 10, "category_id": 7, "bbox": [2, 3, 6, 6], **a}
             for at, a in enumerate(annotations)]  # fmt: skip
    return {"images": listed, "categories": categories, "annotations": whole}


def coco_folder(root: Path, content: Any, images: int = 2) -> Path:
    """Images, their annotations to train on, and a test split of one image."""
    for i in range(images):
        save(root / "images" / f"{i}.png")
    write(root / "annotations" / "instances_train.json", content)
    save(root / "images" / "val0.png")
    test = coco([{"segmentation": [SQUARE]}], 1, "val")
    write(root / "annotations" / "instances_val.json", test)
    return root


def opened(root: Path, **config: Any) -> DenseData:
    """A folder's boxes, without a validation split."""
    return open_objects(DenseDataConfig(data=str(root), **{"validation": 0, **config}))


def objects(data: DenseData, i: int = 0) -> Objects:
    """The objects of a training image."""
    return data.train.objects(i)


def filled(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """A mask of the size of the images, true in a rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


refusal = partial(refusal_of, opened)


def xml(*objects: str, size: str = "<size><width>20</width><height>16</height></size>") -> str:
    """A file of Pascal VOC."""
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def an_object(name: str = "cat", box: str = "3 4 8 9", difficult: int = 0) -> str:
    """An object of a file of Pascal VOC, its corners counted from 1."""
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def voc_folder(root: Path, files: dict[str, str], lists: dict[str, str], task: str = "Main") -> Path:
    """Images, their annotations, and the lists of the splits."""
    for name, text in files.items():
        save(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", text)
    for split, names in lists.items():
        write(root / "ImageSets" / task / f"{split}.txt", "\n".join(names.split()))
    return root


def mask_file(path: Path, values: list[int], mode: str = "L", size: tuple[int, int] = (4, 2)) -> Path:
    """A mask that repeats these numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.asarray(values), size[::-1])
    image = Image.fromarray(pixels.astype(np.uint16 if mode == "I;16" else np.uint8))
    (image if mode == "I;16" else image.convert(mode)).save(path)
    return path


def maps(root: Path, **config: Any) -> DenseData:
    """A folder's class maps, without a validation split."""
    return open_class_maps(DenseDataConfig(data=str(root), **{"validation": 0, **config}))
