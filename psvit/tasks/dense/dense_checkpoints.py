"""Checkpoints of detectors and segmenters: the folders of classifiers, with a task and what builds it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from psvit.data.objects.object_sets import SCENES, DenseData
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.engine.checkpoints import (
    COMMANDS,
    read_json,
    read_metrics,
)
from psvit.engine.run_folder import RunFolder
from psvit.engine.trained_on import TRAINED_ON
from psvit.errors import UserError, one_line

Data = TypeVar("Data", bound=DenseDataConfig)


class DenseFolder(RunFolder):
    """The folder of a detector's or segmenter's training: like any training's, with checkpoints of that task."""

    def describe_task(
        self, head: str, config: dict[str, Any], facts: dict[str, Any], metric: str, plain: nn.Module
    ) -> None:
        """Take note of what every checkpoint says.

        Args:
            head: what stands on the backbone.
            config: of the checkpoints, see `task_config`.
            facts: macs and params, for metrics.json.
            metric: the figure by which epochs are ranked.
            plain: the network.
        """
        backbone = config["backbone"]
        self.name = f"{head} on {backbone['model_args'].get('genotype', backbone['architecture'])}"
        self.saved, self.facts, self.metric, self.model = config, facts, metric, plain

    @property
    def title(self) -> str:
        """What is trained."""
        return self.name

    @property
    def next_command(self) -> list[str]:
        """Evaluation on the test split."""
        return ["psvit", COMMANDS[self.saved["task"]], "evaluate", str(self.path / "best"),
                "--data", self.config.data.data]  # fmt: skip

    def checkpoint_config(self) -> dict[str, Any]:
        """What the config.json of the checkpoints holds."""
        return self.saved

    def trained_on(self) -> dict[str, Any]:
        """As any run's, and the scenes, of which the validation split is a fraction."""
        data = self.config.data
        scenes = {"scenes": data.scenes} if isinstance(data, DenseDataConfig) and data.data == SCENES else {}
        return {**super().trained_on(), **scenes}


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
