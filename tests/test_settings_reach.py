"""What is asked of a network reaches it, or is refused by its name: no setting is taken and dropped."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import Cli

from psvit.arch.arch import ARCH_FIELDS, Arch
from psvit.arch.model_config import ARCH_FILE, ModelConfig, ModelFlags
from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, open_data
from psvit.engine.checkpoints import save_checkpoint
from psvit.engine.open_model import open_model
from psvit.errors import UserError, flag
from psvit.pipeline.compare import contender, contenders
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
}
"""Of each field of Arch a value that is not its default."""

FALSY = {name: value for name, value in dict.fromkeys(ARCH_FIELDS, 0).items() if name not in ("widths", "windows")}
FALSY |= {"widths": (), "windows": (), "class_token": False, "qkv_bias": False, "genotype": ""}


def other(name: str) -> Arch:
    """`BASE` with another value in a field, and what that value asks for besides."""
    besides = {"stem": {"patch_size": 4, "stride": 4, "widths": (16, 32)}, "stride": {"patch_size": 6}}
    return replace(BASE, **{**besides.get(name, {}), name: OTHERS[name]})


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data(DataConfig("digits"))


def test_every_field_of_arch_is_a_setting_of_the_network() -> None:
    apart = {"model", "macs", "model_args", "pretrained"}
    assert {field.name for field in fields(ModelFlags)} - apart == set(ARCH_FIELDS) == set(OTHERS)


@pytest.mark.parametrize("name", ARCH_FIELDS)
def test_a_field_of_arch_reaches_the_network(name: str) -> None:
    arch = other(name)
    assert getattr(arch, name) != getattr(BASE, name)
    assert open_model(ModelConfig(arch), img_size=24, in_chans=1, num_classes=3).arch == arch


@pytest.mark.parametrize("name", ARCH_FIELDS)
def test_a_field_in_a_studys_yaml_reaches_the_network(name: str, tmp_path: Path, digits: Data) -> None:
    value = list(OTHERS[name]) if isinstance(OTHERS[name], tuple) else OTHERS[name]
    besides = {"patch_size": 6} if name == "stride" else {"patch_size": 4} if name == "stem" else {}
    network = {"network": "psvit_2d", "genotype": "AS-A", "widths": [16, 32], "head_dim": 8, **besides, name: value}
    (found,) = study(tmp_path, {"networks": {"n": network}}).groups[0].networks
    changes = dict(found.changes)
    base = replace(BASE, genotype=changes.pop("genotype"), widths=(16, 32))
    built = contender(found.network, base, digits, None, changes)
    assert getattr(open_model(built, img_size=24, in_chans=1, num_classes=3).arch, name) == OTHERS[name]


@pytest.mark.parametrize("place", ["checkpoint", "arch.json"])
@pytest.mark.parametrize("name", ARCH_FIELDS)
def test_a_falsy_value_beside_a_fixed_network_is_refused(name: str, place: str, fixed: Path) -> None:
    model = fixed if place == "checkpoint" else fixed / "search"
    with pytest.raises(UserError, match=f"leave out {flag(name)}$"):
        open_model(ModelConfig.of(str(model), **{name: FALSY[name]}))


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


def test_what_else_a_checkpoint_would_pass_over_is_refused(fixed: Path) -> None:
    for given in ({"macs": ""}, {"macs": "0"}, {"pretrained": True}, {"model_args": {"depth": 1}}):
        with pytest.raises(UserError, match=f"network is fixed: leave out {flag(*given)}$"):
            open_model(ModelConfig.of(str(fixed), **given))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"head_dim": 0}, "--head-dim 0 is not a whole number"), ({"patch_size": 0}, "--patch-size 0 is not a whole"),
     ({"genotype": ""}, "genotype '' is empty"), ({"macs": ""}, "--macs '' is not a positive number")],
)  # fmt: skip
def test_a_comparison_takes_no_nothing_for_its_default(given: dict[str, Any], message: str, digits: Data) -> None:
    with pytest.raises(UserError, match=message):
        contenders(CompareConfig(models=("psvit_2d",), **given), digits, {})


def test_show_names_the_flags_that_would_change_nothing(cli: Cli, fixed: Path) -> None:
    arch, found = fixed / "search" / ARCH_FILE, fixed.parent / "search"
    said = cli.refused("show", arch, "--windows", 0, 0)
    assert f"{arch} describes the network already: leave out --windows" in said
    assert "whose network is fixed: leave out --stride, --stem" in cli.refused(
        "show", fixed, "--stride", 0, "--stem", "patch"
    )
    found.mkdir()
    (found / "front.json").write_text("{}")
    said = cli.refused("show", found, "--widths", 8, "--img-size", 32)
    assert "holds a search, of which psvit show lists what it found: leave out --img-size, --widths" in said


def study(folder: Path, group: dict[str, Any], **more: Any) -> Study:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"data": {"data": "digits"}, "groups": {"g": group}, **more}))
    return read_study(str(path))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"networks": {"n": {"network": "AS-A", "genotype": "A-A"}}}, "AS-A has no other genotype: leave it out"),
        ({"networks": {"n": {"network": "deit12", "genotype": "A-A"}}}, "deit12 has no other genotype: leave it out"),
        ({"networks": {"n": {"network": "resnet18", "genotype": "A"}}}, "resnet18 has no other genotype: leave it out"),
        ({"networks": ["searched"], "macs": "1M", "arch": {"pool_op": "avg"}},
         "searched is searched as it is, so arch would leave it out: give pool_op to each network"),
        ({"networks": ["deit"], "recipe": False}, "recipe is not a list of names with values"),
        ({"networks": ["deit"], "arch": 0}, "arch is not a list of names with values"),
    ],
)  # fmt: skip
def test_a_study_takes_nothing_that_it_would_drop(group: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        study(tmp_path, group)


def test_sections_that_are_left_empty_are_none(tmp_path: Path) -> None:
    plain = study(tmp_path, {"networks": ["deit"]})
    assert study(tmp_path, {"networks": ["deit"], "arch": None, "recipe": None}, quick=None) == plain
