"""A network whose position embeddings are not square, as a checkpoint."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from psvit.engine.checkpoints import save_checkpoint

NARROW: dict[str, Any] = {"widths": (32, 48, 64), "head_dim": 16, "img_size": 64}
NETWORK: dict[str, Any] = {"genotype": "AS-A-A", "widths": (32, 48, 64), "head_dim": 16, "patch_size": 8}
PREPROCESSING = {"input_size": (3, 32, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
                 "interpolation": "bilinear", "crop_pct": 0.9}  # fmt: skip
CLASSES = ("ant", "bee", "cat")


def images(*sides: int, batch: int = 2) -> Tensor:
    """Noise."""
    return torch.randn(batch, 3, *sides)


def equal_maps(found: Any, expected: Any) -> None:
    """Bitwise, and as many."""
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def checkpoint(path: Path) -> Path:
    """A checkpoint of a network whose position embeddings are 4 x 6."""
    torch.manual_seed(1)
    model = timm.create_model("psvit_2d", **NETWORK, img_size=(32, 48), num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_checkpoint(path, model, model.state_dict(), PREPROCESSING, CLASSES, {"accuracy": 0.5})
    return path
