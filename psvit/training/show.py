"""What a training tells the person who runs it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from psvit.training.data import Data
from psvit.training.recipes import TrainSettings

if TYPE_CHECKING:
    from psvit.training.run_folder import RunFolder, TrainState


class Display:
    """Lines for `say`, and a progress bar where the terminal is one.

    Args:
        say: takes lines; None on all processes but the first, which stay silent.
        total: optimizer steps of the training; done: those that a resumed run has behind it.
    """

    def __init__(self, say: Callable[[str], None] | None, total: int, done: int = 0) -> None:
        self.say = say or (lambda line: None)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=say is None or not Console(stderr=True).is_terminal,
        )
        self.task = self.bar.add_task("train", total=total, completed=done, epoch="-", loss="-")
        self.timed_steps, self.started = 0, time.perf_counter()

    def __enter__(self) -> Display:
        self.bar.start()
        self.started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def start(
        self,
        settings: TrainSettings,
        data: Data,
        run: RunFolder,
        world: int,
        accelerator: Accelerator,
        steps_per_epoch: int,
        step: int,
    ) -> None:
        """Say what is about to be trained: the network, the data, the global batch and the scaled learning rate."""
        recipe, facts = settings.recipe, run.facts
        precision = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}
        self.say(f"network   {run.title}: {facts['macs'] / 1e6:.4g} M MACs, {facts['params'] / 1e6:.4g} M parameters")
        self.say(f"data      {data.name}: {len(data.train)} training and {len(data.holdout)} hold-out images of "
                 f"{data.img_size[0]}x{data.img_size[1]} pixels, {len(data.classes)} classes")  # fmt: skip
        for note in data.notes:
            self.say(f"          {note}")
        self.say(
            f"batch     {recipe.global_batch(world)} images globally = {recipe.batch_size} a process "
            f"x {recipe.accumulate} accumulated x {world} processes; {steps_per_epoch} steps an epoch"
        )
        source = "as given" if recipe.lr is not None else f"= {recipe.base_lr:g} x {recipe.global_batch(world)} / 512"
        self.say(f"lr        {recipe.scaled_lr(world):.3g} {source}, {recipe.epochs} epochs")
        self.say(f"device    {accelerator.device}, {precision[accelerator.mixed_precision]}")
        self.say(f"output    {run.path}" + (f", resumed at step {step}" if step else ""))

    def advance(self, epoch: int, loss: float, lr: float) -> None:
        """Count one step."""
        self.timed_steps += 1
        self.bar.update(self.task, advance=1, epoch=epoch + 1, loss=f"{loss:.3f}")

    def images_per_second(self, global_batch: int) -> float:
        """Training speed since it was last asked for."""
        now = time.perf_counter()
        speed = self.timed_steps * global_batch / (now - self.started)
        self.timed_steps, self.started = 0, now
        return round(speed, 1)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Say what one epoch came to."""
        figures = f"train loss {line['train_loss']:.3f}"
        if "top1" in line:
            figures += f", hold-out loss {line['loss']:.3f}, top-1 {line['top1']:.2f} %"
        self.say(f"epoch {line['epoch']:>3}: {figures}, {line['images_per_second']:.0f} images/s")
        self.started = time.perf_counter()

    def finish(self, state: TrainState, run: RunFolder) -> None:
        """Say what was left out, what came out, and what to do next."""
        if state.unreadable:
            some = ", ".join(state.unreadable[:3])
            self.say(
                f"skipped {len(state.unreadable)} unreadable images: {some}{', ...' * (len(state.unreadable) > 3)}"
            )
        best = state.best
        if "top1" in best:
            self.say(f"best      epoch {best['epoch']}: hold-out top-1 {best['top1']:.2f} %")
        if run.next_command:
            self.say(f"next      {shlex.join(run.next_command)}")
