"""A folder in COCO's layout -> annotated images: the files of a split, checked entry by entry. No torch here."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psvit.data.image_files import is_hidden, normalized
from psvit.data.objects.annotated import Annotated, Annotation, Shape, annotate, is_empty
from psvit.data.objects.findings import Findings
from psvit.data.objects.headers import made_as_stored, read_headers
from psvit.data.objects.libraries import mask_tools
from psvit.data.objects.split_names import folders_in, split_in, splits_in
from psvit.data.sources import natural, quoted
from psvit.errors import UserError, one_line

OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")
"""How COCO's files begin that hold no boxes of objects."""

MOST = 1 << 20
"""Pixels of a side from which on it is a mistake."""

FAR = 10
"""A corner this many images away from its own is a mistake, and drawing up to it could take all memory."""


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """One annotation file, read: class names by class number, images, and whether any object has a mask.

    `named` holds what the notes count.
    """

    classes: tuple[str, ...]
    images: tuple[Annotated, ...]
    has_masks: bool
    notes: tuple[str, ...]
    named: frozenset[str]


def find_coco(root: Path) -> dict[str, Path]:
    """The annotation files of a folder, by split (train, validation, test), empty if it holds none.

    They are looked for in the folder, in its annotations/ and in its other folders (train/_annotations.coco.json). One
    file alone, whose name tells no split, is by the empty name.

    Raises:
        UserError: several files would do for one split.
    """
    files = [*root.glob("*.json"), *root.glob("*/*.json")]
    files = [path for path in files if not is_hidden(path.name) and not is_hidden(path.parent.name)
             and not path.name.startswith(OTHER_TASKS)]  # fmt: skip
    files = list({path.resolve(): path for path in reversed(files)}.values())  # a link that leads back to the folder
    plain = [path for path in files if path.name.startswith("instances_")]
    splits: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(plain or files, key=lambda path: natural(str(path))):
        if plain or _looks_like_coco(path):
            splits[split_in(path.stem) or (split_in(path.parent.name) if path.parent != root else None) or ""].append(
                path
            )
    for name, paths in splits.items():
        if len(paths) > 1:
            raise UserError(f"{root} has several annotation files for its {name or 'only'} split: "
                            f"{quoted([str(p.relative_to(root)) for p in paths])}; leave one in it")  # fmt: skip
    return {split: paths[0] for split, paths in splits.items()}


def _looks_like_coco(path: Path) -> bool:
    # Its beginning is enough, and a large file is read once only; a broken file is COCO's until it is read.
    with path.open("rb") as file:
        start = file.read(1 << 16)
    keys = (b'"images"', b'"annotations"', b'"categories"', b'"licenses"')
    return any(key in start for key in keys) or path.parent.name == "annotations"


def read_coco(
    path: Path,
    root: Path,
    split: str,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    evaluated: Sequence[str] | None = None,
) -> CocoSplit:
    """Read an annotation file and find its images.

    Args:
        path: the JSON file.
        root: the set's folder.
        split: train, validation or test: folders of such names may hold the images.
        strict: an image that is not on disk is an error.
        classes: of the training split; by default the file's own categories, by their ids.
        evaluated: the classes of a network that is to be evaluated; they are the set's if it has no other.

    Raises:
        UserError: the file is broken or lacks what cannot be done without; none of its images is on disk.
    """
    content = _read_json(path)
    findings = Findings(path.name, strict)
    own = _categories(_entries(content, "categories", path, ("id", "name")), findings, path)
    if classes is None and evaluated is not None and set(own.values()) <= set(evaluated):
        classes = evaluated
    names = tuple(own.values()) if classes is None else tuple(classes)
    if missing := sorted(set(own.values()) - set(names)):
        raise UserError(f"{path} has categories that the training split lacks: {quoted(missing)}; give both the same")
    numbers = {key: names.index(name) for key, name in own.items()}
    entries = _entries(content, "images", path, ("id", "file_name"))
    if not entries:
        raise UserError(f"{path} lists no images: there is nothing to read; write them into its 'images'")
    known = {entry["id"] for entry in entries}
    if len(known) < len(entries):
        twice = [str(key) for key, times in Counter(entry["id"] for entry in entries).items() if times > 1]
        raise UserError(f"{path} gives several images one id: {quoted(twice)}; which one is meant cannot be known")
    annotations = _entries(content, "annotations", path, ("image_id", "category_id"))
    objects = _by_image(annotations, known, numbers, findings)
    found = list(_on_disk(entries, path, root, split, findings))
    headers = read_headers([str(file) for _, file in found])
    stored, turned = made_as_stored(headers, [_size(entry) for entry, _ in found], "annotations")
    images = []
    for (entry, file), header, as_stored in zip(found, headers, stored, strict=True):
        if (size := _size(entry) or (header and header.upright)) is None:
            findings.skip("images that cannot be read", str(file))
            continue
        inside = [_annotation(o, numbers[o["category_id"]], size, findings) for o in objects.get(entry["id"], ())]
        images.append(annotate(str(file), size, inside, findings, as_stored))
    if not images:
        raise UserError(f"{path}: none of its {len(entries)} images can be read; see that they are beside it")
    return _summed_up(names, images, findings, turned)


