"""Settings of a search, as plain data: no torch, so that a command line is quick to build."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from psvit.data.data_config import DataConfig, as_tuple
from psvit.engine.train_config import Machine, Recipe, RunConfig, light
from psvit.errors import UserError, flag
from psvit.latency.benchmark_config import LatencyConfig
from psvit.search.evolution import EvolutionConfig
from psvit.search.storage import hidden


@dataclass(frozen=True)
class SupernetConfig:
    """How the supernet learns.

    Args:
        draws: members that learn in one step, each from its own part of the batch.
        sampling: uniform over the members, or balanced over the numbers of stages.
        entangle: layers that members share: those with the same number in the same stage (stage), or with the same
            number from the input, whatever their stage (place).
        sandwich: in every step the dearest member learns from the whole batch besides, and the cheapest from a part.
        distill: with --sandwich, the others learn the dearest member's probabilities instead of the labels.
    """

    draws: int = 1
    sampling: Literal["uniform", "balanced"] = "uniform"
    entangle: Literal["stage", "place"] = "stage"
    sandwich: bool = False
    distill: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.draws, int) or isinstance(self.draws, bool) or self.draws < 1:
            raise UserError(f"--draws {self.draws!r} is not a positive whole number")
        for name, choices in (("sampling", ("uniform", "balanced")), ("entangle", ("stage", "place"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{flag(name)} {getattr(self, name)!r} is not {' or '.join(choices)}")
        if self.distill and not self.sandwich:
            raise UserError("--distill needs a dearest member to learn from: give --sandwich too")


@dataclass(frozen=True)
class ScoringConfig:
    """How members are scored under the supernet.

    Args:
        first_slice: images of the validation split on which every member is scored.
        reduction_factor: after each round one in this many members goes on, to a slice four times as large.
        finalists: members that are scored on the whole validation split at least.
        score_batch: images of a batch; fewer are taken where --score-memory demands it.
        score_memory: memory for the layers of a path under way, in GiB.
    """

    first_slice: int = 128
    reduction_factor: int = 8
    finalists: int = 8
    score_batch: int = 256
    score_memory: float = 4.0

    def __post_init__(self) -> None:
        for name, least in (("first_slice", 1), ("reduction_factor", 2), ("finalists", 1), ("score_batch", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{flag(name)} {value!r} is not a whole number of at least {least}")
        if not self.score_memory > 0:
            raise UserError(f"--score-memory {self.score_memory!r} is not positive")


@dataclass(frozen=True)
class SpaceConfig:
    """Which networks to search among.

    Args:
        depth: layers: one number, or the least and the greatest; by default 4 to 8 for images up to 96 px, else 12.
        stages: stages, one more than poolings: one number, or the least and the greatest.
        max_share: longest run of S.
        earliest_pool: layers that stand before the first pooling at least.
        stage_widths: for each stage, the widths to choose from, as 32,48,64 64,96,128; by default so many around the
            default network's as --width-choices says, after it was scaled to the budget.
        width_choices: widths to choose from in each stage, 1 for fixed ones.
        pooling: 1d or 2d.
        patch_size: side of a patch in pixels; by default 16, or an eighth of the side for images up to 96 px.
        head_dim: channels of one attention head; by default 16 for images up to 96 px, else 32.
        least: networks that use less than this part of the budget are left out.
    """

    depth: tuple[int, ...] = ()
    stages: tuple[int, ...] = (1, 3)
    max_share: int = 2
    earliest_pool: int = 1
    stage_widths: tuple[str, ...] = ()
    width_choices: int = 4
    pooling: Literal["1d", "2d"] = "2d"
    patch_size: int | None = None
    head_dim: int | None = None
    least: float = 0.8

    def __post_init__(self) -> None:
        for name in ("depth", "stages"):
            values = getattr(self, name)
            given = values if isinstance(values, (tuple, list)) else (values,)
            if len(given) > 2 or (name == "stages" and not given):
                raise UserError(f"{flag(name)} {' '.join(map(str, given))} is not one number or two, least first")
            object.__setattr__(self, name, tuple(given))
        if not isinstance(self.width_choices, int) or self.width_choices < 1:
            raise UserError(f"--width-choices {self.width_choices!r} is not a positive whole number")
        if not 0 <= self.least < 1:
            raise UserError(f"--least {self.least!r} is not a part of the budget: give 0 or more, less than 1")
        object.__setattr__(self, "stage_widths", as_tuple(self.stage_widths))
        for name in ("patch_size", "head_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{flag(name)} {getattr(self, name)!r} is not a positive whole number")
        for text in self.stage_widths:
            if not re.fullmatch(r"\d+(,\d+)*", text):
                raise UserError(f"--stage-widths {text!r} is not a list of whole numbers such as 32,48,64")


@dataclass(frozen=True)
class SearchFolder:
    """What to search for, and where it is kept.

    Args:
        budget: what the network may cost at most, one or more of: 600M (MACs), 0.5x (of the plain twin's MACs),
            params=5M, latency=5ms; by default the default network's MACs.
        method: tree scores every network of the space, evolution a part of them; auto takes the tree for up to
            20,000 networks.
        supernet_epochs: epochs of the supernet; by default one and a half times --epochs.
        output: folder of the run.
        resume: go on with the run that the folder holds; where it holds none yet, begin one.
        overwrite: throw away the run that the folder holds.
        save_every: optimizer steps between two savings of the state for --resume.
    """

    budget: tuple[str, ...] = ()
    method: Literal["auto", "tree", "evolution"] = "auto"
    supernet_epochs: int | None = None
    output: str = "runs/search"
    resume: bool = False
    overwrite: bool = False
    save_every: int = 200

    def __post_init__(self) -> None:
        RunConfig(self.output, self.resume, self.overwrite, self.save_every)  # the same rules
        object.__setattr__(self, "budget", as_tuple(self.budget))
        if self.method not in ("auto", "tree", "evolution"):
            raise UserError(f"--method {self.method!r} is not auto, tree or evolution")
        if self.supernet_epochs is not None and self.supernet_epochs < 1:
            raise UserError(f"--supernet-epochs {self.supernet_epochs!r} is not a positive whole number")


@dataclass(frozen=True)
class SearchConfig:
    """Everything that a search depends on."""

    search: SearchFolder = field(default_factory=SearchFolder)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    supernet: SupernetConfig = field(default_factory=SupernetConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=light)
    machine: Machine = field(default_factory=Machine)


Shown = TypeVar("Shown", bound=SearchConfig)


def shown(config: Shown) -> Shown:
    """The settings as files and pages tell them: without the password of a storage."""
    storage = config.evolution.storage
    return replace(config, evolution=replace(config.evolution, storage=storage and hidden(storage)))
