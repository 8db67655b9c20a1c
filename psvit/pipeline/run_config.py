"""The settings of `psvit run`: a search, and the networks to compare. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

from psvit.config import Count, Rule, Text
from psvit.engine.train_config import SavedConfig
from psvit.errors import UserError
from psvit.search.search_config import SearchConfig, SearchRunConfig

CONTENDERS = ("deit", "deit12", "psvit_1d", "psvit_2d", "psvit_plus", "plain_twin")
"""Names of networks with an Arch in comparisons, besides searched, random and genotypes."""


def is_ours(network: str) -> bool:
    """Whether a name stands for a network with an Arch (not searched or random, not of timm)."""
    return network in CONTENDERS or set(network) <= set("AS-")


@dataclass(frozen=True)
class CompareConfig(SavedConfig):
    """What to compare, and the folder.

    Args:
        models: searched; random (a network drawn from the search space); psvit_plus, psvit_2d and psvit_1d (made by
            hand); plain_twin (stem and layers of the searched network, or else of psvit_plus, without pooling between
            them and without sharing); deit (of the same depth) and deit12 (of twelve layers); genotypes; models of
            timm. All but random and timm's are scaled to the MACs of searched, and ResNets too; random is near them.
        genotype: of the networks made by hand; by default their own.
        patch_size: side of a patch in pixels; by default as in the networks made by hand.
        head_dim: channels of one attention head; by default as in the networks made by hand.
        macs: MACs of every network, for example 25M: the same as --budget 25M.
        inherit: start the searched network from its weights in the supernet, instead of from scratch.
        output: folder of the run; each network has a folder of its own in it.
        results: JSON file to write the results to as well.
    """

    models: Annotated[tuple[Text, ...], Rule("one or more networks", len)] = (
        "plain_twin",
        "resnet18",
        "random",
        "psvit_plus",
        "searched",
    )
    genotype: str | None = None
    patch_size: Count | None = None
    head_dim: Count | None = None
    macs: str | None = None
    inherit: bool = False
    output: Text = "runs/run"
    results: str | None = None


@dataclass(frozen=True)
class RunAllConfig(SearchConfig):
    """All settings of ``psvit run``: a search, and the networks to compare."""

    search: SearchRunConfig = field(default_factory=lambda: SearchRunConfig(output=CompareConfig.output))
    compare: CompareConfig = field(default_factory=CompareConfig)

    def __post_init__(self) -> None:
        if self.compare.macs is not None and self.search.budget:
            raise UserError(f"--macs {self.compare.macs} and --budget are the same limit: give one of them")
        if self.search.budget and not self.searches:
            raise UserError("--budget is the search's: add searched to --models, or give --macs")
        if self.compare.inherit and "searched" not in self.compare.models:
            raise UserError("--inherit is about the searched network: add searched to --models")

    @property
    def searches(self) -> bool:
        """Whether one of the compared networks comes from a search."""
        return not {"searched", "random"}.isdisjoint(self.compare.models)

    def search_config(self) -> SearchConfig:
        """The settings of the search, whose folder is search/ in the run's."""
        own, kept = self.compare, {f.name: getattr(self, f.name) for f in fields(SearchConfig)}
        folder = replace(
            self.search,
            budget=self.search.budget if own.macs is None else (own.macs,),
            **{f.name: getattr(own, f.name) for f in fields(SavedConfig)}
            | {"output": str(Path(own.output) / "search")},
        )
        return SearchConfig(**{**kept, "search": folder})
