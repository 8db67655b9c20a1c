"""Backbones of detectors: strides, a checkpoint's weights, refusals."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_dense import HEADS, VIT, backbone, detection, detector
from tiny import weights
from torch import nn

from psvit import cost
from psvit.arch.model_config import ModelConfig
from psvit.engine.optimizer import make_optimizer
from psvit.errors import UserError
from psvit.models.macs import count_macs
from psvit.tasks.dense.backbone import DENSE, open_features
from psvit.tasks.dense.dense_config import DenseRecipe
from psvit.tasks.dense.dense_cost import network_cost
from psvit.tasks.detection.pyramid import Backbone, check_read, pyramid_strides

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN: dict[str, Any] = {"patch_size": 16, "widths": (32,), "head_dim": 16}


@pytest.mark.parametrize(
    ("name", "more", "strides", "simple"),
    [
        ("auto", {}, [4, 8, 16], False),
        ("AS-A-A", {}, [4, 8, 16, 32, 64], False),
        ("vit_tiny_patch16_224", VIT, [4, 8, 16, 32], True),
        ("vit_tiny_patch16_224", VIT | {"patch_size": 14}, [7, 14, 28, 56], True),
        ("AAAA", {"pooling": "2d", **PLAIN}, [4, 8, 16, 32], True),  # its features begin with patches
        ("AAAA", {"pooling": "1d", **PLAIN}, [4, 8, 16, 32], True),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, [4, 8, 16, 32], False),
    ],
)
def test_strides_are_true(name: str, more: dict[str, Any], strides: list[int], simple: bool) -> None:
    """At other sizes than the backbone was made for too, padded as the detector pads images."""
    built = backbone(name, **more)
    assert (built.strides[: len(strides)], built.simple) == (strides, simple)
    step = built.strides[-2]
    for size in ((64, 64), (37, 53)):
        height, width = (-(-side // step) * step for side in size)
        with torch.no_grad():
            maps = built(torch.rand(1, 1, height, width))
        assert list(maps) == [*map(str, range(len(built.strides) - 1)), "pool"]
        for stride, one in zip(built.strides, maps.values(), strict=True):
            # only the last, which takes every second position, may be rounded up
            assert one.shape == (1, 16, -(-height // stride), -(-width // stride))
        assert all(height % stride == width % stride == 0 for stride in built.strides[:-1])


def test_a_simple_pyramid_has_whole_strides() -> None:
    assert [pyramid_strides(stride)[0] for stride in (1, 4, 8, 14, 16, 28, 32)] == [1, 4, 4, 7, 4, 7, 8]


def test_backbones_that_cannot_are_refused() -> None:
    with pytest.raises(UserError, match=r"AS-A pools the sequence .* take a 2D variant"):
        open_features(ModelConfig.of("AS-A", pooling="1d"), (64, 64), 1)
    with pytest.raises(UserError, match="--neck fpn needs maps of different strides"):
        backbone("vit_tiny_patch16_224", neck="fpn", **VIT)
    fixed = backbone("hiera_tiny_224", embed_dim=24)
    with pytest.raises(UserError, match=r"the backbone cannot take images of 96 x 128 pixels \(.*take one that takes"):
        fixed(torch.rand(1, 1, 96, 128))


def test_weights_that_a_simple_pyramid_does_not_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body, described = open_features(ModelConfig.of("test_resnet"), (64, 64), 1)
    built = Backbone(body, "simple", 16)
    checked: list[Any] = []
    monkeypatch.setattr("psvit.tasks.detection.detect.check_read", lambda *given: checked.append(given))
    for neck in ("simple", "fpn"):
        task = detection(**vars(HEADS) | {"detector": "faster_rcnn", "neck": neck})
        assert network_cost(task, task.build(body, described), described, (64, 64))["macs"] > 0
    assert len(checked) == 1, "of the simple pyramid alone"
    check_read(built.to("meta"), (1, 64, 64))
    maps, body.side = body.forward, nn.Parameter(torch.ones(1, device="meta"))  # of the first map, as HRNet's branches
    monkeypatch.setattr(
        body, "forward", lambda x: [one * (body.side if i == 0 else 1) for i, one in enumerate(maps(x))]
    )
    with pytest.raises(UserError, match=r"--neck simple reads .* last map alone, and 1 of .*: take fpn"):
        check_read(built, (1, 64, 64))


def test_features_have_the_weights_of_a_checkpoint(trained: Path) -> None:
    saved = weights(trained)
    body, described = open_features(ModelConfig.of(str(trained)), (64, 64), 1)
    own = body.state_dict()
    assert described["model_args"]["genotype"] == "AS-A"
    assert {name.removeprefix("model.") for name in own} == set(saved) - {f"{part}.{kind}" for part in ("norm", "head")
                                                                         for kind in ("weight", "bias")}  # fmt: skip
    for name, value in own.items():
        if "pos_embed" not in name:  # resampled to the larger grid
            assert torch.equal(value, saved[name.removeprefix("model.")])
    with pytest.raises(UserError, match="takes 1 image channels, the data have 3"):
        open_features(ModelConfig.of(str(trained)), (64, 64), 3)


@pytest.mark.parametrize(
    ("name", "more", "apart"),
    [
        ("auto", {}, {"pos_embed"}),
        ("vit_tiny_patch16_224", VIT, {"pos_embed", "cls_token"}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, {"relative_position_bias_table"}),
    ],
)
def test_position_embeddings_are_not_decayed(name: str, more: dict[str, Any], apart: set[str]) -> None:
    model = detector(backbone(name, **more), "faster_rcnn")
    optimizer = make_optimizer(model, DenseRecipe(), 1)
    kept = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.05 for p in group["params"]}
    named = dict(model.named_parameters())
    assert kept | decayed == {id(p) for p in named.values()}
    for name, p in named.items():
        assert (id(p) in kept) == (p.ndim < 2 or name.rpartition(".")[2] in apart), name
    assert apart <= {name.rpartition(".")[2] for name in named}


def test_macs_are_those_of_the_padded_image() -> None:
    task = detection(**vars(HEADS.filled((30, 45), True)) | {"short_side": 60, "long_side": 100})
    assert task.seen_size({(30, 45)}) == (60, 90)
    body, described = open_features(ModelConfig.of("auto"), (64, 64), 1)
    cost_ = network_cost(task, task.build(body, described), described, (60, 90))
    assert cost_["macs"] == cost.macs(DENSE, (64, 96), 1, 0)  # multiples of 16
    assert cost_["pyramid_macs"] == count_macs(lambda: copy.deepcopy(Backbone(body, "auto", 16)), (1, 64, 96))
    assert cost_["backbone_params"] < cost_["params"]
