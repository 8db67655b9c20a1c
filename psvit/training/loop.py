"""The training loop: settings -> weights, for PSViT and any model of timm."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import Mixup
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from psvit.errors import UserError, one_line
from psvit.training.augment import eval_transform, preprocessing, train_transform
from psvit.training.checkpoints import open_model
from psvit.training.data import Data, open_data
from psvit.training.evaluate import evaluate
from psvit.training.loading import Batch, ImageSplit, eval_batches, train_batches
from psvit.training.machine import attention_for_training, interrupts, open_machine, seed_step
from psvit.training.recipes import Distillation, ModelSettings, Recipe, TrainSettings
from psvit.training.run_folder import RunFolder, TrainState
from psvit.training.show import Display

WARMUP_LR = 1e-6  # of the first step

INIT = 2**32 - 1  # the "step" that seeds the first weights


class InterruptedTrainingError(UserError):
    """The user stopped a training; its state is saved."""

    def __init__(self, run: RunFolder, state: TrainState, total_steps: int) -> None:
        super().__init__(f"stopped at step {state.step} of {total_steps}, saved in {run.path}: go on with --resume")


def train(settings: TrainSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train a network and leave its best and last checkpoints in the run's folder.

    Under ``accelerate launch`` or ``torchrun`` this is one of several processes, and only the first of them writes.

    Args:
        settings: everything that the training depends on.
        say: takes lines for the user.

    Returns:
        The metrics of the best checkpoint: top1 and top5 in percent and loss in nats on the hold-out, epoch, macs ...

    Raises:
        UserError: a wrong setting, an output folder that already holds a run, a loss that is not finite.
        InterruptedTrainingError: Ctrl-C; the message says how to resume.
    """
    accelerator = open_machine(settings.machine)
    run = RunFolder(settings, accelerator)
    data = open_data(settings.data)
    seed_step(settings.data.seed, INIT)
    with attention_for_training(accelerator.device):
        model = open_model(
            settings.model,
            settings.recipe.drop_path,
            img_size=data.img_size,
            in_chans=data.in_chans,
            num_classes=len(data.classes),
        )
    run.describe(model, preprocessing(data), data.classes)
    return learn_epochs(Learning(model, settings, accelerator, data), run, data, say)


