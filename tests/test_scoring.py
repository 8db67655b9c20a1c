"""Scoring on the prefix tree: exact, shared, resumable; successive halving; balanced slices."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_supernets import ELEMENTS, shaken, space

from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, balanced_order, open_data
from psvit.errors import UserError
from psvit.search.budget import Budget
from psvit.search.feasible_set import FeasibleSet
from psvit.search.halving import rank_all, rungs, survivors
from psvit.search.journal import Journal, Name, Score, name_of
from psvit.search.scoring import Scorer, Slices, batch_bytes, prefix_tree
from psvit.search.search_config import ScoringConfig
from psvit.search.space import Space
from psvit.search.supernet import Supernet

ACCELERATOR = Accelerator(cpu=True)
HALVING = ScoringConfig(first_slice=20, reduction_factor=3, finalists=5, score_batch=32)


@pytest.fixture(scope="module")
def data() -> Data:
    return open_data(DataConfig("digits", validation=0.1))


@pytest.fixture(scope="module")
def feasible() -> FeasibleSet:
    return FeasibleSet(space(), Budget(macs=2e5), least=0.5)


@pytest.fixture(scope="module")
def supernet(feasible: FeasibleSet) -> Supernet:
    torch.manual_seed(0)
    return shaken(Supernet(feasible.space))


@pytest.mark.parametrize("changes", [{"like": {"pooling": "1d"}}, {"like": {"pool_norm": True}, **ELEMENTS}])
def test_each_score_equals_that_of_the_member_alone(data: Data, changes: dict[str, Any]) -> None:
    """Bitwise, over several batches."""
    supernet = shaken(Supernet(space(**changes)))
    members = random.Random(0).sample(list(supernet.space.enumerate()), 30)
    batches = list(Slices(data, 0, 32).batches(80))
    assert [len(batch.labels) for batch in batches] == [27, 27, 26], "no small last batch"
    together = Scorer(supernet, ACCELERATOR).score(members, batches)
    assert together == [Scorer(supernet, ACCELERATOR).score([arch], batches)[0] for arch in members]
    with torch.no_grad():
        for arch, score in zip(members[:5], together, strict=False):
            model = supernet.extract(arch).train()  # batch norms take the statistics of the batch
            logits = torch.cat([model(batch.images) for batch in batches])
            labels = torch.cat([batch.labels for batch in batches])
            assert score.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
            assert score.top1 == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item(), abs=1e-4)
            assert score.images == 80


def test_the_layers_computed_are_the_nodes_of_the_tree(data: Data) -> None:
    whole = Space(4, 3, 2, widths=((8,), (16,), (16,)), like=space().like, img_size=8, in_chans=1, num_classes=10)
    scorer = Scorer(Supernet(whole), ACCELERATOR)
    members = list(whole.enumerate())
    scorer.score(members, Slices(data, 0, 32).batches(64))
    assert scorer.layers == 2 * prefix_tree(members).layers()
    assert sum(arch.depth for arch in members) > prefix_tree(members).layers()


def test_slices_are_balanced_and_nested() -> None:
    labels = np.repeat([0, 1, 2, 3], [40, 30, 20, 10])
    order = balanced_order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(100))
    for size in (4, 9, 20, 40):
        counts = np.bincount(labels[order[:size]], minlength=4)
        assert counts.max() - counts.min() <= 1
    assert list(order) != list(balanced_order(labels, np.random.default_rng(1)))


def test_the_rounds_of_successive_halving() -> None:
    config = ScoringConfig(first_slice=100, reduction_factor=4, finalists=10)
    assert rungs(1000, 3000, 10, config) == [(1000, 100), (250, 400), (63, 1600), (16, 3000)]
    assert rungs(8, 5000, 10, config) == [(8, 100), (8, 5000)]
    assert rungs(1000, 60, 10, config) == [(1000, 60)]
    assert rungs(40, 5000, 200, config) == [(40, 200), (10, 800), (10, 5000)]
    faster = ScoringConfig(first_slice=100, reduction_factor=8, finalists=10)
    assert rungs(1000, 3000, 10, faster) == [(1000, 100), (125, 400), (16, 1600), (10, 3000)]


def test_survivors_are_the_first_fronts(feasible: FeasibleSet) -> None:
    members = feasible.members or []
    losses = np.random.default_rng(0).permutation(len(members)).tolist()
    scores = [Score(name_of(arch), loss, 0.0, 20) for arch, loss in zip(members, losses, strict=True)]
    kept = survivors(scores, feasible, 30)
    assert len(kept) == 30
    assert kept == [arch for arch in members if arch in kept], "in the order of the tree"
    best = members[losses.index(0)]
    assert best in kept
    costs = [feasible.costs(arch)[0] for arch in members]
    for i, arch in enumerate(members):
        dominated = any(loss < losses[i] and cost <= costs[i] for loss, cost in zip(losses, costs, strict=True))
        assert dominated or arch in kept
    assert set(survivors(scores, feasible, len(members))) == set(members)


def ranked(supernet: Supernet, feasible: FeasibleSet, data: Data, folder: Path, **options: Any) -> list[Score]:
    slices = Slices(data, 0, HALVING.score_batch)
    return rank_all(
        feasible, supernet, slices, ACCELERATOR, folder / "journal.jsonl", HALVING, lambda line: None, **options
    )


def test_ranking_all_is_successive_halving(
    supernet: Supernet, feasible: FeasibleSet, data: Data, tmp_path: Path
) -> None:
    scores, members = ranked(supernet, feasible, data, tmp_path), feasible.members or []
    plan = rungs(len(members), len(data.validation), 10, HALVING)
    done: list[Score] = []
    for number, images in plan:
        members = survivors(done, feasible, number) if done else members
        done, scores = scores[:number], scores[number:]
        assert [one.key for one in done] == [(name_of(arch), images) for arch in members]
    assert not scores
    batches = Slices(data, 0, HALVING.score_batch).batches(plan[-1][1])
    assert done[-1] == Scorer(supernet, ACCELERATOR).score([members[-1]], batches)[0]


def test_a_ranking_that_was_stopped_goes_on_to_the_same(
    supernet: Supernet, feasible: FeasibleSet, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psvit.search.halving.CHUNK", 8)
    whole = ranked(supernet, feasible, data, tmp_path / "whole")

    class StopError(Exception):
        pass

    for wait in (2, 6):
        left = [wait]

        def stop(left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise StopError

        with pytest.raises(StopError):
            ranked(supernet, feasible, data, tmp_path / "stopped", stop=stop)
    scored = Journal(tmp_path / "stopped" / "journal.jsonl").scores
    assert 0 < len(scored) < len(whole)
    assert ranked(supernet, feasible, data, tmp_path / "stopped") == whole
    lines = (tmp_path / "stopped" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == len(whole), "nothing was scored twice"


def test_a_journal_cut_off_in_mid_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    scores = [Score(Name("A" * number, (8,), "pool", "local", 2.0), 0.1 + number / 3, 50.0, 20) for number in (1, 2, 3)]
    Journal(path).add(scores)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    said: list[str] = []
    journal = Journal(path, said.append)
    assert list(journal.scores.values()) == scores[:2]
    assert len(said) == 1
    assert "ends in mid-line: the last line is dropped" in said[0]
    journal.add([scores[2]])
    assert path.read_bytes() == whole
    assert list(Journal(path).scores.values()) == scores
    path.write_text('{"genotype": "A"}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl, line 1 is no score"):
        Journal(path)


def test_the_bound_of_the_memory_holds(data: Data) -> None:
    """The tokens and maps of a path, counted while it is walked."""
    supernet = Supernet(space(**ELEMENTS))
    held: list[int] = []

    class Counting(Scorer):
        def _visit(self, node: Any, x: Any, attn: Any, *rest: Any) -> None:
            held.append((held[-1] if held else 0) + x.nbytes + (0 if attn is None else attn.nbytes))
            peaks.append(held[-1])
            super()._visit(node, x, attn, *rest)
            held.pop()

    peaks: list[int] = []
    Counting(supernet, ACCELERATOR).score(list(supernet.space.enumerate()), Slices(data, 0, 32).batches(32))
    assert 0 < max(peaks) <= batch_bytes(supernet.space, 32)
    assert batch_bytes(supernet.space, 64) == 2 * batch_bytes(supernet.space, 32)
