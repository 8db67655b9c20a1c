"""Multiply-accumulates of a network, counted by torch while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from timm.layers.config import set_fused_attn, use_fused_attn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def explicit_attention() -> Iterator[None]:
    """Attention as two explicit matrix products, for models built and run within, so that QK^T and AV are counted.

    timm reads its switch when a layer is built; torch's layers and scaled_dot_product_attention choose their kernel
    when they run, and counters of older torch versions skip fused kernels.
    """
    fused, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    set_fused_attn(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        set_fused_attn(fused, experimental)
        torch.backends.mha.set_fastpath_enabled(fastpath)


def count_macs(build_model: Callable[[], nn.Module], input_size: Sequence[int], train: bool = False) -> int:
    """Multiply-accumulates of one image, counted by torch while the model runs.

    Matrix products (also of attention) and convolutions count; norms, activations, softmax and additions do not.

    Args:
        build_model: builds a model on the CPU; called once, with fused attention off.
        input_size: channels, height, width.
        train: count the backward pass too.
    """
    with explicit_attention():
        return macs_of(build_model(), input_size, train)


def macs_of(model: nn.Module, input_size: Sequence[int], train: bool) -> int:
    """`count_macs` of a model on the CPU; it must be built, and this called, under `explicit_attention`."""
    image = torch.zeros(1, *input_size)
    model.eval()  # same products as in training, but batch norms accept a single image
    if not train:
        model.requires_grad_(False)  # torch's module tracker fails on trainable parameters under no_grad
    # not inference_mode: it does not decompose composite operations, so their products would not be counted
    with torch.set_grad_enabled(train), FlopCounterMode(display=False) as counter:
        output = model(image)
        if train:
            loss_of(output).backward()
    return int(counter.get_total_flops()) // 2


def loss_of(output: object) -> Tensor:
    """A scalar that depends on all of an output, for a backward pass."""
    if isinstance(output, Tensor):
        return output.float().mean()
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(parts, (list, tuple)) or not parts:
        raise TypeError(f"cannot train on an output of type {type(output).__name__}")
    return torch.stack([loss_of(part) for part in parts]).sum()
