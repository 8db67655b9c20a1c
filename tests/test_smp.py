"""The backbone as an encoder of segmentation_models_pytorch."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.fx
from small_features import NARROW, NETWORK, checkpoint, equal_maps, images
from timm.layers import resample_abs_pos_embed
from torch import nn

from psvit import VARIANTS
from psvit.engine.open_model import load_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network whose position embeddings are 4 x 6."""
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "best")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The network of `folder`."""
    return load_checkpoint(folder)


DECODERS = {"Unet": smp.Unet, "FPN": smp.FPN, "UPerNet": smp.UPerNet, "DeepLabV3Plus": smp.DeepLabV3Plus}
DPT: dict[str, Any] = {"encoder_depth": 3, "decoder_readout": "ignore"}


def test_smp_builds_segmenters() -> None:
    with torch.device("meta"):
        for build in DECODERS.values():
            segmenter = build("tu-psvit_2d_tiny", encoder_weights=None, classes=5)
            assert segmenter(torch.empty(2, 3, 128, 192)).shape == (2, 5, 128, 192)
            assert segmenter.encoder.out_channels == [3, 0, 48, 192, 288, 384]
        dpt = smp.DPT("tu-psvit_2d_tiny", encoder_weights=None, classes=5,
                      decoder_intermediate_channels=(64, 96, 128), **DPT)  # fmt: skip
        assert dpt(torch.empty(2, 3, 128, 192)).shape == (2, 5, 128, 192)
    assert dpt.encoder.output_strides == list(VARIANTS["psvit_2d_tiny"].strides)


def trains(segmenter: nn.Module, unused: set[str]) -> None:
    """Every parameter of the encoder gets a gradient but those of the `unused` modules."""
    x = images(64, 128)
    y = segmenter(x)
    assert y.shape == (2, 1, 64, 128)
    y.square().mean().backward()
    parameters = segmenter.get_submodule("encoder").named_parameters()
    without = {name for name, p in parameters if p.grad is None or not p.grad.any()}
    assert {name.split(".")[-2] for name in without} == unused


@pytest.mark.parametrize("decoder", ["Unet", "DeepLabV3Plus"])
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
