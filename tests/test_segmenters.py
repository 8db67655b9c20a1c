"""Segmenters: decoders on any backbone learn with every weight, and are smp's own."""

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from small_segmenters import ARCH, features, segmenter
from torch import Tensor, nn

from psvit.arch.model_config import ModelConfig
from psvit.engine.open_model import open_model
from psvit.engine.optimizer import make_optimizer
from psvit.errors import UserError
from psvit.models.features import Features
from psvit.tasks.dense.dense_config import DenseRecipe
from psvit.tasks.segmentation.segmenter_config import DECODERS, SegmenterConfig
from psvit.tasks.segmentation.segmenters import Canvas, FeaturesEncoder, build_segmenter, multiple_of

VIT = ModelConfig.of("vit_tiny_patch16_224", model_args={"embed_dim": 24, "num_heads": 3})


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_learns_with_every_weight(decoder: Any) -> None:
    """On strides 4 and 8; 16, 32 and 64; a plain 16."""
    for model in (ARCH, ModelConfig.of("A-A-A", widths=(16, 16, 16), head_dim=8, patch_size=16), VIT):
        network: Any = segmenter(decoder, model)
        multiple = multiple_of(network)
        size = (64, 64) if model.model.startswith("vit") else (multiple, 2 * multiple)
        output = network(torch.randn(2, 1, *size))
        assert output.shape == (2, 4, *size), model
        output.square().sum().backward()
        without = [name for name, weight in network.named_parameters() if weight.numel() and weight.grad is None]
        assert not without, model
        if decoder != "dpt":
            assert isinstance(network.encoder, FeaturesEncoder)
    # the library is as it was
    assert "psvit" not in smp.encoders.encoders


def test_on_a_backbone_that_smp_knows_the_network_is_smps_own() -> None:
    for decoder in ("unet", "fpn", "upernet", "segformer"):
        body, described = features(ModelConfig.of("resnet18"), in_chans=3)
        ours = build_segmenter(body, described, SegmenterConfig(decoder, channels=256, dropout=0.2), 4).eval()
        theirs = smp.create_model(decoder, "tu-resnet18", encoder_weights=None, classes=4).eval()
        theirs.load_state_dict(ours.state_dict())
        images = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_a_psvit_is_built_by_smp_alone_too() -> None:
    args = {"genotype": "AS-A", "widths": (16, 32), "head_dim": 8, "patch_size": 4, "img_size": 64}
    theirs = smp.create_model("unet", "tu-psvit_2d", encoder_weights=None, in_channels=1, classes=4, encoder_depth=3,
                              decoder_channels=(32, 16, 8), **args).eval()  # fmt: skip
    ours = segmenter("unet").eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_maps_stand_at_their_strides() -> None:
    model = open_model(ModelConfig.of("A-A", widths=(16, 24), head_dim=8, patch_size=8), img_size=64, in_chans=1)
    body = Features(model, out_indices=2)
    maps = body(torch.ones(1, 1, 64, 64))
    encoder = FeaturesEncoder(body, 1, 2, 5, depth=5)
    found = encoder(torch.ones(1, 1, 64, 64))
    assert [tuple(one.shape[1:]) for one in found] == [
        (1, 64, 64), (0, 32, 32), (8, 16, 16), (16, 8, 8), (24, 4, 4), (24, 2, 2)
    ]  # fmt: skip
    assert encoder.out_channels == [one.shape[1] for one in found]
    assert torch.equal(found[3], maps[0])
    assert torch.equal(found[4], maps[1])
    assert torch.equal(found[5], F.max_pool2d(maps[1], 2))
    coarse = FeaturesEncoder(body, 1, None, 3, depth=3)(torch.ones(1, 1, 64, 64))
    assert torch.equal(coarse[3], F.interpolate(maps[1], size=(8, 8), mode="bilinear"))


def test_any_image_size_is_padded_and_cut_back() -> None:
    for decoder in DECODERS:
        network = segmenter(decoder).eval()
        canvas = Canvas((0.5,), (0.25,), multiple_of(network))
        image = torch.rand(1, 1, 37, 53)
        sides = [side + -side % multiple_of(network) for side in (37, 53)]
        padded = torch.zeros(1, 1, *sides)
        padded[:, :, :37, :53] = (image - 0.5) / 0.25
        with torch.no_grad():
            logits = canvas(network, image)
            assert logits.shape == (1, 4, 37, 53), decoder
            torch.testing.assert_close(logits, network(padded)[:, :, :37, :53], rtol=0, atol=1e-6)


def test_a_transformer_of_timm_takes_other_sizes() -> None:
    for decoder in ("unet", "dpt"):
        network = segmenter(decoder, VIT).eval()
        assert Canvas((0.5,), (0.25,), multiple_of(network))(network, torch.rand(1, 1, 37, 53)).shape == (1, 4, 37, 53)


def test_a_network_of_one_size_says_so() -> None:
    class OneSize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("Input height (48) doesn't match model (64).")

    with pytest.raises(UserError, match="cannot take an image of 37 x 53 pixels: Input height"):
        Canvas((0.5,), (0.25,), 16)(OneSize(), torch.rand(1, 1, 37, 53))


def test_position_embeddings_are_not_decayed() -> None:
    for decoder, name in (("unet", "encoder.model.model.pos_embed"), ("dpt", "encoder.model.pos_embed")):
        network = segmenter(decoder)
        optimizer = make_optimizer(network, DenseRecipe(), 1)
        still = [
            id(weight) for group in optimizer.param_groups if not group["weight_decay"] for weight in group["params"]
        ]
        assert id(dict(network.named_parameters())[name]) in still, decoder
        moved = [id(weight) for group in optimizer.param_groups if group["weight_decay"] for weight in group["params"]]
        assert id(dict(network.named_parameters())["segmentation_head.0.weight" if decoder == "unet" else
                                                   "segmentation_head.head.0.weight"]) in moved  # fmt: skip


def test_a_backbone_with_channels_last() -> None:
    args = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    network = segmenter("upernet", ModelConfig.of("swin_tiny_patch4_window7_224", model_args=args))
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 4, 64, 64)


def test_strides_that_are_no_powers_of_two_are_refused() -> None:
    with pytest.raises(UserError, match=r"are of strides 12, 24: .* --patch-size 16"):
        segmenter("unet", ModelConfig.of("A-A", widths=(16, 16), head_dim=8, patch_size=12), (48, 48))
