"""docs/build.py: results -> tables, figures and values in the pages."""

import json
import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses
from small_pages import DOCS, ROOT, block, build, value

from parts.across import values_of_all
from parts.figures import Figure, figures_of
from parts.pages import BLOCK, VALUE, Page, missing_results, render_results
from parts.runs import comparison_table
from parts.values import value_text
from psvit.latency.benchmark import Report, Row, finish
from psvit.latency.benchmark_config import BenchmarkConfig
from psvit.studies.results import results
from psvit.studies.study_file import names as study_names
from psvit.studies.study_file import read_study

# docs/build.py


def compared(**changes: Any) -> dict[str, Any]:
    """Results as `psvit run` writes them."""
    row = {
        "name": "deit", "network": "AAAA 1d 48 /1", "macs": 15_400_000, "params": 200_000, "top1": 90.0, "top5": 99.0,
        "loss": 0.3, "images": 400, "per_class": {}, "validation_top1": 91.25, "epoch": 3,
        "checkpoint": "runs/run/deit",
        "error_ratio": 1.0,
    }  # fmt: skip
    config = {"recipe": {"epochs": 3, "batch_size": 64, "accumulate": 2}, "data": {"seed": 7}}
    return {"config": config, "data": "digits", "rows": [row, {**row, "name": "psvit_2d", **changes}]}


