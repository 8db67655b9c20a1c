"""Measures the redundancy of a model layer by layer, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from psvit.analysis.advice import Advice, may_pool, may_share
from psvit.analysis.analyzed_model import AnalyzedModel
from psvit.analysis.layers import Layer
from psvit.analysis.maps import Change
from psvit.analysis.passes import (
    Batches,
    First,
    Heads,
    Second,
    first_pass,
    guesses,
    matched,
    partners,
    second_pass,
    sharing,
    source_of,
)


@dataclass(frozen=True, eq=False)
class Findings:
    """The results of two passes over the images.

    Args:
        rows: measurements of each layer, as plain data.
        heads: matched heads of each pair of layers.
        cosine: of the maps of each pair of layers (L, L), correlation: the same.
        first: results of the first pass, second: of the second.
        unlabelled: why the cost of changes was not measured; empty if it was.
        guesses: the network is hardly better than guessing.
    """

    rows: list[dict[str, Any]]
    heads: Heads
    cosine: list[list[float | None]]
    correlation: list[list[float | None]]
    first: First
    second: Second
    unlabelled: str
    guesses: bool

    def matrices(self) -> dict[str, Any]:
        """Measurements of pairs of layers, as plain data."""
        divergence, averaged = self.second.divergence
        cosine, correlation = (matrix.tolist() for matrix in self.first.averaged)
        pairs = [{"layers": [i + 1, j + 1], "heads": [[a + 1, b + 1] for a, b in zip(*both, strict=True)]}
                 for (i, j), both in self.heads.items() if i < j]  # fmt: skip
        return {
            "maps": {
                "matched": {"correlation": self.correlation, "cosine": self.cosine, "divergence": divergence},
                "averaged": {"correlation": correlation, "cosine": cosine, "divergence": averaged},
                "partners": pairs,
            },
            "cka": self.first.cka.tolist(),
        }


def measure(
    analyzed: AnalyzedModel, layers: Sequence[Layer], batches: Batches, device: torch.device, say: Callable[[str], None]
) -> Findings:
    """Two passes over the images: maps and tokens, then divergences and the cost of each change."""
    first = first_pass(analyzed.model, layers, batches, device)
    heads = partners(layers, first)
    cosine, correlation = matched(layers, first, heads)
    rows = [_row(i, layers, first, analyzed.img_size) for i in range(len(layers))]
    shares = [i for i in range(len(rows)) if may_share(rows, i)]
    pools = [i for i in range(len(rows)) if may_pool(rows, i)]
    changes = [sharing(layers, heads, {i: i - 1}) for i in shares]
    changes += [Change(windows={i: _windows(layers[i], 1)}) for i in pools]
    say(f"maps and tokens of {first.images} images measured; once more, for divergences"
        + ("" if analyzed.unlabelled else f" and {len(changes)} changes"))  # fmt: skip
    second = second_pass(analyzed.model, layers, heads, changes, batches, device, not analyzed.unlabelled)
    unlabelled, guessing = analyzed.unlabelled, False
    if second.top1 is not None and second.guess is not None:
        guessing = guesses(second.top1, second.guess, first.images)
    if guessing:
        unlabelled = (f"a top-1 of {second.top1:.1f} % is hardly better than guessing, since {second.guess:.1f} % of "
                      f"the {first.images} images are of one class")  # fmt: skip
        second = replace(second, costs=[])
    costs = dict(zip([*(("sharing", i) for i in shares), *(("pooling", i) for i in pools)], second.costs, strict=False))
    for i, row in enumerate(rows):
        for kind in ("sharing", "pooling"):
            row[kind] = asdict(costs[kind, i]) if (kind, i) in costs else None
        if i and (value := correlation[i - 1][i]) is not None:
            row["before"] = {
                "correlation": value, "cosine": cosine[i - 1][i], "divergence": second.divergence[0][i - 1][i],
                "by_construction": source_of(layers, i) != i,
            }  # fmt: skip
    return Findings(rows, heads, cosine, correlation, first, second, unlabelled, guessing)


def _row(i: int, layers: Sequence[Layer], first: First, img_size: tuple[int, int]) -> dict[str, Any]:
    """The results of the first pass for layer i, as plain data."""
    layer, distances = layers[i], first.distances[i]
    distance = None
    if distances is not None and layer.positions is not None:
        mean = sum(distances) / len(distances)
        uniform = float(layer.within(torch.cdist(layer.positions, layer.positions)).mean())
        distance = {"heads": distances, "mean": mean, "of_side": mean / max(img_size), "uniform": uniform}
    return {
        "layer": i + 1, "name": layer.name, "kind": layer.kind, "stage": layer.stage + 1, "tokens": layer.tokens,
        "prefix": layer.prefix, "grid": layer.grid, "one_row": layer.one_row, "width": layer.width,
        "heads": layer.heads, "window": layer.window_size, "before": None,
        "other_image": {"correlation": first.other[1][i], "cosine": first.other[0][i]},
        "map_entropy": first.entropies[i], "tokens_are": first.tokens[i], "distance": distance,
        "cka_before": float(first.cka[i - 1, i]) if i else None,
    }  # fmt: skip


def _windows(layer: Layer, poolings: int) -> torch.Tensor:
    windows = layer.windows(poolings)
    assert windows is not None, "cannot pool a layer without a grid"
    return windows


def together(
    analyzed: AnalyzedModel,
    layers: Sequence[Layer],
    heads: Heads,
    advice: Advice,
    batches: Batches,
    device: torch.device,
) -> dict[str, float]:
    """The cost of the whole suggestion at once; a second pooling in a stage pools the windows of the first.

    Args:
        analyzed: the model, layers: its layers.
        heads: matched heads.
        advice: the suggestion.
        batches: another pass over the images.
        device: of the model.
    """
    poolings = advice.poolings
    times = {i: sum(layers[j].stage == layers[i].stage for j in poolings if j <= i) for i in poolings}
    change = Change(
        maps=sharing(layers, heads, advice.sources).maps,
        windows={i: _windows(layers[i], count) for i, count in times.items()},
    )
    return asdict(second_pass(analyzed.model, layers, {}, [change], batches, device, True).costs[0])
