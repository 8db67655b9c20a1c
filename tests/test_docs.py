"""The pages tell the truth: tables are those of docs/results, links lead somewhere, commands and code run."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import psvit
from psvit.cli import COMMANDS
from psvit.cli import main as psvit_main
from psvit.measure.benchmark import Report, Row, finish
from psvit.measure.settings import BenchmarkSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
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


WORK = {
    "run": "psvit.search.run.run",
    "search": "psvit.search.search.search",
    "train": "psvit.training.loop.train",
    "evaluate": "psvit.training.evaluate.evaluate_checkpoint",
    "predict": "psvit.training.evaluate.predict",
    "benchmark": "psvit.measure.benchmark.benchmark",
}


@pytest.fixture
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*args: object, **kwargs: object) -> None:
        raise Reached

    for name in WORK.values():
        monkeypatch.setattr(name, reached)
    monkeypatch.setattr("psvit.cli.predict.find_images", lambda names: [Path(name) for name in names])
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


@pytest.mark.parametrize("code", fenced(ROOT / "README.md", "python"))
def test_the_readmes_python_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(code, names)
    assert [tuple(map.shape) for map in names["maps"]] == [(1, 288, 14, 14), (1, 384, 7, 7), (1, 384, 4, 4)]
    assert names["arch"].genotype in capsys.readouterr().out


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
    assert (root / "README.md").read_text() == PAGE.replace("stale", build.NOT_MEASURED)
    assert build.main(["--check"], root) == 0


def test_a_comparison() -> None:
    table = build.comparison_table(compared(top1=95.0, holdout_top1=None, error_ratio=0.5)).splitlines()
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
    table = build.render_results(data, "speed").splitlines()
    assert table[2] == "| deit | float32 | 5.72 | 1.00 | 8 [6, 12] | 1.00 [1.00, 1.00] | 40% |"
    assert table[3] == "| ours | float32 | 11.43 | 1.00 | 16 [12, 24] | 2.00 [2.00, 2.00] | 80% |"
    assert table[4] == "| broken | float32 |  |  | could not run: RuntimeError: a \\| b |  |  |"
    assert "Inference, batch 16 of 3×224×224; a CPU, 2 threads, torch 2.9.0; median" in table[-1]


def test_speed_beside_macs() -> None:
    row = {"genotype": "ASAS", "dtype": "float32", "macs_ratio": 1.125, "speedup": 1.25, "holds": True}
    slow = {**row, "dtype": "bfloat16", "speedup": 1.0, "holds": False}
    data = {"settings": {"width": 192, "batch_size": 16, "rounds": 9}, "rows": [row, slow, {**row, "genotype": "A-A"}]}
    table = build.render_results(data, "speedup").splitlines()
    assert table[0] == "| genotype | MACs | float32 | bfloat16 |"
    assert table[2] == "| `ASAS` | 1.12 | 1.25 | 1.00 |"
    assert table[3] == "| `A-A` | 1.12 | 1.25 |  |"
    assert table[-1].endswith("2 of 3.")


def test_other_json_is_refused() -> None:
    with pytest.raises(ValueError, match=r"docs/results/x\.json comes neither"):
        build.render_results({"rows": []}, "x")


@pytest.mark.parametrize("text", ["<!-- results:digits -->\n", "<!-- /results:digits -->\n", PAGE + PAGE[:40]])
def test_a_marker_without_its_other_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"README\.md: a results marker lacks its other"):
        build.main([], site(tmp_path, text))


def test_a_result_on_no_page_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = site(tmp_path, PAGE, digits=compared(), other=compared())
    build.main([], root)
    assert "docs/results/other.json is shown on no page" in capsys.readouterr().out
    assert [path.stem for path in build.unused(root)] == ["other"]
