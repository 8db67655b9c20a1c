"""What a search or a run came to -> its page, ``report.html``. No torch here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, sqrt
from pathlib import Path
from typing import Any

from psvit.arch import Arch, image_sides
from psvit.report.chart import Chart
from psvit.report.command import command_line
from psvit.report.figures import bars, curves
from psvit.report.in_python import build_in_python, use_in_python
from psvit.report.page import Page
from psvit.search.budget import readable
from psvit.search.front import Ranked, chosen_of, figures_of, front_data, listed, pareto, thin
from psvit.search.settings import RunAllSettings, SearchSettings
from psvit.training.recipes import RECIPES

REPORT = "report.html"

DRAWN = 5_000
"""A page draws at most so many networks: a phone still moves through them."""

CLASSES = 20
"""Classes of which a page shows the accuracy, those that are told apart worst."""

COSTS = {"macs": "MACs for one image", "params": "parameters", "latency_ms": "latency of a batch, ms"}
PREDICTED = {**COSTS, "latency_ms": "predicted latency of a batch, ms"}
GOODS = {"loss": "hold-out loss under the supernet, nats", "top1": "hold-out top-1 under the supernet, %"}
TESTED = {"top1": "test top-1, %", "holdout_top1": "hold-out top-1, %"}


def standard_error(percent: float, images: int) -> float:
    """Of an accuracy in percent, measured on so many images (binomial)."""
    return sqrt(percent * (100 - percent) / images)


# The search ----------------------------------------------------------------------------------------------------------


def search_page(
    folder: Path,
    ranked: Sequence[Ranked],
    facts: Mapping[str, Any],
    settings: SearchSettings,
    history: Sequence[Mapping[str, Any]],
) -> Page:
    """The page of a search.

    Args:
        folder: of the search, as the user names it.
        ranked: every member that was scored, best first.
        facts: what ``front.json`` holds beside the front; see `psvit.search.front.write_front`.
        settings: of the search.
        history: the lines of the supernet's log.
    """
    chosen = chosen_of(ranked, facts)
    name, budget = str(facts.get("data", "images")), _budget(facts.get("budget") or {})
    page = Page(f"Search on {name}", f"{len(ranked):,} networks scored, budget {budget}.")
    page.heading("What was asked")
    hours = {"supernet, epochs": len(history)} if history else {}
    page.facts({"images": name, "budget": budget, "networks of the space": facts.get("space", len(ranked)),
                "scored, within the budget": len(ranked), **hours, "seed": settings.data.seed})  # fmt: skip
    page.code(_command("search", settings, folder))
    if chosen:
        page.heading("The network")
        shape = _shape(facts)
        page.text(f"Chosen: {_told(chosen)}. {_latency_text(facts, chosen)}".strip())
        page.network(chosen.arch, *shape)
    page.heading("The front")
    page.chart(front_chart(ranked, chosen), front_note(ranked))
    front = listed(front_data(ranked, facts))
    page.table(front.headings, [(f"`{genotype}`", *cells) for genotype, *cells in front.rows], left=2,
               caption=front.caption, highlight=[] if front.chosen is None else [front.chosen])  # fmt: skip
    if history:
        page.heading("The supernet")
        page.figure(
            curves(_losses({"supernet": history}), "epoch", "loss, nats"),
            "Loss of the supernet, on members drawn for each step: on the training images, and on the hold-out.",
        )
    if chosen:
        page.heading("How to go on")
        _go_on(page, folder, settings, _shape(facts))
    _settings(page, facts)
    return page


def _go_on(page: Page, folder: Path, settings: SearchSettings, shape: tuple[tuple[int, int], int, int]) -> None:
    arch = shlex.quote(str(folder / "arch.json"))
    data = ["--data", settings.data.data] + (["--data-dir", settings.data.data_dir] if settings.data.data_dir else [])
    page.text("Train the network from scratch, or look at it:")
    page.code(f"psvit train --model {arch} {shlex.join(data)} --epochs {settings.recipe.epochs}\n"
              f"psvit show {arch}")  # fmt: skip
    page.text("In Python, with new weights:")
    page.code(build_in_python(f"Arch.from_json(open({str(folder / 'arch.json')!r}).read())", shape))
    page.note("`front.csv` beside this page holds every network that was scored, `front.json` the front and all facts.")


def front_chart(ranked: Sequence[Ranked], chosen: Ranked | None) -> Chart:
    """Every member, and the front of each pair of axes.

    The front is that of the members that were scored on the largest slice; the others are pale.
    """
    rows = [figures_of(one) for one in ranked]
    final = [i for i, row in enumerate(rows) if row["images"] == rows[0]["images"]]
    costs = [kind for kind in ("latency_ms", "macs", "params") if all(row[kind] is not None for row in rows)]
    lines: dict[str, list[int]] = {}  # cheap to dear
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
        text=[_told(ranked[i], "\n") for i in drawn],
        groups={name: [place[i] for i in drawn if rows[i]["images"] == images] for images, name in groups.items()},
        pale=list(groups.values())[:-1],
        lines={axes: [place[i] for i in line] for axes, line in lines.items()},
        chosen=[place[i] for i in star],
    )


def front_note(ranked: Sequence[Ranked]) -> str:
    """What the plot of `front_chart` shows and leaves out."""
    final = [one for one in ranked if one.score.images == ranked[0].score.images]
    notes = []
    if ranked:
        notes.append(f"The line joins the front, the networks that no other beats on both axes, among the "
                     f"{len(final):,} scored on {ranked[0].score.images:,} images of the hold-out.")  # fmt: skip
    if len(final) < len(ranked):
        notes.append("Paler networks were scored on fewer images; losses on different images do not compare.")
    if len(ranked) > DRAWN:
        notes.append(f"Of {len(ranked):,} networks {DRAWN:,} are drawn: the fronts, and the others thinned evenly.")
    return " ".join(notes)


def _told(one: Ranked, apart: str = ", ") -> str:
    latency = [] if one.latency is None else [f"{readable('latency', one.latency)} predicted"]
    return apart.join([
        f"{one.arch.genotype}, widths {' '.join(map(str, one.arch.widths))}",
        ", ".join([readable("macs", one.macs), readable("params", one.params), *latency]),
        f"loss {one.score.loss:.4f}, top-1 {one.score.top1:.2f} %",
        f"on {one.score.images:,} images, rank {one.rank:,}",
    ])  # fmt: skip


def _latency_text(facts: Mapping[str, Any], chosen: Ranked) -> str:
    measured = facts.get("measured_ms")
    if measured is None or chosen.latency is None:
        return ""
    return f"Measured: {measured:.4g} ms for a batch; predicted were {1000 * chosen.latency:.4g} ms."


# The run -------------------------------------------------------------------------------------------------------------


def run_page(
    folder: Path,
    results: Mapping[str, Any],
    settings: RunAllSettings,
    shape: tuple[tuple[int, int], int, int],
    versions: Mapping[str, str],
) -> Page:
    """The page of a run, from its results and the logs of its trainings.

    Args:
        folder: of the run, as the user names it.
        results: what ``results.json`` holds.
        settings: of the run.
        shape: of its images: (height, width), channels, classes.
        versions: of what the figures depend on.
    """
    rows, name = results["rows"], str(results["data"])
    best, why = to_use(results)
    test = f"{best['top1']:.2f} ± {standard_error(best['top1'], best['images']):.2f} %"
    page = Page(
        f"Run on {name}",
        f"{_count(len(rows), 'network')} trained alike, each evaluated once on {best['images']:,} test images. "
        f"{best['name']}, {why}: {test} right.",
    )
    found = _search_data(folder) if settings.searches else None
    page.heading("What was asked")
    page.facts(_asked(name, results, settings, found))
    page.code(_command("run", settings, folder))
    page.heading("Comparison")
    _comparison(page, rows, results["chosen"], found)
    _networks(page, [best, *(row for row in rows if row["name"] == "searched" and row is not best)], shape)
    if found:
        page.text(f"The search scored {found['members']:,} networks within {_budget(found['budget'])}.")
        if (folder / "search" / REPORT).is_file():  # one of an earlier version has none
            page.link("All of them, and how they were found", f"search/{REPORT}")
    logs = {row["name"]: read_log(Path(row["checkpoint"]).parent) for row in rows}
    page.heading("Learning")
    _learning(page, logs)
    page.heading("Classes")
    _classes(page, rows)
    page.heading("How to use it")
    _use(page, best, settings, shape)
    _settings(page, {**results, "versions": versions})
    return page


def to_use(results: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The row of the network that a run names, and why it does: the one that is chosen, else the first."""
    rows, name = results["rows"], results["chosen"]
    if name is None:
        return rows[0], "the first, since without a hold-out (--holdout 0) nothing chooses"
    row = next(row for row in rows if row["name"] == name)
    return row, f"the best on the hold-out with {row['holdout_top1']:.2f} %"


