"""Draw predictions over images."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.font_manager import findfont
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from psvit.errors import UserError
from psvit.files import check_writable, replacing

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
"""The palette of Okabe and Ito, for colour-blind readers too."""

LEAST_SIDE = 480
"""Images with fewer pixels on the longer side are enlarged by an integer, so that names are readable."""


def files_for(paths: Sequence[Path], folder: str, overwrite: bool) -> dict[Path, Path]:
    """The PNG file in `folder` for each image file, of the same name, with a number if that repeats.

    Raises:
        UserError: a file exists without `overwrite`, or is one of the images; or the folder is a file or not writable.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UserError(f"--output {folder} is a file: give a folder")
    check_writable(target, f"--output {folder}")
    files: dict[Path, Path] = {}
    taken: set[Path] = set()
    for path in dict.fromkeys(paths):
        file, number = target / f"{path.stem}.png", 1
        while file in taken:
            number += 1
            file = target / f"{path.stem}-{number}.png"
        files[path] = file
        taken.add(file)
    images = {path.resolve() for path in paths}
    if own := next((file for file in files.values() if file.resolve() in images), None):
        raise UserError(f"{own} is one of the images, which are never replaced: give another --output")
    there = [file for file in files.values() if file.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} is there already: give --overwrite to replace it, or another --output")
    return files


def draw_objects(
    pixels: Tensor, boxes: Tensor, labels: Sequence[str], scores: Sequence[float], masks: Tensor | None, file: Path
) -> None:
    """Write an image (C, H, W) with its objects as PNG.

    Args:
        pixels: in 0..1.
        boxes: (n, 4) x0, y0, x1, y1 in pixels.
        labels: class names; scores: in 0..1.
        masks: (n, H, W) bool, or None.
        file: PNG.
    """
    canvas, times = _canvas(pixels)
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(labels))]
    if masks is not None and len(masks):
        large = masks.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
        canvas = draw_segmentation_masks(canvas, large, alpha=0.5, colors=colours)
    if len(boxes):
        names = [f"{label} {100 * score:.0f}" for label, score in zip(labels, scores, strict=True)]
        canvas = draw_bounding_boxes(
            canvas, boxes * times, names, colors=colours, width=2, font=findfont("DejaVu Sans"), font_size=15
        )
    _write(canvas, file)


def draw_class_map(pixels: Tensor, classes: Tensor, file: Path, background: bool = True) -> None:
    """Write an image (C, H, W) overlaid with the colour of the class of each pixel (H, W) as PNG.

    Args:
        pixels: in 0..1.
        classes: class numbers.
        file: PNG.
        background: class 0 is the background and has no colour.
    """
    canvas, times = _canvas(pixels)
    large = F.interpolate(classes[None, None].float(), scale_factor=times)[0, 0].long()
    numbers = [number for number in large.unique().tolist() if number > 0 or not background]
    if numbers:
        masks = torch.stack([large == number for number in numbers])
        colours = [class_colour(number, background) for number in numbers]
        canvas = draw_segmentation_masks(canvas, masks, alpha=0.5, colors=colours)
    _write(canvas, file)


def write_class_map(classes: Tensor, file: Path, background: bool = True) -> None:
    """Write class numbers (H, W) as PNG with a palette of class colours."""
    image = Image.fromarray(classes.to(torch.uint8).numpy(), mode="L")
    image.putpalette([part for number in range(256) for part in class_colour(number, background)])
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        image.save(temporary, format="PNG")


def class_colour(number: int, background: bool = True) -> tuple[int, int, int]:
    """Red, green and blue of a class; the background, class 0, is black."""
    if background and number == 0:
        return (0, 0, 0)
    place = number - background
    if place < len(COLOURS):
        return tuple(bytes.fromhex(COLOURS[place][1:]))  # type: ignore[return-value]  # three of them
    # more hues by the golden ratio: neighbours differ, and none repeats
    parts = hsv_to_rgb(place * 0.618034 % 1, 0.55 + 0.4 * (place % 2), 0.95 - 0.3 * (place % 3 == 0))
    return (round(255 * parts[0]), round(255 * parts[1]), round(255 * parts[2]))


def _canvas(pixels: Tensor) -> tuple[Tensor, int]:
    """(C, H, W) in 0..1 -> (3, H', W') uint8, and how many times larger it is."""
    times = max(1, round(LEAST_SIDE / max(pixels.shape[1:])))
    coloured = pixels.expand(3, -1, -1) if pixels.shape[0] == 1 else pixels
    return (F.interpolate(coloured[None], scale_factor=times)[0] * 255).round().to(torch.uint8), times


def _write(canvas: Tensor, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        to_pil_image(canvas).save(temporary, format="PNG")
