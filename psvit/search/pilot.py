"""The pilot: can a search pay here? Asked before it, of two short supernets that differ in their seed alone.

A search pays where it finds a network that beats the default one by more than the seed does. So a few networks and the
default are scored under both supernets. The noise is the deviation of a network's loss between the seeds. The spread is
the deviation between networks on which both supernets agree, each on its own half of the images (the covariance of two
independent measurements, which holds neither luck of the seed nor of the images). The gain is by how much the best
network of one supernet beats the default under the other, on the other half of the images (cross-fitting), so it is not
the gain of the luckiest.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from psvit.arch.arch import Arch
from psvit.arch.variants import default_arch
from psvit.data.datasets import Data
from psvit.engine.accelerator import by_the_first
from psvit.errors import UserError, one_line
from psvit.files import write_json
from psvit.search.build_space import default_member
from psvit.search.choice import Choice
from psvit.search.feasible_set import FeasibleSet
from psvit.search.front import Ranked
from psvit.search.journal import Score, name_of
from psvit.search.scoring import Floats, Scorer, Slices
from psvit.search.search_folder import PILOT, PILOTS
from psvit.search.supernet_training import SupernetTraining, train_supernet

PART, STEPS = 6, 300
"""A pilot supernet trains for one in `PART` of the supernet's epochs; for `STEPS` steps at least, or as long as it."""

NETWORKS, IMAGES = 32, 2048
"""Networks scored beside the default, and the most validation images."""

DEFAULT = "the default network"
LARGEST = "the largest network within the budget (the default one is not in this space)"

NEEDED = 2.0
"""A search pays if the gain is more than this many standard deviations between seeds."""


@dataclass(frozen=True)
class Pilot:
    """What two short supernets say about a space, in nats of the validation loss.

    Args:
        spread: standard deviation between networks, without the luck of seed and images.
        noise: standard deviation of a network between seeds.
        gain: of the best network over the default, found under one seed and measured under the other.
        epochs: of each supernet.
        images: on which each network was scored.
        scores: of the networks, their mean over both supernets; the first is the default's.
        rival: what the best network has to beat, in words: the default network, or what stands for it in this space.
    """

    spread: float
    noise: float
    gain: float
    epochs: int
    images: int
    scores: tuple[Score, ...]
    rival: str = DEFAULT

    @property
    def pays(self) -> bool:
        """Whether a search can pay."""
        return self.gain > NEEDED * self.noise

    @property
    def why(self) -> str:
        """The figures and the verdict, as a sentence."""
        beats = "beats" if self.gain >= 0 else "is behind"
        return (
            f"under two supernets of {self.epochs} epochs that differ in their seed, {len(self.scores) - 1} networks "
            f"have a standard deviation of {self.spread:.4f} nats between each other and of {self.noise:.4f} between "
            f"seeds; the best {beats} {self.rival} by {abs(self.gain):.4f}, and {NEEDED * self.noise:.4f} would be "
            f"needed: a search {'can pay' if self.pays else 'cannot be told from chance'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the scores."""
        figures = {name: value for name, value in asdict(self).items() if name != "scores"}
        return {**figures, "pays": self.pays, "why": self.why}


def the_default(pilot: Pilot, ranked: Sequence[Ranked]) -> Choice:
    """The default network as the choice, where no search can pay."""
    rank = next(one.rank for one in ranked if name_of(one.arch) == pilot.scores[0].name)
    why = f"no search can pay here, the pilot says: {pilot.rival} is taken"
    return Choice(rank, None, f"{why} (--insist --overwrite searches anyway)", ())


def judge(first: Floats, second: Floats) -> tuple[float, float, float]:
    """(spread, noise, gain) from losses under two seeds.

    Args:
        first: (networks, images) under one seed, the default network first.
        second: the same under the other seed.
    """
    images = np.random.default_rng(0).permutation(first.shape[1])  # they may come class by class
    halves = images[0::2], images[1::2]
    own = [losses[:, half].mean(axis=1) for half, losses in zip(halves, (first, second), strict=True)]
    swapped = [losses[:, half].mean(axis=1) for half, losses in zip(halves, (second, first), strict=True)]
    shared = np.mean([np.cov(*pair)[0, 1] for pair in (own, swapped)])
    apart = first.mean(axis=1) - second.mean(axis=1)
    between = apart.var(ddof=min(1, len(apart) - 1)) / 2  # what all networks have in common ranks none of them
    # chosen by one of a pair, measured by the other: another seed, other images
    pairs = [(a, b) for one, other in (own, swapped) for a, b in ((one, other), (other, one))]
    gains = [measured[0] - measured[chosen.argmin()] for chosen, measured in pairs]
    return float(max(0.0, shared)) ** 0.5, float(between) ** 0.5, float(np.mean(gains))


def run_pilot(
    feasible: FeasibleSet,
    config: SupernetTraining,
    data: Data,
    slices: Slices,
    accelerator: Accelerator,
    folder: Path,
    say: Callable[[str], None],
) -> Pilot:
    """Train both supernets, score a few networks and the default, and keep the result in `folder`.

    Args:
        feasible: the networks.
        config: of the supernet whose training the pilot precedes.
        data: the images.
        slices: of the validation split.
        accelerator: device, precision, processes.
        folder: of the search.
        say: takes lines for the user.
    """
    if (kept := by_the_first(accelerator, lambda: _kept(folder / PILOT))) is not None:
        return kept
    members = [default_member(feasible), *_drawn(feasible, config.data.seed)]
    whole, images = config.recipe.epochs, min(len(slices), IMAGES)
    steps = max(1, len(data.train) // config.recipe.global_batch(accelerator.num_processes))  # of an epoch
    epochs = min(whole, max(ceil(whole / PART), ceil(STEPS / steps)))
    found = []
    for number, name in enumerate(PILOTS, start=1):
        say(f"pilot     can a search pay? Supernet {number} of 2, {epochs} epochs")
        short = replace(
            config,
            data=replace(config.data, seed=(config.data.seed + number) % 2**32, split_seed=config.data.seed_of_split),
            recipe=replace(config.recipe, epochs=epochs),
            run=replace(config.run, output=str(folder / name)),
        )
        supernet, here = train_supernet(feasible, short, data, say)
        score = partial(Scorer(supernet, here).measure, members, slices.batches(images))
        found.append(by_the_first(here, score))  # the same verdict in all processes
    losses, hits = np.mean(found, axis=0).mean(axis=2)
    scores = tuple(
        Score(name_of(arch), float(loss), 100 * float(hit), images)
        for arch, loss, hit in zip(members, losses, hits, strict=True)
    )
    rival = DEFAULT if members[0].genotype == default_arch(data.img_size).genotype else LARGEST
    pilot = Pilot(*judge(found[0][0], found[1][0]), epochs, images, scores, rival)
    if accelerator.is_main_process:
        write_json(folder / PILOT, {**asdict(pilot), "scores": [score.to_dict() for score in scores]})
    return pilot


def _drawn(feasible: FeasibleSet, seed: int) -> list[Arch]:
    """Different networks, as far as a few draws find them."""
    rng, default = random.Random(f"pilot {seed}"), default_member(feasible)
    drawn = dict.fromkeys(feasible.sample(rng) for _ in range(4 * NETWORKS))
    return [arch for arch in drawn if arch != default][:NETWORKS]


def _kept(path: Path) -> Pilot | None:
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Pilot(**{**data, "scores": tuple(map(Score.from_dict, data["scores"]))})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken ({one_line(error, kind=True)}): remove it to ask again") from error
