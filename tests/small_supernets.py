"""A space of small networks for digits, and a supernet whose weights differ everywhere."""

from typing import Any

import torch

from psvit import Arch
from psvit.search.space import Space
from psvit.search.supernet import Supernet

ELEMENTS: dict[str, Any] = {"stems": ("patch", "pool"), "mlps": ("plain", "local"), "mlp_ratios": (1.5, 3.0)}
"""All that a network may be made of throughout, to choose from; a norm in the pooling goes well with it."""


def space(**changes: Any) -> Space:
    """Networks of two to five layers for digits."""
    like = {"head_dim": 8, "patch_size": 2, **changes.pop("like", {})}
    fields = {"depth": (2, 5), "stages": (1, 3), "widths": ((8, 16), (16, 24), (16, 24, 32)), "img_size": 8,
              "in_chans": 1, "num_classes": 10}  # fmt: skip
    return Space(**{**fields, "like": Arch("A", widths=(8,), **like), **changes})


def shaken(supernet: Supernet) -> Supernet:
    """The supernet with all weights moved, so that none is exactly zero or one."""
    with torch.no_grad():
        for weight in supernet.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return supernet.eval()
