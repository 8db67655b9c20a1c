"""Gradient checkpointing: activations are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timm.models import FeatureHookNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from psvit.errors import UserError, one_line


def recompute_activations(model: nn.Module, name: str) -> None:
    """Turn on timm's gradient checkpointing for the networks in `model`.

    Args:
        model: a network of psvit or timm, or a module around one (whose other parts keep their activations).
        name: its name in messages.

    Raises:
        UserError: no part of it supports gradient checkpointing.
    """
    try:
        if not _switch(model):
            raise AssertionError("it has no gradient checkpointing")
    except (AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{name} cannot compute its activations again ({one_line(error)}): leave out --grad-checkpointing"
        ) from error


def _switch(model: nn.Module) -> bool:
    if isinstance(model, FeatureHookNet) and "body" in model:  # its own switch ignores the network in "body"
        return _switch(model["body"])
    if callable(switch := getattr(model, "set_grad_checkpointing", None)):
        switch(True)
        return True
    return sum(_switch(child) for child in model.children()) > 0  # not any(): switch every child


@contextmanager
def norms_at_rest(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms unchanged, for a backward pass that recomputes activations."""
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
