"""Gradient checkpointing: activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timm.models import FeatureHookNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from psvit.errors import UserError, one_line


def recompute_activations(model: nn.Module, name: str) -> None:
    """Have the networks in `model` compute their activations again in the backward pass, by timm's switch for it.

    Args:
        model: a network of psvit or timm, or what is built around one; the rest of it keeps its activations.
        name: what messages call it.

    Raises:
        UserError: there is no such network in it, or one that cannot.
    """
    try:
        if not _switch(model):
            raise AssertionError("it has no gradient checkpointing")
    except (AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{name} cannot compute its activations again ({one_line(error)}): leave out --grad-checkpointing"
        ) from error


def _switch(model: nn.Module) -> bool:
    if isinstance(model, FeatureHookNet) and "body" in model:  # its own switch passes over a network kept whole
        return _switch(model["body"])
    if callable(switch := getattr(model, "set_grad_checkpointing", None)):
        switch(True)
        return True
    return sum(_switch(child) for child in model.children()) > 0  # every child, not only the first that can


@contextmanager
def norms_at_rest(model: nn.Module) -> Iterator[None]:
    """Batch norms of `model` that run within, in training, leave what they remember of batches as it is.

    For a backward pass that computes activations again: they have seen the batch in the forward pass.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    seen: list[Tensor | None] = [
        None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, seen, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
