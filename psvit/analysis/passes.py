"""Passes over the images that measure the redundancy of a network.

Legend: B images of a batch, n all images, L layers, H heads, N tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit.analysis.layers import Layer
from psvit.analysis.maps import Change, Seen, look, run_changed
from psvit.analysis.redundancy import (
    attention_distance,
    centred,
    cka,
    divergence,
    effective_rank,
    kept_by_pooling,
    map_similarity,
    match_heads,
    neighbour_cosine,
    pair_cosine,
    row_entropy,
)
from psvit.arch.arch import SHARE
from psvit.data.samples import Batch

Batches = Callable[[], Iterable[Batch]]
"""Returns a new pass over all images."""

Matrix = list[list["float | None"]]
Heads = dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]]
"""(earlier layer, later layer) -> heads of the first and their matches in the second."""


@dataclass(frozen=True)
class Cost:
    """The cost of a change of the network on the validation split, without training.

    Args:
        loss: increase of the mean cross-entropy in nats; error: its standard error over the images.
        top1: change of the top-1 accuracy in points.
    """

    loss: float
    error: float
    top1: float


def comparable(layers: Sequence[Layer]) -> list[list[int]]:
    """Layers grouped by the size of their maps: number of tokens and windows."""

    def size(i: int) -> tuple[int, int]:
        return layers[i].tokens, layers[i].window

    return [sorted(group) for _, group in groupby(sorted(range(len(layers)), key=size), key=size)]


def source_of(layers: Sequence[Layer], number: int) -> int:
    """The layer that computed the map of layer `number`: itself, or the layer it shares from."""
    while layers[number].kind == SHARE:
        number -= 1
    return number


# The first pass: maps beside maps, tokens ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class First:
    """The results of the first pass, means over the images.

    Args:
        images: n.
        heads: for each pair of layers, cosine and correlation of all pairs of heads' maps, two (H, H').
        averaged: the same for the maps averaged over heads, two (L, L); NaN if the sizes differ.
        other: cosine and correlation of each layer's maps with those of another image, two lists of (L).
        entropies: of the rows of each layer's map over the maximum, log N or log n in windows (L).
        tokens: measures of each layer's tokens, by name.
        distances: mean attention distance of each head of each layer, in pixels; None without a grid.
        cka: of all pairs of layers (L, L).
    """

    images: int
    heads: dict[tuple[int, int], tuple[Tensor, Tensor]]
    averaged: tuple[Tensor, Tensor]
    other: tuple[list[float], list[float]]
    entropies: list[float]
    tokens: list[dict[str, float]]
    distances: list[list[float] | None]
    cka: Tensor


@torch.inference_mode()
def first_pass(model: nn.Module, layers: Sequence[Layer], batches: Batches, device: torch.device) -> First:
    """Compare maps and measure tokens, image by image.

    Maps are compared with maps of the same image, and with those of the previous image, which in the balanced order is
    of another class, so that this similarity does not come from the image. Windowed maps are compared only within
    windows: the common zeros between windows would make any two maps correlate.
    """
    groups = comparable(layers)
    sums = [torch.zeros(2, *[sum(layers[i].heads for i in group)] * 2, dtype=torch.float64) for group in groups]
    averaged = [torch.zeros(2, len(group), len(group), dtype=torch.float64) for group in groups]
    other = torch.zeros(2, len(layers), dtype=torch.float64)
    entropies = [0.0 for _ in layers]
    tokens: list[dict[str, float]] = [{} for _ in layers]
    distances: list[Any] = [0.0 for _ in layers]
    features: list[list[Tensor]] = [[] for _ in layers]
    before: list[Tensor] = []
    count = 0
    for batch in batches():
        seen = look(model, layers, batch.images.to(device))
        for row in range(len(batch.labels)):
            maps = [layer.within(attn[row]) for layer, attn in zip(layers, seen.maps, strict=True)]
            for place, group in enumerate(groups):
                sums[place] += torch.stack(map_similarity(torch.cat([maps[i] for i in group]))).cpu()
                means = torch.stack([maps[i].mean(dim=0) for i in group])
                averaged[place] += torch.stack(map_similarity(means)).cpu()
            for i, (now, then) in enumerate(zip(maps, before, strict=False)):
                both = torch.stack(map_similarity(torch.cat([now, then]))).cpu()
                other[:, i] += both[:, : len(now), len(now) :].diagonal(dim1=1, dim2=2).mean(dim=1)
            before = maps
        for i, (layer, x) in enumerate(zip(layers, seen.tokens, strict=True)):
            for name, values in token_measures(layer, x[:, layer.prefix :]).items():
                tokens[i][name] = tokens[i].get(name, 0.0) + float(values.sum())
            entropies[i] += float(_entropy_of_greatest(layer, seen.maps[i]).sum())
            features[i].append(x[:, layer.prefix :].mean(dim=1).cpu())
            if layer.positions is not None:
                distances[i] += attention_distance(seen.maps[i], layer.positions.to(device)).sum(dim=0).double().cpu()
        count += len(batch.labels)
    nowhere = torch.full((2, len(layers), len(layers)), torch.nan, dtype=torch.float64)
    for group, values in zip(groups, averaged, strict=True):
        nowhere[:, torch.tensor(group)[:, None], torch.tensor(group)] = values / count
    cosine, correlation = (other / max(count - 1, 1)).tolist()
    return First(
        images=count,
        heads=dict(_by_pair(layers, groups, [total / count for total in sums])),
        averaged=(nowhere[0], nowhere[1]),
        other=(cosine, correlation),
        entropies=[total / count for total in entropies],
        tokens=[{name: value / count for name, value in measured.items()} for measured in tokens],
        distances=[
            (total / count).tolist() if layer.positions is not None else None
            for layer, total in zip(layers, distances, strict=True)
        ],
        cka=cka([torch.cat(parts) for parts in features]),
    )


def _entropy_of_greatest(layer: Layer, maps: Tensor) -> Tensor:
    """Mean entropy of the rows of maps (B, H, N, N) over that of a uniform row: (B,)."""
    if layer.seen == 1:  # a token that attends only to itself
        return maps.new_ones(len(maps))
    return row_entropy(maps).mean(dim=(1, 2)) / log(layer.seen)


def token_measures(layer: Layer, x: Tensor) -> dict[str, Tensor]:
    """Measures of each image's tokens (B, h w, C), without the prefix tokens."""
    count, width = x.shape[1:]
    most, most_centred = min(count, width), max(min(count - 1, width), 1)  # a single token is 0 when centred
    rank, rank_centred = effective_rank(x), effective_rank(centred(x))
    found = {"pair_cosine": pair_cosine(x), "rank": rank, "rank_fraction": rank / most,
             "rank_centred": rank_centred, "rank_centred_fraction": rank_centred / most_centred}  # fmt: skip
    windows = layer.windows()
    if layer.grid is not None and windows is not None and x.shape[1] > 1:
        found["neighbour_cosine"] = neighbour_cosine(x, layer.grid)
        found["kept_by_pooling"] = kept_by_pooling(x, windows.to(x.device))
    return found


