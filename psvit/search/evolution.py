"""NSGA-II over feasible sets too large to list, one child at a time: low loss at low cost. No torch here.

A network is a function of the seed, its number and the scores so far. It is entered in the storage, with the name of
its worker, before it is scored. A killed process leaves at most one entry without a score; the next process of that
worker (the same folder) scores it first and continues.

Workers that share a storage do not communicate: the storage accepts each network and each number once, and a worker
whose entry is refused draws again.
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
"""Files in the folder of a run: the default storage, and the name of this folder's worker."""

TRIES = 50
"""After this many children that are not new networks of the feasible set, networks are sampled from it instead."""

WORST = 1e9
"""NaN and infinite losses count as this one."""


def evolve(
    feasible: FeasibleSet,
    evaluate: Callable[[Arch], Score],
    config: EvolutionConfig,
    folder: Path,
    seed: int,
    say: Callable[[str], None] = print,
) -> list[Score]:
    """Search a feasible set by NSGA-II for low loss at low cost.

    With one worker the result depends only on the feasible set, the scores, the population and the seed, also if the
    process is killed and resumed. With several workers it depends on their timing too.

    Args:
        feasible: the networks to search.
        evaluate: scores a network; must be deterministic.
        config: settings of the evolution.
        folder: this worker's folder, used by one process at a time.
        seed: seed of all random draws.
        say: takes lines for the user.

    Returns:
        The scores of the evaluated networks by number, without those that other workers are still evaluating.

    Raises:
        UserError: the storage cannot be used, or holds another search under this name.
    """
    worker = _worker(folder)
    storage = Storage(config.storage or f"sqlite:///{folder / DATABASE}", config.study_name or "psvit")
    storage.sign(_about(feasible, config, seed))
    genome = Genome(feasible.space)
    while True:
        entries = storage.entries()
        left = next((entry for entry in entries if entry.worker == worker and entry.score is None), None)
        if left is not None:  # by a killed process
            number, arch = left.number, _arch(feasible, left)
        elif (number := len(entries)) >= config.evaluations:
            break
        else:
            _say_progress(entries, config, say)
            if (drawn := _new_member(feasible, genome, entries, config.population, seed)) is None:
                say(f"evolution ends after {number} networks: no other was found within the budget")
                break
            arch = drawn
            if not storage.enter(number, worker, arch):
                continue
        storage.finish(number, evaluate(arch))
    return [entry.score for entry in storage.entries() if entry.score is not None]


def _new_member(
    feasible: FeasibleSet, genome: Genome, entries: Sequence[Entry], population: int, seed: int
) -> Arch | None:
    """A network that is not in the storage yet; None if none is found."""
    rng, taken = random.Random(f"{seed} {len(entries)}"), {entry.name for entry in entries}
    drawn = _candidates(feasible, genome, entries, population, rng)
    return next((arch for arch in drawn if name_of(arch) not in taken and arch in feasible), None)


def _candidates(
    feasible: FeasibleSet, genome: Genome, entries: Sequence[Entry], population: int, rng: random.Random
) -> Iterator[Arch]:
    """Children; then samples of the feasible set; then all of its networks if they can be listed."""
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
    """Indices in the order of NSGA-II: by front, then by crowding distance, largest first."""
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
    """The largest fraction of a limit that a network uses; its MACs without a budget."""
    return _part(feasible, arch) if feasible.budget else feasible.costs(arch)[0]


def narrowed(feasible: FeasibleSet, arch: Arch) -> Arch:
    """The network made narrower step by step, each time where it saves most, until it fits or is the narrowest."""
    while _part(feasible, arch) > 1 and (others := list(_narrower(feasible, arch))):
        arch = min(others, key=lambda other: _part(feasible, other))
    return arch


def _part(feasible: FeasibleSet, arch: Arch) -> float:
    return max(own / limit for own, limit in zip(feasible.costs(arch), feasible.limits, strict=True))


def _narrower(feasible: FeasibleSet, arch: Arch) -> Iterator[Arch]:
    """The networks with one stage one choice narrower."""
    for stage, width in enumerate(arch.widths):
        before = arch.widths[stage - 1] if stage else 0
        choices = [choice for choice in feasible.space.widths[stage] if before <= choice < width]
        if choices:
            yield replace(arch, widths=(*arch.widths[:stage], choices[-1], *arch.widths[stage + 1 :]))


def _arch(feasible: FeasibleSet, entry: Entry) -> Arch:
    return entry.name.arch(feasible.space.like)


def _about(feasible: FeasibleSet, config: EvolutionConfig, seed: int) -> dict[str, Any]:
    """Everything that the result depends on, except the scores."""
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
        name = best.name.genotype
        say(f"evolution {len(scores)} of {config.evaluations} networks; least loss {best.loss:.4f}: {name}")


def _worker(folder: Path) -> str:
    """The name of this folder's worker; random, since two machines may have the same path.

    Raises:
        UserError: the folder is not writable.
    """
    path = folder / WORKER
    try:
        if not path.is_file():
            with replacing(path) as temporary:
                temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot hold a search ({one_line(error)}): give another --output") from error
