"""psvit search and psvit run: the whole road, resumed after a kill, without a look at the test split."""

import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import MACHINE, Cli, read, start

from psvit import Arch, UserError, cost
from psvit.search.budget import Budget
from psvit.search.run import run
from psvit.search.search import random_member, read_arch, search, space_for, width_choices
from psvit.search.settings import RunAllSettings, SearchFolder, SearchSettings, SpaceSettings
from psvit.training.data import open_data
from psvit.training.settings import DataSettings
from psvit.training.sources import ArraySource
from psvit.variants import default_arch

SPACE = ["--depth", "2", "3", "--stages", "1", "2", "--stage-widths", "8,16", "16,24", "--head-dim", "8",
         "--patch-size", "2", "--budget", "150k", "--least", "0.3"]  # fmt: skip
FAST = ["--data", "digits", "--limit", "64", *MACHINE, "--batch-size", "16", "--epochs", "1", "--first-slice", "20",
        "--finalists", "4", "--save-every", "1"]  # fmt: skip
SEARCH = ["search", *SPACE, *FAST]
RUN = ["run", *SPACE, *FAST, "--models", "deit", "random", "searched"]

FRONT = ("front.json", "front.csv", "arch.json")
"""The same bytes whenever a search is done again."""


def front(folder: Path) -> dict[str, Any]:
    """What a search found, without the flags that differ when it is resumed."""
    found = {name: (folder / name).read_bytes() for name in FRONT[1:]}
    whole = read(folder / "front.json")
    for name in ("output", "resume", "overwrite"):
        del whole["settings"]["search"][name]
    return {**found, "front.json": whole}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "run"
    process = start(*SEARCH, "--output", folder)
    assert process.wait() == 0, process.communicate()[1]
    return folder


def test_what_a_search_leaves(uninterrupted: Path) -> None:
    data = read(uninterrupted / "front.json")
    arch = read_arch(uninterrupted)
    assert data["budget"] == {"macs": 150_000.0}
    assert data["chosen"]["genotype"] == arch.genotype
    assert data["settings"]["data"]["seed"] == 0
    assert data["versions"]["torch"]
    members = (uninterrupted / "front.csv").read_text().splitlines()
    assert len(members) == data["members"] + 1
    losses = [row["loss"] for row in data["front"]]
    assert losses == sorted(losses, reverse=True), "dearer networks of the front are better"
    assert all(0.3 * 150_000 <= row["macs"] <= 150_000 for row in data["front"])
    assert data["chosen"]["loss"] == min(losses)
    assert data["chosen"]["macs"] == cost.macs(arch, 8, 1, 10)
    for name in ("journal.jsonl", "front.html", "settings.json", "supernet/supernet.safetensors"):
        assert (uninterrupted / name).stat().st_size, name


def test_the_same_seed_finds_the_same(cli: Cli, uninterrupted: Path, tmp_path: Path) -> None:
    cli.ok(*SEARCH, "--output", tmp_path / "again")
    assert front(tmp_path / "again") == front(uninterrupted)
    journals = [folder / "journal.jsonl" for folder in (uninterrupted, tmp_path / "again")]
    assert journals[0].read_bytes() == journals[1].read_bytes()


def test_a_search_killed_again_and_again_finds_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    folder, rng, kills = tmp_path / "killed", random.Random(0), 0
    for attempt in range(40):
        resume = ["--resume"] if (folder / "settings.json").exists() else []
        process = start(*SEARCH, "--output", folder, *resume)
        deadline = time.monotonic() + (60 if attempt == 39 else 3 + 5 * rng.random())
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert front(folder) == front(uninterrupted)
    assert kills, "it was never killed"


