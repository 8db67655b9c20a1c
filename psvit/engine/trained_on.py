"""The record of a checkpoint's training images: the data set, its validation split, the image list."""

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
"""Settings that determine the validation split."""


def set_name(data: str) -> str:
    """--data for records; for a folder only its name, since records may be published."""
    folder = Path(os.path.expanduser(data))
    return folder.resolve().name if folder.is_dir() else data


def cut_of(data: DataConfig) -> dict[str, Any]:
    """The data set and the settings of its validation split, for metrics.json; see `trained_on`."""
    return {"data": set_name(data.data), **{name: getattr(data, name) for name in CUT}}


def trained_on(metrics: Mapping[str, Any]) -> DataConfig | None:
    """The data set of a training and its validation split, without other settings.

    Args:
        metrics: metrics.json of a checkpoint, or the metadata of an ONNX file.

    Returns:
        None without such a record, as in older checkpoints and timm's.
    """
    try:
        entry = metrics[TRAINED_ON]
        return DataConfig(entry["data"], **{name: entry[name] for name in CUT})
    except (KeyError, TypeError, UserError):
        return None


def known_images(source: str | Path, metrics: Mapping[str, Any]) -> ImageList | None:
    """The image list of a network's training; None if it is not found near `source`.

    Args:
        source: the checkpoint or ONNX file.
        metrics: see `trained_on`.
    """
    entry = metrics.get(TRAINED_ON)
    return find_image_list(Path(source), entry.get("images")) if isinstance(entry, dict) else None


def check_cut(source: str, trained: DataConfig, data: DataConfig) -> None:
    """Refuse another validation split of the data set that a network was trained on.

    Args:
        source: the checkpoint or file, for the message.
        trained: see `trained_on`.
        data: the images to evaluate on.

    Raises:
        UserError: the network may have been trained on images of this validation split.
    """
    if set_name(data.data) == trained.data and _cut(data) != _cut(trained):
        (before, seed), (validation, other) = _cut(trained), _cut(data)
        raise UserError(
            f"{source} was trained on {trained.data} with --validation {before:g} --split-seed {seed}, so it knows "
            f"images of the validation split of --validation {validation:g} --split-seed {other}: leave these flags "
            "and --seed out"
        )


def _cut(data: DataConfig) -> tuple[float, int]:
    return data.validation, data.seed if data.split_seed is None else data.split_seed
