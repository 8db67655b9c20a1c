"""A folder in the layout of Pascal VOC -> annotated images. No torch here."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from psvit.data.image_files import normalized
from psvit.data.image_folder import split_named
from psvit.data.objects.annotated import Annotated, Annotation, annotate
from psvit.data.objects.findings import Findings
from psvit.data.objects.headers import made_as_stored, read_headers
from psvit.data.objects.split_names import files_by_stem
from psvit.data.sources import natural, quoted
from psvit.errors import UserError, one_line

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Of Pascal VOC itself; another set in its layout has the classes that its annotations name."""


@dataclass(frozen=True, eq=False)
class Voc:
    """A folder, read: class names, images by split (train, validation, test), the list that names each split.

    `named` holds what the notes count.
    """

    classes: tuple[str, ...]
    splits: dict[str, tuple[Annotated, ...]]
    lists: dict[str, str]
    notes: tuple[str, ...]
    named: frozenset[str]


def find_voc(root: Path) -> Path | None:
    """The folder with JPEGImages: the given one, or the last year beneath it (VOCdevkit/VOC2012)."""
    beneath = [path for pattern in ("VOC*", "VOC*/VOC*") for path in root.glob(pattern)]
    for folder in (root, *sorted(beneath, key=lambda path: natural(path.name), reverse=True)):
        if (folder / "JPEGImages").is_dir():
            return folder
    return None


def find_splits(
    folder: Path, task: str, labelled: Mapping[str, Path]
) -> tuple[dict[str, list[str]], dict[str, str], tuple[str, ...]]:
    """Names of the images of each split (train, validation, test), the lists that name them, notes on what is not used.

    A list whose images have no labels, as VOC2012's test.txt, is left alone. Of trainval.txt the validation split is
    cut; it
    is trained on where there is another test split. Without a list to train on, all that is in no other list is.

    Args:
        folder: with JPEGImages.
        task: Main or Segmentation: the folder of lists in ImageSets.
        labelled: the files of labels, by the names of images.

    Raises:
        UserError: an image is in two of the lists, or a list cannot be read.
    """
    files = files_by_stem(folder / "ImageSets" / task, lambda name: name.lower().endswith(".txt"))
    names: dict[str, tuple[str, list[str]]] = {}
    unlabelled: list[str] = []
    for stem, path in files.items():
        split = "trainval" if stem.casefold() == "trainval" else split_named(stem)
        if split is None:
            continue
        listed = _read_list(path)
        if split in names:
            raise UserError(f"{folder} has two lists for one split, {names[split][0]} and {path.name}: leave one")
        if any(normalized(name) in labelled for name in listed[:20]):
            names[split] = (path.name, listed)
        else:
            unlabelled.append(path.name)
    if "test" in names and "trainval" in names:
        names["train"] = names.pop("trainval")
        names.pop("validation", None)  # it is part of it
    names.pop("trainval", None)
    if "train" not in names:
        taken = {name for _, listed in names.values() for name in listed}
        names["train"] = ("", sorted((name for name in labelled if name not in taken), key=natural))
    for split, (file, listed) in names.items():
        if split != "train" and (both := set(listed) & set(names["train"][1])):
            raise UserError(f"{folder}: {len(both)} images are in {names['train'][0]} and in {file}: "
                            f"{quoted(sorted(both))}; what is tested on must not be trained on")  # fmt: skip
    notes = (f"{folder}: {quoted(unlabelled)} not used: none of the first 20 images has labels",) if unlabelled else ()
    lists = {split: file or "images in no list" for split, (file, _) in names.items()} if len(names) > 1 or names[
        "train"][0] else {}  # fmt: skip
    return {split: listed for split, (_, listed) in names.items()}, lists, notes


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): it lists a name a line") from error
    return list(dict.fromkeys(line.split()[0] for line in lines if line.split()))


def images_of(folder: Path) -> dict[str, Path]:
    """The images of a folder, by their names."""
    return files_by_stem(folder / "JPEGImages")


