"""What one image costs a network with a head, told before it is trained and kept beside its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from psvit.measure.macs import macs_of

Pair = tuple[nn.Module, nn.Module]
"""A network with a head, and the backbone in it."""


def macs_on_meta(shape: Sequence[int], *networks: nn.Module) -> list[int]:
    """MACs of one image (C, H, W) through each network, which is moved to the meta device.

    Nothing is computed there: the maps of a large image would take gigabytes.
    """
    moved = [network.to("meta") for network in networks]
    with torch.device("meta"):
        return [macs_of(network, tuple(shape), train=False) for network in moved]


def network_facts(shape: Sequence[int], whole: str, built: Pair, learned: Pair) -> dict[str, Any]:
    """What metrics.json tells of the cost: MACs of one image (C, H, W), parameters.

    Args:
        shape: of an image, as the network takes it.
        whole: the name for the MACs of all that is counted with the backbone.
        built: a network to count in, and the backbone in it; both are moved to the meta device.
        learned: the network that learns, and the backbone in it.
    """
    # the whole first: it says plainly what its backbone cannot take
    whole_macs, macs = macs_on_meta(shape, *built)
    params, backbone_params = (sum(p.numel() for p in network.parameters()) for network in learned)
    return {"macs": macs, whole: whole_macs, "backbone_params": backbone_params, "params": params}


def macs_line(size: tuple[int, int], macs: float, with_head: float, head: str, largest: bool = False) -> str:
    """A line for the user: MACs of the backbone, and with its head, for images of this height and width.

    `largest` says that others are smaller.
    """
    seen = f"seen at {'up to ' if largest else ''}{size[0]} x {size[1]} pixels"
    return (f"{seen}: {macs / 1e6:.4g} M MACs are the backbone's, "
            f"{with_head / 1e6:.4g} M with its {head}")  # fmt: skip
