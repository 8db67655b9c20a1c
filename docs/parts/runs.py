"""What ``psvit run``, ``psvit benchmark`` and benchmarks/speedup.py wrote -> tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psvit.pipeline.compare import standard_error
from psvit.report.tables import Table, to_markdown


def comparison_table(data: Mapping[str, Any]) -> str:
    """Results of ``psvit run``: accuracy and cost of each network, and how they were trained."""
    rows, config = data["rows"], data["config"]
    lines = []
    for row in rows:
        validation = "" if row["validation_top1"] is None else f"{row['validation_top1']:.2f}"
        macs, params = f"{row['macs'] / 1e6:.2f}", f"{row['params'] / 1e6:.3f}"
        test = f"{row['top1']:.2f} ± {standard_error(row['top1'], row['images']):.2f}"
        lines.append((row["name"], f"`{row['network']}`", macs, params, validation, test, f"{row['error_ratio']:.2f}"))
    headings = ("name", "network", "M MACs", "M params", "validation %", "test %", "error / first")
    recipe = config["recipe"]
    # one process, as psvit run is made for
    batch = recipe["batch_size"] * recipe["accumulate"]
    note = (
        f"{data['data']}, {rows[0]['images']:,} test images; {recipe['epochs']} epochs, batch {batch}, "
        f"seed {config['data']['seed']}, one run each. ± is the standard error by the number of test images; "
        "another seed adds to it."
    )
    return f"{to_markdown(Table(headings, lines, 2))}\n\n{note}"


def benchmark_table(data: Mapping[str, Any]) -> str:
    """A report of ``psvit benchmark``: speed beside cost, and on what it was measured."""
    config, machine = data["config"], data["machine"]
    modes = len({row["mode"] for row in data["rows"]}) > 1
    lines = []
    for row in data["rows"]:
        kind = row["dtype"] + (f", {row['mode']}" if modes else "")
        cells = (row["model"], kind, _scaled(row["parameters"], 1e6, ".2f"), _scaled(row["macs"], 1e9, ".2f"))
        if row["speed"] is None:
            reason = row["error"] or "not run"
            lines.append((*cells, f"could not run: {reason}", "", ""))
            continue
        speed, ratio = row["speed"]["images_per_second"], row["speed"]["ratio"]
        peak = "" if row["peak_fraction"] is None else f"{row['peak_fraction']:.0%}"
        lines.append((*cells, _spread(speed, ".4g"), _spread(ratio, ".2f") if ratio else "", peak))
    headings = ("model", "dtype", "M params", "G MACs", "images/s", "× first", "of peak")
    sizes = {"×".join(map(str, row["input_size"])) for row in data["rows"] if row["input_size"]}
    note = (
        f"{'Forward and backward' if config['train'] else 'Inference'}, batch {config['batch_size']} of "
        f"{' or '.join(sorted(sizes))}; {machine['device_name'] or machine['cpu']}, {machine['threads']} threads, "
        f"torch {machine['torch']}; median [quartiles] of {config['rounds']} interleaved rounds. "
        "× first: images/s over the first model's. Of peak: MACs per second over this machine's fastest matrix product."
    )
    return f"{to_markdown(Table(headings, lines, 2))}\n\n{note}"


def speedup_table(data: Mapping[str, Any]) -> str:
    """What ``benchmarks/speedup.py`` wrote: how much faster genotypes are than their plain twins, beside their MACs."""
    rows, config = data["rows"], data["config"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = found.setdefault(row["genotype"], {"macs": f"{row['macs_ratio']:.2f}"})
        cells[row["dtype"]] = f"{row['speedup']:.2f}"
    lines = [[f"`{genotype}`", *(cells.get(key, "") for key in ("macs", *dtypes))] for genotype, cells in found.items()]
    holds = sum(row["holds"] for row in rows)
    note = (
        f"How many times fewer MACs than the plain twin, and how many times faster in inference; width "
        f"{config['width']}, batch {config['batch_size']}, {config['rounds']} rounds. "
        f"At least as much faster as fewer MACs: {holds} of {len(rows)}."
    )
    return f"{to_markdown(Table(('genotype', 'MACs', *dtypes), lines, 1))}\n\n{note}"


def _scaled(value: float | None, unit: float, form: str) -> str:
    return "" if value is None else f"{value / unit:{form}}"


def _spread(spread: Mapping[str, float], form: str) -> str:
    return f"{spread['median']:{form}} [{spread['low']:{form}}, {spread['high']:{form}}]"
