"""digits-scenes: scenes composed of scikit-learn's digits, with boxes and masks. No torch.

Scene i is a function of (seed of the split, i), so it is the same in every process and epoch. Digits of 8 x 8 pixels
are enlarged and drawn over clutter and each other; the visible part of a digit is its mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from psvit.data.objects.objects import DenseSource, Objects, boxes_of

SIDE = 96
"""Side of a scene in pixels for which digits are enlarged by `SCALES`; larger scenes scale everything."""
LEAST_SIDE = 48
"""In smaller scenes the smallest digits would have fewer pixels than the originals."""

DIGITS = (2, 8)
SCALES = (1.25, 4.0)
VISIBLE = 0.5
"""Least visible fraction of each digit."""
INK = 0.35
"""Opacity from which a pixel belongs to a digit."""
TRIES = 20
"""Number of places tried for a digit before it is left out."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One composed scene: pixels (H, W), masks (n, H, W) of the visible part of each digit, labels (n,)."""

    pixels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


class ScenesSource(DenseSource):
    """Scenes, composed on demand.

    Args:
        digits: (N, 8, 8) grey digits, bright on dark, to compose from.
        labels: (N,) their class numbers.
        seed: of the split.
        length: number of scenes.
        size: height and width in pixels, at least `LEAST_SIDE`.
        title: name of the split.
    """

    def __init__(
        self,
        digits: NDArray[np.uint8],
        labels: NDArray[np.int64],
        seed: tuple[int, ...],
        length: int,
        size: tuple[int, int],
        title: str,
    ) -> None:
        self.digits, self.labels, self.seed, self.length = digits, labels, seed, length
        self.size, self.title = size, title
        self._last: tuple[int, Scene] | None = None  # a cache, since image and objects of a scene are read in turn

    def __len__(self) -> int:
        return self.length

    def scene(self, i: int) -> Scene:
        """Compose scene i."""
        if not 0 <= i < self.length:
            raise IndexError(f"there is no scene {i} in {self.title}: it has {self.length}")
        if self._last is None or self._last[0] != i:
            self._last = i, compose(self.digits, self.labels, self.size, np.random.default_rng((*self.seed, i)))
        return self._last[1]

    def image(self, i: int) -> Image.Image:
        """Scene i, mode L."""
        return Image.fromarray(self.scene(i).pixels)

    def name(self, i: int) -> str:
        """For example ``digits-scenes test #12``."""
        return f"{self.title} #{i}"

    def size_of(self, i: int) -> tuple[int, int]:
        """Height and width of any scene."""
        return self.size

    def objects(self, i: int) -> Objects:
        """The digits of scene i, from back to front."""
        scene = self.scene(i)
        return Objects(boxes_of(scene.masks), scene.labels, scene.masks, np.zeros(len(scene.labels), dtype=bool))

    def class_map(self, i: int) -> NDArray[np.int64]:
        """(H, W): 0 for the background, 1 to 10 for the digits 0 to 9."""
        scene = self.scene(i)
        return np.asarray((scene.masks * (scene.labels + 1)[:, None, None]).sum(axis=0), dtype=np.int64)


def compose(
    digits: NDArray[np.uint8], labels: NDArray[np.int64], size: tuple[int, int], rng: np.random.Generator
) -> Scene:
    """Draw background, clutter, digits, then noise."""
    unit = min(size) / SIDE
    canvas = _ground(size, rng)
    for _ in range(rng.integers(2, 7)):
        _clutter(canvas, digits[rng.choice(np.flatnonzero(~np.isin(labels, (1, 7))))], unit, rng)
    masks: list[NDArray[np.bool_]] = []
    whole: list[int] = []
    chosen = rng.integers(len(digits), size=rng.integers(DIGITS[0], DIGITS[1] + 1))
    kept = []
    for number in chosen:
        scale = unit * np.exp(rng.uniform(*np.log(SCALES)))
        opacity = _enlarge(digits[number], scale * rng.uniform(0.85, 1.15), scale, rng.uniform(-12, 12))
        place = _find_place(opacity > INK, masks, whole, size, rng)
        if place is None:
            continue
        mask = _on_canvas(opacity > INK, place, size)
        masks = [other & ~mask for other in masks] + [mask]
        whole.append(int(mask.sum()))
        kept.append(number)
        _paint(canvas, opacity, place, rng)
    canvas += rng.normal(0, rng.uniform(0.01, 0.06), size)
    pixels = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return Scene(pixels, np.stack(masks), labels[kept].astype(np.int64))


