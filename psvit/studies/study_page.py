"""The results of a study -> its page, tables and figures. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from psvit.arch.arch import Arch
from psvit.files import replacing
from psvit.report.chart import Chart
from psvit.report.figures import curves, save
from psvit.report.in_python import use_in_python
from psvit.report.page import Page
from psvit.studies.study_tables import (
    caption,
    claims_table,
    failure,
    figure,
    group_note,
    group_table,
    is_measured,
    mean,
    notes,
    study_markdown,
)

Data = Mapping[str, Any]

PAGE, TABLES = "report.html", "tables.md"


def write_report(folder: Path, data: Data, command: str) -> list[Path]:
    """Write ``report.html``, ``tables.md`` and the figures of a study, as SVG and PNG.

    Args:
        folder: of the study.
        data: its results; see `psvit.studies.results.results`.
        command: the command line of the study.

    Returns:
        The files, the page first.
    """
    page = study_page(data, folder, command)
    page.write(folder / PAGE)
    with replacing(folder / TABLES) as temporary:
        temporary.write_text(study_markdown(data) + "\n", encoding="utf-8")
    return [folder / PAGE, folder / TABLES, *write_figures(folder, data["study"], data)]


def write_figures(folder: Path, stem: str, data: Data) -> list[Path]:
    """Write the figures of a study as ``STEM.svg`` and ``.png``, ``STEM-2.svg``, ...; returns the files.

    A figure without any finished training is left out.
    """
    entries = data["config"]["figures"]
    paths = figure_files(folder, stem, len(entries))
    written: list[Path] = []
    for entry, svg, png in zip(entries, paths[::2], paths[1::2], strict=True):
        if is_measured(entry, data):
            save(figure(entry, data), svg)
            written += [svg, png]
    return written


def figure_files(folder: Path, stem: str, count: int) -> list[Path]:
    """The ``.svg`` and ``.png`` files of `count` figures."""
    stem = stem.replace(".", "-")  # with_suffix would replace what follows a dot
    stems = [stem if number == 1 else f"{stem}-{number}" for number in range(1, count + 1)]
    return [folder / f"{name}{suffix}" for name in stems for suffix in (".svg", ".png")]


def study_page(data: Data, folder: Path, command: str) -> Page:
    """The page of a study.

    Args:
        data: its results.
        folder: of its trainings, as given by the user.
        command: the command line of the study.
    """
    page = Page(data["title"], data["question"])
    for note in notes(data):
        page.note(note)
    if data["claims"]:
        page.heading("The claims")
        page.table(claims_table(data))
    sets = by_data(data)
    if sets:
        page.heading("Figures")
        for entry in data["config"]["figures"]:
            if is_measured(entry, data):
                page.figure(figure(entry, data), caption(entry))
        page.heading("Accuracy and cost")
        for name, measured in sets.items():
            note = "Hover over a point for details. Bars are 95 % intervals over seeds."
            page.chart(chart(measured, data["reads"]), f"{name}. {note}" if len(sets) > 1 else note)
    for entry in data["groups"]:
        _group(page, entry, data)
    if sets:
        page.heading("Use a network")
    for name, measured in sets.items():
        group, row = max(measured, key=lambda pair: fmean(pair[1]["validation_top1"]))
        if "taken_from" in row:
            page.text(
                f"{name}: the best on the validation split, {row['label']} of {group['name']}, was trained elsewhere."
            )
            continue
        page.text(
            f"{name}: the best on the validation split, {row['label']} of {group['name']} with {mean(row)} %, is a "
            "checkpoint folder:"
        )
        page.code(use_in_python(str(folder / row["folders"][0] / "best"), group["shape"]["in_chans"]))
        if row["arch"] and row["arch"] != group["searched"]:
            _network(page, row["arch"], group)
    page.heading("Make it again")
    page.code(command)
    page.folded("Versions and machine", {**data["versions"], **data["machine"]})
    page.folded("All settings", data["config"])
    return page


def _group(page: Page, group: Data, data: Data) -> None:
    page.heading(group["name"])
    page.table(group_table(group, data["reads"])._replace(caption=group_note(group, data)))
    lines = {row["label"]: _line(row) for row in group["rows"] if row["mean"] is not None}
    if any(len(epochs) > 1 for epochs, _ in lines.values()):
        page.figure(curves(lines, "epoch", "validation top-1, %"), "Learning curves, means of the seeds.")
    if group["searched"]:
        page.text("The network found by the search of this group:")
        _network(page, group["searched"], group)
    for row in group["rows"]:
        if row["failed"]:
            page.note(f"{row['label']}: {failure(row)}")


def _network(page: Page, arch: Data, group: Data) -> None:
    shape = group["shape"]
    page.network(Arch.from_dict(dict(arch)), tuple(shape["img_size"]), shape["in_chans"], shape["num_classes"])


Measured = list[tuple[Data, Data]]
"""Groups and rows with at least one finished training."""


def by_data(data: Data) -> dict[str, Measured]:
    """The measured rows of a study by data set, since accuracies on different ones cannot be compared."""
    found: dict[str, Measured] = {}
    for group in data["groups"]:
        for row in group["rows"]:
            if row["mean"] is not None:
                found.setdefault(group["data"], []).append((group, row))
    return found


def chart(rows: Measured, reads: str) -> Chart:
    """Accuracy against cost of networks of a study on one data set.

    Args:
        rows: the networks; reads: the split whose metrics count.
    """
    split = "test" if reads == "test" else "validation split"
    labels = list(dict.fromkeys(row["label"] for _, row in rows))
    timed = bool(rows) and all(row.get("latency_ms") is not None for _, row in rows)
    costs = ("macs", "params", *["latency_ms"] * timed)
    grouped: dict[str, list[int]] = {}
    for number, (group, row) in enumerate(rows):
        grouped.setdefault(row["label"] if len(labels) <= 12 else group["name"], []).append(number)
    return Chart(
        columns={name: [row[name] for _, row in rows] for name in (*costs, "mean")},
        names={
            "macs": "MACs for one image",
            "params": "parameters",
            "latency_ms": "latency of a batch, ms",
            "mean": f"{split} top-1, %",
        },
        across=costs,
        up=("mean",),
        text=[f"{row['label']}, {group['name']}\n{row['network']}\n{split} top-1 {mean(row)} %" for group, row in rows],
        groups=grouped,
        errors={"mean": [(row["interval"][1] - row["mean"]) if row["interval"] else 0.0 for _, row in rows]},
    )


def _line(row: Data) -> tuple[list[float], list[float]]:
    return [epoch for epoch, _ in row["history"]], [top1 for _, top1 in row["history"]]