def _by_pair(
    layers: Sequence[Layer], groups: Sequence[Sequence[int]], means: Sequence[Tensor]
) -> Iterator[tuple[tuple[int, int], tuple[Tensor, Tensor]]]:
    for group, (cosine, correlation) in zip(groups, means, strict=True):
        sizes = [layers[i].heads for i in group]
        cut = [[part.split(sizes, dim=1) for part in whole.split(sizes)] for whole in (cosine, correlation)]
        for a, i in enumerate(group):
            for b, j in enumerate(group):
                if i <= j:
                    yield (i, j), (cut[0][a][b], cut[1][a][b])


def partners(layers: Sequence[Layer], first: First) -> Heads:
    """Match the heads of each pair of layers by the mean correlation of their maps; of a shared map each to itself.

    Not by the cosine, which is near 1 for all pairs of nearly uniform maps.
    """
    found: Heads = {}
    for (i, j), (_, correlation) in first.heads.items():
        same = source_of(layers, i) == source_of(layers, j)
        every = tuple(range(layers[i].heads))
        found[i, j] = (every, every) if same else match_heads(correlation)
    return found


def matched(layers: Sequence[Layer], first: First, heads: Heads) -> tuple[Matrix, Matrix]:
    """Cosine and correlation of all pairs of layers, means over matched heads, two (L, L)."""
    both = []
    for kind in range(2):
        matrix: Matrix = [[None] * len(layers) for _ in layers]
        for (i, j), (rows, columns) in heads.items():
            value = float(first.heads[i, j][kind][list(rows), list(columns)].mean())
            matrix[i][j] = matrix[j][i] = value
        both.append(matrix)
    return both[0], both[1]


# The second pass: divergence of matched heads, and changes -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Second:
    """The results of the second pass.

    Args:
        divergence: Jensen-Shannon divergence of all pairs of layers in bits, means over matched heads (L, L), and for
            the maps averaged over heads.
        loss: mean cross-entropy of the unchanged network in nats, top1: accuracy in percent; None without labels.
        costs: of each change.
        guess: percentage of images in the most frequent class; None without labels.
    """

    divergence: tuple[Matrix, Matrix]
    loss: float | None
    top1: float | None
    costs: list[Cost]
    guess: float | None = None


