"""What ``psvit detect`` and ``psvit segment`` have in common: three actions, and their flags."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from psvit.cli.evaluate import add_evaluation_flags, prints, trained_on_line
from psvit.cli.flags import Flags, SplitFlags, config_from
from psvit.cli.predict import add_prediction_flags
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.engine.train_config import Machine
from psvit.errors import UserError

if TYPE_CHECKING:
    from psvit.tasks.dense.dense_task import DenseTask

T = TypeVar("T")


def run_action(
    command: str, text: str, actions: Mapping[str, Callable[[Sequence[str]], int]], arguments: Sequence[str]
) -> int:
    """Run the action that the first argument names, or print the help.

    Args:
        command: detect or segment.
        text: its help.
        actions: train, evaluate and predict.
        arguments: of the command line.

    Raises:
        UserError: there is no such action.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(text)
        return 0
    if arguments[0] not in actions:
        raise UserError(f"psvit {command} does not know {arguments[0]!r}: give train, evaluate or predict")
    return actions[arguments[0]](arguments[1:])


def evaluation_flags(command: str, description: str, data: DenseDataConfig) -> Flags:
    """The flags of the action evaluate; `data` holds the defaults of the data's."""
    apart = ("data_dir", "limit", "class_folders", "accept_changes")
    flags = Flags(f"{command} evaluate CHECKPOINT", description, SplitFlags(), data, Machine(), apart=apart)
    return add_evaluation_flags(flags, f"checkpoint folder, for example runs/{command}/best", batch_size=8)


def prediction_flags(command: str, description: str, output: str) -> Flags:
    """The flags of the action predict; `output` says what is written into that folder."""
    flags = Flags(f"{command} predict CHECKPOINT IMAGE [IMAGE ...]", description, Machine())
    add_prediction_flags(flags, f"checkpoint folder, for example runs/{command}/best")
    flags.add("--output", output)
    flags.add("--overwrite", "replace files in that folder", bool, False)
    return flags


@dataclass(frozen=True)
class Evaluated(Generic[T]):
    """What an evaluation came to.

    Args:
        figures: of the checkpoint.
        origin: of a folder, where the split comes from, in words.
        trained_on: of a folder, how many of its images the network was trained on; None: not known.
    """

    figures: T
    origin: str | None = None
    trained_on: int | None = None

    def told(self) -> dict[str, int | None]:
        """What JSON says of the images."""
        return {"trained_on": self.trained_on} if self.origin is not None else {}

    def heading(self, values: Namespace, images: int) -> str:
        """The first lines of the table."""
        origin = f" ({self.origin})" if self.origin is not None else ""
        known = f"\n{trained_on_line(self.trained_on, values.split)}" if self.origin is not None else ""
        return f"{values.data}, {values.split} split{origin}, {images} images{known}"


def evaluated(task_type: type[DenseTask], values: Namespace, data: DenseDataConfig) -> Evaluated[Any]:
    """The metrics of a checkpoint, by the flags of `evaluation_flags`; notes on the data go to stderr.

    Raises:
        UserError: as `evaluate_dense`; or the validation split is another than the training's, which may have
            learned it.
    """
    from psvit.engine.checkpoints import read_metrics
    from psvit.engine.trained_on import check_cut, known_images, trained_on
    from psvit.tasks.dense.dense_checkpoints import evaluate_dense

    metrics = read_metrics(values.checkpoint)
    trained = trained_on(metrics)
    split, machine = config_from(values, SplitFlags()), config_from(values, Machine())
    given = config_from(values, data, **split.filled(trained))
    if values.split == "validation" and trained is not None:
        check_cut(values.checkpoint, trained, given)
    figures, opened = evaluate_dense(task_type, values.checkpoint, given, machine, values.split, values.batch_size)
    for note in opened.notes if prints() else ():
        print(note, file=sys.stderr)
    if opened.files is None:
        return Evaluated(figures)
    known = known_images(values.checkpoint, metrics)
    return Evaluated(figures, opened.files.origins[values.split], opened.files.trained_on(values.split, known))
