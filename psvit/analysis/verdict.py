"""Advice -> words, and the commands that would try it. No torch here."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from psvit.analysis.advice import Advice, AnalyzeConfig, Row, may_pool, may_share
from psvit.arch.arch import SHARE, Arch
from psvit.arch.quantities import format_count
from psvit.errors import flag

UNIFORM = 0.95
"""A map's entropy, as a part of the greatest, from which it is called nearly uniform."""

FEW_IMAGES = 64
"""Of so many images, one that is told otherwise moves top-1 by more than a point."""

FEW = 3
"""Layers with one finding that are told one by one; more are told at once."""

RANDOM = (
    "The weights are random: no one has trained them. The figures describe how this network begins and say nothing of "
    "what it could save once it is trained, so nothing is suggested."
)
GUESSING = (
    "The network is hardly better than guessing, so what sharing and pooling would cost it says little, and nothing is "
    "suggested: train it longer."
)
NO_PLACE = (
    "No place is left to change: the first layer of a stage needs a map of its own, the others share one, and tokens "
    "can be pooled only where the next layer computes its map."
)
CAVEAT = (
    "Only a training tells what the suggested network reaches: one that is trained with shared maps and pooled tokens "
    "adapts to them, and the MACs saved can buy width."
)


def words(report: Mapping[str, Any], advice: Advice | None, config: AnalyzeConfig) -> list[str]:
    """The verdict, a paragraph each.

    Args:
        report: what was measured, as `psvit.analysis.analyze.analyze` returns it.
        advice: what follows from it; None if the rule was not applied: the network guesses.
        config: the thresholds.
    """
    rows = report["layers"]
    if report["weights"] == "random":
        return [RANDOM]
    if advice is None:
        return [*_on_images(report["data"]["images"], config), GUESSING]
    said = [*_on_images(report["data"]["images"], config), *_on_sharing(rows, advice, config),
            *_on_pooling(rows, advice, config)]  # fmt: skip
    if not any(may_share(rows, i) or may_pool(rows, i) for i in range(len(rows))):
        return [*said, NO_PLACE]
    if advice.genotype is None:
        return [*said, "By the rule nothing is redundant here, and nothing is suggested."]
    price = ", as a pattern: this model is none that psvit builds, so it would be another network's"
    if report["suggestion"]["macs"] is not None:
        now, then = report["macs"] / 1e6, report["suggestion"]["macs"] / 1e6
        price = f": {then:,.2f} M MACs for one image instead of {now:,.2f} M, or {then / now:.2f} of them"
    said.append(f"Together this suggests `{advice.genotype}`{price}.")
    if report["suggestion"]["cost"] is not None:
        cost = report["suggestion"]["cost"]
        dear = "" if config.bears(cost) else ": more together than the rule lets a single change cost"
        said.append(f"With all of it at once, and nothing trained, {_change(cost)}{dear}.")
    return [*said, CAVEAT]


def _on_images(images: int, config: AnalyzeConfig) -> Iterator[str]:
    if images < FEW_IMAGES:
        more = "--images" if images >= config.images else "--validation"
        yield (
            f"Only {images} images were measured, and one of them is {100 / images:.1f} points of top-1: take what "
            f"follows for a first look, and raise {more}."
        )


def _on_sharing(rows: Sequence[Row], advice: Advice, config: AnalyzeConfig) -> Iterator[str]:
    if sharing := [i for i, row in enumerate(rows) if row["kind"] == SHARE]:
        yield (
            f"{_layers(sharing, 'shares', 'share')} a map already: the correlation of 1 with the map before is by "
            "construction, and no finding."
        )
    candidates = [i for i in range(len(rows)) if may_share(rows, i)]
    near = [i for i in candidates if rows[i]["before"]["correlation"] >= config.share_above]
    for layers in _told([i for i in near if i in advice.share]):
        here = [rows[i] for i in layers]
        own, its, before = ("its own map", "its map", f"layer {layers[0]}")
        if len(layers) > 1:
            own, its, before = ("their own maps", "their maps", "the layers before them")
        yield (
            f"{_layers(layers, 'could', 'could')} share: {its} correlate{'s' * (len(layers) == 1)} "
            f"{_range(row['before']['correlation'] for row in here)} with that of {before}, and "
            f"{_range(row['other_image']['correlation'] for row in here)} with {own} for another image."
            + _costs(" With the map before in its place ", [row["sharing"] for row in here])
        )
    for layers in _told([i for i in near if i not in advice.share]):
        here = [rows[i] for i in layers]
        yield (
            f"{_layers(layers, 'has', 'have')} a map near the one before "
            f"({_range(row['before']['correlation'] for row in here)}), but cannot do without one of its own."
            + _costs(" With the map before in its place ", [row["sharing"] for row in here])
        )
    if candidates and not near:
        best = max(candidates, key=lambda i: rows[i]["before"]["correlation"])
        yield (
            "No layer's map is near that of the layer before it: the highest correlation is "
            f"{_written(rows[best]['before']['correlation'], 3)}, of layer {best + 1}."
        )
    if advice.free:
        yield _on_free(rows, advice.free)


