"""psvit search and psvit run: the whole road, resumed after a kill, without a look at the test split."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from csv import DictReader
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from tiny import MACHINE, SPACE_FLAGS, TRAIN, Cli, read, start, torchrun

from psvit import Arch, cost
from psvit.arch.variants import default_arch
from psvit.cli import main
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.data.sources import ArraySource
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.parts import Family, part_calls
from psvit.latency.table import LatencyTable
from psvit.search.build_space import build_space, width_choices
from psvit.search.feasible_set import FeasibleSet
from psvit.search.journal import Journal
from psvit.search.search import Found, random_member
from psvit.search.search_config import SearchConfig, SearchRunConfig, SpaceConfig
from psvit.search.search_folder import read_arch

ROOT = Path(__file__).parent.parent

FAST = ["--data", "digits", "--limit", "64", *MACHINE, "--batch-size", "16", "--epochs", "1", "--first-slice", "20",
        "--finalists", "4", "--save-every", "1", "--ties", "macs", "--insist"]  # fmt: skip
SEARCH = ["search", *SPACE_FLAGS, *FAST]
RUN = ["run", *SPACE_FLAGS, *FAST, "--models", "deit", "random", "searched"]


def front(folder: Path) -> dict[str, Any]:
    """What a search found, without the flags that differ when it is resumed."""
    same = {name: (folder / name).read_bytes() for name in ("front.csv", "arch.json")}
    return {**same, "front.json": read(folder / "front.json")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search, not to be changed."""
    folder = tmp_path_factory.mktemp("search") / "run"
    assert main([*SEARCH, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(uninterrupted: Path, tmp_path: Path) -> Path:
    """A finished search, to be changed."""
    return Path(copytree(uninterrupted, tmp_path / "copied"))


def test_what_a_search_leaves(uninterrupted: Path) -> None:
    data = read(uninterrupted / "front.json")
    arch = read_arch(uninterrupted)
    assert data["budget"] == {"macs": 400_000.0}
    assert data["chosen"]["genotype"] == arch.genotype
    assert data["config"]["data"]["seed"] == 0
    assert data["versions"]["torch"]
    members = (uninterrupted / "front.csv").read_text().splitlines()
    assert len(members) == data["members"] + 1
    losses = [row["loss"] for row in data["front"]]
    assert losses == sorted(losses, reverse=True), "larger networks of the front are better"
    assert all(200_000 <= row["macs"] <= 400_000 for row in data["front"])
    ties = data["choice"]["ties"]
    assert ties[0]["loss"] == min(losses)
    assert data["chosen"]["macs"] == cost.macs(arch, 8, 1, 10) == min(tie["macs"] for tie in ties)
    for name in ("journal.jsonl", "report.html", "run_config.json", "supernet/supernet.safetensors"):
        assert (uninterrupted / name).stat().st_size, name


@pytest.mark.slow
@pytest.mark.parametrize("command", [SEARCH, RUN, [*SEARCH, "--method", "evolution", "--evaluations", "8"]])
def test_killed_again_and_again_it_ends_the_same(command: list[str]) -> None:
    """SIGKILL at random moments; the front, the chosen network, the results and all weights are equal."""
    words = [sys.executable, "benchmarks/kills.py", "--kills", "3", "--", *command]
    process = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout)
    assert told["kills"] == 3
    assert {"front.json", "search/front.json"} & set(told["compared"])
    assert told["differing"] == []


@pytest.mark.parametrize("command", [SEARCH, [*RUN[:-3], "searched"]])
def test_the_test_split_is_not_read_by_the_search(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    """Its images and labels raise; `psvit run` may read them once the search is over."""
    over: list[bool] = []

    class Forbidden(ArraySource):
        def image(self, index: int) -> Any:
            assert over, "the search reads an image of the test split"
            return super().image(index)

        def arrays(self, indices: Any) -> Any:
            assert over, "the search reads images of the test split"
            return super().arrays(indices)

        def labels(self) -> Any:
            assert over, "the search reads the labels of the test split"
            return super().labels()

    def opened(config: DataConfig, *kept: Any) -> Any:
        data = open_data(config, *kept)
        test: Any = data.test
        test.__class__ = Forbidden
        return data

    def training(*args: Any, **kwargs: Any) -> Any:
        over.append(True)
        return compare(*args, **kwargs)

    from psvit.pipeline.compare import compare

    for module in ("search.search", "pipeline.run", "tasks.classification.classify", "tasks.classification.evaluate"):
        monkeypatch.setattr(f"psvit.{module}.open_data", opened)
    monkeypatch.setattr("psvit.pipeline.run.compare", training)
    cli.ok(*command, "--output", tmp_path)
    assert bool(over) == (command[0] == "run")


def test_the_whole_road(cli: Cli, tmp_path: Path) -> None:
    words = [*RUN, "psvit_2d", "--inherit", "--output", tmp_path / "run", "--results", tmp_path / "results.json"]
    out = cli.ok(*words)
    rows = {row["name"]: row for row in read(tmp_path / "results.json")["rows"]}
    assert list(rows) == ["deit", "random", "searched", "psvit_2d"]
    arch = read_arch(tmp_path / "run" / "search")
    inherited = tmp_path / "run" / "search" / "inherited"
    assert read(inherited / "config.json")["psvit"]["arch"] == arch.to_dict()
    assert str(inherited) in (tmp_path / "run" / "searched" / "run_config.json").read_text()
    assert rows["searched"]["network"] == str(arch)
    macs = cost.macs(arch, 8, 1, 10)
    assert rows["deit"]["network"].split()[0] == "A" * arch.depth
    assert rows["searched"]["macs"] == macs
    for name in ("deit", "psvit_2d"):
        assert rows[name]["macs"] == pytest.approx(macs, rel=0.02)
    assert rows["random"]["macs"] <= 400_000
    assert all(0 <= row["top1"] <= 100 for row in rows.values())
    assert "next      psvit predict" in out
    assert "chosen" in cli.ok("show", tmp_path / "run")
    assert arch.genotype in cli.ok("show", tmp_path / "run" / "search" / "arch.json")
    assert "epoch   1:" not in cli.ok(*words, "--resume"), "nothing is trained again"


def test_ctrl_c_while_scoring(uninterrupted: Path, copied: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "journal.jsonl").unlink()
    (copied / "front.json").unlink()
    monkeypatch.setattr("psvit.engine.interrupts.Interrupt.requested", lambda self, accelerator: True)
    assert "go on with --resume" in cli.refused(*SEARCH, "--output", copied, "--resume")
    monkeypatch.undo()
    cli.ok(*SEARCH, "--output", copied, "--resume")
    assert front(copied) == front(uninterrupted)


def test_a_network_that_cannot_be_as_cheap_is_left_out(cli: Cli, tmp_path: Path) -> None:
    tiny = ["--budget", "40k", "--stage-widths", "8", "8,12"]
    out = cli.ok(*RUN, *tiny, "--output", tmp_path, "--models", "deit12", "resnet18", "searched")
    assert "left out  resnet18: resnet18 comes no closer to" in out
    assert "left out  deit12: no width of AAAAAAAAAAAA with head_dim 4 costs" in out
    assert [row["name"] for row in read(tmp_path / "results.json")["rows"]] == ["searched"]


def test_bad_input(cli: Cli, tmp_path: Path) -> None:
    for flags, reason in (
        (["--budget", "1k"], "no network of the space is within 1 k MACs: the cheapest, AS with widths 16, costs"),
        (["--validation", "0"], "the validation split has 0 images for 10 classes"),
        (["--least", "1"], "--least 1.0 is not a fraction"),
        (["--method", "luck"], "--method"),
        (["--data", "no-such-folder"], "is neither a folder nor a known set"),
    ):
        assert reason in cli.refused(*SEARCH, "--output", tmp_path / "out", *flags)
        assert not (tmp_path / "out").exists(), "nothing is written before the settings are known to be good"
    assert "are the same limit" in cli.refused(*RUN, "--output", tmp_path, "--macs", "1M")
    assert "add searched to --models" in cli.refused(*RUN, "--output", tmp_path, "--models", "deit")
    only = ["run", *FAST, "--models", "deit", "--output", tmp_path]
    assert "--inherit is about the searched" in cli.refused(*only, "--inherit")


def test_nothing_of_the_users_is_lost(cli: Cli, uninterrupted: Path, copied: Path, tmp_path: Path) -> None:
    kept = [copied / name for name in ("journal_notes.jsonl", "evolution.png", "notes.txt")]
    for path in kept:
        path.write_text("mine")
    cli.ok(*SEARCH, "--output", copied, "--overwrite")  # the same seed: the same again
    assert all(path.read_text() == "mine" for path in kept)
    before = front(uninterrupted)
    assert front(copied) == before
    for name in ("trained/log.jsonl", "described/arch.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    (tmp_path / "file").touch()
    for words, reason in (
        ([*TRAIN, "--output", uninterrupted], "already holds a run"),
        ([*SEARCH, "--output", uninterrupted], "already holds a run"),
        ([*SEARCH, "--output", uninterrupted, "--resume", "--max-share", "1"], "trained with --max-share 2, not 1"),
        ([*SEARCH, "--output", tmp_path / "trained", "--overwrite"], "holds the training of a network"),
        ([*SEARCH, "--output", tmp_path / "described"], "already holds a run"),
        ([*SEARCH, "--output", tmp_path / "file"], "is a file"),
    ):
        assert reason in cli.refused(*words)
    assert front(uninterrupted) == before


@pytest.mark.slow
def test_two_processes_find_what_one_finds(uninterrupted: Path, tmp_path: Path) -> None:
    """Half the batch each, the same global batch: the same weights but for rounding, hence nearly the same losses."""
    halved = [*SEARCH, "--batch-size", "8", "--output", tmp_path]
    process = start("-m", "psvit", *halved, launcher=torchrun())
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("chosen    ") == 1
    one, two = read(uninterrupted / "front.json"), read(tmp_path / "front.json")
    assert two["members"] == one["members"]
    losses = []
    for folder in (uninterrupted, tmp_path):
        with (folder / "front.csv").open(encoding="utf-8", newline="") as file:  # equal losses: in any order
            rows = list(DictReader(file))
        losses.append({(row["genotype"], row["widths"], row["macs"]): float(row["loss"]) for row in rows})
    assert losses[0].keys() == losses[1].keys()
    assert max(abs(losses[0][key] - losses[1][key]) for key in losses[0]) < 1e-3
    journals = [Journal(tmp_path / name, None).scores for name in ("journal.jsonl", "journal.1.jsonl")]
    assert all(journals), "both scored"
    assert not set(journals[0]) & set(journals[1]), "each its own"


def table_of(seconds: float) -> Callable[..., LatencyTable]:
    """What makes a latency table in which every part takes as long."""

    def table(family: Family, *rest: object) -> LatencyTable:
        return LatencyTable(
            {str(name): seconds for name, _ in part_calls(family, LatencyConfig(), torch.device("cpu"))}
        )

    return table


def test_a_budget_of_latency(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured for the choice is kept, and measured again only where the choice is gone."""
    seconds = [0.002]
    monkeypatch.setattr("psvit.search.search.member_seconds", lambda archs, *_: seconds * len(archs))
    monkeypatch.setattr("psvit.search.measured.open_table", table_of(1e-4))
    flags = [*SEARCH, "--budget", "latency=2ms", "--output", tmp_path]
    cli.ok(*flags)
    before = front(tmp_path)
    assert before["front.json"]["measured_ms"] == 2.0
    assert "is finished" in cli.ok(*flags, "--resume")
    seconds[0] = 0.02
    (tmp_path / "front.json").unlink()
    cli.ok(*flags, "--resume")
    assert front(tmp_path) == before
    for name in ("front.json", "choice.json"):
        (tmp_path / name).unlink()
    assert "best networks keeps 2 ms when measured" in cli.refused(*flags, "--resume")


def test_a_default_that_is_too_slow_is_measured_once(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pilot takes it, it does not keep the limit, the search goes on: also when resumed on a faster machine."""
    seconds = [0.02, 0.02]  # a first try, and the default; all others are fast

    def measure(archs: Sequence[Arch], *_: object) -> list[float]:
        return [seconds.pop() if seconds else 1e-3 for _ in archs]

    monkeypatch.setattr("psvit.search.pilot.NEEDED", 1e9)
    monkeypatch.setattr("psvit.search.search.member_seconds", measure)
    monkeypatch.setattr("psvit.search.measured.open_table", table_of(1e-4))
    flags = [*(word for word in SEARCH if word != "--insist"), "--budget", "latency=2ms", "--output", tmp_path]
    assert "does not keep the limit when it is measured: the search goes on" in cli.ok(*flags)
    before = front(tmp_path)
    (tmp_path / "front.json").unlink()
    cli.ok(*flags, "--resume")
    assert front(tmp_path) == before


def test_a_search_within_a_latency_is_resumed_with_what_it_measured(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is four times slower when it resumes; widths and table are those of the beginning."""

    def machine(slower: float) -> None:
        for module in ("build_space", "search"):
            monkeypatch.setattr(
                f"psvit.search.{module}.member_seconds", lambda archs, *_: [1e-3 * slower for _ in archs]
            )
        monkeypatch.setattr("psvit.search.measured.open_table", table_of(1e-4 * slower))

    machine(1.0)
    flags = [word for word in SEARCH if word not in ("--stage-widths", "16,24", "24,32,48")]
    flags += ["--budget", "latency=1ms", "--output", tmp_path]
    cli.ok(*flags)
    before = front(tmp_path)
    for name in ("front.json", "arch.json", "journal.jsonl"):
        (tmp_path / name).unlink()
    machine(4.0)
    cli.ok(*flags, "--resume")
    assert front(tmp_path) == before


def config(*budget: str, data: str = "digits", **space: Any) -> SearchConfig:
    return SearchConfig(SearchRunConfig(budget=budget), SpaceConfig(**space), data=DataConfig(data))


def test_the_default_space_lies_around_the_default_network() -> None:
    data = open_data(DataConfig("digits"))
    space, budget = build_space(config(), data)
    default = default_arch(data.img_size)
    assert budget.macs == cost.macs(default, data.img_size, 1, 10)
    assert default.genotype in {arch.genotype for arch in FeasibleSet(space, budget, least=0.5)}
    half, _ = build_space(config("0.5x"), data)
    assert max(half.widths[0]) < max(space.widths[0]) or half.widths[0] == space.widths[0]
    assert build_space(config("0.5x"), data)[1].macs == 0.5 * cost.macs(default.plain(), data.img_size, 1, 10)
    one, _ = build_space(config(pooling="1d"), data)
    assert one.like.pooling == "1d"
    assert one.like.class_token
    for limit in ("params=100k", "30M"):
        space, limits = build_space(config(limit), data)
        assert FeasibleSet(space, limits, least=0.8).count(at_most=100) == 100, limit
    like = Arch("A-A-A", widths=(32, 64, 96), head_dim=16, patch_size=4)
    assert width_choices(like, 3, 1) == ((32,), (64,), (96,))
    assert width_choices(like, 2, 3) == ((16, 32, 48), (32, 64, 128))


def test_a_random_member_is_as_dear_as_the_searched_one() -> None:
    data = open_data(DataConfig("digits"))
    space, budget = build_space(config(depth=(4, 5)), data)
    feasible = FeasibleSet(space, budget, least=0.5)
    found = Found(feasible.nearest(), feasible, data, Path())
    drawn = {random_member(found, 9e5, seed) for seed in range(20)}
    assert len(drawn) > 10
    assert all(0.95 * 9e5 < feasible.costs(arch)[0] < 1.03 * 9e5 for arch in drawn)
    assert random_member(found, 9e5, 3) == random_member(found, 9e5, 3)
    assert random_member(found, 1.0, 3) in feasible, "none as cheap: any member"
