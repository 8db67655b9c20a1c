"""Files of class names, as label tools write them -> names with their numbers or colours. No torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from psvit.data.objects.objects import IGNORED
from psvit.data.sources import quoted
from psvit.errors import UserError, one_line

FILES = (
    "classes.txt", "class_names.txt", "labelmap.txt", "_classes.csv", "class_dict.csv", "label_colors.txt",
    "obj_class_to_machine_color.json",
)  # fmt: skip
"""Ours, and those of labelme, CVAT, Roboflow, CamVid (two) and Supervisely. The first that exists counts."""

COLOUR = re.compile(r"(?P<name>.*?[^\s,:;])[\s,:;]+(?P<r>\d{1,3})[\s,]+(?P<g>\d{1,3})[\s,]+(?P<b>\d{1,3})[\s,:;]*")
COLOUR_FIRST = re.compile(r"(?P<r>\d{1,3})[\s,]+(?P<g>\d{1,3})[\s,]+(?P<b>\d{1,3})[\s,:;]+(?P<name>\S.*)")
NUMBER = re.compile(r"(?P<number>\d{1,5})\s*[,:;\t]\s*(?P<name>\S.*)")
HEADS = re.compile(r"(pixel value|name|class|label)\s*[,;\t].*", re.IGNORECASE)


@dataclass(frozen=True)
class ClassNames:
    """Class names in order.

    Args:
        names: of the classes.
        keys: the number or packed colour of each in masks; None: they are numbered from 0.
        colours: keys are colours.
        source: the file, for messages; empty for the classes of a network.
    """

    names: tuple[str, ...]
    keys: tuple[int, ...] | None = None
    colours: bool = False
    source: str = ""


T = TypeVar("T", int, NDArray[np.int64])


def packed(red: T, green: T, blue: T) -> T:
    """A colour as one number; also for arrays."""
    return red << 16 | green << 8 | blue


def unpacked(colour: int) -> str:
    """A packed colour, for a message."""
    return f"{colour >> 16} {colour >> 8 & 255} {colour & 255}"


def find_class_names(*folders: Path) -> ClassNames | None:
    """Read the first file of class names in these folders; None if there is none.

    Raises:
        UserError: it cannot be read, is empty, or repeats a number or colour.
    """
    files = [folder / name for folder in folders for name in FILES]
    path = next((path for path in files if path.is_file()), None)
    return None if path is None else _read(path)


def from_trained(names: tuple[str, ...]) -> ClassNames:
    """The classes of a network, for masks without a file of class names."""
    numbered = [re.fullmatch(r"class (\d+)", name) for name in names]
    keys = tuple(int(found[1]) for found in numbered if found)
    return ClassNames(names, keys if len(keys) == len(names) else None)


def _read(path: Path) -> ClassNames:
    text = read_text(path)
    if path.suffix == ".json":
        return _checked(_from_json(text, path), True, path)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    lines = lines[1:] if path.suffix == ".csv" and lines and HEADS.fullmatch(lines[0]) else lines
    if lines and lines[0].startswith("__ignore__"):  # labelme's
        lines = lines[1:]
    if not 0 < len(lines) <= IGNORED:
        raise UserError(
            f"{path} names {len(lines)} classes: give a name a line, the background's first, up to {IGNORED}"
        )
    for pattern, colours in ((COLOUR, True), (COLOUR_FIRST, True), (NUMBER, False)):
        found = [pattern.fullmatch(line) for line in lines]
        if all(found):
            parts = [match.groupdict() for match in found if match]
            keys = [packed(int(p["r"]), int(p["g"]), int(p["b"])) if colours else int(p["number"]) for p in parts]
            return _checked([(part["name"], key) for part, key in zip(parts, keys, strict=True)], colours, path)
    return ClassNames(tuple(lines), source=str(path))


def _from_json(text: str, path: Path) -> list[tuple[str, int]]:
    try:
        return [(str(name), packed(*map(int, colour))) for name, colour in json.loads(text).items()]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} does not give each class a colour ({one_line(error)}): write it as "
                        '{"name": [red, green, blue]}') from error  # fmt: skip


def _checked(pairs: list[tuple[str, int]], colours: bool, path: Path) -> ClassNames:
    keys = [key for _, key in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        kind = "colour" if colours else "number"
        names = [name for name, key in pairs if key == twice[0]]
        raise UserError(f"{path} gives several classes the {kind} {unpacked(twice[0]) if colours else twice[0]}: "
                        f"{quoted(names)}; which is meant cannot be known")  # fmt: skip
    if not pairs:
        raise UserError(f"{path} names no class: give each a line")
    if not colours:
        pairs = sorted(pairs, key=lambda pair: pair[1])
    return ClassNames(tuple(name for name, _ in pairs), tuple(key for _, key in pairs), colours, str(path))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        UserError: it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text ({one_line(error)}): save it as UTF-8") from error