def _asked(
    name: str, results: Mapping[str, Any], settings: RunAllSettings, found: Mapping[str, Any] | None
) -> dict[str, object]:
    recipe = settings.recipe
    target = settings.compare.macs or "the default network's MACs"
    return {
        "images": name,
        "budget": _budget(found["budget"]) if found else target,
        "networks": ", ".join(row["name"] for row in results["rows"]),
        "epochs": recipe.epochs,
        "batch": recipe.batch_size * recipe.accumulate,
        "hold-out": f"{100 * settings.data.holdout:g} % of the training images",
        "seed": settings.data.seed,
    }


def _comparison(
    page: Page, rows: Sequence[Mapping[str, Any]], chosen: str | None, found: Mapping[str, Any] | None
) -> None:
    lines, timed = [], all(row.get("latency_ms") is not None for row in rows)
    for row in rows:
        holdout = "" if row["holdout_top1"] is None else f"{row['holdout_top1']:.2f}"
        over = "–" if row["error_ratio"] is None else f"{row['error_ratio']:.2f}"
        test = f"{row['top1']:.2f} ± {standard_error(row['top1'], row['images']):.2f}"
        lines.append((row["name"], f"`{row['network']}`", f"{row['macs'] / 1e6:,.2f}", f"{row['params'] / 1e6:,.3f}",
                      holdout, test, f"{row['loss']:.3f}", over,
                      *([f"{row['latency_ms']:.3g}"] if timed else [])))  # fmt: skip
    page.table(
        ("name", "network", "M MACs", "M params", "hold-out %", "test %", "loss", "error / first", *["ms"] * timed),
        lines,
        left=2,
        caption="One run each, one seed. ± is the standard error by the number of test images; another seed adds more."
        + timed * " ms: latency of a batch on this machine, measured in turns.",
        highlight=[place for place, row in enumerate(rows) if row["name"] == chosen],
    )
    if found and found.get("measured_ms") is not None:
        told = (found.get("chosen") or {}).get("latency_ms")
        predicted = f"; predicted were {told:.4g} ms" if told else ""
        page.text(f"Latency of `searched`: {found['measured_ms']:.4g} ms measured for a batch{predicted}.")
    if len(rows) > 1:
        page.chart(comparison_chart(rows), "Bars span one standard error by the number of test images, each way.")


