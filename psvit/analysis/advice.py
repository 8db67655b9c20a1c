"""Measurements of layers -> where the network could share and pool. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from psvit.arch.arch import ATTEND, POOL, SHARE, Arch
from psvit.config import Config, Count, NotNegative, at_least, between

Row = Mapping[str, Any]
"""The measurements of a layer, as written by `psvit.analysis.analyze`."""

MOST_POOLINGS, LEAST_TOKENS = 2, 4
"""Limits of a suggested network: most poolings (as in the paper), fewest tokens after them."""


@dataclass(frozen=True)
class AnalyzeConfig(Config):
    """The images to measure on, and the thresholds for redundant layers.

    Args:
        images: images of the validation split to measure on, drawn evenly over the classes.
        batch_size: images at a time.
        share_above: least correlation of a layer's map with the map before it for the layer to share.
        pool_above: least mean cosine of neighbouring tokens after a layer for pooling there.
        loss_below: both only if the change, without training, raises the validation loss by at most this, in nats,
        drop_below: and lowers the validation top-1 by at most this, in points.
        output: folder of the figures, the numbers and the page.
        overwrite: replace the analysis in the folder.
    """

    images: Annotated[int, at_least(4)] = 256
    batch_size: Count = 16
    share_above: Annotated[float, between(-1, 1)] = 0.7
    pool_above: Annotated[float, between(-1, 1)] = 0.7
    loss_below: NotNegative = 0.1
    drop_below: Annotated[float, between(0, 100)] = 2.0
    output: str = "runs/analyze"
    overwrite: bool = False

    def bears(self, cost: Mapping[str, float] | None) -> bool:
        """Whether the cost of a change is within the limits, or was not measured."""
        return cost is None or (cost["loss"] <= self.loss_below and -cost["top1"] <= self.drop_below)


@dataclass(frozen=True)
class Advice:
    """Where a network could share and pool. Layers are counted from 0.

    Args:
        share: layers with a map similar to the one before, which can replace it (one layer at a time).
        pool: layers with similar tokens, which can be averaged (one layer at a time).
        free: layers with a map unlike the one before, which can replace it all the same.
        sources: in the suggested network, new sharing layer -> layer whose map it takes.
        poolings: in the suggested network, layers followed by a new pooling.
        genotype: of the suggested network; None for no change.
    """

    share: tuple[int, ...] = ()
    pool: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    sources: Mapping[int, int] = field(default_factory=dict)
    poolings: tuple[int, ...] = ()
    genotype: str | None = None


def rule(config: AnalyzeConfig, changed: bool) -> str:
    """The rule of `advise` in words; `changed`: the cost of changes was measured."""
    most = f"raises the loss by at most {config.loss_below:g} nats and lowers top-1 by at most "
    most += f"{config.drop_below:g} points"
    cheap, mild = (f", and {what} {most}" if changed else "" for what in ("taking it", "averaging them"))
    return (
        f"A layer could share if its map correlates at least {config.share_above:g} with that of the layer before it"
        f"{cheap}. The tokens behind a layer could be pooled if neighbours have a mean cosine of at least "
        f"{config.pool_above:g}{mild}. The suggestion pools behind the first such layer, then again a third of the "
        f"depth or more behind it, {MOST_POOLINGS} times in all at the most and while {LEAST_TOKENS} tokens are left; "
        "a layer shares in it if its map is near the map that it would take."
    )


def advise(rows: Sequence[Row], correlation: Sequence[Sequence[float | None]], config: AnalyzeConfig) -> Advice:
    """Judge each layer, and suggest a network.

    Args:
        rows: measurements of the layers, in order.
        correlation: of the maps of each pair of layers, heads matched.
        config: the thresholds.
    """

    def near(i: int, j: int) -> bool:
        value = correlation[i][j]
        return value is not None and value >= config.share_above

    mayshare = [i for i, row in enumerate(rows) if may_share(rows, i) and config.bears(row["sharing"])]
    share = tuple(i for i in mayshare if near(i - 1, i))
    free = tuple(i for i in mayshare if i not in share and rows[i]["sharing"] is not None)
    pool = tuple(
        i for i, row in enumerate(rows)
        if may_pool(rows, i) and row["tokens_are"]["neighbour_cosine"] >= config.pool_above
        and config.bears(row["pooling"])
    )  # fmt: skip
    poolings = _poolings(rows, pool)
    sources: dict[int, int] = {}
    run = 0  # the layer whose map is shared at present
    for i, row in enumerate(rows):
        starts = i == 0 or row["stage"] != rows[i - 1]["stage"] or i - 1 in poolings
        if not starts and i in share and near(run, i):
            sources[i] = run
        elif row["kind"] == ATTEND or starts:
            run = i
    return Advice(share, pool, free, sources, poolings, _genotype(rows, sources, poolings))


def may_share(rows: Sequence[Row], i: int) -> bool:
    """Whether layer i computes its own map but could share the one before: same stage, as many heads."""
    if i == 0 or rows[i]["kind"] == SHARE:
        return False
    return all(rows[i][name] == rows[i - 1][name] for name in ("stage", "heads"))


def may_pool(rows: Sequence[Row], i: int) -> bool:
    """Whether tokens could be pooled after layer i: it has a grid, and the next layer computes its own map."""
    follows = i + 1 < len(rows) and rows[i + 1]["stage"] == rows[i]["stage"] and rows[i + 1]["kind"] == ATTEND
    return follows and "neighbour_cosine" in rows[i]["tokens_are"]


def _poolings(rows: Sequence[Row], pool: Sequence[int]) -> tuple[int, ...]:
    chosen: list[int] = []
    allowed = MOST_POOLINGS - rows[-1]["stage"] + rows[0]["stage"]
    for i in pool:
        apart = not chosen or i - chosen[-1] >= len(rows) / 3
        before = [j for j in chosen if rows[j]["stage"] == rows[i]["stage"]]
        if len(chosen) < allowed and apart and _left(rows[i], len(before) + 1) >= LEAST_TOKENS:
            chosen.append(i)
    return tuple(chosen)


def _left(row: Row, poolings: int) -> int:
    """Tokens of the grid left after `poolings` poolings."""
    (height, width), halves = row["grid"], 2**poolings
    return -(-height * width // halves) if row["one_row"] else -(-height // halves) * -(-width // halves)


def _genotype(rows: Sequence[Row], sources: Mapping[int, int], poolings: Sequence[int]) -> str | None:
    if not sources and not poolings:
        return None
    letters = ""
    for i, row in enumerate(rows):
        if i and (row["stage"] != rows[i - 1]["stage"] or i - 1 in poolings):
            letters += POOL
        letters += SHARE if i in sources else row["kind"]
    return letters


def suggested(arch: Arch, genotype: str) -> Arch:
    """`arch` with another genotype of the same depth, whose S share maps.

    Parts of a split stage keep its width and the size of its windows in tokens (which then span twice the pixels).
    """
    stage_of = [stage for stage, layers in enumerate(arch.stages) for _ in layers]
    starts = [0]
    for layers in genotype.split(POOL)[:-1]:
        starts.append(starts[-1] + len(layers))
    stages = [stage_of[start] for start in starts]
    windows = tuple(arch.window(stage) for stage in stages)
    widths = tuple(arch.widths[stage] for stage in stages)
    return replace(arch, genotype=genotype, widths=widths, windows=windows, sharing="map")
