"""Reads and replaces attention maps and tokens of a model's layers, by hooks.

The model has to be built under `psvit.models.macs.explicit_attention`: fused kernels return no map. Maps and tokens of
a PSViT's windows are joined to those of the whole grid.

Legend: B images, H heads, N tokens (P prefix tokens and an h x w grid), C width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from psvit.analysis.layers import Layer
from psvit.analysis.redundancy import pooled
from psvit.models.windows import split_windows


class Seen(NamedTuple):
    """Results of one batch: the model's output, and the map (B, H, N, N) and tokens (B, N, C) of each layer."""

    output: Tensor
    maps: list[Tensor]
    tokens: list[Tensor]


@dataclass(frozen=True, eq=False)
class Change:
    """Replacements while a model runs.

    Args:
        maps: layer -> the earlier layer whose map it takes, and for each head the head of that layer.
        windows: layer -> the pooling window of each token; tokens are replaced by the means of their windows.
    """

    maps: Mapping[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    windows: Mapping[int, Tensor] = field(default_factory=dict)


def look(model: nn.Module, layers: Sequence[Layer], images: Tensor) -> Seen:
    """Run `model` on images (B, C, H, W), and return its output with the maps and tokens of all layers."""
    maps: dict[str, Tensor] = {}
    tokens: dict[str, Any] = {}
    inputs = {layer.drop: partial(maps.__setitem__, layer.drop) for layer in layers}
    outputs = {layer.name: partial(tokens.__setitem__, layer.name) for layer in layers}
    with hooked(model, inputs, outputs):
        output = model(images)
    return Seen(output, [layer.whole(maps[layer.drop]) for layer in layers],
                [layer.whole(tokens_of(tokens[layer.name])) for layer in layers])  # fmt: skip


def run_changed(model: nn.Module, layers: Sequence[Layer], images: Tensor, change: Change) -> Tensor:
    """The output of `model` for images (B, C, H, W) with `change` applied.

    Changing a layer's map does not change it in layers that share it: list those in `change` too.
    """
    held: dict[int, Tensor] = {}
    inputs = {layers[source].drop: partial(held.__setitem__, source) for source, _ in change.maps.values()}
    outputs: dict[str, Callable[[Any], Any]] = {
        layers[number].drop: lambda _, source=source, heads=list(heads): held[source][:, heads]  # type: ignore[misc]
        for number, (source, heads) in change.maps.items()
    }
    for number, windows in change.windows.items():
        outputs[layers[number].name] = partial(_pool_output, windows=windows, layer=layers[number])
    with hooked(model, inputs, outputs):
        output: Tensor = model(images)
    return output


def _pool_output(output: Any, windows: Tensor, layer: Layer) -> Any:
    x = layer.whole(tokens_of(output))
    changed = torch.cat([x[:, : layer.prefix], pooled(x[:, layer.prefix :], windows.to(x.device))], dim=1)
    if layer.window and layer.grid is not None:
        changed = split_windows(changed, layer.grid, layer.window)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def tokens_of(output: Any) -> Tensor:
    """The tokens in a layer's output: our Block returns (tokens, map)."""
    x: Tensor = output[0] if isinstance(output, tuple) else output
    return x


@contextmanager
def hooked(
    model: nn.Module, inputs: Mapping[str, Callable[[Any], Any]], outputs: Mapping[str, Callable[[Any], Any]]
) -> Iterator[None]:
    """Call functions with the inputs and outputs of modules, by name; a result other than None replaces the value."""
    hooks = [model.get_submodule(name).register_forward_pre_hook(lambda module, args, take=take: take(args[0]))
             for name, take in inputs.items()]  # fmt: skip
    hooks += [model.get_submodule(name).register_forward_hook(lambda module, args, output, take=take: take(output))
              for name, take in outputs.items()]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
