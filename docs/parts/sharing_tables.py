"""Layers that share beside layers that attend (benchmarks/sharing.py) -> tables in Markdown."""

from __future__ import annotations

from parts.noted import Data
from psvit.report.tables import Table, to_markdown

BASE, SHARING, RECOMPUTED = "AA", ("AS", "ASS"), "ASS recomputed"
MODES = {"eager": "eager", "compile": "torch.compile", "onnx": "ONNX Runtime"}
PARTS = {"layer": "whole layers", "attention": "their attention alone"}


def sharing(data: Data, part: str) -> str:
    """The part ``layer`` or ``attention`` (ratios in eager mode) or ``modes`` (milliseconds).

    Raises:
        ValueError: no such part.
    """
    if part not in (*PARTS, "modes"):
        raise ValueError(f"there is no such part: {', '.join([*PARTS, 'modes'])}")
    table, says = _modes(data) if part == "modes" else _ratios(data, part)
    machine, config = data["machine"], data["config"]
    clock = " of CPU time" * config["cpu_time"]
    note = (
        f"{says} {config['dtype']}, {machine['cpu']}, threads: {machine['threads']}, torch "
        f"{machine['torch'].partition('+')[0]}; medians of {config['rounds']} rounds in turns{clock}."
    )
    if machine["load_before"] > 0.5:
        note += (
            f" The machine did other work beside: a load of {machine['load_before']:.0f} on {machine['cpus']} cores."
        )
    return f"{to_markdown(table)}\n\n{note}"


def _ratios(data: Data, part: str) -> tuple[Table, str]:
    """Time a layer over that of AA: a line for each number of tokens, a column for each size and batch."""
    rows = [row for row in data["layers"] if (row["mode"], row["part"]) == ("eager", part)]
    columns = list(dict.fromkeys((row["heads"], row["head_dim"], row["batch"]) for row in rows))
    found = {(row["tokens"], row["heads"], row["head_dim"], row["batch"]): row for row in rows}
    lines = [
        (f"{tokens:,}", *(_ratio(found[tokens, *column]) for column in columns))
        for tokens in dict.fromkeys(row["tokens"] for row in rows)
    ]
    ends = {
        (end["heads"], end["head_dim"], end["batch"], end["run"]): end["slower_from"]
        for end in data["crossings"]
        if (end["mode"], end["part"]) == ("eager", part)
    }
    last = [[ends[*column, run] for run in SHARING] for column in columns]
    lines.append(("slower from", *(" ".join("never" if end is None else f"{end:,}" for end in pair) for pair in last)))
    headings = ("tokens", *(f"{heads} × {size}, batch {batch}" for heads, size, batch in columns))
    says = (
        f"Time a layer of {PARTS[part]}, in AS, ASS and ASS with the map recomputed, over that of AA with the fused "
        "kernel, by heads × their size: below 1 sharing saves time. Empty: the map is too large. Slower from: from so "
        "many tokens on AS and ASS take longer, as far as measured."
    )
    return Table(headings, lines, 1), says


def _modes(data: Data) -> tuple[Table, str]:
    """Milliseconds a layer in every mode, of the size that all modes measured."""
    sizes = {(row["heads"], row["head_dim"]) for row in data["layers"] if row["mode"] == "onnx"}
    rows = [row for row in data["layers"] if row["part"] == "layer" and (row["heads"], row["head_dim"]) in sizes]
    found = {(row["batch"], row["tokens"], row["mode"]): row for row in rows}
    lines = [
        (str(batch), f"{tokens:,}", *(_times(found.get((batch, tokens, mode))) for mode in MODES))
        for batch, tokens in dict.fromkeys((row["batch"], row["tokens"]) for row in rows)
    ]
    ((heads, size),) = sizes
    says = f"Milliseconds a layer in AA, AS and ASS, {heads} heads of {size}. Empty: not measured."
    return Table(("batch", "tokens", *MODES.values()), lines, 0), says


def _times(row: Data | None) -> str:
    return "" if row is None or row["skipped"] else " ".join(f"{row['ms'][run]:.3g}" for run in (BASE, *SHARING))


def _ratio(row: Data) -> str:
    return "" if row["skipped"] else " ".join(f"{row['ratio'][run]:.2f}" for run in (*SHARING, RECOMPUTED))
