"""The training loop: settings -> weights, for PSViT and any model of timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from psvit.engine.devices import AskedToStop, interrupts
from psvit.engine.display import Display
from psvit.engine.run_folder import RunFolder
from psvit.engine.state import TrainState
from psvit.engine.trainer import Trainer
from psvit.errors import StoppedError
from psvit.files import sole_writer


class InterruptedTrainingError(StoppedError):
    """The user stopped a training; its state is saved."""

    def __init__(self, run: RunFolder, state: TrainState, total_steps: int) -> None:
        super().__init__(f"stopped at step {state.step} of {total_steps}, saved in {run.path}: go on with --resume")


def learn_epochs(
    trainer: Trainer, run: RunFolder, data: Sequence[str], say: Callable[[str], None] = print
) -> dict[str, Any]:
    """The loop, alone in its folder: all epochs of `config`, or, of a run that was begun, those that are left.

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
    alone = sole_writer(run.path, f"--output {run.path}") if trainer.accelerator.is_main_process else nullcontext()
    with alone:
        return _learn_epochs(trainer, run, data, say)


def _learn_epochs(trainer: Trainer, run: RunFolder, data: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """The loop itself."""
    config, accelerator, steps_per_epoch = trainer.config, trainer.accelerator, trainer.steps_per_epoch
    recipe, world = config.recipe, accelerator.num_processes
    total_steps = steps_per_epoch * recipe.epochs
    state = trainer.restore(run.load_state()) if run.resumes else TrainState(metric=trainer.metric)
    run.begin()
    display = Display(say if accelerator.is_main_process else None, total_steps, state.step, trainer.metric)
    display.start(config, data, run, world, accelerator, steps_per_epoch, state.step)
    with display, interrupts() as interrupt:
        while state.step < total_steps:
            epoch, done = divmod(state.step, steps_per_epoch)
            batches = trainer.epoch_batches(epoch, done)
            for _ in range(done, steps_per_epoch):
                try:
                    with interrupt.at_once(accelerator):
                        micro = [next(batches) for _ in range(recipe.accumulate)]
                except AskedToStop:
                    run.save_state(trainer, state)
                    raise InterruptedTrainingError(run, state, total_steps) from None
                loss = trainer.step(micro, state.step)
                state.add(loss, [name for batch in micro for name in batch.unreadable])
                display.advance(epoch, loss)
                if state.step % steps_per_epoch == 0:
                    break  # the epoch is evaluated before anything is saved
                stop = interrupt.requested(accelerator)
                if stop or state.step % config.run.save_every == 0:
                    run.save_state(trainer, state)
                if stop:
                    raise InterruptedTrainingError(run, state, total_steps)
            trainer.agree()
            metrics = trainer.evaluate()
            trainer.check(metrics, state.step)
            state.close_epoch(epoch, metrics, trainer.lr, display.images_per_second(recipe.global_batch(world)))
            run.save_epoch(trainer, state)
            display.epoch(state.history[-1])
            if interrupt.requested(accelerator) and state.step < total_steps:
                raise InterruptedTrainingError(run, state, total_steps)
    run.finish()
    display.finish(state, run)
    return state.best
