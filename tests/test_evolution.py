"""Evolution: genes and members, the same result however often it is killed, several workers, storages that fail."""

import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from refusals import refuses

from psvit import Arch, UserError
from psvit.arch.steps import elements_of
from psvit.search.budget import Budget
from psvit.search.evolution import best_first, cost_used, evolve, narrowed
from psvit.search.feasible_set import FeasibleSet
from psvit.search.genome import Genome
from psvit.search.journal import Score, name_of
from psvit.search.search_config import EvolutionConfig
from psvit.search.space import Space
from psvit.search.storage import Storage

LIKE = Arch("A", widths=(8,), head_dim=8, patch_size=4)
SPACE = Space((5, 6), (1, 3), widths=((16, 24, 32), (32, 48), (48, 64)), stems=("patch", "pool"),
              mlps=("plain", "local"), mlp_ratios=(2.0, 4.0), like=LIKE, img_size=32, num_classes=10)  # fmt: skip
FEASIBLE = FeasibleSet(SPACE, Budget(macs=2.5e6), least=0.5)
TARGET = "ASAA-AS"


def score(arch: Arch) -> Score:
    """Low for wide networks that look like the target: wide costs, so there is a front."""
    letters = zip(arch.genotype.ljust(len(TARGET)), TARGET, strict=False)
    loss = sum(own != wanted for own, wanted in letters) + 100 / sum(arch.widths)
    return Score(name_of(arch), loss, 100 / (1 + loss), 64)


def run(folder: Path, evaluations: int = 24, seed: int = 0, feasible: FeasibleSet = FEASIBLE, evaluate: Any = score,
        say: Any = lambda line: None, **options: Any) -> list[Score]:  # fmt: skip
    folder.mkdir(exist_ok=True)
    config = EvolutionConfig(**{"population": 6, "evaluations": evaluations} | options)
    return evolve(feasible, evaluate, config, folder, seed, say)


def names(scores: list[Score]) -> list[tuple[str, tuple[int, ...]]]:
    return [one.name for one in scores]


def never(arch: Arch) -> Score:
    raise AssertionError(f"{arch} is evaluated")


# Genes and members.


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    low, stages = draw(st.integers(3, 6)), draw(st.integers(1, 3))
    return Space(
        depth=(low, low + draw(st.integers(0, 3))),
        stages=(draw(st.integers(1, stages)), stages),
        max_share=draw(st.integers(0, 3)),
        earliest_pool=draw(st.integers(1, low - 2)),
        widths=tuple((*draw(st.sets(st.sampled_from((16, 24, 32)))), 48) for _ in range(stages)),
        like=LIKE,
        img_size=32,
    )


@effort(max_examples=30)
@given(spaces(), st.randoms(use_true_random=False))
def test_genes_make_a_member_and_a_member_has_genes(space: Space, rng: random.Random) -> None:
    genome = Genome(space)
    for _ in range(3):
        drawn, other = space.sample(rng), space.sample(rng)
        assert genome.decode(genome.encode(drawn)) == drawn
        assert genome.child(drawn, other, rng) in space


@pytest.mark.parametrize(
    ("genes", "made"),
    [
        ("AASAA", "AAASAA"),
        ("SSSSA", "ASSASA"),  # a third S in a row
        ("-AAAA", "AAAAAA"),  # before the earliest pooling
        ("A----", "AA-A-AAA"),  # a fourth stage
        ("A-SAS", "AA-ASAS"),
    ],
)
def test_genes_that_break_a_rule_give_the_nearest_member(genes: str, made: str) -> None:
    space = replace(SPACE, depth=6, stages=(1, 3), max_share=2, earliest_pool=2)
    named = {f"gap {i}": letter for i, letter in enumerate(genes, start=1)}
    assert Genome(space).decode(named).genotype == made


def test_no_stage_is_narrower_than_the_one_before() -> None:
    space = replace(SPACE, depth=4, stages=3, widths=((16, 64), (24, 48, 64), (48, 64)))
    genes = {"gap 1": "-", "gap 2": "-", "gap 3": "A", "width 1": 1, "width 2": 0, "width 3": 0}
    assert Genome(space).decode(genes).widths == (64, 64, 64)
    assert elements_of(Genome(space).decode({**genes, "mlp": "local", "mlp_ratio": 2.0})) == ("patch", "local", 2.0)


