"""The pages tell the truth: tables are those of docs/results, links lead somewhere, commands and code run."""

import importlib.util
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import psvit
from parts.figures import Figure, figures_of
from parts.pages import BLOCK, NOT_MEASURED, VALUE, Page, render_results
from parts.runs import comparison_table
from parts.values import value_text
from psvit.cli import COMMANDS
from psvit.cli import main as psvit_main
from psvit.measure.benchmark import Report, Row, finish
from psvit.measure.settings import BenchmarkSettings
from psvit.study.plan import names as study_names
from psvit.study.plan import read_study, study_file
from psvit.study.results import results

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


def _load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load_build()


# the repository's own pages


def test_generated_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--check"]) == 0, capsys.readouterr().out


def test_every_result_is_shown() -> None:
    assert list(build.unused(ROOT)) == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_name_no_place_on_a_machine(path: Path) -> None:
    assert not re.findall(r'"(?:~|/|[A-Z]:\\)[^"]*"', path.read_text(encoding="utf-8"))


NUMBER = re.compile(r"(?<![\w.])(?<!top-)(?:\d[\d,]*(?:\.\d+)+(?!\w)|\d[\d,]* ?%)")
"""A number with decimals, or a percentage."""

PAPER, RULE, OTHERS = "published by the paper", "a rule of ours, held by a test", "published by other projects"
ALLOWED = {
    "README.md": {"2108.03428": "arXiv", "3.10": "Python", "2.0": "Apache"},
    "architecture.md": {
        "11.7": OTHERS, "25.6": OTHERS, "86.6": OTHERS, "95 %": "of the intervals",
        "73 %": "why a decision was taken, timed once by hand", "3.3": "why a decision was taken, timed once by hand",
    },
    "index.md": {"2108.03428": "arXiv", "3.10": "Python"},
    "paper_map.md": {"2108.03428": "arXiv", "2 %": RULE, "95 %": "of the intervals", "6.6": PAPER},
    "python.md": {"2 %": RULE},
    "quickstart.md": {"3.10": "Python"},
    "results.md": {"95 %": "of the intervals", "2 %": RULE},
    "search.md": {
        "0.8": "default of --least", "2 %": "SLACK of psvit/search/search.py",
        "4.75": "a setting of benchmarks/ranking.py",
    },
    "study.md": {"95 %": "of the intervals"},
}  # fmt: skip
"""Numbers that need not come from results, and why."""


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda page: page.name)
def test_numbers_in_prose_come_from_results(page: Path) -> None:
    text = VALUE.sub("", BLOCK.sub("", page.read_text(encoding="utf-8")))
    text = re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S | re.M)
    # docs/howto/search.md and docs/search.md have one name: what the one may hold the other need not
    assert set(NUMBER.findall(text)) <= set(ALLOWED.get(page.name, {})), "take it from docs/results: <!-- value:... -->"


def test_no_number_is_allowed_in_vain() -> None:
    texts = [(page.name, page.read_text(encoding="utf-8")) for page in (ROOT / "README.md", *DOCS)]
    for name, numbers in ALLOWED.items():
        for number in numbers:
            assert any(page == name and number in text for page, text in texts), f"{name} has no {number}"


def test_the_readme_is_three_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 105


