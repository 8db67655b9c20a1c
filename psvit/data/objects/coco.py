"""A folder in COCO's layout -> annotated images, with each entry checked. No torch here."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psvit.data.findings import Findings
from psvit.data.image_files import is_hidden, normalized
from psvit.data.objects.annotated import Annotated, AnnotatedSource, Annotation, annotate, check_objects
from psvit.data.objects.headers import made_as_stored, read_headers
from psvit.data.objects.objects import Found
from psvit.data.objects.outlines import bound, is_empty, read_shape
from psvit.data.objects.split_names import folders_in, split_in, splits_in
from psvit.data.sources import natural, quoted
from psvit.errors import UserError, one_line

OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")
"""Prefixes of COCO's files without boxes of objects."""

MOST = 1 << 20
"""Sides of this many pixels or more are mistakes."""


def open_coco(
    root: Path, strict: bool = False, evaluated: Sequence[str] | None = None, crowds: bool = False
) -> Found | None:
    """Read a folder in COCO's layout; None if it has no file of annotations.

    Args:
        root: the folder.
        strict: raise an error for an image that is not on disk.
        evaluated: the classes of a network to evaluate; the set takes them if it has no others.
        crowds: allow a training split with only crowds.

    Raises:
        UserError: there is nothing to train on, a split has several files, or a file is broken.
    """
    files = _find_files(root)
    if not files:
        return None
    learned = next(split for split in ("train", "", *files) if split in files)
    notes: list[str] = []
    if "train" in files and "" in files:
        notes.append(f"{files['']} is not used: {files['train']} is trained on")
    elif learned not in ("train", "") and evaluated is None:
        there = quoted([path.name for path in files.values()])
        raise UserError(
            f"{root} has annotations in {there}, but none to train on: add a file with train in its name, as in "
            "annotations/instances_train.json"
        )
    first = _read_file(files[learned], root, learned or "train", strict, evaluated=evaluated)
    check_objects(files[learned], first.images, first.notes, crowds)
    read = {learned or "train": first}
    for split in ("validation", "test"):
        if split in files and split != learned:
            read[split] = _read_file(files[split], root, split, strict, first.classes)
    for split, part in read.items():
        notes += part.notes
        if first.has_masks and not part.has_masks:
            notes.append(f"{files[split]} has no masks: there boxes take their place")
    return Found(
        root=root,
        classes=first.classes,
        source=AnnotatedSource([image for part in read.values() for image in part.images], first.has_masks),
        splits=tuple(split for split, part in read.items() for _ in part.images),
        origins={split: os.path.relpath(path, root) for split, path in files.items() if split} if learned else {},
        notes=tuple(notes),
        named=frozenset().union(*(part.named for part in read.values())),
        has_masks=first.has_masks,
    )


def _find_files(root: Path) -> dict[str, Path]:
    """The annotation files of a folder, by split; the split is empty for a single file without a split in its name."""
    files = [*root.glob("*.json"), *root.glob("*/*.json")]
    files = [
        path
        for path in files
        if not is_hidden(path.name) and not is_hidden(path.parent.name) and not path.name.startswith(OTHER_TASKS)
    ]
    files = list({path.resolve(): path for path in reversed(files)}.values())  # a link that leads back to the folder
    plain = [path for path in files if path.name.startswith("instances_")]
    splits: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(plain or files, key=lambda path: natural(str(path))):
        if plain or _looks_like_coco(path):
            by_folder = split_in(path.parent.name) if path.parent != root else None
            splits[split_in(path.stem) or by_folder or ""].append(path)
    for name, paths in splits.items():
        if len(paths) > 1:
            raise UserError(
                f"{root} has several annotation files for its {name or 'only'} split: "
                f"{quoted([str(p.relative_to(root)) for p in paths])}; leave one in it"
            )
    return {split: paths[0] for split, paths in splits.items()}


def _looks_like_coco(path: Path) -> bool:
    # the beginning is enough, and avoids reading a large file twice
    with path.open("rb") as file:
        start = file.read(1 << 16)
    keys = (b'"images"', b'"annotations"', b'"categories"', b'"licenses"')
    return any(key in start for key in keys) or path.parent.name == "annotations"


class _File(NamedTuple):
    """One annotation file: class names, images, lines for the user, names in these, whether there are masks."""

    classes: tuple[str, ...]
    images: list[Annotated]
    notes: list[str]
    named: frozenset[str]
    has_masks: bool


def _read_file(
    path: Path,
    root: Path,
    split: str,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    evaluated: Sequence[str] | None = None,
) -> _File:
    """Read an annotation file and find its images; `classes` are those of the training split, if already read."""
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
    if twice := [str(key) for key, times in Counter(entry["id"] for entry in entries).items() if times > 1]:
        raise UserError(f"{path} gives several images one id: {quoted(twice)}; which one is meant cannot be known")
    known = {entry["id"] for entry in entries}
    objects = _by_image(_entries(content, "annotations", path, ("image_id", "category_id")), known, numbers, findings)
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
    without_mask = [shape is None for image in images for shape in image.shapes]
    has_masks = not all(without_mask)
    if has_masks and any(without_mask):
        turned.append(f"objects without a mask, their box is taken: {sum(without_mask)}")
    if empty := sum(not len(image.labels) for image in images):
        turned.append(f"images without objects, kept as background: {empty}")
    notes = [*findings.notes(), *(f"{path.name}: {line}" for line in turned)]
    return _File(names, images, notes, findings.all_names(), has_masks)


def _by_image(
    annotations: list[dict[str, Any]], known: set[Any], numbers: Mapping[Any, int], findings: Findings
) -> dict[Any, list[Mapping[str, Any]]]:
    """The annotations of each listed image; those of unlisted images and categories are dropped."""
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({one_line(error)}): get or write it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object with images, annotations, categories")
    return content


def _entries(content: dict[str, Any], key: str, path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The list `key` of a file; UserError unless each entry has the keys `needed`."""
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
    """Names by id, in the order of the ids; repeated names get their id added."""
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
    """Yield the listed images that are on disk, with their files."""
    tail = path.stem.removeprefix("instances_")
    above = [root, *(folder for name, folder in folders_in(root).items() if name in ("images", "image", "imgs"))]
    named = [folder for base in above for folder in splits_in(base).get(split, ())]
    folders = [path.parent, *(base / tail for base in above), *named, *above[1:], root]
    folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    composed: dict[Path, dict[str, Path]] = {}  # NFC names of the files in each folder
    for entry in entries:
        name = str(entry["file_name"]).replace("\\", "/")
        at = next((at for at, folder in enumerate(folders) if (folder / name).is_file()), None)
        if at is not None:
            yield entry, folders[at] / name
            folders.insert(0, folders.pop(at))  # other images are likely there too
        elif not name.isascii() and (file := _composed(name, folders, composed)) is not None:
            yield entry, file
        else:
            findings.skip("images not on disk", name)


def _composed(name: str, folders: Sequence[Path], known: dict[Path, dict[str, Path]]) -> Path | None:
    """The file whose name is the same in NFC."""
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
    shape = None
    try:
        shape = read_shape(entry.get("segmentation"), size)
    except UserError:  # a package is missing
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError):
        findings.add("masks that cannot be drawn, their box is taken", name)
    box = entry.get("bbox")
    if box is None and shape is not None:
        box = bound(shape, size)
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
