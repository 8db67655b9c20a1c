"""docs/build.py: results -> tables and figures in the pages."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses
from small_pages import block, build

from parts.tables import table_of
from psvit.latency.benchmark import finish
from psvit.latency.benchmark_config import BenchmarkConfig
from psvit.latency.benchmark_report import Report, Row
from psvit.studies.results import results
from psvit.studies.study_file import read_study


def compared(**changes: Any) -> dict[str, Any]:
    """Results as `psvit run` writes them."""
    row = {
        "name": "deit", "network": "AAAA 1d 48 /1", "macs": 15_400_000, "params": 200_000, "top1": 90.0,
        "images": 400, "validation_top1": 91.25, "error_ratio": 1.0,
    }  # fmt: skip
    config = {"recipe": {"epochs": 3, "batch_size": 64, "accumulate": 2}, "data": {"seed": 7}}
    return {"config": config, "data": "digits", "rows": [row, {**row, "name": "psvit_2d", **changes}]}


def study_results(gap: float = 5.0) -> dict[str, Any]:
    """Results of the study claims, made up: the first network of a group at 80 %, every further one `gap` above."""
    study = read_study("claims")
    kept = {}
    for group in study.groups:
        for place, network in enumerate(group.networks):
            for seed in network.seeds:
                kept[group.name, network.label, seed] = {
                    "top1": 80 + gap * (place > 0) + 0.1 * seed, "loss": 0.5, "validation_top1": 80.0, "epoch": 1,
                    "network": "AA 1d 32 /4", "macs": 5_980_000 + place, "params": 100_000, "images": 10_000,
                    "history": [[1, 80.0]], "seconds": 60.0,
                }  # fmt: skip
    shapes = {group.name: {"img_size": [28, 28], "in_chans": 1, "num_classes": 10} for group in study.groups}
    data = json.loads(json.dumps(results(study, kept, {}, shapes)))
    return {**data, "machine": {"device_name": None, "cpu": "a CPU", "jobs": 2}}


def site(folder: Path, text: str, **results: Any) -> Path:
    """A repository whose README holds `text`."""
    (folder / "docs" / "results").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    for name, data in results.items():
        (folder / "docs" / "results" / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


PAGE = "before\n<!-- results:digits -->\nstale\n<!-- /results:digits -->\nafter\n"


def test_a_table_is_written_once_and_nothing_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = site(tmp_path, PAGE, digits=compared())
    assert build.main(["--check"], root) == 1
    assert capsys.readouterr().out == "README.md: out of date: run make docs\n"
    assert (root / "README.md").read_text() == PAGE
    assert build.main([], root) == 0
    written = (root / "README.md").read_text()
    assert written.startswith("before\n<!-- results:digits -->\n| name |")
    assert written.endswith("\n<!-- /results:digits -->\nafter\n")
    assert "stale" not in written
    assert build.main(["--check"], root) == build.main([], root) == 0
    assert (root / "README.md").read_text() == written


def test_parts_of_a_missing_result_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = block("claims.figure") + block("claims.claims") + block("gone")
    root = site(tmp_path, PAGE + kept, digits=compared())
    assert build.main([], root) == 2
    told = capsys.readouterr().out.splitlines()
    made = "make it with psvit study claims --results docs/results/claims.json"
    assert told[:2] == [
        f"docs/results/claims.json is missing: {made}",
        "docs/results/gone.json is missing: no command is known that makes it",
    ]
    written = (root / "README.md").read_text()
    assert written.endswith(f"after\n{kept}")
    assert "| psvit_2d |" in written


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    data = {"digits": compared(), "claims": study_results()}

    def built(text: str) -> None:
        build.main([], site(tmp_path, text, **data))

    lacking = (
        "<!-- results:digits -->\n", "<!-- /results:digits -->\n", PAGE + PAGE[:40],
        *(PAGE.replace("results:", wrong) for wrong in ("results: ", "result:", "Results:")),
        PAGE.replace("<!-- results", "<!--results").replace("digits -->", "digits-->"),
    )  # fmt: skip
    refuses(built, [(text, r"README\.md: a marker .* lacks its other") for text in lacking], ValueError)
    parts = (
        ("claims.7-m-macs", r"results:claims\.7-m-macs: there is no such part: claims, groups, matrix, 6-m-macs"),
        ("claims.figure-9", r"README\.md: results:claims\.figure-9: there is no such figure"),
        ("digits.claims", "only studies and sharing have parts"),
    )
    refuses(built, [(block(name), says) for name, says in parts], ValueError)
    for text, says in (("{broken", "is no JSON: Expecting"), ("[1]", "holds no JSON object, but a list")):
        (tmp_path / "docs" / "results" / "mine.json").write_text(text)
        refuses(built, [("nothing", rf"docs/results/mine\.json {says}")], ValueError)
    refuses(table_of, [({"x": 1}, "comes neither from psvit run")], ValueError)


def test_a_comparison() -> None:
    table = table_of(compared(top1=95.0, validation_top1=None, error_ratio=0.5)).splitlines()
    assert table[2] == "| deit | `AAAA 1d 48 /1` | 15.40 | 0.200 | 91.25 | 90.00 ± 1.50 | 1.00 |"
    assert table[3] == "| psvit_2d | `AAAA 1d 48 /1` | 15.40 | 0.200 |  | 95.00 ± 1.09 | 0.50 |"
    assert "400 test images; 3 epochs, batch 128, seed 7" in table[-1]


def test_a_benchmark() -> None:
    rows = finish(
        [
            Row("deit", "float32", "eager", (3, 224, 224), 5_720_000, 10**9, 10**9, (1.0, 2.0, 4.0)),
            Row("ours", "float32", "eager", (3, 224, 224), 11_430_000, 10**9, 10**9, (0.5, 1.0, 2.0)),
        ],
        batch_size=16,
        peak=20.0,
    )
    machine = {"device_name": None, "cpu": "a CPU", "threads": 2, "torch": "2.9.0"}
    report = Report(BenchmarkConfig(("deit", "ours"), rounds=3), machine, {"float32": 20.0}, tuple(rows))
    steps = tuple(replace(row, step=step) for row, step in zip(rows, ("bare", "psvit"), strict=True))
    of_steps = replace(report, config=replace(report.config, train=True), rows=steps)
    assert "| ours | psvit | float32 |" in table_of(json.loads(json.dumps(of_steps.to_dict())))
    table = table_of(json.loads(json.dumps(report.to_dict()))).splitlines()
    assert table[3] == "| ours | float32 | 11.43 | 1.00 | 16 [12, 24] | 2.00 [2.00, 2.00] | 80% |"
    assert "Inference, batch 16; a CPU, 2 threads, torch 2.9.0; median" in table[-1]


def test_the_tables_of_sharing() -> None:
    case = {"mode": "eager", "part": "layer", "heads": 3, "head_dim": 64, "batch": 1}
    timed = {
        "skipped": None,
        "ms": {"AA": 1.234, "AS": 0.9, "ASS": 0.8},
        "ratio": {"AA": 1.0, "AS": 0.729, "ASS": 0.648, "ASS recomputed": 0.7},
    }
    rows = [{**case, "tokens": 49, **timed}, {**case, "tokens": 4096, "skipped": "a map takes 9 GB"}]
    rows += [{**case, "tokens": 49, "mode": "onnx", **timed}]
    ends = [{**case, "run": "AS", "slower_from": None}, {**case, "run": "ASS", "slower_from": 4096}]
    machine = {"cpu": "a CPU", "cpus": 2, "threads": 1, "torch": "2.9.0", "load_before": 3.0}
    config = {"dtype": "float32", "rounds": 3, "cpu_time": True}
    data = {"layers": rows, "crossings": ends, "machine": machine, "config": config}
    layers, modes = (table_of(data, part).splitlines() for part in ("layer", "modes"))
    assert layers[:5] == [
        "| tokens | 3 × 64, batch 1 |", "| --- | ---: |", "| 49 | 0.73 0.65 0.70 |", "| 4,096 |  |",
        "| slower from | never 4,096 |",
    ]  # fmt: skip
    assert "3 rounds in turns of CPU time. The machine did other work beside: a load of 3 on 2 cores." in layers[-1]
    assert modes[2:4] == ["| 1 | 49 | 1.23 0.9 0.8 |  | 1.23 0.9 0.8 |", "| 1 | 4,096 |  |  |  |"]
    refuses(
        lambda part: table_of(data, part), [("claims", "there is no such part: layer, attention, modes")], ValueError
    )


def test_the_tables_of_a_study() -> None:
    data = study_results()
    claims, groups, group = (table_of(data, part) for part in ("claims", "groups", "6-m-macs-4-epochs"))
    assert "| PSViT-1D over DeiT | **holds** | +5.00 [+4.77, +5.23] | 0.75 [0.74, 0.76] |" in claims
    assert f"{data['trainings']} trainings" in claims
    assert "| 6 M MACs, 4 epochs | deit | `AA 1d 32 /4` | 5.98 | 0.100 | 80.10 ± 0.25 |" in groups
    assert "|  | psvit_2d | `AA 1d 32 /4` | 5.98 | 0.100 | 85.10 ± 0.25 |" in groups
    assert "| psvit_2d | `AA 1d 32 /4` | 5.98 | 0.100 | 85.00 85.10 85.20 | 85.10 ± 0.25 | 0.75 |" in group
    assert "10,000 test images, read once for each training. ±: 95 %" in group


def test_a_figure_is_out_of_date_when_its_data_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = site(tmp_path, block("claims.figure"), claims=study_results())
    page = root / "docs" / "howto" / "x.md"
    page.parent.mkdir()
    page.write_text(block("claims.figure"))
    drawn = root / "docs" / "figures" / "claims.svg"
    assert build.main(["--check"], root) == 1
    assert build.main([], root) == 0
    assert "](docs/figures/claims.svg)" in (root / "README.md").read_text()
    assert "](../figures/claims.svg)" in page.read_text()
    text = drawn.read_text(encoding="utf-8")
    assert re.fullmatch(r"<svg.*<!-- of [0-9a-f]{16} -->\n", text, re.S)
    drawn.write_text(text.replace("<path", '<path class="another matplotlib"'), encoding="utf-8")
    assert build.main(["--check"], root) == 0  # other bytes of the same data
    site(tmp_path, (root / "README.md").read_text(), claims=study_results(gap=6))
    capsys.readouterr()
    assert build.main(["--check"], root) == 1
    assert "figures/claims.svg: out of date" in capsys.readouterr().out