@torch.inference_mode()
def second_pass(
    model: nn.Module,
    layers: Sequence[Layer],
    heads: Heads,
    changes: Sequence[Change],
    batches: Batches,
    device: torch.device,
    labelled: bool,
) -> Second:
    """Measure divergences, and run the network once more for each change.

    Args:
        model, layers: see `psvit.analysis.find_layers.find_layers`.
        heads: matched heads.
        changes: applied one at a time.
        batches: another pass over the images.
        device: of the model.
        labelled: the model's classes are those of the images; otherwise no change is measured.
    """
    sums: dict[tuple[int, int], list[float]] = {pair: [0.0, 0.0] for pair in heads}
    count = 0
    losses: list[list[Tensor]] = [[] for _ in range(1 + len(changes))]
    hits: list[list[Tensor]] = [[] for _ in range(1 + len(changes))]
    classes: list[Tensor] = []
    for batch in batches():
        images, labels = batch.images.to(device), batch.labels.to(device)
        seen = look(model, layers, images)
        for pair, (apart, averaged) in _divergences(seen, heads).items():
            sums[pair][0] += apart
            sums[pair][1] += averaged
        count += len(labels)
        classes.append(batch.labels)
        for place in range(1 + len(changes)) if labelled else ():
            logits = seen.output if place == 0 else run_changed(model, layers, images, changes[place - 1])
            losses[place].append(F.cross_entropy(logits.float(), labels, reduction="none").double().cpu())
            hits[place].append((logits.argmax(dim=-1) == labels).double().cpu())
    matrices: tuple[Matrix, Matrix] = ([[None] * len(layers) for _ in layers], [[None] * len(layers) for _ in layers])
    for (i, j), totals in sums.items():
        for matrix, total in zip(matrices, totals, strict=True):
            matrix[i][j] = matrix[j][i] = total / count
    if not labelled:
        return Second(matrices, None, None, [])
    loss, right = ([torch.cat(parts) for parts in kind] for kind in (losses, hits))
    return Second(
        divergence=matrices,
        loss=float(loss[0].mean()),
        top1=100 * float(right[0].mean()),
        costs=[_cost(a - loss[0], b - right[0]) for a, b in zip(loss[1:], right[1:], strict=True)],
        guess=100 * float(torch.cat(classes).unique(return_counts=True)[1].max()) / count,
    )


def guesses(top1: float, guess: float, images: int) -> bool:
    """Whether a top-1 is less than two standard errors above that of always predicting the most frequent class.

    Args:
        top1, guess: accuracies of the network and of the most frequent class, in percent.
        images: n.
    """
    share = guess / 100
    return top1 / 100 < share + 2 * (share * (1 - share) / images) ** 0.5


def _divergences(seen: Seen, heads: Heads) -> dict[tuple[int, int], tuple[float, float]]:
    """Divergences of pairs of layers, for matched heads and for averaged maps, summed over the batch."""
    means = [attn.mean(dim=1, keepdim=True) for attn in seen.maps]
    apart, averaged = ([row_entropy(attn) for attn in kind] for kind in (seen.maps, means))
    found = {}
    for (i, j), (rows, columns) in heads.items():
        a, b = list(rows), list(columns)
        entropies = apart[i][:, a], apart[j][:, b]
        one = divergence(seen.maps[i][:, a], seen.maps[j][:, b], entropies).mean(dim=1).sum()
        two = divergence(means[i], means[j], (averaged[i], averaged[j])).sum()
        found[i, j] = float(one), float(two)
    return found


def _cost(loss: Tensor, right: Tensor) -> Cost:
    return Cost(float(loss.mean()), float(loss.std() / len(loss) ** 0.5), 100 * float(right.mean()))


def sharing(layers: Sequence[Layer], heads: Heads, sources: Mapping[int, int]) -> Change:
    """The change in which layers take the map of an earlier layer, with heads matched.

    Args:
        layers: all layers.
        heads: matched heads.
        sources: layer -> earlier layer whose map it takes; layers that share the former's map take it too.
    """
    maps = {}
    for number in range(len(layers)):
        target = number if number in sources else source_of(layers, number)
        if target in sources:
            theirs, own = heads[sources[target], target]
            maps[number] = sources[target], tuple(head for _, head in sorted(zip(own, theirs, strict=True)))
    return Change(maps=maps)
