"""The training loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn
from torch.optim import Optimizer

from psvit.data.loading import train_batches
from psvit.data.samples import Batch, Split
from psvit.engine.display import Display
from psvit.engine.gradient_checkpointing import norms_at_rest, recompute_activations
from psvit.engine.interrupts import AskedToStop, Interrupt, InterruptedTrainingError, interrupts
from psvit.engine.optimizer import load_optimizer, make_optimizer
from psvit.engine.run_folder import Description, RunFolder
from psvit.engine.seeding import seed_step
from psvit.engine.state import TrainState, rank
from psvit.engine.train_config import LearnConfig
from psvit.errors import UserError, one_line
from psvit.files import sole_writer

WARMUP_LR = 1e-6  # of the first step


class DivergedError(UserError):
    """The loss, its gradient or a weight is not finite."""


class Trainer(ABC):
    """Trains a network; each task has a subclass with its loss and metrics.

    Args:
        model: the network, on the CPU.
        config: of the training.
        accelerator: device, precision, processes.
        split: the training images.
        workers: data loader processes.
    """

    metric = "top1"
    """The metric of `evaluate` that ranks epochs, higher is better."""

    def __init__(
        self, model: nn.Module, config: LearnConfig, accelerator: Accelerator, split: Split, workers: int
    ) -> None:
        recipe = config.recipe
        self.config, self.recipe, self.accelerator = config, recipe, accelerator
        self.split, self.workers = split, workers
        self.seed = config.data.seed
        self.steps_per_epoch = max(1, len(split) // recipe.global_batch(accelerator.num_processes))
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.recomputes = config.run.grad_checkpointing
        if self.recomputes:
            recompute_activations(model, config.model.name)
        on_cpu = accelerator.device.type == "cpu"
        if on_cpu:
            model = model.to(memory_format=torch.channels_last)  # convolutions take a quarter to a third less time
        optimizer = make_optimizer(model, recipe, accelerator.num_processes, fused=on_cpu)
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup * recipe.epochs,  # type: ignore[arg-type]  # timm takes any number
            min_lr=min(recipe.min_lr, recipe.scaled_lr(accelerator.num_processes)),
            warmup_lr=min(WARMUP_LR, recipe.scaled_lr(accelerator.num_processes)),
            step_on_epochs=False,
            updates_per_epoch=self.steps_per_epoch,
        )
        self.scheduler.step_update(0)
        self.model, self.optimizer = self.prepare(model, optimizer)
        self.plain: nn.Module = accelerator.unwrap_model(self.model)
        self.parameters = list(self.model.parameters())
        self.ema = ModelEmaV3(self.plain, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None

    @abstractmethod
    def loss(self, batch: Batch, step: int) -> Tensor:
        """The training loss: a scalar, in nats."""

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """The metrics on the validation split as plain data; empty without one."""

    def note(self) -> str | None:
        """A line for the user after an epoch; usually none."""
        return None

    def fit(
        self, run: RunFolder, description: Description, data: Sequence[str], say: Callable[[str], None] = print
    ) -> dict[str, Any]:
        """Train for all epochs, or for the remaining ones of a resumed run.

        Args:
            run: the folder, which is locked.
            description: of the network.
            data: lines that describe the data.
            say: prints lines for the user.

        Returns:
            The metrics of the best epoch.

        Raises:
            UserError: another process writes to the folder, or see `step` and `check`.
            InterruptedTrainingError: Ctrl-C; the message says how to resume.
        """
        main = self.accelerator.is_main_process
        with sole_writer(run.path, f"--output {run.path}") if main else nullcontext():
            state = self.restore(run.load_state()) if run.resumes else TrainState(metric=self.metric)
            run.begin(description)
            display = Display(say if main else None, self.total_steps, state.step, self.metric)
            display.start(self.config, description, data, self.accelerator, self.steps_per_epoch)
            with display, interrupts() as interrupt:
                while state.step < self.total_steps:
                    self._epoch(run, state, display, interrupt)
            run.finish()
            display.finish(state, description.next_command)
        return state.best

    def _epoch(self, run: RunFolder, state: TrainState, display: Display, interrupt: Interrupt) -> None:
        """Train for the rest of an epoch, evaluate and save."""
        epoch, done = divmod(state.step, self.steps_per_epoch)
        batches = self.epoch_batches(epoch, done)
        for _ in range(done, self.steps_per_epoch):
            try:
                with interrupt.at_once(self.accelerator):
                    micro = [next(batches) for _ in range(self.recipe.accumulate)]
            except AskedToStop:
                run.save_state(self.state_dict(), state)
                raise InterruptedTrainingError(run.path, state.step, self.total_steps) from None
            loss = self.step(micro, state.step)
            state.add(loss, [name for batch in micro for name in batch.unreadable])
            display.advance(epoch, loss)
            if state.step % self.steps_per_epoch == 0:
                break  # the epoch is evaluated before anything is saved
            stop = interrupt.requested(self.accelerator)
            if stop or state.step % self.config.run.save_every == 0:
                run.save_state(self.state_dict(), state)
            if stop:
                raise InterruptedTrainingError(run.path, state.step, self.total_steps)
        self.agree()
        metrics = self.evaluate()
        self.check(metrics, state.step)
        global_batch = self.recipe.global_batch(self.accelerator.num_processes)
        state.close_epoch(epoch, metrics, self.lr, display.images_per_second(global_batch))
        run.save_epoch(self.evaluated.state_dict(), self.state_dict(), state)
        display.epoch(state.history[-1])
        if (note := self.note()) is not None:
            display.say(f"note      {note}")
        if interrupt.requested(self.accelerator) and state.step < self.total_steps:
            raise InterruptedTrainingError(run.path, state.step, self.total_steps)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Move the network to the device; with several processes, wrap it so that gradients are averaged."""
        prepared: tuple[nn.Module, Optimizer] = self.accelerator.prepare(model, optimizer)
        return prepared

    def gather_gradients(self) -> None:  # noqa: B027  # a hook, empty by default
        """Average gradients between processes after the backward pass, if DDP has not done it."""

    def epoch_batches(self, epoch: int, done: int) -> Iterator[Batch]:
        """The micro-batches of an epoch after its first `done` steps."""
        return train_batches(
            self.split,
            batch_size=self.recipe.batch_size,
            batches=self.steps_per_epoch * self.recipe.accumulate,
            start=done * self.recipe.accumulate,
            epoch=epoch,
            seed=self.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=self.workers,
            repeats=self.repeats,
        )

    repeats = 1
    """Copies of an image in a batch."""

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate and save: with the moving average of the weights if there is one."""
        return self.ema.module if self.ema is not None else self.plain

    def step(self, micro: list[Batch], step: int) -> float:
        """One optimizer step on the micro-batches of this process; returns the mean loss over all processes, in nats.

        Raises:
            UserError: the loss or gradient is not finite (the weights are unchanged), or a batch is too small for a
                batch norm.
        """
        seed_step(self.seed, step, self.accelerator.process_index)
        if not self.plain.training:
            self.model.train()
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(micro, start=1):
            last = number == len(micro)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with _enough_to_norm(self.recipe.batch_size):
                    loss = self.loss(batch, step) / len(micro)
                with norms_at_rest(self.plain) if self.recomputes else nullcontext():
                    self.accelerator.backward(loss)
            total += loss.detach()
        self.gather_gradients()
        total = self.accelerator.reduce(total, reduction="mean")
        length = self.accelerator.clip_grad_norm_(self.parameters, self.recipe.clip_grad or math.inf)
        mean, norm = torch.stack([total, length.to(total)]).tolist()  # both at once, since it waits for the device
        # a gradient scaler (float16) handles infinite gradients itself by skipping the step
        if not math.isfinite(mean) or not (math.isfinite(norm) or self.accelerator.scaler is not None):
            raise self._diverged(f"the loss is {mean} and its gradient {norm}", step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step_update(step + 1)
        if self.ema is not None:
            self.ema.update(self.plain, step=step + 1)
        return mean

    def agree(self) -> None:
        """Average the running statistics of batch norms over all processes."""
        if self.accelerator.num_processes > 1:
            for model in [self.plain] + ([self.ema.module] if self.ema is not None else []):
                distribute_bn(model, self.accelerator.num_processes, reduce=True)

    def check(self, metrics: Mapping[str, Any], step: int) -> None:
        """Refuse to save diverged weights.

        Raises:
            UserError: the validation loss or a weight is not finite.
        """
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise self._diverged(f"the validation loss is {metrics['loss']}", step)
        broken = [name for name, weight in self.evaluated.state_dict().items() if not weight.isfinite().all()]
        if broken:
            raise self._diverged(f"the weight {broken[0]} is not finite", step)

    def _diverged(self, what: str, step: int) -> DivergedError:
        return DivergedError(
            f"{what} at step {step} (learning rate {self.lr:.2g}): stopped, the checkpoints saved so far are kept; "
            "lower --lr, set --clip-grad 1, or take --precision float32"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed training, without its progress; tensors and plain data only."""
        scaler = self.accelerator.scaler
        return {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def restore(self, saved: dict[str, Any]) -> TrainState:
        """Load a saved state (see `RunFolder.load_state`) and return the progress.

        Raises:
            UserError: the state of another network, optimizer or version.
        """
        try:
            if "model" in saved:
                self.plain.load_state_dict(saved["model"])
                load_optimizer(self.optimizer, saved["optimizer"])
                if self.ema is not None:
                    self.ema.module.load_state_dict(saved["ema"])
                if self.accelerator.scaler is not None:
                    self.accelerator.scaler.load_state_dict(saved["scaler"])
            state = TrainState(**{"metric": self.metric, **saved.get("train", {})})
            if state.history and not state.best:  # a finished run, which keeps only its log
                state.best = max(state.history, key=lambda line: (rank(line, self.metric), line["epoch"]))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the saved state does not fit ({one_line(error)}): start anew with --overwrite") from error
        self.scheduler.step_update(state.step)
        return state


@contextmanager
def _enough_to_norm(batch_size: int) -> Iterator[None]:
    """Turn torch's error for a batch norm with a single value per channel into a UserError."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"--batch-size {batch_size} is too small for this network: one of its batch norms meets a single value of "
            "each channel; give --batch-size 2 or more"
        ) from error
