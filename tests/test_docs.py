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
from parts.makers import MADE_BY, how_to_make
from parts.pages import BLOCK, VALUE
from psvit.cli import COMMANDS
from psvit.cli import main as psvit_main
from psvit.studies.study_file import study_file

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


def test_generated_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--check"]) == 0, capsys.readouterr().out


def test_every_result_is_shown() -> None:
    assert list(build.unused(ROOT)) == []


def test_every_result_tells_what_makes_it() -> None:
    assert {path.stem for path in RESULTS} == set(MADE_BY)


def test_results_name_no_place_on_a_machine() -> None:
    places = {path.name: re.findall(r'"(?:~|/|[A-Z]:\\)[^"]*"', path.read_text(encoding="utf-8")) for path in RESULTS}
    assert not [name for name, found in places.items() if found]


MEASURED = re.compile(
    r"(?<![\w.])(?<!top-)(?:\d[\d,]*(?:\.\d+)+(?!\w)|\d[\d,]* ?(?:%|(?:k?ms|[kMG]B|seconds|minutes)\b))"
)
"""A number with decimals, a percentage, or one of a unit that is measured."""

COUNT = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|hundred"
PART = "half|third|quarter|fifth|sixth|seventh|eighth|ninth|tenth|twentieth|sixtieth|hundredth"
UNIT = "epoch|image|scene|MAC|parameter|seed|training|hour|minute|second|pixel|point|network|member|time"
NUMBER = re.compile(
    rf"(?<![\w.^])(?<!\w-)\d[\d,]*(?:\.\d+)*(?:[kMGx]|m?s|px|[kMG]B)?(?![\w^])(?: ?%)?"
    rf"|\b(?:{COUNT})[ -](?:\w+ )?(?:{UNIT})s?\b|\b(?:{PART})s? (?:of|the|its|as|that)\b"
    rf"|\b(?:twice|thrice|doubled?|doubles|(?:{COUNT}|many)fold)\b",
    re.I,
)
"""Any number by itself, a number in words before what is counted, a fraction in words."""

TELL_RESULTS = (
    "README.md", "docs/results.md", "docs/limits.md", "docs/paper_map.md", "docs/index.md", "docs/concepts.md",
    "docs/search.md", "docs/quickstart.md",
)  # fmt: skip
"""Pages in which every number comes from results, unless it is allowed here; in the others what is measured does."""

PAPER, OTHERS = "what the paper itself says", "what other projects publish"
RULE = "a rule of ours, held by a test"
DEFINED = "how a thing is defined, drawn or computed"
DEFAULT = "a default or constant of the code"
SETTING = "a setting of the script that measured it"
NAME = "a name, a year or a version"
READING = "how a figure is to be read"
ARXIV, PYTHON, ONE_EACH = "arXiv 2108.03428", "Python 3.11 or later", "how psvit run works: one training a network"
SPACES = "layers 3^11 = 177,147 genotypes instead of 4^11 = 4,194,304, and 18,067 with"
INTERVAL = "its 95 % interval"
ALLOWED: dict[str, dict[str, str]] = {
    "README.md": {ARXIV: NAME, "(ICCV 2021)": NAME, "PSViT of 2026": NAME, PYTHON: NAME, "Apache-2.0": NAME},
    "docs/architecture.md": {
        "ResNet-18's parameters (11.7 M)": OTHERS, "ResNet-50's (25.6 M)": OTHERS, "DeiT-Base's (86.6 M)": OTHERS,
        "the whole 95 % interval": READING, "plotly, 5 MB of script": OTHERS,
    },
    "docs/concepts.md": {
        "windows of 2": DEFINED, "7 rows become 4": DEFINED, "For 12 layers there are 4^11 = 4,194,304 raw": DEFINED,
        "3^11 = 177,147 valid ones, and 18,067 with": DEFINED, "for four networks": DEFINED,
        "ten layers of width 192, at 224 pixels": DEFINED, "a further head of 64 channels": DEFINED,
    },
    "docs/howto/python.md": {"MACs within 2 % of DeiT-Tiny": RULE},
    "docs/howto/run.md": {"5 ms on this machine": "an example of a budget"},
    "docs/howto/search.md": {"(2 % more is still taken for kept)": DEFAULT},
    "docs/howto/study.md": {"the whole 95 % interval": READING},
    "docs/index.md": {ARXIV: NAME, PYTHON: NAME},
    "docs/limits.md": {
        "scenes of 96 pixels": DEFAULT, "help at 224 pixels and 300 epochs": PAPER,
        "searched with one seed": "how psvit study searches: once for a group",
    },
    "docs/paper_map.md": {
        f"{ARXIV}, 2021": NAME, "ICCV 2023": NAME, "a 3-wide convolution": DEFINED,
        "windows of 2 with stride 2": DEFINED,
        f"for 12 {SPACES}": DEFINED, "heads of 64": DEFINED, "stride 16 for tiny, 8 (2D) or 12 (1D) for": DEFINED,
        "within 2 % of DeiT's MACs": RULE, "× 12 in 1D": DEFINED, INTERVAL: READING, "Up to +6.6 points": PAPER,
        "5,000 digits of MNIST": "the size of a data set",
    },
    "docs/quickstart.md": {
        PYTHON: NAME, "digits (8×8 pixels)": "the size of a data set", "within 6 M MACs": "what the command says",
        "Our run of it, one seed": ONE_EACH,
    },
    "docs/results.md": {
        "the same MACs, within 2 %": RULE, "up to a fifth of its budget": DEFAULT, "the 95 % confidence": READING,
        "one seed each, it is the standard error": ONE_EACH, "Below 1 is better": READING, "at 95 %, so of": READING,
        "A correlation near 1 says": READING, "One seed each; ± is the standard error": ONE_EACH,
        "patches of 8 pixels and ViTDet's simple pyramid: with patches of 4,": SETTING,
        "on two networks trained on": SETTING, "a variant at 224 pixels": SETTING,
    },
    "docs/search.md": {
        "4 to 8 layers for images up to 96 pixels, else 12": DEFAULT, "of the budget (0.8)": DEFAULT,
        "Up to 20,000 members": DEFAULT, "a slice four times as large": DEFAULT, "at most 2 % more than": DEFAULT,
        "(4.75 to 5 M; 4 to 8 layers,": SETTING, "8,000 images of Fashion-MNIST for 6 epochs": SETTING,
        "one or four members a step": SETTING, "With one member a step": SETTING,
        "where one seed alone reaches": DEFINED, "training images, one seed": ONE_EACH, "up to 2 % over": DEFAULT,
    },
}  # fmt: skip
"""Phrases whose numbers need not come from results, and why."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """A page without its generated parts, code, links and numbers of lists, on one line."""
    text = VALUE.sub("…", BLOCK.sub("", text))
    text = re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)|^ *\d+\. ", "", text, flags=re.S | re.M)
    return " ".join(text.split())


def loose_numbers(name: str, text: str) -> list[str]:
    """Numbers in a page's prose that are neither generated nor allowed."""
    told = prose(text)
    for phrase in ALLOWED.get(name, {}):
        told = told.replace(phrase, "…")
    return (NUMBER if name in TELL_RESULTS else MEASURED).findall(told)


