"""A folder of images and of masks whose pixels are class numbers -> class maps. No torch here.

The layouts of ADE20K and of COCO-stuff, Pascal VOC's SegmentationClass, and images/ beside masks/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psvit.dense.data.findings import Findings
from psvit.dense.data.objects import IGNORED, DenseSource
from psvit.dense.data.voc import CLASSES, find_splits, image_file
from psvit.errors import UserError, one_line
from psvit.training.sources import TEST_SPLITS, load_image, natural

MASKS = ("masks", "labels", "stuffthingmaps", "annotations")
"""Names of the folder of masks beside images/."""
TRAIN_SPLITS = ("train", "training", "train2017")
ADE_CLASSES = 150
STUFF_CLASSES = 182
TAB = "\t"
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
"""Formats that keep a number as it is, which JPEG does not."""


@dataclass(frozen=True)
class Numbers:
    """What the numbers of a set's masks mean: `count` classes from `first` on, 255 and less are ignored."""

    count: int
    first: int = 0
    white: bool = False

    def classes(self, values: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        """Class number of each pixel.

        Raises:
            UserError: a number that the set has no class for.
        """
        if self.white:
            return (values == IGNORED).astype(np.int64)
        found = values - self.first
        ignored = (values == IGNORED) | (values < self.first)
        if (wrong := found[~ignored & (found >= self.count)]).size:
            raise UserError(
                f"mask {name} holds the number {int(wrong[0]) + self.first}, but the set has classes {self.first} to "
                f"{self.first + self.count - 1}, and {IGNORED} for ignored pixels: mend it"
            )
        return np.where(ignored, IGNORED, found)


class MapSource(DenseSource):
    """Image files, each with a file of class numbers."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], numbers: Numbers) -> None:
        self.pairs, self.numbers = pairs, numbers

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, i: int) -> Image.Image:
        """Decode image i, mode RGB."""
        return load_image(self.pairs[i][0])

    def name(self, i: int) -> str:
        """Path of image i."""
        return str(self.pairs[i][0])

    def size_of(self, i: int) -> tuple[int, int] | None:
        """Height and width from the header of image i; None if it cannot be read."""
        try:
            return self._size(i)
        except OSError:
            return None

    def class_map(self, i: int) -> NDArray[np.int64]:
        """Class numbers (H, W) of image i; OSError if the mask cannot be read or is of another size."""
        mask = self.pairs[i][1]
        values = read_mask(mask)
        height, width = self._size(i)
        if values.shape != (height, width):
            raise OSError(f"mask {mask} is {values.shape[1]} x {values.shape[0]} pixels, its image {width} x {height}")
        return self.numbers.classes(values, str(mask))

    def _size(self, i: int) -> tuple[int, int]:
        image = self.pairs[i][0]
        try:
            with Image.open(image) as opened:
                return opened.height, opened.width
        except Exception as error:  # on broken bytes Pillow's plugins raise anything
            raise OSError(f"image {image} cannot be read: {one_line(error)}") from error

    def check_numbers(self) -> None:
        """Look into all masks; those that cannot be read are left to who asks for them.

        Raises:
            UserError: a number that the set has no class for.
        """
        for _, mask in self.pairs:
            try:
                self.numbers.classes(read_mask(mask), str(mask))
            except OSError:
                continue

    def check_labelled(self, where: Path) -> None:
        """Look into masks, up to the first in which a pixel has a class.

        Raises:
            UserError: every pixel of those that can be read is ignored.
        """
        ignored = ""
        for _, mask in self.pairs:
            try:
                values = read_mask(mask)
            except OSError:
                continue
            if (self.numbers.classes(values, str(mask)) != IGNORED).any():
                return
            ignored = str(mask)
        if ignored:
            raise UserError(f"{where}: no pixel of the training split has a class, as in {ignored}: classes count from "
                            f"{self.numbers.first}, and {IGNORED} is ignored; mend the masks")  # fmt: skip


def read_mask(path: Path) -> NDArray[np.int64]:
    """The numbers (H, W) in a mask: of its pixels, or of its palette's entries.

    Raises:
        OSError: it cannot be read.
        UserError: it holds colours.
    """
    try:
        with Image.open(path) as image:
            image.load()
            values, mode = np.asarray(image), image.mode
    except Exception as error:  # on broken bytes Pillow's plugins raise anything
        raise OSError(f"mask {path} cannot be read: {one_line(error)}") from error
    if values.ndim == 3:  # a grey image that was saved as RGB has its number in each channel
        grey = values[..., :3] if mode in ("RGB", "RGBA") else values[..., :1]
        if (grey != grey[..., :1]).any():
            raise UserError(f"mask {path} holds colours (mode {mode}): save class numbers, as grey values or a palette")
        values = grey[..., 0]
    return values.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Maps:
    """Both splits, found; `test` is None in a set that has no test split."""

    classes: tuple[str, ...]
    train: MapSource
    test: MapSource | None
    notes: tuple[str, ...]


def open_maps(root: Path, strict: bool = False) -> Maps | None:
    """Find images and masks beneath a folder; None if it has no folder of masks.

    Raises:
        UserError: no image has a mask; masks hold colours; every pixel is ignored; the set has one class only; of your
            own masks, one of the test split holds a number that the training split lacks.
    """
    folders = _find_folders(root)
    if "train" not in folders:
        return None
    findings = Findings(root.name, strict)
    pairs = {split: list(_pairs(*both, findings)) for split, both in folders.items()}
    if not pairs["train"]:
        raise UserError(f"{root}: no image of {folders['train'][0]} has a mask of its name ({' '.join(MASK_SUFFIXES)}) "
                        f"in {folders['train'][1]}")  # fmt: skip
    masks = folders["train"][1]
    notes: tuple[str, ...] = ()
    counted = False
    if masks.parts[-2:] == ("annotations", "training"):
        classes = _names(root / "objectInfo150.txt", TAB, ADE_CLASSES)
        numbers = Numbers(len(classes), first=1)
    elif masks.name == "train2017":
        classes = _names(root / "labels.txt", ":", STUFF_CLASSES)
        numbers = Numbers(len(classes))
    else:
        pairs["train"], seen = _look_into(pairs["train"], findings)
        if not pairs["train"]:
            raise UserError(f"{root}: none of the masks in {masks} can be read; write them again as PNG")
        numbers, classes, notes = _count(root, seen)
        counted = True
    train = MapSource(pairs["train"], numbers)
    train.check_labelled(root)
    if len(classes) < 2:
        raise UserError(f"{root}: the masks hold one class only: segmenting needs two or more")
    test = MapSource(pairs["test"], numbers) if pairs.get("test") else None
    if counted and test is not None:  # all masks to train on were looked into, so these, which are fewer, can be too
        test.check_numbers()
    return Maps(classes, train, test, notes + findings.notes())


def open_voc_maps(folder: Path, strict: bool = False) -> Maps:
    """SegmentationClass of Pascal VOC: the background, then its twenty classes.

    Raises:
        UserError: no image has a class map; every pixel is ignored.
    """
    names, notes = find_splits(folder, "Segmentation", "SegmentationClass", ".png")
    findings = Findings(folder.name, strict)
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for split, listed in names.items():
        pairs[split] = []
        for name in listed:
            file, mask = image_file(folder, name), folder / "SegmentationClass" / f"{name}.png"
            if file is None or not mask.is_file():
                findings.skip("images not on disk" if file is None else "images without a mask", name)
            else:
                pairs[split].append((file, mask))
    if not pairs["train"]:
        raise UserError(
            f"{folder}: no image of JPEGImages has a mask in SegmentationClass: there is nothing to train on"
        )
    numbers = Numbers(1 + len(CLASSES))
    train = MapSource(pairs["train"], numbers)
    train.check_labelled(folder)
    test = MapSource(pairs["test"], numbers) if pairs.get("test") else None
    return Maps(("background", *CLASSES), train, test, notes + findings.notes())


def _find_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks, by ``train`` and ``test``."""

    def both(images: Path, masks: Path) -> bool:
        holds = masks.is_dir() and any(path.suffix.lower() in MASK_SUFFIXES for path in masks.iterdir())
        return holds and images.is_dir()

    for masks in MASKS:
        found = {}
        for split in ("train", "test"):
            if fits := [place for place in _places(root, masks, split) if both(*place)]:
                found[split] = fits[0]
        if "train" in found:
            return found
    return {}


def _places(root: Path, masks: str, split: str) -> list[tuple[Path, Path]]:
    """Where images and masks of a split may be, if the folder of masks has this name."""
    names = TRAIN_SPLITS if split == "train" else (*TEST_SPLITS, "val2017")
    places = [(root / "images" / name, root / masks / name) for name in names]
    places += [(root / name / "images", root / name / masks) for name in names]
    places += [(root / name, root / masks / name) for name in names]
    return places + ([(root / "images", root / masks)] if split == "train" else [])


def find_other_masks(root: Path) -> Path | None:
    """A folder that stands where training masks are looked for, in a set that has no mask that can be used."""
    places = [place for masks in MASKS for place in _places(root, masks, "train")]
    return next((masks for images, masks in places if images.is_dir() and masks.is_dir()), None)


def _pairs(images: Path, masks: Path, findings: Findings) -> Iterator[tuple[Path, Path]]:
    """Images with their masks: a file of the same name, or with _mask behind it."""
    from timm.data.readers.img_extensions import get_img_extensions

    suffixes = set(get_img_extensions())
    found = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() in MASK_SUFFIXES}
    listed = [path for path in images.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    for path in sorted(listed, key=lambda path: natural(path.name)):
        mask = found.get(path.stem) or found.get(f"{path.stem}_mask")
        if mask is None:
            findings.skip("images without a mask", str(path))
        else:
            yield path, mask


def _look_into(pairs: Sequence[tuple[Path, Path]], findings: Findings) -> tuple[list[tuple[Path, Path]], set[int]]:
    """The pairs whose masks can be read, and the numbers in these."""
    kept: list[tuple[Path, Path]] = []
    seen: set[int] = set()
    for pair in pairs:
        try:
            seen |= set(np.unique(read_mask(pair[1])).tolist())
            kept.append(pair)
        except OSError:
            findings.skip("masks that cannot be read", str(pair[1]))
    return kept, seen


def _count(root: Path, seen: set[int]) -> tuple[Numbers, tuple[str, ...], tuple[str, ...]]:
    """What the numbers in all training masks mean; classes.txt names the classes."""
    notes: tuple[str, ...] = ()
    listed = root / "classes.txt"
    names = tuple(line.strip() for line in _read(listed).splitlines() if line.strip()) if listed.is_file() else ()
    white = seen == {0, IGNORED} and len(names) <= 2
    if white:
        notes = (f"{root}: the masks hold 0 and {IGNORED} only: {IGNORED} is taken as class 1, not as ignored",)
    count = 2 if white else max(seen - {IGNORED}, default=0) + 1
    if count > IGNORED:
        raise UserError(f"{root}: masks hold numbers up to {count - 1}: classes are numbered from 0 to {IGNORED - 1}")
    if listed.is_file():
        if len(names) < count:
            raise UserError(f"{listed} names {len(names)} classes, but masks hold numbers up to {count - 1}: "
                            "give a name a line, the background's first")  # fmt: skip
        return Numbers(len(names), white=white), names, notes
    return Numbers(count, white=white), tuple(f"class {at}" for at in range(count)), notes


def _names(path: Path, mark: str, count: int) -> tuple[str, ...]:
    """Names of classes from 1 on, from lines that begin with the number and end with the name.

    Their count is the highest number; without a file it is `count`.
    """
    if not path.is_file():
        return tuple(f"class {at}" for at in range(1, count + 1))
    names: dict[int, str] = {}
    for line in _read(path).splitlines():
        number, _, rest = line.partition(mark)
        if re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", number) and rest.strip():
            names[int(number)] = rest.rpartition(mark)[2].strip()
    if not names or max(names) >= IGNORED:
        wrong = f"the number {max(names)}" if names else "no class"
        raise UserError(f"{path} names {wrong}: a line begins with the class's number, from 1 to {IGNORED - 1}, and "
                        f"ends with its name, a {'tab' if mark == TAB else 'colon'} between them")  # fmt: skip
    return tuple(names.get(at, f"class {at}") for at in range(1, max(names) + 1))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text ({one_line(error)})") from error
