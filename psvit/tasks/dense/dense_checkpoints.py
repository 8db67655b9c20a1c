"""Load, evaluate and apply checkpoints of detectors and segmenters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from psvit.config import Count, checked
from psvit.data.loading import eval_batches
from psvit.data.objects.batches import DenseSplit
from psvit.data.objects.object_sets import SCENES, DenseData
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.data.objects.transforms import to_tensor
from psvit.data.samples import Batch
from psvit.data.sources import load_image
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import COMMANDS, load_weights, read_json, read_metrics, read_weights
from psvit.engine.train_config import Machine
from psvit.engine.trained_on import TRAINED_ON, known_images
from psvit.errors import UserError, one_line
from psvit.tasks.dense.backbone import build_features
from psvit.tasks.dense.dense_task import DenseTask

Task = TypeVar("Task", bound=DenseTask)
Data = TypeVar("Data", bound=DenseDataConfig)


def load_dense(task_type: type[Task], folder: str | Path, **head: Any) -> tuple[nn.Module, Task]:
    """Load the network of a checkpoint folder, in evaluation mode, and its task.

    Args:
        task_type: `psvit.tasks.detection.detect.Detection` or `psvit.tasks.segmentation.segment.Segmentation`.
        folder: the checkpoint.
        head: settings of the head that differ from the checkpoint's.

    Raises:
        UserError: there is no checkpoint, or it is broken or of another task.
    """
    saved = read_json(folder)
    found = saved.get("task", "classes")
    if found != task_type.name:
        command = f"psvit {COMMANDS[found]}" if found in COMMANDS else "psvit"
        raise UserError(
            f"{folder} is a checkpoint for {found}, not for {task_type.name}: take {command} evaluate or "
            f"{command} predict"
        )
    try:
        task = task_type.read(saved)
        task = replace(task, head=replace(task.head, **head))
        model = task.build(build_features(saved["backbone"], task.backbone_size), saved["backbone"])
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{folder}/config.json describes no {task_type.head_key}: {one_line(error, kind=True)}"
        ) from error
    load_weights(model, read_weights(folder), str(folder))
    return model.eval(), task


@torch.inference_mode()
def evaluate_dense(
    task_type: type[DenseTask],
    folder: str,
    data: DenseDataConfig,
    machine: Machine,
    split: str = "test",
    batch_size: int = 8,
) -> tuple[Any, DenseData]:
    """Evaluate a checkpoint on a split of a set; scenes have the size of the training.

    Returns:
        The task's metrics, and the opened set.

    Raises:
        UserError: the checkpoint is broken, or the data have other classes or channels.
    """
    checked(batch_size, Count, "--batch-size")
    task_type.check_library()
    accelerator = open_machine(machine)
    model, task = load_dense(task_type, folder)
    opened = _open_fitting(task, data, folder)
    if opened.files is not None:
        opened.files.check_split(split, opened.name)
    images = task.split_type(opened.split(split), strict=data.strict)
    batches = own_batches(images, accelerator, batch_size, opened.workers)
    return task.evaluate(model.to(accelerator.device), batches, opened, accelerator), opened


@torch.inference_mode()
def predict_dense(
    task_type: type[DenseTask], folder: str, paths: Iterable[Path], machine: Machine, **head: Any
) -> Iterator[Any]:
    """Yield the prediction for each image file; for an unreadable one, a UserError with the reason.

    Args:
        task_type: its `predict` makes the predictions.
        folder: the checkpoint.
        paths: image files.
        machine: device and precision.
        head: settings of the head that differ from the checkpoint's, such as score_threshold.
    """
    accelerator = open_machine(machine)
    model, task = load_dense(task_type, folder, **head)
    model.to(accelerator.device)
    for path in paths:
        try:
            pixels = to_tensor(load_image(path, task.in_chans))
        except OSError as error:
            yield UserError(one_line(error, limit=1000))  # it names the path, which may be long
            continue
        yield task.predict(model, str(path), pixels, accelerator)


def as_trained(folder: str, data: Data) -> Data:
    """These settings with the number of scenes of the training, if known, on which the validation split depends."""
    told = read_metrics(folder).get(TRAINED_ON)
    scenes = told.get("scenes") if isinstance(told, dict) else None
    try:
        return data if scenes is None else replace(data, scenes=scenes)
    except UserError:  # an invalid number
        return data


def own_batches(split: DenseSplit, accelerator: Accelerator, batch_size: int, workers: int) -> Iterator[Batch]:
    """The batches of this process; see `eval_batches`."""
    return eval_batches(
        split,
        batch_size=batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=workers,
    )


def _open_fitting(task: DenseTask, config: DenseDataConfig, folder: str) -> DenseData:
    """Open a set for a checkpoint; UserError if classes or channels differ.

    The folder that it was trained on keeps the splits of the training. All images of another folder without splits are
    the test split.
    """
    if config.data == SCENES and config.img_size is None and task.img_size is not None:
        config = replace(config, img_size=task.img_size)
    data = type(task).open_data(config, known_images(folder, read_metrics(folder)), task.classes)
    known, found = task.classes, data.classes
    if found != known:
        place = next((at for at, pair in enumerate(zip(known, found, strict=False)) if pair[0] != pair[1]), None)
        where = ""
        if place is not None:
            where = f", and class {place} is {known[place]} in the checkpoint, {found[place]} in the set"
        raise UserError(
            f"{folder} knows {len(known)} classes, {data.name} has {len(found)}{where}: it is another set's"
        )
    if data.in_chans != task.in_chans:
        raise UserError(f"{folder} takes {task.in_chans} image channels, {data.name} has {data.in_chans}")
    return data
