"""Files of docs/results -> tables in Markdown, by what wrote them."""

from __future__ import annotations

from collections.abc import Callable

from parts.benchmark_tables import (
    dense,
    drawn,
    equal_accuracy,
    exports,
    interrupted,
    latency,
    memory,
    ranking,
    reading,
    scoring,
    worth,
)
from parts.command_tables import analysis, benchmark, comparison, study
from parts.noted import Data
from parts.sharing_tables import sharing


def table_of(data: Data, part: str = "") -> str:
    """The table of a file, or of a part of it.

    Raises:
        ValueError: a file of an unknown kind, or no such part.
    """
    if "study" in data:
        return study(data, part)
    if "crossings" in data:
        return sharing(data, part)
    if part:
        raise ValueError("only studies and sharing have parts")
    for key, render in KINDS.items():
        if key in data:
            return render(data)
    raise ValueError("the file comes neither from psvit run, benchmark, study or analyze nor from benchmarks/")


KINDS: dict[str, Callable[[Data], str]] = {
    "maps": analysis,
    "peaks": benchmark,
    "supernets": ranking,
    "drawn_mean": drawn,
    "gain_in_seed_noises": worth,
    "tree_layers": scoring,
    "searches": latency,
    "killed": interrupted,
    "full": interrupted,
    "comparisons": dense,
    "cases": memory,
    "exports": exports,
    "sets": reading,
    "runtimes": equal_accuracy,
    "data": comparison,
}
"""A key that tells what wrote a file, the special ones first, and the table of such a file."""
