"""The compact set: counted, listed, drawn and priced exactly; budgets that cannot be met say what could."""

import random
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from psvit import Arch, UserError, cost
from psvit.arch.steps import steps_of
from psvit.search.budget import Budget
from psvit.search.feasible_set import FeasibleSet
from psvit.search.journal import Name, name_of
from psvit.search.scoring import prefix_tree
from psvit.search.space import Space, bounds

ELEMENTS = {"stems": ("patch",), "mlps": ("plain", "local"), "mlp_ratios": (2.0, 4.0)}
SMALL = Arch("A", widths=(8,), head_dim=8, patch_size=4)


def small(**changes: object) -> Space:
    """A space of a few hundred members with a choice of widths."""
    fields = {"depth": (2, 5), "stages": (1, 3), "widths": ((8, 16), (8, 16, 24), (16, 24)), "like": SMALL,
              **ELEMENTS, "img_size": 28, "in_chans": 1, "num_classes": 10}  # fmt: skip
    return Space(**{**fields, **changes})


def by_brute_force(space: Space) -> set[Name]:
    """All members, found without the tree: every string of letters, every choice of widths."""
    found = set()
    low, high = bounds(space.depth)
    for depth in range(low, high + 1):
        for gaps in product(("A", "S", "-A"), repeat=depth - 1):
            genotype = "A" + "".join(gaps)
            if "-S" in genotype or "S" * (space.max_share + 1) in genotype:
                continue
            stages = genotype.split("-")
            if not bounds(space.stages)[0] <= len(stages) <= bounds(space.stages)[1]:
                continue
            if len(stages) > 1 and len(stages[0]) < space.earliest_pool:
                continue
            for widths in product(*space.widths[: len(stages)]):
                if list(widths) == sorted(widths):
                    found |= {Name(genotype, widths, *one) for one in product(*ELEMENTS.values())}
    return found


def test_the_twelve_layer_set() -> None:
    space = Space(12, 3, 2)
    members = list(space.enumerate())
    layers = sum(arch.depth for arch in members)
    assert (space.count(), prefix_tree(members).layers(), layers) == (18_067, 38_246, 216_804)
    assert len(set(members)) == 18_067
    assert {(len(arch.stages), arch.depth) for arch in members} == {(3, 12)}


@pytest.mark.parametrize(
    "changes",
    [{"max_share": 0}, {"max_share": 1, "earliest_pool": 2}, {"stages": 2, "depth": 4}, {"stages": (2, 3)},
     {"widths": ((24,), (8, 24), (24,))}],
)  # fmt: skip
def test_members_are_those_of_the_grammar(changes: dict[str, object]) -> None:
    space = small(**changes)
    members = list(map(name_of, space.enumerate()))
    assert len(members) == len(set(members)) == space.count()
    assert set(members) == by_brute_force(space)
    assert all(arch in space for arch in space.enumerate())
    assert not any(arch in space for arch in Space(6, 1).enumerate())  # deeper, of other widths


def test_drawing_is_uniform_and_seeded() -> None:
    space = small(depth=3, stages=(1, 2), widths=((8, 16), (16,)), mlps=("local",))
    count = space.count()
    drawn = Counter(space.sample(random.Random(seed)) for seed in range(200 * count))
    assert set(drawn) == set(space.enumerate())
    assert max(abs(number - 200) for number in drawn.values()) < 5 * 200**0.5  # five standard deviations
    assert [space.sample(random.Random(3)) for _ in range(9)] == [space.sample(random.Random(3)) for _ in range(9)]


def test_drawing_begins_again_where_no_network_can_be_completed() -> None:
    """As two limits may have it, each of which another continuation would keep."""
    space = small()
    allowed = lambda steps, ends: steps[0].width == 16 or (len(steps) == 1 and not ends)  # noqa: E731
    assert {space.sample(random.Random(seed), allowed).widths[0] for seed in range(20)} == {16}


@given(st.integers(0, 10**6))
def test_prices_are_the_costs_of_the_whole_network(seed: int) -> None:
    rng = random.Random(seed)
    like = Arch("A", widths=(8,), head_dim=8, patch_size=2, pooling=rng.choice(["1d", "2d"]),
                pool_conv=rng.choice(["full", "depthwise"]), pool_op=rng.choice(["max", "stride"]),
                pool_order=rng.choice(["conv-pool", "pool-conv"]), pool_norm=rng.choice([True, False]))  # fmt: skip
    more = {"stems": ("patch", "conv", "pool"), "mlp_ratios": (2, 3.3)}
    space = small(like=like, img_size=(37, 53), in_chans=3, num_classes=7, **more)
    arch = space.sample(rng)
    shape = ((37, 53), 3, 7)
    assert space.prices().of(steps_of(arch)) == (cost.macs(arch, *shape), cost.params(arch, *shape))


