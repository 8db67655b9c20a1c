"""What walking a region costs: each walk is taken once."""

from collections.abc import Iterator
from typing import Any

import pytest
from members import SPACE

from psvit.errors import UserError
from psvit.search.budget import Budget
from psvit.search.feasible_set import FeasibleSet


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the walks that regions take from now on."""
    taken: list[str] = []

    def counted(name: str) -> None:
        whole = getattr(FeasibleSet, name)

        def walk(feasible: FeasibleSet, *given: Any) -> Any:
            taken.append(name)
            return whole(feasible, *given)

        monkeypatch.setattr(FeasibleSet, name, walk)

    for name in ("_walk", "_nearest_infeasible"):
        counted(name)
    return taken


def test_a_refusal_looks_for_the_nearest_member_once(calls: list[str]) -> None:
    with pytest.raises(UserError, match=r"the nearest, .*, costs .* and "):
        FeasibleSet(SPACE, Budget(macs=1000, params=1000))
    assert calls == ["_nearest_infeasible"]


def test_members_are_counted_and_listed_once(calls: list[str]) -> None:
    feasible = FeasibleSet(SPACE, Budget(macs=1e9))
    for _ in range(3):
        assert feasible.count() == feasible.count(at_most=10**6) == len(feasible.members or []) > 5
        assert feasible.count(at_most=5) == 5
    assert calls == ["_nearest_infeasible", *["_walk"] * 4]


def test_counting_stops_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    feasible = FeasibleSet(SPACE, Budget())
    walk, seen = feasible._walk, []

    def watched() -> Iterator[Any]:
        for member in walk():
            seen.append(member)
            yield member

    monkeypatch.setattr(feasible, "_walk", watched)
    assert feasible.count(at_most=3) == 3 == len(seen)
