"""A folder in the layout of Pascal VOC -> annotated images. No torch here."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psvit.dense.data.annotated import Annotated, Annotation, annotate, read_size
from psvit.dense.data.findings import Findings
from psvit.errors import UserError, one_line
from psvit.training.sources import natural, quoted

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Of Pascal VOC itself; another set in its layout has the classes that its annotations name."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")


@dataclass(frozen=True, eq=False)
class VocSplits:
    """Both splits, read; `test` is None in a set that has no test split."""

    classes: tuple[str, ...]
    train: tuple[Annotated, ...]
    test: tuple[Annotated, ...] | None
    notes: tuple[str, ...]


def find_voc(root: Path) -> Path | None:
    """The folder with JPEGImages: the given one, or the last year beneath it (VOCdevkit/VOC2012)."""
    beneath = [path for pattern in ("VOC*", "VOC*/VOC*") for path in root.glob(pattern)]
    for folder in (root, *sorted(beneath, key=lambda path: natural(path.name), reverse=True)):
        if (folder / "JPEGImages").is_dir():
            return folder
    return None


def find_splits(folder: Path, task: str, labels: str, suffix: str) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Names of the images to train on and, where there are such, to test on; notes on what is not used.

    The test split is test.txt if it has labels, which VOC2012's has not, else val.txt. What is left is trained on.

    Args:
        folder: with JPEGImages.
        task: Main or Segmentation: the folder of lists in ImageSets.
        labels: Annotations or SegmentationClass: the folder of labels.
        suffix: of its files.
    """
    lists = {path.stem: path for path in (folder / "ImageSets" / task).glob("*.txt")}
    names = {split: _read_list(lists[split]) for split in ("train", "val", "trainval", "test") if split in lists}
    labelled = {split: list_ for split, list_ in names.items() if any(
        (folder / labels / f"{name}{suffix}").is_file() for name in list_[:20])}  # fmt: skip
    test = next((split for split in ("test", "val") if split in labelled), None)
    train = next(
        (split for split in (("trainval", "train") if test != "val" else ("train",)) if split in labelled), None
    )
    if train is None:
        every = sorted((path.stem for path in (folder / labels).glob(f"*{suffix}")), key=natural)
        taken = set(labelled[test]) if test else set()
        found = {"train": [name for name in every if name not in taken]}
    else:
        found = {"train": labelled[train]}
    if test:
        found["test"] = labelled[test]
        if both := set(found["train"]) & set(found["test"]):
            raise UserError(f"{folder}: {len(both)} images are in {train}.txt and in {test}.txt: "
                            f"{quoted(sorted(both))}; what is tested on must not be trained on")  # fmt: skip
    unused = test == "test" and train == "train" and "val" in labelled
    return found, (f"{folder}: val.txt is not used: test.txt is the test split",) if unused else ()


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): it lists a name a line") from error
    return list(dict.fromkeys(line.split()[0] for line in lines if line.split()))


def image_file(folder: Path, name: str) -> Path | None:
    """The file of an image's name, if it is there."""
    return next((path for suffix in SUFFIXES if (path := folder / "JPEGImages" / f"{name}{suffix}").is_file()), None)


def read_voc(folder: Path, strict: bool = False) -> VocSplits:
    """Read the annotations of both splits. A difficult object counts as a crowd.

    That is more lenient than VOC's metric: COCO's forgives any number of boxes within a crowd, VOC's those that overlap
    the object by half.

    Raises:
        UserError: there is nothing to train on; the test split has a class that the training split lacks.
    """
    names, notes = find_splits(folder, "Main", "Annotations", ".xml")
    findings = Findings(folder.name, strict)
    parsed = {split: _read_all(folder, listed, findings) for split, listed in names.items()}
    if not parsed["train"]:
        raise UserError(f"{folder}: no image of JPEGImages has a file in Annotations: there is nothing to train on")
    named = {split: {name for *_, objects in images for name, *_ in objects} for split, images in parsed.items()}
    classes = CLASSES if named["train"] <= set(CLASSES) else tuple(sorted(named["train"], key=natural))
    if missing := sorted(named.get("test", set()) - set(classes)):
        raise UserError(f"{folder}: the test split has classes that the training split lacks: {quoted(missing)}")
    if not named["train"]:
        raise UserError(f"{folder}: no annotation of the training split names an object: there is nothing to detect")
    number = {name: at for at, name in enumerate(classes)}
    ready = {
        split: tuple(
            annotate(str(path), size, [Annotation(box, number[name], difficult, None, path.stem)
                                       for name, box, difficult in objects], findings)
            for path, size, objects in images
        )
        for split, images in parsed.items()
    }  # fmt: skip
    return VocSplits(classes, ready["train"], ready.get("test"), notes + findings.notes())


Box = tuple[float, float, float, float]
Parsed = tuple[Path, tuple[int, int], list[tuple[str, Box, bool]]]


def _read_all(folder: Path, names: Sequence[str], findings: Findings) -> list[Parsed]:
    parsed = []
    for name in names:
        file, path = image_file(folder, name), folder / "Annotations" / f"{name}.xml"
        if file is None:
            findings.skip("images not on disk", name)
        elif not path.is_file():
            findings.skip("images without an annotation file", name)
        elif (root := _read_xml(path, findings)) is not None:
            size = (int(_number(root, "size/height", 0)), int(_number(root, "size/width", 0)))
            known = size if min(size) > 0 else read_size(file, findings)
            if known is not None:
                parsed.append((file, known, [_object(node) for node in root.iter("object")]))
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