def learn_epochs(learn: Learning, run: RunFolder, data: Data, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The loop itself: all epochs of `settings`, or, of a resumed run, those that are left.

    Args:
        learn: what learns.
        run: the folder that keeps it.
        data: the images.
        say: takes lines for the user.

    Returns:
        The figures of the best epoch.

    Raises:
        UserError, InterruptedTrainingError: see `train`.
    """
    settings, accelerator, steps_per_epoch = learn.settings, learn.accelerator, learn.steps_per_epoch
    recipe, seed, world = settings.recipe, settings.data.seed, accelerator.num_processes
    train_split = ImageSplit(
        data.train, train_transform(data, recipe.augment), training=True, strict=settings.data.strict
    )
    total_steps = steps_per_epoch * recipe.epochs
    state = learn.restore(run.load_state()) if settings.run.resume else TrainState()
    run.begin()
    display = Display(say if accelerator.is_main_process else None, total_steps, state.step)
    display.start(settings, data, run, world, accelerator, steps_per_epoch, state.step)
    with display, interrupts() as interrupt:
        while state.step < total_steps:
            epoch, done = divmod(state.step, steps_per_epoch)
            batches = train_batches(
                train_split,
                batch_size=recipe.batch_size,
                batches=steps_per_epoch * recipe.accumulate,
                start=done * recipe.accumulate,
                epoch=epoch,
                seed=seed,
                rank=accelerator.process_index,
                world_size=world,
                workers=data.workers,
                repeats=recipe.repeats,
            )
            for _ in range(done, steps_per_epoch):
                micro = [next(batches) for _ in range(recipe.accumulate)]
                loss = learn.step(micro, state.step)
                state.add(loss, [name for batch in micro for name in batch.unreadable])
                display.advance(epoch, loss, learn.lr)
                if state.step % steps_per_epoch == 0:
                    break  # the epoch is evaluated before anything is saved
                stop = interrupt.requested(accelerator)
                if stop or state.step % settings.run.save_every == 0:
                    run.save_state(learn, state)
                if stop:
                    raise InterruptedTrainingError(run, state, total_steps)
            metrics = learn.evaluate(data)
            learn.check(metrics, state.step)
            state.close_epoch(epoch, metrics, learn.lr, display.images_per_second(recipe.global_batch(world)))
            run.save_epoch(learn, state)
            display.epoch(state.history[-1])
            if interrupt.requested(accelerator) and state.step < total_steps:
                raise InterruptedTrainingError(run, state, total_steps)
    run.finish(state)
    display.finish(state, run)
    return state.best


class Learning:
    """What changes while a network learns: its weights, their average, the optimizer, the schedule.

    Args:
        model: the network, as built.
        settings: of the training.
        accelerator: device, precision, processes.
        data: for the number of images and classes, and the teacher's input.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, accelerator: Accelerator, data: Data) -> None:
        recipe = settings.recipe
        self.settings, self.recipe, self.accelerator = settings, recipe, accelerator
        self.seed = settings.data.seed
        self.steps_per_epoch = max(1, len(data.train) // recipe.global_batch(accelerator.num_processes))
        self.num_classes = len(data.classes)
        optimizer = make_optimizer(model, recipe, accelerator.num_processes)
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=recipe.epochs,
            warmup_epochs=min(recipe.warmup_epochs, recipe.epochs - 1),
            min_lr=min(recipe.min_lr, recipe.scaled_lr(accelerator.num_processes)),
            warmup_lr=min(WARMUP_LR, recipe.scaled_lr(accelerator.num_processes)),
            step_on_epochs=False,
            updates_per_epoch=self.steps_per_epoch,
        )
        self.scheduler.step_update(0)
        self.model, self.optimizer = self.prepare(model, optimizer)
        self.plain: nn.Module = accelerator.unwrap_model(self.model)
        self.ema = ModelEmaV3(self.plain, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        self.mix = _mixup(recipe, self.num_classes)
        self.teacher = _open_teacher(settings.distillation, data, accelerator)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Put the network on the device, and among several processes see that their gradients are averaged."""
        prepared: tuple[nn.Module, Optimizer] = self.accelerator.prepare(model, optimizer)
        return prepared

    def gather_gradients(self) -> None:
        """What is left to do after the backward pass among several processes; here DDP has done it."""

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: their moving average where there is one."""
        return self.ema.module if self.ema is not None else self.plain

    def step(self, micro: list[Batch], step: int) -> float:
        """One optimizer step on the micro-batches of this process; the mean loss over all processes, in nats.

        Raises:
            UserError: a loss or a gradient that is not finite; the weights are left as they were before the step.
        """
        seed_step(self.seed, step, self.accelerator.process_index)
        self.model.train()
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(micro, start=1):
            last = number == len(micro)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.loss(batch, step) / len(micro)
                self.accelerator.backward(loss)
            total += loss.detach()
        self.gather_gradients()
        mean = float(self.accelerator.reduce(total, reduction="mean"))
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad or math.inf))
        # a gradient scaler (float16) meets infinite gradients in its normal course and skips the step by itself
        if not math.isfinite(mean) or not (math.isfinite(norm) or self.accelerator.scaler is not None):
            raise self._diverged(f"the loss is {mean} and its gradient {norm}", step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step_update(step + 1)
        if self.ema is not None:
            self.ema.update(self.plain, step=step + 1)
        return mean

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Cross-entropy with the labels, and with the teacher's where there is one: a scalar, in nats."""
        images, target, smoothing = self.targets(batch)
        with self.accelerator.autocast():
            logits = self.model(images).float()
        loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        if self.teacher is None:
            return loss
        taught, weight = self.teacher.loss(images, logits), self.teacher.weight
        return (1 - weight) * loss + weight * taught

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """Images as they are learned, what to learn (labels (B,), or (B, classes) if mixed), and label smoothing."""
        images, labels = batch.images.to(self.accelerator.device), batch.labels.to(self.accelerator.device)
        if self.mix is None:
            return images, labels, self.recipe.label_smoothing
        return *self.mix(images, labels), 0.0  # timm's mixup smooths the labels itself

    def evaluate(self, data: Data) -> dict[str, Any]:
        """The figures on the hold-out (empty if there is none)."""
        if len(data.holdout) == 0:
            return {}
        batches = eval_batches(
            ImageSplit(data.holdout, eval_transform(data), strict=self.settings.data.strict),
            batch_size=self.recipe.batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=data.workers,
        )
        return dict(evaluate(self.evaluated, batches, self.num_classes, self.accelerator).to_dict())

    def check(self, metrics: Mapping[str, Any], step: int) -> None:
        """Refuse weights that are not worth a checkpoint.

        Raises:
            UserError: the loss on the hold-out, or a weight, is not finite.
        """
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise self._diverged(f"the hold-out loss is {metrics['loss']}", step)
        broken = [name for name, weight in self.evaluated.state_dict().items() if not weight.isfinite().all()]
        if broken:
            raise self._diverged(f"the weight {broken[0]} is not finite", step)

    def _diverged(self, what: str, step: int) -> UserError:
        return UserError(
            f"{what} at step {step} (learning rate {self.lr:.2g}): stopped, the checkpoints saved so far are kept; "
            "lower --lr, set --clip-grad 1, or take --precision float32"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs beside its step; tensors and plain data only."""
        scaler = self.accelerator.scaler
        return {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def restore(self, saved: dict[str, Any]) -> TrainState:
        """Take up a saved state (see `RunFolder.load_state`).

        Raises:
            UserError: it is another network's or another optimizer's.
        """
        try:
            if "model" in saved:
                self.plain.load_state_dict(saved["model"])
                self.optimizer.load_state_dict(saved["optimizer"])
                if self.ema is not None:
                    self.ema.module.load_state_dict(saved["ema"])
                if self.accelerator.scaler is not None:
                    self.accelerator.scaler.load_state_dict(saved["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the saved state does not fit ({one_line(error)}): start anew with --overwrite") from error
        state = TrainState(**saved.get("train", {}))
        self.scheduler.step_update(state.step)
        return state


def make_optimizer(model: nn.Module, recipe: Recipe, processes: int) -> Optimizer:
    """timm's optimizer of that name, with the learning rate for as many processes.

    Raises:
        UserError: timm has none of that name.
    """
    try:
        optimizer: Optimizer = create_optimizer_v2(
            model, opt=recipe.opt, lr=recipe.scaled_lr(processes), weight_decay=recipe.weight_decay
        )
    except (ValueError, AssertionError, ImportError) as error:
        close = difflib.get_close_matches(recipe.opt, map(str, list_optimizers()), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(f"--opt {recipe.opt!r} is not to be had ({one_line(error)}){hint}") from error
    return optimizer


def _mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    if not recipe.mixes:
        return None
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)


class Teacher:
    """A trained network whose choices a student learns beside the labels (DeiT, section 4)."""

    def __init__(self, model: nn.Module, settings: Distillation, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.model, self.hard, self.weight = model, settings.distill == "hard", settings.distill_weight
        self.temperature = settings.distill_temperature

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


def _open_teacher(settings: Distillation, data: Data, accelerator: Accelerator) -> Teacher | None:
    if settings.teacher is None:
        return None
    model = open_model(ModelSettings(settings.teacher, pretrained=True), img_size=data.img_size, in_chans=data.in_chans)
    if model.num_classes != len(data.classes):
        raise UserError(
            f"the teacher {settings.teacher} knows {model.num_classes} classes, the data have {len(data.classes)}"
        )
    model.requires_grad_(False).eval().to(accelerator.device)
    return Teacher(model, settings, accelerator)