def read_voc(folder: Path, strict: bool = False, evaluated: tuple[str, ...] | None = None) -> Voc:
    """Read the annotations of all splits. A difficult object counts as a crowd.

    That is more lenient than VOC's metric: COCO's forgives any number of boxes within a crowd, VOC's those that overlap
    the object by half.

    Args:
        folder: with JPEGImages and Annotations.
        strict: an image that cannot be used is an error.
        evaluated: the classes of a network that is to be evaluated; they are the set's if it names no other.

    Raises:
        UserError: there is nothing to train on; another split has a class that the training split lacks.
    """
    annotations = files_by_stem(folder / "Annotations", lambda name: name.lower().endswith(".xml"))
    names, lists, notes = find_splits(folder, "Main", annotations)
    findings = Findings(folder.name, strict)
    images = images_of(folder)
    parsed = {split: _read_all(images, annotations, listed, findings) for split, listed in names.items()}
    learned = "train" if parsed["train"] or evaluated is None else next((s for s in parsed if parsed[s]), "train")
    if not parsed[learned]:
        raise UserError(f"{folder}: no image of JPEGImages has a file in Annotations: there is nothing to train on")
    named = {split: {name for one in read for name, *_ in one.objects} for split, read in parsed.items()}
    classes = CLASSES if named[learned] <= set(CLASSES) else tuple(sorted(named[learned], key=natural))
    if evaluated is not None and set.union(*named.values()) <= set(evaluated):
        classes = evaluated
    for split in ("validation", "test"):
        if missing := sorted(named.get(split, set()) - set(classes)):
            raise UserError(f"{folder}: {lists[split]} has classes that the training split lacks: {quoted(missing)}")
    if not named[learned]:
        raise UserError(f"{folder}: no annotation of the training split names an object: there is nothing to detect")
    number = {name: at for at, name in enumerate(classes)}
    every = [one for read in parsed.values() for one in read]
    headers = read_headers([str(one.file) for one in every])
    stored, turned = made_as_stored(headers, [one.size for one in every], "annotations")
    found = dict(zip(map(id, every), zip(headers, stored, strict=True), strict=True))
    ready: dict[str, list[Annotated]] = {}
    for split, read in parsed.items():
        ready[split] = []
        for one in read:
            header, as_stored = found[id(one)]
            if (size := one.size or (header and header.upright)) is None:
                findings.skip("images that cannot be read", str(one.file))
                continue
            objects = [Annotation(box, number[name], hard, None, one.file.stem) for name, box, hard in one.objects]
            ready[split].append(annotate(str(one.file), size, objects, findings, as_stored))
    notes += tuple(f"{folder.name}: {note}" for note in turned) + findings.notes()
    return Voc(classes, {split: tuple(read) for split, read in ready.items()}, lists, notes, findings.named())


Box = tuple[float, float, float, float]


class _Parsed(NamedTuple):
    """An image, height and width where its annotations tell them, and names, boxes, and difficulty of objects."""

    file: Path
    size: tuple[int, int] | None
    objects: list[tuple[str, Box, bool]]


def _read_all(
    images: Mapping[str, Path], annotations: Mapping[str, Path], names: Sequence[str], findings: Findings
) -> list[_Parsed]:
    parsed = []
    for name in names:
        file, path = images.get(normalized(name)), annotations.get(normalized(name))
        if file is None:
            findings.skip("images not on disk", name)
        elif path is None:
            findings.skip("images without an annotation file", name)
        elif (root := _read_xml(path, findings)) is not None:
            size = (int(_number(root, "size/height", 0)), int(_number(root, "size/width", 0)))
            found = [_object(node) for node in root.iter("object")]
            parsed.append(_Parsed(file, size if min(size) > 0 else None, found))
    return parsed


def _read_xml(path: Path, findings: Findings) -> ElementTree.Element | None:
    try:
        raw = path.read_bytes()
        if b"<!ENTITY" in raw:  # names for texts have no use here, and can be made to fill all memory
            raise ValueError("it defines entities")
        return ElementTree.fromstring(raw)
    except (OSError, ValueError, ElementTree.ParseError):
        findings.skip("annotation files that cannot be read", str(path))
        return None


def _object(node: ElementTree.Element) -> tuple[str, Box, bool]:
    # VOC counts pixels from 1 and its last pixel belongs to the box
    x0, y0, x1, y1 = (_number(node, f"bndbox/{key}", float("nan")) for key in ("xmin", "ymin", "xmax", "ymax"))
    name = (node.findtext("name") or "").strip() or "unnamed"
    return name, (x0 - 1, y0 - 1, x1, y1), _number(node, "difficult", 0) > 0


def _number(node: ElementTree.Element, path: str, default: float) -> float:
    try:
        return float(node.findtext(path, ""))
    except ValueError:
        return default
