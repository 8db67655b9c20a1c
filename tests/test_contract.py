"""timm's contract, held by every variant."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from refusals import refuses
from safetensors.torch import load_file, save_file
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay
from torch import nn

from psvit import VARIANTS, Arch, PSViT, UserError
from psvit.arch.variants import with_changes
from psvit.models.zoo import block_names

variants = pytest.mark.parametrize("name", VARIANTS)
kinds = pytest.mark.parametrize("name", ["psvit_1d_tiny", "psvit_2d_tiny"])

DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def narrow(name: str, **kwargs: Any) -> Any:
    """The variant through timm, its layers and strides as they are, its widths small; every parameter moved."""
    small = {"widths": (32, 64, 96), "head_dim": 32, "img_size": 64, "num_classes": 10}
    model = timm.create_model(name, **(small | kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


@variants
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = narrow(name, drop_path_rate=0.0)
    logits = model.train()(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@variants
def test_at_224_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        features = model.forward_features(torch.empty(2, 3, 224, 224))
        logits = model(torch.empty(2, 3, 224, 224))
    assert model.arch == VARIANTS[name]
    h, w = model.arch.grids(224)[-1]
    assert features.shape == (2, h * w + model.num_prefix_tokens, model.num_features)
    assert logits.shape == (2, 1000)
    config = model.pretrained_cfg
    assert (config["architecture"], config["input_size"], config["num_classes"]) == (name, (3, 224, 224), 1000)
    assert isinstance(model.get_submodule(config["classifier"]), nn.Linear)
    assert isinstance(model.get_submodule(config["first_conv"]), nn.Conv2d)


def test_1d_has_no_grid_after_its_first_stage() -> None:
    with pytest.raises(UserError, match=r"pools the sequence \(1D\)"):
        timm.create_model("psvit_1d_tiny", features_only=True)
    first = narrow("psvit_1d_tiny", features_only=True, out_indices=(0,))
    assert first(torch.randn(1, 3, 96, 96))[0].shape == (1, 32, *VARIANTS["psvit_1d_tiny"].grids(96)[0])


@variants
def test_parameters_are_grouped_by_depth(name: str) -> None:
    model = narrow(name)
    stem = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"} | ({"cls_token"} & {*model.state_dict()})
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert {parameter for group in groups.values() for parameter in group} == {*dict(model.named_parameters())}
        assert set(groups[0]) == stem
    depths = group_parameters(model, model.group_matcher(), reverse=True)
    order = [depths[f"{block}.attn.proj.weight"] for block in block_names(model.arch)]
    assert order == list(range(1, model.arch.depth + 1))  # behind the stem, one group a layer
    assert (depths["norm.weight"], depths["head.weight"]) == (order[-1], order[-1] + 1)
    for stage in range(1, len(model.arch.stages)):
        assert depths[f"stages.{stage}.pool.conv.weight"] == depths[f"stages.{stage}.blocks.0.norm1.weight"]


@kinds
def test_no_weight_decay_names_parameters(name: str) -> None:
    model = narrow(name)
    assert {*model.no_weight_decay()} & {*dict(model.named_parameters())} == (
        {"pos_embed", "cls_token"} if model.arch.class_token else {"pos_embed"}
    )
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    kept = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert id(model.pos_embed) in kept


@kinds
def test_compiles_as_one_graph(name: str) -> None:
    model, x = narrow(name, genotype="AS-AS-A"), torch.randn(2, 3, 64, 64)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


@kinds
def test_exports_at_a_fixed_and_at_a_dynamic_batch(name: str) -> None:
    model, x = narrow(name, genotype="AS-AS-A"), torch.randn(2, 3, 64, 64)
    fixed = torch.export.export(model, (x,))
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    with torch.no_grad():
        torch.testing.assert_close(fixed.module()(x), model(x))
        for size in (1, 5):
            y = torch.randn(size, 3, 64, 64)
            torch.testing.assert_close(dynamic.module()(y), model(y))
    for program in (fixed, dynamic):
        ops = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
        assert torch.ops.aten.linear.default in ops
        assert [op for op in ops if DATA_DEPENDENT & set(op.tags)] == []


@kinds
def test_saves_copies_and_pickles(name: str, tmp_path: Path) -> None:
    model, x = narrow(name), torch.randn(1, 3, 64, 64)
    logits = model(x)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    fresh = narrow(name)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    through_timm = narrow(name, checkpoint_path="")
    timm.models.load_checkpoint(through_timm, str(tmp_path / "model.safetensors"))
    for twin in (
        fresh,
        through_timm,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(twin(x), logits)
        assert twin.arch == model.arch


@kinds
def test_classifier_channels_and_pooling_can_change(name: str) -> None:
    model = narrow(name, in_chans=1, num_classes=0, global_pool="avg")
    x = torch.randn(2, 1, 64, 64)
    pooled = model.forward_features(x)[:, model.num_prefix_tokens :].mean(1)
    assert torch.equal(model(x), pooled)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))


def test_any_arch_through_timm() -> None:
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("psvit_2d_tiny", {"genotype": "AS-A"}, "AS-A 2d 288-384 /16"),
        ("psvit_1d_small", {"genotype": "AAAA"}, "AAAA 1d 320 /12"),
        ("psvit_2d", {"genotype": "A-A-A-AS", "widths": [64, 64, 128, 128]}, "A-A-A-AS 2d 64-64-128-128 /16"),
        ("psvit_1d", {"widths": (64, 128, 64), "patch_size": 8}, "ASAS-ASSASS-AS 1d 64-128-64 /8"),
    )
    for name, changes, arch in cases:
        model: Any = timm.create_model(name, img_size=32, num_classes=10, **changes)
        assert str(model.arch) == arch
        assert model.arch == with_changes(VARIANTS.get(name, VARIANTS[f"{name[:8]}_tiny"]), **changes)
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_a_wrong_request_is_named() -> None:
    refuses(
        lambda changes: timm.create_model("psvit_2d_tiny", **changes),
        (
            ({"genotype": "SA"}, "position 1: a stage starts with A"),
            ({"genotype": "A-A-A-A"}, "has 4 stages, but .* has 3 widths: give widths= too"),
            ({"widths": (64, 64)}, "give one width per stage"),
        ),
    )
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model("psvit_2d_tiny", not_an_argument=1)


def test_pretrained_weights_from_a_file_fit_other_channels_classes_and_sizes(tmp_path: Path) -> None:
    source = narrow("psvit_2d_tiny")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors"), "num_classes": 10}
    kwargs = {"widths": (32, 64, 96), "head_dim": 32, "pretrained": True, "pretrained_cfg_overlay": overlay}
    model = timm.create_model("psvit_2d_tiny", img_size=96, in_chans=1, num_classes=4, **kwargs)
    summed = source.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj.weight, summed)
    assert torch.equal(model.stages[2].blocks[0].attn.qkv.weight, source.stages[2].blocks[0].attn.qkv.weight)
    source.set_input_size(96)
    torch.testing.assert_close(model.pos_embed, source.pos_embed)
    assert model.head.weight.shape == (4, 96)


def test_psvit_takes_a_genotype_alone() -> None:
    assert PSViT("AS-A", img_size=32, num_classes=2).arch == Arch("AS-A")
