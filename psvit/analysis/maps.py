"""The attention maps and tokens of a model's layers, by hooks; and the model with some of them replaced.

The model has to be built under `psvit.models.macs.explicit_attention`: a fused kernel hands out no map. Where a PSViT
attends within windows, maps and tokens are put together to those of the whole grid.

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
    """What one batch showed: the model's output, and of each layer its map (B, H, N, N) and its tokens (B, N, C)."""

    output: Tensor
    maps: list[Tensor]
    tokens: list[Tensor]


@dataclass(frozen=True, eq=False)
class Change:
    """What to replace while a model runs.

    Args:
        maps: for a layer's number, the number of an earlier layer and, for each head, which of that layer's heads
            gives the map.
        windows: for a layer's number, the window of each token: its tokens become the means of their windows.
    """

    maps: Mapping[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    windows: Mapping[int, Tensor] = field(default_factory=dict)


def look(model: nn.Module, layers: Sequence[Layer], images: Tensor) -> Seen:
    """Run `model` on images (B, C, H, W), and keep what its layers show."""
    maps: dict[str, Tensor] = {}
    tokens: dict[str, Any] = {}
    inputs = {layer.drop: partial(maps.__setitem__, layer.drop) for layer in layers}
    outputs = {layer.name: partial(tokens.__setitem__, layer.name) for layer in layers}
    with hooked(model, inputs, outputs):
        output = model(images)
    return Seen(output, [layer.whole(maps[layer.drop]) for layer in layers],
                [layer.whole(tokens_of(tokens[layer.name])) for layer in layers])  # fmt: skip


def run_changed(model: nn.Module, layers: Sequence[Layer], images: Tensor, change: Change) -> Tensor:
    """The output of `model` for images (B, C, H, W) while `change` holds.

    A map that the model hands on to layers that share it is not touched on the way: name those layers too.
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
    """The tokens in what a layer puts out: our Block returns its map beside them."""
    x: Tensor = output[0] if isinstance(output, tuple) else output
    return x


@contextmanager
def hooked(
    model: nn.Module, inputs: Mapping[str, Callable[[Any], Any]], outputs: Mapping[str, Callable[[Any], Any]]
) -> Iterator[None]:
    """Hand what modules take, and what they put out, to functions, by the modules' names.

    What a function returns takes the place of what it was given, unless it is None.
    """
    hooks = [model.get_submodule(name).register_forward_pre_hook(lambda module, args, take=take: take(args[0]))
             for name, take in inputs.items()]  # fmt: skip
    hooks += [model.get_submodule(name).register_forward_hook(lambda module, args, output, take=take: take(output))
              for name, take in outputs.items()]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
