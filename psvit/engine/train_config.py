"""The settings of a training, and named recipes. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from psvit.arch.model_config import ModelConfig
from psvit.config import Config, Count, Fraction, NotNegative, Positive, Rule, Text
from psvit.data.data_config import Augment, DataConfig
from psvit.errors import UserError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Dtype = Literal["float32", "bfloat16", "float16"]
Device = Annotated[str, Rule("auto, cpu, cuda, cuda:N or mps", re.compile(r"auto|cpu|mps|cuda(:\d+)?").fullmatch)]
Step = Annotated[float, Rule("a positive number up to 1e30", lambda value: 0 < value <= 1e30)]
"""A learning rate or a gradient norm."""


@dataclass(frozen=True)
class Schedule(Config):
    """Optimizer and schedule, for any task.

    Args:
        epochs: passes over the training images.
        batch_size: images per process and batch; the global batch is this x --accumulate x processes.
        accumulate: batches whose gradients are summed before one optimizer step.
        base_lr: learning rate for a global batch of 512 images, scaled in proportion to the global batch; null for that
            of the network's family, which was chosen on a validation split.
        lr: learning rate without scaling, instead of --base-lr.
        min_lr: learning rate at the end of the cosine.
        warmup: part of the steps in which the learning rate grows linearly.
        opt: any optimizer of timm, such as adamw, lion or muon.
        weight_decay: weight decay, except for norms, biases and position embeddings.
        clip_grad: largest norm of the gradient; null for no clipping.
        drop_path: stochastic depth of the last layer.
        ema_decay: decay of the exponential moving average of the weights that is evaluated and saved; 0 for none.
    """

    epochs: Count = 300
    batch_size: Count = 128
    accumulate: Count = 1
    base_lr: Step | None = 5e-4
    lr: Step | None = None
    min_lr: NotNegative = 1e-5
    warmup: Fraction = 5 / 300
    opt: str = "adamw"
    weight_decay: NotNegative = 0.05
    clip_grad: Step | None = None
    drop_path: Fraction = 0.1
    ema_decay: Fraction = 0.99996

    def global_batch(self, processes: int) -> int:
        """Images per optimizer step over all processes."""
        return self.batch_size * self.accumulate * processes

    def scaled_lr(self, processes: int) -> float:
        """The learning rate after warm-up.

        Raises:
            ValueError: it is still that of the network's family; see `psvit.engine.learning_rates`.
        """
        if self.lr is not None:
            return self.lr
        if self.base_lr is None:
            raise ValueError("base_lr is None, that of the network's family: take with_learning_rate before")
        return self.base_lr * self.global_batch(processes) / 512


@dataclass(frozen=True)
class Recipe(Schedule):
    """The recipe of a classifier.

    Args:
        label_smoothing: part of the target spread over all classes.
        mixup: strength of mixup, 0 for none.
        cutmix: strength of cutmix, 0 for none.
        repeats: DeiT's repeated augmentation: differently augmented copies of an image in a batch.
        augment: random shifts, crops, flips, colours.
    """

    label_smoothing: Fraction = 0.1
    mixup: NotNegative = 0.8
    cutmix: NotNegative = 1.0
    repeats: Count = 3
    augment: Augment = field(default_factory=lambda: Augment(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixes and self.batch_size % 2:
            raise UserError(f"--batch-size {self.batch_size} is odd: mixup and cutmix pair images, so give an even one")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0


def deit() -> Recipe:
    """The DeiT recipe for ImageNet-1k at 224 pixels: 300 epochs, global batch 1024 (not yet measured by us).

    ``psvit train --recipe deit --data FOLDER --model psvit_2d_tiny``
    """
    return Recipe()


def light() -> Recipe:
    """For images up to 96 pixels: flips, shifts; no mixup, stochastic depth or average of weights.

    Stochastic depth of 0.05 brought nothing: after 12 epochs psvit_plus of 6 M MACs had 91.77 % of Fashion-MNIST's
    validation split right without it and 91.73 % with it (one seed; ``--drop-path 0.05``).

    ``psvit train --recipe light --data fashion-mnist --macs 12M --epochs 8``
    """
    return Recipe(
        epochs=20, base_lr=None, warmup=0.05, mixup=0.0, cutmix=0.0, drop_path=0.0, ema_decay=0.0, repeats=1,
        clip_grad=1.0, augment=Augment(shift=2, scale=(1, 1), color_jitter=0.0, interpolation="bilinear"),
    )  # fmt: skip


@dataclass(frozen=True)
class Distillation(Config):
    """Distillation from a teacher.

    Args:
        teacher: any model of timm or a checkpoint folder with the same classes; none by default.
        distill: soft (the teacher's probabilities) or hard (its top class).
        distill_weight: weight of the teacher in the loss.
        distill_temperature: temperature of soft distillation.
    """

    teacher: Text | None = None
    distill: Literal["soft", "hard"] = "hard"
    distill_weight: Annotated[float, Rule("a positive number up to 1", lambda value: 0 < value <= 1)] = 0.5
    distill_temperature: Positive = 3.0


@dataclass(frozen=True)
class Machine(Config):
    """Device and precision.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: float32, bfloat16 or float16 (autocast), or auto: bfloat16 if the device has it.
        threads: CPU threads of this process; by default torch's choice.
    """

    device: Device = "auto"
    precision: Precision = "auto"
    threads: Count | None = None


@dataclass(frozen=True)
class FolderConfig(Config):
    """The folder of a run.

    Args:
        output: folder of the run.
        resume: continue the run in the folder, or start one if there is none.
        overwrite: delete the run in the folder.
    """

    output: Text = "runs"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite contradict each other: give one of them")


@dataclass(frozen=True)
class SavedConfig(FolderConfig):
    """The folder of a run, and how often it is saved.

    Args:
        save_every: optimizer steps between saves of the state for --resume, besides those after each epoch.
    """

    save_every: Count = 200


@dataclass(frozen=True)
class RunConfig(SavedConfig):
    """The folder and memory of a training: settings that do not change its results.

    Args:
        keep_state: keep the state for --resume also after the last epoch.
        grad_checkpointing: recompute activations in the backward pass: less memory, slower steps, the same results.
    """

    output: Text = "runs/train"
    keep_state: bool = False
    grad_checkpointing: bool = False


@dataclass(frozen=True)
class LearnConfig:
    """The settings of a training, for any task."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Schedule = field(default_factory=Schedule)
    machine: Machine = field(default_factory=Machine)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class TrainConfig(LearnConfig):
    """The settings of a classifier's training."""

    recipe: Recipe = field(default_factory=light)
    distillation: Distillation = field(default_factory=Distillation)
