"""The splits in names of files and folders. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from psvit.data.image_files import is_hidden, is_image, normalized
from psvit.data.image_folder import split_named
from psvit.data.sources import natural
from psvit.errors import UserError


def split_of_folder(name: str) -> str | None:
    """The split that this folder name stands for, also with a year at the end; or None."""
    return split_named(re.sub(r"[-_ ]?\d+$", "", name))


def split_in(name: str) -> str | None:
    """The first word in a name that stands for a split, as in instances_val2017, as split; or None."""
    return next((split for word in re.split(r"[\W\d_]+", name) if (split := split_named(word))), None)


def folders_in(folder: Path) -> dict[str, Path]:
    """The visible folders directly in a folder, by lower-case NFC name, in natural order."""
    try:
        found = [path for path in folder.iterdir() if not is_hidden(path.name) and path.is_dir()]
    except OSError:
        return {}
    return {normalized(path.name).casefold(): path for path in sorted(found, key=lambda path: natural(path.name))}


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """The folders of splits directly in a folder."""
    found: dict[str, list[Path]] = {}
    for path in folders_in(folder).values():
        if (split := split_of_folder(path.name)) is not None:
            found.setdefault(split, []).append(path)
    return found


def files_by_stem(folder: Path, wanted: Callable[[str], bool] = is_image) -> dict[str, Path]:
    """The files directly in a folder, by NFC name without ending; the first if several have the same."""
    if not folder.is_dir():
        return {}
    names = sorted((name for name in os.listdir(folder) if wanted(name) and not is_hidden(name)), key=natural)
    found: dict[str, Path] = {}
    for name in names:
        found.setdefault(normalized(os.path.splitext(name)[0]), folder / name)
    return found


def one_for_each(found: dict[str, list[Path]], root: Path) -> dict[str, Path]:
    """The folder or file of each split; UserError if a split has several."""
    for paths in found.values():
        if len(paths) > 1:
            first, second = (path.relative_to(root) for path in paths[:2])
            raise UserError(f"{root} has two folders for one split, {first} and {second}: put their images into one, "
                            "or move one elsewhere")  # fmt: skip
    return {split: paths[0] for split, paths in found.items()}
