"""The backbone inside other libraries, each the real one: timm, smp, transformers, torchvision."""

import json
import shutil
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.fx
import transformers
from PIL import Image
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from tiny import Cli, image_folder
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork

from psvit import VARIANTS, UserError
from psvit.model.features import fine_strides, image_patches
from psvit.model.pooling import TokenPool
from psvit.training.checkpoints import load_checkpoint, save_checkpoint
from psvit.training.evaluate import open_checkpoint, preprocess

IN_1D = [name for name in VARIANTS if "_1d_" in name]
SIZES = [(64, 64), (32, 96), (37, 53), (75, 33), (1, 9)]
NARROW: dict[str, Any] = {"widths": (32, 48, 64), "head_dim": 16, "img_size": 64}
NETWORK: dict[str, Any] = {"genotype": "AS-A-A", "widths": (32, 48, 64), "head_dim": 16, "patch_size": 8}
PREPROCESSING = {"input_size": (3, 32, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
                 "interpolation": "bilinear", "crop_pct": 0.9}  # fmt: skip
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network whose position embeddings are 4 x 6."""
    torch.manual_seed(1)
    model = timm.create_model("psvit_2d", **NETWORK, img_size=(32, 48), num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    path = tmp_path_factory.mktemp("checkpoint") / "best"
    save_checkpoint(path, model, model.state_dict(), PREPROCESSING, CLASSES, {"accuracy": 0.5})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The network of `folder`."""
    return load_checkpoint(folder)


def images(*sides: int, batch: int = 2) -> Tensor:
    """Noise."""
    return torch.randn(batch, 3, *sides)


def equal_maps(found: Any, expected: Any) -> None:
    """Bitwise, and as many."""
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


# timm


@pytest.mark.parametrize(
    ("name", "changes", "strides", "channels"),
    [
        ("psvit_2d_tiny", {}, [4, 8, 16, 32, 64], [48, 192, 32, 48, 64]),
        ("psvit_2d_small", {}, [4, 8, 16, 32], [48, 32, 48, 64]),
        ("psvit_2d_base", {}, [4, 8, 16, 32], [48, 32, 48, 64]),
        ("psvit_2d_tiny", {"in_chans": 1, "stride": 8}, [4, 8, 16, 32], [16, 32, 48, 64]),
        ("psvit_2d", {"patch_size": 4}, [4, 8, 16], [32, 48, 64]),
        ("psvit_2d", {"patch_size": 2}, [2, 4, 8], [32, 48, 64]),
        ("psvit_2d", {"patch_size": 12}, [12, 24, 48], [32, 48, 64]),
        ("psvit_2d", {"patch_size": 14}, [14, 28, 56], [32, 48, 64]),
        ("psvit_2d", {"genotype": "A-A-A-AS", "widths": (16, 32, 48, 64), "patch_size": 4}, [4, 8, 16, 32],
         [16, 32, 48, 64]),
        ("psvit_2d", {"genotype": "AS", "widths": (16,), "patch_size": 16}, [4, 8, 16], [48, 192, 16]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sides", SIZES)
def test_maps_have_their_true_strides(
    sides: tuple[int, int], name: str, changes: dict[str, Any], strides: list[int], channels: list[int]
) -> None:
    backbone = timm.create_model(name, features_only=True, **{**NARROW, **changes}).eval()
    assert backbone.feature_info.reduction() == strides
    assert backbone.feature_info.channels() == channels
    with torch.no_grad():
        maps = backbone(torch.randn(2, changes.get("in_chans", 3), *sides))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, ceil(sides[0] / s), ceil(sides[1] / s)) for c, s in zip(channels, strides, strict=True)
    ]
    assert all(m.is_contiguous() for m in maps)


def test_maps_before_the_stages_are_the_image() -> None:
    x = images(10, 7)
    patches = image_patches(x, 4)
    assert patches.shape == (2, 48, 3, 2)
    for channel, row, column in ((0, 0, 0), (2, 9, 6), (1, 5, 3), (2, 4, 4)):
        place = channel * 16 + row % 4 * 4 + column % 4
        assert torch.equal(patches[:, place, row // 4, column // 4], x[:, channel, row, column])
    assert patches.square().sum() == pytest.approx(x.square().sum())  # nothing else but zeros
    backbone = timm.create_model("psvit_2d_tiny", features_only=True, **NARROW)
    equal_maps(backbone(x)[:2], [image_patches(x, 4), image_patches(x, 8)])


def test_maps_of_stages_are_the_networks_own() -> None:
    x = images(37, 53)
    whole = timm.create_model("psvit_2d_tiny", **NARROW).eval()
    expected = whole.forward_intermediates(x, intermediates_only=True)
    for out_indices, taken in ((3, [0, 1, 2]), ((-1,), [2]), ((2, 4), [0, 2]), ((3, 2), [0, 1]), (1, [2])):
        backbone = timm.create_model("psvit_2d_tiny", features_only=True, out_indices=out_indices, **NARROW).eval()
        assert {*backbone.state_dict()} <= {f"model.{name}" for name in whole.state_dict()}
        backbone.model.load_state_dict(whole.state_dict(), strict=False)
        equal_maps(backbone(x), [expected[stage] for stage in taken])
        assert backbone.feature_info.reduction() == [[16, 32, 64][stage] for stage in taken]
        assert len(backbone.model.stages) == taken[-1] + 1
    getter = timm.create_model("psvit_2d_tiny", features_only=True, feature_cls="getter", **NARROW)
    assert getter.feature_info.reduction() == [16, 32, 64]


def test_finer_maps_lead_to_the_patches_by_doubling() -> None:
    def fine(stride: int, pooling: Any = "2d") -> list[int]:
        name = f"psvit_{pooling}_tiny"
        return fine_strides(timm.create_model(name, patch_size=stride, **NARROW).arch)

    assert [fine(stride) for stride in (1, 2, 4, 8, 12, 16, 24, 32)] == [[], [], [], [4], [], [4, 8], [], [4, 8, 16]]
    assert fine(16, "1d") == []


@pytest.mark.parametrize(
    ("out_indices", "message"),
    [
        ((0, 1), r"\(0, 1\) are maps before the first stage: take 2 or a later one too; there are 5, 0 to 4, "
                 "of strides 4, 8, 16, 32, 64"),
        ((5,), "are not stages or maps before them: there are 5, 0 to 4"),
        ((), "are not stages"),
        (6, "are not stages"),
    ],
)  # fmt: skip
def test_maps_that_are_not_there(out_indices: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        timm.create_model("psvit_2d_tiny", features_only=True, out_indices=out_indices)


def test_a_checkpoint_gives_its_own_maps(folder: Path, model: Any) -> None:
    backbone = timm.create_model(f"local-dir:{folder}", features_only=True, pretrained=True).eval()
    weights = load_file(folder / "model.safetensors")
    own = backbone.model.state_dict()
    assert {*weights} - {*own} == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert all(torch.equal(value, weights[name]) for name, value in own.items())
    for sides in ((32, 48), (37, 53)):
        x = images(*sides)
        expected = model.forward_intermediates(x, intermediates_only=True)
        equal_maps(backbone(x), [image_patches(x, 4), *expected])


def test_memory_can_be_traded_for_time() -> None:
    backbone = timm.create_model("psvit_2d_small", features_only=True, **NARROW)
    backbone.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in backbone.model.stages)
    backbone(images(32, 32))[-1].sum().backward()
    assert backbone.model.patch_embed.proj.weight.grad.any()


# output_stride


@pytest.mark.parametrize("op", ["max", "avg", "stride"])
@pytest.mark.parametrize("order", ["conv-pool", "pool-conv"])
@pytest.mark.parametrize("conv", ["full", "depthwise"])
@pytest.mark.parametrize("grid", [(8, 8), (7, 9), (1, 5)])
def test_a_dilated_pooling_holds_what_halving_gives(op: Any, order: Any, conv: Any, grid: tuple[int, int]) -> None:
    options: dict[str, Any] = {"order": order, "conv": conv, "op": op}
    halve = [TokenPool(4, 6, **options), TokenPool(6, 5, **options)]
    keep = [TokenPool(4, 6, dilation=1, **options), TokenPool(6, 5, dilation=2, **options)]
    x = expected = found = torch.randn(2, grid[0] * grid[1], 4)
    halved = grid
    for number, (one, other) in enumerate(zip(halve, keep, strict=True), 1):
        other.load_state_dict(one.state_dict())
        expected, halved = one(expected, halved)
        found, kept = other(found, grid)
        assert tuple(kept) == grid
        sparse = found.reshape(2, *grid, -1)[:, :: 2**number, :: 2**number]
        torch.testing.assert_close(sparse, expected.reshape(2, *halved, -1))
    assert x.shape[1] == found.shape[1]


@pytest.mark.parametrize(
    ("name", "output_stride", "strides"),
    [
        ("psvit_2d_tiny", 16, [4, 8, 16, 16, 16]),
        ("psvit_2d_tiny", 32, [4, 8, 16, 32, 32]),
        ("psvit_2d_tiny", 64, [4, 8, 16, 32, 64]),
        ("psvit_2d_small", 8, [4, 8, 8, 8]),
        ("psvit_2d_small", 16, [4, 8, 16, 16]),
        ("psvit_2d_small", 32, [4, 8, 16, 32]),
    ],
)
def test_output_stride_keeps_tokens(name: str, output_stride: int, strides: list[int]) -> None:
    backbone = timm.create_model(name, features_only=True, output_stride=output_stride, **NARROW)
    assert backbone.feature_info.reduction() == strides
    kept = sum(one == other for one, other in pairwise(strides))
    dilations = [stage.pool.dilation for stage in backbone.model.stages[1:]]
    assert dilations == ([0, 0, 1, 2] if kept else [0, 0])[kept : kept + 2]
    plain = timm.create_model(name, features_only=True, **NARROW)
    backbone.load_state_dict(plain.state_dict())  # the same weights
    maps = backbone(images(37, 75))
    assert [tuple(m.shape[2:]) for m in maps] == [(ceil(37 / s), ceil(75 / s)) for s in strides]
    sum(m.sum() for m in maps).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_output_stride_stays_with_the_network(tmp_path: Path) -> None:
    dilated = timm.create_model("psvit_2d", **NETWORK, img_size=(32, 48), num_classes=3, output_stride=16).eval()
    save_checkpoint(tmp_path / "best", dilated, dilated.state_dict(), PREPROCESSING, CLASSES, {})
    x = images(32, 48)
    assert torch.equal(load_checkpoint(tmp_path / "best")(x), dilated(x))
    dilated.set_input_size(patch_size=16)
    assert [info["reduction"] for info in dilated.feature_info] == [16, 32, 32]
    maps = dilated.forward_intermediates(x, intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [(2, 3), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("psvit_2d_tiny", 8, r"output_stride 8 is none of this network's strides \(16, 32, 64\): .*stride="),
        ("psvit_2d_small", 12, r"output_stride 12 is none of this network's strides \(8, 16, 32\)"),
        ("psvit_1d_tiny", 16, "output_stride 16 needs a grid in every stage.*take a 2D variant"),
    ],
)
def test_an_output_stride_that_cannot_be(name: str, output_stride: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        timm.create_model(name, output_stride=output_stride)


# segmentation_models_pytorch

DECODERS = {"Unet": smp.Unet, "FPN": smp.FPN, "UPerNet": smp.UPerNet, "DeepLabV3Plus": smp.DeepLabV3Plus}
DPT: dict[str, Any] = {"encoder_depth": 3, "decoder_readout": "ignore"}


@pytest.mark.parametrize("name", [name for name in VARIANTS if "_2d_" in name])
@pytest.mark.parametrize("decoder", DECODERS)
def test_smp_builds_segmenters(decoder: str, name: str) -> None:
    with torch.device("meta"):
        segmenter = DECODERS[decoder](f"tu-{name}", encoder_weights=None, classes=5)
        y = segmenter(torch.empty(2, 3, 128, 192))
    assert y.shape == (2, 5, 128, 192)
    widths = [288, 384] if name.endswith("tiny") else list(VARIANTS[name].widths)
    fine = [0, 48, 192] if name.endswith("tiny") else [0, 48]
    assert segmenter.encoder.out_channels == [3, *fine, *widths]


@pytest.mark.parametrize("name", [name for name in VARIANTS if "_2d_" in name])
def test_smp_builds_dpt(name: str) -> None:
    with torch.device("meta"):
        segmenter = smp.DPT(
            f"tu-{name}", encoder_weights=None, classes=5, decoder_intermediate_channels=(64, 96, 128), **DPT
        )
        y = segmenter(torch.empty(2, 3, 128, 192))
    assert y.shape == (2, 5, 128, 192)
    assert segmenter.encoder.output_strides == list(VARIANTS[name].strides)


def trains(segmenter: nn.Module, unused: set[str]) -> None:
    """Every parameter of the encoder gets a gradient but those of the `unused` modules."""
    x = images(64, 128)
    y = segmenter(x)
    assert y.shape == (2, 1, 64, 128)
    y.square().mean().backward()
    parameters = segmenter.get_submodule("encoder").named_parameters()
    without = {name for name, p in parameters if p.grad is None or not p.grad.any()}
    assert {name.split(".")[-2] for name in without} == unused


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_segmenter_trains_its_encoder(decoder: str) -> None:
    narrow = {key: value for key, value in NARROW.items() if key != "img_size"}
    trains(DECODERS[decoder]("tu-psvit_2d_tiny", encoder_weights=None, **narrow), set())
    segmenter = DECODERS[decoder]("tu-psvit_2d", encoder_weights=None, genotype="A-AS-A", **narrow, patch_size=8)
    assert segmenter.encoder.model.model.arch.genotype == "A-AS-A"
    assert segmenter.encoder.out_channels == [3, 0, 48, 32, 48, 64]
    trains(segmenter, set())


def test_dpt_trains_its_encoder() -> None:
    segmenter = smp.DPT("tu-psvit_2d", encoder_weights=None, decoder_intermediate_channels=(16, 16, 16),
                        decoder_fusion_channels=16, **DPT, **NETWORK)  # fmt: skip
    trains(segmenter, {"norm", "head"})  # smp builds the classifier and leaves it


def test_a_checkpoint_is_an_encoder(folder: Path, model: Any) -> None:
    x = images(64, 96)
    encoder = smp.Unet(f"tu-local-dir:{folder}", encoder_weights=True).encoder.eval()
    expected = model.forward_intermediates(x, intermediates_only=True)
    equal_maps(encoder(x)[3:], expected)


def test_a_checkpoint_takes_a_finer_grid(folder: Path, model: Any) -> None:
    encoder = smp.Unet(
        f"tu-local-dir:{folder}", encoder_weights=True, stride=4, encoder_depth=4, decoder_channels=(32, 16, 16, 8)
    ).encoder
    assert encoder.model.feature_info.reduction() == [4, 8, 16]
    found = encoder.model.model
    assert torch.equal(found.patch_embed.proj.weight, model.patch_embed.proj.weight)
    expected = resample_abs_pos_embed(model.pos_embed, [8, 12], [4, 6], num_prefix_tokens=0)
    assert torch.equal(found.pos_embed, expected)
    assert [tuple(m.shape[2:]) for m in encoder(images(32, 48))[2:]] == [(8, 12), (4, 6), (2, 3)]
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=(64, 32))
    expected = resample_abs_pos_embed(model.pos_embed, [8, 4], [4, 6], num_prefix_tokens=0)
    assert torch.equal(other.pos_embed, expected)


@pytest.mark.parametrize("decoder", DECODERS)
def test_smp_says_why_1d_is_no_encoder(decoder: str) -> None:
    with pytest.raises(ValueError, match=r"pools the sequence \(1D\).*take a 2D variant") as error:
        DECODERS[decoder]("tu-psvit_1d_tiny", encoder_weights=None)
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)


def test_dpt_says_why_1d_is_no_encoder() -> None:
    segmenter = smp.DPT("tu-psvit_1d_tiny", encoder_weights=None, decoder_intermediate_channels=(8, 8, 8),
                        encoder_depth=3, **NARROW)  # fmt: skip
    with pytest.raises(UserError, match=r"pools the sequence \(1D\).*take a 2D variant"):
        segmenter(images(64, 64))


# transformers


@pytest.mark.parametrize("kind", ["AutoModelForImageClassification", "TimmWrapperForImageClassification"])
def test_transformers_classifies_as_the_checkpoint(kind: str, folder: Path, model: Any, tmp_path: Path) -> None:
    wrapped = getattr(transformers, kind).from_pretrained(folder).eval()
    assert isinstance(wrapped, transformers.TimmWrapperForImageClassification)
    assert wrapped.config.id2label == dict(enumerate(CLASSES))
    assert wrapped.config.label2id == {name: number for number, name in enumerate(CLASSES)}
    x = images(32, 48)
    expected = model(x)
    assert torch.equal(wrapped(x).logits, expected)
    outputs = wrapped(x, labels=torch.tensor([0, 2]), output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, expected)
    equal_maps(outputs.hidden_states, model.forward_intermediates(x, intermediates_only=True))
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in wrapped.parameters())
    wrapped.save_pretrained(tmp_path / "again")  # and back
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    for twin in (again, load_checkpoint(tmp_path / "again")):
        assert torch.equal(twin(x), expected)


def test_transformers_gives_features_and_other_classes(folder: Path, model: Any) -> None:
    x = images(32, 48)
    outputs = transformers.AutoModel.from_pretrained(folder).eval()(x)
    tokens = model.forward_features(x)
    assert torch.equal(outputs.last_hidden_state, tokens)
    assert torch.equal(outputs.pooler_output, tokens.mean(1))
    other = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=7, ignore_mismatched_sizes=True
    )
    assert other(x).logits.shape == (2, 7)


NAMED, CONFIGURED, NUMBERED = "label_names", "id2label in the file", "nothing"


@pytest.mark.parametrize("told", [NAMED, CONFIGURED, NUMBERED])
@pytest.mark.parametrize("count", [2, 7])
def test_what_transformers_tuned_to_other_classes_is_used_under_its_names(
    cli: Cli, folder: Path, tmp_path: Path, told: str, count: int
) -> None:
    names = [f"kind {number}" for number in range(count)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    more = {"label_names": names} if told == NAMED else {}
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=count, ignore_mismatched_sizes=True, **labels, **more
    ).eval()
    tuned = tmp_path / "tuned"
    wrapped.save_pretrained(tuned)
    config = json.loads((tuned / "config.json").read_text())
    assert config["num_classes"] == count
    assert "id2label" not in config  # of transformers 5.24: so what the user gave is lost unless it is in label_names
    if told == CONFIGURED:
        (tuned / "config.json").write_text(json.dumps({**config, "id2label": labels["id2label"]}))
    expected = list(map(str, range(count))) if told == NUMBERED else names

    data = image_folder(tmp_path / "data", tuple(expected), each=4)
    picture = data / expected[0] / "0.png"
    machine = ["--device", "cpu", "--threads", 1, "--precision", "float32"]
    note = f"note      {tuned / 'config.json'} does not hold a name for each of the network's {count} classes"

    def predicted(checkpoint: Path) -> dict[str, float]:
        result = cli("predict", checkpoint, picture, "--json", "--top", 9, *machine)
        assert result.code == 0, result.err
        assert (note in result.err) == (told == NUMBERED and checkpoint == tuned)
        return {found["label"]: found["probability"] for found in json.loads(result.out)["classes"]}

    by_label = predicted(tuned)
    pixels = preprocess(load_checkpoint(tuned))(Image.open(picture))
    with torch.inference_mode():
        probabilities = wrapped(pixels[None]).logits.softmax(-1)[0].tolist()
    assert by_label == pytest.approx(dict(zip(expected, probabilities, strict=True)), abs=1e-5)
    figures = json.loads(cli.ok("evaluate", tuned, "--data", data, "--split", "train", "--json", *machine))
    assert list(figures["per_class"]) == expected
    other = cli("evaluate", tuned, "--data", "digits", *machine)
    assert other.code == 2
    assert other.err.endswith(f"psvit: {tuned} knows {count} classes, digits has 10: it is another set's\n")

    assert f", {count} classes\n" in cli.ok("export", tuned, "--rounds", 0)
    cli.ok("export", tuned, "--format", "timm")
    file, again = tmp_path / "tuned.onnx", tmp_path / "tuned-timm"
    for exported in (file, again):
        assert predicted(exported) == pytest.approx(by_label, abs=1e-5)
    written = json.loads((again / "config.json").read_text())
    assert (written["num_classes"], written["label_names"]) == (count, expected)
    assert timm.create_model(f"local-dir:{again}", pretrained=True).num_classes == count
    assert load_checkpoint(tuned).pretrained_cfg["label_names"] == expected


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", 3], "abc", 3, {"0": "a"}])
def test_names_that_are_not_one_for_each_class_are_left_aside(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: Any
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "label_names": names}))
    assert open_checkpoint(str(broken)).classes == ("0", "1", "2")
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "numbered", [{"0": "a", "1": "b"}, {"0": "a", "1": "b", "3": "c"}, {"0": "a", "1": "b", "2": 3}, ["a", "b", "c"],
                 {f"{number}": f"LABEL_{number}" for number in range(3)}]
)  # fmt: skip
def test_only_a_whole_id2label_counts(folder: Path, tmp_path: Path, numbered: Any) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "id2label": numbered}))
    assert open_checkpoint(str(broken)).classes == CLASSES


