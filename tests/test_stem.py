"""The stem of convolutions: the grids of patches, its cost to the integer, and timm's contract as ever."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from timm.models import group_parameters
from timm.models._features_fx import FeatureGraphNet
from tiny import Cli, check_gradients, config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from psvit import VARIANTS, Arch, PSViT, UserError
from psvit.arch.arch import stem_channels
from psvit.arch.cost import layer_costs, macs, params, scale_to
from psvit.arch.model_config import ModelConfig
from psvit.arch.variants import find_arch
from psvit.engine.checkpoints import save_checkpoint
from psvit.engine.open_model import open_model
from psvit.engine.resuming import check_same
from psvit.export.graph import example_images, frozen_copy, to_onnx, to_program
from psvit.export.operators import onnx_operators
from psvit.models.build import build_arch
from psvit.models.stem import ConvStem, PatchEmbed
from psvit.search.search_config import SupernetConfig
from psvit.search.space import Space
from psvit.search.supernet_training import supernet_training

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
SIDES = [(20, 28), (16, 16), (37, 53), (1, 9)]


def describe(genotype: str = "AS-A", stride: int = 4, **fields: Any) -> Arch:
    widths = (32, 48, 64)[: genotype.count("-") + 1]
    return Arch(genotype, **{"widths": widths, "head_dim": 16, "patch_size": stride, "stem": "conv", **fields})


def network(stride: int = 4, genotype: str = "AS-A", **kwargs: Any) -> Any:
    """Small, every parameter moved away from its start."""
    torch.manual_seed(0)
    arch = describe(genotype, stride, **{name: kwargs.pop(name) for name in ("windows", "pooling") if name in kwargs})
    model = PSViT(arch, **{"img_size": (20, 28), "num_classes": 5, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def images(batch: int = 2, sides: tuple[int, int] = (20, 28), in_chans: int = 3) -> Tensor:
    return torch.randn(batch, in_chans, *sides)


# what it computes


@pytest.mark.parametrize("stride", [2, 8])
def test_a_stem_is_convolutions_norms_and_a_linear_map(stride: int) -> None:
    """Written out with torch's functions; the norm is over the channels of a pixel."""
    stem = network(stride).patch_embed
    x = images(sides=(37, 53))
    with torch.no_grad():
        y = F.pad(x, (0, -53 % stride, 0, -37 % stride))
        convolutions = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
        norms = [module for module in stem.modules() if isinstance(module, nn.LayerNorm)]
        assert [c.out_channels for c in convolutions] == [*stem_channels(stride, 32), 32]
        for convolution, norm in zip(convolutions[:-1], norms, strict=True):
            y = F.conv2d(y, convolution.weight, None, stride=2, padding=1)
            mean, variance = y.mean(1, keepdim=True), y.var(1, keepdim=True, unbiased=False)
            y = (y - mean) / (variance + 1e-6).sqrt()
            y = F.gelu(y * norm.weight[:, None, None] + norm.bias[:, None, None])
        tokens = y.flatten(2).mT @ convolutions[-1].weight[:, :, 0, 0].mT + convolutions[-1].bias
        found, grid = stem(x)
        torch.testing.assert_close(found, tokens, **CLOSE)
    assert found.is_contiguous()
    assert grid == y.shape[2:] == (-(-37 // stride), -(-53 // stride))


def test_channels_double_up_to_the_width() -> None:
    assert stem_channels(2, 96) == (96,)
    assert stem_channels(8, 96) == (24, 48, 96)
    assert stem_channels(16, 192) == (24, 48, 96, 192)


@hypothesis.settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8]))
def test_grids_are_those_of_patches(height: int, width: int, stride: int) -> None:
    x = torch.zeros(1, 3, height, width)
    with torch.no_grad():
        tokens, grid = ConvStem(stride, 3, 32)(x)
        patches, grid_of_patches = PatchEmbed(stride, stride, 3, 32)(x)
    assert grid == grid_of_patches == describe(stride=stride).grids((height, width))[0]
    assert tokens.shape == patches.shape


