"""Segmenters: gradients, parity with segmentation_models_pytorch, metrics and losses by hand."""

from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from small_dense import ARCH, CPU, features, segmentation, segmenter
from torch import Tensor, nn

from psvit.arch.model_config import ModelConfig
from psvit.data.objects.batches import ClassMapSplit
from psvit.data.objects.object_sets import DenseData, open_class_maps
from psvit.data.objects.objects_config import DenseAugment, DenseDataConfig
from psvit.data.objects.transforms import Vary, vary_class_map
from psvit.data.samples import Batch
from psvit.engine.accelerator import open_machine
from psvit.engine.open_model import open_model
from psvit.errors import UserError
from psvit.models.features import Features
from psvit.tasks.dense.dense_checkpoints import own_batches
from psvit.tasks.segmentation.mean_iou import SegmentationMetrics, confusion_matrix
from psvit.tasks.segmentation.segment import Segmentation
from psvit.tasks.segmentation.segmenter_config import DECODERS, SegmenterConfig
from psvit.tasks.segmentation.segmenters import FeaturesEncoder, build_segmenter, multiple_of

VIT = ModelConfig.of("vit_tiny_patch16_224", model_args={"embed_dim": 24, "num_heads": 3})


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_learns_with_every_weight(decoder: Any) -> None:
    """On strides 4 and 8; 16, 32 and 64; a plain 16."""
    for model in (ARCH, ModelConfig.of("A-A-A", widths=(16, 16, 16), head_dim=8, patch_size=16), VIT):
        network: Any = segmenter(decoder, model)
        multiple = multiple_of(network)
        size = (64, 64) if model.name.startswith("vit") else (multiple, 2 * multiple)
        output = network(torch.randn(2, 1, *size))
        assert output.shape == (2, 4, *size), model
        output.square().sum().backward()
        without = [name for name, weight in network.named_parameters() if weight.numel() and weight.grad is None]
        assert not without, model
        if decoder != "dpt":
            assert isinstance(network.encoder, FeaturesEncoder)
    assert "psvit" not in smp.encoders.encoders  # the library stays unchanged


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
        image = torch.rand(1, 1, 37, 53)
        sides = [side + -side % multiple_of(network) for side in (37, 53)]
        padded = torch.zeros(1, 1, *sides)
        padded[:, :, :37, :53] = (image - 0.5) / 0.25
        with torch.no_grad():
            logits = segmentation().logits(network, image)
            assert logits.shape == (1, 4, 37, 53), decoder
            torch.testing.assert_close(logits, network(padded)[:, :, :37, :53], rtol=0, atol=1e-6)


def test_a_network_of_one_size_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_size(x: Tensor) -> Tensor:
        raise AssertionError("Input height (48) doesn't match model (64).")

    network = segmenter("fpn")
    monkeypatch.setattr(network, "forward", one_size)
    with pytest.raises(UserError, match="cannot take an image of 37 x 53 pixels: Input height"):
        segmentation().logits(network, torch.rand(1, 1, 37, 53))


def test_strides_that_are_no_powers_of_two_are_refused() -> None:
    with pytest.raises(UserError, match=r"are of strides 12, 24: .* --patch-size 16"):
        segmenter("unet", ModelConfig.of("A-A", widths=(16, 16), head_dim=8, patch_size=12), (48, 48))


# ---- metrics


def test_the_metrics_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 255]])
    found = torch.tensor([[0, 1, 1, 1], [0, 2, 3, 0]])
    counts = confusion_matrix(found, truth, 5)
    assert counts.tolist() == [[1, 1, 0, 0, 0], [0, 2, 0, 0, 0], [1, 0, 1, 0, 0], [0] * 5, [0] * 5]
    metrics = SegmentationMetrics(counts, 0.5, list("abcde"), 1)
    # class d was predicted on an ignored pixel only
    assert metrics.per_class == {"a": 100 / 3, "b": 200 / 3, "c": 50.0, "d": None, "e": None}
    assert metrics.miou == pytest.approx(50)
    assert metrics.pixel_accuracy == pytest.approx(100 * 4 / 6)


