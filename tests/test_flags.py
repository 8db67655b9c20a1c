"""A YAML file takes what the command line takes, and ~ is the home in any path."""

from pathlib import Path

import pytest

from psvit.cli.flags import Flags, config_from
from psvit.errors import UserError
from psvit.search.search_config import SearchConfig


def parsed(*words: str) -> SearchConfig:
    flags = Flags("search", "it", *vars(SearchConfig()).values())
    return config_from(flags.parse(words), SearchConfig())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("depth: 4", ["--depth", "4"]),
        ("depth: [4]", ["--depth", "4"]),
        ("depth: 4 5", ["--depth", "4", "5"]),
        ("budget: 2M latency=5ms", ["--budget", "2M", "latency=5ms"]),
        ("stage_widths: 16,24", ["--stage-widths", "16,24"]),
        ("img_size: 32", ["--img-size", "32"]),
        ("img_size: [32, 48]", ["--img-size", "32", "48"]),
        ("scale: 0.5 1.0\nlr: 1e-3", ["--scale", "0.5", "1.0", "--lr", "0.001"]),
    ],
)
def test_a_value_alone_is_a_list_of_one(text: str, words: list[str], file: Path) -> None:
    file.write_text(text)
    assert parsed("--config", str(file)) == parsed(*words)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("depth: four", "--depth 'four' is not a whole number"),
        ("epochs: [3]", "--epochs '[3]' is not a whole number"),
        ("scale: 0.5", "--scale (0.5,) is not a range: give two positive numbers"),
        ("detph: 3", "the config file has no setting 'detph'; did you mean --depth?"),
        ("3", "Unexpected config: 3"),
        ("a: [", "Problems parsing config"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(text: str, says: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parsed("--config", str(file))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_the_home_in_any_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(file.parent)
    monkeypatch.setenv("HOME", home)
    file.write_text("data: ~/I\noutput: ~/out")
    chosen = parsed("--config", "~/mine.yaml", "--storage", "sqlite:///~/s.db")
    assert (chosen.data.data, chosen.search.output) == (f"{home}/I", f"{home}/out")
    assert chosen.evolution.storage == f"sqlite:///{home}/s.db"
    assert parsed("--data", "~/I", "--storage", "~/journal").evolution.storage == f"{home}/journal"
    flags = Flags("predict", "it")
    for name in ("checkpoint", "--explain"):
        flags.add(name)
    flags.add("images", nargs="+")
    values = flags.parse(["~/best", "~/a.jpg", "b~.jpg", "--explain", "~/drawn"])
    assert (values.checkpoint, values.images) == (f"{home}/best", [f"{home}/a.jpg", "b~.jpg"])
    assert values.explain == f"{home}/drawn"
