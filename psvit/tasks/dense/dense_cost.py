"""MACs and parameters of a network with a head, and a note if it will need much memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from psvit.arch.model_config import is_folder
from psvit.models.macs import explicit_attention, macs_of
from psvit.models.psvit import PSViT
from psvit.tasks.dense.backbone import build_features
from psvit.tasks.dense.dense_task import DenseTask

MANY = (4096, 8192)
"""Global attention over more tokens than this, in the first or a later stage, gets a note about memory.

A second stage of stride 16 has 4,200 tokens at 800 x 1333 pixels, which still fits if the first stage has windows.
"""

WINDOW = 14
"""Side in tokens of the windows that the note proposes, as in ViTDet."""


def network_cost(task: DenseTask, model: nn.Module, described: dict[str, Any], size: tuple[int, int]) -> dict[str, int]:
    """MACs for an image of `size` of the backbone and of the part that `task` counts, and parameters.

    They are counted on the meta device, since the maps of a large image would take gigabytes.

    Raises:
        UserError: the backbone cannot take images of this size, or see `DenseTask.check_counted`.
    """
    shape = (task.in_chans, *_padded(size, task.multiple(model)))
    with explicit_attention():
        fresh = task.build(build_features(described, task.backbone_size), described)
        part, body = (network.to("meta") for network in task.counted(fresh))
        with torch.device("meta"):
            # the head first: its error for a wrong size is clearer
            macs = [macs_of(network, shape, train=False) for network in (part, body)]
        task.check_counted(part, shape)
    params = [sum(p.numel() for p in network.parameters()) for network in (model, task.counted(model)[1])]
    return {"macs": macs[1], task.counted_key: macs[0], "backbone_params": params[1], "params": params[0]}


def _padded(size: tuple[int, int], step: int) -> tuple[int, int]:
    return -(-size[0] // step) * step, -(-size[1] // step) * step


def cost_lines(
    task: DenseTask, model: nn.Module, cost: dict[str, int], size: tuple[int, int], source: str, largest: bool = False
) -> list[str]:
    """Lines for the user: MACs and tokens for images of one size, and a note if they need much memory.

    Args:
        task: the task.
        model: its network.
        cost: see `network_cost`.
        size: height and width.
        source: the name or folder of the backbone.
        largest: this is the largest of several sizes.
    """
    network = getattr(task.counted(model)[1], "model", None)
    line = (f"seen at {'up to ' if largest else ''}{size[0]} x {size[1]} pixels: {cost['macs'] / 1e6:.4g} M MACs are "
            f"the backbone's, {cost[task.counted_key] / 1e6:.4g} M with its {task.counted_part}")  # fmt: skip
    if not isinstance(network, PSViT):
        return [line]
    arch = network.arch
    tokens = [rows * columns for rows, columns in arch.grids(_padded(size, task.multiple(model)))]
    line += f"; {tokens[0]} tokens in its first stage"
    many = [count > MANY[min(stage, 1)] and not arch.window(stage) for stage, count in enumerate(tokens)]
    if not any(many):
        return [line]
    windows = " ".join(str(WINDOW if wide else arch.window(stage)) for stage, wide in enumerate(many))
    way = f"give --windows {windows}, or lower {task.size_flag}"
    if is_folder(source):
        way = f"lower {task.size_flag}, or train the classifier with --windows {windows}"
    elif arch.pooling == "1d" or arch.class_token:
        way = f"lower {task.size_flag}, or take a 2D variant with --windows {windows}"
    stage = many.index(True)
    note = (f"note: {tokens[stage]} tokens see each other in stage {stage + 1}, and memory grows with their square for "
            f"layers that share maps and in float32: {way}")  # fmt: skip
    return [line, note]
