"""Settings of a search, as plain data: no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeVar

from psvit.arch.arch import MlpKind
from psvit.arch.stem_convolutions import Stem
from psvit.config import Config, Count, Fraction, Positive, Rule, Text, at_least
from psvit.data.data_config import DataConfig
from psvit.engine.train_config import Machine, Recipe, SavedConfig, light
from psvit.errors import UserError
from psvit.latency.benchmark_config import LatencyConfig

Widths = Annotated[str, Rule("a list of whole numbers such as 32,48,64", re.compile(r"\d+(,\d+)*").fullmatch)]

UpToTwo = Annotated[tuple[Count, ...], Rule("one number or two, least first", lambda given: len(given) <= 2)]
OneOrTwo = Annotated[tuple[Count, ...], Rule("one number or two, least first", lambda given: 0 < len(given) <= 2)]


@dataclass(frozen=True)
class SupernetConfig(Config):
    """How the supernet is trained.

    Args:
        draws: networks of about equal MACs trained in each step, each on its own part of the batch.
        sandwich: in every step also train the largest network on the whole batch, and the smallest on a part.
        distill: with --sandwich, train the others on the largest network's probabilities instead of the labels.
    """

    draws: Count = 1
    sandwich: bool = False
    distill: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill and not self.sandwich:
            raise UserError("--distill needs a largest network to learn from: give --sandwich too")


@dataclass(frozen=True)
class ScoringConfig(Config):
    """How networks are scored under the supernet.

    Args:
        first_slice: images of the validation split on which every network is scored.
        reduction_factor: after each round one in this many networks is kept, for a slice four times as large.
        finalists: least number of networks scored on the whole validation split.
        score_batch: images per batch; fewer if --score-memory requires it.
        score_memory: memory for activations, in GiB.
        ties: which of the networks to take whose loss is within one standard error of the least: the fastest, measured
            on this machine (latency), or the one of fewest MACs (macs), which is the same on every machine.
    """

    first_slice: Count = 128
    reduction_factor: Annotated[int, at_least(2)] = 8
    finalists: Count = 8
    score_batch: Count = 256
    score_memory: Positive = 4.0
    ties: Literal["latency", "macs"] = "latency"


@dataclass(frozen=True)
class EvolutionConfig(Config):
    """Evolution, for spaces too large to list.

    Args:
        population: number of random networks at first, and of the best so far that become parents.
        evaluations: networks scored in total, over all workers.
        storage: database that several workers share: a URL such as postgresql://user@host/name (pip
            install "psvit[postgres]"), or the path of a SQLite file; by default a SQLite file in the run folder.
        study_name: name of the search in its storage, the same for all its workers; by default psvit.
    """

    population: Annotated[int, at_least(2)] = 50  # a child has two parents
    evaluations: Count = 1000
    storage: Text | None = None
    study_name: Text | None = None


@dataclass(frozen=True)
class SpaceConfig(Config):
    """Which networks to search among.

    Args:
        depth: number of layers, or least and greatest; by default 4 to 8 for images up to 96 px, else 8 to 12.
        stages: number of stages, or least and greatest; there is one more than poolings.
        max_share: longest run of S.
        earliest_pool: least number of layers before the first pooling.
        stage_widths: widths to choose from in each stage, such as 32,48,64 64,96,128; by default --width-choices of
            them around the default network's, scaled to the budget.
        width_choices: number of widths to choose from in each stage; 1 for fixed widths.
        stems: to choose from, one or more of patch, conv, pool; by default the default network's.
        mlps: to choose from, one or both of plain and local.
        mlp_ratios: hidden channels of the MLPs over the width, to choose from.
        pooling: 1d or 2d.
        patch_size: side of a patch in pixels; by default 16, or for images up to 96 px the least power of 2 that leaves
            8 x 8 tokens, at least 2.
        head_dim: channels of one attention head; by default 16 for images up to 96 px, else 32.
        least: networks that use less than this fraction of the budget are left out.
    """

    depth: UpToTwo = ()
    stages: OneOrTwo = (1, 3)
    max_share: int = 2
    earliest_pool: int = 1
    stage_widths: tuple[Widths, ...] = ()
    width_choices: Count = 3
    stems: tuple[Stem, ...] = ()
    mlps: tuple[MlpKind, ...] = ("plain", "local")
    mlp_ratios: tuple[Positive, ...] = (2.0, 4.0)
    pooling: Literal["1d", "2d"] = "2d"
    patch_size: Count | None = None
    head_dim: Count | None = None
    least: Fraction = 0.8


@dataclass(frozen=True)
class SearchRunConfig(SavedConfig):
    """What to search for, and where to write it.

    Args:
        budget: limits on the cost of the network, one or more of: 600M (MACs), 0.5x (of the plain twin's MACs),
            params=5M, latency=5ms; by default the default network's MACs.
        method: tree scores every network within the budget, evolution some of them; auto takes the tree for up to
            50,000 networks.
        supernet_epochs: epochs of the supernet; by default one and a half times --epochs.
        insist: search without asking first whether a search can pay.
    """

    budget: tuple[str, ...] = ()
    method: Literal["auto", "tree", "evolution"] = "auto"
    supernet_epochs: Count | None = None
    insist: bool = False
    output: Text = "runs/search"


@dataclass(frozen=True)
class SearchConfig:
    """Everything that a search depends on."""

    search: SearchRunConfig = field(default_factory=SearchRunConfig)
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
    """The config without the password of a storage, for files and pages."""
    storage = config.evolution.storage
    return replace(config, evolution=replace(config.evolution, storage=storage and hidden(storage)))


def hidden(text: str) -> str:
    """The text with the passwords of URLs replaced by stars."""
    return re.sub(r"(password=)[^&\s]+", r"\1***", re.sub(r"(//[^/:@\s]*:)\S+@", r"\1***@", text))
