"""The results of a study -> tables and figures, for its page and the docs. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psvit.report.figures import curves, intervals, scatter
from psvit.report.tables import Table, to_markdown
from psvit.studies.known import precision_of
from psvit.studies.results import ONE_SEED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = Mapping[str, Any]


def group_table(group: Data, reads: str) -> Table:
    """Cost and accuracy of the networks of a group.

    Args:
        group: one of the results' ``groups``.
        reads: the split whose metrics are shown.
    """
    timed, rates = is_timed(group["rows"]), len(learning_rates(group)) > 1
    rows = []
    for row in group["rows"]:
        if row["mean"] is None:
            rows.append((row["label"], failure(row), *[""] * (5 + rates + timed)))
            continue
        milliseconds = "–" if row.get("latency_ms") is None else f"{row['latency_ms']:.2f}"
        cost = f"{row['macs'] / 1e6:.2f}", f"{row['params'] / 1e6:.3f}", *[milliseconds] * timed
        rate = [f"{row['lr']:g}"] if rates else []
        values = " ".join(f"{value:.2f}" for value in row["top1"])
        over = "–" if row["error_ratio"] is None else f"{row['error_ratio']:.2f}"
        name = f"{row['label']}{' (' + failure(row) + ')' if row['failed'] else ''}"
        rows.append((name, f"`{row['network']}`", *cost, *rate, values, mean(row), over))
    heading = f"{'test' if reads == 'test' else 'validation split'} % by seed"
    costs = "M MACs", "M params", *["ms"] * timed, *["lr"] * rates
    return Table(("", "network", *costs, heading, "mean, 95 %", "error / first"), rows, 2)


def learning_rates(group: Data) -> list[float]:
    """The learning rates of a group's networks, each once; empty for results of an older psvit."""
    return sorted({row["lr"] for row in group["rows"] if row.get("lr") is not None})


def is_timed(rows: Sequence[Data]) -> bool:
    """Whether the latency of one of these networks was measured."""
    return any(row.get("latency_ms") is not None for row in rows)


def mean(row: Data) -> str:
    """The mean over seeds, ± half of its 95 % interval if there are several."""
    if row["interval"] is None:
        return f"{row['mean']:.2f}"
    return f"{row['mean']:.2f} ± {(row['interval'][1] - row['interval'][0]) / 2:.2f}"


def failure(row: Data) -> str:
    """The failed seeds and their errors."""
    return "; ".join(f"seed {seed} failed: {reason}" for seed, reason in row["failed"].items())


def claims_table(data: Data) -> Table:
    """The claims of a study and their verdicts."""
    rows = []
    for claim in data["claims"]:
        if claim["verdict"] == "not measured":
            rows.append((claim["claim"], "not measured", "", "", "", ""))
            continue
        apart = {True: "yes", False: "no", None: ""}[claim["apart"]]
        points, over = _span(claim["difference"], "+.2f"), _span(claim["ratio"], ".2f")
        rows.append((claim["claim"], f"**{claim['verdict']}**", points, over, f"{claim['at_most']:g}", apart))
    headings = ("claim", "verdict", "points [95 %]", "ratio of errors [95 %]", "at most", "intervals apart")
    return Table(headings, rows, 2)


def _span(values: Sequence[float | None], form: str) -> str:
    point, low, high = values
    if low is None or high is None:
        return f"{point:{form}}"
    return f"{point:{form}} [{low:{form}}, {high:{form}}]"


def group_note(group: Data, data: Data) -> str:
    """The training of a group's networks, and the number of images of the evaluation."""
    images = next((row["images"] for row in group["rows"] if row["mean"] is not None), 0)
    limited = group["limit"] is not None and group["limit"] <= group["train_images"]
    trained = f"{group['train_images']:,} training images" if limited else "all training images"
    split = "test images, read once for each training" if data["reads"] == "test" else "validation images"
    timed = f" ms: a batch of {data['latency']['latency_batch']}." if is_timed(group["rows"]) else ""
    rates = ", ".join(f"{rate:g}" for rate in learning_rates(group))
    how = f"{group['epochs']} epochs, batch {group['batch']}{', learning rate ' * bool(rates)}{rates}"
    return f"{group['data']}: {trained}, {how}; {images:,} {split}.{timed}"