def test_members_are_narrowed_until_they_fit() -> None:
    rng = random.Random(0)
    fits = 0
    for _ in range(50):
        arch = SPACE.sample(rng)
        made = narrowed(FEASIBLE, arch)
        assert made in SPACE
        assert made.genotype == arch.genotype
        assert made == arch or cost_used(FEASIBLE, arch) > 1
        fits += made != arch and cost_used(FEASIBLE, made) <= 1
    assert fits


# What is evaluated.


def test_the_order_is_by_front_then_by_crowding_distance() -> None:
    points = [(3.0, 3.0), (0.0, 4.0), (4.0, 0.0), (1.0, 2.0), (1.1, 1.9), (2.0, 1.0)]
    # the front: 1 and 2 are its ends; distances 3: 1.1/4 + 2.1/4, 4: 1/4 + 1/4, 5: 2.9/4 + 1.9/4
    assert best_first(points) == [1, 2, 5, 3, 4, 0]
    assert best_first([(1e9, 1.0), (1e9, 2.0), (1e9, 2.0)]) == [0, 1, 2]


def test_each_member_once_and_none_outside_the_budget(tmp_path: Path) -> None:
    feasible = FeasibleSet(SPACE, Budget(macs=1.8e6), least=0.7)  # a quarter of the children cannot be made to fit
    seen: list[Arch] = []

    def evaluate(arch: Arch) -> Score:
        assert arch in feasible
        seen.append(arch)
        return replace(score(arch), loss=math.nan) if arch.depth == 5 else score(arch)

    said: list[str] = []
    scores = run(tmp_path, 40, feasible=feasible, evaluate=evaluate, say=said.append)
    assert names(scores) == list(map(name_of, seen))
    assert len(set(names(scores))) == len(scores) == 40
    assert any(math.isnan(one.loss) for one in scores)
    assert [line.split(";")[0] for line in said] == [f"evolution {6 * i} of 40 networks" for i in range(1, 7)]


def test_a_small_set_is_found_whole(tmp_path: Path) -> None:
    space = replace(SPACE, depth=(3, 4), widths=((16, 24), (32,), (48,)))
    feasible = FeasibleSet(space, Budget(macs=1.5e6))
    assert 20 < feasible.count() < space.count()
    said: list[str] = []
    scores = run(tmp_path, 1000, feasible=feasible, say=said.append)
    assert sorted(names(scores)) == sorted(map(name_of, feasible))
    assert f"ends after {feasible.count()} networks" in said[-1]


def test_children_advance_the_front(tmp_path: Path) -> None:
    """Half the loss at no more than the mean cost is found more often by children than by chance."""
    scores = run(tmp_path, 80, population=10)
    drawn = [score(FEASIBLE.sample(random.Random(seed))) for seed in range(80)]

    def best(some: list[Score]) -> float:
        archs = (one.name.arch(LIKE) for one in some)
        return min(one.loss + 4 * cost_used(FEASIBLE, arch) for one, arch in zip(some, archs, strict=True))

    assert best(scores) < min(best(scores[:10]), best(drawn))


# The same result.


def test_the_seed_decides_and_more_evaluations_go_on(tmp_path: Path) -> None:
    first = run(tmp_path / "a", 15)
    assert run(tmp_path / "b", 9) == first[:9]
    assert run(tmp_path / "b", 15) == first
    assert run(tmp_path / "b", 9, evaluate=never) == first
    assert run(tmp_path / "c", 15, seed=1) != first


