"""The results of an analysis -> figures, page and tables. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from psvit.arch.arch import Arch
from psvit.report.figures import curves, heatmap, intervals, scatter
from psvit.report.page import Page
from psvit.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, FIGURES = "report.html", "figures"

OF_MAPS = ("layer", "tokens", "windows", "map corr", "JS bits", "other image", "entropy", "distance", "to share")
OF_TOKENS = ("layer", "tokens", "neighbours", "all pairs", "kept", "rank", "to pool")
SHORT = ("layer", "tokens", "windows", "map corr", "to share", "neighbours", "to pool", "rank", "distance")
"""Columns of `layer_table`: for maps, for tokens, for the terminal."""

CAPTIONS = {
    "map_correlation": "Pearson's correlation of the attention maps of every two layers, head by head with the heads "
    "matched, mean over heads and images. 1: the same map. Blank: maps of different sizes, which cannot be shared.",
    "map_cosine": "Cosine similarity of the same maps. 1: the same map. It is near 1 as soon as both are nearly "
    "uniform, so the correlation tells more.",
    "map_divergence": "Jensen-Shannon divergence of the same maps in bits, row by row. 0: the same map; 1: no token is "
    "attended to by both.",
    "map_correlation_averaged": "Correlation of the maps averaged over their heads: layers may attend alike on the "
    "whole although no two heads do.",
    "sharing": "What it costs each layer to take the map of the layer before it, heads matched, nothing being trained: "
    "change of the validation loss, ± its standard error over the images. One layer at a time.",
    "tokens": "How alike the tokens of an image are behind each layer: mean cosine of neighbours and of all pairs, the "
    "part of their variance that averaging over pooling windows keeps, and the effective rank of the centred tokens as "
    "a part of the greatest possible.",
    "pooling": "What it costs to replace the tokens behind a layer by the means of their windows, nothing being "
    "trained: change of the validation loss, ± its standard error over the images. One layer at a time.",
    "attention_distance": "Mean distance from a patch to the patches that it attends to, of every head; and that of a "
    "map that attends alike to all patches that it sees.",
    "cka": "Linear CKA (unbiased) of the tokens of every two layers, averaged over each image: whether layers tell the "
    "same images apart. Near 1 throughout: each layer adds little to what it is given.",
}
"""Name of a figure -> its caption."""

SECTIONS = (
    ("Attention maps", ("map_correlation", "map_cosine", "map_divergence", "map_correlation_averaged"), ("sharing",)),
    ("Tokens", ("tokens", "pooling")),
    ("Distances, and layers beside layers", ("attention_distance", "cka")),
)
"""Headings of the page, each with its rows of figures."""

FILES = tuple(f"{FIGURES}/{name}.{kind}" for name in CAPTIONS for kind in ("svg", "png"))


def drawings(report: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures by name, without those for which nothing was measured."""
    rows = report["layers"]
    labels = [str(row["layer"]) for row in rows]
    borders = [i for i, (a, b) in enumerate(pairwise(rows), start=1) if a["stage"] != b["stage"]]
    maps = report["maps"]
    correlations = (maps["matched"]["correlation"], maps["averaged"]["correlation"])
    apart = [value for row in maps["matched"]["divergence"] for value in row if value is not None]
    low = min([0.0, *(value for matrix in correlations for row in matrix for value in row if value is not None)])
    drawn = {
        "map_correlation": heatmap(correlations[0], labels, "correlation", low, 1, borders),
        "map_cosine": heatmap(maps["matched"]["cosine"], labels, "cosine", 0, 1, borders),  # no map is below 0
        "map_divergence": heatmap(
            maps["matched"]["divergence"], labels, "divergence in bits", 0, max([0.1, *apart]), borders
        ),
        "map_correlation_averaged": heatmap(correlations[1], labels, "correlation", low, 1, borders),
        "tokens": curves(_token_curves(rows), "layer", "cosine, or part of the whole"),
        "cka": heatmap(report["cka"], labels, "CKA", 0, 1, borders),
    }
    for name, label in (("sharing", "layer {} takes the map of {}"), ("pooling", "pooled behind layer {}")):
        costs = [(label.format(row["layer"], row["layer"] - 1), row[name]) for row in rows if row[name] is not None]
        if costs:
            drawn[name] = intervals([_interval(*cost) for cost in costs], "change of the validation loss in nats")
    placed = [row for row in rows if row["distance"] is not None]
    if placed:
        heads = [(row["layer"], pixels) for row in placed for pixels in row["distance"]["heads"]]
        drawn["attention_distance"] = scatter(
            {"heads": [(layer, pixels, pixels, pixels) for layer, pixels in heads],
             "attending alike to all it sees": [(row["layer"], *[row["distance"]["uniform"]] * 3) for row in placed]},
            "layer", "mean distance in pixels",
        )  # fmt: skip
    return {name: drawn[name] for name in CAPTIONS if name in drawn}


