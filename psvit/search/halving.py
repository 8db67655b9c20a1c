"""Successive halving: every network scored on a small slice, the better ones on larger and larger slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from accelerate import Accelerator

from psvit.arch.arch import Arch
from psvit.search.feasible_set import FeasibleSet
from psvit.search.front import fronts
from psvit.search.journal import Journal, Key, Score, name_of
from psvit.search.scoring import Scorer, Slices, prefix_tree
from psvit.search.search_config import ScoringConfig
from psvit.search.supernet import Supernet

CHUNK = 1024
"""The journal is written after this many networks times batches."""

GROWTH = 4
"""Growth of the slice from round to round."""


def rungs(members: int, images: int, classes: int, config: ScoringConfig) -> list[tuple[int, int]]:
    """(networks, images) of each round: fewer networks, larger slices; the last round takes all images."""
    found = []
    size = min(images, max(config.first_slice, classes))
    while True:
        found.append((members, size))
        if size == images or members <= config.finalists:
            break
        members = max(config.finalists, ceil(members / config.reduction_factor))
        size = min(images, size * GROWTH)
    if found[-1][1] < images:
        found.append((found[-1][0], images))
    return found


def rank_all(
    feasible: FeasibleSet,
    supernet: Supernet,
    slices: Slices,
    accelerator: Accelerator,
    journal_path: Path,
    config: ScoringConfig,
    say: Callable[[str], None] = print,
    stop: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Successive halving over all networks of a feasible set.

    After each round the networks of the first Pareto fronts (loss against MACs) go on. All processes of an Accelerator
    take a part of the networks each; every score goes to a journal, and scores in it are reused.

    Args:
        feasible: the networks; they can be listed.
        supernet: the weights.
        slices: of the validation split.
        accelerator: device, precision, processes.
        journal_path: the journal; other processes add their number to its name.
        config: settings of the rounds.
        say: takes lines for the user.
        stop: called between chunks; raises to stop.

    Returns:
        All scores, in the order of rounds and of the tree.
    """
    members = feasible.members
    assert members is not None, "a set too large to list is searched by evolution"
    rank, world = accelerator.process_index, accelerator.num_processes
    scorer = Scorer(supernet, accelerator)
    everything: list[Score] = []
    plan = rungs(len(members), len(slices), len(slices.data.classes), config)
    for number, (count, images) in enumerate(plan, start=1):
        members = members if count == len(members) else survivors(everything[-len(members) :], feasible, count)
        known = _known(journal_path, accelerator, say)
        missing = [arch for arch in members if (name_of(arch), images) not in known]
        if missing and rank == 0:
            tree, alone = prefix_tree(missing).layers(), sum(arch.depth for arch in missing)
            say(f"round {number:>2}  {len(missing):,} networks on {images:,} images: {tree:,} layers a batch, "
                f"alone {alone:,} ({alone / tree:.1f}x)")  # fmt: skip
        journal = Journal(_journal_of(journal_path, rank), None)
        size = max(1, CHUNK * slices.batch_size // images)
        # each process scores its part of every chunk, so all stop and wait together
        for start in range(0, len(missing), size * world):
            chunk = missing[start : start + size * world]
            mine = chunk[len(chunk) * rank // world : len(chunk) * (rank + 1) // world]
            if mine:  # a slice has the size of its round, also where images cannot be read
                scores = scorer.score(mine, slices.batches(images))
                journal.add(replace(score, images=images) for score in scores)
            stop()
        known = _known(journal_path, accelerator, _silent)
        everything += [known[name_of(arch), images] for arch in members]
    if slices.unreadable and rank == 0:
        some = ", ".join(sorted(slices.unreadable)[:3])
        say(f"skipped {len(slices.unreadable)} unreadable images of the validation split: {some}")
    return everything


def survivors(scores: Sequence[Score], feasible: FeasibleSet, count: int) -> list[Arch]:
    """The `count` networks of the first fronts of loss and latency, or loss and MACs, in the order of the tree."""
    like, kind = feasible.space.like, -1 if "latency" in feasible.prices.kinds else 0
    archs = [score.name.arch(like) for score in scores]
    points = [(score.loss, feasible.costs(arch)[kind]) for score, arch in zip(scores, archs, strict=True)]
    front = fronts(points)
    order = sorted(range(len(scores)), key=lambda i: (front[i], scores[i].loss, points[i][1], scores[i].key))
    return [archs[i] for i in sorted(order[:count])]


def _journal_of(path: Path, rank: int) -> Path:
    return path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}")


def _known(path: Path, accelerator: Accelerator, say: Callable[[str], None]) -> dict[Key, Score]:
    """The scores in the journals of all processes; the first process repairs them before the others read."""
    known: dict[Key, Score] = {}
    accelerator.wait_for_everyone()
    for mend in (True, False):
        if not mend or accelerator.is_main_process:
            for rank in range(accelerator.num_processes):
                known |= Journal(_journal_of(path, rank), say if mend else None).scores
        accelerator.wait_for_everyone()
    return known


def _silent(line: str) -> None:
    """Nothing is said."""
