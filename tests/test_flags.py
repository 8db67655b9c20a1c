"""The rules of settings, and the ways in which they are given: Python, flags, YAML files."""

from pathlib import Path

import pytest
from refusals import refuses

from psvit.cli.flags import Flags, config_from
from psvit.config import Count, Fraction, ImageSize, Positive, Range, Seed, checked
from psvit.data.data_config import Augment, DataConfig
from psvit.engine.train_config import RunConfig, Schedule
from psvit.errors import UserError
from psvit.search.search_config import SearchConfig


def parsed(*words: str) -> SearchConfig:
    flags = Flags("search", "it", *vars(SearchConfig()).values())
    return config_from(flags.parse(words), SearchConfig())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("hint", "given", "kept"),
    [
        (Count | None, None, None),
        (float, 1, 1.0),
        (tuple[int, ...], 4, (4,)),
        (tuple[int, ...], [4, 5], (4, 5)),
        (ImageSize, 32, 32),
        (ImageSize, [32, 48], (32, 48)),
        (Range, [0.5, 1], (0.5, 1.0)),
    ],
)
def test_what_fits_is_kept_as_its_type(hint: object, given: object, kept: object) -> None:
    found = checked(given, hint, "x")
    assert found == kept
    assert type(found) is type(kept)


def test_what_breaks_a_rule_is_refused() -> None:
    cases = [
        (Count, 0, "x 0 is not a whole number of at least 1"),
        (Count, True, "x True is not a whole number"),
        (int, 1.0, "x 1.0 is not a whole number"),
        (float, "1", "x '1' is not a number"),
        (float, True, "x True is not a number"),
        (Fraction, float("nan"), "x nan is not a fraction"),
        (Positive, float("inf"), "x inf is not a positive number"),
        (Range, (0.5, float("inf")), "x inf is not a number"),
        (Seed, 2**64, f"x {2**64} is not a whole number from 0 to 10.18"),
        (tuple[Count, ...], [1, 0], "x 0 is not a whole number of at least 1"),
        (ImageSize, [1, 2, 3], "x 1 2 3 is not a positive whole number, or two"),
        (Range, 0.5, "x 0.5 is not 2 values, each a number"),
        (Range, (2, 1), "x 2.0 1.0 is not a range"),
    ]
    refuses(lambda case: checked(case[1], case[0], "x"), [((hint, given), says) for hint, given, says in cases])
    refuses(lambda given: Schedule(**given), [({"epochs": 0}, "^--epochs 0"), ({"drop_path": 1}, "^--drop-path 1.0")])
    refuses(lambda given: DataConfig(**given), [({"class_folders": "x"}, "'x' is not one of outer, inner$")])
    refuses(lambda given: Augment(**given), [({"scale": (0.5, 1.5)}, "is not a range up to 1")])
    refuses(lambda given: RunConfig(**given), [({"resume": True, "overwrite": True}, "contradict each other")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("depth: 4", ["--depth", "4"]),
        ("depth: [4, 5]", ["--depth", "4", "5"]),
        ("budget: [2M, latency=5ms]", ["--budget", "2M", "latency=5ms"]),
        ("stage_widths: 16,24", ["--stage-widths", "16,24"]),
        ("img_size: 32", ["--img-size", "32"]),
        ("img_size: [32, 48]", ["--img-size", "32", "48"]),
        ("scale: [0.5, 1.0]\nlr: 1e-3", ["--scale", "0.5", "1.0", "--lr", "0.001"]),
        ("strict: true\nsandwich: false\nclip-grad: null", ["--strict", "--clip-grad", "null"]),
        ("output: --odd\ndata: 7", ["--output=--odd", "--data", "7"]),
    ],
)
def test_a_yaml_file_takes_what_the_command_line_takes(text: str, words: list[str], file: Path) -> None:
    file.write_text(text)
    assert parsed("--config", str(file)) == parsed(*words)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("depth: four", "--depth 'four' is not a whole number"),
        ("scale: 0.5", "--scale 0.5 is not 2 values"),
        ("min_lr: -1e-3", "--min-lr -0.001 is not a number of at least 0"),
        ("epochs: [1, 2]", "--epochs 1 2 is not a whole number"),
        ("strict: yeah", "--strict 'yeah' is not true or false"),
        ("scale: []", "--scale [] is not 2 values"),
        ("config: other.yaml", "--config belongs on the command line, not in a file"),
        ("detph: 3", "there is no flag --detph; did you mean --depth?"),
        ("3", "--config {file} is not a list of flags with values"),
        ("a: [", "--config {file} cannot be read: while parsing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(text: str, says: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parsed("--config", str(file))
    assert str(caught.value).startswith(says.replace("{file}", str(file)))
    assert "\n" not in str(caught.value)


def test_a_printed_config_is_read_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def show(*words: str) -> tuple[str, tuple[int, ...]]:
        flags = Flags("show", "it", Schedule())
        flags.add("network", "a name")
        flags.add("--widths", "some", tuple[int, ...])
        values = flags.parse(words)
        return values.network, values.widths

    with pytest.raises(SystemExit):
        show("AS", "--widths", "4", "8", "--print-config")
    file.write_text(capsys.readouterr().out + "network: AS")
    assert show("--config", str(file)) == ("AS", (4, 8))
    assert show("--config", str(file), "AA") == ("AA", (4, 8))
    assert show("AA", "--widths", "2", "--config", str(file)) == ("AA", (2,))


def test_the_home_in_any_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(file.parent)
    monkeypatch.setenv("HOME", home)
    file.write_text("data: ~/I\noutput: ~/out")
    chosen = parsed("--config", "~/mine.yaml", "--storage", "sqlite:///~/s.db")
    assert (chosen.data.data, chosen.search.output) == (f"{home}/I", f"{home}/out")
    assert chosen.evolution.storage == f"sqlite:///{home}/s.db"
    flags = Flags("predict", "it")
    flags.add("images", "some", tuple[str, ...])
    assert flags.parse(["~/a.jpg", "b~.jpg"]).images == (f"{home}/a.jpg", "b~.jpg")
