"""Write the generated parts of README.md and docs/*.md: ``python docs/build.py``, or ``--check`` to compare only.

A generated part stands between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->``. It is the table of
``docs/results/NAME.json``, which ``psvit run --results``, ``psvit benchmark --output`` or a script under benchmarks/
wrote, or one of `FROM_CODE`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from rich.text import Text

from psvit import cost
from psvit.arch import Arch
from psvit.cli.show import diagram
from psvit.variants import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
NOT_MEASURED = "Not measured yet."

BLOCK = re.compile(
    r"(?P<open><!-- results:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(?P<close><!-- /results:(?P=name) -->)", re.S
)
MARKER = re.compile(r"<!-- /?results:[\w-]* ?-->")


def pages(root: Path) -> list[Path]:
    """The pages that may hold generated parts."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def blocks(text: str, where: str) -> list[str]:
    """Names of the generated parts of a page, in order.

    Raises:
        ValueError: an opening or closing marker without its other.
    """
    found = list(BLOCK.finditer(text))
    if 2 * len(found) != len(MARKER.findall(text)):
        raise ValueError(
            f"{where}: a results marker lacks its other; they are <!-- results:NAME --> and <!-- /results:NAME -->"
        )
    return [match["name"] for match in found]


def rebuilt(text: str, results: Path) -> tuple[str, list[str]]:
    """A page with its generated parts written anew, and the names of those that are not measured yet."""
    missing: list[str] = []

    def render(match: re.Match[str]) -> str:
        name = match["name"]
        if name in FROM_CODE:
            body = FROM_CODE[name]()
        elif (results / f"{name}.json").is_file():
            body = render_results(json.loads((results / f"{name}.json").read_text(encoding="utf-8")), name)
        else:
            missing.append(name)
            body = NOT_MEASURED
        return f"{match['open']}{body}\n{match['close']}"

    return BLOCK.sub(render, text), missing


def render_results(data: Mapping[str, Any], name: str) -> str:
    """The table of one JSON file.

    Raises:
        ValueError: written by something else.
    """
    if "peaks" in data and "machine" in data:
        return benchmark_table(data)
    if "data" in data and "rows" in data:
        return comparison_table(data)
    if data.get("rows") and "speedup" in data["rows"][0]:
        return speedup_table(data)
    for key, render in FROM_BENCHMARKS.items():
        if key in data:
            return render(data)
    raise ValueError(
        f"docs/results/{name}.json comes neither from psvit run nor from psvit benchmark nor from benchmarks/"
    )


def comparison_table(data: Mapping[str, Any]) -> str:
    """Results of ``psvit run``: accuracy and cost of each network, and how they were trained."""
    rows, settings = data["rows"], data["settings"]
    lines = []
    for row in rows:
        holdout = "" if row["holdout_top1"] is None else f"{row['holdout_top1']:.2f}"
        macs, params = f"{row['macs'] / 1e6:.2f}", f"{row['params'] / 1e6:.3f}"
        test = f"{row['top1']:.2f} ± {standard_error(row['top1'], row['images']):.2f}"
        lines.append((row["name"], f"`{row['network']}`", macs, params, holdout, test, f"{row['error_ratio']:.2f}"))
    headings = ("name", "network", "M MACs", "M params", "hold-out %", "test %", "error / first")
    recipe = settings["recipe"]
    # one process, as psvit run is made for
    batch = recipe["batch_size"] * recipe["accumulate"]
    note = (
        f"{data['data']}, {rows[0]['images']:,} test images; {recipe['epochs']} epochs, batch {batch}, "
        f"seed {settings['data']['seed']}, one run each. ± is the standard error by the number of test images; "
        "another seed adds to it."
    )
    return f"{markdown_table(headings, lines, left=2)}\n\n{note}"


def standard_error(percent: float, images: int) -> float:
    """Of an accuracy in percent, measured on so many images (binomial)."""
    return sqrt(percent * (100 - percent) / images)


