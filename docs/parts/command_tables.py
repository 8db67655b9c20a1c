"""What psvit study, analyze, run and benchmark leave -> tables in Markdown."""

from __future__ import annotations

from parts.noted import Data, noted_table
from psvit.analysis.analysis_page import layer_table
from psvit.pipeline.compare import standard_error
from psvit.report.tables import to_markdown
from psvit.studies.definition import slug
from psvit.studies.study_tables import claims_table, group_note, group_table, made_on, mean


def study(data: Data, part: str) -> str:
    """A part of a study.

    ``claims``; ``groups`` (every network in one table); ``matrix`` (a row for each network, a column for each group,
    the best of a row in bold); or one group by the slug of its name.
    """
    groups = {slug(group["name"]): group for group in data["groups"]}
    if part == "claims":
        table = claims_table(data)
        return noted_table(table.headings[:4], [row[:4] for row in table.rows], table.left, made_on(data))
    if part == "groups":
        headings = "group", "", "network", "M MACs", "M params", f"{data['reads']} %, mean"
        rows = [_network(group, row) for group in data["groups"] for row in group["rows"]]
        notes = dict.fromkeys(group_note(group, data).partition(" ms:")[0] for group in data["groups"])
        return noted_table(headings, rows, 3, "\n".join(notes))
    if part == "matrix":
        return noted_table(("", *(group["name"] for group in data["groups"])), _matrix(data), 1, made_on(data))
    if part not in groups:
        raise ValueError(f"there is no such part: {', '.join(['claims', 'groups', 'matrix', *groups])}")
    note = f"{group_note(groups[part], data)} ±: 95 % confidence interval of the mean over seeds."
    return f"{to_markdown(group_table(groups[part], data['reads']))}\n\n{note}"


def _matrix(data: Data) -> list[list[str]]:
    found: dict[str, dict[str, Data]] = {}
    for group in data["groups"]:
        for row in group["rows"]:
            found.setdefault(row["label"], {})[group["name"]] = row
    lines = []
    for label, rows in found.items():
        best = max((row["mean"] for row in rows.values() if row["mean"] is not None), default=None)
        cells = []
        for row in (rows.get(group["name"]) for group in data["groups"]):
            cell = "" if row is None else "failed" if row["mean"] is None else mean(row)
            cells.append(f"**{cell}**" if row is not None and row["mean"] == best else cell)
        lines.append([label, *cells])
    return lines


def _network(group: Data, row: Data) -> tuple[str, ...]:
    cost = f"{row['macs'] / 1e6:.2f}", f"{row['params'] / 1e6:.3f}"
    name = group["name"] if row is group["rows"][0] else ""
    return name, row["label"], f"`{row['network']}`", *cost, mean(row)


def analysis(data: Data) -> str:
    """An analysis: how alike maps and tokens are, and what sharing and pooling would cost."""
    layers = layer_table(data, ("layer", "tokens", "map corr", "to share", "neighbours", "to pool"))
    images = data["data"]
    note = (
        f"`{data['network']}`, {data['weights']} weights, top-1 {data['top1']:.1f} %, on {images['images']} validation "
        f"images of {images['name']}. map corr: correlation with the map of the layer before; neighbours: mean cosine "
        "of neighbouring tokens; to share, to pool: change of the loss in nats ± standard error, without training."
    )
    return noted_table(layers.headings, layers.rows, 1, note)


def comparison(data: Data) -> str:
    """Results of ``psvit run``: accuracy and cost of each network, and how they were trained."""
    lines = []
    for row in data["rows"]:
        validation = "" if row["validation_top1"] is None else f"{row['validation_top1']:.2f}"
        test = f"{row['top1']:.2f} ± {standard_error(row['top1'], row['images']):.2f}"
        cost = f"{row['macs'] / 1e6:.2f}", f"{row['params'] / 1e6:.3f}"
        lines.append((row["name"], f"`{row['network']}`", *cost, validation, test, f"{row['error_ratio']:.2f}"))
    headings = "name", "network", "M MACs", "M params", "validation %", "test %", "error / first"
    recipe = data["config"]["recipe"]
    note = (
        f"{data['data']}, {data['rows'][0]['images']:,} test images; {recipe['epochs']} epochs, batch "
        f"{recipe['batch_size'] * recipe['accumulate']}, seed {data['config']['data']['seed']}, one run each. "
        "±: standard error by the number of test images; another seed adds to it."
    )
    return noted_table(headings, lines, 2, note)


def benchmark(data: Data) -> str:
    """A report of ``psvit benchmark``, of inference or of steps of training: speed beside cost, on which machine."""
    lines, train = [], data["config"]["train"]
    for row in data["rows"]:
        cost = f"{row['parameters'] / 1e6:.2f}", f"{row['macs'] / 1e9:.2f}"
        speed = [
            f"{spread['median']:{form}} [{spread['low']:{form}}, {spread['high']:{form}}]"
            for spread, form in ((row["speed"]["images_per_second"], ".4g"), (row["speed"]["ratio"], ".2f"))
        ]
        name = (row["model"], row["step"]) if train else (row["model"],)
        lines.append((*name, row["dtype"], *cost, *speed, f"{row['peak_fraction']:.0%}"))
    first = "× bare" if train else "× first"
    headings = "model", *(["step"] if train else []), "dtype", "M params", "G MACs", "images/s", first, "of peak"
    config, machine = data["config"], data["machine"]
    what, over = ("Training", "its network's and optimizer's alone") if train else ("Inference", "the first model's")
    note = (
        f"{what}, batch {config['batch_size']}; {machine['device_name'] or machine['cpu']}, {machine['threads']} "
        f"threads, torch {machine['torch']}; median [quartiles] of {config['rounds']} interleaved rounds. {first}: "
        f"images/s over {over}. Of peak: MACs per second over this machine's fastest matrix product."
    )
    return noted_table(headings, lines, 3 if train else 2, note)
