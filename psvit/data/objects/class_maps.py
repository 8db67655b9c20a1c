"""A folder of images and of masks whose pixels tell classes -> class maps. No torch here.

The layouts of ADE20K and of COCO-stuff, Pascal VOC's SegmentationClass, images/ beside masks/, and masks beside their
images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psvit.data.image_files import ImageFile, PassedOver, find_images, is_image, normalized
from psvit.data.objects.class_names import FILES, ClassNames, find_class_names, from_trained, packed, read_text
from psvit.data.objects.findings import Findings
from psvit.data.objects.headers import Header, made_as_stored, read_header, read_headers
from psvit.data.objects.mask_folders import BESIDE, find_folders
from psvit.data.objects.mask_numbers import FAR, Meaning, Numbers, Seen, numbered, understand
from psvit.data.objects.objects import IGNORED, DenseSource
from psvit.data.objects.split_names import files_by_stem
from psvit.data.objects.voc import CLASSES, find_splits, images_of
from psvit.data.sources import load_image, printable
from psvit.errors import UserError, one_line

ADE_CLASSES = 150
STUFF_CLASSES = 182
TAB = "\t"
EXACT = {".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pbm", ".pnm"}
"""Formats that keep a number as it is, which JPEG does not; besides lossless WebP."""


class MapSource(DenseSource):
    """Image files, each with a file of class numbers.

    Args:
        pairs: image and mask.
        numbers: what those in masks mean.
        headers: of the images.
        stored: whether the masks are for the image as it is stored, whatever its EXIF orientation.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        numbers: Numbers,
        headers: Sequence[Header | None],
        stored: Sequence[bool],
    ) -> None:
        self.pairs, self.numbers, self.headers, self.stored = pairs, numbers, headers, stored

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, i: int) -> Image.Image:
        """Decode image i, mode RGB; OSError too if it is of another size than its header says."""
        image = load_image(self.pairs[i][0], as_stored=self.stored[i])
        if image.size[::-1] != self.size_of(i):
            raise OSError(f"image {self.name(i)} has an EXIF orientation behind its pixels: write it again without")
        return image

    def name(self, i: int) -> str:
        """Path of image i, as it can be written down."""
        return printable(str(self.pairs[i][0]))

    def path(self, i: int) -> str:
        """Path of image i."""
        return str(self.pairs[i][0])

    def size_of(self, i: int) -> tuple[int, int] | None:
        """Height and width of image i, by its header; None if it cannot be read."""
        header = self.headers[i]
        return None if header is None else header.stored if self.stored[i] else header.upright

    def class_map(self, i: int) -> NDArray[np.int64]:
        """Class numbers (H, W) of image i; OSError if the mask cannot be read or is of another size."""
        mask, size = self.pairs[i][1], self.size_of(i)
        if size is None:
            raise OSError(f"image {self.name(i)} cannot be read: its header is broken")
        values = read_mask(mask, self.numbers.colours)
        if values.shape != size:
            raise OSError(
                f"mask {printable(str(mask))} is {values.shape[1]} x {values.shape[0]} pixels, its image {size[1]} x "
                f"{size[0]}"
            )
        return self.numbers.classes(values, printable(str(mask)))

    def check_numbers(self, indices: Sequence[int]) -> None:
        """Look into masks; those that cannot be read are left to who asks for them.

        Raises:
            UserError: a number that the set has no class for.
        """
        for at in indices:
            mask = self.pairs[at][1]
            try:
                self.numbers.classes(read_mask(mask, self.numbers.colours), printable(str(mask)))
            except OSError:
                continue

    def check_labelled(self, indices: Sequence[int], where: Path) -> None:
        """Look into masks, up to the first in which a pixel has a class.

        Raises:
            UserError: every pixel of those that can be read is ignored.
        """
        ignored = ""
        for at in indices:
            mask = self.pairs[at][1]
            try:
                values = read_mask(mask, self.numbers.colours)
            except OSError:
                continue
            if (self.numbers.classes(values, printable(str(mask))) != IGNORED).any():
                return
            ignored = printable(str(mask))
        if ignored:
            raise UserError(f"{where}: no pixel of the training split has a class, as in {ignored}: the set has "
                            f"{self.numbers.told}, and {IGNORED} is ignored; mend the masks")  # fmt: skip


