"""What the scripts of benchmarks/ found about the search -> tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from psvit.arch.arch import Arch
from psvit.report.tables import Table, to_markdown


def ranking_table(data: Mapping[str, Any]) -> str:
    """What ``benchmarks/ranking.py report`` wrote: how supernets rank members, beside the ceiling of seed noise."""
    lines, groups = [], data["groups"]
    for row in data["supernets"]:
        options = row["options"]
        how = f"{options['entangle']}, {options['sampling']}, {options['draws']} a step"
        how += ", sandwich" * options["sandwich"] + ", distilled" * options["distill"]
        taus = [f"{row[f'tau_loss_{group}']:.2f}" for group in groups]
        lines.append((how, str(row["epochs"]), *taus, f"{row['tau_top1_all']:.2f}"))
    ceiling = [f"{data['ceiling'][group]:.2f}" for group in groups]
    lines.append(("ceiling: one seed alone against the other", "", *ceiling, ceiling[0]))
    headings = ("supernet", "epochs", *(f"{group} ({count})" for group, count in groups.items()), "by top-1: all")
    note = (
        f"Kendall's tau between the supernet's loss and the mean validation top-1 of {len(data['alone'])} trainings "
        f"alone; in brackets how many members. Drawn: evenly from the region's {data['region']:,}; pooled: of two or "
        f"three stages. Standard deviation between seeds: {data['seed_noise']:.2f} points over all, "
        f"{data['seed_noise_pooled']:.2f} over pooled."
    )
    return f"{to_markdown(Table(headings, lines, 1))}\n\n{note}"


def worth_table(data: Mapping[str, Any]) -> str:
    """What ``benchmarks/ranking.py worth`` wrote: the searched network beside drawn members and the default's."""
    lines = []
    for row in data["rows"]:
        figures = " ".join(f"{value:.2f}" for value in row["top1"])
        network = f"`{Arch.from_dict(row['arch'])}`"
        means = f"{row['mean']:.2f}", f"{row['fresh']:.2f}"
        lines.append((row["name"], network, f"{row['macs'] / 1e6:.2f}", figures, *means))
    lines.append(("ten drawn members, mean", "", "", "", f"{data['drawn_mean']:.2f}", ""))
    headings = ("network", "", "M MACs", "top-1 % with seeds 1 to 4", "mean", "seeds 3 and 4")
    seconds = data["train_seconds"] + data["score_seconds"]
    note = (
        "Validation top-1, trained alone. With seeds 1 and 2 the searched one is above the mean of the drawn by "
        f"{data['above_drawn_in_seed_noises']:.1f} standard deviations of the seed noise ({data['seed_noise']:.2f} "
        f"points over all members; {data['seed_noise_of_rows']:.2f} over these three). The best drawn one was chosen "
        f"by seeds 1 and 2; 3 and 4 are fresh for all. The search took {data['train_seconds']:.0f} s for the supernet "
        f"and {data['score_seconds']:.0f} s for scoring all members, a training alone {data['alone_seconds']:.0f} s on "
        f"the same core: {seconds / data['alone_seconds']:.1f} trainings."
    )
    return f"{to_markdown(Table(headings, lines, 2))}\n\n{note}"


def scoring_table(data: Mapping[str, Any]) -> str:
    """What ``benchmarks/scoring.py`` wrote: the prefix tree against members alone."""
    lines = [
        ("on the tree", f"{data['tree_layers']:,}", f"{data['tree_seconds']:.0f}"),
        ("alone", f"{data['alone_layers']:,}", f"{data['alone_seconds']:.0f}"),
        ("ratio", f"{data['alone_layers'] / data['tree_layers']:.2f}", f"{data['times_faster']:.2f}"),
    ]
    note = (
        f"{data['members']:,} members on {data['images']} images, {data['machine']['threads']} threads. Alone: "
        f"{data['sample']} members measured in turns with the tree, scaled up to all; {data['equal']} of "
        f"{data['compared']} had the same score, bitwise. The layers of a path take at most "
        f"{data['memory_bound_mib']:.0f} MiB."
    )
    return f"{to_markdown(Table(('all of the 12-layer set', 'layers', 'seconds'), lines, 1))}\n\n{note}"


def latency_table(data: Mapping[str, Any]) -> str:
    """What ``benchmarks/latency.py`` wrote: searches within budgets of latency, and what their networks took."""
    lines = []
    for row in data["searches"]:
        own, widths = row["table"], "-".join(map(str, row["widths"]))
        times = (f"{row[f'{what}_ms']:.2f}" for what in ("predicted", "measured", "again"))
        good = f"{own['kendall']:.2f}", f"{own['r2']:.3f}", f"{own['median_error']:.1%}"
        lines.append((f"{row['budget_ms']:g}", f"`{row['genotype']} {widths}`", *times, f"{row['over']:+.1%}", *good))
    headings = (
        "budget ms", "network found", "predicted ms", "measured ms", "once more", "over", "tau", "R²", "median error",
    )  # fmt: skip
    note = (
        f"Batch {data['config']['latency_batch']}, {data['config']['latency_dtype']}, "
        f"{data['machine']['threads']} threads, digits. Measured: when it was chosen; once more: after all searches. "
        "Tau, R² and median error: of the table of parts, on networks that it was not fitted to."
    )
    return f"{to_markdown(Table(headings, lines, 2))}\n\n{note}"


def kills_table(data: Mapping[str, Any]) -> str:
    """What ``benchmarks/kills.py`` wrote: a command killed again and again, or its disk filled."""
    kind, rows = ("kills", data["killed"]) if "killed" in data else ("times full", data["full"])
    lines = [
        (f"`{row['command']}`", f"{row['seconds']:.0f}", str(row["kills"]), ", ".join(row["differing"]) or "nothing")
        for row in rows
    ]
    return to_markdown(Table(("command", "s", kind, "differs from the uninterrupted"), lines, 1))


FROM_BENCHMARKS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "supernets": ranking_table,
    "drawn_mean": worth_table,
    "tree_layers": scoring_table,
    "searches": latency_table,
    "killed": kills_table,
    "full": kills_table,
}
"""A key that tells which script under benchmarks/ wrote a file, and the table of such a file."""
