"""Networks of timm by name: an argument that a model lacks is left out or named, in whatever words it is refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from refusals import refuses
from timm.layers import DropPath

from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.arch.variants import VARIANTS
from psvit.engine.checkpoints import save_checkpoint
from psvit.engine.open_model import load_checkpoint, open_model
from psvit.errors import UserError
from psvit.models.build import build_timm
from psvit.tasks.dense.backbone import open_features

HRNET = "hrnet_w18_small"


def drops(model: Any) -> list[float]:
    return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize("name", [HRNET, "mobilenetv3_small_050", "resnet10t", "deit_tiny_patch16_224"])
def test_stochastic_depth_is_given_to_those_that_have_it(name: str) -> None:
    with torch.device("meta"):
        model: Any = build_timm(name, drop_path_rate=0.2, in_chans=1, num_classes=5)
        try:
            expected = drops(timm.create_model(name, drop_path_rate=0.2, in_chans=1, num_classes=5))
        except TypeError:
            expected = []
    assert drops(model) == expected
    assert (max(drops(model), default=0.0) > 0.1) == (name != HRNET)
    assert model.num_classes == 5
    assert model.model_args == {"in_chans": 1}


def test_a_name_is_offered_once() -> None:
    with pytest.raises(UserError, match=r"did you mean (.*)\?$") as raised:
        build_timm("psvit_2d_bas")
    offered = str(raised.value).partition("mean ")[2].rstrip("?").split(", ")
    assert offered[0] == "psvit_2d_base"
    assert len(set(offered)) == len(offered) == 3


def test_hrnet_as_a_classifier_and_its_checkpoint(tmp_path: Path) -> None:
    model = open_model(ModelConfig.of(HRNET), 0.1, img_size=(64, 64), in_chans=1, num_classes=4).eval()
    pixels = {"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.2,), "interpolation": "bilinear", "crop_pct": 1.0}
    save_checkpoint(tmp_path / "kept", model, model.state_dict(), pixels, list("abcd"), {})
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "kept", drop_path_rate=0.1)(images), model(images))


def test_hrnet_as_a_backbone() -> None:
    features: Any
    features, described = open_features(ModelConfig.of(HRNET), (64, 64), 1, 0.1)
    assert described == {"architecture": HRNET, "model_args": {"in_chans": 1}}
    with torch.no_grad():
        maps = features.eval()(torch.randn(1, 1, 64, 64))
    assert [64 // found.shape[-1] for found in maps] == features.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_a_wrong_argument_or_value_is_named() -> None:
    refuses(
        lambda name: open_model(ModelConfig.of(name, model_args={"colour": 1}), 0.1, img_size=64),
        [(name, "takes no argument 'colour': leave it out of --model-args") for name in (HRNET, "resnet10t", "AS-A")],
    )
    with pytest.raises(UserError, match=r"deit_tiny_patch16_224 cannot be built with .*'embed_dim': 'wide'"):
        build_timm("deit_tiny_patch16_224", drop_path_rate=0.1, embed_dim="wide")


def test_a_family_takes_a_genotype() -> None:
    model = ModelConfig.of("psvit_1d", genotype="AS-A", patch_size=8)
    assert model.network == Arch("AS-A", pooling="1d", patch_size=8)
    with torch.device("meta"):
        built: Any = timm.create_model("psvit_1d")
        assert built.arch == ModelConfig.of("psvit_1d").network == VARIANTS["psvit_1d_tiny"]


@pytest.mark.parametrize(
    "words",
    [
        {"model": "auto", "macs": "12M", "pool_op": "avg"},
        {"model": "psvit_1d_tiny"},
        {"model": "psvit_2d_base", "patch_size": 8, "windows": (7, 0, 0)},
        {"model": "AS-A", "pooling": "1d", "class_token": False, "macs": "1.234567G"},
        {"model": "resnet18", "pretrained": True, "model_args": {"drop_rate": 0.1}},
        {"model": "runs/train/best"},
    ],
)
def test_a_model_is_what_its_flags_say(words: dict[str, Any]) -> None:
    config = ModelConfig.of(**words)
    again = config.flags()
    assert again.config() == config
    assert [again.macs, again.model_args, again.pretrained] == [
        words.get("macs"), words.get("model_args", {}), words.get("pretrained", False)]  # fmt: skip


def test_a_flag_that_a_network_cannot_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "arch.json").write_text(Arch("AS-A").to_json())
    refuses(
        lambda words: ModelConfig.of(words[0], **words[1]),
        [
            (("AS-A", {"genotype": "A"}), "AS-A is a genotype already: leave out --genotype"),
            (("psvit_2d_tiny", {"pretrained": True}), "there are no pretrained weights of psvit_2d_tiny"),
            (("resnet18", {"macs": "1M", "stem": "conv"}), "--macs, --stem belong to psvit networks, but 'resnet18'"),
            (("psvit_2d_bas", {"macs": "1M"}), r"--macs belongs to .* is not one: did you mean psvit_2d_base\?"),
            ((str(tmp_path), {"pretrained": True}), "describes a network without weights: leave out --pretrained"),
            (("AS-A", {"macs": "many"}), "--macs 'many' is not a positive number"),
        ],
    )