def read_mask(path: Path, colours: bool = False) -> NDArray[np.int64]:
    """The numbers (H, W) in a mask: of its pixels, or of its palette's entries; with `colours` those, packed.

    Raises:
        OSError: it cannot be read, or holds no whole numbers.
        UserError: it holds colours, and is not read for them.
    """
    values, grey = _open_mask(path, colours)
    if not grey and not colours:
        raise UserError(f"mask {path} holds colours, where others hold numbers: save class numbers in all")
    return values.astype(np.int64)


def _open_mask(path: Path, colours: bool) -> tuple[NDArray[np.integer[Any]], bool]:
    """What is in a mask, colours as one number each, and whether it is grey or a palette's entries."""
    try:
        with Image.open(path) as image:
            image.load()
            values = np.asarray(image.convert("RGB") if colours else image)
            mode = "RGB" if colours else image.mode
    except Exception as error:  # on broken bytes Pillow's plugins raise anything
        raise OSError(f"mask {printable(str(path))} cannot be read: {one_line(error)}") from error
    if mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "F") and not mode.startswith("I"):
        raise OSError(f"mask {printable(str(path))} is of the mode {mode}, which holds no class numbers")
    if values.ndim == 3:  # a grey image that was saved as RGB has its number in each channel
        parts = values[..., :3] if mode.startswith("RGB") else values[..., :1]
        apart = FAR if _is_lossy(path) else 1  # lossy formats tint grey
        if colours or np.ptp(parts, axis=-1).max(initial=0) >= apart:
            red, green, blue = np.moveaxis(values[..., :3].astype(np.int64), -1, 0)
            return packed(red, green, blue), False
        values = parts[..., 0]
    if values.dtype.kind in "iu":
        return values, True
    whole = values.astype(np.int64)
    if (whole != values).any():
        raise OSError(f"mask {printable(str(path))} holds fractions, which are no class numbers")
    return whole, True


def _is_lossy(path: Path) -> bool:
    """Whether a mask is of a format that changes numbers."""
    if path.suffix.lower() in EXACT:
        return False
    with path.open("rb") as file:
        return path.suffix.lower() != ".webp" or b"VP8L" not in file.read(1 << 12)


@dataclass(frozen=True, eq=False)
class Maps:
    """What was found: class names, images with their masks, the split that folders give each, those folders.

    `named` holds what the notes count.
    """

    classes: tuple[str, ...]
    source: MapSource
    splits: tuple[str, ...]
    folders: dict[str, str]
    notes: tuple[str, ...]
    named: frozenset[str]


@dataclass
class _Pairs:
    """Images and masks while they are found."""

    root: Path
    findings: Findings
    passed: PassedOver = field(default_factory=PassedOver)
    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)

    def add(self, split: str, images: Path, masks: Path) -> None:
        """The images of a folder with their masks: of the same name and folder, or with _mask or the like behind it."""
        listed, of_images = find_images(images)
        drawn = listed
        self._pass_over(of_images, images)
        if masks != images:
            drawn, of_masks = find_images(masks)
            self._pass_over(of_masks, masks)
        else:
            listed = [file for file in drawn if not BESIDE.search(_stem(file))]
            drawn = [file for file in drawn if BESIDE.search(_stem(file))]
        found: dict[tuple[str, ...], ImageFile] = {}
        for file in sorted(drawn, key=lambda file: Path(file.path).suffix.lower() not in EXACT):
            for name in dict.fromkeys((_stem(file), BESIDE.sub("", _stem(file)))):
                found.setdefault((*file.parts[:-1], name), file)
        used: set[str] = set()
        for file in listed:
            mask = found.get((*file.parts[:-1], _stem(file))) or found.get(file.parts)
            if mask is None:
                self.findings.skip("images without a mask", printable(file.path))
                continue
            used.add(mask.path)
            self.pairs.append((Path(file.path), Path(mask.path)))
            self.splits.append(split)
        for file in drawn:
            if file.path not in used:
                self.findings.add("masks without an image, left out", printable(file.path))

    def _pass_over(self, passed: PassedOver, folder: Path) -> None:
        for why, names in passed.names.items():
            kept = [name for name in names if os.path.basename(name) not in FILES]
            self.passed.add(why, *(os.path.relpath(folder / name, self.root) for name in kept))

    def notes(self) -> tuple[str, ...]:
        """What is to be known of them."""
        return (*self.findings.notes(), *(f"passed over: {line}" for line in self.passed.lines()))


