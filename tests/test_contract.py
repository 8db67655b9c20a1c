"""timm's contract, held by every kind of network and every variant."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from refusals import refuses
from safetensors.torch import save_file
from timm.layers import set_fused_attn
from timm.models import FeatureGraphNet, group_parameters
from tiny import check_gradients
from torch import Tensor, nn

from psvit import VARIANTS, Arch, UserError
from psvit.arch.model_config import ModelConfig
from psvit.engine.checkpoints import save_checkpoint
from psvit.export.graph import example_images, frozen_copy, to_onnx
from psvit.models.build import build_arch
from psvit.models.fold import fold_norms
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


# every kind of network


KINDS = {
    "1d": Arch("AAS-AS-A", (32, 48, 64), 16, pooling="1d", patch_size=4),
    "2d": Arch("AAS-AS-A", (32, 48, 64), 16, patch_size=4),
    "windows": Arch("ASA-AS-A", (16, 24, 32), 8, patch_size=4, windows=(3, 2, 0), mlp="local"),
    "stem": Arch("AS-A", (32, 48), 16, patch_size=4, stem="conv"),
    "plus": Arch("AS-A", (32, 48), 16, patch_size=4, stem="pool", pool_norm=True, mlp="local"),
    "plus 1d": Arch(
        "AS-A", (32, 48), 16, patch_size=4, pooling="1d", class_token=False, stem="pool", pool_norm=True, mlp="local"
    ),
    "projections": Arch("ASS-AS", (16, 32), 8, patch_size=4, sharing="projections"),
}
SIDES = [(20, 28), (16, 16), (37, 53), (1, 9)]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
every_kind = pytest.mark.parametrize("kind", KINDS)


def network(kind: str, **kwargs: Any) -> Any:
    """A small network of that kind, every parameter moved away from its start."""
    torch.manual_seed(0)
    model = build_arch(KINDS[kind], (20, 28), **{"num_classes": 5, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def images(batch: int = 2, sides: tuple[int, int] = (20, 28), in_chans: int = 3) -> Tensor:
    return torch.randn(batch, in_chans, *sides)


@pytest.mark.parametrize("name", ["plus", "plus 1d", "resnet18"])
def test_folded_norms_change_nothing(name: str) -> None:
    model = network(name) if name in KINDS else timm.create_model(name, num_classes=5)
    with torch.no_grad():
        for _ in range(3):  # statistics of their own
            model.train()(images(4, (32, 48)))
        folded = fold_norms(model)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        x = images(sides=(20, 28))
        torch.testing.assert_close(folded(x), model.eval()(x), **CLOSE)


@every_kind
def test_every_parameter_learns_and_checkpointing_changes_no_gradient(kind: str) -> None:
    check_gradients(network(kind).train(), images())


@every_kind
@pytest.mark.usefixtures("explicit_attention")
def test_fused_and_explicit_attention_give_the_same_numbers(kind: str) -> None:
    explicit, x = network(kind), images()
    set_fused_attn(True)
    with torch.no_grad():
        torch.testing.assert_close(network(kind)(x), explicit(x), **CLOSE)


@every_kind
def test_bfloat16_is_close(kind: str) -> None:
    model, x = network(kind), images(4)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(x)
        pure = model.bfloat16()(x.bfloat16())
    for rough in (mixed, pure):
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - exact).norm() / exact.norm() < 0.03


@every_kind
def test_torch_fx_sees_the_same_network(kind: str) -> None:
    model, x = network(kind), images()
    with torch.no_grad():
        taps = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        for tap, feature in zip(taps, FeatureGraphNet(model, tuple(range(len(taps))))(x), strict=True):
            assert torch.equal(tap, feature[:, model.num_prefix_tokens :])
        graph = timm.models.create_feature_extractor(model, {"head": "logits"})
        for sides in SIDES:  # padding, positions and windows follow the grid
            assert torch.equal(graph(y := images(sides=sides))["logits"], model(y))


@every_kind
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_torchscript_gives_the_same_numbers(kind: str) -> None:
    model = network(kind)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for sides in SIDES:
            torch.testing.assert_close(scripted(y := images(sides=sides)), model(y), **CLOSE)


@pytest.mark.slow
@every_kind
def test_compiles_as_one_graph(kind: str) -> None:
    model, x = network(kind), images()
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x), **CLOSE)


@every_kind
def test_exports_with_a_dynamic_batch_and_plain_operators(kind: str) -> None:
    model = network(kind)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(),), dynamic_shapes={"x": {0: batch}})
    with torch.no_grad():
        for size in (1, 5):
            torch.testing.assert_close(program.module()(y := images(size)), model(y), **CLOSE)
    operators = [n.target for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert not [one for one in operators if DATA_DEPENDENT & set(one.tags)]
    assert not [one for one in operators if any(word in str(one) for word in ("index", "gather", "scatter", "where"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["windows", "stem", "projections"])
def test_onnx_runtime_gives_the_same_numbers(kind: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, size = frozen_copy(network(kind)), (3, 20, 28)
    session = onnxruntime.InferenceSession(to_onnx(model, size).SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        inputs = example_images(size, count, seed=count)
        (logits,) = session.run(None, {"images": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(inputs), **CLOSE)


@every_kind
def test_a_checkpoint_keeps_the_network(kind: str, tmp_path: Path) -> None:
    model, x = network(kind, in_chans=1), images(in_chans=1)
    pixels = {"input_size": (1, 20, 28), "mean": (0.3,), "std": (0.4,), "interpolation": "bicubic", "crop_pct": 1}
    save_checkpoint(tmp_path / "kept", model, model.state_dict(), pixels, list("01234"), {})
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'kept'}", pretrained=True).eval()
    assert again.arch == ModelConfig(KINDS[kind]).flags().config().network == KINDS[kind]
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        coloured: Any = timm.create_model(f"local-dir:{tmp_path / 'kept'}", pretrained=True, in_chans=3).eval()
        torch.testing.assert_close(coloured(x.expand(-1, 3, -1, -1)), model(x), **CLOSE)
    if kind == "projections":
        assert again.stages[0].blocks[1].attn.qkv is again.stages[0].blocks[0].attn.qkv


# the variants


@variants
def test_at_224_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        features = model.forward_features(torch.empty(2, 3, 224, 224))
    assert model.arch == VARIANTS[name]
    h, w = model.arch.grids(224)[-1]
    assert features.shape == (2, h * w + model.num_prefix_tokens, model.num_features)
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
    stem = {each for each, _ in model.named_parameters() if each.startswith(("pos_embed", "patch_embed", "cls_token"))}
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert {parameter for group in groups.values() for parameter in group} == {*dict(model.named_parameters())}
        assert set(groups[0]) == stem
    depths = group_parameters(model, model.group_matcher(), reverse=True)
    order = [depths[f"{block}.attn.proj.weight"] for block in block_names(model.arch)]
    assert order == list(range(1, model.arch.depth + 1))  # after the stem, one group per layer
    assert (depths["norm.weight"], depths["head.weight"]) == (order[-1], order[-1] + 1)
    for stage in range(1, len(model.arch.stages)):
        assert depths[f"stages.{stage}.pool.conv.weight"] == depths[f"stages.{stage}.blocks.0.norm1.weight"]


@kinds
def test_no_weight_decay_names_parameters(name: str) -> None:
    model = narrow(name)
    named = {*model.no_weight_decay()} & {*dict(model.named_parameters())}
    assert named == ({"pos_embed", "cls_token"} if model.arch.class_token else {"pos_embed"})


@kinds
def test_saves_copies_and_pickles(name: str, tmp_path: Path) -> None:
    model, x = narrow(name), torch.randn(1, 3, 64, 64)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    through_timm = narrow(name)
    timm.models.load_checkpoint(through_timm, str(tmp_path / "model.safetensors"))
    for twin in (through_timm, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin.arch == model.arch


def test_a_wrong_request_is_named() -> None:
    refuses(
        lambda changes: timm.create_model("psvit_2d_tiny", **changes),
        (
            ({"genotype": "SA"}, "position 1: a stage starts with A"),
            ({"genotype": "A-A-A-A"}, "has 4 stages, but .* has 3 widths: give widths= too"),
            ({"widths": (64, 64)}, "give one width per stage"),
        ),
    )
    other: Any = timm.create_model("psvit_1d", widths=(64, 128, 64), patch_size=8)
    assert str(other.arch) == "ASAS-ASSASS-AS 1d 64-128-64 /8"


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
