"""What detectors and segmenters are evaluated on and used for: sets that fit a checkpoint, batches, image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from psvit.data.image_list import ImageList
from psvit.data.loading import Batch, eval_batches
from psvit.data.objects.batches import DenseSplit
from psvit.data.objects.object_sets import SCENES, DenseData
from psvit.data.objects.objects import DenseSource
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.data.objects.transforms import to_tensor
from psvit.data.sources import load_image
from psvit.engine.checkpoints import read_metrics
from psvit.engine.trained_on import known_images
from psvit.errors import UserError, one_line

OpenSet = Callable[[DenseDataConfig, ImageList | None, tuple[str, ...] | None], DenseData]
"""`open_objects` or `open_class_maps`."""


def open_fitting(open_set: OpenSet, config: DenseDataConfig, saved: dict[str, Any], folder: str) -> DenseData:
    """Open a set to evaluate a checkpoint on; scenes are of the size that it was trained on.

    The folder that it was trained on has the splits that the training kept. Of another folder without splits all images
    are the test split.

    Args:
        open_set: opens the set of the task.
        config: of the data.
        saved: the checkpoint's config; folder: where it lies.

    Raises:
        UserError: data of other classes or channels than it was trained on.
    """
    if config.data == SCENES and config.img_size is None and saved["img_size"]:
        config = replace(config, img_size=tuple(saved["img_size"]))
    data = open_set(config, known_images(folder, read_metrics(folder)), tuple(saved["label_names"]))
    known, found, in_chans = saved["label_names"], list(data.classes), saved["preprocessing"]["in_chans"]
    if found != known:
        place = next((at for at, pair in enumerate(zip(known, found, strict=False)) if pair[0] != pair[1]), None)
        where = ""
        if place is not None:
            where = f", and class {place} is {known[place]} in the checkpoint, {found[place]} in the set"
        raise UserError(
            f"{folder} knows {len(known)} classes, {data.name} has {len(found)}{where}: it is another set's"
        )
    if data.in_chans != in_chans:
        raise UserError(f"{folder} takes {in_chans} image channels, {data.name} has {data.in_chans}")
    return data


def source_of(data: DenseData, split: str) -> DenseSource:
    """The images of a split.

    Raises:
        UserError: it holds none.
    """
    if data.files is not None:
        data.files.check_split(split, data.name)
    return data.split(split)


def own_batches(split: DenseSplit, accelerator: Accelerator, batch_size: int, workers: int) -> Iterator[Batch]:
    """The batches of this process, which takes its part of the images of a split; see `eval_batches`."""
    return eval_batches(
        split,
        batch_size=batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=workers,
    )


def read_pixels(path: Path, in_chans: int) -> Tensor | UserError:
    """An image file -> (C, H, W) in 0..1; if it cannot be read, the reason."""
    try:
        return to_tensor(load_image(path, in_chans))
    except OSError as error:
        return UserError(one_line(error, limit=1000))  # it names the path, which may be long
