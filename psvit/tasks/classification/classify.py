"""Train a classifier: cross-entropy, mixup and cutmix, distillation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import Mixup
from torch import Tensor, nn

from psvit.arch.model_config import ModelConfig, is_folder
from psvit.data.augment import eval_split, preprocessing, train_split
from psvit.data.datasets import Data, open_data
from psvit.data.loading import eval_batches
from psvit.data.samples import Batch
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import config_of
from psvit.engine.display import describe_data
from psvit.engine.learning_rates import with_learning_rate
from psvit.engine.open_model import network_facts, open_model
from psvit.engine.run_folder import Description, RunFolder
from psvit.engine.seeding import INIT, seed_step
from psvit.engine.train_config import (
    Distillation,
    Recipe,
    TrainConfig,
)
from psvit.engine.trainer import Trainer
from psvit.errors import UserError
from psvit.models.attention import attention_for_training
from psvit.tasks.classification.evaluate import evaluate


class ClassifierTrainer(Trainer):
    """The trainer of a classifier.

    Args:
        model: images (B, C, H, W) -> logits (B, classes).
        config: settings of the training.
        accelerator: device, precision, processes.
        data: the images.
    """

    recipe: Recipe
    config: TrainConfig

    def __init__(self, model: nn.Module, config: TrainConfig, accelerator: Accelerator, data: Data) -> None:
        split = train_split(data, config.recipe.augment, config.data.strict)
        super().__init__(model, config, accelerator, split, data.workers)
        self.data, self.num_classes, self.repeats = data, len(data.classes), config.recipe.repeats
        self.mix = _mixup(config.recipe, self.num_classes)
        self.teacher = _open_teacher(config.distillation, data, accelerator)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Cross-entropy with the labels, combined with the teacher's loss if there is one: a scalar, in nats."""
        images, target, smoothing = self.targets(batch)
        with self.accelerator.autocast():
            logits = self.model(images).float()
        loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        if self.teacher is None:
            return loss
        taught, weight = self.teacher.loss(images, logits), self.teacher.weight
        return (1 - weight) * loss + weight * taught

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """Images after mixing, targets (labels (B,), or (B, classes) if mixed), and label smoothing."""
        images, labels = batch.images.to(self.accelerator.device), batch.labels.to(self.accelerator.device)
        if self.mix is None:
            return images, labels, self.recipe.label_smoothing
        return *self.mix(images, labels), 0.0  # timm's mixup smooths the labels itself

    def evaluate(self) -> dict[str, Any]:
        """The metrics on the validation split; empty if there is none."""
        if len(self.data.validation) == 0:
            return {}
        batches = eval_batches(
            eval_split(self.data, self.data.validation, self.config.data.strict),
            batch_size=self.recipe.batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=self.workers,
        )
        return dict(evaluate(self.evaluated, batches, self.num_classes, self.accelerator).to_dict())

    def note(self) -> str | None:
        """Why images of a folder are decoded in every epoch; once, if it is so."""
        return self.data.cache.note() if self.data.cache is not None else None


def _mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    if not recipe.mixes:
        return None
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)


class Teacher:
    """A trained network that a student learns from besides the labels (DeiT, section 4)."""

    def __init__(self, model: nn.Module, config: Distillation, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.model, self.hard, self.weight = model, config.distill == "hard", config.distill_weight
        self.temperature = config.distill_temperature

    def loss(self, images: Tensor, logits: Tensor) -> Tensor:
        """Images (B, C, H, W) and the student's logits (B, classes) -> a scalar, in nats."""
        with torch.no_grad(), self.accelerator.autocast():
            taught = self.model(images).float()
        if self.hard:
            return F.cross_entropy(logits, taught.argmax(dim=-1))
        T = self.temperature
        difference = F.kl_div(
            F.log_softmax(logits / T, dim=-1), F.log_softmax(taught / T, dim=-1), reduction="batchmean", log_target=True
        )
        return difference * T**2


def _open_teacher(config: Distillation, data: Data, accelerator: Accelerator) -> Teacher | None:
    if config.teacher is None:
        return None
    named = ModelConfig.of(config.teacher, pretrained=not is_folder(config.teacher))
    model = open_model(named, img_size=data.img_size, in_chans=data.in_chans)
    if model.num_classes != len(data.classes):
        raise UserError(
            f"the teacher {config.teacher} knows {model.num_classes} classes, the data have {len(data.classes)}"
        )
    model.requires_grad_(False).eval().to(accelerator.device)
    return Teacher(model, config, accelerator)


def train(config: TrainConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train a network, and write its best and last checkpoints to the run folder.

    Under ``accelerate launch`` or ``torchrun`` only the first process writes.

    Args:
        config: everything that the training depends on.
        say: takes lines for the user.

    Returns:
        The metrics of the best checkpoint: top1 and top5 in percent and loss in nats on the validation split, epoch,
        macs ...

    Raises:
        UserError: a setting is wrong, the output folder already holds a run, or the loss is not finite.
        InterruptedTrainingError: Ctrl-C; the message says how to resume.
    """
    accelerator = open_machine(config.machine)
    config = with_learning_rate(config)
    run = RunFolder(config, accelerator)
    if (best := run.finished(say)) is not None:
        return best
    kept = run.kept_images()
    data = open_data(config.data.cached_in(run.path), kept)
    seen = run.take_images(data.files, kept)
    seed_step(config.data.seed, INIT)
    with attention_for_training(accelerator.device):
        model = open_model(
            config.model,
            config.recipe.drop_path,
            img_size=data.img_size,
            in_chans=data.in_chans,
            num_classes=len(data.classes),
        )
    description = _description(model, config, data)
    trainer = ClassifierTrainer(model, config, accelerator, data)
    return trainer.fit(run, description, [*describe_data(data), *seen], say)


def _description(model: nn.Module, config: TrainConfig, data: Data) -> Description:
    pixels, asked = preprocessing(data), config.data
    words = ["psvit", "evaluate", str(Path(config.run.output) / "best"), "--data", asked.data]
    words += ["--class-folders", asked.class_folders] if asked.class_folders else []
    words += ["--data-dir", asked.data_dir] if asked.data_dir else []
    return Description(
        title=str(getattr(model, "arch", config.model.name)),
        facts=network_facts(model, pixels["input_size"], config.model),
        checkpoint=config_of(model, pixels, data.classes),
        next_command=words,
    )
