"""The results of a search -> ``report.html``. No torch here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from psvit.arch.arch import image_sides
from psvit.arch.model_config import AUTO
from psvit.data.data_config import DataConfig
from psvit.engine.recipes import EPOCHS, RECIPES, recipe_named
from psvit.report.chart import Chart
from psvit.report.command import command_line
from psvit.report.figures import curves
from psvit.report.in_python import build_in_python
from psvit.report.page import Page
from psvit.search.budget import readable
from psvit.search.choice import ties_table
from psvit.search.front import Ranked, chosen_of, front_data, front_table, pareto, row_of, thin
from psvit.search.search_config import SearchConfig

REPORT = "report.html"

DRAWN = 5_000
"""The most networks in the chart, so that a phone can show it."""

COSTS = {"macs": "MACs for one image", "params": "parameters", "latency_ms": "latency of a batch, ms"}
PREDICTED = {**COSTS, "latency_ms": "predicted latency of a batch, ms"}
GOODS = {"loss": "validation loss under the supernet, nats", "top1": "validation top-1 under the supernet, %"}


def search_page(
    folder: Path,
    ranked: Sequence[Ranked],
    facts: Mapping[str, Any],
    config: SearchConfig,
    history: Sequence[Mapping[str, Any]],
) -> Page:
    """The page of a search.

    Args:
        folder: of the search, as the user gave it.
        ranked: all scored networks, best first.
        facts: see `psvit.search.front.write_front`.
        config: settings of the search.
        history: the lines of the supernet's log.
    """
    chosen = chosen_of(ranked, facts)
    name, budget = str(facts.get("data", "images")), budget_text(facts.get("budget") or {})
    page = Page(f"Search on {name}", f"{len(ranked):,} networks scored, budget {budget}.")
    page.heading("What was asked")
    epochs = {"supernet, epochs": len(history)} if history else {}
    page.facts({"images": name, "budget": budget, "networks of the space": facts.get("space", len(ranked)),
                "scored, within the budget": len(ranked), **epochs, "seed": config.data.seed})  # fmt: skip
    page.code(command_of("search", config, folder))
    if pilot := facts.get("pilot"):
        page.heading("Can a search pay?")
        page.text(f"A pilot asked first: {pilot['why']}.")
    if chosen:
        page.heading("The network")
        shape = shape_of(facts)
        page.text(f"Chosen: {_text_of(chosen)}. {_latency_text(facts, chosen)}".strip())
        if choice := facts.get("choice"):
            page.text(f"Why: {choice['why']}.")
            if len(choice["ties"]) > 1:
                page.table(ties_table(choice))
        page.network(chosen.arch, *shape)
    page.heading("The front")
    page.chart(front_chart(ranked, chosen), front_note(ranked))
    page.table(front_table(front_data(ranked, facts)))
    if history:
        page.heading("The supernet")
        page.figure(
            curves(_losses(history), "epoch", "loss, nats"),
            "Loss of the supernet, on networks drawn for each step: on the training images, and on the "
            "validation split.",
        )
    if chosen:
        page.heading("How to go on")
        _go_on(page, folder, config, shape_of(facts))
    config_of(page, facts)
    return page


def train_command(folder: Path, config: SearchConfig) -> str:
    """The command that trains the network of a search on its images, of the same size."""
    model = shlex.quote(str(folder / "arch.json"))
    command = f"psvit train --model {model} --epochs {config.recipe.epochs}"
    return command_line(command, config.data, DataConfig(), always=("data",))


def _go_on(page: Page, folder: Path, config: SearchConfig, shape: tuple[tuple[int, int], int, int]) -> None:
    page.text("Train the network from scratch, or look at it:")
    page.code(f"{train_command(folder, config)}\npsvit show {shlex.quote(str(folder / 'arch.json'))}")
    page.text("In Python, with new weights:")
    page.code(build_in_python(f"Arch.from_json(open({str(folder / 'arch.json')!r}).read())", shape))
    page.note("`front.csv` beside this page holds every network that was scored, `front.json` the front and all facts.")


def front_chart(ranked: Sequence[Ranked], chosen: Ranked | None) -> Chart:
    """A chart of all networks, with the front for each pair of axes.

    Only networks scored on the largest slice count for the front; the others are pale.
    """
    rows = [row_of(one) for one in ranked]
    final = [i for i, row in enumerate(rows) if row["images"] == rows[0]["images"]]
    costs = [kind for kind in ("latency_ms", "macs", "params") if all(row[kind] is not None for row in rows)]
    lines: dict[str, list[int]] = {}  # by rising cost
    for cost in costs:
        for good, sign in (("loss", 1.0), ("top1", -1.0)):
            points = [(rows[i][cost], inf if rows[i][good] is None else sign * rows[i][good]) for i in final]
            front = [i for i, on in zip(final, pareto(points), strict=True) if on]
            lines[f"{good} {cost}"] = sorted(front, key=lambda i: (rows[i][cost], i))
    star = [] if chosen is None else [chosen.rank - 1]
    drawn = thin(len(rows), DRAWN, {*star, *(i for line in lines.values() for i in line)})
    place = {i: number for number, i in enumerate(drawn)}
    slices = sorted({rows[i]["images"] for i in drawn})
    groups = {images: f"scored on {images:,} images" for images in slices}
    return Chart(
        columns={name: [rows[i][name] for i in drawn] for name in (*costs, *GOODS)},
        names={**PREDICTED, **GOODS},
        across=costs,
        up=list(GOODS),
        text=[_text_of(ranked[i], "\n") for i in drawn],
        groups={name: [place[i] for i in drawn if rows[i]["images"] == images] for images, name in groups.items()},
        pale=list(groups.values())[:-1],
        lines={axes: [place[i] for i in line] for axes, line in lines.items()},
        chosen=[place[i] for i in star],
    )


def front_note(ranked: Sequence[Ranked]) -> str:
    """The caption of `front_chart`."""
    final = [one for one in ranked if one.score.images == ranked[0].score.images]
    notes = []
    if ranked:
        notes.append(
            "The line joins the front, the networks that no other beats on both axes, of the "
            f"{len(final):,} scored on {ranked[0].score.images:,} images of the validation split."
        )
    if len(final) < len(ranked):
        notes.append("Paler networks were scored on fewer images; losses on different images do not compare.")
    if len(ranked) > DRAWN:
        notes.append(
            f"The chart shows {DRAWN:,} of {len(ranked):,} networks: the fronts, and an even sample of the others."
        )
    return " ".join(notes)


def _text_of(one: Ranked, apart: str = ", ") -> str:
    latency = [] if one.latency is None else [f"{readable('latency', one.latency)} predicted"]
    return apart.join([
        f"{one.arch.genotype}, widths {' '.join(map(str, one.arch.widths))}, {one.score.name.elements}",
        ", ".join([readable("macs", one.macs), readable("params", one.params), *latency]),
        f"loss {one.score.loss:.4f}, top-1 {one.score.top1:.2f} %",
        f"on {one.score.images:,} images, rank {one.rank:,}",
    ])  # fmt: skip


def _latency_text(facts: Mapping[str, Any], chosen: Ranked) -> str:
    measured = facts.get("measured_ms")
    if measured is None:
        return ""
    predicted = "" if chosen.latency is None else f"; predicted were {1000 * chosen.latency:.4g} ms"
    return f"Measured: {measured:.4g} ms for a batch{predicted}."


def budget_text(limits: Mapping[str, float]) -> str:
    """The limits of a budget as text."""
    return " and ".join(readable(kind, limit) for kind, limit in limits.items()) or "without limit"


def shape_of(facts: Mapping[str, Any]) -> tuple[tuple[int, int], int, int]:
    """(height, width), channels and classes of a search's images."""
    shape = facts["shape"]
    return image_sides(shape["img_size"]), shape["in_chans"], shape["num_classes"]


def command_of(command: str, config: SearchConfig, folder: Path) -> str:
    """The shortest command with the same settings."""
    config = replace(config, search=replace(config.search, output=str(folder)))
    kind = type(config)
    words = []
    for name in (AUTO, *RECIPES):
        recipe = recipe_named(name, config.recipe.epochs, config.data.side)
        usual = kind(recipe=replace(recipe, epochs=EPOCHS) if name == AUTO else recipe)
        named = command if name == AUTO else f"{command} --recipe {name}"
        words.append(command_line(f"psvit {named}", config, usual, always=("data", "budget", "output")))
    return min(words, key=len)


def config_of(page: Page, facts: Mapping[str, Any]) -> None:
    """Add the last section: versions, and all settings, folded."""
    page.heading("Settings and versions")
    page.facts(facts.get("versions") or {})
    page.folded("All settings", facts.get("config") or {})


def _losses(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    columns = [("train_loss", "training"), ("loss", "validation split")]
    epochs = [line["epoch"] for line in history]
    return {name: (epochs, [line[column] for line in history]) for column, name in columns if column in history[0]}
