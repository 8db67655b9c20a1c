"""Measurements and advice -> a verdict in words. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from psvit.analysis.advice import Advice, AnalyzeConfig, Row, may_pool, may_share
from psvit.arch.arch import SHARE

UNIFORM = 0.95
"""Relative entropy from which a map is called nearly uniform."""

FEW_IMAGES = 64
"""Below this many images the verdict warns that top-1 is coarse."""

RANDOM = (
    "The weights are random: the network is not trained. The numbers describe how it begins and say nothing of what it "
    "could save once it is trained, so nothing is suggested."
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
    """The verdict, as a list of paragraphs.

    Args:
        report: the measurements; see `psvit.analysis.analyze.analyze`.
        advice: None if the network is not better than guessing.
        config: the thresholds.
    """
    rows, suggestion = report["layers"], report.get("suggestion")
    if report["weights"] == "random":
        return [RANDOM]
    said = list(_on_images(report["data"]["images"], config))
    if advice is None:
        return [*said, GUESSING]
    said += [*_on_sharing(rows, advice, config), *_on_pooling(rows, advice, config)]
    if not any(may_share(rows, i) or may_pool(rows, i) for i in range(len(rows))):
        return [*said, NO_PLACE]
    if advice.genotype is None or suggestion is None:
        return [*said, "By the rule nothing is redundant here, and nothing is suggested."]
    price = ", as a pattern: psvit does not build this model, so it would be another network's"
    if suggestion["macs"] is not None:
        now, then = report["macs"] / 1e6, suggestion["macs"] / 1e6
        price = f": {then:,.2f} M MACs for one image instead of {now:,.2f} M, or {then / now:.2f} of them"
    said.append(f"Together this suggests `{advice.genotype}`{price}.")
    if (cost := suggestion["cost"]) is not None:
        dear = "" if config.bears(cost) else ": more together than the rule lets a single change cost"
        error = f" ± {cost['error']:.3f}"
        said.append(f"With all of it at once, without training, {_change([cost], error)}{dear}.")
    return [*said, CAVEAT]


def _on_images(images: int, config: AnalyzeConfig) -> Iterator[str]:
    if images < FEW_IMAGES:
        more = "--images" if images >= config.images else "--validation"
        yield (
            f"Only {images} images were measured, and one of them is {100 / images:.1f} points of top-1: take what "
            f"follows for a first look, and raise {more}."
        )


def _on_sharing(rows: Sequence[Row], advice: Advice, config: AnalyzeConfig) -> Iterator[str]:
    if shared := [i for i, row in enumerate(rows) if row["kind"] == SHARE]:
        yield f"{_layers(shared)} shares a map already: its correlation of 1 with the map before is by construction."
    candidates = [i for i in range(len(rows)) if may_share(rows, i)]
    correlation = {i: rows[i]["before"]["correlation"] for i in candidates}
    near = [i for i in candidates if correlation[i] >= config.share_above]
    if share := [i for i in near if i in advice.share]:
        other = _range(rows[i]["other_image"]["correlation"] for i in share)
        yield (
            f"{_layers(share)} could share: its map correlates {_range(correlation[i] for i in share)} with that of "
            f"the layer before, and {other} with its own map for another image.{_costs(rows, 'sharing', share)}"
        )
    if needed := [i for i in near if i not in advice.share]:
        yield (
            f"{_layers(needed)} has a map near the one before ({_range(correlation[i] for i in needed)}), but needs "
            f"its own.{_costs(rows, 'sharing', needed)}"
        )
    if candidates and not near:
        best = max(candidates, key=correlation.__getitem__)
        yield (
            "No layer's map is near that of the layer before it: the highest correlation is "
            f"{_number(correlation[best], 3)}, of layer {best + 1}."
        )
    if free := advice.free:
        uniform = min(rows[i]["map_entropy"] for i in free) > UNIFORM
        why = " It is nearly uniform there, so that its shape matters little." if uniform else ""
        yield (
            f"{_layers(free)} depends little on the map, which is unlike the map before.{_costs(rows, 'sharing', free)}"
            f"{why} To share there may cost little, but not because maps are alike; the suggestion leaves it out."
        )


def _on_pooling(rows: Sequence[Row], advice: Advice, config: AnalyzeConfig) -> Iterator[str]:
    candidates = [i for i in range(len(rows)) if may_pool(rows, i)]
    cosine = {i: rows[i]["tokens_are"]["neighbour_cosine"] for i in candidates}
    alike = [i for i in candidates if cosine[i] >= config.pool_above]
    if pool := [i for i in alike if i in advice.pool]:
        tokens = [rows[i]["tokens_are"] for i in pool]
        yield (
            f"Behind {_layers(pool).lower()} tokens could be pooled: neighbours have a mean cosine of "
            f"{_range(cosine[i] for i in pool)} (all pairs {_range(one['pair_cosine'] for one in tokens)}), and "
            f"averaging keeps {_range((one['kept_by_pooling'] for one in tokens), '{:.0%}'.format)} of the variance."
            + _costs(rows, "pooling", pool)
        )
    if needed := [i for i in alike if i not in advice.pool]:
        yield (
            f"Behind {_layers(needed).lower()} neighbours are alike ({_range(cosine[i] for i in needed)}), but their "
            f"differences are needed.{_costs(rows, 'pooling', needed)}"
        )
    if candidates and not alike:
        best = max(candidates, key=cosine.__getitem__)
        yield (
            "Nowhere are neighbouring tokens alike enough to pool: their highest mean cosine is "
            f"{_number(cosine[best], 3)}, behind layer {best + 1}.{_costs(rows, 'pooling', [best])}"
        )


def _layers(numbers: Sequence[int]) -> str:
    """Layers in words, counted from 1, as the subject of a verb in the singular."""
    names = [str(i + 1) for i in numbers]
    return f"Layer {names[0]}" if len(names) == 1 else f"Each of layers {', '.join(names[:-1])} and {names[-1]}"


def _costs(rows: Sequence[Row], kind: str, layers: Sequence[int]) -> str:
    """The cost of changing these layers one at a time, in words; empty if not measured."""
    known = [rows[i][kind] for i in layers if rows[i][kind] is not None]
    how = {"sharing": "With the map before in its place", "pooling": "With them averaged"}[kind]
    if not known:
        return ""
    error = f" ± {known[0]['error']:.3f}" if len(known) == 1 else ""
    return f" {how} {_change(known, error)}{', one layer at a time' if len(known) > 1 else ''}."


def _change(costs: Sequence[Mapping[str, float]], error: str) -> str:
    loss = _range((cost["loss"] for cost in costs), "{:+.3f}".format)
    top1 = _range((cost["top1"] for cost in costs), "{:+.1f}".format)
    return f"the loss changes by {loss}{error} nats and top-1 by {top1} points"


def _range(values: Iterable[float], write: Callable[[float], str] = "{:.2f}".format) -> str:
    """The smallest and the largest value as text, or one if they are equal."""
    ends = sorted(values)
    low, high = (_minus(write(end)) for end in (ends[0], ends[-1]))
    return low if low == high else f"{low} to {high}"


def _number(value: float, places: int) -> str:
    return _minus(f"{value:.{places}f}")


def _minus(text: str) -> str:
    """A number with a minus sign instead of a hyphen; 0 has no sign."""
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else text.lstrip("+-")