@pytest.mark.parametrize(
    ("macs", "params", "least"), [(6e5, None, 0), (6e5, 4e4, 0), (None, 3e4, 0.5), (1e6, None, 0.9)]
)
def test_a_feasible_set_holds_what_is_within_the_budget(macs: float | None, params: float | None, least: float) -> None:
    space = small()
    feasible = FeasibleSet(space, Budget(macs, params), least=least)

    def fits(arch: Arch) -> bool:
        used = [own / limit for own, limit in
                ((cost.macs(arch, 28, 1, 10), macs), (cost.params(arch, 28, 1, 10), params)) if limit]  # fmt: skip
        return least <= max(used) <= 1

    expected = [arch for arch in space.enumerate() if fits(arch)]
    assert list(feasible) == feasible.members == expected
    assert feasible.count() == len(expected)
    if params is None:
        assert cost.macs(feasible.nearest(), 28, 1, 10) == max(cost.macs(arch, 28, 1, 10) for arch in expected)
    assert feasible.count(at_most=2) == 2
    assert all((arch in feasible) == fits(arch) for arch in space.enumerate())
    assert {feasible.sample(random.Random(seed)) for seed in range(20 * len(expected))} == set(expected)


def test_a_set_too_large_to_list_is_drawn_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit.search.feasible_set.LISTED", 10)
    feasible = FeasibleSet(small(mlps=("plain",)), Budget(macs=6e5))
    assert feasible.members is None
    drawn = {feasible.sample(random.Random(seed)) for seed in range(3000)}
    assert drawn <= set(feasible)
    assert len(drawn) > 0.8 * feasible.count()


def test_an_infeasible_budget_names_the_cheapest_member() -> None:
    space = small()
    cheapest = min(space.enumerate(), key=lambda arch: cost.macs(arch, 28, 1, 10))
    macs = cost.macs(cheapest, 28, 1, 10)
    with pytest.raises(UserError, match=rf"the cheapest, {cheapest.genotype} with widths 8.*{macs / 1e3:.4g} k MACs"):
        FeasibleSet(space, Budget(macs=macs - 1))
    assert FeasibleSet(space, Budget(macs=macs)).members == [cheapest]


def test_contradictory_budgets_name_the_nearest_member() -> None:
    space = small(depth=4, stages=3, widths=((8, 16, 24), (24,), (24,)))
    costs = {arch: (cost.macs(arch, 28, 1, 10), cost.params(arch, 28, 1, 10)) for arch in space.enumerate()}
    macs, params = min(own[0] for own in costs.values()), min(own[1] for own in costs.values())
    assert not any(own[0] <= macs and own[1] <= params for own in costs.values())  # each alone is possible
    nearest = min(costs, key=lambda arch: max(costs[arch][0] / macs, costs[arch][1] / params))
    with pytest.raises(UserError, match=f"the nearest, {nearest.genotype} with widths"):
        FeasibleSet(space, Budget(macs=macs, params=params))


def test_budgets_are_read() -> None:
    parse = lambda *texts: Budget.parse(texts, plain_macs=4e8, plain_params=2e6)  # noqa: E731
    assert parse("0.5x") == parse("200M") == parse("macs=0.2G") == Budget(macs=2e8)
    assert parse("params=5M", "latency=5ms", "600M") == Budget(6e8, 5e6, 0.005)
    assert parse("params=0.5x", "latency=0.2s") == Budget(params=1e6, latency=0.2)
    assert not parse()


def test_budgets_that_are_none() -> None:
    refuses(
        lambda texts: Budget.parse(texts, 4e8, 2e6),
        (
            (["fast"], "is not a positive limit"),
            (["latency=5"], "is not a positive limit such as latency=5ms"),
            (["size=3M"], "limits 'size'"),
            (["600M", "0.5x"], "limits macs twice"),
        ),
    )


def test_spaces_that_are_none() -> None:
    refuses(
        lambda changes: small(**changes),
        (
            ({"depth": 0}, "--depth 0 0"),
            ({"max_share": -1}, "--max-share"),
            ({"earliest_pool": 0}, "--earliest-pool"),
            ({"depth": 2, "stages": 3}, "no network of 2 layers has 3 stages"),
            ({"stages": 3, "depth": 4, "earliest_pool": 3}, "give more layers"),
            ({"widths": ((8,),)}, "1 choices of widths"),
            ({"widths": ((8,), (9,), (16,))}, "multiple of head_dim"),
        ),
    )
