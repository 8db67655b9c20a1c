"""What a checkpoint says of the images it was trained on: the data set, its validation split, their list."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psvit.data.data_config import DataConfig
from psvit.data.image_list import ImageList, find_image_list
from psvit.errors import UserError

TRAINED_ON = "trained_on"
"""An entry of metrics.json."""

CUT = ("validation", "seed", "split_seed")
"""Settings of the data that say which of its images are the validation split."""


def set_name(data: str) -> str:
    """--data as files record it: of a folder the name alone, since others may read the file."""
    folder = Path(os.path.expanduser(data))
    return folder.resolve().name if folder.is_dir() else data


def cut_of(data: DataConfig) -> dict[str, Any]:
    """The set that a network is trained on, and what cut its validation split: an entry of metrics.json, see
    `trained_on`.
    """
    return {"data": set_name(data.data), **{name: getattr(data, name) for name in CUT}}


def trained_on(metrics: Mapping[str, Any]) -> DataConfig | None:
    """The set that a network was trained on, and its validation split: no other setting of the data.

    Args:
        metrics: of its metrics.json, or of the metadata of its ONNX file.

    Returns:
        None if they do not tell: of older checkpoints, and of timm's.
    """
    try:
        entry = metrics[TRAINED_ON]
        return DataConfig(entry["data"], **{name: entry[name] for name in CUT})
    except (KeyError, TypeError, UserError):
        return None


def known_images(source: str | Path, metrics: Mapping[str, Any]) -> ImageList | None:
    """The images that a network was trained on, held out or tested; None where their list lies not beside it.

    Args:
        source: the checkpoint, or an ONNX file.
        metrics: see `trained_on`.
    """
    entry = metrics.get(TRAINED_ON)
    return find_image_list(Path(source), entry.get("images")) if isinstance(entry, dict) else None


def check_cut(source: str, trained: DataConfig, data: DataConfig) -> None:
    """Refuse a validation split of the set that a network was trained on, if it is another than the training's.

    Args:
        source: the checkpoint or file, for the message.
        trained: see `trained_on`.
        data: the images that are asked for.

    Raises:
        UserError: the network may have learned images of this validation split.
    """
    if set_name(data.data) == trained.data and _cut(data) != _cut(trained):
        (before, seed), (validation, other) = _cut(trained), _cut(data)
        raise UserError(
            f"{source} was trained on {trained.data} with --validation {before:g} --split-seed {seed}, so it "
            f"knows images "
            f"of the validation split of --validation {validation:g} --split-seed {other}: leave these flags "
            f"and --seed out"
        )


def _cut(data: DataConfig) -> tuple[float, int]:
    return data.validation, data.seed if data.split_seed is None else data.split_seed