def test_the_metrics_are_smps() -> None:
    generator = torch.Generator().manual_seed(3)
    found = torch.randint(0, 6, (4, 9, 7), generator=generator)
    truth = torch.randint(0, 6, (4, 9, 7), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    metrics = SegmentationMetrics(confusion_matrix(found, truth, 6), 0.0, list("abcdef"), 4)
    tp, fp, fn, _ = smp.metrics.get_stats(found, truth, "multiclass", ignore_index=255, num_classes=6)
    expected = smp.metrics.iou_score(tp, fp, fn, torch.zeros_like(tp), reduction="macro")
    assert metrics.miou == pytest.approx(100 * float(expected), rel=1e-6)


# ---- learning


@pytest.fixture(scope="module")
def scenes() -> DenseData:
    return open_class_maps(DenseDataConfig(scenes=20, img_size=48, validation=0.25))


def task_of(scenes: DenseData, **head: Any) -> tuple[Segmentation, nn.Module]:
    torch.manual_seed(0)
    task = segmentation(scenes, **head)
    body, described = features(size=(48, 48))
    return task, task.build(body, described)


def test_the_loss_of_an_evaluation_is_of_one_image_at_a_time(
    scenes: DenseData, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, network = task_of(scenes)
    seen: list[int] = []
    plain = F.cross_entropy

    def counted(logits: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append(len(logits))
        return plain(logits, *rest, **more)

    monkeypatch.setattr(F, "cross_entropy", counted)
    machine, split = open_machine(CPU), ClassMapSplit(scenes.validation)
    with torch.inference_mode():
        one, all_ = (
            task.evaluate(network.eval(), own_batches(split, machine, size, 0), scenes, machine) for size in (1, 5)
        )
    assert seen == [1] * 10
    assert all_.to_dict() == pytest.approx(one.to_dict())


def test_the_loss_is_a_mean_over_all_pixels_and_ignored_ones_count_nothing(scenes: DenseData) -> None:
    task, network = task_of(scenes, loss="cross-entropy")
    images, classes = torch.rand(2, 1, 48, 48), torch.randint(0, 11, (2, 48, 48))
    classes[0, :20] = 255
    classes[1] = 255
    logs = task.logits(network, images).log_softmax(dim=1)
    known = [-logs[0, classes[0, y, x], y, x] for y in range(20, 48) for x in range(48)]
    expected = torch.stack(known).sum() / (2 * 48 * 48)
    machine = open_machine(CPU)
    assert task.loss(network, Batch(images, classes, ()), machine).item() == pytest.approx(expected.item(), rel=1e-5)
    only = Batch(images[1:], classes[1:], ())
    assert task.loss(network, only, machine).item() == 0  # not a division by no pixels


def test_dices_loss_is_added(scenes: DenseData) -> None:
    (plain, network), (both, _) = task_of(scenes, loss="cross-entropy"), task_of(scenes)
    batch = Batch(torch.rand(2, 1, 48, 48), torch.randint(0, 11, (2, 48, 48)), ())
    p = plain.logits(network, batch.images).softmax(dim=1)
    hot = F.one_hot(batch.labels, 11).permute(0, 3, 1, 2)
    dice = 2 * (p * hot).sum(dim=(0, 2, 3)) / (p + hot).sum(dim=(0, 2, 3))
    expected = plain.loss(network, batch, open_machine(CPU)) + (1 - dice).mean()
    assert both.loss(network, batch, open_machine(CPU)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_crops_keep_pixels_and_classes_together() -> None:
    classes = np.arange(40 * 30).reshape(40, 30) % 200
    image = Image.fromarray(classes.astype(np.uint8))
    for size in ((16, 24), (64, 64)):
        torch.manual_seed(1)
        still = Vary(DenseAugment(hflip=1.0, jitter=(1, 1)), True, (0.5,), 255, size)
        pixels, found = vary_class_map(still, image, classes)
        assert pixels.shape == (1, *size)
        assert found.shape == size
        known = found != 255
        assert int(known.sum()) == min(size[0], 40) * min(size[1], 30)
        assert torch.equal((pixels[0] * 255).round().long()[known], found[known])
        assert ((pixels[0] - 0.5).abs()[~known] < 0.01).all()