def test_the_quickstart_is_what_make_quickstart_runs() -> None:
    made = re.findall(r"^QUICKSTART := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    (folder,) = re.findall(r"--output (\S+)", made[0])
    assert f"psvit {made[0]}\n" in page
    assert set(re.findall(r"runs/\w+", page)) == {folder}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands() -> Iterator[list[str]]:
    """The words of every line in the pages' sh blocks."""
    for page in PAGES:
        for block in fenced(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def psvit_arguments(words: list[str]) -> list[str] | None:
    """What follows psvit in a line that calls it, by itself or through ``-m psvit``."""
    if words[0] == "psvit":
        return words[1:]
    if "psvit" in words and words[words.index("psvit") - 1] == "-m":
        return words[words.index("psvit") + 1 :]
    return None


class Reached(Exception):  # noqa: N818  not an error: the command has understood its flags
    """The command is about to work."""


DENSE = "psvit.dense"
WORK = {
    "run": ["psvit.search.run.run"],
    "search": ["psvit.search.search.search"],
    "train": ["psvit.training.loop.train"],
    "evaluate": ["psvit.export.runtime.open_classifier"],
    "predict": ["psvit.export.runtime.open_classifier"],
    "analyze": ["psvit.study.analyze.analyze"],
    "study": ["psvit.study.study.run_study"],
    "benchmark": ["psvit.measure.benchmark.benchmark"],
    "detect": [f"{DENSE}.detection.detect.{name}" for name in ("train_detector", "evaluate_checkpoint", "detect")],
    "segment": [
        f"{DENSE}.segmentation.segment.{name}" for name in ("train_segmenter", "evaluate_checkpoint", "segment")
    ],
    "export": ["psvit.export.export.export"],
}
"""What each command calls when it has understood its arguments."""


@pytest.fixture
def _no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(study_file("claims").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def reached(*args: object, **kwargs: object) -> None:
        raise Reached

    for name in (name for names in WORK.values() for name in names):
        monkeypatch.setattr(name, reached)
    for command in ("segment", "detect", "predict"):  # predict's last: the others take it from there when imported
        monkeypatch.setattr(f"psvit.cli.{command}.find_images", lambda names: [Path(name) for name in names])
    monkeypatch.setattr("psvit.measure.machine.keep_freed_memory", lambda: None)


@pytest.mark.usefixtures("_no_work")
@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_a_command_of_the_pages_is_understood(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = psvit_arguments(words)
    if arguments is not None and arguments[0] == "show":
        code, said = psvit_main(arguments), capsys.readouterr().err
        assert code == 0 or ("/" in arguments[1] and "is no checkpoint folder" in said), said
    elif arguments is not None:
        try:
            code = psvit_main(arguments)
        except Reached:
            return
        if code == 0 and "--print" in arguments:
            return
        pytest.fail(f"psvit ended with {code}: {capsys.readouterr().err}")
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.M)
    else:
        assert words[0] in (".venv/bin/pre-commit", ".venv/bin/python"), "a command that no test knows"


def test_every_command_that_works_is_stopped_above() -> None:
    assert set(WORK) | {"show"} == set(COMMANDS)


def test_the_readme_shows_every_command() -> None:
    shown = {arguments[0] for words in commands() if (arguments := psvit_arguments(words))}
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("page", [page for page in DOCS if fenced(page, "python")], ids=lambda page: page.name)
def test_the_pages_python_runs(page: Path) -> None:
    names: dict[str, Any] = {}
    for code in fenced(page, "python"):
        exec(code, names)


@pytest.mark.parametrize("code", fenced(ROOT / "README.md", "python"))
def test_the_readmes_python_runs(code: str) -> None:
    names: dict[str, Any] = {}
    exec(code, names)
    assert [tuple(map.shape) for map in names["maps"]] == [(1, 288, 14, 14), (1, 384, 7, 7), (1, 384, 4, 4)]


def test_every_command_of_the_makefile_is_phony() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", text, re.M))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert phony is not None
    assert targets == set(phony[1].split()) >= {"quickstart", "test", "lint", "docs", "clean"}


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == psvit.__version__
    assert citation["license"] == "Apache-2.0"
    assert [author["family-names"] for author in citation["references"][0]["authors"]][::8] == ["Chen", "Ouyang"]


# docs/build.py


def compared(**changes: Any) -> dict[str, Any]:
    """Results as `psvit run` writes them."""
    row = {
        "name": "deit", "network": "AAAA 1d 48 /1", "macs": 15_400_000, "params": 200_000, "top1": 90.0, "top5": 99.0,
        "loss": 0.3, "images": 400, "per_class": {}, "holdout_top1": 91.25, "epoch": 3, "checkpoint": "runs/run/deit",
        "error_ratio": 1.0,
    }  # fmt: skip
    settings = {"recipe": {"epochs": 3, "batch_size": 64, "accumulate": 2}, "data": {"seed": 7}}
    return {"settings": settings, "data": "digits", "rows": [row, {**row, "name": "psvit_2d", **changes}]}


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


def test_what_is_not_measured_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = site(tmp_path, PAGE)
    assert build.main([], root) == 0
    assert "digits is not measured yet" in capsys.readouterr().out
    assert (root / "README.md").read_text() == PAGE.replace("stale", NOT_MEASURED)
    assert build.main(["--check"], root) == 0


def test_a_comparison() -> None:
    table = comparison_table(compared(top1=95.0, holdout_top1=None, error_ratio=0.5)).splitlines()
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
    report = Report(BenchmarkSettings(("deit", "ours", "broken"), rounds=3), machine, {"float32": 20.0}, tuple(rows))
    data = json.loads(json.dumps(report.to_dict()))
    table = render_results(data, "speed").splitlines()
    assert table[2] == "| deit | float32 | 5.72 | 1.00 | 8 [6, 12] | 1.00 [1.00, 1.00] | 40% |"
    assert table[3] == "| ours | float32 | 11.43 | 1.00 | 16 [12, 24] | 2.00 [2.00, 2.00] | 80% |"
    assert table[4] == "| broken | float32 |  |  | could not run: RuntimeError: a \\| b |  |  |"
    assert "Inference, batch 16 of 3×224×224; a CPU, 2 threads, torch 2.9.0; median" in table[-1]


def test_speed_beside_macs() -> None:
    row = {"genotype": "ASAS", "dtype": "float32", "macs_ratio": 1.125, "speedup": 1.25, "holds": True}
    slow = {**row, "dtype": "bfloat16", "speedup": 1.0, "holds": False}
    data = {"settings": {"width": 192, "batch_size": 16, "rounds": 9}, "rows": [row, slow, {**row, "genotype": "A-A"}]}
    table = render_results(data, "speedup").splitlines()
    assert table[0] == "| genotype | MACs | float32 | bfloat16 |"
    assert table[2] == "| `ASAS` | 1.12 | 1.25 | 1.00 |"
    assert table[3] == "| `A-A` | 1.12 | 1.25 |  |"
    assert table[-1].endswith("2 of 3.")


def test_other_json_is_refused() -> None:
    with pytest.raises(ValueError, match=r"docs/results/x\.json comes neither"):
        render_results({"rows": []}, "x")


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results:digits -->\n", "<!-- /results:digits -->\n", PAGE + PAGE[:40],
        *(PAGE.replace("results:", wrong) for wrong in ("results: ", "result:", "Results:")),
        PAGE.replace("<!-- results", "<!--results").replace("digits -->", "digits-->"),
        PAGE.replace("results:digits -->\nstale", "results:digits --> \nstale"),
    ],
)  # fmt: skip
def test_a_marker_without_its_other_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"README\.md: a results marker lacks its other"):
        build.main([], site(tmp_path, text))


