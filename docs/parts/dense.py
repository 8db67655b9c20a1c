"""What benchmarks/dense.py and memory.py wrote -> tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psvit.report.tables import Table, to_markdown


def dense_table(data: Mapping[str, Any]) -> str:
    """Several backbones under one detector or segmenter: figures over seeds, and what separates them."""
    task, config = data["task"], data["config"]
    figures, (whole, including) = task["figures"], task["whole"]
    lines = []
    for row in data["summary"]:
        cells = [f"{row['macs'] / 1e6:.1f}", f"{row['backbone_params'] / 1e6:.2f}", f"{row[whole] / 1e6:.0f}"]
        for figure in figures:
            cells.append(" ".join(f"{value:.1f}" for value in row[f"{figure}_by_seed"]))
            half = row[f"{figure}_half"]
            cells.append(f"{row[figure]:.2f}" + (f" ± {half:.2f}" if half is not None else ""))
        lines.append((row["title"], *cells))
    by_seed = [heading for title in figures.values() for heading in (f"{title}, by seed", "mean, 95 %")]
    headings = ("backbone", "M MACs", "M params", including, *by_seed)
    alone = bool(data["comparisons"]) and any(len(row["seeds"]) == 1 for row in data["summary"])
    split = {"test": "test", "validation": "validation split"}[config["split"]]
    note = (
        f"{task['title']} on digits-scenes, {config['scenes']:,} scenes, {config['epochs']} epochs from scratch, "
        f"alike for all; {data['rows'][0]['images']} {split} scenes. MACs of one scene; "
        f'"{including}": counted together. ±: 95 % confidence interval of the mean over seeds.'
        + (" Where one side of a comparison was trained once, both take the variance that all backbones share." * alone)
    )
    compared = f"\n\n{comparisons_table(data)}" if data["comparisons"] else ""
    return f"{to_markdown(Table(headings, lines, 1))}\n\n{note}{compared}"


def comparisons_table(data: Mapping[str, Any]) -> str:
    """Which backbone is ahead, with intervals; the verdict is of the last figure."""
    figures = data["task"]["figures"]
    *_, last = figures
    lines = []
    for row in data["comparisons"]:
        spans = [f"{row[k]['delta']:+.2f} [{row[k]['low']:+.2f}, {row[k]['high']:+.2f}]" for k in figures]
        lines.append((row["name"], *spans, f"**{row[last]['verdict']}**"))
    titles = [f"{title.removesuffix(', %')}, points [95 %]" for title in figures.values()]
    return to_markdown(Table(("comparison", *titles, figures[last].removesuffix(", %")), lines, 1))


def memory_table(data: Mapping[str, Any]) -> str:
    """Peak memory of a detector's forward and backward pass over one large image."""
    lines = []
    for case in data["cases"]:
        windows, known = " ".join(map(str, case["windows"])) or "none", case.get("peak_gb") is not None
        peak = f"{case['peak_gb']:.1f}" if known else f"over {case['over_gb']:.0f}"
        fits = "yes" if known and case["peak_gb"] <= data["target_gb"] else "no"
        checkpointing = "yes" if case["checkpointing"] else "no"
        macs = "" if case["backbone_gmacs"] is None else f"{case['backbone_gmacs']:.1f}"
        lines.append((f"`{case['model']}`", case["precision"], windows, checkpointing, macs, peak, fits))
    within = f"within {data['target_gb']} GB"
    headings = ("backbone", "precision", "windows", "checkpointing", "G MACs", "peak GB", within)
    height, width = data["image"]
    note = (
        f"{data['detector']}, forward and backward of one image of {height} x {width} pixels on a processor, each case "
        'in a process of its own; torch and weights are counted too. "over": stopped there, or not begun because an '
        "estimate said so."
    )
    return f"{to_markdown(Table(headings, lines, 4))}\n\n{note}"


FROM_DENSE = {"comparisons": dense_table, "cases": memory_table}
"""A key that tells which script wrote a file, and the table of such a file."""
