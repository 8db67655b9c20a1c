"""What one image costs a network with a head, told before it is trained and kept beside its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from psvit.arch.model_config import is_folder
from psvit.models.macs import macs_of
from psvit.models.psvit import PSViT

Pair = tuple[nn.Module, nn.Module]
"""A network with a head, and the backbone in it."""

MANY = (4096, 8192)
"""Tokens; where more than these all see each other, in the first stage or a later one, memory is worth a note.

A second stage of stride 16 has 4,200 at 800 x 1333 pixels, which windows in the first alone leave within memory.
"""

WINDOW = 14
"""Side in tokens of the windows that a note proposes: ViTDet's."""


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


def padded(size: tuple[int, int], step: int) -> tuple[int, int]:
    """Height and width, rounded up to multiples of `step`."""
    return -(-size[0] // step) * step, -(-size[1] // step) * step


def seen_lines(
    size: tuple[int, int],
    step: int,
    body: Any,
    macs: tuple[float, float],
    head: str,
    source: str,
    smaller: str,
    largest: bool = False,
) -> list[str]:
    """Lines for the user: MACs and tokens for images of one size, and a note where they will take much memory.

    Args:
        size: height and width; step: of which the network's images are multiples.
        body: timm's features.
        macs: of the backbone, and with its head.
        head: what it is called.
        source: the name or folder of the backbone.
        smaller: the flag that makes images smaller.
        largest: other images are smaller.
    """
    arch = body.model.arch if isinstance(getattr(body, "model", None), PSViT) else None
    tokens = [rows * columns for rows, columns in arch.grids(padded(size, step))] if arch is not None else []
    line = (f"seen at {'up to ' if largest else ''}{size[0]} x {size[1]} pixels: {macs[0] / 1e6:.4g} M MACs are the "
            f"backbone's, {macs[1] / 1e6:.4g} M with its {head}")  # fmt: skip
    if arch is None:
        return [line]
    line += f"; {tokens[0]} tokens in its first stage"
    many = [count > MANY[min(stage, 1)] and not arch.window(stage) for stage, count in enumerate(tokens)]
    if not any(many):
        return [line]
    windows = " ".join(str(WINDOW if wide else arch.window(stage)) for stage, wide in enumerate(many))
    way = f"give --windows {windows}, or lower {smaller}"
    if is_folder(source):
        way = f"lower {smaller}, or train the classifier with --windows {windows}"
    elif arch.pooling == "1d" or arch.class_token:
        way = f"lower {smaller}, or take a 2D variant with --windows {windows}"
    stage = many.index(True)
    note = (f"note: {tokens[stage]} tokens see each other in stage {stage + 1}, and memory grows with their square for "
            f"layers that share maps and in float32: {way}")  # fmt: skip
    return [line, note]