def _by_image(
    annotations: list[dict[str, Any]], known: set[Any], numbers: Mapping[Any, int], findings: Findings
) -> dict[Any, list[Mapping[str, Any]]]:
    """The annotations of each image that is listed, of categories that are."""
    objects: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    ids: set[Any] = set()
    for at, entry in enumerate(annotations):
        name = str(entry.get("id", f"number {at}"))
        if entry["image_id"] not in known:
            findings.add("annotations of an image that is not listed, dropped", name)
        elif entry["category_id"] not in numbers:
            findings.add("annotations of a category that is not listed, dropped", name)
        else:
            if entry.get("id") in ids:
                findings.add("annotation ids used twice, both kept", name)
            ids |= {entry["id"]} if isinstance(entry.get("id"), (int, float, str)) else set()
            objects[entry["image_id"]].append(entry)
    return objects


def _summed_up(names: tuple[str, ...], images: list[Annotated], findings: Findings, turned: Sequence[str]) -> CocoSplit:
    shapes = [shape is not None for image in images for shape in image.shapes]
    notes = (*findings.notes(), *(f"{findings.where}: {note}" for note in turned))
    if any(shapes) and not all(shapes):
        notes += (f"{findings.where}: objects without a mask, their box is taken: {shapes.count(False)}",)
    if empty := sum(not len(image.labels) for image in images):
        notes += (f"{findings.where}: images without objects, kept as background: {empty}",)
    return CocoSplit(names, tuple(images), any(shapes), notes, findings.named())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({one_line(error)}): get or write it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object with images, annotations, categories")
    return content


