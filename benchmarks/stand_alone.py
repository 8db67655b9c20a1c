"""Networks of Fashion-MNIST trained alone, for the benchmarks of the search; every training is kept and resumed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.data.data_config import DataConfig
from psvit.engine.recipes import recipe_named
from psvit.engine.train_config import Machine, Recipe, RunConfig, TrainConfig
from psvit.search.journal import name_of
from psvit.search.search_config import SearchConfig, SearchRunConfig, SpaceConfig

SHAPE = (28, 1, 10)
"""Side of the images, channels, classes."""


@dataclass(frozen=True)
class Setting:
    """What all trainings have in common; each setting has a folder of its own.

    Args:
        limit: training images; 0 for all.
        epochs: of each training.
        macs: budget of each network.
    """

    limit: int
    epochs: int
    macs: float

    @classmethod
    def from_flags(cls, parser: argparse.ArgumentParser) -> tuple[Setting, argparse.Namespace]:
        """Parse the command line, with the flags of a setting and of workers."""
        parser.add_argument("--limit", type=int, default=0, help="training images; 0: all")
        parser.add_argument("--epochs", type=int, default=4)
        parser.add_argument("--macs", type=float, default=6e6)
        parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
        parser.add_argument("--worker", type=int, default=0, help="takes one in --workers of the trainings")
        parser.add_argument("--workers", type=int, default=1)
        parser.add_argument("--output", type=Path, help="file for the report")
        given = parser.parse_args()
        return cls(given.limit, given.epochs, given.macs), given

    @property
    def folder(self) -> Path:
        """Where everything is kept."""
        return Path(f"runs/alone-{self.limit or 'all'}-{self.epochs}-{self.macs / 1e6:g}M")

    def data(self, seed: int) -> DataConfig:
        """The images; the same for every seed."""
        return DataConfig("fashion-mnist", limit=self.limit or None, seed=seed, split_seed=0)

    def recipe(self) -> Recipe:
        """The recipe that fits so many epochs."""
        return recipe_named("auto", self.epochs, SHAPE[0])

    def machine(self) -> Machine:
        """One core."""
        return Machine("cpu", "float32", 1)

    def search(self, folder: Path, seed: int = 0, **space: Any) -> SearchConfig:
        """A search within the budget of MACs."""
        run = SearchRunConfig(budget=(f"{self.macs:.0f}",), output=str(folder), resume=True)
        data, recipe = self.data(seed), self.recipe()
        return SearchConfig(run, SpaceConfig(**space), data=data, recipe=recipe, machine=self.machine())

    def train(self, arch: Arch, seed: int) -> dict[str, Any]:
        """Train a network, or go on with it; the metrics of its last epoch on the validation split."""
        from psvit.tasks.classification.classify import train

        folder = self.folder_of(arch, seed)
        run = RunConfig(str(folder), resume=True)
        train(TrainConfig(ModelConfig(arch), self.data(seed), self.recipe(), machine=self.machine(), run=run))
        return self.result(arch, seed)

    def result(self, arch: Arch, seed: int) -> dict[str, Any]:
        """What `train` returned."""
        lines = (self.folder_of(arch, seed) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        if len(lines) < self.epochs:
            raise SystemExit(f"{self.folder_of(arch, seed)} is not trained to its end: train it first")
        last: dict[str, Any] = json.loads(lines[-1])
        return last

    def folder_of(self, arch: Arch, seed: int) -> Path:
        """The folder of a training."""
        genotype, widths, *elements = name_of(arch)
        return self.folder / f"{genotype}_{'-'.join(map(str, (*widths, *elements)))}_{seed}"


def train_share(setting: Setting, archs: Sequence[Arch], given: argparse.Namespace) -> None:
    """Train this worker's share of the networks, all with the first seed before the second."""
    tasks = [(arch, seed) for seed in given.seeds for arch in archs]
    for number, (arch, seed) in enumerate(tasks):
        if number % given.workers == given.worker:
            last = setting.train(arch, seed)
            print(f"{number + 1:>3} of {len(tasks)}: {arch!s:<40} seed {seed}: top-1 {last['top1']:.2f}", flush=True)
