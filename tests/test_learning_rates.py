"""The learning rate of a training to which none is given: its network's family's, and the same when it is resumed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import Cli, config, read, stop_at

from psvit.arch.model_config import ModelConfig
from psvit.engine import learning_rates
from psvit.engine.learning_rates import BASE_LR, family_of, with_learning_rate
from psvit.engine.recipes import RECIPES, fitting, recipe_named
from psvit.engine.train_config import light
from psvit.studies.study_file import read_study

TUNING = Path(__file__).parent.parent / "docs" / "results" / "tuning.json"


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (ModelConfig.of("AAA"), "deit"),
        (ModelConfig.of("AS-A"), "psvit_2d"),
        (ModelConfig.of("AAA", stem="conv"), "psvit_2d"),
        (ModelConfig.of("psvit_1d_small"), "psvit_1d"),
        (ModelConfig.of("AS-A", stem="pool"), "psvit_plus"),
        (ModelConfig.of("AAA", stem="pool"), "plain_twin"),
        (ModelConfig.of("deit_tiny_patch16_224"), "deit"),
        (ModelConfig.of("vit_small_patch16_224"), "deit"),
        (ModelConfig.of("resnet34d"), "resnet18"),
        (ModelConfig.of("resnet101"), "resnet50"),
        (ModelConfig.of("convnext_tiny"), "other"),
        (ModelConfig.of("auto"), "psvit_plus"),
        (ModelConfig.of("auto", stem="patch", genotype="AAA"), "deit"),
    ],
)  # fmt: skip
def test_families(model: ModelConfig, family: str) -> None:
    assert family_of(model) == family


def test_a_given_learning_rate_wins() -> None:
    for given in ({"lr": 0.1}, {"base_lr": 0.2}, {"lr": 0.1, "base_lr": 0.2}):
        asked = config(**given) if "base_lr" in given else config(base_lr=None, **given)
        assert with_learning_rate(asked) == asked
    other = with_learning_rate(config(base_lr=None, model=ModelConfig.of("resnet18")))
    assert other.recipe.scaled_lr(2) == BASE_LR["resnet18"] * 32 / 512
    with pytest.raises(ValueError, match="that of the network's family"):
        light().scaled_lr(1)


def test_a_checkpoint_has_the_family_of_its_network(trained: Path, tmp_path: Path) -> None:
    assert family_of(ModelConfig.of(str(trained))) == "psvit_2d"
    for name, family in (("vit_tiny_patch16_224", "deit"), ("resnet10t", "resnet18")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architecture": name}))
        (folder / "model.safetensors").touch()
        assert family_of(ModelConfig.of(str(folder))) == family


@pytest.mark.usefixtures("threads_kept")
def test_a_resumed_run_keeps_its_learning_rate(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the family's has changed since."""
    words = ["train", "--data", "digits", "--limit", "48", "--model", "AS-A", "--widths", "16", "32", "--head-dim", "8",
             "--patch-size", "2", "--device", "cpu", "--epochs", "2", "--batch-size", "16"]  # fmt: skip
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        said = cli.refused(*words, "--output", tmp_path / "run")
        assert "stopped" in said
    kept = read(tmp_path / "run" / "run_config.json")["config"]["recipe"]
    assert (kept["base_lr"], kept["lr"]) == (BASE_LR["psvit_2d"], None)
    before = BASE_LR["psvit_2d"]
    monkeypatch.setitem(learning_rates.BASE_LR, "psvit_2d", 1.0)
    said = cli.ok(*words, "--output", tmp_path / "run", "--resume")
    assert f"lr        {before * 16 / 512:.3g} = {before:g} x 16 / 512" in said
    assert "lr        0.0312 = 1 x 16 / 512" in cli.ok(*words, "--output", tmp_path / "new")


def test_the_recipe_that_fits() -> None:
    for epochs, side, name in (
        (4, 28, "light"), (30, 96, "light"), (None, 8, "light"), (300, 28, "light"),
        (4, 224, "photos"), (50, 97, "photos"), (None, 224, "photos"), (300, 224, "deit"),
    ):  # fmt: skip
        assert fitting(epochs, side)[0] == name
    assert {one().base_lr for name, one in RECIPES.items() if name != "deit"} == {None}
    assert RECIPES["deit"]().base_lr == 5e-4, "DeiT's own"
    assert [recipe_named("auto", 4, side).augment.shift for side in (8, 28, 64, 224)] == [1, 2, 5, 0]


def test_the_learning_rates_are_the_best_of_their_study() -> None:
    top1: dict[str, dict[float, float]] = {}
    for group in json.loads(TUNING.read_text(encoding="utf-8"))["groups"]:
        for row in group["rows"]:
            if row["mean"] is not None:  # a training that diverged is no best
                top1.setdefault(row["label"], {})[4 * row["lr"]] = row["mean"]
    best = {name: max(rates, key=rates.__getitem__) for name, rates in top1.items()}
    assert best == {name: rate for name, rate in BASE_LR.items() if name != "other"}


def test_the_ladder_is_trained_at_the_learning_rate_of_its_top() -> None:
    *elements, _ = read_study("ladder").groups
    assert {group.recipe.base_lr for group in elements} == {BASE_LR["psvit_plus"]}


def test_the_study_holds_all_that_is_tuned() -> None:
    """One grid for all networks, read on the validation split."""
    study = read_study("tuning")
    assert study.reads == "validation"
    rates = [group.recipe.lr for group in study.groups]
    assert rates == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    wanted = {*BASE_LR} - {"other"}
    assert all({network.label for network in group.networks} == wanted for group in study.groups)
    assert {group.recipe.batch_size for group in study.groups} == {128}
    same: Any = {replace(group, name="", recipe=replace(group.recipe, lr=None)) for group in study.groups}
    assert len(same) == 1
