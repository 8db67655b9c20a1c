"""Search of regions too large to list: NSGA-II, by Optuna, for a low loss at a low cost. No torch here.

A trial of the study is a member of the region that no trial had before. It is drawn in memory, as a function of the
seed, of its number and of the trials that have ended, and enters the storage in one piece: RUNNING, with its genes and
the name of its worker. Then it is evaluated and told. So a process that is killed leaves nothing, or one whole trial;
the next process of that worker (the same folder) evaluates it, and goes on as if nothing had happened.

Workers on one storage need not talk. Who has entered a member that a trial with a lower number holds, or one trial too
many, gives it up (FAIL).

Optuna is imported by what uses it: the command line reads the settings, and is to be quick.
"""

from __future__ import annotations

import json
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from psvit.arch.arch import ATTEND, Arch
from psvit.config import Config, Count, Text, at_least
from psvit.errors import UserError, one_line
from psvit.files import replacing
from psvit.search.feasible_set import FeasibleSet
from psvit.search.genome import Genes, Genome
from psvit.search.scores import Score, name_of
from psvit.search.space import Space
from psvit.search.storage import hidden, open_storage, using

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

DATABASE, WORKER = "evolution.db", "evolution.worker"
"""In the folder of a run: the study, where no other storage is given, and the name of this folder's worker."""

TRIES = 50
"""So many children in a row that are no new members of the region, and members are drawn from the region instead."""


@dataclass(frozen=True)
class EvolutionConfig(Config):
    """How a space too large to list is searched.

    Args:
        population: members of a generation.
        evaluations: members scored in all, over all workers.
        storage: where the search is kept if several workers share it: a URL such as postgresql://user@host/name (pip
            install "psvit[postgres]") or sqlite:///file.db, or the path of a journal file; by default a SQLite file in
            the run folder.
        study_name: name of the search in its storage, the same for all its workers; by default psvit.
    """

    population: Annotated[int, at_least(2)] = 50  # a child has two parents
    evaluations: Count = 1000
    storage: Text | None = None
    study_name: Text | None = None


def evolve(
    feasible: FeasibleSet,
    evaluate: Callable[[Arch], Score],
    config: EvolutionConfig,
    folder: Path,
    seed: int,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] | None = None,
) -> list[Score]:
    """Evaluate members of a region, generation by generation, towards a low loss at a low cost.

    With one worker the result depends on the region, the scores, the population and the seed alone, however often the
    process was killed and started again. With several it depends on their timing too.

    Args:
        region: the members to choose from.
        evaluate: scores a member; the same member must score the same.
        config: how to search.
        folder: of this worker, for one process at a time.
        seed: of all that is drawn.
        say: takes lines for the user.
        stop: asked before each evaluation; True ends the search early, and it can be gone on with.

    Returns:
        The score of each evaluated member, in the order of the trials. Members that other workers are still at are not
        among them.

    Raises:
        UserError: a storage that cannot be used, or that holds another search under this name.
    """
    search = _Search(feasible, config, folder, seed, say)
    while not (stop and stop()) and (trial := search.claim()):
        search.tell(trial, evaluate(search.genome.decode(trial.params)))
    return search.scores()


def cost_used(feasible: FeasibleSet, arch: Arch) -> float:
    """The greatest part of a limit that a member uses; its MACs if there is no budget."""
    return _part(feasible, arch) if feasible.budget else feasible.costs(arch)[0]


def narrowed(feasible: FeasibleSet, arch: Arch) -> Arch:
    """A member, made narrower choice by choice, where it saves most, until it is within the limits or cannot be."""
    while _part(feasible, arch) > 1 and (others := list(_narrower(feasible.space, arch))):
        arch = min(others, key=lambda other: _part(feasible, other))
    return arch


def _part(feasible: FeasibleSet, arch: Arch) -> float:
    return max(own / limit for own, limit in zip(feasible.costs(arch), feasible.limits, strict=True))


def _narrower(space: Space, arch: Arch) -> Iterator[Arch]:
    """The members with one stage a choice narrower."""
    for stage, width in enumerate(arch.widths):
        before = arch.widths[stage - 1] if stage else 0
        choices = [choice for choice in space.widths[stage] if before <= choice < width]
        if choices:
            yield replace(arch, widths=(*arch.widths[:stage], choices[-1], *arch.widths[stage + 1 :]))