def site(folder: Path, text: str, **results: Any) -> Path:
    (folder / "docs" / "results").mkdir(parents=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    for name, data in results.items():
        (folder / "docs" / "results" / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


PAGE = "before\n<!-- results:digits -->\nstale\n<!-- /results:digits -->\nafter\n"


def test_a_table_is_written_once_and_nothing_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = site(tmp_path, PAGE, digits=compared())
    assert build.main(["--check"], root) == 1
    assert "out of date" in capsys.readouterr().out
    assert (root / "README.md").read_text() == PAGE
    assert build.main([], root) == 0
    written = (root / "README.md").read_text()
    assert written.startswith("before\n<!-- results:digits -->\n| name |")
    assert written.endswith("\n<!-- /results:digits -->\nafter\n")
    assert "stale" not in written
    assert build.main(["--check"], root) == 0
    assert build.main([], root) == 0
    assert (root / "README.md").read_text() == written


CLAIMS_MISSING = (
    "docs/results/claims.json is missing: make it with psvit study claims --results docs/results/claims.json\n"
)


def test_a_missing_result_is_told_once_and_its_parts_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE + block("claims.figure") + block("claims.claims") + value("claims.x:.2f") + value("all.torch")
    root = site(tmp_path, text, digits=compared(), claims=study_results())
    (root / "README.md").write_text(text.replace("claims.x", "claims.hold"))
    assert build.main([], root) == 0
    made = (root / "README.md").read_text()
    (root / "docs" / "results" / "claims.json").unlink()
    capsys.readouterr()
    for arguments in (["--check"], []):
        assert build.main(arguments, root) == 2
        assert capsys.readouterr().out == CLAIMS_MISSING  # nothing is out of date by that
        assert (root / "README.md").read_text() == made


def test_what_is_out_of_date_beside_a_missing_result_is_told_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = site(tmp_path, PAGE + block("gone"), digits=compared())
    assert build.main(["--check"], root) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first == "docs/results/gone.json is missing: no command is known that makes it"
    assert second == "README.md: out of date: run make docs"
    assert build.main([], root) == 2
    assert (root / "README.md").read_text().endswith(block("gone"))
    assert "stale" not in (root / "README.md").read_text().partition("results:gone")[0]


def test_a_comparison() -> None:
    table = comparison_table(compared(top1=95.0, validation_top1=None, error_ratio=0.5)).splitlines()
    assert table[2] == "| deit | `AAAA 1d 48 /1` | 15.40 | 0.200 | 91.25 | 90.00 ± 1.50 | 1.00 |"
    assert table[3] == "| psvit_2d | `AAAA 1d 48 /1` | 15.40 | 0.200 |  | 95.00 ± 1.09 | 0.50 |"
    assert "400 test images; 3 epochs, batch 128, seed 7" in table[-1]


def test_a_benchmark() -> None:
    rows = finish(
        [
            Row("deit", "float32", "eager", (3, 224, 224), 5_720_000, 10**9, 10**9, (1.0, 2.0, 4.0)),
            Row("ours", "float32", "eager", (3, 224, 224), 11_430_000, 10**9, 10**9, (0.5, 1.0, 2.0)),
            Row("broken", "float32", "eager", error="RuntimeError: a | b"),
        ],
        batch_size=16,
        peak=20.0,
    )
    machine = {"device_name": None, "cpu": "a CPU", "threads": 2, "torch": "2.9.0"}
    report = Report(BenchmarkConfig(("deit", "ours", "broken"), rounds=3), machine, {"float32": 20.0}, tuple(rows))
    data = json.loads(json.dumps(report.to_dict()))
    table = render_results(data, "speed").splitlines()
    assert table[2] == "| deit | float32 | 5.72 | 1.00 | 8 [6, 12] | 1.00 [1.00, 1.00] | 40% |"
    assert table[3] == "| ours | float32 | 11.43 | 1.00 | 16 [12, 24] | 2.00 [2.00, 2.00] | 80% |"
    assert table[4] == "| broken | float32 |  |  | could not run: RuntimeError: a \\| b |  |  |"
    assert "Inference, batch 16 of 3×224×224; a CPU, 2 threads, torch 2.9.0; median" in table[-1]


def test_speed_beside_macs() -> None:
    row = {"genotype": "ASAS", "dtype": "float32", "macs_ratio": 1.125, "speedup": 1.25, "holds": True}
    slow = {**row, "dtype": "bfloat16", "speedup": 1.0, "holds": False}
    data = {"config": {"width": 192, "batch_size": 16, "rounds": 9}, "rows": [row, slow, {**row, "genotype": "A-A"}]}
    table = render_results(data, "speedup").splitlines()
    assert table[0] == "| genotype | MACs | float32 | bfloat16 |"
    assert table[2] == "| `ASAS` | 1.12 | 1.25 | 1.00 |"
    assert table[3] == "| `A-A` | 1.12 | 1.25 |  |"
    assert table[-1].endswith("2 of 3.")


def test_other_json_is_refused() -> None:
    with pytest.raises(ValueError, match=r"docs/results/x\.json comes neither"):
        render_results({"rows": []}, "x")


def of_page(folder: Path) -> Any:
    """Builds a page of the given text, beside results of digits and of a study, in a folder of its own each time."""
    places = (folder / str(number) for number in count())
    data = {"digits": compared(), "claims": study_results()}
    return lambda text: build.main([], site(next(places), text, **data))


def test_markers_that_lack_their_other_or_are_misspelt_are_refused(tmp_path: Path) -> None:
    lacking = (
        "<!-- results:digits -->\n", "<!-- /results:digits -->\n", PAGE + PAGE[:40],
        *(PAGE.replace("results:", wrong) for wrong in ("results: ", "result:", "Results:")),
        PAGE.replace("<!-- results", "<!--results").replace("digits -->", "digits-->"),
        PAGE.replace("results:digits -->\nstale", "results:digits --> \nstale"),
    )  # fmt: skip
    misspelt = [value("digits.rows.deit.top1:.2f").replace("value", name) for name in ("values", "Value", " value")]
    refuses(of_page(tmp_path / "a"), [(text, r"README\.md: a results marker lacks") for text in lacking], ValueError)
    refuses(of_page(tmp_path / "b"), [(text, r"README\.md: a value marker lacks") for text in misspelt], ValueError)


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    for number, (text, says) in enumerate((("{broken", "is no JSON: Expecting"), ("[1]", "holds no JSON object"))):
        for shown in (block("mine"), "nothing"):
            root = site(tmp_path / f"{number} {len(shown)}", shown)
            (root / "docs" / "results" / "mine.json").write_text(text)
            with pytest.raises(ValueError, match=f"docs/results/mine.json {says}"):
                build.main([], root)


def test_a_result_on_no_page_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = site(tmp_path, PAGE, digits=compared(), other=compared())
    build.main([], root)
    assert "docs/results/other.json is shown on no page" in capsys.readouterr().out
    assert [path.stem for path in build.unused(root)] == ["other"]


# Studies, values and figures


def study_results(name: str = "claims", gap: float = 5.0) -> dict[str, Any]:
    """Results of a study, made up: the first network of a group at 80 %, every further one `gap` points above."""
    study = read_study(name)
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


def test_pages_ask_for_what_the_studies_hold(tmp_path: Path) -> None:
    root = site(tmp_path, "", **{name: study_results(name) for name in study_names()})
    for page in (ROOT / "README.md", *DOCS):
        text = page.read_text(encoding="utf-8")
        missing = missing_results([text], root / "docs")
        assert not set(study_names()) & set(missing)
        Page(root / "docs", page.relative_to(ROOT), missing).rebuilt(text)  # refuses what the studies do not hold


def test_the_tables_of_a_study(tmp_path: Path) -> None:
    text = block("claims") + block("claims.claims") + block("claims.6-m-macs")
    results = study_results()
    root = site(tmp_path, text, claims=results)
    build.main([], root)
    whole, claims, group = (match["body"] for match in BLOCK.finditer((root / "README.md").read_text()))
    assert "**3 M MACs**" in whole
    assert claims.startswith("| claim |")
    assert f"{results['trainings']} trainings" in claims
    assert "MACs** " not in claims
    assert "| psvit_2d | `AA 1d 32 /4` | 5.98 | 0.100 | 85.00 85.10 85.20 | 85.10 ± 0.25 | 0.75 |" in group
    assert "10,000 test images, read once for each training. ±: 95 %" in group
    assert build.main(["--check"], root) == 0


def test_values_in_prose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"Errors are {value('claims.6-m-macs.psvit_2d.error_ratio:.2f')} of DeiT's.\n"
    root = site(tmp_path, text + block("claims"), claims=study_results())
    assert build.main(["--check"], root) == 1
    assert build.main([], root) == 0
    first = (root / "README.md").read_text().splitlines()[0]
    assert VALUE.sub(lambda match: match["body"], first) == "Errors are 0.75 of DeiT's."
    assert build.main(["--check"], root) == 0
    capsys.readouterr()
    (root / "README.md").write_text((root / "README.md").read_text().replace("0.75<!--", "0.57<!--"))
    assert build.main(["--check"], root) == 1
    assert "README.md: out of date" in capsys.readouterr().out


def test_values_that_follow_from_others() -> None:
    data = study_results()
    assert value_text(data, "6-m-macs.psvit_2d.macs/6-m-macs.deit.macs", ".2f") == "1.00"
    assert value_text(data, "6-m-macs.deit.seeds.count", "") == "3"
    assert value_text(data, "6-m-macs.guess", ".0f") == "10"
    assert value_text(data, "seeds", "") == "1 to 3 seeds"
    assert value_text(study_results("transfer"), "seeds", "") == "2 seeds"
    assert value_text(data, "claims.psvit-2d-over-deit-at-3-m-macs.short", "").endswith(" times the errors")
    timings = [
        {"name": file, "batch_size": batch, "speed_over": over}
        for batch in (1, 16)
        for file, over in (("torch", {}), ("float32", {"torch": [1, batch, 99]}), ("int8", {"float32": [1, 2, 3]}))
    ]
    exported = {"exports": [{"timings": timings}]}
    assert [value_text(exported, f"gains.0.float32.{end}", "") for end in ("least", "most")] == ["1", "16"]
    assert value_text(exported, "gains.0.int8.most", "") == "2"


def test_values_of_all_results() -> None:
    taken = {"file": "old.json", "machine": {"cpu": "Intel(R) Xeon(R)", "torch": "2.14.1+cu130", "cpus": 2}}
    study = study_results()
    study["groups"][0]["rows"][0]["taken_from"] = taken
    other = {"machine": {"device_name": None, "cpu": "AMD EPYC", "torch": "2.15.0", "cpus": 2}, "summary": []}
    found = values_of_all([study, other, compared()])
    assert found["processors"] == "AMD EPYC, Intel Xeon and a CPU"
    assert (found["torch"], found["cores"]) == ("2.14.1 and 2.15.0", "2")
    assert found["seeds"] == {"least": 1, "most": 3}
    assert values_of_all([])["processors"] == "not told"


def test_paths_of_values() -> None:
    data = study_results()
    assert value_text(data, "12-m-macs.searched.macs/1e6", ".2f") == "5.98"
    assert value_text(data, "groups.0.rows.0.label", "") == "deit"
    assert value_text(data, "claims.psvit-2d-over-psvit-1d.verdict", "") == "open"
    headline = "psvit-2d-made-by-hand-makes-at-most-0.76-of-deit-s-errors-the-paper-s-headline-as-a-ratio"
    found = value_text(data, f"claims.{headline}.found", "")
    assert found == "**holds**: 0.75 [0.74, 0.76] times the errors, +5.00 [+4.77, +5.23] points; seeds 3 and 3"
    assert value_text({"rows": [{"name": "a", "x": -0.125}]}, "rows.a.x", ".1%") == "−12.5 %"


def test_values_of_an_analysis() -> None:
    def layer(correlation: float | None, cosine: float, last: bool = False) -> dict[str, Any]:
        return {
            "before": None
            if correlation is None
            else {"correlation": correlation, "by_construction": correlation == 1},
            "sharing": None if correlation is None else {"loss": correlation / 10},
            "tokens_are": {"neighbour_cosine": cosine},
            "pooling": None if last else {"loss": -cosine},
        }

    layers = [layer(None, 0.5), layer(0.2, 0.75), layer(1, 0.25), layer(0.4, 0.9, last=True)]
    data = {"maps": {}, "layers": layers, "config": {"analysis": {"share_above": 0.7, "pool_above": 0.7}}}
    assert value_text(data, "neighbours.mean", ".2f") == "0.30"
    assert value_text(data, "neighbours.found", "") == "**not found here, at this scale**: 0 of 2 layers reach 0.7"
    assert value_text(data, "tokens.found", "") == "**found in part**: 1 of 3 layers reach 0.7"
    assert value_text(data, "takes.most", ".2f") == "0.04"
    assert value_text(data, "averages.least", ".2f") == "−0.75"
    data["config"]["analysis"]["pool_above"] = 0.25
    assert value_text(data, "tokens.found", "") == "**found**: 3 of 3 layers reach 0.25"


def test_values_of_a_ranking() -> None:
    supernets = [{"tau_loss_3 stages": tau} for tau in (0.2, 0.6, 0.8, 1.0)]
    data = {
        "supernets": supernets,
        "ceiling": {"3 stages": 0.7999999999},
        "members": [],
        "alone": {},
        "groups": {"3 stages": 5},
    }
    found = [value_text(data, f"tau-3-stages.{name}", "") for name in ("least", "most", "below", "most-below", "of")]
    assert found == ["0.2", "1.0", "2", "0.6", "4"]
    assert (value_text(data, "tau-3-stages.members", ""), value_text(data, "seeds", "")) == ("5", "0")


def test_values_of_backbones_that_no_table_compares() -> None:
    summary = [
        {"title": title, "ap_by_seed": values}
        for title, values in (("A", [50, 51, 52]), ("B", [40, 41, 42]), ("C, x", [41]))
    ]
    data = {
        "task": {"figures": {"ap": "AP"}},
        "summary": summary,
        "comparisons": [{"name": "A over B", "ap": {"x": 1}}],
    }
    assert value_text(data, "comparisons.a-over-b.ap.x", "") == "1"
    assert value_text(data, "comparisons.b-over-a.ap.found", "") == "**behind**: -10.00 [-12.27, -7.73]"
    assert value_text(data, "comparisons.c-x-over-b.ap.found", "").startswith("**open**: +0.00")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    values = (
        ("claims.7-m-macs.deit.mean:.2f", r"value:claims\.7-m-macs.*6-m-macs"),
        ("claims.6-m-macs.deit:.2f", "no single value"),
        ("claims.title:.2f", "Unknown format code"),
        ("claims.hold/0", r"README\.md: value:claims\.hold/0: hold cannot be divided by '0'"),
        ("claims.title/3", "title cannot be divided by '3'"),
        ("claims.hold/x", "hold cannot be divided by 'x'"),
    )
    blocks = (
        ("claims.7-m-macs", r"results:claims\.7-m-macs: the study has no such group: claims, 6-m-macs"),
        ("claims.figure-9", r"results:claims\.figure-9: there is no such figure: figure"),
    )
    refuses(of_page(tmp_path / "a"), [(value(path), says) for path, says in values], ValueError)
    refuses(of_page(tmp_path / "b"), [(block(name), says) for name, says in blocks], ValueError)


def test_a_figure_is_out_of_date_when_its_data_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = site(tmp_path, block("claims.figure"), claims=study_results())
    drawn = root / "docs" / "figures" / "claims.svg"
    assert build.main(["--check"], root) == 1
    assert build.main([], root) == 0
    assert "](docs/figures/claims.svg)" in (root / "README.md").read_text()
    text = drawn.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert re.search(r"<!-- of [0-9a-f]{16} -->\n\Z", text)
    drawn.write_text(text.replace("<path", '<path class="another matplotlib"'), encoding="utf-8")
    assert build.main(["--check"], root) == 0  # other bytes of the same data
    (root / "docs" / "results" / "claims.json").write_text(json.dumps(study_results(gap=6)))
    capsys.readouterr()
    assert build.main(["--check"], root) == 1
    assert "docs/figures/claims.svg: out of date" in capsys.readouterr().out
    drawn.unlink()
    assert build.main([], root) == 0
    assert drawn.is_file()


def test_a_figure_that_nothing_makes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = site(tmp_path, block("claims.figure") + "![old](docs/figures/gone.svg)\n", claims=study_results())
    build.main([], root)
    capsys.readouterr()
    assert build.main(["--check"], root) == 1
    assert "docs/figures/gone.svg: no result makes it" in capsys.readouterr().out
    (root / "README.md").write_text((root / "README.md").read_text().replace("![old](docs/figures/gone.svg)\n", ""))
    assert build.main(["--check"], root) == 0
    (root / "docs" / "figures" / "left.svg").write_text("<svg/>")
    assert build.main(["--check"], root) == 1
    assert "docs/figures/left.svg: no result makes it" in capsys.readouterr().out


def test_a_page_below_finds_its_figures(tmp_path: Path) -> None:
    root = site(tmp_path, "", claims=study_results())
    page = root / "docs" / "howto" / "x.md"
    page.parent.mkdir()
    page.write_text(block("claims.figure"))
    build.main([], root)
    assert "](../figures/claims.svg)" in page.read_text()


def test_a_digest_forgets_the_last_digits() -> None:
    def digest(shows: Any) -> str:
        return Figure("x", shows, "", str).digest

    assert digest({"a": [1.0000000001]}) == digest({"a": [1.0]}) != digest({"a": [1.001]})


def test_a_digest_is_of_what_draws_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Figure("x", 1, "", str).digest
    (tmp_path / "figures.py").write_text("another way to draw", encoding="utf-8")
    monkeypatch.setattr("parts.figures.DRAWING", tmp_path / "figures.py")
    assert Figure("x", 1, "", str).digest != before


def test_other_results_have_no_figures() -> None:
    assert figures_of(compared(), "digits") == {}