def test_transformers_prepares_images_as_we_do(folder: Path, model: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    found = transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(found[0], preprocess(model)(image))
    assert found.shape == (1, 3, 32, 48)


def test_one_config_for_timm_and_transformers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (3, list(CLASSES))
    assert "num_classes" not in config["model_args"]  # transformers refuses it there
    assert timm.create_model(f"local-dir:{folder}").num_classes == 3


@pytest.mark.parametrize(
    ("out_indices", "strides"), [(None, [32]), ((-1,), [32]), ((0, 1, 2, 3), [4, 8, 16, 32]), ((1, 3), [8, 32])]
)
def test_transformers_backbone(out_indices: Any, strides: list[int], folder: Path, model: Any) -> None:
    source = f"local-dir:{folder}"
    backbone = transformers.TimmBackbone.from_pretrained(source, out_indices=out_indices).eval()
    x = images(37, 53)
    expected = [image_patches(x, 4), *model.forward_intermediates(x, intermediates_only=True)]
    maps = backbone(x).feature_maps
    equal_maps(maps, [expected[[4, 8, 16, 32].index(stride)] for stride in strides])
    assert backbone.channels == [m.shape[1] for m in maps]
    assert backbone.stage_names == ["patches.4", "stages.0", "stages.1", "stages.2"]


def test_transformers_backbone_of_a_variant() -> None:
    config = transformers.TimmBackboneConfig(backbone="psvit_2d_tiny", out_indices=(2, 3, 4), num_channels=1)
    backbone = transformers.AutoBackbone.from_config(config)
    assert backbone.channels == [288, 384, 384]
    maps = backbone(torch.randn(1, 1, 64, 96)).feature_maps
    assert [tuple(m.shape[2:]) for m in maps] == [(4, 6), (2, 3), (1, 2)]


@pytest.mark.parametrize("name", IN_1D)
def test_transformers_says_why_1d_is_no_backbone(name: str) -> None:
    with pytest.raises(ValueError, match=r"pools the sequence \(1D\).*take a 2D variant"):
        transformers.TimmBackbone(transformers.TimmBackboneConfig(backbone=name, out_indices=(0, 1, 2)))


# torchvision


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("psvit_2d", {}),
        ("psvit_2d", {"windows": (2, 0, 0)}),
        ("psvit_2d", {"output_stride": 16, "pool_op": "avg"}),
        ("psvit_2d", {"sharing": "projections", "pool_op": "stride"}),
        ("psvit_1d", {}),
        ("psvit_1d", {"sharing": "projections", "pool_op": "stride"}),
    ],
)
def test_torchvision_extracts_stages(name: str, changes: dict[str, Any]) -> None:
    model = timm.create_model(name, **{**NETWORK, "img_size": 64, **changes}).eval()
    nodes = {"stages.0": "first", "stages.2": "last", "head": "logits"}
    extractor = create_feature_extractor(model, nodes)
    for sides in ((64, 64), (37, 53)):
        x = images(*sides)
        found = extractor(x)
        tokens = model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
        for node, stage in (("first", 0), ("last", 2)):
            grid, prefix = tokens[stage]
            assert torch.equal(found[node], torch.cat([prefix, grid], dim=1))
        assert torch.equal(found["logits"], model(x))


def test_torch_fx_traces_the_features() -> None:
    backbone = timm.create_model("psvit_2d_small", features_only=True, **NARROW).eval()
    graph = torch.fx.symbolic_trace(backbone)
    x = images(37, 53)
    equal_maps(graph(x), backbone(x))


def test_torchvision_builds_a_pyramid() -> None:
    backbone = timm.create_model("psvit_2d_small", features_only=True, **NARROW)
    pyramid = FeaturePyramidNetwork(backbone.feature_info.channels(), 16)
    maps = pyramid({str(number): one for number, one in enumerate(backbone(images(75, 101)))})
    sizes = [(ceil(75 / s), ceil(101 / s)) for s in (4, 8, 16, 32)]
    assert [tuple(m.shape) for m in maps.values()] == [(2, 16, *size) for size in sizes]
    maps["0"].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())