def benchmark_table(data: Mapping[str, Any]) -> str:
    """A report of ``psvit benchmark``: speed beside cost, and on what it was measured."""
    settings, machine = data["settings"], data["machine"]
    modes = len({row["mode"] for row in data["rows"]}) > 1
    lines = []
    for row in data["rows"]:
        kind = row["dtype"] + (f", {row['mode']}" if modes else "")
        cells = (row["model"], kind, _scaled(row["parameters"], 1e6, ".2f"), _scaled(row["macs"], 1e9, ".2f"))
        if row["speed"] is None:
            reason = row["error"].replace("|", "\\|") if row["error"] else "not run"
            lines.append((*cells, f"could not run: {reason}", "", ""))
            continue
        speed, ratio = row["speed"]["images_per_second"], row["speed"]["ratio"]
        peak = "" if row["peak_fraction"] is None else f"{row['peak_fraction']:.0%}"
        lines.append((*cells, _spread(speed, ".4g"), _spread(ratio, ".2f") if ratio else "", peak))
    headings = ("model", "dtype", "M params", "G MACs", "images/s", "× first", "of peak")
    sizes = {"×".join(map(str, row["input_size"])) for row in data["rows"] if row["input_size"]}
    note = (
        f"{'Forward and backward' if settings['train'] else 'Inference'}, batch {settings['batch_size']} of "
        f"{' or '.join(sorted(sizes))}; {machine['device_name'] or machine['cpu']}, {machine['threads']} threads, "
        f"torch {machine['torch']}; median [quartiles] of {settings['rounds']} interleaved rounds. "
        "× first: images/s over the first model's. Of peak: MACs per second over this machine's fastest matrix product."
    )
    return f"{markdown_table(headings, lines, left=2)}\n\n{note}"


def speedup_table(data: Mapping[str, Any]) -> str:
    """What ``benchmarks/speedup.py`` wrote: how much faster genotypes are than their plain twins, beside their MACs."""
    rows, settings = data["rows"], data["settings"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = found.setdefault(row["genotype"], {"macs": f"{row['macs_ratio']:.2f}"})
        cells[row["dtype"]] = f"{row['speedup']:.2f}"
    lines = [[f"`{genotype}`", *(cells.get(key, "") for key in ("macs", *dtypes))] for genotype, cells in found.items()]
    holds = sum(row["holds"] for row in rows)
    note = (
        f"How many times fewer MACs than the plain twin, and how many times faster in inference; width "
        f"{settings['width']}, batch {settings['batch_size']}, {settings['rounds']} rounds. "
        f"At least as much faster as fewer MACs: {holds} of {len(rows)}."
    )
    return f"{markdown_table(('genotype', 'MACs', *dtypes), lines, left=1)}\n\n{note}"


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
        f"Kendall's tau between the supernet's loss and the mean hold-out top-1 of {len(data['alone'])} trainings "
        f"alone; in brackets how many members. Drawn: evenly from the region's {data['region']:,}; pooled: of two or "
        f"three stages. Standard deviation between seeds: {data['seed_noise']:.2f} points over all, "
        f"{data['seed_noise_pooled']:.2f} over pooled."
    )
    return f"{markdown_table(headings, lines, left=1)}\n\n{note}"


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
        "Hold-out top-1, trained alone. With seeds 1 and 2 the searched one is above the mean of the drawn by "
        f"{data['above_drawn_in_seed_noises']:.1f} standard deviations of the seed noise ({data['seed_noise']:.2f} "
        f"points over all members; {data['seed_noise_of_rows']:.2f} over these three). The best drawn one was chosen "
        f"by seeds 1 and 2; 3 and 4 are fresh for all. The search took {data['train_seconds']:.0f} s for the supernet "
        f"and {data['score_seconds']:.0f} s for scoring all members, a training alone {data['alone_seconds']:.0f} s on "
        f"the same core: {seconds / data['alone_seconds']:.1f} trainings."
    )
    return f"{markdown_table(headings, lines, left=2)}\n\n{note}"


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
    return f"{markdown_table(('all of the 12-layer set', 'layers', 'seconds'), lines, left=1)}\n\n{note}"


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
        f"Batch {data['settings']['latency_batch']}, {data['settings']['latency_dtype']}, "
        f"{data['machine']['threads']} threads, digits. Measured: when it was chosen; once more: after all searches. "
        "Tau, R² and median error: of the table of parts, on networks that it was not fitted to."
    )
    return f"{markdown_table(headings, lines, left=2)}\n\n{note}"