def _stem(file: ImageFile) -> str:
    return os.path.splitext(file.parts[-1])[0]


def open_maps(root: Path, strict: bool = False, evaluated: tuple[str, ...] | None = None) -> Maps | None:
    """Find images and masks beneath a folder; None if it has no folder of masks.

    Args:
        root: the folder.
        strict: an image without a mask that can be read is an error.
        evaluated: the classes of a network that is to be evaluated: then the set need not have a training split.

    Raises:
        UserError: no image has a mask; what masks hold tells no classes; every pixel is ignored; the set has one class
            only; of your own masks, one of the test split holds a number that the training split lacks.
    """
    folders = find_folders(root)
    if not folders:
        return None
    if not {"train", ""} & set(folders) and evaluated is None:
        there = ", ".join(str(masks.relative_to(root)) for _, masks in folders.values())
        raise UserError(f"{root} has masks in {there}, but none to train on: put those into a folder train beside it")
    found = _Pairs(root, Findings(root.name, strict))
    for split, both in folders.items():
        found.add(split or "train", *both)
    learned = "train" if {"train", ""} & set(folders) else next(iter(folders))
    images, masks = folders.get("") or folders[learned]
    if learned not in found.splits:
        raise UserError(f"{root}: no image of {images} has a mask of its name in {masks}: call a mask as its image, or "
                        "with _mask behind the name")  # fmt: skip
    own = False
    if masks.parts[-2:] == ("annotations", "training"):
        classes = _names(root / "objectInfo150.txt", TAB, ADE_CLASSES)
        meaning = Meaning(numbered(len(classes), first=1), classes)
    elif masks.name == "train2017":
        classes = _names(root / "labels.txt", ":", STUFF_CLASSES)
        meaning = Meaning(numbered(len(classes)), classes)
    else:
        named = find_class_names(root, *(folder for both in folders.values() for folder in both))
        own = True
        meaning = _own_masks(root, found, learned, named or (from_trained(evaluated) if evaluated else None))
    names = {split: f"{os.path.relpath(both[0], root)}/" for split, both in folders.items() if split}
    return _summed_up(root, found, meaning, names, learned, own)


def _summed_up(root: Path, found: _Pairs, meaning: Meaning, folders: dict[str, str], learned: str, own: bool) -> Maps:
    headers = read_headers([str(image) for image, _ in found.pairs])
    sizes = [_mask_size(mask) if header is not None and header.oriented else None
             for (_, mask), header in zip(found.pairs, headers, strict=True)]  # fmt: skip
    stored, notes = made_as_stored(headers, sizes, "masks")
    source = MapSource(found.pairs, meaning.numbers, headers, stored)
    trained = [at for at, split in enumerate(found.splits) if split == learned]
    source.check_labelled(trained, root)
    if len(meaning.classes) < 2:
        raise UserError(f"{root}: the masks hold one class only: segmenting needs two or more")
    if own:  # all masks to train on were looked into, so the others, which are fewer, can be too
        source.check_numbers([at for at, split in enumerate(found.splits) if split != learned])
    said = (*meaning.notes, *(f"{root.name}: {note}" for note in notes), *found.notes())
    return Maps(meaning.classes, source, tuple(found.splits), folders, said, found.findings.named())