def test_strides_are_true() -> None:
    for stride in (2, 4, 8, 16):
        model = PSViT(describe("A-A-A", stride, widths=(64, 64, 64)), img_size=64, num_classes=0).eval()
        assert [info["reduction"] for info in model.feature_info] == [stride, 2 * stride, 4 * stride]
        with torch.no_grad():
            for sides in ((64, 32), (37, 53)):
                maps = model.forward_intermediates(images(1, sides), intermediates_only=True)
                assert tuple(tuple(m.shape[2:]) for m in maps) == model.arch.grids(sides)


def test_zeros_to_the_right_and_below_change_nothing() -> None:
    model, x = network(), images(sides=(18, 27))
    with torch.no_grad():
        torch.testing.assert_close(model(F.pad(x, (0, 1, 0, 2))), model(x), **CLOSE)


def test_an_image_of_a_batch_does_not_see_the_others() -> None:
    model, x = network().train(), images(3)  # as in training: there are no statistics of batches
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), **CLOSE)
    assert not list(model.buffers())


def test_every_parameter_learns_and_checkpointing_changes_no_gradient() -> None:
    check_gradients(network(8).train(), images())


def test_tokens_begin_neither_dead_nor_large() -> None:
    """The variance is kept: at the start a token's channels have about that of GELU of a normal number, 0.42."""
    torch.manual_seed(0)
    stem: Any = PSViT(Arch("A", (192,), patch_size=16, stem="conv"), img_size=64).patch_embed
    with torch.no_grad():
        tokens, _ = stem(images(4, (64, 64)))
    assert 0.3 < tokens.square().mean() < 0.6
    assert not stem.convs[-1].bias.any()


def test_bfloat16_autocast_is_close() -> None:
    model, x = network(), images(4)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(x).float()
    assert (mixed - exact).norm() / exact.norm() < 0.03


# the cost


def random_arch(rng: random.Random) -> tuple[Arch, tuple[int, int], int]:
    genotype = "A" + "".join(rng.choice(["A", "S", "-A"]) for _ in range(rng.randint(1, 5)))
    stride, head_dim = rng.choice([2, 4, 8, 16]), rng.choice([8, 16])
    first = 64 + max(head_dim, stride // 2) * rng.randint(0, 4)
    pooling = rng.choice(["1d", "2d"])
    arch = Arch(
        genotype, (first, *(head_dim * rng.randint(1, 8) for _ in range(genotype.count("-")))), head_dim,
        pooling=pooling, patch_size=stride, class_token=rng.random() < 0.5, stem="conv",
    )  # fmt: skip
    return arch, rng.choice([(32, 32), (21, 30), (40, 17)]), rng.choice([1, 3])


@pytest.mark.usefixtures("explicit_attention")
def test_macs_and_params_are_torchs_own() -> None:
    for seed in range(16):
        arch, sides, in_chans = random_arch(random.Random(seed))
        model = PSViT(arch, img_size=sides, in_chans=in_chans, num_classes=5).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images(1, sides, in_chans))
        assert 2 * macs(arch, sides, in_chans, 5) == counter.get_total_flops(), arch
        assert params(arch, sides, in_chans, 5) == sum(p.numel() for p in model.parameters()), arch


def test_a_stem_counted_by_hand() -> None:
    """21 x 30 pixels are padded to 24 x 32: 12 x 16, then 6 x 8, then 3 x 4 places."""
    stem, *_ = layer_costs(Arch("A", (32,), head_dim=32, patch_size=8, stem="conv"), (21, 30))
    assert (stem.name, stem.kind, stem.grid, stem.tokens) == ("convolutional stem", "embed", (3, 4), 12)
    assert stem.macs == 192 * 27 * 8 + 48 * 72 * 16 + 12 * 144 * 32 + 12 * 32 * 32
    norms, positions = 2 * (8 + 16 + 32), 12 * 32
    assert stem.params == 27 * 8 + 72 * 16 + 144 * 32 + norms + (32 * 32 + 32) + positions