def test_a_journal_cut_off_in_mid_line_is_mended(cli: Cli, uninterrupted: Path, tmp_path: Path) -> None:
    cli.ok(*SEARCH, "--output", tmp_path)
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) // 2])
    out = cli.ok(*SEARCH, "--output", tmp_path, "--resume")
    assert "ends in mid-line: the last line is dropped" in out
    assert front(tmp_path) == front(uninterrupted)
    assert sorted(journal.read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize("command", [SEARCH, RUN])
def test_the_test_split_is_not_read_by_the_search(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    """Its images and labels raise; `psvit run` may read them once the search is over."""
    over: list[bool] = []

    class Forbidden(ArraySource):
        def image(self, index: int) -> Any:
            assert over, "the search reads an image of the test split"
            return super().image(index)

        def labels(self) -> Any:
            assert over, "the search reads the labels of the test split"
            return super().labels()

    def opened(settings: DataSettings) -> Any:
        data = open_data(settings)
        test: Any = data.test
        test.__class__ = Forbidden
        return data

    def training(*args: Any, **kwargs: Any) -> Any:
        over.append(True)
        return compare(*args, **kwargs)

    from psvit.training.compare import compare

    for module in ("search.search", "search.run", "training.loop", "training.evaluate"):
        monkeypatch.setattr(f"psvit.{module}.open_data", opened)
    monkeypatch.setattr("psvit.search.run.compare", training)
    cli.ok(*command, "--output", tmp_path)
    assert bool(over) == (command[0] == "run")


def test_the_whole_road(cli: Cli, tmp_path: Path) -> None:
    out = cli.ok(*RUN, "psvit_2d", "--output", tmp_path / "run", "--results", tmp_path / "results.json")
    rows = {row["name"]: row for row in read(tmp_path / "results.json")["rows"]}
    assert list(rows) == ["deit", "random", "searched", "psvit_2d"]
    arch = read_arch(tmp_path / "run" / "search")
    assert rows["searched"]["network"] == str(arch)
    macs = cost.macs(arch, 8, 1, 10)
    assert rows["searched"]["macs"] == macs
    for name in ("deit", "psvit_2d"):
        assert rows[name]["macs"] == pytest.approx(macs, rel=0.02)
    assert rows["random"]["macs"] <= 150_000
    assert all(0 <= row["top1"] <= 100 for row in rows.values())
    assert "next      psvit predict" in out
    assert "chosen" in cli.ok("show", tmp_path / "run")
    assert arch.genotype in cli.ok("show", tmp_path / "run" / "search" / "arch.json")
    again = cli.ok(*RUN, "psvit_2d", "--output", tmp_path / "run", "--resume")
    assert "epoch" not in again.replace("best      epoch", "")


def test_a_run_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    assert start(*RUN, "--output", tmp_path / "whole").wait() == 0
    folder, rng, kills = tmp_path / "killed", random.Random(1), 0
    while True:
        resume = ["--resume"] if (folder / "search" / "settings.json").exists() else []
        process = start(*RUN, "--output", folder, *resume)
        deadline = time.monotonic() + (60 if kills == 8 else 4 + 5 * rng.random())
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    rows = [
        [{k: v for k, v in row.items() if k != "checkpoint"} for row in read(tmp_path / name / "results.json")["rows"]]
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert front(folder / "search") == front(tmp_path / "whole" / "search")
    assert kills, "it was never killed"


def test_the_searched_network_inherits(cli: Cli, tmp_path: Path) -> None:
    out = cli.ok(*RUN, "--inherit", "--models", "searched", "--output", tmp_path)
    arch = read_arch(tmp_path / "search")
    config = read(tmp_path / "search" / "inherited" / "config.json")
    assert config["psvit"]["arch"] == arch.to_dict()
    assert str(tmp_path / "search" / "inherited") in (tmp_path / "searched" / "settings.json").read_text()
    assert "chosen" in out


def test_ctrl_c_while_scoring(uninterrupted: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.ok(*SEARCH, "--output", tmp_path)
    (tmp_path / "journal.jsonl").unlink()
    monkeypatch.setattr("psvit.training.machine.Interrupt.requested", lambda self, accelerator: True)
    assert "go on with --resume" in cli.refused(*SEARCH, "--output", tmp_path, "--resume")
    monkeypatch.undo()
    cli.ok(*SEARCH, "--output", tmp_path, "--resume")
    assert front(tmp_path) == front(uninterrupted)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--budget", "1k"], "no network of the space is within 1 k MACs: the cheapest, AA with widths 8, costs"),
        (["--budget", "100k", "params=1k"], "the nearest, AA with widths 8, costs"),
        (["--budget", "100k", "0.5x"], "limits macs twice"),
        (["--budget", "fast"], "is not a positive limit"),
        (["--holdout", "0"], "the hold-out has 0 images for 10 classes"),
        (["--depth", "1", "--stages", "2"], "no network of 1 layers has 2 stages"),
        (["--stage-widths", "8", "--stages", "2"], "1 choices of widths for 2 stages"),
        (["--stage-widths", "8;9"], "--stage-widths '8;9' is not a list"),
        (["--depth", "1", "2", "3"], "is not one number or two"),
        (["--least", "1"], "--least 1.0 is not a part of the budget"),
        (["--method", "luck"], "--method"),
        (["--draws", "0"], "--draws 0"),
        (["--budget", "latency=5"], "such as latency=5ms"),
        (["--data", "no-such-folder"], "is neither a folder nor a known set"),
    ],
)
def test_bad_input(cli: Cli, tmp_path: Path, flags: list[str], reason: str) -> None:
    assert reason in cli.refused(*SEARCH, "--output", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists(), "nothing is written before the settings are known to be good"


def test_a_folder_of_another_space(cli: Cli, uninterrupted: Path, tmp_path: Path) -> None:
    before = front(uninterrupted)
    assert "already holds a run" in cli.refused(*SEARCH, "--output", uninterrupted)
    other = [*SEARCH, "--output", uninterrupted, "--resume"]
    assert "was trained with --max-share 2, not 1" in cli.refused(*other, "--max-share", "1")
    assert "was trained with --budget 150k, not 140k" in cli.refused(*other, "--budget", "140k")
    assert "holds no run to resume" in cli.refused(*SEARCH, "--output", tmp_path / "none", "--resume")
    (tmp_path / "file").touch()
    assert "is a file" in cli.refused(*SEARCH, "--output", tmp_path / "file")
    assert front(uninterrupted) == before


def test_a_storage_that_cannot_be_reached(cli: Cli, tmp_path: Path) -> None:
    flags = ["--method", "evolution", "--storage", f"sqlite:///{tmp_path}/no/such/folder/study.db"]
    assert "no/such/folder" in cli.refused(*SEARCH, "--output", tmp_path / "out", *flags)


def test_run_settings_that_contradict_each_other(cli: Cli, tmp_path: Path) -> None:
    assert "are the same limit" in cli.refused(*RUN, "--output", tmp_path, "--macs", "1M")
    assert "add searched to --models" in cli.refused(*RUN, "--output", tmp_path, "--inherit", "--models", "deit")


def test_evolution_by_the_command(cli: Cli, tmp_path: Path) -> None:
    flags = ["--method", "evolution", "--population", "4", "--evaluations", "10"]
    cli.ok(*SEARCH, *flags, "--output", tmp_path / "a")
    cli.ok(*SEARCH, *flags, "--output", tmp_path / "b")
    assert read(tmp_path / "a" / "front.json")["members"] == 10
    assert front(tmp_path / "a") == front(tmp_path / "b")


def settings(*budget: str, data: str = "digits", **space: Any) -> SearchSettings:
    return SearchSettings(SearchFolder(budget), SpaceSettings(**space), data=DataSettings(data))


def test_the_default_space_lies_around_the_default_network() -> None:
    data = open_data(DataSettings("digits"))
    space, budget = space_for(settings(), data)
    default = default_arch(data.img_size)
    assert budget.macs == cost.macs(default, data.img_size, 1, 10)
    assert default.genotype in {arch.genotype for arch in space.feasible(budget, least=0.5)}
    half, _ = space_for(settings("0.5x"), data)
    assert max(half.widths[0]) < max(space.widths[0]) or half.widths[0] == space.widths[0]
    assert space_for(settings("0.5x"), data)[1].macs == 0.5 * cost.macs(default.plain(), data.img_size, 1, 10)
    one, _ = space_for(settings(pooling="1d"), data)
    assert one.like.pooling == "1d"
    assert one.like.class_token


def test_width_choices() -> None:
    like = Arch("A-A-A", widths=(32, 64, 96), head_dim=16, patch_size=4)
    assert width_choices(like, 3, 1, Budget(), (28, 1, 10)) == ((32,), (64,), (96,))
    assert width_choices(like, 2, 3, Budget(), (28, 1, 10)) == ((16, 32, 48), (32, 64, 128))


def test_a_random_member_uses_the_budget() -> None:
    data = open_data(DataSettings("digits"))
    space, budget = space_for(settings(depth=(4, 5)), data)
    region = space.feasible(budget, least=0.5)
    drawn = {random_member(region, seed) for seed in range(20)}
    assert len(drawn) > 10
    assert all(region.costs(arch)[0] > 0.9 * (budget.macs or 0) for arch in drawn)
    assert random_member(region, 3) == random_member(region, 3)


def test_an_unfinished_search_has_no_arch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished search"):
        read_arch(tmp_path)


def test_the_functions_are_the_commands(tmp_path: Path, uninterrupted: Path) -> None:
    """From Python: the settings that a command wrote give the command's result."""
    own = read(uninterrupted / "settings.json")["settings"]
    assert own["space"]["stage_widths"] == ["8,16", "16,24"]
    assert callable(search)
    assert callable(run)
    assert replace(RunAllSettings()).search_settings().search.output.endswith("search")
    assert json.dumps(own)
