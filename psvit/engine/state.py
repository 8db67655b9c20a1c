"""The progress of a training. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainState:
    """The progress of a training.

    Args:
        step: optimizer steps done.
        loss_sum: of the current epoch, in nats; loss_count: its steps so far.
        unreadable: names of images that could not be read so far.
        history: metrics of each finished epoch.
        best: metrics of the best epoch.
        metric: ranks the epochs, higher is better; ties go to the lower validation loss.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    unreadable: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    metric: str = "top1"

    def add(self, loss: float, unreadable: Sequence[str]) -> None:
        """Count one step."""
        self.step += 1
        self.loss_sum += loss
        self.loss_count += 1
        self.unreadable += [name for name in dict.fromkeys(unreadable) if name not in self.unreadable]

    def close_epoch(self, epoch: int, metrics: Mapping[str, Any], lr: float, images_per_second: float | None) -> None:
        """Add an epoch to the history; afterwards `improved` tells whether it is the best so far."""
        line = {"epoch": epoch + 1, "step": self.step, "lr": lr, "train_loss": self.loss_sum / self.loss_count}
        line |= metrics
        self.history.append({**line, "images_per_second": images_per_second})
        self.loss_sum, self.loss_count = 0.0, 0
        # without a validation split the last epoch is the best
        if not self.best or rank(line, self.metric) >= rank(self.best, self.metric):
            self.best = line

    @property
    def improved(self) -> bool:
        """Whether the last finished epoch is the best."""
        return bool(self.history) and self.best.get("epoch") == self.history[-1]["epoch"]


def rank(line: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """Sort key of epochs: the metric, then the lower validation loss."""
    return line.get(metric) or 0, -line.get("loss", 0)  # the metric is None if the split has no objects