def notes(data: Data) -> list[str]:
    """How to read the tables of a study."""
    found = [
        "± and intervals are 95 % confidence intervals of the mean over seeds, by Student's t. They allow for "
        "other seeds, not for another test split."
    ]
    if data["claims"]:
        found.append(
            "A claim holds if the whole interval of the ratio of errors is at most its bound, does not hold if the "
            "whole is above, and is open otherwise. Ratios are compared by Welch's test. Intervals apart: of the two "
            "means themselves."
        )
        if one := [claim for claim in data["claims"] if claim["verdict"].endswith(ONE_SEED)]:
            unknown = all(claim["ratio"][2] is None for claim in one)
            found.append(
                "One seed: one of the two networks, or both, were trained once, so their own scatter is not known. "
                + ("No network of the study was trained several times, so there are no intervals."
                   if unknown else
                   "The interval then assumes the scatter of that network of the study whose seeds differ most.")
            )  # fmt: skip
    if any(is_timed(group["rows"]) for group in data["groups"]):
        how = data["latency"]
        found.append(
            f"ms: of a batch of {how['latency_batch']} in {how['latency_dtype']}, {how['latency_mode']}, on the "
            "machine that wrote this."
        )
    if len(data["claims"]) > 1:
        found.append("Each claim is judged by itself: of twenty verdicts at 95 %, one may be wrong by chance.")
    if data["quick"]:
        found.insert(0, "**This is the quick version of the study: its figures mean little.**")
    found.append(made_on(data))
    return found


def made_on(data: Data) -> str:
    """The number of trainings and their machines; some may be taken from an earlier study."""
    where: dict[str, str] = {}  # by folder: rows of equal settings share a training
    for row in (row for group in data["groups"] for row in group["rows"] if "taken_from" in row):
        source = row["taken_from"]
        where |= dict.fromkeys(row["folders"], f"{source['file']}, made on {_device(source['machine'])}")
    taken = Counter(where.values())
    own, machine = data["trainings"] - sum(taken.values()), data["machine"]
    total = f"{data['trainings']} trainings, {data['training_seconds'] / 3600:.1f} hours of training in all"
    here = f"{machine['jobs']} at a time on {_device(machine)}"
    if not taken:
        clock = f"; {data['wall_seconds'] / 3600:.1f} hours by the clock, all told" if data.get("wall_seconds") else ""
        return f"{total}, {here}{clock}."
    parts = [f"{count} taken from an earlier {source}" for source, count in taken.items()]
    return f"{total}: {', '.join([f'{own} of them {here}', *parts])}."


def _device(machine: Data) -> str:
    precision = precision_of(machine)
    told = f"in {precision}" if precision else "in a precision that was not recorded"
    return f"{machine['device_name'] or machine['cpu']} {told}"


def is_measured(entry: Data, data: Data) -> bool:
    """Whether a figure's groups have a finished training."""
    return any(row["mean"] is not None for g in data["groups"] if g["name"] in entry["groups"] for row in g["rows"])


def figure(entry: Data, data: Data) -> Figure:
    """A figure of a study.

    Args:
        entry: one of the settings' ``figures``.
        data: the results.
    """
    groups = {group["name"]: group for group in data["groups"]}
    chosen = [groups[name] for name in entry["groups"]]
    top1 = f"{'test' if data['reads'] == 'test' else 'validation split'} top-1, %"
    if entry["x"] is None:
        rows = [row for group in chosen for row in group["rows"] if row["mean"] is not None]
        return intervals([(row["label"], row["mean"], *(row["interval"] or [row["mean"]] * 2)) for row in rows], top1)
    labels = list(dict.fromkeys(row["label"] for group in chosen for row in group["rows"]))
    points = {label: [point for group in chosen for point in _point(group, label, entry["x"])] for label in labels}
    if entry["x"] == "macs":
        return scatter(points, "M MACs for one image", top1, log_x=True)
    across = {"images": "training images", "epochs": "epochs", "lr": "learning rate"}[entry["x"]]
    lines = {label: ([p[0] for p in found], [p[1] for p in found]) for label, found in points.items()}
    return curves(lines, across, top1, log_x=True)


def _point(group: Data, label: str, x: str) -> list[tuple[float, float, float, float]]:
    row = next((row for row in group["rows"] if row["label"] == label and row["mean"] is not None), None)
    if row is None:
        return []
    known = {"macs": row["macs"] / 1e6, "images": group["train_images"], "epochs": group["epochs"], "lr": row.get("lr")}
    across = known[x]
    low, high = row["interval"] or (row["mean"], row["mean"])
    return [(across, row["mean"], low, high)]


def caption(entry: Data) -> str:
    """The caption of a figure."""
    if entry["x"] is None:
        return f"{', '.join(entry['groups'])}: means and their 95 % intervals."
    over = {"macs": "MACs", "images": "training images", "epochs": "epochs", "lr": "learning rates"}[entry["x"]]
    return f"Accuracy over {over}."


def study_markdown(data: Data) -> str:
    """All tables of a study in Markdown."""
    parts = [to_markdown(claims_table(data))] if data["claims"] else []
    for group in data["groups"]:
        table = group_table(group, data["reads"])
        parts.append(f"**{group['name']}**\n\n{to_markdown(table)}\n\n{group_note(group, data)}")
    return "\n\n".join([*parts, *notes(data)])