class _Search:
    """The study, as one worker sees it."""

    def __init__(
        self, feasible: FeasibleSet, config: EvolutionConfig, folder: Path, seed: int, say: Callable[[str], None]
    ) -> None:
        from optuna import create_study
        from optuna.distributions import CategoricalDistribution, IntDistribution
        from optuna.study import StudyDirection

        self.feasible, self.config, self.seed, self.say = feasible, config, seed, say
        self.said = 0
        self.genome = Genome(feasible.space)
        self.distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(choice) if choice[0] == ATTEND else IntDistribution(choice[0], choice[-1])
            for name, choice in self.genome.choices.items()
        }
        self.worker = _worker(folder)
        self.url = config.storage or f"sqlite:///{folder / DATABASE}"
        name, both = config.study_name or "psvit", [StudyDirection.MINIMIZE] * 2
        with using(self.url, Exception):  # what is no storage fails in many ways
            self.study = create_study(
                storage=open_storage(self.url), study_name=name, directions=both, load_if_exists=True
            )
            self._check_same()

    def _check_same(self) -> None:
        """Sign a new study; refuse one of another search.

        Raises:
            UserError: it is of another search.
        """
        feasible, study = self.feasible, self.study
        own = {
            "space": repr(feasible.space),
            "budget": repr(feasible.budget),
            "least": feasible.least,
            "latency table": feasible.costs(feasible.space.sample(random.Random(0)))[2:],
            "population": self.config.population,
            "seed": self.seed,
        }
        own = json.loads(json.dumps(own))
        new = not study.trials  # asked first: another worker signs it before it enters a trial
        found = study.user_attrs.get("psvit")
        if found is None and new and len(study.directions) == 2:
            study.set_user_attr("psvit", own)
        elif found != own:
            other = next(
                (f"a search with another {name}" for name in own if found and found.get(name) != own[name]), ""
            )
            raise UserError(
                f"study {study.study_name!r} in {hidden(self.url)} is {other or 'no search of psvit'}: "
                "go on with the settings that it began with, or give another --study-name or --storage"
            )

    def claim(self) -> FrozenTrial | None:
        """The trial to evaluate: one's own that a killed process left, or else a new one; None at the end."""
        from optuna.trial import TrialState

        with using(self.url):
            while True:
                trials = self.study.get_trials(deepcopy=False)
                valid = [trial for trial in trials if trial.state != TrialState.FAIL]
                own = [t for t in valid if t.state == TrialState.RUNNING and t.user_attrs["worker"] == self.worker]
                if own:
                    before = [trial for trial in valid if trial.number < own[0].number]
                    if len(before) < self.config.evaluations and _name(own[0]) not in map(_name, before):
                        return own[0]
                    self.study.tell(own[0].number, state=TrialState.FAIL)  # another worker was faster
                elif len(valid) >= self.config.evaluations or not self._enter(valid, len(trials)):
                    return None

    def tell(self, trial: FrozenTrial, score: Score) -> None:
        """Keep the score of a trial, and end the trial with it."""
        loss = float("inf") if score.loss != score.loss else score.loss  # Optuna refuses NaN
        with using(self.url):
            self.study._storage.set_trial_user_attr(trial._trial_id, "score", asdict(score))
            self.study.tell(trial.number, [loss, cost_used(self.feasible, self.genome.decode(trial.params))])

    def scores(self) -> list[Score]:
        """Of all trials that have ended, by their number."""
        with using(self.url):
            trials = self.study.get_trials(deepcopy=False)
        found = [trial.user_attrs["score"] for trial in trials if trial.values]
        return [Score(**{**score, "widths": tuple(score["widths"])}) for score in found]

    def _enter(self, trials: list[FrozenTrial], number: int) -> bool:
        """Draw the trial of this number and enter it as one's own; False if there is no new member to be found."""
        from optuna.samplers import NSGAIISampler
        from optuna.trial import TrialState, create_trial

        key = NSGAIISampler._get_generation_key()
        ended = [trial for trial in trials if trial.values]
        sizes = Counter(trial.system_attrs[key] for trial in ended)
        generation = max(sizes, default=0)
        generation += sizes[generation] >= self.config.population
        self._say_progress(generation, ended)
        taken, rng = set(map(_name, trials)), random.Random(f"{self.seed} {number}")
        sampler = NSGAIISampler(population_size=self.config.population, seed=rng.getrandbits(32))
        trial = create_trial(state=TrialState.RUNNING, system_attrs={key: generation})
        drawn = self._draw(trial, generation, sampler, rng)
        found = next(((g, arch) for g, arch in drawn if name_of(arch) not in taken and arch in self.feasible), None)
        if found is None:
            self.say(f"evolution ends after {len(trials)} members: no other was found within the budget")
            return False
        genes, arch = found
        trial.params, trial.distributions = genes | self.genome.encode(arch), self.distributions
        trial.user_attrs = {"worker": self.worker, "genotype": arch.genotype, "widths": arch.widths}
        self.study.add_trial(trial)
        return True

    def _draw(
        self, trial: FrozenTrial, generation: int, sampler: Any, rng: random.Random
    ) -> Iterator[tuple[Genes, Arch]]:
        """Children; then members drawn from the region; then all members, where they are few enough to be listed."""
        if generation:
            # Who asks for a generation's parents first gets them by rank, whoever asks again by number, and the draws
            # go by their order. So ask once before the first draw: a resumed process would be one that asks again.
            sampler.get_parent_population(self.study, generation)
            for _ in range(TRIES):
                genes = self.genome.random(rng) | sampler.sample_relative(self.study, trial, self.distributions)
                yield genes, narrowed(self.feasible, self.genome.decode(genes))  # the random genes are the mutated ones
        for _ in range(TRIES):
            yield self.genome.random(rng), self.feasible.sample(rng)
        for arch in self.feasible.members or ():
            yield self.genome.random(rng), arch

    def _say_progress(self, generation: int, ended: list[FrozenTrial]) -> None:
        if generation > self.said:
            self.said = generation
            best = min(ended, key=lambda trial: trial.values[0])
            self.say(
                f"evolution {len(ended)} of {self.config.evaluations} members, {generation} generations; "
                f"least loss {best.values[0]:.4f}: {best.user_attrs['genotype']}"
            )


def _name(trial: FrozenTrial) -> tuple[str, tuple[int, ...]]:
    return trial.user_attrs["genotype"], tuple(trial.user_attrs["widths"])


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
