"""Weights -> figures: top-1, top-5, loss and accuracy per class; and the class of single images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from psvit.training.loading import Batch


@dataclass
class Metrics:
    """Sums over evaluated images, from which the figures follow.

    Args:
        loss_sum: sum of the cross-entropies, in nats.
        hits: images whose first choice is right, by class (classes,).
        hits5: the same for the first five choices.
        images: images of each class.
        unreadable: names of images that could not be read.
    """

    loss_sum: float
    hits: list[int]
    hits5: list[int]
    images: list[int]
    unreadable: tuple[str, ...] = field(default=())

    @property
    def count(self) -> int:
        """Evaluated images."""
        return sum(self.images)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.count

    @property
    def top1(self) -> float:
        """Percentage of images whose first choice is right."""
        return 100 * sum(self.hits) / self.count

    @property
    def top5(self) -> float:
        """Percentage of images whose class is among the first five choices."""
        return 100 * sum(self.hits5) / self.count

    def to_dict(self) -> dict[str, float | int]:
        """The figures, as plain data."""
        return {"top1": round(self.top1, 4), "top5": round(self.top5, 4), "loss": self.loss, "images": self.count}

    def per_class(self) -> list[float | None]:
        """Percentage right of each class; None for a class without images."""
        return [100 * hit / n if n else None for hit, n in zip(self.hits, self.images, strict=True)]


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], num_classes: int, accelerator: Accelerator) -> Metrics:
    """Evaluate `model` on this process's batches; the sums are taken over all processes.

    Args:
        model: images (B, C, H, W) -> logits (B, num_classes); is put into evaluation mode.
        batches: see `psvit.training.loading.eval_batches`.
        num_classes: classes.
        accelerator: device, precision and processes.
    """
    model.eval()
    device = accelerator.device
    sums = torch.zeros(3, num_classes, dtype=torch.float64, device="cpu")
    loss_sum = torch.zeros(1, dtype=torch.float64)
    unreadable: list[str] = []
    for batch in batches:
        images, labels = batch.images.to(device), batch.labels.to(device)
        with accelerator.autocast():
            logits = model(images)
        logits = logits.float()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").double().cpu()
        ranked = logits.topk(min(5, num_classes), dim=-1).indices == labels[:, None]
        for row, hits in enumerate((ranked[:, 0], ranked.any(dim=-1), torch.ones_like(labels, dtype=torch.bool))):
            sums[row] += torch.bincount(labels[hits].cpu(), minlength=num_classes)
        unreadable += batch.unreadable
    total = _sum_over_processes(torch.cat([sums.flatten(), loss_sum]), accelerator)
    hits, hits5, images_of = total[:-1].view(3, num_classes).long().tolist()
    return Metrics(float(total[-1]), hits, hits5, images_of, tuple(unreadable))


def _sum_over_processes(values: Tensor, accelerator: Accelerator) -> Tensor:
    if accelerator.num_processes == 1:
        return values
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    reduced: Tensor = accelerator.reduce(values.to(accelerator.device, dtype), reduction="sum")
    return reduced.cpu()
