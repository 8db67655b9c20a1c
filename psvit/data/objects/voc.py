"""A folder in the layout of Pascal VOC -> annotated images. No torch here."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from psvit.data.findings import Findings
from psvit.data.image_files import normalized
from psvit.data.image_folder import split_named
from psvit.data.objects.annotated import Annotated, AnnotatedSource, Annotation, annotate, check_objects
from psvit.data.objects.headers import made_as_stored, read_headers
from psvit.data.objects.objects import Found
from psvit.data.objects.split_names import files_by_stem
from psvit.data.sources import natural, quoted
from psvit.errors import UserError, one_line

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Classes of Pascal VOC; other sets in its layout have the classes in their annotations."""


def find_voc(root: Path) -> Path | None:
    """The folder with JPEGImages: `root`, or the latest year below it (VOCdevkit/VOC2012)."""
    beneath = [path for pattern in ("VOC*", "VOC*/VOC*") for path in root.glob(pattern)]
    for folder in (root, *sorted(beneath, key=lambda path: natural(path.name), reverse=True)):
        if (folder / "JPEGImages").is_dir():
            return folder
    return None


NO_LIST = "images in no list"


class Lists(NamedTuple):
    """Names of the images of each split, the file of each split, and lines for the user."""

    names: dict[str, list[str]]
    origins: dict[str, str]
    notes: tuple[str, ...]


def read_lists(folder: Path, task: str, labelled: Mapping[str, Path]) -> Lists:
    """Read which images of a folder are in train, validation and test.

    A list of images without labels, such as VOC2012's test.txt, is not used. With a test list, trainval.txt is the
    training split, from which a validation split is cut. Without a training list, all images in no other list are it.

    Args:
        folder: with JPEGImages.
        task: Main or Segmentation: the folder of lists in ImageSets.
        labelled: the files of labels, by name of the image.

    Raises:
        UserError: an image is in two of the lists, or a list cannot be read.
    """
    files = files_by_stem(folder / "ImageSets" / task, lambda name: name.lower().endswith(".txt"))
    names: dict[str, list[str]] = {}
    origins: dict[str, str] = {}
    unlabelled: list[str] = []
    for stem, path in files.items():
        split = "trainval" if stem.casefold() == "trainval" else split_named(stem)
        if split is None:
            continue
        listed = _read_list(path)
        if split in names:
            raise UserError(f"{folder} has two lists for one split, {origins[split]} and {path.name}: leave one")
        if any(normalized(name) in labelled for name in listed[:20]):
            names[split], origins[split] = listed, path.name
        else:
            unlabelled.append(path.name)
    if "test" in names and "trainval" in names:
        names["train"], origins["train"] = names["trainval"], origins["trainval"]
        names.pop("validation", None)  # it is part of it
    names.pop("trainval", None)
    if "train" not in names:
        taken = {name for listed in names.values() for name in listed}
        names["train"] = sorted((name for name in labelled if name not in taken), key=natural)
        origins["train"] = NO_LIST
    for split, listed in names.items():
        if split != "train" and (both := sorted(set(listed) & set(names["train"]))):
            raise UserError(
                f"{folder}: images of {origins[split]} are in {origins['train']} too: {quoted(both)}; what is tested "
                "on must not be trained on"
            )
    notes = (f"{folder}: {quoted(unlabelled)} not used: none of the first 20 images has labels",) if unlabelled else ()
    told = len(names) > 1 or origins["train"] != NO_LIST
    return Lists(names, {split: origins[split] for split in names if told}, notes)


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): it lists a name a line") from error
    return list(dict.fromkeys(line.split()[0] for line in lines if line.split()))


def images_of(folder: Path) -> dict[str, Path]:
    """The images of a folder, by their names."""
    return files_by_stem(folder / "JPEGImages")


def open_voc(root: Path, strict: bool = False, evaluated: tuple[str, ...] | None = None) -> Found | None:
    """Read the boxes of a folder in Pascal VOC's layout; None for other layouts. Difficult objects count as crowds.

    That is more lenient than VOC's metric: COCO's ignores any number of boxes within a crowd, VOC's only boxes that
    overlap the object by half.

    Args:
        root: the folder.
        strict: raise an error for an image that cannot be used.
        evaluated: the classes of a network to evaluate; the set takes them if it names no others.

    Raises:
        UserError: there is nothing to train on; another split has a class that the training split lacks.
    """
    folder = find_voc(root)
    if folder is None:
        return None
    annotations = files_by_stem(folder / "Annotations", lambda name: name.lower().endswith(".xml"))
    names, origins, notes = read_lists(folder, "Main", annotations)
    findings = Findings(folder.name, strict)
    images = images_of(folder)
    parsed = [(split, one) for split in names for one in _read_all(images, annotations, names[split], findings)]
    if not parsed or (evaluated is None and "train" not in dict(parsed)):
        raise UserError(f"{folder}: no image of JPEGImages has a file in Annotations: there is nothing to train on")
    learned = "train" if "train" in dict(parsed) else parsed[0][0]
    found = {split: {name for own, one in parsed if own == split for name, *_ in one.objects} for split in names}
    classes = CLASSES if found[learned] <= set(CLASSES) else tuple(sorted(found[learned], key=natural))
    if evaluated is not None and set.union(*found.values()) <= set(evaluated):
        classes = evaluated
    for split in found:
        if missing := sorted(found[split] - set(classes)):
            raise UserError(f"{folder}: {origins[split]} has classes that the training split lacks: {quoted(missing)}")
    if not found[learned]:
        raise UserError(f"{folder}: no annotation of the training split names an object: there is nothing to detect")
    headers = read_headers([str(one.file) for _, one in parsed])
    stored, turned = made_as_stored(headers, [one.size for _, one in parsed], "annotations")
    ready: list[tuple[str, Annotated]] = []
    for (split, one), header, as_stored in zip(parsed, headers, stored, strict=True):
        if (size := one.size or (header and header.upright)) is None:
            findings.skip("images that cannot be read", str(one.file))
            continue
        objects = [Annotation(box, classes.index(name), hard, None, one.file.stem) for name, box, hard in one.objects]
        ready.append((split, annotate(str(one.file), size, objects, findings, as_stored)))
    notes += (*(f"{folder.name}: {line}" for line in turned), *findings.notes())
    check_objects(folder, [image for split, image in ready if split == learned], notes)
    source = AnnotatedSource([image for _, image in ready], False)
    splits = tuple(split for split, _ in ready)
    return Found(folder, classes, source, splits, origins, notes, findings.all_names())


Box = tuple[float, float, float, float]


class _Parsed(NamedTuple):
    """An image, its annotated height and width, and (class name, box, difficult) of each object."""

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
        if b"<!ENTITY" in raw:  # entities are not needed, and could expand to fill all memory
            raise ValueError("it defines entities")
        return ElementTree.fromstring(raw)
    except (OSError, ValueError, ElementTree.ParseError):
        findings.skip("annotation files that cannot be read", str(path))
        return None


def _object(node: ElementTree.Element) -> tuple[str, Box, bool]:
    # VOC counts pixels from 1, and the last pixel belongs to the box
    x0, y0, x1, y1 = (_number(node, f"bndbox/{key}", float("nan")) for key in ("xmin", "ymin", "xmax", "ymax"))
    name = (node.findtext("name") or "").strip() or "unnamed"
    return name, (x0 - 1, y0 - 1, x1, y1), _number(node, "difficult", 0) > 0


def _number(node: ElementTree.Element, path: str, default: float) -> float:
    try:
        return float(node.findtext(path, ""))
    except ValueError:
        return default
