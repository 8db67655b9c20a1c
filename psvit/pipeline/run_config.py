"""The settings of `psvit run`: a search, and the networks to compare. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

from psvit.config import Count, Rule, Text
from psvit.engine.train_config import SavedConfig
from psvit.errors import UserError
from psvit.search.search_config import SearchConfig, SearchRunConfig


@dataclass(frozen=True)
class CompareConfig(SavedConfig):
    """What to compare, and the folder.

    Args:
        models: deit (the plain twin, as deep as the searched network), psvit_1d and psvit_2d (hand-made), searched,
            random (a network drawn from the search space), deit12 (twelve layers), genotypes, and models of timm;
            PSViTs, DeiTs and ResNets are scaled to the MACs of searched, random is drawn near them.
        genotype: of psvit_1d and psvit_2d; by default that of psvit_2d_tiny, or AS-ASS-AS for images up to 96 px.
        patch_size: side of a patch in pixels; by default 16, or an eighth of the side for images up to 96 px.
        head_dim: channels of one attention head; by default 64, or 16 for images up to 96 px.
        macs: MACs of every network, for example 25M: the same as --budget 25M.
        inherit: start the searched network from its weights in the supernet, instead of from scratch.
        output: folder of the run; each network has a folder of its own in it.
        results: JSON file to write the results to as well.
    """

    models: Annotated[tuple[Text, ...], Rule("one or more networks", len)] = ("deit", "random", "psvit_2d", "searched")
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
