"""Segmentation: figures counted by hand and by smp, losses, crops."""

from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from small_segmenters import ARCH, features
from torch import Tensor

from psvit.data.loading import Batch
from psvit.data.objects.batches import ClassMapSplit
from psvit.data.objects.object_sets import open_class_maps
from psvit.data.objects.objects_config import DenseAugment, DenseDataConfig
from psvit.data.objects.transforms import Vary, vary_class_map
from psvit.engine.accelerator import open_machine
from psvit.engine.train_config import Machine
from psvit.tasks.dense.dense_config import DenseRecipe
from psvit.tasks.segmentation.mean_iou import SegmentationFigures, confusion_matrix
from psvit.tasks.segmentation.segment import SegmenterTrainer, evaluate_segmenter
from psvit.tasks.segmentation.segmenter_config import SegmentConfig, SegmenterConfig
from psvit.tasks.segmentation.segmenters import Canvas, build_segmenter, multiple_of

# ---- figures


def test_the_figures_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 255]])
    found = torch.tensor([[0, 1, 1, 1], [0, 2, 3, 0]])
    counts = confusion_matrix(found, truth, 5)
    assert counts.tolist() == [[1, 1, 0, 0, 0], [0, 2, 0, 0, 0], [1, 0, 1, 0, 0], [0] * 5, [0] * 5]
    figures = SegmentationFigures(counts, 0.5, list("abcde"), 1)
    # of class d nothing counts: it was predicted on an ignored pixel only
    assert figures.per_class == {"a": 100 / 3, "b": 200 / 3, "c": 50.0, "d": None, "e": None}
    assert figures.miou == pytest.approx(50)
    assert figures.pixel_accuracy == pytest.approx(100 * 4 / 6)


def test_the_figures_are_smps() -> None:
    generator = torch.Generator().manual_seed(3)
    found = torch.randint(0, 6, (4, 9, 7), generator=generator)
    truth = torch.randint(0, 6, (4, 9, 7), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    figures = SegmentationFigures(confusion_matrix(found, truth, 6), 0.0, list("abcdef"), 4)
    tp, fp, fn, _ = smp.metrics.get_stats(found, truth, "multiclass", ignore_index=255, num_classes=6)
    expected = smp.metrics.iou_score(tp, fp, fn, torch.zeros_like(tp), reduction="macro")
    assert figures.miou == pytest.approx(100 * float(expected), rel=1e-6)


def test_the_loss_of_an_evaluation_is_of_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_class_maps(DenseDataConfig(scenes=20, img_size=48, validation=0.25))
    body, described = features(size=(48, 48))
    network = build_segmenter(body, described, SegmenterConfig("fpn", channels=32), len(data.classes))
    seen: list[int] = []
    plain = F.cross_entropy

    def counted(logits: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append(len(logits))
        return plain(logits, *rest, **more)

    monkeypatch.setattr(F, "cross_entropy", counted)
    canvas, machine = Canvas(data.mean, data.std, multiple_of(network)), open_machine(Machine("cpu", "float32", 1))
    one, all_ = (
        evaluate_segmenter(network, canvas, ClassMapSplit(data.validation), data, machine, batch_size, 0)
        for batch_size in (1, 5)
    )
    assert seen == [1] * 10
    assert all_.to_dict() == pytest.approx(one.to_dict())


# ---- learning


def learning(**segmenter_args: Any) -> SegmenterTrainer:
    config = SegmentConfig(
        model=ARCH,
        data=DenseDataConfig(scenes=8, img_size=48),
        recipe=DenseRecipe(drop_path=0.0),
        machine=Machine("cpu", "float32", 1),
        segmenter=SegmenterConfig("fpn", channels=32, dropout=0.0, **segmenter_args),
    )
    data = open_class_maps(config.data)
    body, described = features(size=(48, 48))
    filled = config.segmenter.filled(data.img_size)
    model = build_segmenter(body, described, filled, len(data.classes))
    return SegmenterTrainer(model, config, open_machine(config.machine), data, filled)


def test_the_loss_is_a_mean_over_all_pixels_and_ignored_ones_count_nothing() -> None:
    trainer = learning(loss="cross-entropy")
    images, classes = torch.rand(2, 1, 48, 48), torch.randint(0, 11, (2, 48, 48))
    classes[0, :20] = 255
    classes[1] = 255  # nothing is known of this one
    logs = trainer.canvas(trainer.plain, images).log_softmax(dim=1)
    known = [-logs[0, classes[0, y, x], y, x] for y in range(20, 48) for x in range(48)]
    expected = torch.stack(known).sum() / (2 * 48 * 48)
    assert trainer.loss(Batch(images, classes, ()), 0).item() == pytest.approx(expected.item(), rel=1e-5)
    only = Batch(images[1:], classes[1:], ())
    assert trainer.loss(only, 0).item() == 0  # not a division by no pixels


def test_dices_loss_is_added() -> None:
    plain, both = learning(loss="cross-entropy"), learning()
    both.plain.load_state_dict(plain.plain.state_dict())
    batch = Batch(torch.rand(2, 1, 48, 48), torch.randint(0, 11, (2, 48, 48)), ())
    p = plain.canvas(plain.plain, batch.images).softmax(dim=1)
    hot = F.one_hot(batch.labels, 11).permute(0, 3, 1, 2)
    dice = 2 * (p * hot).sum(dim=(0, 2, 3)) / (p + hot).sum(dim=(0, 2, 3))
    expected = plain.loss(batch, 0) + (1 - dice).mean()
    assert both.loss(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)


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


def test_batches_of_different_sizes() -> None:
    data = open_class_maps(DenseDataConfig(scenes=8, img_size=48))
    split = ClassMapSplit(data.train)
    batch = split.collate([split[0, 0], split[1, 0]])
    assert [one.shape for one in batch.images] == [(1, 48, 48)] * 2
    assert torch.equal(batch.labels[1], torch.from_numpy(data.train.class_map(1)))
