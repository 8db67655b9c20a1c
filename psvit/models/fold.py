"""Networks as one serves them: batch norms folded into the convolutions before them, the same outputs in less time."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import reparameterize_model
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval


def for_inference(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy of a network as one serves it: batch norms folded, on a CPU with channels-last weights (decision 008).

    Convolutions and poolings of a CPU are faster where the channels of a pixel lie side by side; the images may lie in
    any layout.
    """
    served = fold_norms(model).to(device, dtype)
    return served.to(memory_format=torch.channels_last) if device.type == "cpu" else served


def fold_norms(model: nn.Module) -> Any:
    """A copy of a network in evaluation mode whose batch norms are folded into the convolutions before them.

    Modules that know how to fold themselves do (timm's `reparameterize_model`: PSViT's, LeViT's, RepVGG's, ...); in
    others, such as ResNets, torch.fx finds the pairs. A network that torch.fx cannot trace stays as it is.
    """
    folded = reparameterize_model(model.eval())
    if not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules()):
        return folded
    try:
        return fuse(folded)
    except Exception:  # torch.fx raises anything on control flow that it cannot trace
        return folded


def fold_pairs(modules: list[nn.Module]) -> list[nn.Module]:
    """Modules that run one after another -> the same with an identity for each batch norm behind a convolution."""
    folded: list[nn.Module] = []
    for module in modules:
        before = folded[-1] if folded else None
        if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            folded[-1:] = [fuse_conv_bn_eval(before, module), nn.Identity()]
        else:
            folded.append(module)
    return folded