def _networks(page: Page, rows: Sequence[Mapping[str, Any]], shape: tuple[tuple[int, int], int, int]) -> None:
    """Those of them that an Arch describes, drawn."""
    for row in rows:
        if arch := _arch(Path(row["checkpoint"])):
            page.heading(f"The network {row['name']}")
            page.network(arch, *shape)


def comparison_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Every network by its accuracy and its costs; latency where all have one."""
    costs = [kind for kind in COSTS if all(row.get(kind) is not None for row in rows)]
    if max(row["macs"] for row in rows) < 1.1 * min(row["macs"] for row in rows):  # equal: they tell nothing apart
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
        labels=[row["name"] for row in rows],
    )


def _learning(page: Page, logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    right = {name: _line(lines, "top1") for name, lines in logs.items() if lines and "top1" in lines[0]}
    if right:
        page.figure(curves(right, "epoch", "hold-out top-1, %"), "Accuracy on the hold-out, which chose the epoch.")
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


def _use(
    page: Page, best: Mapping[str, Any], settings: RunAllSettings, shape: tuple[tuple[int, int], int, int]
) -> None:
    checkpoint, (_, in_chans, _) = str(best["checkpoint"]), shape
    data = ["--data", settings.data.data] + (["--data-dir", settings.data.data_dir] if settings.data.data_dir else [])
    page.text(f"In Python, `{best['name']}` with its own preprocessing:")
    page.code(use_in_python(checkpoint, in_chans))
    page.text("On the command line:")
    quoted = shlex.quote(checkpoint)
    page.code(f"psvit predict {quoted} IMAGE ...\npsvit evaluate {quoted} {shlex.join(data)}\npsvit benchmark {quoted}")
    page.note("Paths are as seen from the folder in which the run was started.")


# What both pages hold ------------------------------------------------------------------------------------------------


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, one for each epoch; none if it keeps no log."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _line(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    return [line["epoch"] for line in lines], [line[name] for line in lines]


def _losses(
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for lines in logs.values():
        for column, name in (("train_loss", "training"), ("loss", "hold-out")):
            if lines and column in lines[0]:
                found[name] = _line(lines, column)
    return found


def _budget(limits: Mapping[str, float]) -> str:
    return " and ".join(readable(kind, limit) for kind, limit in limits.items()) or "without limit"


def _shape(facts: Mapping[str, Any]) -> tuple[tuple[int, int], int, int]:
    shape = facts["shape"]
    return image_sides(shape["img_size"]), shape["in_chans"], shape["num_classes"]


def _arch(checkpoint: Path) -> Arch | None:
    """The Arch of a checkpoint; None for a model of timm."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    arch = config.get("psvit", {}).get("arch")
    return Arch.from_dict(arch) if arch else None


def _search_data(folder: Path) -> dict[str, Any] | None:
    path = folder / "search" / "front.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _command(command: str, settings: SearchSettings, folder: Path) -> str:
    """What asks for the same again; the recipe is the one that leaves least to say."""
    settings = replace(settings, search=replace(settings.search, output=str(folder)))
    kind = type(settings)
    words = []
    for name, recipe in RECIPES.items():
        named = f"{command} --recipe {name}" if recipe() != kind().recipe else command
        usual = kind(recipe=recipe())
        words.append(command_line(f"psvit {named}", settings, usual, always=("data", "budget", "output")))
    return min(words, key=len)


def _settings(page: Page, facts: Mapping[str, Any]) -> None:
    page.heading("Settings and versions")
    page.facts(facts.get("versions") or {})
    page.folded("All settings", facts.get("settings") or {})


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
