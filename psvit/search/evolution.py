"""Search of feasible sets too large to list: NSGA-II, one child at a time, for a low loss at a low cost. No torch here.

A member is drawn as a function of the seed, of its number and of the scores so far, and entered in the storage with
the name of its worker before it is scored. A process that is killed leaves nothing, or one entry without a score: the
next process of that worker (the same folder) scores it, and goes on as if nothing had happened.

Workers on one storage need not talk: the storage takes each member and each number once, and the second worker that
enters one draws again.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from math import inf
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.errors import UserError, one_line
from psvit.files import replacing
from psvit.search.feasible_set import FeasibleSet
from psvit.search.front import fronts
from psvit.search.genome import Genome
from psvit.search.journal import Score, name_of
from psvit.search.search_config import EvolutionConfig
from psvit.search.storage import Entry, Storage

DATABASE, WORKER = "evolution.db", "evolution.worker"
"""In the folder of a run: the study, where no other storage is given, and the name of this folder's worker."""

TRIES = 50
"""After so many children in a row that are no new members of the feasible set, members are drawn from it instead."""

WORST = 1e9
"""A loss that is no number, or infinite, counts as this one."""


def evolve(
    feasible: FeasibleSet,
    evaluate: Callable[[Arch], Score],
    config: EvolutionConfig,
    folder: Path,
    seed: int,
    say: Callable[[str], None] = print,
) -> list[Score]:
    """Evaluate members of a feasible set, children of the best so far, towards a low loss at a low cost.

    With one worker the result depends on the feasible set, the scores, the population and the seed alone, however often
    the process was killed and started again. With several it depends on their timing too.

    Args:
        feasible: the members to choose from.
        evaluate: scores a member; the same member must score the same.
        config: how to search.
        folder: of this worker, for one process at a time.
        seed: of all that is drawn.
        say: takes lines for the user.

    Returns:
        The score of each evaluated member, in the order of their numbers, without those that other workers are at.

    Raises:
        UserError: a storage that cannot be used, or that holds another search under this name.
    """
    worker = _worker(folder)
    storage = Storage(config.storage or f"sqlite:///{folder / DATABASE}", config.study_name or "psvit")
    storage.sign(_about(feasible, config, seed))
    genome = Genome(feasible.space)
    while True:
        entries = storage.entries()
        left = next((entry for entry in entries if entry.worker == worker and entry.score is None), None)
        if left is not None:  # by a process that was killed
            number, arch = left.number, _arch(feasible, left)
        elif (number := len(entries)) >= config.evaluations:
            break
        else:
            _say_progress(entries, config, say)
            if (drawn := _new_member(feasible, genome, entries, config.population, seed)) is None:
                say(f"evolution ends after {number} members: no other was found within the budget")
                break
            arch = drawn
            if not storage.enter(number, worker, arch):
                continue
        storage.finish(number, evaluate(arch))
    return [entry.score for entry in storage.entries() if entry.score is not None]


def _new_member(
    feasible: FeasibleSet, genome: Genome, entries: Sequence[Entry], population: int, seed: int
) -> Arch | None:
    """A member that is not yet entered; None if none is found."""
    rng, taken = random.Random(f"{seed} {len(entries)}"), {(entry.genotype, entry.widths) for entry in entries}
    drawn = _candidates(feasible, genome, entries, population, rng)
    return next((arch for arch in drawn if name_of(arch) not in taken and arch in feasible), None)


def _candidates(
    feasible: FeasibleSet, genome: Genome, entries: Sequence[Entry], population: int, rng: random.Random
) -> Iterator[Arch]:
    """Children; then members drawn from the feasible set; then all of it, where it is small enough to be listed."""
    scored = [(_arch(feasible, entry), entry.score.loss) for entry in entries if entry.score is not None]
    if len(scored) >= population:
        points = [(loss if loss < WORST else WORST, cost_used(feasible, arch)) for arch, loss in scored]
        parents = [scored[place][0] for place in best_first(points)[:population]]
        for _ in range(TRIES):
            first, second = (parents[min(rng.sample(range(population), 2))] for _ in range(2))  # two tournaments
            yield narrowed(feasible, genome.child(first, second, rng))
    for _ in range(TRIES):
        yield feasible.sample(rng)
    yield from feasible.members or ()


def best_first(points: Sequence[tuple[float, float]]) -> list[int]:
    """The order of NSGA-II: by front, and within a front the lonelier points first (by crowding distance)."""
    front, distance = fronts(points), [0.0] * len(points)
    for axis in (0, 1):
        along = sorted(range(len(points)), key=lambda i: (front[i], points[i][axis]))
        for _, group in groupby(along, key=lambda i: front[i]):
            order = list(group)
            span = (points[order[-1]][axis] - points[order[0]][axis]) or 1.0
            distance[order[0]] = distance[order[-1]] = inf
            for before, (i, after) in zip(order, pairwise(order[1:]), strict=False):
                distance[i] += (points[after][axis] - points[before][axis]) / span
    return sorted(range(len(points)), key=lambda i: (front[i], -distance[i], i))


def cost_used(feasible: FeasibleSet, arch: Arch) -> float:
    """The greatest part of a limit that a member uses; its MACs if there is no budget."""
    return _part(feasible, arch) if feasible.budget else feasible.costs(arch)[0]


def narrowed(feasible: FeasibleSet, arch: Arch) -> Arch:
    """A member, made narrower choice by choice, where it saves most, until it is within the limits or cannot be."""
    while _part(feasible, arch) > 1 and (others := list(_narrower(feasible, arch))):
        arch = min(others, key=lambda other: _part(feasible, other))
    return arch


def _part(feasible: FeasibleSet, arch: Arch) -> float:
    return max(own / limit for own, limit in zip(feasible.costs(arch), feasible.limits, strict=True))


def _narrower(feasible: FeasibleSet, arch: Arch) -> Iterator[Arch]:
    """The members with one stage a choice narrower."""
    for stage, width in enumerate(arch.widths):
        before = arch.widths[stage - 1] if stage else 0
        choices = [choice for choice in feasible.space.widths[stage] if before <= choice < width]
        if choices:
            yield replace(arch, widths=(*arch.widths[:stage], choices[-1], *arch.widths[stage + 1 :]))


def _arch(feasible: FeasibleSet, entry: Entry) -> Arch:
    return replace(feasible.space.like, genotype=entry.genotype, widths=entry.widths)


def _about(feasible: FeasibleSet, config: EvolutionConfig, seed: int) -> dict[str, Any]:
    """All that the result depends on, besides the scores."""
    return {
        "space": repr(feasible.space),
        "budget": repr(feasible.budget),
        "least": feasible.least,
        "latency table": feasible.costs(feasible.space.sample(random.Random(0)))[2:],
        "population": config.population,
        "seed": seed,
    }


def _say_progress(entries: Sequence[Entry], config: EvolutionConfig, say: Callable[[str], None]) -> None:
    scores = [entry.score for entry in entries if entry.score is not None]
    if scores and len(scores) % config.population == 0:
        best = min(scores, key=lambda score: score.loss if score.loss < WORST else WORST)
        say(f"evolution {len(scores)} of {config.evaluations} members; least loss {best.loss:.4f}: {best.genotype}")


def _worker(folder: Path) -> str:
    """The name of this folder's worker. It is random: equal paths on two machines are two workers.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / WORKER
    try:
        if not path.is_file():
            with replacing(path) as temporary:
                temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot hold a search ({one_line(error)}): give another --output") from error
