"""The results of a run -> its page, ``report.html``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.data.data_config import DataConfig
from psvit.engine.run_folder import read_log
from psvit.pipeline.compare import comparison_table, gains_table, standard_error
from psvit.pipeline.run_config import RunAllConfig
from psvit.report.chart import Chart
from psvit.report.command import command_line
from psvit.report.figures import bars, curves
from psvit.report.in_python import use_in_python
from psvit.report.page import Page
from psvit.search.budget import readable
from psvit.search.pilot import DEFAULT
from psvit.search.search_page import COSTS, REPORT, budget_text, command_of, config_of

CLASSES = 20
"""Most classes in the figure of accuracies; those with the lowest accuracy are shown."""

TESTED = {"top1": "test top-1, %", "validation_top1": "validation top-1, %"}


def run_page(
    folder: Path,
    results: Mapping[str, Any],
    config: RunAllConfig,
    shape: tuple[tuple[int, int], int, int],
    versions: Mapping[str, str],
) -> Page:
    """The page of a run, from its results and the logs of its trainings.

    Args:
        folder: of the run, as given by the user.
        results: the content of ``results.json``.
        config: settings of the run.
        shape: (height, width), channels and classes of its images.
        versions: of psvit and its libraries.
    """
    rows, name = results["rows"], str(results["data"])
    best, why = to_use(results)
    test = f"{best['top1']:.2f} ± {standard_error(best['top1'], best['images']):.2f} %"
    page = Page(
        f"Run on {name}",
        f"{_count(len(rows), 'network')} trained alike, each evaluated once on {best['images']:,} test images. "
        f"{best['name']}, {why}: {test} right.",
    )
    found = search_data(folder) if config.searches else None
    page.heading("What was asked")
    page.facts(_asked(name, results, config, found))
    page.code(command_of("run", config, folder))
    page.heading("Comparison")
    _comparison(page, results, found)
    _networks(page, [best, *(row for row in rows if row["name"] == "searched" and row is not best)], shape)
    if found:
        pilot = found.get("pilot")
        if pilot and not pilot["pays"]:
            page.text(f"No search could pay here, the pilot found: `searched` is {pilot.get('rival', DEFAULT)}.")
        else:
            page.text(f"The search scored {found['members']:,} networks within {budget_text(found['budget'])}.")
        if (folder / "search" / REPORT).is_file():  # missing in searches of earlier versions
            page.link("All of them, and how they were found", f"search/{REPORT}")
    logs = {row["name"]: read_log(Path(row["checkpoint"]).parent) for row in rows}
    page.heading("Learning")
    _learning(page, logs)
    page.heading("Classes")
    _classes(page, rows)
    page.heading("How to use it")
    _use(page, best, config, shape)
    config_of(page, {**results, "versions": versions})
    return page


def to_use(results: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The row of the recommended network (the chosen one, else the first), and the reason in words."""
    rows, name = results["rows"], results["chosen"]
    if name is None:
        return rows[0], "the first, since without a validation split (--validation 0) nothing chooses"
    row = next(row for row in rows if row["name"] == name)
    most = max(other["validation_top1"] for other in rows)
    if row["validation_top1"] == most:
        return row, f"the best on the validation split with {most:.2f} %"
    cheapest = "smallest" if results["config"].get("scoring", {}).get("ties") == "macs" else "fastest"
    return row, f"the {cheapest} of those within one standard error of the best on the validation split ({most:.2f} %)"


def _asked(
    name: str, results: Mapping[str, Any], config: RunAllConfig, found: Mapping[str, Any] | None
) -> dict[str, object]:
    recipe = config.recipe
    target = config.compare.macs or "the default network's MACs"
    return {
        "images": name,
        "budget": budget_text(found["budget"]) if found else target,
        "networks": ", ".join(row["name"] for row in results["rows"]),
        "epochs": recipe.epochs,
        "batch": recipe.batch_size * recipe.accumulate,
        "learning rates": ", ".join(f"{row['name']} {row['lr']:.3g}" for row in results["rows"] if row.get("lr")),
        "validation split": f"{100 * config.data.validation:g} % of the training images",
        "seed": config.data.seed,
    }


