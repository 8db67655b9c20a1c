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

Family = Literal["deit", "psvit", "psvit_plus", "resnet", "other"]

BASE_LR: dict[Family, float] = {
    "deit": 4e-3,
    "psvit": 4e-3,
    "psvit_plus": 1.6e-2,
    "resnet": 1.6e-2,
    "other": 4e-3,
}
"""AdamW's learning rate for a global batch of 512 images, by family.

Placeholders from a prototype, until docs/results/tuning.json holds the results of ``psvit study tuning``: then each is
the best of the study's grid on the validation split, for the `TUNED` networks of the family together. Other models of
timm are not tuned; they take DeiT's.
"""

TUNED: dict[Family, tuple[str, ...]] = {
    "deit": ("deit",),
    "psvit": ("psvit_1d", "psvit_2d"),
    "psvit_plus": ("psvit_plus", "plain_twin"),
    "resnet": ("resnet18", "resnet50"),
}
"""The networks of the study tuning, by family."""

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

    ``deit``: plain networks on patches, DeiTs and ViTs of timm; ``psvit``: pooled or shared; ``psvit_plus``: with a
    pooling stem, the plain twin too; ``resnet``: ResNets of timm; ``other``: any other model of timm.

    Raises:
        UserError: a checkpoint that cannot be read.
    """
    network = model.network
    if isinstance(network, Auto):
        usual = default_arch()
        asked = {"stem": usual.stem, "genotype": usual.genotype, **network.changes}
        return family_of_layers(asked["stem"], asked["genotype"])
    if isinstance(network, Arch):
        return family_of_layers(network.stem, network.genotype)
    if not isinstance(network, Checkpoint):
        return _family_of_timm(network.name)
    config = read_json(network.folder)
    arch = config.get("psvit", {}).get("arch")
    if arch is None:
        return _family_of_timm(str(config.get("architecture")))
    return family_of_layers(arch.get("stem", "patch"), arch.get("genotype", ""))


def family_of_layers(stem: str, genotype: str) -> Family:
    """The family of an Arch with this stem and genotype."""
    if stem == "pool":
        return "psvit_plus"
    return "deit" if stem == "patch" and set(genotype) == {ATTEND} else "psvit"


def _family_of_timm(name: str) -> Family:
    if name.startswith("resnet"):
        return "resnet"
    return "deit" if name.startswith(("deit", "vit_")) else "other"
