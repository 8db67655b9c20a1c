"""Score networks under the supernet: all on the prefix tree, or some by evolution."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import Accelerator

from psvit.arch.arch import Arch
from psvit.engine.interrupts import interrupts
from psvit.errors import StoppedError, UserError
from psvit.search.evolution import evolve
from psvit.search.feasible_set import FeasibleSet
from psvit.search.halving import rank_all
from psvit.search.journal import Score
from psvit.search.scoring import Scorer, Slices
from psvit.search.search_config import EvolutionConfig, SearchConfig
from psvit.search.search_folder import JOURNAL
from psvit.search.supernet import Supernet

LISTED = 50_000
"""``--method auto`` scores all networks up to this many."""

EVOLUTION_SLICE = 1024
"""Validation images on which evolution scores a network."""


class InterruptedSearchError(StoppedError):
    """The user stopped a search during scoring; the scores are kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped while scoring, all scores are kept in {folder}: go on with --resume")


def score_members(
    feasible: FeasibleSet,
    supernet: Supernet,
    slices: Slices,
    accelerator: Accelerator,
    config: SearchConfig,
    say: Callable[[str], None],
) -> list[Score]:
    """Score all networks, or those that evolution chooses."""
    folder = Path(config.search.output)
    with interrupts() as interrupt:

        def stop() -> None:
            if interrupt.requested(accelerator):
                raise InterruptedSearchError(folder)

        if use_tree(feasible, config):
            return rank_all(feasible, supernet, slices, accelerator, folder / JOURNAL, config.scoring, say, stop)
        scorer, images = Scorer(supernet, accelerator), min(len(slices), EVOLUTION_SLICE)

        def evaluate(arch: Arch) -> Score:
            stop()
            return replace(scorer.score([arch], slices.batches(images))[0], images=images)

        return evolve(feasible, evaluate, _evolution(config), folder, config.data.seed, say)


def _evolution(config: SearchConfig) -> EvolutionConfig:
    """The settings; a search in a shared storage is named by a hash of all that the supernet depends on."""
    if not config.evolution.storage or config.evolution.study_name:
        return config.evolution
    about = {name: asdict(getattr(config, name)) for name in ("space", "supernet", "data", "recipe", "scoring")}
    for local in ("workers", "data_dir", "accept_changes", "image_cache", "image_cache_dir"):
        del about["data"][local]
    about["search"] = {"budget": config.search.budget, "epochs": config.search.supernet_epochs}
    text = json.dumps([about, config.machine.precision], sort_keys=True)
    name = f"psvit-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return replace(config.evolution, study_name=name)


def use_tree(feasible: FeasibleSet, config: SearchConfig) -> bool:
    """Whether all networks are scored on the prefix tree.

    Raises:
        UserError: the tree was asked for, but the networks cannot be listed.
    """
    if config.search.method != "auto":
        if config.search.method == "tree" and feasible.members is None:
            raise UserError(
                "--method tree lists every network, and these are too many: take evolution, or a smaller space"
            )
        return config.search.method == "tree"
    return feasible.count(at_most=LISTED + 1) <= LISTED