def _token_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    names = {"neighbour_cosine": "cosine of neighbours", "pair_cosine": "cosine of all pairs",
             "kept_by_pooling": "variance kept by pooling", "rank_centred_fraction": "effective rank"}  # fmt: skip
    found = {}
    for name, title in names.items():
        known = [(row["layer"], row["tokens_are"][name]) for row in rows if row["tokens_are"].get(name) is not None]
        if known:
            found[title] = ([layer for layer, _ in known], [value for _, value in known])
    return found


def _interval(label: str, cost: Mapping[str, float]) -> tuple[str, float, float, float]:
    return label, cost["loss"], cost["loss"] - cost["error"], cost["loss"] + cost["error"]


def page(report: Mapping[str, Any], pictures: Mapping[str, Figure], arch: Arch | None) -> Page:
    """The page of an analysis.

    Args:
        report: the content of ``redundancy.json``.
        pictures: see `drawings`.
        arch: the suggested network, if there is one.
    """
    data = report["data"]
    size = " × ".join(map(str, data["img_size"]))
    made = Page(
        f"Where {report['model']} could pool and share",
        f"{len(report['layers'])} layers with {report['weights']} weights, on {data['images']} images of the "
        f"validation split of {data['name']} at {size} pixels"
        + (f"; top-1 {report['top1']:.1f} %, loss {report['loss']:.3f}." if report["loss"] is not None else "."),
    )
    made.heading("Verdict")
    made.points(report["verdict"])
    if report["rule"] is not None:
        made.note(report["rule"])
    if report["no_changes_because"]:
        made.note(f"What sharing and pooling would cost was not measured: {report['no_changes_because']}.")
    if report["left_out"]:
        made.note(f"Left out, since their maps are not between all tokens: {', '.join(report['left_out'])}.")
    _network(made, report, arch)
    made.heading("Layer by layer")
    for title, columns in (("Maps", OF_MAPS), ("Tokens", OF_TOKENS)):
        made.text(f"{title}:")
        made.table(layer_table(report, columns))
    for title, *rows in SECTIONS:
        made.heading(title)
        for names in rows:
            made.figures([(pictures[name], CAPTIONS[name], CAPTIONS[name]) for name in names if name in pictures])
    made.note(
        "Averaging tokens is a stand-in for a trained token pooling: the tokens of a window stay equal in all later "
        "layers, and count as many times as there are in attention."
    )
    if any(row.get("window") for row in report["layers"]):
        made.note(
            "Maps of layers that attend within windows are compared within them: between windows all are 0, which "
            "would make any two alike. Their entropy is a part of that of a map uniform within its windows. A layer "
            "with windows and one without, or with others, cannot share a map."
        )
    _use(made, report)
    made.folded("Settings and versions", {**report["config"], "versions": report["versions"]})
    return made


def _network(made: Page, report: Mapping[str, Any], suggested: Arch | None) -> None:
    """The network and the suggested one, with diagrams if they have an Arch, and their cost."""
    data, own, commands = report["data"], report.get("arch"), report["suggestion"]["commands"]
    shape = tuple(data["img_size"]), data["in_chans"], report.get("num_classes", data["classes"])
    made.heading("The network")
    if own is None:  # a timm model, or a file of an earlier version
        params = f" and {report['params'] / 1e6:,.3f} M parameters" if "params" in report else ""
        made.text(f"{report['model']}: {report['macs'] / 1e6:,.2f} M MACs for one image{params}.")
    if own is not None and suggested is not None:
        made.text("As it is, and as suggested:")
    made.networks([*([Arch.from_dict(own)] if own else []), *([suggested] if suggested else [])], *shape)
    if commands:
        made.text("To find out what the suggestion reaches:")
        made.code("\n".join(commands))