@pytest.mark.parametrize("name", ["values", "Value", " value", "value "])
def test_a_misspelt_value_is_refused(name: str, tmp_path: Path) -> None:
    text = value("digits.rows.deit.top1:.2f").replace("value", name)
    with pytest.raises(ValueError, match=r"README\.md: a value marker lacks its other or is misspelt"):
        build.main([], site(tmp_path, text, digits=compared()))


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
                    "top1": 80 + gap * (place > 0) + 0.1 * seed, "loss": 0.5, "holdout_top1": 80.0, "epoch": 1,
                    "network": "AA 1d 32 /4", "macs": 5_980_000 + place, "params": 100_000, "images": 10_000,
                    "history": [[1, 80.0]], "seconds": 60.0,
                }  # fmt: skip
    shapes = {group.name: {"img_size": [28, 28], "in_chans": 1, "num_classes": 10} for group in study.groups}
    data = json.loads(json.dumps(results(study, kept, {}, shapes)))
    return {**data, "machine": {"device_name": None, "cpu": "a CPU", "jobs": 2}}


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda page: page.name)
def test_pages_ask_for_what_the_studies_hold(page: Path, tmp_path: Path) -> None:
    root = site(tmp_path, "", **{name: study_results(name) for name in study_names()})
    text = page.read_text(encoding="utf-8")
    made = Page(root / "docs", page.relative_to(ROOT))
    made.rebuilt(text)  # refuses a group, a claim, a figure or a value that there is not
    assert not set(study_names()) & set(made.missing)


def block(name: str, inside: str = "stale") -> str:
    return f"<!-- results:{name} -->\n{inside}\n<!-- /results:{name} -->\n"