def _entries(content: dict[str, Any], key: str, path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The list `key` of a file, each entry with what it needs."""
    if not isinstance(content.get(key), list):
        raise UserError(f"{path} has no list {key!r}: COCO's format needs images, annotations and categories")
    entries: list[dict[str, Any]] = content[key]
    for at, entry in enumerate(entries):
        for name in needed:
            if not isinstance(entry, dict) or not isinstance(entry.get(name), (int, float, str)):
                what = f"has no {name!r}" if not isinstance(entry, dict) or name not in entry else (
                    f"has {name} {entry[name]!r}: give a number or a text")  # fmt: skip
                raise UserError(f"{path}: entry {at} of its {key!r} {what}")
    return entries


def _categories(entries: list[dict[str, Any]], findings: Findings, path: Path) -> dict[Any, str]:
    """Names by id, in the order of the ids; a name that several have gets its id."""
    times = Counter(str(entry["name"]) for entry in entries)
    found: dict[Any, str] = {}
    for entry in sorted(entries, key=lambda entry: (isinstance(entry["id"], str), entry["id"])):
        key, name = entry["id"], str(entry["name"])
        if key in found:
            raise UserError(f"{path} gives several categories the id {key}: {found[key]!r} and {name!r}")
        if times[name] > 1:
            findings.add("category names used twice, told apart by their ids", name)
            name = f"{name} ({key})"
        found[key] = name
    if not found:
        raise UserError(f"{path} lists no categories: there is nothing to detect")
    return found


def _on_disk(
    entries: list[dict[str, Any]], path: Path, root: Path, split: str, findings: Findings
) -> Iterator[tuple[dict[str, Any], Path]]:
    """The listed images that are there, with their files."""
    tail = path.stem.removeprefix("instances_")
    above = [root, *(folder for name, folder in folders_in(root).items() if name in ("images", "image", "imgs"))]
    named = [folder for base in above for folder in splits_in(base).get(split, ())]
    folders = [path.parent, *(base / tail for base in above), *named, *above[1:], root]
    folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    composed: dict[Path, dict[str, Path]] = {}  # of each folder, filled where a name is written in another way there
    for entry in entries:
        name = str(entry["file_name"]).replace("\\", "/")
        at = next((at for at, folder in enumerate(folders) if (folder / name).is_file()), None)
        if at is not None:
            yield entry, folders[at] / name
            folders.insert(0, folders.pop(at))  # the others will be there too
        elif not name.isascii() and (file := _composed(name, folders, composed)) is not None:
            yield entry, file
        else:
            findings.skip("images not on disk", name)


def _composed(name: str, folders: Sequence[Path], known: dict[Path, dict[str, Path]]) -> Path | None:
    """The file whose name is the same once both are composed (NFC)."""
    inside, base = os.path.split(name)
    for folder in folders:
        place = folder / inside
        if place not in known:
            listed = os.listdir(place) if place.is_dir() else []
            known[place] = {normalized(one): place / one for one in listed}
        if (found := known[place].get(normalized(base))) is not None:
            return found
    return None


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    known = isinstance(height, int) and isinstance(width, int) and 0 < min(height, width) <= max(height, width) < MOST
    return (height, width) if known else None  # type: ignore[return-value]  # both are int


def _annotation(entry: Mapping[str, Any], label: int, size: tuple[int, int], findings: Findings) -> Annotation:
    name = f"annotation {entry['id']}" if "id" in entry else f"one of image {entry['image_id']}"
    shape = _shape(entry.get("segmentation"), size, name, findings)
    box = entry.get("bbox")
    if box is None and shape is not None:
        box = _bound(shape, size)
    if shape is not None and is_empty(shape, size):
        findings.add("masks without a pixel, their box is taken", name)
        shape = None
    try:
        x, y, width, height = map(float, box if isinstance(box, (list, tuple)) else ())
    except (TypeError, ValueError, OverflowError):
        x = y = width = height = np.nan
    if width < 0 or height < 0:
        width = height = 0.0
    return Annotation((x, y, x + width, y + height), label, bool(entry.get("iscrowd")), shape, name)


def _bound(shape: Shape, size: tuple[int, int]) -> list[float]:
    tools = mask_tools()
    runs = shape if isinstance(shape, dict) else tools.merge(tools.frPyObjects([p.tolist() for p in shape], *size))
    return [float(x) for x in tools.toBbox(runs)]


def _shape(segmentation: Any, size: tuple[int, int], name: str, findings: Findings) -> Shape | None:
    """The outline, if there is one that can be drawn."""
    if segmentation is None or segmentation == []:
        return None
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != list(size):
                raise ValueError("of another size")
            counts = segmentation["counts"]
            if isinstance(counts, str):
                packed = {"size": list(size), "counts": counts.encode()}
                if mask_tools().area(packed) > size[0] * size[1]:  # faster-coco-eval refuses it by itself
                    raise ValueError("more pixels than the image has")
                return packed
            runs: dict[str, Any] = mask_tools().frPyObjects(segmentation, *size)
            if sum(counts) != size[0] * size[1]:
                raise ValueError("the runs do not add up")
            return runs
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        polygons = [p for p in polygons if p.ndim == 1 and len(p) >= 6 and len(p) % 2 == 0]
        if not polygons or not all((np.abs(p) < FAR * max(size)).all() for p in polygons):
            raise ValueError("no polygon")
        return tuple(polygons)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError):  # as the decoder and numpy see fit
        findings.add("masks that cannot be drawn, their box is taken", name)
        return None