def _use(made: Page, report: Mapping[str, Any]) -> None:
    """How to use the analyzed model in Python and on the command line."""
    use = report.get("use")
    if use is None:  # a file of an earlier version
        return
    made.heading("How to use it")
    made.text(f"In Python, with {'new weights' if report['weights'] == 'random' else 'its own preprocessing'}:")
    made.code(use["python"])
    if use["commands"]:
        made.text("On the command line:")
        made.code("\n".join(use["commands"]))
    if report["weights"] == "trained":
        made.note("Paths are as seen from the folder in which the analysis was started.")
    if report["weights"] != "random" and report["config"]["data"]["img_size"] is not None:
        made.note("These lines take images of the model's own size; it was analyzed at that of `--img-size`.")


def layer_table(report: Mapping[str, Any], columns: Sequence[str]) -> Table:
    """The layers; empty columns are left out.

    Args:
        report: the content of ``redundancy.json``.
        columns: headings of the columns, in order.
    """

    def number(value: float | None, places: int = 2) -> str:
        return "" if value is None else f"{value:.{places}f}".replace("-", "−")

    def change(cost: Mapping[str, float] | None) -> str:
        return "" if cost is None else f"{cost['loss']:+.3f}±{cost['error']:.3f}".replace("-", "−")

    found: dict[str, list[str]] = {}
    for row in report["layers"]:
        before, tokens, distance = row["before"] or {}, row["tokens_are"], row["distance"] or {}
        near = number(before.get("correlation")) + (" shared" if before.get("by_construction") else "")
        cells = {
            "layer": f"{row['layer']} {row['kind']}", "tokens": str(row["tokens"]),
            "windows": "×".join(map(str, row.get("window") or ())), "map corr": near,
            "to share": change(row["sharing"]), "neighbours": number(tokens.get("neighbour_cosine")),
            "to pool": change(row["pooling"]), "rank": number(tokens["rank_centred"], 1),
            "distance": number(distance.get("mean"), 1), "JS bits": number(before.get("divergence"), 3),
            "other image": number(row["other_image"]["correlation"]), "entropy": number(row["map_entropy"]),
            "all pairs": number(tokens["pair_cosine"]), "kept": number(tokens.get("kept_by_pooling")),
        }  # fmt: skip
        for name, text in cells.items():
            found.setdefault(name, []).append(text)
    headings = [name for name in columns if any(found[name])]
    return Table(headings, list(zip(*(found[name] for name in headings), strict=True)), caption=_legend(headings))


def _legend(shown: Sequence[str]) -> str:
    """The meaning of the columns of `layer_table`."""
    meanings = {
        "layer": "A attends, S shares",
        "windows": "windows: tokens within which a layer attends, where not to all",
        "map corr": "map corr: correlation of the map with that of the layer before, heads matched",
        "neighbours": "neighbours: mean cosine of tokens side by side",
        "rank": "rank: effective rank of the centred tokens",
        "distance": "distance: mean attention distance in pixels",
    }
    changes = {"to share": "the layer takes the map before", "to pool": "its tokens are averaged"}
    if measured := [name for name in changes if name in shown]:
        told = ", or ".join(changes[name] for name in measured)
        meanings[measured[0]] = (
            f"{', '.join(measured)}: change of the loss in nats ± standard error when {told}, without training"
        )
    meanings |= {
        "JS bits": "JS: divergence from the map before",
        "other image": "other image: correlation of the map with the same layer's for another image",
        "entropy": "entropy: of the map's rows, as a part of a uniform map's",
        "all pairs": "all pairs: mean cosine of all pairs of tokens",
        "kept": "kept: part of the tokens' variance that averaging windows keeps",
    }
    return "; ".join(meaning for name, meaning in meanings.items() if name in shown)
