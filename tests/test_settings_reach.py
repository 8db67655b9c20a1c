"""What is asked of a network reaches it, or is refused by its name: no setting is taken and dropped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import refuses
from tiny import Cli

from psvit.arch.arch import ARCH_FIELDS, Arch
from psvit.arch.model_config import ARCH_FILE, ModelConfig
from psvit.data.datasets import Data
from psvit.engine.checkpoints import save_checkpoint
from psvit.engine.open_model import open_model
from psvit.errors import flag
from psvit.pipeline.baselines import baseline, baselines
from psvit.pipeline.run_config import CompareConfig
from psvit.studies.definition import Study
from psvit.studies.study_file import read_study

BASE = Arch("AS-A", widths=(16, 32), head_dim=8, patch_size=2)
OTHERS: dict[str, Any] = {
    "genotype": "AA-A",
    "widths": (32, 64),
    "head_dim": 16,
    "mlp_ratio": 3.0,
    "pooling": "1d",
    "patch_size": 4,
    "stride": 4,
    "class_token": True,
    "qkv_bias": False,
    "pool_order": "pool-conv",
    "pool_conv": "depthwise",
    "pool_kernel": 5,
    "pool_op": "avg",
    "sharing": "projections",
    "windows": (2, 0),
    "stem": "conv",
    "pool_norm": True,
    "mlp": "local",
}
"""Of each field of Arch a value that is not its default."""

FALSY: dict[str, Any] = {
    **dict.fromkeys(("head_dim", "mlp_ratio", "patch_size", "stride", "pool_kernel"), 0),
    "genotype": "", "widths": (), "windows": (), "class_token": False, "qkv_bias": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ARCH_FIELDS)
def test_a_field_of_arch_reaches_the_network(name: str) -> None:
    besides = {"stem": {"patch_size": 4, "stride": 4}, "stride": {"patch_size": 6}}
    arch = replace(BASE, **{**besides.get(name, {}), name: OTHERS[name]})
    assert getattr(arch, name) != getattr(BASE, name)
    named = ModelConfig(arch).flags().config()
    assert open_model(named, img_size=24, in_chans=1, num_classes=3).arch == arch


@pytest.mark.parametrize("name", ARCH_FIELDS)
def test_a_field_in_a_studys_yaml_reaches_the_network(name: str, tmp_path: Path, digits: Data) -> None:
    value = list(OTHERS[name]) if isinstance(OTHERS[name], tuple) else OTHERS[name]
    besides = {"patch_size": 6} if name == "stride" else {"patch_size": 4} if name == "stem" else {}
    network = {"network": "psvit_2d", "genotype": "AS-A", "widths": [16, 32], "head_dim": 8, **besides, name: value}
    (found,) = study(tmp_path, {"networks": {"n": network}}).groups[0].networks
    built = baseline(found.network, digits, None, dict(found.changes), BASE)
    assert getattr(open_model(built, img_size=24, in_chans=1, num_classes=3).arch, name) == OTHERS[name]


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder, and a search's folder in it."""
    folder = tmp_path_factory.mktemp("fixed")
    model = open_model(ModelConfig(BASE), img_size=8, in_chans=1, num_classes=2)
    shown = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "interpolation": "bilinear", "crop_pct": 1.0}
    save_checkpoint(folder / "c", model, model.state_dict(), shown, ("a", "b"), {})
    (folder / "c" / "search").mkdir()
    (folder / "c" / "search" / ARCH_FILE).write_text(BASE.to_json())
    return folder / "c"


def test_what_a_fixed_network_would_pass_over_is_refused(fixed: Path) -> None:
    cases = [({name: value}, f"leave out {flag(name)}$") for name, value in FALSY.items()]
    for place in (fixed, fixed / "search"):
        refuses(lambda given, place=place: ModelConfig.of(str(place), **given), cases)
    more: list[dict[str, Any]] = [{"macs": ""}, {"macs": "0"}, {"pretrained": True}, {"model_args": {"depth": 1}}]
    cases = [(given, f"network is fixed: leave out {flag(*given)}$") for given in more]
    refuses(lambda given: ModelConfig.of(str(fixed), **given), cases)


def test_show_names_the_flags_that_would_change_nothing(cli: Cli, fixed: Path) -> None:
    said = cli.refused("show", fixed, "--stride", 0, "--stem", "patch")
    assert "whose network is fixed: leave out --stride, --stem" in said
    found = fixed.parent / "search"
    found.mkdir()
    (found / "front.json").write_text("{}")
    said = cli.refused("show", found, "--widths", 8, "--img-size", 32)
    assert "holds a search, of which psvit show lists what it found: leave out --img-size, --widths" in said


def test_a_comparison_takes_no_nothing_for_its_default(digits: Data) -> None:
    cases = (
        ({"head_dim": 0}, "--head-dim 0 is not a whole number"),
        ({"patch_size": 0}, "--patch-size 0 is not a whole number"),
        ({"genotype": ""}, "genotype '' is empty"),
        ({"macs": ""}, "--macs '' is not a positive number"),
    )
    refuses(lambda given: baselines(CompareConfig(models=("psvit_2d",), **given), digits, {}), cases)


def study(folder: Path, group: dict[str, Any], **more: Any) -> Study:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"data": {"data": "digits"}, "groups": {"g": group}, **more}))
    return read_study(str(path))


def test_a_study_takes_nothing_that_it_would_drop(tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"networks": {"n": {"network": "AS-A", "genotype": "A-A"}}}, "AS-A has no other genotype: leave it out"),
        ({"networks": {"n": {"network": "resnet18", "genotype": "A"}}}, "resnet18 has no other genotype: leave it out"),
        ({"networks": ["searched"], "macs": "1M", "arch": {"pool_op": "avg"}},
         "searched is searched as it is: leave out pool_op"),
        ({"networks": ["deit"], "recipe": False}, "recipe is not a list of names with values"),
    )  # fmt: skip
    refuses(lambda group: study(tmp_path, group), cases)
    plain = study(tmp_path, {"networks": ["deit"]})
    assert study(tmp_path, {"networks": ["deit"], "arch": None, "recipe": None}, quick=None) == plain