def _on_free(rows: Sequence[Row], free: Sequence[int]) -> str:
    losses = [rows[i]["sharing"]["loss"] for i in free]
    uniform = min(rows[i]["map_entropy"] for i in free) > UNIFORM
    why = " It is nearly uniform there, so that its shape matters little." if uniform else ""
    rise = _range(losses, _signed)
    points = _range((rows[i]["sharing"]["top1"] for i in free), _points)
    return (
        f"{_layers(free, 'depends', 'depend')} little on the map: it is not like the map before, but taking that one "
        f"changes the loss by {rise} nats and top-1 by {points} points only.{why} To share there may cost little, but "
        "not because maps are alike; the suggestion leaves it out."
    )


def _on_pooling(rows: Sequence[Row], advice: Advice, config: AnalyzeConfig) -> Iterator[str]:
    candidates = [i for i in range(len(rows)) if may_pool(rows, i)]
    cosines = {i: rows[i]["tokens_are"]["neighbour_cosine"] for i in candidates}
    alike = [i for i in candidates if cosines[i] >= config.pool_above]
    for layers in _told([i for i in alike if i in advice.pool]):
        tokens = [rows[i]["tokens_are"] for i in layers]
        yield (
            f"Behind {_layers(layers, 'tokens', 'tokens').lower()} could be pooled: neighbours have a mean cosine of "
            f"{_range(cosines[i] for i in layers)} (all pairs {_range(one['pair_cosine'] for one in tokens)}), and "
            f"averaging keeps {_range((one['kept_by_pooling'] for one in tokens), '{:.0%}'.format)} of the variance."
            + _costs(" With them averaged ", [rows[i]["pooling"] for i in layers])
        )
    for layers in _told([i for i in alike if i not in advice.pool]):
        yield (
            f"Behind {_layers(layers, 'neighbours', 'neighbours').lower()} are alike "
            f"({_range(cosines[i] for i in layers)}), but what tells them apart is needed."
            + _costs(" With them averaged ", [rows[i]["pooling"] for i in layers])
        )
    if candidates and not alike:
        best = max(candidates, key=lambda i: cosines[i])
        yield (
            "Nowhere are neighbouring tokens alike enough to pool: their highest mean cosine is "
            f"{_written(cosines[best], 3)}, behind layer {best + 1}."
            + _costs(" With those averaged ", [rows[best]["pooling"]])
        )


def _told(numbers: Sequence[int]) -> list[list[int]]:
    """A few layers one by one, many at once."""
    return [list(numbers)] if len(numbers) > FEW else [[i] for i in numbers]


def _written(value: float, places: int = 2) -> str:
    """A number with a minus sign, not a hyphen, where it is negative."""
    text = f"{value:.{places}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text.lstrip("−")


def _range(values: Iterable[float], write: Callable[[float], str] = _written) -> str:
    """The least and the greatest value, or one if they read the same."""
    ends = sorted(values)
    low, high = write(ends[0]), write(ends[-1])
    return low if low == high else f"{low} to {high}"


def _costs(beginning: str, costs: Sequence[Mapping[str, float] | None]) -> str:
    """What a change costs, or what many do one at a time; nothing if that was not measured."""
    known = [cost for cost in costs if cost is not None]
    if not known:
        return ""
    if len(known) == 1:
        return f"{beginning}{_change(known[0])}."
    return (
        f"{beginning}the loss changes by {_range((cost['loss'] for cost in known), _signed)} nats and top-1 by "
        f"{_range((cost['top1'] for cost in known), _points)} points, one layer at a time."
    )


def _layers(numbers: Sequence[int], one: str, many: str) -> str:
    """Layers by name, counted from 1, with their verb."""
    names = [str(i + 1) for i in numbers]
    return f"Layer {names[0]} {one}" if len(names) == 1 else f"Layers {', '.join(names[:-1])} and {names[-1]} {many}"


def _change(cost: Mapping[str, float]) -> str:
    return (
        f"the loss changes by {_signed(cost['loss'])} ± {cost['error']:.3f} nats and top-1 by "
        f"{_points(cost['top1'])} points"
    )


def _points(value: float) -> str:
    return _signed(value, 1)


def _signed(value: float, places: int = 3) -> str:
    text = f"{value:+.{places}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text[1:]


# Commands ------------------------------------------------------------------------------------------------------------


def train_command(arch: Arch, data: Mapping[str, Any]) -> str:
    """The command that trains a network; `data` has the flags of its images, None where they are the defaults."""
    usual = {field.name: field.default for field in fields(Arch)}
    usual |= {"stride": arch.patch_size, "class_token": arch.pooling == "1d", "qkv_bias": arch.qkv_bias}
    words = ["psvit", "train", "--model", arch.genotype]
    for name, default in usual.items():
        value = getattr(arch, name)
        if name != "genotype" and (name in ("widths", "pooling") or value != default):
            words += _flag(name, str(value).lower() if isinstance(value, bool) else value)
    return shlex.join([*words, *_flags(data)])


def search_command(data: Mapping[str, Any], macs: float | None) -> str:
    """The command that searches, for the MACs of the suggestion if they are known."""
    budget = ["--budget", format_count(macs, digits=3).replace(" ", "")] if macs else []
    return shlex.join(["psvit", "search", *_flags(data), *budget])


def _flags(data: Mapping[str, Any]) -> list[str]:
    return [word for name, value in data.items() if value is not None for word in _flag(name, value)]


def _flag(name: str, value: Any) -> list[str]:
    return [flag(name), *map(str, value if isinstance(value, (tuple, list)) else [value])]
