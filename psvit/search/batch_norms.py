"""Batch norms of networks that share weights: each network has statistics of its own.

Mean and variance of a channel differ from network to network, so a supernet keeps none: in training and in scoring
alike, its batch norms take those of the batch at hand. A network taken out of it gets its own from images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from psvit.data.augment import eval_split
from psvit.data.datasets import Data
from psvit.data.loading import eval_batches
from psvit.data.sources import Source, Subset

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of a batch norm."""

CALIBRATION = 1024
"""Training images from which the statistics of a network are taken."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def norm_by_batch(module: AnyModule) -> AnyModule:
    """Let the batch norms of a module take the statistics of the batch at hand, always."""
    for norm in _batch_norms(module):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return module


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the statistics of the batch norms to their means over batches of images (B, C, H, W)."""
    norms, training = _batch_norms(model), model.training
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for images in batches if norms else ():
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)


def calibration_batches(data: Data, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of `CALIBRATION` training images, drawn at random, without augmentation."""
    assert isinstance(data.train, Source), "a search refuses streamed sets"
    drawn = np.random.default_rng(seed).permutation(len(data.train))[:CALIBRATION]
    split = eval_split(data, Subset(data.train, drawn))
    return (batch.images for batch in eval_batches(split, batch_size=batch_size, workers=data.workers))


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
