"""The choice: what counts as tied, which of them is taken, and that it is kept."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from members import MEMBERS, SPACE, score

from psvit import Arch, UserError
from psvit.search.choice import (
    COMPARED,
    MEASURED,
    Choice,
    Tie,
    choose,
    keep_choice,
    kept_choice,
    tied_with_best,
    ties_table,
)
from psvit.search.front import Ranked, rank

COUNT = 40
RANKED = rank([score(arch, 0.1 + i / 1000) for i, arch in enumerate(MEMBERS[:COUNT])], SPACE, SPACE.prices())
IMAGES = 100


def losses(tied: int) -> np.ndarray:
    """Of so many ties; the others are half a nat worse on every image."""
    noise = np.random.default_rng(0).normal(size=(COUNT, IMAGES))
    noise -= noise.mean(axis=1, keepdims=True)
    return noise + 1e-6 * np.arange(COUNT)[:, None] + 0.5 * (np.arange(COUNT) >= tied)[:, None]


class Machine:
    """Takes so many seconds for each network, and remembers what it was asked."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds = {one.arch: second for one, second in zip(RANKED, seconds, strict=False)}
        self.asked: list[int] = []

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        self.asked += [next(one.rank for one in RANKED if one.arch == arch) for arch in archs]
        return [self.seconds[arch] for arch in archs]


def chosen(tied: int, machine: Machine, **options: object) -> Choice:
    return choose(RANKED, lambda archs: losses(tied)[: len(archs)], machine, **options)  # type: ignore[arg-type]


def test_tied_is_within_one_standard_error_of_the_paired_difference() -> None:
    """Differences of mean 0.3 over four images: their standard deviation decides."""
    best = np.array([1.0, 2.0, 3.0, 4.0])
    rows = best + np.array([[0.0] * 4, [0.9, -0.3, 0.9, -0.3], [0.4, 0.2, 0.4, 0.2]])
    ties = tied_with_best(rows)
    assert [tie.rank for tie in ties] == [1, 2], "the third is always worse by about as much"
    assert ties[1].excess == pytest.approx(0.3)
    assert ties[1].error == pytest.approx((4 * 0.6**2 / 3 / 4) ** 0.5)
    assert tied_with_best(rows[:1]) == [Tie(1, 0.0, 0.0)]
    assert [tie.rank for tie in tied_with_best(rows[:, :1])] == [1], "one image has no standard error"
    assert [tie.rank for tie in tied_with_best(np.full((2, 3), np.nan))] == [1]


def test_the_fastest_of_the_ties_is_taken() -> None:
    seconds = [4e-3, 3e-3, 2e-3, *[5e-3] * 6, 1e-3]
    machine = Machine(seconds)
    choice = chosen(9, machine)
    assert (choice.rank, choice.ms) == (3, 2.0), "the tenth is faster, but worse"
    assert sorted(machine.asked) == list(range(1, 10))
    assert [tie.ms for tie in choice.ties] == [1000 * second for second in seconds[:9]]
    assert "9 networks are within one standard error of the least loss, paired over 100" in choice.why
    assert "is the fastest, 2 ms where the least loss takes 4 ms" in choice.why


def test_of_equally_fast_ones_the_better_is_taken() -> None:
    assert chosen(3, Machine([2.1e-3, 2.01e-3, 2e-3])).rank == 2
    assert "is as fast as the fastest, 2 ms" in chosen(2, Machine([2e-3, 2e-3])).why


def test_only_the_best_and_the_cheapest_are_measured() -> None:
    machine = Machine([1e-3] * COUNT)
    choice = chosen(30, machine)
    cheapest = sorted(RANKED[1:30], key=lambda one: (one.macs, one.rank))[: MEASURED - 1]
    assert sorted(machine.asked) == sorted([1, *(one.rank for one in cheapest)])
    assert len(choice.ties) == 30
    assert sum(tie.ms is not None for tie in choice.ties) == MEASURED
    table = ties_table(choice.to_dict(RANKED))
    assert len(table.rows) == 20
    assert table.highlight == [0]
    assert COMPARED >= 30


def test_by_macs_nothing_is_measured() -> None:
    machine = Machine([])
    choice = chosen(9, machine, ties="macs")
    assert not machine.asked
    assert RANKED[choice.rank - 1].macs == min(one.macs for one in RANKED[:9])
    assert "this one has the fewest MACs" in choice.why
    assert chosen(1, machine).why.startswith("no other network is within one standard error")


def test_by_macs_within_a_limit_of_latency() -> None:
    """Also where the fewest MACs are predicted to be the slowest."""
    slow = [replace(one, latency=1e-3 / one.macs) for one in RANKED]
    choice = choose(slow, lambda archs: losses(30)[: len(archs)], Machine([1e-3] * COUNT), limit=1.0, ties="macs")
    assert slow[choice.rank - 1].macs == min(one.macs for one in slow[:30])


def test_a_limit_of_latency() -> None:
    seconds = [5e-3, 3e-3, 2e-3, *[4e-3] * 7, *[1e-3] * 9]
    assert chosen(3, Machine(seconds), limit=3e-3).rank == 3
    beyond = chosen(2, machine := Machine(seconds), limit=1e-3)
    assert (beyond.rank, beyond.ms) == (11, 1.0)
    assert machine.asked[:2] == [1, 2]
    assert sorted(machine.asked) == list(range(1, len(machine.asked) + 1)), "none twice"
    with pytest.raises(UserError, match="none of the best networks keeps"):
        chosen(1, Machine([1e-3] * COUNT), limit=5e-4)


def test_a_choice_is_kept_for_its_scores(tmp_path: Path) -> None:
    assert kept_choice(tmp_path, RANKED) is None
    choice = chosen(4, Machine([3e-3, 2e-3, 1e-3, 4e-3]))
    keep_choice(tmp_path, choice, RANKED)
    assert kept_choice(tmp_path, RANKED) == choice
    others: list[Ranked] = rank([score(one.arch, 0.3 - one.score.loss) for one in RANKED], SPACE, SPACE.prices())
    assert kept_choice(tmp_path, others) is None
    assert kept_choice(tmp_path, RANKED[:3]) is None, "a network that it names is not among them"
    (tmp_path / "choice.json").write_text("{")
    with pytest.raises(UserError, match=r"choice\.json is broken"):
        kept_choice(tmp_path, RANKED)
