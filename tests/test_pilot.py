"""The pilot: spread, noise and gain of known truths, and what a search does when it cannot pay."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from members import SPACE
from numpy.typing import NDArray
from tiny import RUN, Cli, read

from psvit import cost
from psvit.arch.variants import default_arch
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.search.budget import Budget
from psvit.search.build_space import build_space, default_member
from psvit.search.feasible_set import FeasibleSet
from psvit.search.journal import Name, Score
from psvit.search.pilot import Pilot, judge
from psvit.search.search_config import SearchConfig, SpaceConfig
from psvit.search.space import Space

ASKED = RUN[1 : RUN.index("--insist")]


def under_two_seeds(true: NDArray[np.float64], noise: float, images: int = 400) -> list[NDArray[np.float64]]:
    """Losses of networks with these true losses: a deviation for each seed, and luck of each network on each image."""
    rng = np.random.default_rng(0)
    luck = rng.normal(size=images) + rng.normal(size=(len(true), images)) * 0.2
    return [luck + (true + noise * rng.normal(size=len(true)))[:, None] for _ in range(2)]


def test_spread_and_noise_are_those_that_were_put_in() -> None:
    true = np.random.default_rng(1).normal(size=2000) * 0.05
    spread, noise, _ = judge(*under_two_seeds(true, 0.1))
    assert spread == pytest.approx(0.05, rel=0.1)
    assert noise == pytest.approx(0.1, rel=0.05)
    spread, noise, gain = judge(*under_two_seeds(np.zeros(2000), 0.1))
    assert spread < 0.02
    assert noise == pytest.approx(0.1, rel=0.05)
    assert abs(gain) < 0.3, "a mean of four, two of them independent: the luckiest of 2,000 would gain 0.35"


def test_the_luckiest_gains_nothing() -> None:
    """Over many spaces without a difference the mean gain is nothing."""
    rng = np.random.default_rng(2)
    gains = [judge(*rng.normal(size=(2, 30, 8)))[2] for _ in range(400)]
    assert abs(np.mean(gains)) < 4 * np.std(gains) / 20


def test_classes_in_turns_and_one_seed_better_throughout_change_nothing() -> None:
    """Images come class by class, each network is good at one of two, and one supernet is 1 nat better throughout."""
    rng, classes = np.random.default_rng(3), np.arange(400) % 2
    likes = rng.choice([-0.5, 0.5], size=(200, 1)) * (1 - 2 * classes)  # nothing in the mean
    true = np.full((200, 1), 0.5)
    true[7] = 0.2
    first, second = (true + likes + rng.normal(size=(200, 400)) * 0.01 for _ in range(2))
    spread, noise, gain = judge(first, second + 1.0)
    assert noise < 0.01
    assert gain == pytest.approx(0.3, abs=0.1)
    assert spread < 0.1, "of 0.3 in one of 200"


def test_a_network_that_is_better_gains_so_much() -> None:
    true = np.full(30, 0.5)
    true[7] = 0.2
    spread, noise, gain = judge(*under_two_seeds(true, 0.01, images=2000))
    assert gain == pytest.approx(0.3, abs=0.03)
    assert Pilot(spread, noise, gain, 1, 2000, ()).pays
    true[0] = 0.2  # the default is as good
    spread, noise, gain = judge(*under_two_seeds(true, 0.01, images=2000))
    assert spread > noise
    assert not Pilot(spread, noise, gain, 1, 2000, ()).pays


def test_the_verdict_is_two_deviations() -> None:
    scores = (Score(Name("A", (16,), "patch", "plain", 4.0), 1.0, 50.0, 8),) * 3
    for gain, verdict in ((0.019, "cannot be told from chance"), (0.021, "can pay")):
        pilot = Pilot(0.1, 0.01, gain, 2, 8, scores)
        assert pilot.why.endswith(verdict)
        assert f"the best beats the default network by {gain:.4f}, and 0.0200 would be needed" in pilot.why
        assert pilot.to_dict()["pays"] == (verdict == "can pay")


def test_the_default_in_a_space() -> None:
    default = default_arch(28)
    space = Space(
        depth=(4, 8), stages=(1, 3), widths=((16, 32), (32, 64), (64, 112)), like=default,
        img_size=28, in_chans=1, num_classes=10,
    )  # fmt: skip
    found = default_member(FeasibleSet(space, Budget(macs=1.05 * cost.macs(default, 28, 1, 10)), least=0.5))
    assert (found.genotype, found.widths) == (default.genotype, default.widths)
    half = FeasibleSet(space, Budget(macs=0.5 * cost.macs(default, 28, 1, 10)), least=0.5)
    narrower = default_member(half)
    assert narrower in half
    assert (narrower.genotype, narrower.widths) == (default.genotype, (16, 32, 64))
    other = FeasibleSet(SPACE, Budget(macs=1e6))
    assert default_member(other) == other.nearest()


@pytest.mark.parametrize("side", [28, 224])
def test_the_space_of_the_defaults_holds_the_default_network(side: int) -> None:
    data = replace(open_data(DataConfig("digits", limit=64)), img_size=(side, side))
    space, budget = build_space(SearchConfig(), data)
    found = default_member(FeasibleSet(space, budget, least=SpaceConfig.least))
    assert (found.genotype, found.mlp_ratio) == (default_arch(side).genotype, default_arch(side).mlp_ratio)


def test_where_no_search_can_pay_the_default_is_taken(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psvit.search.pilot.NEEDED", 1e9)
    out = cli.ok("run", *ASKED, "--models", "searched", "--inherit", "--output", tmp_path)
    found = tmp_path / "search"
    assert "cannot be told from chance" in out
    assert "(the default one is not in this space) is taken (--insist --overwrite searches anyway)" in out
    front, kept = read(found / "front.json"), read(found / "pilot.json")
    assert not front["pilot"]["pays"]
    assert front["chosen"]["genotype"] == kept["scores"][0]["genotype"]
    assert front["members"] == len(kept["scores"])
    assert not (found / "supernet").exists()
    text = (found / "report.html").read_text()
    assert "Can a search pay?" in text
    assert re.search("the best (beats|is behind) the largest network within the budget", text)
    assert "No search could pay here" in (tmp_path / "report.html").read_text()
    before = read(found / "front.json")
    for name in ("front.json", "arch.json"):
        (found / name).unlink()
    assert "Supernet 1 of 2" not in cli.ok("search", *ASKED, "--output", found, "--resume"), "it is kept"
    assert read(found / "front.json") == before


def test_where_it_can_pay_the_space_is_searched(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit.search.pilot.NEEDED", -1e9)
    out = cli.ok("search", *ASKED, "--ties", "macs", "--output", tmp_path)
    assert "a search can pay" in out
    front = read(tmp_path / "front.json")
    assert front["pilot"]["pays"]
    assert front["members"] > len(read(tmp_path / "pilot.json")["scores"])
    assert (tmp_path / "supernet" / "supernet.safetensors").exists()
    cli.ok("search", *ASKED, "--ties", "macs", "--output", tmp_path, "--overwrite", "--insist")
    assert not (tmp_path / "pilot-1").exists(), "nothing is left of the pilot"
