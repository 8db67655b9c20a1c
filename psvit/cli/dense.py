"""The actions train, evaluate and predict of ``psvit detect`` and ``psvit segment``."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from psvit.cli.evaluate import add_evaluation_flags, print_split, print_unreadable, prints
from psvit.cli.flags import Flags, SplitFlags, config_from, with_recipe
from psvit.cli.predict import add_prediction_flags, find_images, readable
from psvit.data.data_config import OF_A_RUN
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.engine.train_config import Machine, RunConfig
from psvit.errors import UserError
from psvit.tasks.dense.dense_config import RECIPES, DenseConfig

if TYPE_CHECKING:
    from psvit.tasks.dense.dense_task import DenseTask


class DenseCommand(ABC):
    """A command with the actions train, evaluate and predict."""

    name: ClassVar[str]
    help: ClassVar[Mapping[str, str]]
    """Help text of each action, and of the command itself under its name."""
    data: ClassVar[DenseDataConfig]
    config: ClassVar[type[DenseConfig]]
    output: ClassVar[str]
    """Help text of predict's --output."""

    head_flags: ClassVar[Mapping[str, tuple[str, str, Any, Any]]] = {}
    """Settings of the head that predict can change -> flag, help text, annotation, default."""

    @abstractmethod
    def task(self) -> type[DenseTask]:
        """The task, imported only when it is needed."""

    @abstractmethod
    def per_class(self, metrics: Any) -> dict[str, Any]:
        """The metrics per class, for JSON."""

    @abstractmethod
    def print_metrics(self, metrics: Any) -> None:
        """Print the metrics as a table."""

    @abstractmethod
    def plain(self, found: Any) -> dict[str, Any]:
        """The prediction for an image, for JSON."""

    @abstractmethod
    def summary(self, found: Any) -> str:
        """The prediction for an image, in words."""

    @abstractmethod
    def drawing(self, folder: Path, paths: Sequence[Path], overwrite: bool) -> tuple[Callable[[Path, Any], None], str]:
        """A function that draws the prediction for an image path into `folder`, and a line that names the folder."""

    def run(self, arguments: Sequence[str]) -> int:
        """Run the action named by the first argument, or print the help.

        Raises:
            UserError: an unknown action or wrong arguments.
        """
        actions = {"train": self.train, "evaluate": self.evaluate, "predict": self.predict}
        if not arguments or arguments[0] in ("-h", "--help"):
            print(self.help[self.name])
        elif arguments[0] not in actions:
            raise UserError(f"psvit {self.name} does not know {arguments[0]!r}: give train, evaluate or predict")
        else:
            actions[arguments[0]](arguments[1:])
        return 0

    def train(self, arguments: Sequence[str]) -> None:
        """Parse the flags and train."""
        run = RunConfig(output=f"runs/{self.name}")
        config = with_recipe(
            f"{self.name} train", self.help["train"], lambda recipe: self.config(recipe=recipe, run=run), arguments,
            RECIPES, ("data_dir", "class_folders", "image_cache", "image_cache_dir"),
        )  # fmt: skip

        from psvit.tasks.dense.dense_training import train_dense

        train_dense(self.task(), config)

    def _evaluation_flags(self, data: DenseDataConfig) -> Flags:
        apart = ("data_dir", "limit", "class_folders", *OF_A_RUN)
        defaults = SplitFlags(), data, Machine()
        flags = Flags(f"{self.name} evaluate CHECKPOINT", self.help["evaluate"], *defaults, apart=apart)
        return add_evaluation_flags(flags, f"checkpoint folder, for example runs/{self.name}/best", batch_size=8)

    def evaluate(self, arguments: Sequence[str]) -> None:
        """Parse the flags, evaluate and print."""
        values = self._evaluation_flags(self.data).parse(arguments)

        from psvit.engine.checkpoints import read_metrics
        from psvit.engine.trained_on import check_cut, known_images, trained_on
        from psvit.tasks.dense.dense_checkpoints import as_trained, evaluate_dense

        checkpoint = values.checkpoint
        data = as_trained(checkpoint, self.data)
        values = self._evaluation_flags(data).parse(arguments)  # again, with the training's --scenes as default
        saved = read_metrics(checkpoint)
        trained = trained_on(saved)
        data = config_from(values, data, **config_from(values, SplitFlags()).filled(trained))
        if values.split == "validation" and trained is not None:
            check_cut(checkpoint, trained, data)
        machine = config_from(values, Machine())
        metrics, opened = evaluate_dense(self.task(), checkpoint, data, machine, values.split, values.batch_size)
        if not prints():
            return
        for note in opened.notes:
            print(note, file=sys.stderr)
        known = {}
        if opened.files is not None:
            known["trained_on"] = opened.files.trained_on(values.split, known_images(checkpoint, saved))
        if values.json:
            told = {**metrics.to_dict(), **self.per_class(metrics), "unreadable": list(metrics.unreadable), **known}
            print(json.dumps(told, ensure_ascii=False))
            return
        origin = opened.files.origins[values.split] if opened.files is not None else None
        print_split(data.data, values.split, metrics.images, origin, known.get("trained_on"))
        self.print_metrics(metrics)
        print_unreadable(metrics.unreadable)

    def predict(self, arguments: Sequence[str]) -> None:
        """Parse the flags, print one line per image, and draw the predictions."""
        flags = Flags(f"{self.name} predict CHECKPOINT IMAGE [IMAGE ...]", self.help["predict"], Machine())
        add_prediction_flags(flags, f"checkpoint folder, for example runs/{self.name}/best")
        flags.add("--output", self.output)
        flags.add("--overwrite", "replace files in that folder", bool, False)
        for flag in self.head_flags.values():
            flags.add(*flag)
        values = flags.parse(arguments)
        paths = find_images(values.images)

        from psvit.tasks.dense.dense_checkpoints import predict_dense

        draw, where = self.drawing(Path(values.output), paths, values.overwrite) if values.output else (None, "")
        machine = config_from(values, Machine())
        head = {name: getattr(values, flag.lstrip("-")) for name, (flag, *_) in self.head_flags.items()}
        predictions = predict_dense(self.task(), values.checkpoint, paths, machine, **head)
        for path, found in readable(paths, predictions):
            if values.json:
                print(json.dumps({"image": found.image, **self.plain(found)}, ensure_ascii=False))
            else:
                print(f"{found.image}  {self.summary(found)}")
            if draw is not None:
                draw(path, found)
        if where:
            print(where, file=sys.stderr)
