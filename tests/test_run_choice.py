"""The network that ``psvit run`` names: by the validation split, the same in the terminal, on the page and in the
results.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from accelerate import Accelerator
from tiny import Cli

from psvit import cost
from psvit.arch.variants import default_arch
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.pipeline.compare import best_on_validation, comparison_table
from psvit.pipeline.run import _searched
from psvit.pipeline.run_config import RunAllConfig
from psvit.pipeline.run_page import run_page, to_use
from psvit.search.search import Found


def row(name: str, validation: float | None, loss: float | None, test: float, folder: Path = Path()) -> dict[str, Any]:
    return {
        "name": name, "network": name, "macs": 1000, "params": 100, "top1": test, "loss": 0.5, "images": 100,
        "per_class": {"a": test, "b": test}, "validation_top1": validation, "validation_loss": loss, "epoch": 1,
        "validation_images": 100, "error_ratio": 1.0, "checkpoint": str(folder / name / "best"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([("searched", 90.0, 0.5, 99.0), ("deit", 91.0, 0.9, 10.0)], "deit"),
        ([("deit", 90.0, 0.5, 99.0), ("searched", 90.0, 0.4, 10.0), ("more", 90.0, 0.4, 99.9)], "searched"),
        ([("deit", None, None, 99.0), ("searched", None, None, 10.0)], None),
    ],
)
def test_the_hold_out_chooses(rows: list[Any], name: str | None) -> None:
    assert best_on_validation([row(*one) for one in rows]) == name


def test_ties_go_to_the_fastest() -> None:
    """3 points are one standard error of 90 % of 100 images; 2 % of the time are no difference."""
    figures = {"best": (90.0, 5.0), "tied": (87.5, 3.05), "fastest": (87.0, 3.0), "worse": (86.9, 1.0)}
    rows = [{**row(name, top1, 0.5, 50.0), "latency_ms": ms} for name, (top1, ms) in figures.items()]
    assert best_on_validation(rows) == "tied"
    assert best_on_validation([{**row, "macs": 1000 + row["latency_ms"]} for row in rows], "macs") == "best"
    _, why = to_use({"rows": rows, "chosen": "tied", "config": {}})
    assert why == "the fastest of those within one standard error of the best on the validation split (90.00 %)"


def test_a_network_is_not_trained_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the search took the default network, psvit_plus is the same."""
    data, said = open_data(DataConfig("digits", limit=64)), list[str]()
    found = Found(cost.scale_to(default_arch(8), 1e6, 8, 1, 10), cast(Any, None), data, Path())
    monkeypatch.setattr("psvit.pipeline.run.random_member", lambda *_: found.arch.plain())
    config = RunAllConfig()
    for models, left in (
        (("psvit_plus", "plain_twin", "searched"), ["plain_twin", "searched"]),
        (("psvit_plus", "plain_twin"), ["psvit_plus", "plain_twin"]),
    ):
        chosen = replace(config, compare=replace(config.compare, models=models))
        assert list(_searched(chosen, found, data, Accelerator(cpu=True), said.append)) == left
    assert said == ["left out  psvit_plus: it is the network of searched"]


@pytest.mark.parametrize(
    ("validation", "told"),
    [((80.0, 81.0, 79.0), "searched: the best on the validation split with 81.00 %"),
     ((None, None, None), "deit: the first, since without a validation split (--validation 0) nothing chooses")],
)  # fmt: skip
def test_terminal_page_and_next_command_name_the_same(
    validation: tuple[Any, ...], told: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = zip(("deit", "searched", "resnet18"), validation, (70.0, 60.0, 95.0), strict=True)
    rows = [row(name, on, None if on is None else 0.5, test, tmp_path) for name, on, test in figures]
    for one in rows:
        Path(one["checkpoint"]).mkdir(parents=True)
        Path(one["checkpoint"], "config.json").write_text("{}")
        Path(one["checkpoint"]).with_name("log.jsonl").write_text('{"epoch": 1, "train_loss": 2.0}\n' * 2)
    results = {"config": {}, "data": "digits", "rows": rows, "chosen": best_on_validation(rows)}
    name, _, why = told.partition(": ")

    monkeypatch.setattr("psvit.pipeline.run.run", lambda config: json.loads(json.dumps(results)))
    said = cli.ok("run", "--output", tmp_path).splitlines()
    assert f"use       {told}" in said
    assert said[-1] == f"next      psvit predict {tmp_path / name / 'best'} IMAGE ..."

    config = RunAllConfig()
    config = replace(config, compare=replace(config.compare, models=("deit", "resnet18")))
    page = run_page(tmp_path, results, config, ((8, 8), 1, 10), {}).html()
    assert f"{name}, {why}: " in re.sub("<[^>]*>", "", page)
    assert f"psvit predict {tmp_path / name / 'best'}" in re.sub("<[^>]*>", "", page)
    marked = re.findall('<tr class="mark"><td>(.*?)</td>', page)
    bold = [rows[place]["name"] for place in comparison_table(results).highlight]
    assert marked == bold == ([name] if validation[0] else [])
