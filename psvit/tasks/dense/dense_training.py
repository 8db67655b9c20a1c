"""Train a detector or a segmenter: settings -> a run folder with checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from psvit.data.objects.batches import check_validation
from psvit.data.objects.object_sets import SCENES, DenseData
from psvit.data.samples import Batch
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import COMMANDS
from psvit.engine.display import describe_data
from psvit.engine.run_folder import Description, RunFolder
from psvit.engine.seeding import INIT, seed_step
from psvit.engine.trainer import Trainer
from psvit.models.attention import attention_for_training
from psvit.tasks.dense.backbone import open_features
from psvit.tasks.dense.dense_checkpoints import own_batches
from psvit.tasks.dense.dense_config import DenseConfig
from psvit.tasks.dense.dense_cost import cost_lines, network_cost
from psvit.tasks.dense.dense_task import DenseTask


def train_dense(task_type: type[DenseTask], config: DenseConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train a network, and write its best and last checkpoints to the run folder.

    Args:
        task_type: `psvit.tasks.detection.detect.Detection` or `psvit.tasks.segmentation.segment.Segmentation`.
        config: everything that the training depends on: a `DetectConfig` or a `SegmentConfig`.
        say: takes lines for the user.

    Returns:
        The metrics of the best epoch on the validation split: box_ap and mask_ap, or miou and pixel_accuracy, in
        percent, epoch ...

    Raises:
        UserError, InterruptedTrainingError: see `psvit.tasks.classification.classify.train`.
    """
    task_type.check_library()  # fails now rather than after an epoch
    accelerator = open_machine(config.machine)
    run = RunFolder(config, accelerator)
    if (best := run.finished(say)) is not None:
        return best
    kept = run.kept_images()
    data = task_type.open_data(config.data, kept)
    known = run.take_images(data.files, kept)
    check_validation(task_type.split_type(data.validation))
    task = task_type.of(config, data)
    seed_step(config.data.seed, INIT)
    with attention_for_training(accelerator.device):
        body, described = open_features(config.model, task.backbone_size, data.in_chans, config.recipe.drop_path)
        model = task.build(body, described, config.model.name)
    if task.sync_norms and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    size = task.seen_size(data.sizes())
    cost = network_cost(task, model, described, size)
    lines = cost_lines(task, model, cost, size, config.model.name, largest=data.img_size is None)
    trainer = DenseTrainer(task, model, config, accelerator, data)
    description = Description(
        title=f"{task.head_name} on {described['model_args'].get('genotype', described['architecture'])}",
        facts=cost,
        checkpoint=task.to_dict(described),
        trained_on={"scenes": config.data.scenes} if config.data.data == SCENES else {},
        next_command=["psvit", COMMANDS[task.name], "evaluate", str(Path(config.run.output) / "best"),
                      "--data", config.data.data],
    )  # fmt: skip
    return trainer.fit(run, description, [*describe_data(data), *known, *lines], say)


class DenseTrainer(Trainer):
    """The trainer of a detector or a segmenter.

    Args:
        task: gives loss and metrics.
        model: see `DenseTask.build`.
        config: settings of the training.
        accelerator: device, precision, processes.
        data: images with objects or class maps.
    """

    def __init__(
        self, task: DenseTask, model: nn.Module, config: DenseConfig, accelerator: Accelerator, data: DenseData
    ) -> None:
        split = task.train_split(data, config.recipe.augment, config.data.strict)
        super().__init__(model, config, accelerator, split, data.workers)
        self.task, self.data, self.metric = task, data, task.metric

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The loss of the task."""
        return self.task.loss(self.model, batch, self.accelerator)

    @torch.inference_mode()
    def evaluate(self) -> dict[str, Any]:
        """The metrics on the validation split; empty if there is none."""
        if len(self.data.validation) == 0:
            return {}
        split = self.task.split_type(self.data.validation, strict=self.config.data.strict)
        batches = own_batches(split, self.accelerator, self.recipe.batch_size, self.workers)
        return dict(self.task.evaluate(self.evaluated.eval(), batches, self.data, self.accelerator).to_dict())
