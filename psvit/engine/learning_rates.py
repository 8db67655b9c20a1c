"""The learning rate of a training to which none is given: that of its network's family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from psvit.arch.arch import ATTEND, Arch
from psvit.arch.model_config import Auto, Checkpoint, ModelConfig
from psvit.arch.variants import default_arch
from psvit.engine.checkpoints import read_json
from psvit.engine.resuming import RUN_CONFIG
from psvit.engine.train_config import LearnConfig

Family = Literal["deit", "psvit_1d", "psvit_2d", "psvit_plus", "plain_twin", "resnet18", "resnet50", "other"]

BASE_LR: dict[Family, float] = {
    "deit": 1.6e-2,
    "psvit_1d": 1.6e-2,
    "psvit_2d": 3.2e-2,
    "psvit_plus": 1.6e-2,
    "plain_twin": 3.2e-2,
    "resnet18": 3.2e-2,
    "resnet50": 8e-3,
    "other": 4e-3,
}
"""AdamW's learning rate for a global batch of 512 images, by family.

Each is the best of one grid on the validation split for the network of this name (``psvit study tuning``,
docs/results/tuning.json). Other models of timm are not tuned.
"""

LAYERS = ("stem", "genotype", "pooling")
BASIC_BLOCKS = ("resnet10t", "resnet18", "resnet34")

Learn = TypeVar("Learn", bound=LearnConfig)


def with_learning_rate(config: Learn, family: Family | None = None) -> Learn:
    """The settings with their base_lr filled in, if it is None: that of the run to resume, else of the family.

    Args:
        config: of the training.
        family: of the network; by default that of config.model.

    Raises:
        UserError: the network is a checkpoint that cannot be read.
    """
    recipe = config.recipe
    if recipe.base_lr is not None:
        return config
    if (before := _recorded(config)) is not None:
        return replace(config, recipe=replace(recipe, base_lr=before["base_lr"]))
    if recipe.lr is not None:
        return config
    return replace(config, recipe=replace(recipe, base_lr=BASE_LR[family or family_of(config.model)]))


def _recorded(config: LearnConfig) -> dict[str, Any] | None:
    """The recipe of the run to resume; None without one. A broken record is reported when the run is resumed."""
    if not config.run.resume:
        return None
    try:
        record = json.loads((Path(config.run.output) / RUN_CONFIG).read_text(encoding="utf-8"))
        return {"base_lr": record["config"]["recipe"]["base_lr"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def family_of(model: ModelConfig) -> Family:
    """The family of a network.

    ``deit``: plain networks on patches, DeiTs and ViTs of timm; ``psvit_1d`` and ``psvit_2d``: pooled or shared, on
    patches or behind convolutions; ``psvit_plus``: behind a pooling stem; ``plain_twin``: behind it, but neither
    pooled nor shared; ``resnet18``: ResNets of timm with basic blocks; ``resnet50``: the other ResNets; ``other``: any
    other model of timm.

    Raises:
        UserError: a checkpoint that cannot be read.
    """
    network = model.network
    if isinstance(network, Auto):
        usual = default_arch()
        return family_of_layers(**{name: network.changes.get(name, getattr(usual, name)) for name in LAYERS})
    if isinstance(network, Arch):
        return family_of_layers(network.stem, network.genotype, network.pooling)
    if not isinstance(network, Checkpoint):
        return _family_of_timm(network.name)
    config = read_json(network.folder)
    arch = config.get("psvit", {}).get("arch")
    if arch is None:
        return _family_of_timm(str(config.get("architecture")))
    return family_of_layers(arch.get("stem", Arch.stem), arch.get("genotype", ""), arch.get("pooling", Arch.pooling))


def family_of_layers(stem: str, genotype: str, pooling: str) -> Family:
    """The family of an Arch with these fields."""
    plain = set(genotype) == {ATTEND}
    if stem == "pool":
        return "plain_twin" if plain else "psvit_plus"
    if plain and stem == "patch":
        return "deit"
    return "psvit_1d" if pooling == "1d" else "psvit_2d"


def _family_of_timm(name: str) -> Family:
    if name.startswith(BASIC_BLOCKS):
        return "resnet18"
    if name.startswith("resnet"):
        return "resnet50"
    return "deit" if name.startswith(("deit", "vit_")) else "other"