def kills_table(data: Mapping[str, Any]) -> str:
    """What ``benchmarks/kills.py`` wrote: a command killed again and again."""
    lines = [
        (f"`{row['command']}`", f"{row['seconds']:.0f}", str(row["kills"]), ", ".join(row["differing"]) or "nothing")
        for row in data["killed"]
    ]
    return markdown_table(("command", "s", "kills", "differs from the uninterrupted"), lines, left=1)


FROM_BENCHMARKS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "supernets": ranking_table,
    "drawn_mean": worth_table,
    "tree_layers": scoring_table,
    "searches": latency_table,
    "killed": kills_table,
}
"""A key that tells which script under benchmarks/ wrote a file, and the table of such a file."""


def _scaled(value: float | None, unit: float, form: str) -> str:
    return "" if value is None else f"{value / unit:{form}}"


def _spread(spread: Mapping[str, float], form: str) -> str:
    return f"{spread['median']:{form}} [{spread['low']:{form}}, {spread['high']:{form}}]"


def variants_table() -> str:
    """The named variants with their exact cost at 224 pixels and 1,000 classes."""
    lines = []
    for name, arch in VARIANTS.items():
        grids = ", ".join("×".join(map(str, grid)) for grid in arch.grids(224))
        widths = "-".join(map(str, arch.widths))
        macs, params = f"{cost.macs(arch) / 1e9:.2f}", f"{cost.params(arch) / 1e6:.1f}"
        lines.append((f"`{name}`", f"`{arch.genotype}`", widths, str(arch.stride), grids, macs, params))
    headings = ("variant", "genotype", "widths", "stride", "token grids", "G MACs", "M params")
    return markdown_table(headings, lines, left=2)


def show_diagram() -> str:
    """The diagram that ``psvit show ASAS-ASSA-AS`` ends with."""
    arch = Arch("ASAS-ASSA-AS")
    lines = [Text.from_markup(line).plain for line in diagram(arch, cost.layer_costs(arch))]
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(["```text", *(line[indent:] for line in lines), "```"])


FROM_CODE: dict[str, Callable[[], str]] = {"variants": variants_table, "diagram": show_diagram}
"""Parts that need no measurement."""


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; the first `left` columns are aligned to the left, the others to the right."""
    rule = ["---" if column < left else "---:" for column in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))


def unused(root: Path) -> Iterator[Path]:
    """JSON files in docs/results that no page shows."""
    shown = {name for page in pages(root) for name in blocks(page.read_text(encoding="utf-8"), page.name)}
    return (path for path in sorted((root / "docs" / "results").glob("*.json")) if path.stem not in shown)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write every page anew, or with ``--check`` tell which are out of date; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python docs/build.py", description="Write the generated parts of the pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = parser.parse_args(argv).check
    stale = 0
    for page in pages(root):
        before = page.read_text(encoding="utf-8")
        names = blocks(before, page.name)
        after, missing = rebuilt(before, root / "docs" / "results")
        for name in missing:
            print(f"{page.name}: {name} is not measured yet: there is no docs/results/{name}.json")
        if after != before:
            stale += 1
            print(f"{page.name}: " + ("out of date: run make docs" if check else f"wrote {', '.join(names)}"))
            if not check:
                page.write_text(after, encoding="utf-8")
    for path in unused(root):
        print(f"docs/results/{path.name} is shown on no page")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
