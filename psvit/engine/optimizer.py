"""The optimizer of a training, by its timm name."""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import Optimizer

from psvit.engine.train_config import Schedule
from psvit.errors import UserError, one_line


def make_optimizer(model: nn.Module, recipe: Schedule, processes: int, fused: bool = False) -> Optimizer:
    """timm's optimizer `recipe.opt`, with the learning rate scaled to `processes`.

    Args:
        model: whose parameters it changes.
        recipe: the optimizer and its settings.
        processes: number of processes.
        fused: take torch's kernel for all steps of a parameter at once, if the optimizer has one.

    Raises:
        UserError: timm has no such optimizer.
    """
    groups = partial(param_groups_weight_decay, weight_decay=recipe.weight_decay, no_weight_decay_list=undecayed(model))
    try:
        optimizer: Optimizer = create_optimizer_v2(
            model, opt=recipe.opt, lr=recipe.scaled_lr(processes), param_group_fn=groups
        )
    except (ValueError, AssertionError, ImportError) as error:
        close = difflib.get_close_matches(recipe.opt, map(str, list_optimizers()), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(f"--opt {recipe.opt!r} is not to be had ({one_line(error)}){hint}") from error
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = fused or group["fused"]
    return optimizer


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load a saved state; each of its tensors takes the memory layout of its parameter, as fused kernels expect."""
    optimizer.load_state_dict(saved)
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def check_optimizer(recipe: Schedule) -> None:
    """Raise a UserError now if timm has no such optimizer."""
    make_optimizer(nn.Linear(1, 1), replace(recipe, lr=1.0), 1)


def undecayed(model: nn.Module, prefix: str = "") -> set[str]:
    """Names of parameters without weight decay, by `no_weight_decay` of the model or of its parts.

    timm asks only the outermost module, which in a detector does not know its backbone's position embeddings.
    """
    if hasattr(model, "no_weight_decay"):
        return {f"{prefix}{name}" for name in model.no_weight_decay()}  # type: ignore[operator]  # timm's, a method
    found: set[str] = set()
    for name, part in model.named_children():
        found |= undecayed(part, f"{prefix}{name}.")
    return found
