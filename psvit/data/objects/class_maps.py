"""Folders of images and masks in the layouts of ADE20K, COCO-stuff, VOC, or your own -> class maps. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from psvit.data.image_files import is_image, normalized
from psvit.data.objects.class_names import ClassNames, find_class_names, from_trained, read_text
from psvit.data.objects.headers import made_as_stored, read_header, read_headers
from psvit.data.objects.mask_files import MapSource, is_lossy, open_mask
from psvit.data.objects.mask_folders import Pairs, find_folders
from psvit.data.objects.mask_numbers import Meaning, Seen, numbered, understand
from psvit.data.objects.objects import IGNORED, Found
from psvit.data.objects.split_names import files_by_stem
from psvit.data.objects.voc import CLASSES, find_voc, images_of, read_lists
from psvit.data.sources import printable
from psvit.errors import UserError

ADE_CLASSES = 150
STUFF_CLASSES = 182
TAB = "\t"


def open_maps(root: Path, strict: bool = False, evaluated: tuple[str, ...] | None = None) -> Found | None:
    """Find images and masks beneath a folder; None if it has no folder of masks.

    Args:
        root: the folder.
        strict: raise an error for an image without a readable mask.
        evaluated: the classes of a network to evaluate; then the set need not have a training split.

    Raises:
        UserError: no image has a mask; the masks do not determine the classes; every pixel is ignored; the set has only
            one class; a test mask of your own holds a number that the training masks lack.
    """
    folders = find_folders(root)
    if not folders:
        return None
    if not {"train", ""} & set(folders) and evaluated is None:
        there = ", ".join(str(masks.relative_to(root)) for _, masks in folders.values())
        raise UserError(f"{root} has masks in {there}, but none to train on: put those into a folder train beside it")
    pairs = Pairs(root, strict)
    for split, both in folders.items():
        pairs.find(split or "train", *both)
    learned = "train" if {"train", ""} & set(folders) else next(iter(folders))
    images, masks = folders.get("") or folders[learned]
    if learned not in pairs.splits:
        raise UserError(
            f"{root}: no image of {images} has a mask of its name in {masks}: call a mask as its image, or with _mask "
            "behind the name"
        )
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
        meaning = _own_masks(pairs, learned, named or (from_trained(evaluated) if evaluated else None))
    origins = {split: f"{os.path.relpath(both[0], root)}/" for split, both in folders.items() if split}
    return _found(pairs, meaning, origins, learned, own)


def open_voc_maps(root: Path, strict: bool = False) -> Found | None:
    """Open SegmentationClass of Pascal VOC: the background, then its twenty classes, or those named in a file.

    Raises:
        UserError: no image has a class map; every pixel is ignored; the masks do not determine the classes.
    """
    folder = find_voc(root)
    masks = files_by_stem(folder / "SegmentationClass", is_image) if folder else {}
    if folder is None or not masks:
        return None
    names, origins, notes = read_lists(folder, "Segmentation", masks)
    pairs = Pairs(folder, strict)
    images = images_of(folder)
    for split, listed in names.items():
        for name in listed:
            file, mask = images.get(normalized(name)), masks.get(normalized(name))
            if file is None or mask is None:
                pairs.findings.skip("images not on disk" if file is None else "images without a mask", name)
            else:
                pairs.add(split, file, mask)
    if "train" not in pairs.splits:
        raise UserError(
            f"{folder}: no image of JPEGImages has a mask in SegmentationClass: there is nothing to train on"
        )
    meaning = Meaning(numbered(1 + len(CLASSES)), ("background", *CLASSES))
    if (named := find_class_names(folder)) is not None:
        meaning = _own_masks(pairs, "train", named)
    return _found(pairs, meaning, origins, "train", own=False, notes=notes)


def _found(
    pairs: Pairs, meaning: Meaning, origins: dict[str, str], learned: str, own: bool, notes: Sequence[str] = ()
) -> Found:
    """Check the training masks, with `own` all masks."""
    root = pairs.root
    headers = read_headers([str(image) for image, _ in pairs.pairs])
    sizes = [
        of_mask.stored if header and header.oriented and (of_mask := read_header(str(mask))) else None
        for (_, mask), header in zip(pairs.pairs, headers, strict=True)
    ]
    stored, turned = made_as_stored(headers, sizes, "masks")
    source = MapSource(pairs.pairs, meaning.numbers, headers, stored)
    ignored = ""
    for name, classes in source.readable([at for at, split in enumerate(pairs.splits) if split == learned]):
        ignored = "" if (classes != IGNORED).any() else name
        if not ignored:
            break
    if ignored:
        raise UserError(
            f"{root}: no pixel of the training split has a class, as in {ignored}: the set has {meaning.numbers.told}, "
            f"and {IGNORED} is ignored; mend the masks"
        )
    if len(meaning.classes) < 2:
        raise UserError(f"{root}: the masks hold one class only: segmenting needs two or more")
    for _ in source.readable([at for at, split in enumerate(pairs.splits) if own and split != learned]):
        pass  # refuses numbers without a class
    return Found(
        root=root,
        classes=meaning.classes,
        source=source,
        splits=tuple(pairs.splits),
        origins=origins,
        notes=(*notes, *meaning.notes, *(f"{root.name}: {line}" for line in turned), *pairs.notes()),
        named=pairs.findings.all_names(),
        masks=tuple(str(mask) for _, mask in pairs.pairs),
    )


def _own_masks(pairs: Pairs, learned: str, named: ClassNames | None) -> Meaning:
    """The meaning of the training masks; unreadable ones are left out."""
    colours = named is not None and named.colours
    seen = _look_into(pairs, learned, colours)
    if seen is None:
        colours, seen = True, _look_into(pairs, learned, True)
    if learned not in pairs.splits or seen is None:
        raise UserError(f"{pairs.root}: none of the masks can be read; write them again as PNG")
    return understand(str(pairs.root), seen, named, colours)


def _look_into(pairs: Pairs, learned: str, colours: bool) -> Seen | None:
    """The numbers or colours in the masks of a split; None for unexpected colours."""
    seen = Seen()
    broken: dict[int, str] = {}
    for at, ((_, mask), split) in enumerate(zip(pairs.pairs, pairs.splits, strict=True)):
        if split != learned:
            continue
        name = printable(str(mask))
        try:
            values, grey = open_mask(mask, colours)
            seen.lossy = seen.lossy or (name if is_lossy(mask) else "")
        except OSError:
            broken[at] = name
            continue
        if not grey and not colours:
            return None
        seen.add(values)
    for name in broken.values():
        pairs.findings.skip("masks that cannot be read", name)
    pairs.pairs = [pair for at, pair in enumerate(pairs.pairs) if at not in broken]
    pairs.splits = [split for at, split in enumerate(pairs.splits) if at not in broken]
    return seen


def _names(path: Path, mark: str, count: int) -> tuple[str, ...]:
    """Class names from 1 to the highest number, from lines of number and name; `count` names without a file."""
    if not path.is_file():
        return tuple(f"class {at}" for at in range(1, count + 1))
    names: dict[int, str] = {}
    for line in read_text(path).splitlines():
        number, _, rest = line.partition(mark)
        if re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", number) and rest.strip():
            names[int(number)] = rest.rpartition(mark)[2].strip()
    if not names or max(names) >= IGNORED:
        wrong = f"the number {max(names)}" if names else "no class"
        raise UserError(
            f"{path} names {wrong}: a line begins with the class's number, from 1 to {IGNORED - 1}, and ends with its "
            f"name, a {'tab' if mark == TAB else 'colon'} between them"
        )
    return tuple(names.get(at, f"class {at}") for at in range(1, max(names) + 1))