def value(path: str, inside: str = "?") -> str:
    return f"<!-- value:{path} -->{inside}<!-- /value -->"


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
    text = f"Errors are {value('claims.6-m-macs.psvit_2d.error_ratio:.2f')} of {value('gone.x:.1f')}.\n"
    root = site(tmp_path, text + block("claims"), claims=study_results())
    assert build.main(["--check"], root) == 1
    assert build.main([], root) == 0
    first = (root / "README.md").read_text().splitlines()[0]
    assert VALUE.sub(lambda match: match["body"], first) == "Errors are 0.75 of not measured yet."
    assert build.main(["--check"], root) == 0
    capsys.readouterr()
    (root / "README.md").write_text((root / "README.md").read_text().replace("0.75<!--", "0.57<!--"))
    assert build.main(["--check"], root) == 1
    assert "README.md: out of date" in capsys.readouterr().out


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
    data = {"maps": {}, "layers": layers, "settings": {"analysis": {"share_above": 0.7, "pool_above": 0.7}}}
    assert value_text(data, "neighbours.mean", ".2f") == "0.30"
    assert value_text(data, "neighbours.found", "") == "**not found here, at this scale**: 0 of 2 layers reach 0.7"
    assert value_text(data, "tokens.found", "") == "**found in part**: 1 of 3 layers reach 0.7"
    assert value_text(data, "takes.most", ".2f") == "0.04"
    assert value_text(data, "averages.least", ".2f") == "−0.75"
    data["settings"]["analysis"]["pool_above"] = 0.25
    assert value_text(data, "tokens.found", "") == "**found**: 3 of 3 layers reach 0.25"


def test_values_of_a_ranking() -> None:
    supernets = [{"tau_loss_3 stages": tau} for tau in (0.2, 0.6, 0.8, 1.0)]
    data = {"supernets": supernets, "ceiling": {"3 stages": 0.7999999999}, "members": [], "alone": {}}
    found = [value_text(data, f"tau-3-stages.{name}", "") for name in ("least", "most", "below", "most-below", "of")]
    assert found == ["0.2", "1.0", "2", "0.6", "4"]


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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("claims.7-m-macs.deit.mean:.2f", r"value:claims\.7-m-macs.*6-m-macs"),
        ("claims.6-m-macs.deit:.2f", "no single value"),
        ("claims.title:.2f", "Unknown format code"),
        ("claims.hold/0", r"README\.md: value:claims\.hold/0: hold cannot be divided by '0'"),
        ("claims.title/3", "title cannot be divided by '3'"),
        ("claims.claims/3", "claims cannot be divided by '3'"),
        ("claims.hold/x", "hold cannot be divided by 'x'"),
    ],
)
def test_a_value_that_is_not_there_is_refused(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build.main([], site(tmp_path, value(path), claims=study_results()))


def test_a_group_or_figure_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results:claims\.7-m-macs: the study has no such group: claims, 6-m-macs"):
        build.main([], site(tmp_path / "a", block("claims.7-m-macs"), claims=study_results()))
    with pytest.raises(ValueError, match=r"results:claims\.figure-9: there is no such figure: figure"):
        build.main([], site(tmp_path / "b", block("claims.figure-9"), claims=study_results()))


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


# The site


def hook(text: str, tmp_path: Path, source: str = "page.md") -> str:
    from types import SimpleNamespace

    import hooks

    included = SimpleNamespace(is_included=lambda: True)
    files = [SimpleNamespace(src_uri=uri, inclusion=included) for uri in ("page.md", "howto/run.md")]
    page = SimpleNamespace(file=SimpleNamespace(src_path=source))
    made: str = hooks.on_page_markdown(text, page, {"docs_dir": str(tmp_path / "docs")}, files)
    return made


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[run](howto/run.md#a)", "[run](howto/run.md#a)"),
        ("[arXiv](https://arxiv.org)", "[arXiv](https://arxiv.org)"),
        ("[arch.py](../psvit/arch.py)", "`psvit/arch.py`"),
        ("[the rules](../CONTRIBUTING.md)", "the rules (`CONTRIBUTING.md`)"),
        (f"a {value('x.y:.2f', '0.57')} b", "a 0.57 b"),
        (f"a\n{block('x', '| t |')}b", "a\n\n| t |\n\nb"),
    ],
)
def test_the_site_shows_what_makes_sense_there(text: str, shown: str, tmp_path: Path) -> None:
    assert hook(text, tmp_path) == shown


def test_the_api_is_there() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name, members in re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", text, re.M):
        found = pkgutil.resolve_name(name)
        assert found.__doc__, name
        for member in members.split(", ") if members else ():
            assert getattr(found, member).__doc__, f"{name}.{member}"


def test_every_page_is_in_the_navigation() -> None:
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, str):
            found.append(node)
        for inside in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(inside)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(found) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in DOCS)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), (
            "it fetches from elsewhere"
        )
        assert "<!-- value" not in text