def test_scaling_reaches_the_target_with_whole_channels() -> None:
    for stride, target in ((2, 60e6), (2, 180e6), (4, 7e6), (4, 180e6), (8, 7e6), (8, 180e6), (16, 7e6), (16, 180e6)):
        start = describe("AS-ASS-AS", stride, widths=(64, 128, 192), head_dim=8)
        scaled = scale_to(start, target, 64, num_classes=10)
        assert macs(scaled, 64, num_classes=10) == pytest.approx(target, rel=0.02), stride
        assert (scaled.stem, scaled.stride, scaled.genotype) == ("conv", stride, start.genotype)
        assert scaled.widths[0] % (stride // 2) == 0
        assert scaled.widths[0] * 2 // stride >= 8
        assert list(scaled.widths) == sorted(scaled.widths)


def test_scaling_below_the_narrowest_stem_is_refused() -> None:
    start = Arch("AS-AS", (72, 96), head_dim=12, patch_size=8, stem="conv")
    with pytest.raises(UserError, match=r"no width of AS-AS .* costs 0.01 M MACs: the nearest costs"):
        scale_to(start, 1e4, 64, num_classes=10)


def test_patches_scale_as_before() -> None:
    """Figures of before there were other stems."""
    assert scale_to(VARIANTS["psvit_2d_small"], 2e9).widths == (128, 256, 320)
    assert scale_to(Arch("AS-ASS-AS", (48, 96, 144), 16, patch_size=4), 12e6, 28, 1, 10).widths == (48, 80, 160)


# the contract


def test_torch_fx_sees_the_same_network() -> None:
    model, x = network(), images()
    with torch.no_grad():
        taps = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        for tap, feature in zip(taps, FeatureGraphNet(model, (0, 1))(x), strict=True):
            assert torch.equal(tap, feature)
        graph = timm.models.create_feature_extractor(model, {"head": "logits"})
        for sides in SIDES:
            assert torch.equal(graph(y := images(sides=sides))["logits"], model(y))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_torchscript_gives_the_same_numbers() -> None:
    model = network()
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for sides in SIDES:
            torch.testing.assert_close(scripted(y := images(sides=sides)), model(y), **CLOSE)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    model, x = network(), images()
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x), **CLOSE)


@pytest.mark.slow
def test_exported_graphs_are_plain_and_compute_the_same() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, size = frozen_copy(network(img_size=(18, 22), in_chans=1)), (1, 18, 22)
    program, proto = to_program(model, size), to_onnx(model, size)  # they refuse operators that are not plain
    assert onnx_operators(proto)["Conv"] == 4  # three of the stem, one of the pooling
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        inputs = example_images(size, count, seed=count)
        torch.testing.assert_close(program.module()(inputs), model(inputs), **CLOSE)
        (logits,) = session.run(None, {"images": inputs.numpy()})
        np.testing.assert_allclose(logits, model(inputs).numpy(), atol=1e-5, rtol=1e-5)


def test_layers_are_grouped_and_decayed_as_with_patches() -> None:
    model = network()
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    names = [name for name, _ in model.named_parameters() if name.startswith("patch_embed")]
    assert len(names) == 8  # three convolutions, a bias, two norms
    assert {groups[name] for name in names} == {groups["pos_embed"]} == {0}
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}


def test_another_input_size_but_no_other_patches() -> None:
    model = network()
    model.set_input_size((37, 53))
    assert model.grid_size == (10, 14)
    model.set_input_size(img_size=(20, 28), patch_size=4)  # its own
    with pytest.raises(UserError, match="patch_size 8: stem conv has no patches to resample, its stride stays 4"):
        model.set_input_size(patch_size=8)
    assert (model.arch.patch_size, model.grid_size) == (4, (5, 7))


# the description


def test_a_stem_round_trips_and_patches_are_as_before() -> None:
    plain, stem = Arch("AS-A", patch_size=8), Arch("AS-A", patch_size=8, stem="conv")
    for twin in (Arch.from_json(stem.to_json()), Arch(**stem.to_dict()), eval(repr(stem))):
        assert (twin, hash(twin)) == (stem, hash(stem))
    assert stem.to_dict()["stem"] == "conv"
    assert (str(stem), str(plain)) == ("AS-A 2d 192-256 /8 conv", "AS-A 2d 192-256 /8")
    assert stem != plain
    assert "stem" not in plain.to_dict()
    assert "stem" not in repr(plain)
    assert Arch.from_dict(plain.to_dict()) == eval(repr(plain)) == plain  # a file of before has no stem
    assert str(Arch("AS-A", patch_size=8, stem="conv", windows=(14, 0))) == "AS-A 2d 192-256 /8 conv w14-0"
    assert stem.plain() == plain.plain()  # a DeiT


