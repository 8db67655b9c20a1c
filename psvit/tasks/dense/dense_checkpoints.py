"""Checkpoints of detectors and segmenters: the folders of classifiers, with a task and what builds it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from psvit.data.objects.object_sets import SCENES, DenseData
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.engine.checkpoints import (
    COMMANDS,
    read_json,
    read_metrics,
)
from psvit.engine.run_folder import Description
from psvit.engine.trained_on import TRAINED_ON
from psvit.errors import UserError, one_line
from psvit.tasks.dense.dense_config import DenseConfig

Data = TypeVar("Data", bound=DenseDataConfig)


def describe(head: str, checkpoint: dict[str, Any], facts: dict[str, Any], config: DenseConfig) -> Description:
    """What the run of a detector or segmenter says of it.

    Args:
        head: what stands on the backbone.
        checkpoint: config of the checkpoints, see `task_config`.
        facts: macs and params, for metrics.json.
        config: of the training.
    """
    backbone, data = checkpoint["backbone"], config.data
    return Description(
        title=f"{head} on {backbone['model_args'].get('genotype', backbone['architecture'])}",
        facts=facts,
        checkpoint=checkpoint,
        trained_on={"scenes": data.scenes} if data.data == SCENES else {},
        next_command=["psvit", COMMANDS[checkpoint["task"]], "evaluate", str(Path(config.run.output) / "best"),
                      "--data", data.data],
    )  # fmt: skip


def as_trained(folder: str, data: Data) -> Data:
    """These settings with as many scenes as a checkpoint was trained on, where it tells: its validation split is of
    them.
    """
    told = read_metrics(folder).get(TRAINED_ON)
    scenes = told.get("scenes") if isinstance(told, dict) else None
    try:
        return data if scenes is None else replace(data, scenes=scenes)
    except UserError:  # somebody wrote something else there
        return data


def task_config(task: str, data: DenseData, described: dict[str, Any], **head: dict[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint: its task, what builds the network again, and the images that it knows.

    Args:
        task: detection or segmentation.
        data: the set that is trained on.
        described: the backbone, see `psvit.tasks.dense.backbone.open_features`.
        head: settings of what stands on it, by their name.
    """
    return {
        "task": task,
        "label_names": list(data.classes),
        "backbone": described,
        **head,
        "preprocessing": {"in_chans": data.in_chans, "mean": list(data.mean), "std": list(data.std)},
        "img_size": list(data.img_size) if data.img_size else None,
    }


def read_task(folder: str | Path, task: str) -> dict[str, Any]:
    """The config of a checkpoint of `task`.

    Raises:
        UserError: no checkpoint, or one of another task.
    """
    config = read_json(folder)
    found = config.get("task", "classes")
    if found != task:
        command = f"psvit {COMMANDS[found]}" if found in COMMANDS else "psvit"
        raise UserError(
            f"{folder} is a checkpoint for {found}, not for {task}: take {command} evaluate or {command} predict"
        )
    return config


@contextmanager
def building(what: str, folder: str | Path) -> Iterator[None]:
    """Build what a config describes inside of this.

    Raises:
        UserError: whatever fails there, since the config is broken then.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, AssertionError) as error:
        raise UserError(f"{folder}/config.json describes no {what}: {one_line(error, kind=True)}") from error
