"""What changes while a detector or a segmenter learns, whichever it is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from accelerate import Accelerator
from torch import nn

from psvit.data.objects.batches import DenseSplit
from psvit.data.objects.object_sets import DenseData
from psvit.data.objects.transforms import Vary
from psvit.engine.trainer import Trainer
from psvit.tasks.dense.dense_config import DenseConfig


class DenseTrainer(Trainer):
    """A network that learns from images with objects or class maps, and is ranked by its figures on the validation
    split.

    Args:
        model: the network.
        config: of the training.
        accelerator: device, precision, processes.
        data: images with what is in them.
        vary: how training images are varied.
        metric: the figure by which epochs are ranked.
    """

    config: DenseConfig
    split_type: ClassVar[type[DenseSplit]]

    def __init__(
        self,
        model: nn.Module,
        config: DenseConfig,
        accelerator: Accelerator,
        data: DenseData,
        vary: Vary,
        metric: str,
    ) -> None:
        split = self.split_type(data.train, vary, strict=config.data.strict)
        super().__init__(model, config, accelerator, split, data.workers)
        self.data, self.metric = data, metric

    @abstractmethod
    def figures(self, split: Any) -> Any:
        """The figures of the weights that count on a split."""

    def evaluate(self) -> dict[str, Any]:
        """The figures on the validation split (empty if there is none)."""
        if len(self.data.validation) == 0:
            return {}
        figures = self.figures(self.split_type(self.data.validation, strict=self.config.data.strict))
        found: dict[str, Any] = figures.to_dict()
        return found
