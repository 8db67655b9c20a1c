"""The front: exact dominance, a total order, files and a table that say the same thing."""

import csv
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import MEMBERS, SPACE, TIMED, dominates, facts, score, some_scores
from rich.console import Console

from psvit import Arch, UserError, cost
from psvit.report.tables import to_rich
from psvit.search.front import Ranked, front_table, fronts, pareto, rank, read_front, thin, write_front
from psvit.search.journal import Name, Score


def written(folder: Path, ranked: Sequence[Ranked], **more: Any) -> None:
    write_front(folder, ranked, facts(ranked[0], **more))


def shown(data: dict[str, Any]) -> list[str]:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(to_rich(front_table(data)))
    return capture.get().splitlines()


# Dominance -----------------------------------------------------------------------------------------------------------


def peeled(points: list[tuple[float, float]]) -> list[int]:
    """By definition: the first front is what nobody dominates, the next what remains undominated without it."""
    numbers, left, number = [-1] * len(points), set(range(len(points))), 0
    while left:
        now = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in now:
            numbers[i] = number
        left, number = left - now, number + 1
    return numbers


VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, inf])
POINTS = st.lists(st.tuples(VALUES, VALUES), max_size=30)


@given(POINTS)
def test_fronts_are_those_of_the_definition(points: list[tuple[float, float]]) -> None:
    assert fronts(points) == peeled(points)
    assert pareto(points) == [not any(dominates(other, point) for other in points) for point in points]


def test_nan_counts_as_infinite() -> None:
    assert fronts([(nan, 0.0), (1.0, 0.0), (inf, 0.0)]) == [1, 0, 1]


def test_a_hundred_thousand_points() -> None:
    count = 100_000  # comparing pairs would take hours
    chain = [(float(i), float(i)) for i in range(count)]
    stairs = [(float(i), float(-i)) for i in range(count)]
    assert fronts(chain) == list(range(count))
    assert fronts(stairs) == [0] * count


# The ranking ---------------------------------------------------------------------------------------------------------


def test_rank_is_by_slice_loss_cost_and_name() -> None:
    archs = [
        Arch(genotype, widths, head_dim=16, patch_size=4)
        for genotype, widths in (
            ("AA", (16,)),
            ("AS", (16,)),
            ("AAA", (16,)),
            ("AA", (32,)),
            ("A-A", (16, 32)),
            ("A-A", (16, 48)),
        )
    ]
    aa, as_, aaa, wide, pooled, dear = archs
    assert all(arch in SPACE for arch in archs)
    scores = [
        score(aa, 0.1, 10),  # a small loss, but on few images
        score(as_, 0.5),
        score(aaa, 0.5),  # as good, but dearer
        score(wide, 0.4),
        score(pooled, 0.2, 10),
        score(pooled, 0.9),  # counts, since it is on more images
        score(dear, 0.1, 10),  # like aa, but dearer
    ]
    ranked = rank(scores, SPACE, SPACE.prices())
    assert [one.arch for one in ranked] == [wide, as_, aaa, pooled, aa, dear]
    assert [one.rank for one in ranked] == [1, 2, 3, 4, 5, 6]
    assert [one.score.images for one in ranked] == [100] * 4 + [10] * 2
    assert ranked[3].score.loss == 0.9
    for one in ranked:
        assert one.macs == cost.macs(one.arch, 8, 1, 3)
        assert one.params == cost.params(one.arch, 8, 1, 3)
        assert one.latency is None
        assert one.cost == one.macs
    assert rank([], SPACE, SPACE.prices()) == []


@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_scores_changes_nothing(rng: random.Random, timed: bool) -> None:
    scores = [replace(one, loss=round(one.loss, 1)) for one in some_scores()]  # many ties
    scores += [replace(scores[0], loss=0.95), replace(scores[5], loss=nan)]
    prices = TIMED if timed else SPACE.prices()
    mixed = rng.sample(scores, len(scores))
    assert repr(rank(mixed, SPACE, prices)) == repr(rank(scores, SPACE, prices))


@pytest.mark.parametrize("timed", [False, True])
def test_the_front_is_of_the_largest_slice_alone(timed: bool) -> None:
    ranked = rank(some_scores(), SPACE, TIMED if timed else SPACE.prices())
    assert len(ranked) == len(MEMBERS)
    final = [one for one in ranked if one.score.images == 160]
    assert len(final) == len(MEMBERS[::9])
    assert min(one.score.loss for one in ranked) < min(one.score.loss for one in final)
    points = [(one.score.loss, one.latency if timed and one.latency else float(one.macs)) for one in final]
    assert [one.on_front for one in final] == [not any(dominates(b, a) for b in points) for a in points]
    assert not any(one.on_front for one in ranked[len(final) :])
    assert ranked[0].on_front


