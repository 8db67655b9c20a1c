"""The pages tell the truth: tables are current, numbers stand in tables, links lead somewhere, code runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_pages import DOCS, ROOT, build

import psvit
from parts.makers import MADE_BY, how_to_make
from psvit.cli import COMMANDS
from psvit.cli import main as psvit_main
from psvit.studies.study_file import study_file

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


def test_generated_parts_are_up_to_date_and_show_every_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--check"]) == 0, capsys.readouterr().out
    assert build.Pages(ROOT).unused == []
    assert {path.stem for path in RESULTS} == set(MADE_BY)


def test_results_name_no_place_on_a_machine() -> None:
    places = {path.name: re.findall(r'"(?:~|/|[A-Z]:\\)[^"]*"', path.read_text(encoding="utf-8")) for path in RESULTS}
    assert not [name for name, found in places.items() if found]


# Numbers in prose: each measured one stands in a table of its section, or of one that its paragraph links to

MEASURED = re.compile(r"(?<![\w.])(?:\d[\d,]*\.\d+(?!\w|\.\d)|\d[\d,]* ?(?:%|(?:k?ms|[kMG]B)\b))")
"""A number with decimals, a percentage, or one of a unit that is measured."""

VERDICT = re.compile(r"(\*\*(?:holds|does not hold|open|ahead|behind)[^*]*\*\*): ([-+]?[\d.]+ \[[^\]]+\])")

NOT_MEASURED = (
    "arXiv 2108.03428", "Python 3.11", "Apache-2.0", "+6.6 points", "95 %", "within 2 %", "2 % more than the limit",
    "5 ms on this machine", "up to 8 GB",
)  # fmt: skip
"""Names, the paper's numbers, definitions and defaults."""


def sections(page: Path) -> dict[str, str]:
    """The text below each heading by its anchor, and the whole page by an empty one."""
    found = {"": TEXTS[page]}
    for heading, text in re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", TEXTS[page], re.S | re.M):
        found[re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")] = text
    return found


def tables(page: Path, anchor: str) -> str:
    return "".join(match["body"] for match in build.BLOCK.finditer(sections(page)[anchor]))


def paragraphs(page: Path) -> Iterator[tuple[str, str]]:
    """Every paragraph or row of a table of a page, and the generated tables that it may quote."""
    for anchor, text in sections(page).items():
        text = text.partition("\n## ")[0] if not anchor else text  # what stands above the first heading
        told = re.sub(r"^```.*?^```", "", build.BLOCK.sub("", text), flags=re.S | re.M)
        for paragraph in re.split(r"\n\n|\n(?=[|-])", told):
            quoted = tables(page, anchor) if anchor else ""
            for target, part in re.findall(r"\]\(([^)#\s]*\.md)(?:#([\w-]*))?\)", paragraph):
                quoted += tables((page.parent / target).resolve(), part)
            yield re.sub(r"`[^`]*`|\]\([^)]*\)", "", " ".join(paragraph.split())), quoted


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda page: page.stem)
def test_a_measured_number_stands_in_the_table_that_its_sentence_names(page: Path) -> None:
    for told, quoted in paragraphs(page):
        for phrase in NOT_MEASURED:
            told = told.replace(phrase, "")
        for number in MEASURED.findall(told):
            bare = re.escape(number.removesuffix("%").strip())
            assert re.search(rf"(?<![\d.]){bare}(?!\d)", quoted), f"{number} in: {told}"
        for verdict, interval in VERDICT.findall(told):
            assert any(verdict in line and interval in line for line in quoted.splitlines()), f"{verdict} in: {told}"


# Links, commands, code


def test_links_lead_somewhere() -> None:
    for page, text in TEXTS.items():
        for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
            if not target.startswith("https:"):
                place = (page.parent / target).resolve() if target else page
                assert place.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in sections(place), f"{page.name}: {target}#{anchor}"


def fenced(page: Path, language: str) -> str:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], re.S | re.M))


def commands() -> Iterator[list[str]]:
    """The words of every line in the pages' sh blocks, and of the commands that make results."""
    made = (how_to_make(name).partition("make it with ")[2].partition(", and copy")[0] for name in MADE_BY)
    for line in "\n".join([*(fenced(page, "sh") for page in PAGES), *made]).splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def psvit_arguments(words: list[str]) -> list[str] | None:
    """What follows psvit in a line that calls it, by itself or through ``-m psvit``."""
    if words[0] != "psvit" and "-m psvit" not in " ".join(words):
        return None
    return words[words.index("psvit") + 1 :]


def test_the_quickstart_is_what_make_quickstart_runs() -> None:
    (made,) = re.findall(r"^QUICKSTART := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert f"psvit {made}\n" in TEXTS[ROOT / "docs" / "quickstart.md"]


class Reached(Exception):  # noqa: N818  not an error: the command has understood its flags
    """The command is about to work."""


DENSE = [f"psvit.tasks.dense.dense_{name}"
         for name in ("training.train_dense", "checkpoints.evaluate_dense", "checkpoints.predict_dense")]  # fmt: skip
WORK = {
    "run": ["psvit.pipeline.run.run"],
    "search": ["psvit.search.search.search"],
    "train": ["psvit.tasks.classification.classify.train"],
    "evaluate": ["psvit.export.runtime.open_classifier"],
    "predict": ["psvit.export.runtime.open_classifier"],
    "analyze": ["psvit.analysis.analyze.analyze"],
    "study": ["psvit.studies.study.run_study"],
    "benchmark": ["psvit.latency.benchmark.benchmark"],
    "detect": DENSE,
    "segment": DENSE,
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
    for command in ("dense", "predict"):  # predict's last: the other takes it from there when imported
        monkeypatch.setattr(f"psvit.cli.{command}.find_images", lambda names: [Path(name) for name in names])
    monkeypatch.setattr("psvit.cli.keep_freed_memory", lambda **_: None)


@pytest.mark.usefixtures("_no_work")
def test_the_commands_of_the_pages_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(WORK) | {"show"} == set(COMMANDS), "each is stopped before it works"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands():
        arguments = psvit_arguments(words)
        if arguments is None:
            known = words[0] in (".venv/bin/pre-commit", ".venv/bin/python")
            known |= words[0] == "make" and re.search(rf"^{words[1]}:", makefile, re.M) is not None
            known |= words[0] == "python" and (ROOT / words[1]).is_file()
            assert known, words
            continue
        try:
            understood = psvit_main(arguments) == 0 and ("--print" in arguments or arguments[0] == "show")
        except Reached:
            understood = True
        said = capsys.readouterr().err
        runs = arguments[0] == "show" and "is no checkpoint folder" in said  # of the reader's
        assert understood or runs, f"{' '.join(words)}: {said}"


def test_the_pages_show_every_command() -> None:
    assert {arguments[0] for words in commands() if (arguments := psvit_arguments(words))} == set(COMMANDS)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page.stem == "backbones"), id=page.stem)
        for page in DOCS
        if fenced(page, "python")
    ],
)
def test_the_pages_python_runs(page: Path) -> None:
    exec(fenced(page, "python"), {})


def test_the_readmes_python_runs() -> None:
    names: dict[str, Any] = {}
    exec(fenced(ROOT / "README.md", "python"), names)
    assert [tuple(map.shape) for map in names["maps"]] == [(1, 288, 14, 14), (1, 384, 7, 7), (1, 384, 4, 4)]


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (psvit.__version__, "Apache-2.0")
    assert [author["family-names"] for author in citation["references"][0]["authors"]][::8] == ["Chen", "Ouyang"]
