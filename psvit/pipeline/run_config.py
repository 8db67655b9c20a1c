"""What `psvit run` depends on: a search, and what its network is compared with. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from psvit.data.data_config import as_tuple
from psvit.engine.train_config import RunConfig
from psvit.errors import UserError
from psvit.search.search_config import SearchConfig, SearchFolder


@dataclass(frozen=True)
class CompareConfig:
    """What to compare, and where it is kept.

    Args:
        models: deit (the plain twin, as deep as the searched network), psvit_1d and psvit_2d (made by hand), searched,
            random (a member of the searched space), deit12 (twelve layers), genotypes, and models of timm; PSViTs,
            DeiTs and ResNets are scaled to the MACs of searched, random is drawn near them.
        genotype: of psvit_1d and psvit_2d; by default that of psvit_2d_tiny, or AS-ASS-AS for images up to 96 px.
        patch_size: side of a patch in pixels; by default 16, or an eighth of the side for images up to 96 px.
        head_dim: channels of one attention head; by default 64, or 16 for images up to 96 px.
        macs: MACs of every network, for example 25M: the same as --budget 25M.
        inherit: start the searched network from its weights in the supernet, instead of from scratch.
        output: folder of the run; each network has a folder of its own in it.
        results: JSON file to write the results to as well.
        resume: go on with the run that the folder holds; where it holds none yet, begin one.
        overwrite: throw away the run that the folder holds.
        save_every: optimizer steps between two savings of the state for --resume.
    """

    models: tuple[str, ...] = ("deit", "random", "psvit_2d", "searched")
    genotype: str | None = None
    patch_size: int | None = None
    head_dim: int | None = None
    macs: str | None = None
    inherit: bool = False
    output: str = "runs/run"
    results: str | None = None
    resume: bool = False
    overwrite: bool = False
    save_every: int = 200

    def __post_init__(self) -> None:
        RunConfig(self.output, self.resume, self.overwrite, self.save_every)  # the same rules
        object.__setattr__(self, "models", as_tuple(self.models))
        if not self.models:
            raise UserError("--models is empty: name at least one network")


@dataclass(frozen=True)
class RunAllConfig(SearchConfig):
    """Everything that ``psvit run`` depends on: a search, and what its network is compared with."""

    search: SearchFolder = field(default_factory=lambda: SearchFolder(output=CompareConfig.output))
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
        """Whether a network that is compared comes from the search."""
        return not {"searched", "random"}.isdisjoint(self.compare.models)

    def search_config(self) -> SearchConfig:
        """Those of the search, which is kept in a folder beneath the run's."""
        own, kept = self.compare, {f.name: getattr(self, f.name) for f in fields(SearchConfig)}
        folder = replace(
            self.search,
            budget=self.search.budget if own.macs is None else (own.macs,),
            output=str(Path(own.output) / "search"),
            resume=own.resume,
            overwrite=own.overwrite,
            save_every=own.save_every,
        )
        return SearchConfig(**{**kept, "search": folder})