def _mask_size(mask: Path) -> tuple[int, int] | None:
    header = read_header(str(mask))
    return None if header is None else header.stored


def _own_masks(root: Path, found: _Pairs, learned: str, named: ClassNames | None) -> Meaning:
    """What the masks to train on hold; those that cannot be read are left out."""
    colours = named is not None and named.colours
    seen = _look_into(found, learned, colours)
    if seen is None:
        colours, seen = True, _look_into(found, learned, True)
    if learned not in found.splits or seen is None:
        raise UserError(f"{root}: none of the masks can be read; write them again as PNG")
    return understand(str(root), seen, named, colours)


def _look_into(found: _Pairs, learned: str, colours: bool) -> Seen | None:
    """The numbers in the masks of a split, or their colours; None where colours are met and not asked for."""
    seen = Seen()
    broken: dict[int, str] = {}
    for at, ((_, mask), split) in enumerate(zip(found.pairs, found.splits, strict=True)):
        if split != learned:
            continue
        name = printable(str(mask))
        try:
            values, grey = _open_mask(mask, colours)
            seen.lossy = seen.lossy or (name if _is_lossy(mask) else "")
        except OSError:
            broken[at] = name
            continue
        if not grey and not colours:
            return None
        seen.add(values)
    for name in broken.values():
        found.findings.skip("masks that cannot be read", name)
    found.pairs = [pair for at, pair in enumerate(found.pairs) if at not in broken]
    found.splits = [split for at, split in enumerate(found.splits) if at not in broken]
    return seen


def open_voc_maps(folder: Path, strict: bool = False) -> Maps | None:
    """SegmentationClass of Pascal VOC: the background, then its twenty classes, or those that a file names.

    Raises:
        UserError: no image has a class map; every pixel is ignored; what masks hold tells no classes.
    """
    masks = files_by_stem(folder / "SegmentationClass", is_image)
    if not masks:
        return None
    names, lists, notes = find_splits(folder, "Segmentation", masks)
    found = _Pairs(folder, Findings(folder.name, strict))
    images = images_of(folder)
    for split, listed in names.items():
        for name in listed:
            file, mask = images.get(normalized(name)), masks.get(normalized(name))
            if file is None or mask is None:
                found.findings.skip("images not on disk" if file is None else "images without a mask", name)
            else:
                found.pairs.append((file, mask))
                found.splits.append(split)
    if "train" not in found.splits:
        raise UserError(
            f"{folder}: no image of JPEGImages has a mask in SegmentationClass: there is nothing to train on"
        )
    meaning = Meaning(numbered(1 + len(CLASSES)), ("background", *CLASSES))
    if (named := find_class_names(folder)) is not None:
        meaning = _own_masks(folder, found, "train", named)
    maps = _summed_up(folder, found, meaning, lists, "train", own=False)
    return replace(maps, notes=notes + maps.notes)


def _names(path: Path, mark: str, count: int) -> tuple[str, ...]:
    """Names of classes from 1 on, from lines that begin with the number and end with the name.

    Their count is the highest number; without a file it is `count`.
    """
    if not path.is_file():
        return tuple(f"class {at}" for at in range(1, count + 1))
    names: dict[int, str] = {}
    for line in read_text(path).splitlines():
        number, _, rest = line.partition(mark)
        if re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", number) and rest.strip():
            names[int(number)] = rest.rpartition(mark)[2].strip()
    if not names or max(names) >= IGNORED:
        wrong = f"the number {max(names)}" if names else "no class"
        raise UserError(f"{path} names {wrong}: a line begins with the class's number, from 1 to {IGNORED - 1}, and "
                        f"ends with its name, a {'tab' if mark == TAB else 'colon'} between them")  # fmt: skip
    return tuple(names.get(at, f"class {at}") for at in range(1, max(names) + 1))
