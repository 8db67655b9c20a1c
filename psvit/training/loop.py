"""The training loop: settings -> weights, for PSViT and any model of timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from psvit.errors import UserError
from psvit.files import sole_writer
from psvit.training.augment import preprocessing
from psvit.training.checkpoints import open_model
from psvit.training.classify import ClassifierLearning
from psvit.training.data import open_data
from psvit.training.learning import INIT, Learning
from psvit.training.machine import AskedToStop, attention_for_training, interrupts, open_machine, seed_step
from psvit.training.recipes import TrainSettings
from psvit.training.run_folder import RunFolder, TrainState
from psvit.training.show import Display, describe_data


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
    if (best := run.finished(say)) is not None:
        return best
    kept = run.kept_images()
    data = open_data(settings.data, kept)
    seen = run.take_images(data.files, kept)
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
    return learn_epochs(ClassifierLearning(model, settings, accelerator, data), run, [*describe_data(data), *seen], say)


def learn_epochs(
    learn: Learning, run: RunFolder, data: Sequence[str], say: Callable[[str], None] = print
) -> dict[str, Any]:
    """The loop, alone in its folder: all epochs of `settings`, or, of a run that was begun, those that are left.

    Args:
        learn: what learns.
        run: the folder that keeps it.
        data: lines that say what it learns from.
        say: takes lines for the user.

    Returns:
        The figures of the best epoch.

    Raises:
        UserError, InterruptedTrainingError: see `train`.
    """
    alone = sole_writer(run.path, f"--output {run.path}") if learn.accelerator.is_main_process else nullcontext()
    with alone:
        return _learn_epochs(learn, run, data, say)


def _learn_epochs(learn: Learning, run: RunFolder, data: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """The loop itself."""
    settings, accelerator, steps_per_epoch = learn.settings, learn.accelerator, learn.steps_per_epoch
    recipe, world = settings.recipe, accelerator.num_processes
    total_steps = steps_per_epoch * recipe.epochs
    state = learn.restore(run.load_state()) if run.resumes else TrainState(metric=learn.metric)
    run.begin()
    display = Display(say if accelerator.is_main_process else None, total_steps, state.step, learn.metric)
    display.start(settings, data, run, world, accelerator, steps_per_epoch, state.step)
    with display, interrupts() as interrupt:
        while state.step < total_steps:
            epoch, done = divmod(state.step, steps_per_epoch)
            batches = learn.epoch_batches(epoch, done)
            for _ in range(done, steps_per_epoch):
                try:
                    with interrupt.at_once(accelerator):
                        micro = [next(batches) for _ in range(recipe.accumulate)]
                except AskedToStop:
                    run.save_state(learn, state)
                    raise InterruptedTrainingError(run, state, total_steps) from None
                loss = learn.step(micro, state.step)
                state.add(loss, [name for batch in micro for name in batch.unreadable])
                display.advance(epoch, loss)
                if state.step % steps_per_epoch == 0:
                    break  # the epoch is evaluated before anything is saved
                stop = interrupt.requested(accelerator)
                if stop or state.step % settings.run.save_every == 0:
                    run.save_state(learn, state)
                if stop:
                    raise InterruptedTrainingError(run, state, total_steps)
            learn.agree()
            metrics = learn.evaluate()
            learn.check(metrics, state.step)
            state.close_epoch(epoch, metrics, learn.lr, display.images_per_second(recipe.global_batch(world)))
            run.save_epoch(learn, state)
            display.epoch(state.history[-1])
            if interrupt.requested(accelerator) and state.step < total_steps:
                raise InterruptedTrainingError(run, state, total_steps)
    run.finish()
    display.finish(state, run)
    return state.best
