"""The pages of psvit search and psvit run, and the command in them that asks for the same again."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

from members import MEMBERS, SPACE, TIMED, dominates, some_scores
from pages import Tags, of_search
from tiny import RUN, Cli, read

from psvit.cli.flags import with_recipe
from psvit.pipeline.run_config import RunAllConfig
from psvit.pipeline.run_page import comparison_chart, run_page
from psvit.search import search_page as report
from psvit.search.front import rank
from psvit.search.search_config import SearchConfig
from psvit.search.search_page import front_chart, front_note

# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_asks_for_the_same() -> None:
    for words in (
        ["run", "--data", "digits"],
        ["run", "--data", "my photos", "--budget", "12M", "params=1M", "--epochs", "3", "--mixup", "0.5", "--strict"],
        ["run", "--data", "x", "--recipe", "deit", "--clip-grad", "1", "--models", "deit", "AS-A", "--macs", "5M"],
        ["run", "--data", "x", "--clip-grad", "null", "--output", "some where", "--inherit", "--resume"],
        ["search", "--data", "x", "--stage-widths", "16,24", "24,32", "--depth", "2", "4", "--auto-augment", "rand-m9"],
    ):
        kind = {"run": RunAllConfig, "search": SearchConfig}[words[0]]
        asked = with_recipe(words[0], "", lambda recipe, kind=kind: kind(recipe=recipe), words[1:])
        told = shlex.split(report.command_of(words[0], asked, Path(asked.search.output)))
        assert told[:2] == ["psvit", words[0]]
        more = ["--resume"] if "--resume" in words else []  # how it was begun is not told
        again = with_recipe(words[0], "", lambda recipe, kind=kind: kind(recipe=recipe), [*told[2:], *more])
        assert again == asked, words
        assert len(told) <= len(words) + 3, "psvit, and --output"


# The search's page ---------------------------------------------------------------------------------------------------


def test_the_plot_holds_every_network() -> None:
    ranked = rank(some_scores(), SPACE, TIMED)
    plot = front_chart(ranked, ranked[0])
    for text, one in zip(plot.text, ranked, strict=True):
        assert text.startswith(f"{one.arch.genotype}, widths {' '.join(map(str, one.arch.widths))}, patch, plain x4\n")
        assert f"loss {one.score.loss:.4f}, top-1 {one.score.top1:.2f} %" in text
        assert f"on {one.score.images} images, rank {one.rank}" in text
    assert plot.columns == {
        "latency_ms": [1000 * one.latency for one in ranked if one.latency],
        "macs": [one.macs for one in ranked],
        "params": [one.params for one in ranked],
        "loss": [one.score.loss for one in ranked],
        "top1": [one.score.top1 for one in ranked],
    }
    assert plot.chosen == [0]
    for name, points in plot.groups.items():
        assert {f"scored on {ranked[i].score.images} images" for i in points} == {name}
    assert sorted(i for points in plot.groups.values() for i in points) == list(range(len(ranked)))
    assert list(plot.pale) == ["scored on 10 images", "scored on 40 images"]
    assert "Paler networks were scored on fewer images" in front_note(ranked)
    assert "The chart shows" not in front_note(ranked)


def test_each_pair_of_axes_has_its_front() -> None:
    ranked = rank(some_scores(), SPACE, TIMED)
    plot = front_chart(ranked, None)
    assert len(plot.lines) == 6
    final = [i for i, one in enumerate(ranked) if one.score.images == 160]
    for axes, line in plot.lines.items():
        good, kind = axes.split()
        sign = -1 if good == "top1" else 1
        points = {i: (plot.columns[kind][i] or 0, sign * (plot.columns[good][i] or 0)) for i in final}
        assert set(line) == {i for i in final if not any(dominates(points[j], points[i]) for j in final)}
        assert [points[i] for i in line] == sorted(points[i] for i in line)
    assert sorted(plot.lines["loss latency_ms"]) == [i for i, one in enumerate(ranked) if one.on_front]
    assert plot.chosen == []


def test_what_the_page_of_a_search_says(tmp_path: Path) -> None:
    text = of_search(tmp_path / "found").html()
    ranked = rank(some_scores(), SPACE, TIMED)
    assert f"{len(MEMBERS)} networks scored, budget 2 M MACs and 5 ms." in text
    assert f"Chosen: {ranked[0].arch.genotype}, widths" in text
    assert "Measured: 4.5 ms for a batch" in text
    cells = Tags(text).cells
    assert [cells[cells.index("networks of the space") + 1], cells[cells.index("torch") + 1]] == ["99", "2.0"]
    for one in ranked:
        assert (one.arch.genotype in cells) >= one.on_front
    assert "chosen" in cells
    assert "the 4 networks on the front" in text or re.search(r"the \d+ networks on the front", text)
    assert text.count("<figure>") == 2  # the network, the supernet's learning
    assert "arch.json" in text


# The run's page ------------------------------------------------------------------------------------------------------


def test_what_the_page_of_a_run_says(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    tags = Tags(text)
    for row in read(run_folder / "results.json")["rows"]:
        place = tags.cells.index(row["name"])
        error = (row["top1"] * (100 - row["top1"]) / row["images"]) ** 0.5
        assert tags.cells[place : place + 8] == [
            row["name"], row["network"], f"{row['macs'] / 1e6:,.2f}", f"{row['params'] / 1e6:,.3f}",
            f"{row['validation_top1']:.2f}", f"{row['top1']:.2f} ± {error:.2f}", f"{row['loss']:.3f}",
            f"{row['error_ratio']:.2f}",
        ]  # fmt: skip
    targets = [attributes["href"] or "" for tag, attributes in tags.found if tag == "a"]
    for target in targets:
        assert target.startswith("#") or (run_folder / target).is_file(), target
    assert "./search/report.html" in targets
    drawn = {"searched", read(run_folder / "results.json")["chosen"]} - {"resnet18"}
    assert text.count("<figure>") == 3 + len(drawn)  # networks, two of learning, the classes
    assert {"torch", "timm", "recipe.epochs", "data.limit"} <= set(tags.cells)
    assert "psvit run --data digits --budget 400k --output" in re.sub("</?span>", "", text)
    assert read(run_folder / "search" / "arch.json")["genotype"] in text


def test_the_page_of_a_run_without_a_search(run_folder: Path) -> None:
    """A comparison of models of timm: no diagram, no search, and the latency where it was measured."""
    results = read(run_folder / "results.json")
    row = next(row for row in results["rows"] if row["name"] == "resnet18")
    rows = [
        {**row, "latency_ms": 1.5},
        {**row, "name": "again", "latency_ms": 2.5, "per_class": {"a": 50.0, "b": None}},
    ]
    rows[0]["per_class"] = {f"class {i}": float(i) for i in range(30)} | {"a": 1.0, "b": None}
    rows[1]["per_class"] = dict.fromkeys(rows[0]["per_class"]) | {"a": 0.5}
    compared = replace(RunAllConfig().compare, models=("resnet18", "again"), macs="400k")
    config = replace(RunAllConfig(), compare=compared)
    page = run_page(run_folder, {**results, "rows": rows, "chosen": "again"}, config, ((8, 8), 1, 10), {})
    text = page.html()
    assert "The network" not in text
    assert "search/report.html" not in text
    assert "The 20 of 32 classes that are told apart worst." in text
    assert text.count("<figure>") == 3
    assert list(comparison_chart(rows).across) == ["params", "latency_ms", "macs"], "MACs are equal"
    assert "again, the best on the validation split with" in text


def test_a_page_of_the_users_is_not_replaced(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    assert f"{page} is there already: give --overwrite" in cli.refused(*RUN, "--output", tmp_path)
    search = ["search", *RUN[1 : RUN.index("--models")], "--output", tmp_path]
    assert "already holds a run" in cli.refused(*search)
    assert page.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