def _enlarge(digit: NDArray[np.uint8], width: float, height: float, degrees: float) -> NDArray[np.float64]:
    """Opacity (h, w) in 0..1 of a digit enlarged by the two factors and turned, cut to its box."""
    framed = Image.fromarray(np.pad(digit, 2))  # padded, so that strokes fade out and corners are not cut off
    sides = (max(round(framed.width * width), 1), max(round(framed.height * height), 1))
    large = framed.resize(sides, Image.Resampling.BILINEAR).rotate(degrees, Image.Resampling.BILINEAR)
    opacity = np.asarray(large, dtype=np.float64) / 255
    opacity /= max(opacity.max(), 1e-6)
    x0, y0, x1, y1 = boxes_of((opacity > INK / 4)[None])[0].astype(int)
    return np.asarray(opacity[y0:y1, x0:x1])


def _find_place(
    shape: NDArray[np.bool_],
    masks: list[NDArray[np.bool_]],
    whole: list[int],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Row and column where the shape leaves enough of every mask visible; None if no try succeeds."""
    height, width = shape.shape
    for _ in range(TRIES):
        y, x = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        left = (
            (m.sum() - (m[y : y + height, x : x + width] & shape).sum(), n) for m, n in zip(masks, whole, strict=True)
        )
        if all(seen >= VISIBLE * pixels for seen, pixels in left):
            return y, x
    return None


def _on_canvas(shape: NDArray[np.bool_], place: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    y, x = place
    mask[y : y + shape.shape[0], x : x + shape.shape[1]] = shape
    return mask


def _paint(
    canvas: NDArray[np.float64], opacity: NDArray[np.float64], place: tuple[int, int], rng: np.random.Generator
) -> None:
    """Blend a shape into the canvas, brighter or darker than the background by a random contrast."""
    y, x = place
    window = canvas[y : y + opacity.shape[0], x : x + opacity.shape[1]]
    ground = float(window.mean())
    contrast = rng.uniform(0.25, 0.7)
    brighter = rng.random() < 0.5
    if not contrast <= (1 - ground if brighter else ground):  # out of range: take the other side
        brighter = ground < 0.5
    tone = np.clip(ground + (contrast if brighter else -contrast), 0, 1)
    window += opacity * (tone - window)


def _ground(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """A linear gradient between two greys in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    slope = (np.cos(angle) * columns + np.sin(angle) * rows) / 2
    return np.asarray(rng.uniform(0.2, 0.8) + rng.uniform(0, 0.25) * slope)


def _clutter(canvas: NDArray[np.float64], digit: NDArray[np.uint8], unit: float, rng: np.random.Generator) -> None:
    """Draw one piece of clutter: a part of a digit, a long stroke, or a blob."""
    size, kind = canvas.shape, rng.integers(3)
    if kind == 0:  # small enough not to be taken for a digit
        y, x = rng.integers(0, 5, size=2)
        scale = unit * np.exp(rng.uniform(*np.log(SCALES)))
        opacity = _enlarge(digit[y : y + 3, x : x + 4], scale, scale, rng.uniform(-180, 180))
        if not opacity.size:
            return
    else:
        image = Image.new("L", (size[1], size[0]))
        pen = ImageDraw.Draw(image)
        if kind == 1:
            points = rng.uniform(0, 1, (3, 2)) * (size[1], size[0])
            thick = max(round(unit * rng.uniform(1, 2.5)), 1)
            pen.line([(float(px), float(py)) for px, py in points], fill=255, width=thick)
            image = image.filter(ImageFilter.GaussianBlur(unit * 0.5))
        else:
            radius = unit * rng.uniform(2, 10, 2)
            middle = rng.uniform(0, 1, 2) * (size[1], size[0])
            pen.ellipse([*(float(v) for v in middle - radius), *(float(v) for v in middle + radius)], fill=255)
            image = image.filter(ImageFilter.GaussianBlur(unit * rng.uniform(0.5, 3)))
        opacity = np.asarray(image, dtype=np.float64) / 255
    y0 = int(rng.integers(max(size[0] - opacity.shape[0], 0) + 1))
    x0 = int(rng.integers(max(size[1] - opacity.shape[1], 0) + 1))
    _paint(canvas, opacity, (y0, x0), rng)