@pytest.mark.parametrize("moment", range(1, 10))
def test_a_kill_before_any_write_changes_nothing(moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writes: the study's row, then of each member its entry and its score."""
    whole = run(tmp_path / "whole", 6, population=3)
    left = [moment]

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*args: Any, **values: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return write(*args, **values)

        return killed

    with monkeypatch.context() as patch:
        for name in ("_insert", "finish"):
            patch.setattr(Storage, name, counted(getattr(Storage, name)))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", 6, population=3)
    assert run(tmp_path / "killed", 6, population=3) == whole


def start(*workers: tuple[object, ...]) -> list[subprocess.Popen[str]]:
    """Workers in processes of their own (see `child`), which begin at the same moment."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = [subprocess.Popen([sys.executable, __file__, *map(str, w)], text=True, **pipes) for w in workers]
    for worker in started:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    for worker in started:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return started


# Several workers.


@pytest.mark.slow
def test_two_workers_share_the_evaluations(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    workers = start(*((tmp_path / name, 12, url, 0.1) for name in "ab"))
    outputs = [worker.communicate()[0].splitlines() for worker in workers]
    assert all(outputs)
    scores = run(tmp_path / "c", 12, storage=url, evaluate=never)
    assert sorted([*outputs[0], *outputs[1]]) == sorted(str(one.name) for one in scores)


def test_what_another_worker_is_at_is_left_to_it(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    evaluated: list[Arch] = []

    def inner(arch: Arch) -> Score:
        if not evaluated:
            evaluated.append(arch)
            others = run(tmp_path / "b", 10, storage=url)  # a whole other worker meanwhile
            assert len(others) == 9
            assert name_of(arch) not in names(others)
        return score(arch)

    scores = run(tmp_path / "a", 10, storage=url, evaluate=inner)
    assert len(evaluated) == 1
    assert len(scores) == 10


def test_the_second_to_enter_draws_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker enters the same member between this one's look and its own entry."""
    url = str(tmp_path / "shared")
    run(tmp_path / "a", 3, storage=url)
    enter, refused = Storage.enter, []

    def late(self: Storage, number: int, worker: str, arch: Arch) -> bool:
        monkeypatch.setattr(Storage, "enter", enter)
        run(tmp_path / "b", 4, storage=url)
        assert not enter(self, number + 1, worker, arch), "the same member"
        refused.append(enter(self, number, worker, replace(arch, genotype="AAAAA", widths=(8,))))
        return enter(self, number, worker, arch)

    monkeypatch.setattr(Storage, "enter", late)
    scores = run(tmp_path / "a", 10, storage=url)
    assert refused == [False], "the same number"
    assert len(set(names(scores))) == len(scores) == 10
    assert len({entry.worker for entry in Storage(url, "psvit").entries()}) == 2


# What is refused.


def test_storages_that_fail(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database")
    before = (tmp_path / "text").read_bytes()
    cases = (
        ("postgresql://me:s3cret@127.0.0.1:1/db", "driver|refused"),  # no driver here, or nobody listens
        ("postgresql+nodriver://me:s3cret@127.0.0.1/db?password=s3cret", "nodriver"),
        ("nonsense://", "nonsense"),
        (f"{tmp_path}/missing/file.db", "unable to open"),
        (f"sqlite:///{tmp_path}/text", "not a database"),
    )
    refuses(
        lambda url: run(tmp_path / "run", storage=url),
        [(url, f"^(?!.*s3cret).*--storage .*({says}).*another one") for url, says in cases],
    )
    assert (tmp_path / "text").read_bytes() == before


def test_another_search_in_the_storage(tmp_path: Path) -> None:
    run(tmp_path, 3)
    for change, says in (
        ({"seed": 1}, "another seed"),
        ({"population": 5}, "another population"),
        ({"feasible": FeasibleSet(SPACE, Budget(macs=2.4e6), least=0.5)}, "another budget"),
        ({"feasible": FeasibleSet(replace(SPACE, max_share=1), Budget(macs=2.5e6), least=0.5)}, "another space"),
    ):
        with pytest.raises(UserError, match=f"study 'psvit' in .* is a search with {says}.*--study-name"):
            run(tmp_path, 3, evaluate=never, **change)
        assert len(run(tmp_path, 3, study_name=says, **change)) == 3


def child(folder: str, evaluations: str, storage: str, seconds: str) -> None:
    """A worker of its own: says what it evaluates, and takes its time."""
    print("ready", flush=True)
    sys.stdin.readline()

    def evaluate(arch: Arch) -> Score:
        time.sleep(float(seconds))
        print(name_of(arch), flush=True)
        return score(arch)

    run(Path(folder), int(evaluations), evaluate=evaluate, storage=storage)


if __name__ == "__main__":
    child(*sys.argv[1:])