def test_config_and_checkpoints_keep_the_stem(tmp_path: Path) -> None:
    arch = describe()
    model: Any = open_model(ModelConfig(arch), img_size=(20, 28), in_chans=1, num_classes=5).eval()
    assert model.arch == arch
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    preprocessing = {"input_size": (1, 20, 28), "mean": (0.3,), "std": (0.4,), "interpolation": "bicubic",
                     "crop_pct": 1}  # fmt: skip
    save_checkpoint(tmp_path / "kept", model, model.state_dict(), preprocessing, list("01234"), {})
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'kept'}", pretrained=True, in_chans=1).eval()
    assert again.arch == arch
    x = images(in_chans=1)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        coloured: Any = timm.create_model(f"local-dir:{tmp_path / 'kept'}", pretrained=True, in_chans=3).eval()
        torch.testing.assert_close(coloured(x.expand(-1, 3, -1, -1)), model(x), **CLOSE)
    assert ModelConfig.of("AS-A", stem="conv").network.stem == "conv"


def test_a_run_of_before_there_were_stems_is_resumed(tmp_path: Path) -> None:
    now = {"config": asdict(config()), "global_batch": 16}
    before = json.loads(json.dumps(now))
    del before["config"]["model"]["stem"]
    (tmp_path / "run_config.json").write_text(json.dumps(before))
    check_same(tmp_path, now)
    other = {**now, "config": asdict(config(model=ModelConfig.of("AS-A", stem="conv")))}
    with pytest.raises(UserError, match="was trained with"):
        check_same(tmp_path, other)


def test_a_wrong_value_is_named() -> None:
    refuses(
        lambda changes: Arch(**{"genotype": "AS-A", "stem": "conv", **changes}),
        (
            ({"stem": "convs"}, r"stem 'convs' is not one of patch, conv"),
            ({"stem": True}, r"stem True is not one of patch, conv"),
            ({"patch_size": 12}, r"stride 12 does not fit stem conv, whose convolutions halve the image: take a"),
            ({"patch_size": 1}, r"stride 1 does not fit stem conv"),
            ({"patch_size": 16, "stride": 8}, r"patch_size 16 and stride 8 differ, but stem conv cuts no patches"),
            ({"patch_size": 16, "widths": (56, 64), "head_dim": 8},
             r"width 56 of stage 1 does not fit stem conv of stride 16, whose channels double up to it: take a "
             r"multiple of 8, at least 64"),
            ({"patch_size": 4, "widths": (8, 64), "head_dim": 8}, r"width 8 .* take a multiple of 2, at least 16"),
        ),
    )  # fmt: skip


def test_stems_are_not_searched() -> None:
    with pytest.raises(UserError, match="stem conv is not searched: give it to the network that is found"):
        Space(4, 2, like=Arch("A", stem="conv"))


def test_a_search_is_recorded_as_before() -> None:
    space = Space(4, 2, like=Arch("A"))
    training = supernet_training(config(), SupernetConfig(), space, {})
    assert "stem" not in training.space["like"]
    assert "stem" not in repr(space)


def test_variants_take_a_stem() -> None:
    arch = find_arch("psvit_2d_small", stem="conv", patch_size=8)
    assert (arch.stem, arch.stride, arch.widths) == ("conv", 8, VARIANTS["psvit_2d_small"].widths)
    assert macs(scale_to(arch, macs(VARIANTS["psvit_2d_small"]))) == pytest.approx(4.61e9, rel=0.03)
    built: Any = build_arch(describe(), (20, 28), num_classes=5)
    assert isinstance(built.patch_embed, ConvStem)


def test_the_command_line(cli: Cli) -> None:
    shown = cli.ok("show", "AS-A", "--img-size", "32", "--patch-size", "4", "--stem", "conv")
    assert "AS-A 2d 192-256 /4 conv for 32x32 pixels" in shown
    assert "convolutional stem" in shown
    train = ("train", "--data", "digits", "--model", "AS-A", "--output", "unused", "--stem", "conv")
    assert "stride 3 does not fit stem conv" in cli.refused(*train, "--patch-size", "3")