# The files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [False, True])
def test_files_say_what_was_ranked(tmp_path: Path, timed: bool) -> None:
    ranked = rank(some_scores(), SPACE, TIMED if timed else SPACE.prices())
    written(tmp_path, ranked, members=len(ranked))
    data = read_front(tmp_path)
    assert (data["data"], data["members"], data["budget"]["macs"]) == ("digits", len(MEMBERS), 2e6)
    by_rank = {one.rank: one for one in ranked}
    on_front = sorted((one for one in ranked if one.on_front), key=lambda one: one.cost)
    assert [row["rank"] for row in data["front"]] == [one.rank for one in on_front]
    for row in data["front"]:
        one = by_rank[row["rank"]]
        assert row == {
            "rank": one.rank,
            "genotype": one.arch.genotype,
            "widths": list(one.arch.widths),
            "stem": "patch",
            "mlp": "plain",
            "mlp_ratio": 4.0,
            "loss": one.score.loss,
            "top1": one.score.top1,
            "images": 160,
            "macs": one.macs,
            "params": one.params,
            "latency_ms": 1000 * one.latency if one.latency else None,
        }
    assert data["chosen"] == next(row for row in data["front"] if row["rank"] == 1)
    with (tmp_path / "front.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == list(range(1, len(MEMBERS) + 1))
    for row, one in zip(rows, ranked, strict=True):
        widths = tuple(map(int, row["widths"].split()))
        name = Name(row["genotype"], widths, row["stem"], row["mlp"], float(row["mlp_ratio"]))
        kept = Score(name, float(row["loss"]), float(row["top1"]), int(row["images"]))
        assert kept == one.score
        assert (int(row["macs"]), int(row["params"])) == (one.macs, one.params)
        assert row["latency_ms"] == (str(1000 * one.latency) if one.latency else "")
        assert row["on_front"] == str(int(one.on_front))
    assert {path.name for path in tmp_path.iterdir()} == {"front.json", "front.csv"}


def test_read_front_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no front\.json: name the folder of a search"):
        read_front(tmp_path)
    ranked = rank(some_scores(), SPACE, SPACE.prices())
    written(tmp_path, ranked)
    text = (tmp_path / "front.json").read_text(encoding="utf-8")
    for broken in (text[:-20], "[]", "null", "{}", '{"front": 3}', text.replace('"macs"', '"acs"'), '{"front": [1]}'):
        (tmp_path / "front.json").write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match=r"front\.json is broken \(.*\): search again") as caught:
            read_front(tmp_path)
        assert "\n" not in str(caught.value)


# The table -----------------------------------------------------------------------------------------------------------


def stairs(count: int) -> list[Ranked]:
    """So many members, all on the front."""
    archs = sorted(
        {cost.macs(arch, 8, 1, 3): arch for arch in MEMBERS}.items()  # of each cost one
    )[:count]
    assert len(archs) == count
    return rank([score(arch, 9 - i / count) for i, (_, arch) in enumerate(archs)], SPACE, SPACE.prices())


def test_a_long_table_is_thinned_around_the_chosen(tmp_path: Path) -> None:
    ranked = stairs(50)
    for place in (0, 7, 48):
        write_front(tmp_path, ranked, facts(ranked[place]))
        data = read_front(tmp_path)
        table = front_table(data)
        assert len(table.rows) == 20
        lines = [line.split() for line in shown(data)[1:21]]
        ranks = [int(line[-2] if line[-1] == "chosen" else line[-1]) for line in lines]
        assert ranks == sorted(ranks, reverse=True)
        assert {1, 50, place + 1} <= set(ranks)
        assert max(a - b for a, b in pairwise(ranks)) <= 4
        assert [line[-1] == "chosen" for line in lines] == [number == place + 1 for number in ranks]
        assert "20 of the 50 networks" in " ".join(shown(data))


@given(st.integers(0, 60), st.integers(0, 60), st.sets(st.integers(0, 59)))
def test_thinning_keeps_and_is_even(count: int, limit: int, keep: set[int]) -> None:
    keep = {i for i in keep if i < count}
    found = thin(count, limit, keep)
    assert found == sorted(set(found))
    assert keep <= set(found) <= set(range(count))
    assert len(found) == max(len(keep), min(count, limit))
    others = [i for i in range(count) if i not in keep]
    places = [others.index(i) for i in found if i not in keep]
    gaps = [b - a for a, b in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1