def _comparison(page: Page, results: Mapping[str, Any], found: Mapping[str, Any] | None) -> None:
    page.table(comparison_table(results))
    if gains := gains_table(results):
        page.table(gains)
    if pilot := (found or {}).get("pilot"):
        page.text(f"Could a search pay? {pilot['why'][0].upper()}{pilot['why'][1:]}.")
    if found and found.get("measured_ms") is not None:
        told = (found.get("chosen") or {}).get("latency_ms")
        predicted = f"; predicted were {told:.4g} ms" if told else ""
        page.text(f"Latency of `searched`: {found['measured_ms']:.4g} ms measured for a batch{predicted}.")
    if len(results["rows"]) > 1:
        page.chart(
            comparison_chart(results["rows"]), "Bars span one standard error by the number of test images, each way."
        )


def _networks(page: Page, rows: Sequence[Mapping[str, Any]], shape: tuple[tuple[int, int], int, int]) -> None:
    """Diagrams of the networks that have an Arch."""
    for row in rows:
        if arch := _arch(Path(row["checkpoint"])):
            page.heading(f"The network {row['name']}")
            page.network(arch, *shape)


def comparison_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """All networks by accuracy and costs; latency if all have one."""
    costs = [kind for kind in COSTS if all(row.get(kind) is not None for row in rows)]
    if max(row["macs"] for row in rows) < 1.1 * min(row["macs"] for row in rows):  # equal: not the default axis
        costs.sort(key=lambda kind: kind == "macs")
    goods = [kind for kind in TESTED if all(row.get(kind) is not None for row in rows)]
    errors = [standard_error(row["top1"], row["images"]) for row in rows]
    return Chart(
        columns={kind: [row[kind] for row in rows] for kind in (*costs, *goods)},
        names={**COSTS, **TESTED},
        across=costs,
        up=goods,
        text=[
            f"{row['name']}: {row['network']}\n{readable('macs', row['macs'])}, {readable('params', row['params'])}\n"
            f"test {row['top1']:.2f} ± {error:.2f} %"
            for row, error in zip(rows, errors, strict=True)
        ],
        groups={row["name"]: [number] for number, row in enumerate(rows)},
        errors={"top1": errors},
    )


def _learning(page: Page, logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    right = {name: _line(lines, "top1") for name, lines in logs.items() if lines and "top1" in lines[0]}
    if right:
        page.figure(
            curves(right, "epoch", "validation top-1, %"), "Accuracy on the validation split, which chose the epoch."
        )
    page.figure(curves({name: _line(lines, "train_loss") for name, lines in logs.items()}, "epoch",
                       "training loss, nats"), "Loss on the training images, as they were augmented.")  # fmt: skip


def _classes(page: Page, rows: Sequence[Mapping[str, Any]]) -> None:
    known = {
        label: {row["name"]: row["per_class"][label] for row in rows if row["per_class"][label] is not None}
        for label in rows[0]["per_class"]
    }
    worst = sorted((label for label in known if known[label]), key=lambda label: sum(known[label].values()))[:CLASSES]
    some = f"The {len(worst)} of {len(known):,} classes that are told apart worst. " if len(worst) < len(known) else ""
    page.figure(bars({label: known[label] for label in known if label in worst}, "test top-1, %"),
                f"{some}Images of each class that are told right.")  # fmt: skip


def _use(page: Page, best: Mapping[str, Any], config: RunAllConfig, shape: tuple[tuple[int, int], int, int]) -> None:
    checkpoint, (_, in_chans, _) = str(best["checkpoint"]), shape
    data = DataConfig(config.data.data, config.data.data_dir, class_folders=config.data.class_folders)
    page.text(f"In Python, `{best['name']}` with its own preprocessing:")
    page.code(use_in_python(checkpoint, in_chans))
    page.text("On the command line:")
    quoted = shlex.quote(checkpoint)
    evaluate = command_line(f"psvit evaluate {quoted}", data, DataConfig(), always=("data",))
    page.code(f"psvit predict {quoted} IMAGE ...\n{evaluate}\npsvit benchmark {quoted}")
    page.note("Paths are as seen from the folder in which the run was started.")


def _line(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    return [line["epoch"] for line in lines], [line[name] for line in lines]


def _arch(checkpoint: Path) -> Arch | None:
    """The Arch of a checkpoint; None for a model of timm."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    arch = config.get("psvit", {}).get("arch")
    return Arch.from_dict(arch) if arch else None


def search_data(folder: Path) -> dict[str, Any] | None:
    """What the search of a run found, its front.json; None if there is none."""
    path = folder / "search" / "front.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
