"""The pages tell the truth: links lead somewhere, numbers have results, commands and code run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_pages import DOCS, ROOT, build

import psvit
from parts.pages import BLOCK, VALUE
from psvit.cli import COMMANDS
from psvit.cli import main as psvit_main
from psvit.study.study_file import study_file

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


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