def test_numbers_in_prose_come_from_results() -> None:
    loose = {
        name_of(page): found
        for page in (ROOT / "README.md", *DOCS)
        if (found := loose_numbers(name_of(page), page.read_text(encoding="utf-8")))
    }
    assert loose == {}, "take them from docs/results: <!-- value:... -->"


def test_what_is_allowed_is_a_phrase_that_the_page_holds() -> None:
    told = {name: prose((ROOT / name).read_text(encoding="utf-8")) for name in ALLOWED}
    assert [(name, phrase) for name, phrases in ALLOWED.items() for phrase in phrases if phrase not in told[name]] == []


def test_the_quickstart_is_what_make_quickstart_runs() -> None:
    made = re.findall(r"^QUICKSTART := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    (folder,) = re.findall(r"--output (\S+)", made[0])
    assert f"psvit {made[0]}\n" in page
    assert set(re.findall(r"runs/\w+", page)) == {folder}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))


def test_links_lead_somewhere() -> None:
    there = [(page, link) for page in PAGES for link in links(page) if not link.startswith(("https://", "#"))]
    assert [(page.name, link) for page, link in there if not (page.parent / link.partition("#")[0]).exists()] == []


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands() -> Iterator[list[str]]:
    """The words of every line in the pages' sh blocks, and of the commands that make results."""
    blocks = [block for page in PAGES for block in fenced(page, "sh")]
    for block in (*blocks, *(how_to_make(name).partition("make it with ")[2] for name in MADE_BY)):
        for line in block.replace("\\\n", " ").partition(", and copy")[0].splitlines():
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
    for command in ("segment", "detect", "predict"):  # predict's last: the others take it from there when imported
        monkeypatch.setattr(f"psvit.cli.{command}.find_images", lambda names: [Path(name) for name in names])
    monkeypatch.setattr("psvit.engine.hardware.keep_freed_memory", lambda: None)


@pytest.mark.usefixtures("_no_work")
def test_the_commands_of_the_pages_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(WORK) | {"show"} == set(COMMANDS), "each is stopped before it works"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    misunderstood = {}
    for words in commands():
        arguments = psvit_arguments(words)
        if arguments is not None:
            try:
                understood = psvit_main(arguments) == 0 and ("--print" in arguments or arguments[0] == "show")
            except Reached:
                understood = True
            said = capsys.readouterr().err
            if arguments[0] == "show" and "/" in arguments[1]:  # a run of the reader's
                understood = understood or "is no checkpoint folder" in said
        elif words[0] == "make":
            understood, said = bool(re.search(rf"^{words[1]}:", makefile, re.M)), "no such target"
        else:
            understood = words[0] in (".venv/bin/pre-commit", ".venv/bin/python", "python")
            understood = understood and (words[0] != "python" or (ROOT / words[1]).is_file())
            said = "a command that no test knows"
        if not understood:
            misunderstood[" ".join(words)] = said
    assert misunderstood == {}


def test_the_readme_shows_every_command() -> None:
    shown = {arguments[0] for words in commands() if (arguments := psvit_arguments(words))}
    assert shown == set(COMMANDS)


PYTHON = {page.name: "".join(fenced(page, "python")) for page in DOCS}
BACKBONES = pytest.param("backbones.md", marks=pytest.mark.slow)  # it imports transformers and smp


@pytest.mark.parametrize(
    "page",
    [
        BACKBONES if page == "backbones.md" else page
        for page, code in PYTHON.items()
        if not any(code in other for name, other in PYTHON.items() if name != page)  # told on two pages: run once
    ],
)
def test_the_pages_python_runs(page: str) -> None:
    exec(PYTHON[page], {})


def test_the_readmes_python_runs() -> None:
    names: dict[str, Any] = {}
    exec("".join(fenced(ROOT / "README.md", "python")), names)
    assert [tuple(map.shape) for map in names["maps"]] == [(1, 288, 14, 14), (1, 384, 7, 7), (1, 384, 4, 4)]


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == psvit.__version__
    assert citation["license"] == "Apache-2.0"
    assert [author["family-names"] for author in citation["references"][0]["authors"]][::8] == ["Chen", "Ouyang"]
