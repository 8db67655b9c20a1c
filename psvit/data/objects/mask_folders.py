"""Find the folders of images and masks by split, and match images with masks. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from psvit.data.findings import Findings
from psvit.data.image_files import ImageFile, find_images, is_hidden, is_image
from psvit.data.objects.class_names import FILES
from psvit.data.objects.mask_files import EXACT
from psvit.data.objects.split_names import files_by_stem, folders_in, one_for_each, split_of_folder, splits_in

IMAGES = ("images", "image", "imgs", "img", "jpegimages")
"""Names of folders of images."""
MASKS = (
    "masks", "mask", "masks_machine", "labels", "label", "stuffthingmaps", "segmentationclasspng", "segmentationclass",
    "annotations",
)  # fmt: skip
"""Names of folders of masks: of Supervisely, COCO-stuff, labelme, VOC, ADE20K and others."""
BESIDE = re.compile(r"[_-](masks?|labels?|seg|gt)$", re.IGNORECASE)
"""Suffixes in the names of masks."""


def find_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks, by split; the split is empty if there are no splits."""
    tops, splits = folders_in(root), splits_in(root)
    beside = [tops[name] for name in IMAGES if name in tops]
    partly: dict[str, list[tuple[Path, Path]]] = {}
    for kind in MASKS:
        found: dict[str, list[tuple[Path, Path]]] = {}
        pairs: list[tuple[str, Path, Path]] = []
        if kind in tops:
            for images in (*beside, root):
                inner = splits_in(images)
                pairs += [(split, image, mask) for split, parts in splits_in(tops[kind]).items() for mask in parts
                          for image in inner.get(split, ()) if _same(image, mask, inner[split])]  # fmt: skip
        for split, parts in splits.items():
            for part in parts:
                inside = folders_in(part)
                pairs += [(split, inside[name], inside[kind]) for name in IMAGES if name in inside and kind in inside]
        for split, images, masks in _called_alike(tops, kind):
            pairs.append((split, images, masks))
        if kind in tops and beside and not pairs:
            pairs.append(("", beside[0], tops[kind]))
        for split, images, masks in pairs:
            if _holds_images(images) and _holds_images(masks):
                found.setdefault(split, []).append((images, masks))
        if {"train", ""} & set(found):
            break
        partly = partly or found
    else:  # masks beside their images
        beside_them = {split: [(part, part) for part in parts if _holds_masks(part)]
                       for split, parts in (splits or {"": [root]}).items()}  # fmt: skip
        found = partly or {split: pairs for split, pairs in beside_them.items() if pairs}
    one_for_each({split: list(dict.fromkeys(masks for _, masks in pairs)) for split, pairs in found.items()}, root)
    return {split: pairs[0] for split, pairs in found.items()}


def _same(image: Path, mask: Path, images: Sequence[Path]) -> bool:
    """Whether a folder of masks belongs to this folder of images: the only one, or of the same name."""
    return len(images) == 1 or image.name == mask.name


def _called_alike(tops: dict[str, Path], kind: str) -> Iterator[tuple[str, Path, Path]]:
    """Find train_masks beside train or train_images, as in CamVid."""
    for name, masks in tops.items():
        part, mark, end = name.rpartition("_")
        if mark and end == kind and (split := split_of_folder(part)) is not None:
            images = next((tops[like] for like in (part, *(f"{part}_{one}" for one in IMAGES)) if like in tops), None)
            if images is not None:
                yield split, images, masks


def _holds_images(folder: Path) -> bool:
    plain = (name for _, _, names in os.walk(folder) for name in names)
    return any(is_image(name) and not is_hidden(name) for name in plain) or bool(find_images(folder)[0])


def _holds_masks(folder: Path) -> bool:
    return bool(files_by_stem(folder, _is_named_mask))


def _is_named_mask(name: str) -> bool:
    return is_image(name) and bool(BESIDE.search(os.path.splitext(name)[0]))


def find_other_masks(root: Path) -> Path | None:
    """A folder with a name for masks, in a set without usable masks; for an error message."""
    tops = folders_in(root)
    there = any(name in tops for name in IMAGES) or "train" in splits_in(root)
    return next((tops[name] for name in MASKS if there and name in tops), None)


class Pairs:
    """Pairs of image and mask, the split of each, and problems found."""

    def __init__(self, root: Path, strict: bool) -> None:
        self.root = root
        self.findings = Findings(root.name, strict)
        self.left_out = Findings("left out")
        self.pairs: list[tuple[Path, Path]] = []
        self.splits: list[str] = []

    def add(self, split: str, image: Path, mask: Path) -> None:
        """Add an image with its mask."""
        self.pairs.append((image, mask))
        self.splits.append(split)

    def find(self, split: str, images: Path, masks: Path) -> None:
        """Match images with masks of the same name in the same folder, also with a suffix such as _mask."""
        listed = drawn = self._files(images)
        if masks != images:
            drawn = self._files(masks)
        else:
            listed = [file for file in listed if not BESIDE.search(_stem(file))]
            drawn = [file for file in drawn if BESIDE.search(_stem(file))]
        found: dict[tuple[str, ...], ImageFile] = {}
        for file in sorted(drawn, key=lambda file: Path(file.path).suffix.lower() not in EXACT):
            for name in dict.fromkeys((_stem(file), BESIDE.sub("", _stem(file)))):
                found.setdefault((*file.parts[:-1], name), file)
        used: set[str] = set()
        for file in listed:
            mask = found.get((*file.parts[:-1], _stem(file))) or found.get(file.parts)
            if mask is None:
                self.findings.skip("images without a mask", file.path)
            else:
                used.add(mask.path)
                self.add(split, Path(file.path), Path(mask.path))
        alone = [file.path for file in drawn if file.path not in used]
        self.findings.add("masks without an image, left out", *alone)

    def _files(self, folder: Path) -> list[ImageFile]:
        """The image files of a folder; other files, except those of class names, are added to `left_out`."""
        files, left_out = find_images(folder)
        for why, names in left_out.names.items():
            kept = [name for name in names if os.path.basename(name) not in FILES]
            self.left_out.add(why, *(os.path.relpath(folder / name, self.root) for name in kept))
        return files

    def notes(self) -> tuple[str, ...]:
        """Lines for the user."""
        return (*self.findings.notes(), *self.left_out.notes())


def _stem(file: ImageFile) -> str:
    return os.path.splitext(file.parts[-1])[0]
