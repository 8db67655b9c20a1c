"""Lines and a progress bar for the user during a training."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from psvit.data.image_sets import ImageSet
from psvit.engine.run_folder import Description
from psvit.engine.state import TrainState
from psvit.engine.train_config import LearnConfig

NAMES = {"top1": "top-1", "box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU"}
"""Metrics in percent -> names for the user."""


def describe_data(data: Any) -> list[str]:
    """Lines that describe the data, a `Data` or an object with its name, splits, classes, img_size and notes."""
    size = f"{data.img_size[0]}x{data.img_size[1]} pixels" if data.img_size else "different sizes"
    return [
        f"{data.name}: {len(data.train)} training and {len(data.validation)} validation images of {size}, "
        f"{len(data.classes)} classes",
        *(_table(data.files) if getattr(data, "files", None) is not None else ()),
        *data.notes,
    ]


def _table(files: ImageSet) -> list[str]:
    """The splits of a folder: images, classes if images have labels, and origins."""
    of_classes = any(row.label for row in files.rows)
    lines = [f"{'split':<10}{'images':>8}{'classes':>9}  from" if of_classes else f"{'split':<10}{'images':>8}  from"]
    for split, name in (("train", "train"), ("validation", "validation split"), ("test", "test")):
        labels = [row.label for row, own in zip(files.rows, files.splits, strict=True) if own == split]
        if split in files.origins:
            classes = f"{len(set(labels)):>9}" if of_classes else ""
            lines.append(f"{name:<10}{len(labels):>8}{classes}  {files.origins[split]}")
    if unused := files.splits.count("unused"):
        lines.append(f"{'not used':<10}{unused:>8}")
    return lines


class Display:
    """Lines for `say`, and a progress bar if stderr is a terminal.

    Args:
        say: prints lines; None in all processes except the first.
        total: optimizer steps of the training; done: steps done before a resumed run.
        metric: the metric that ranks epochs.
    """

    def __init__(self, say: Callable[[str], None] | None, total: int, done: int = 0, metric: str = "top1") -> None:
        self.done, self.metric = done, metric
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
        config: LearnConfig,
        description: Description,
        data: Sequence[str],
        accelerator: Accelerator,
        steps_per_epoch: int,
    ) -> None:
        """Print the network, the data, the global batch and the scaled learning rate."""
        recipe, facts, world = config.recipe, description.facts, accelerator.num_processes
        precision = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}
        self.say(f"network   {description.title}: {facts['macs'] / 1e6:.4g} M MACs, {facts['params'] / 1e6:.4g} M "
                 "parameters")  # fmt: skip
        for number, line in enumerate(data):
            self.say(f"{'' if number else 'data':<9} {line}")
        self.say(
            f"batch     {recipe.global_batch(world)} images globally = {recipe.batch_size} a process "
            f"x {recipe.accumulate} accumulated x {world} processes; {steps_per_epoch} steps an epoch"
        )
        source = "as given" if recipe.lr is not None else f"= {recipe.base_lr:g} x {recipe.global_batch(world)} / 512"
        self.say(f"lr        {recipe.scaled_lr(world):.3g} {source}, {recipe.epochs} epochs")
        memory = ", activations computed again in the backward pass" if config.run.grad_checkpointing else ""
        self.say(f"device    {accelerator.device}, {precision[accelerator.mixed_precision]}{memory}")
        self.say(f"output    {config.run.output}" + (f", resumed at step {self.done}" if self.done else ""))

    def advance(self, epoch: int, loss: float) -> None:
        """Count one step."""
        self.timed_steps += 1
        self.bar.update(self.task, advance=1, epoch=epoch + 1, loss=f"{loss:.3f}")

    def images_per_second(self, global_batch: int) -> float:
        """Training speed since the last call."""
        now = time.perf_counter()
        speed = self.timed_steps * global_batch / (now - self.started)
        self.timed_steps, self.started = 0, now
        return round(speed, 1)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Print the metrics of one epoch."""
        text = f"train loss {line['train_loss']:.3f}"
        if line.get(self.metric) is not None:
            loss = f"loss {line['loss']:.3f}, " if "loss" in line else ""
            text += f", validation split {loss}{NAMES[self.metric]} {line[self.metric]:.2f} %"
        self.say(f"epoch {line['epoch']:>3}: {text}, {line['images_per_second']:.0f} images/s")
        self.started = time.perf_counter()

    def finish(self, state: TrainState, next_command: Sequence[str]) -> None:
        """Print unreadable images, the best metrics and the next command."""
        if state.unreadable:
            some = ", ".join(state.unreadable[:3])
            self.say(
                f"skipped {len(state.unreadable)} unreadable images: {some}{', ...' * (len(state.unreadable) > 3)}"
            )
        best = state.best
        if best.get(self.metric) is not None:
            self.say(
                f"best      epoch {best['epoch']}: validation split {NAMES[self.metric]} {best[self.metric]:.2f} %"
            )
        if next_command:
            self.say(f"next      {shlex.join(next_command)}")
