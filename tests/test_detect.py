"""Detectors: gradients, masks, anchors, image sizes, settings."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_dense import CPU, VIT, backbone, detection, detector
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from psvit.arch.model_config import ModelConfig
from psvit.data.objects.batches import ObjectSplit
from psvit.data.objects.object_sets import open_objects
from psvit.data.objects.objects import DenseSource
from psvit.data.objects.objects_config import DenseAugment, DenseDataConfig
from psvit.data.objects.transforms import to_tensor
from psvit.engine.accelerator import open_machine
from psvit.errors import UserError
from psvit.models.attention import attention_for_training
from psvit.tasks.dense.backbone import open_features
from psvit.tasks.dense.dense_checkpoints import own_batches
from psvit.tasks.dense.dense_cost import cost_lines
from psvit.tasks.dense.drawing import files_for
from psvit.tasks.detection.detect import Detection
from psvit.tasks.detection.detector_config import DetectorConfig
from psvit.tasks.detection.detectors import Anchors, build_detector
from psvit.tasks.detection.pasting import cut, mask_loss, paste

pytestmark = pytest.mark.usefixtures("one_thread")


def targets(masks: bool = True) -> list[dict[str, Tensor]]:
    found = []
    for corner in (4, 20):
        boxes = torch.tensor([[corner, 8, corner + 20, 40], [30, corner, 60, corner + 20]]).float()
        drawn = torch.zeros(2, 64, 64, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(drawn, boxes.long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        found.append({"boxes": boxes, "labels": torch.tensor([1, 3])} | ({"masks": drawn} if masks else {}))
    return found


@pytest.mark.parametrize(("name", "network", "more"), [
    ("mask_rcnn", "auto", {}),
    ("mask_rcnn", "vit_tiny_patch16_224", VIT),
    ("faster_rcnn", "test_resnet", {}),
    ("retinanet", "AS-A", {"patch_size": 8}),
])  # fmt: skip
def test_every_parameter_gets_a_gradient(name: str, network: str, more: dict[str, Any]) -> None:
    with attention_for_training(torch.device("cpu")):
        model = detector(backbone(network, **more), name, rois=256).train()  # enough for every level
    for p in model.parameters():
        if not p.any():  # a zero weight stops the gradient of the layers before it
            nn.init.constant_(p, 0.1)
    images = [torch.rand(1, 64, 64), torch.rand(1, 64, 64)]
    losses = model(images, targets(name == "mask_rcnn"))
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    idle = [n for n, p in model.named_parameters() if not p.grad.any()]
    assert idle == [] or all("qkv.bias" in n or "attn.q" in n for n in idle), idle


def test_an_image_without_objects_trains() -> None:
    for name in ("mask_rcnn", "faster_rcnn", "retinanet"):
        model = detector(backbone("auto"), name).train()
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64),
                   "masks": torch.zeros(0, 64, 64, dtype=torch.uint8)}  # fmt: skip
        losses = model([torch.rand(1, 64, 64)] * 2, [dict(nothing), dict(nothing)])
        total = sum(losses.values())
        assert total.isfinite(), name
        total.backward()
        assert all(p.grad is not None for p in model.parameters()), name  # DDP waits for every gradient


def test_a_thin_image_is_seen_one_pixel_thin() -> None:
    for size in ((1, 300), (300, 1)):
        model = detector(backbone("auto"), "mask_rcnn", score_threshold=0.0).train()
        box = torch.tensor([[0.0, 0.0, size[1], size[0]]])
        target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "masks": torch.ones(1, *size)}
        seen, targets = model.transform([torch.rand(1, *size)], [target])
        expected = tuple(max(1, side * 64 // 300) for side in size)
        assert seen.image_sizes == [expected], size
        assert targets[0]["boxes"].tolist() == [[0, 0, expected[1], expected[0]]], size
        assert targets[0]["masks"].shape == (1, *expected), size
        assert sum(model([torch.rand(1, *size)], [target]).values()).isfinite(), size
        [found] = model.eval()([torch.rand(1, *size)])
        assert found["masks"].shape[2:] == size, size
        assert (found["boxes"] <= box[0, [2, 3, 2, 3]]).all(), size
        assert min(detection(short_side=64, long_side=64).seen_size([size])) == 1, size


def test_predictions_do_not_depend_on_earlier_images() -> None:
    """torchvision's RoIAlign guesses strides from the first image that it meets."""
    built = backbone("auto", (96, 96))
    model = detector(built, "mask_rcnn", score_threshold=0.0).eval()
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / stride for stride in built.strides[:-1]]
    fresh = copy.deepcopy(model)
    images = [torch.rand(1, 33, 90), torch.rand(1, 96, 96), torch.rand(1, 37, 53)]
    with torch.inference_mode():
        for image in images:
            model([image])
        for image in images:
            for one, other in zip(model([image]), copy.deepcopy(fresh)([image]), strict=True):
                assert all(torch.equal(one[name], other[name]) for name in one)


def test_boxes_are_float32_under_bfloat16() -> None:
    for name in ("mask_rcnn", "faster_rcnn", "retinanet"):
        model = detector(backbone("auto"), name, score_threshold=0.0).eval()
        image = torch.rand(1, 64, 64)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = model([image])[0]
            maps = model.backbone(image[None])
        assert {one.dtype for one in maps.values()} == {torch.float32}, name  # anchors are made in the maps' type
        assert {found[part].dtype for part in found if part not in ("labels", "masks")} == {torch.float32}, name
        assert len(found["boxes"]) > 5, name
        rounded = found["boxes"].bfloat16().float() == found["boxes"]
        assert rounded.float().mean() < 0.5, name  # only those at the image's edge


def test_retinanet_finds_objects_of_classes_alone() -> None:
    model = detector(backbone("auto"), "retinanet", score_threshold=0.0).eval()
    nn.init.zeros_(model.head.classification_head.cls_logits.weight)
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.copy_(torch.tensor([4.0, 1.0, 0.0, 0.0]).repeat(9))
        [found] = model([torch.rand(1, 64, 64)])
    assert set(found["labels"].tolist()) == {1}  # the background's higher score hides nothing


def test_masks_are_pasted_where_their_boxes_are() -> None:
    mask = torch.rand(1, 1, 7, 5)
    whole = paste(mask, torch.tensor([[3.0, 2.0, 8.0, 9.0]]), (12, 10))  # one pixel for each cell
    expected = torch.zeros(1, 1, 12, 10, dtype=torch.bool)
    expected[:, :, 2:9, 3:8] = mask > 0.5
    assert torch.equal(whole, expected)
    assert paste(mask, torch.tensor([[8.0, 8.0, 8.0, 9.0]]), (12, 12)).sum() == 0
    assert paste(mask[:0], torch.zeros(0, 4), (12, 12)).shape == (0, 1, 12, 12)


def test_a_mask_cut_for_training_is_pasted_back_in_place() -> None:
    found, true = 0, 0
    scenes = open_objects(DenseDataConfig(scenes=40)).test
    for number in range(60):
        objects = scenes.objects(number)
        masks, boxes = torch.from_numpy(objects.masks).bool(), torch.from_numpy(objects.boxes)
        again = paste(cut(masks, boxes, 28)[:, None], boxes, (96, 96))[:, 0]
        found += int((again & masks).sum())
        true += int((again | masks).sum())
    assert found / true > 0.99
    assert cut(masks[:0], boxes[:0], 28).shape == (0, 28, 28)


def test_a_mask_is_learned_in_the_place_of_its_class() -> None:
    logits = torch.full((2, 3, 4, 4), -20.0)
    logits[0, 2] = 20.0
    masks, labels = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]), torch.tensor([2, 1])
    assert mask_loss(logits, masks, labels) < 1e-6
    assert mask_loss(logits, masks, torch.tensor([1, 1])) == pytest.approx(10, rel=1e-5)  # one of two is wrong by 20
    assert mask_loss(logits[:0], masks[:0], labels[:0]) == 0


def test_anchors_stand_where_their_maps_look() -> None:
    maps = [torch.zeros(1, 4, side, side) for side in (24, 12, 2)]  # the last was rounded up
    images = ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)])
    [anchors] = Anchors([(8.0,), (16.0,), (128.0,)], (4, 8, 64))(images, maps)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert anchors.shape == ((24 * 24 + 12 * 12 + 4) * 3, 4)
    assert centres[-3:].tolist() == [[64.0, 64.0]] * 3
    assert centres[24 * 24 * 3 + 3].tolist() == [8.0, 0.0]


class Oracle(nn.Module):
    """Finds exactly the objects of a source, but calls each 7 an 8."""

    def __init__(self, source: DenseSource) -> None:
        super().__init__()
        self.there = [source.objects(i) for i in range(len(source))]
        self.images = [to_tensor(source.image(i)) for i in range(len(source))]

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        said = []
        for image in images:
            [there] = [there for there, own in zip(self.there, self.images, strict=True) if torch.equal(own, image)]
            assert there.masks is not None
            labels = np.where(there.labels == 7, 8, there.labels) + 1
            said.append({"boxes": torch.from_numpy(there.boxes), "labels": torch.from_numpy(labels),
                         "scores": torch.full((len(labels),), 0.9),
                         "masks": torch.from_numpy(there.masks[:, None])})  # fmt: skip
        return said


def test_the_evaluation_of_known_predictions() -> None:
    data = open_objects(DenseDataConfig(scenes=200, img_size=64))
    task = Detection(DetectorConfig("mask_rcnn"), data.classes, 1, (0.5,), (0.2,), data.img_size)
    batches = own_batches(ObjectSplit(data.validation), open_machine(CPU), batch_size=3, workers=0)
    metrics = task.evaluate(Oracle(data.validation), batches, data, open_machine(CPU))
    assert metrics.images == len(data.validation) == 20
    assert metrics.mask is not None
    for kind in (metrics.box, metrics.mask):
        assert kind["ap"] == pytest.approx(sum(kind["per_class"].values()) / 10, abs=1e-3)
        assert {name for name, value in kind["per_class"].items() if value == 100} == set("01234569")
        assert kind["per_class"]["7"] == 0
        assert 10 < kind["per_class"]["8"] < 90


@pytest.mark.parametrize(("name", "more", "side", "tokens", "note"), [
    ("A-A", {}, 512, 4096, ""),
    ("A-A", {}, 520, 4225, "give --windows 14 0, or lower --short-side"),
    ("A-A", {"windows": (8, 0)}, 1600, 40000, "give --windows 8 14, or lower --short-side"),
    ("AA", {"pooling": "1d", "widths": (16,)}, 520, 4225, "lower --short-side, or take a 2D variant with --windows 14"),
])  # fmt: skip
def test_much_attention_is_told(name: str, more: dict[str, Any], side: int, tokens: int, note: str) -> None:
    model = ModelConfig.of(name, **{"patch_size": 8, "head_dim": 8, "widths": (16, 16), **more})
    body, _ = open_features(model, (64, 64), 1)
    network: Any = SimpleNamespace(transform=SimpleNamespace(size_divisible=8), backbone=SimpleNamespace(body=body))
    cost = {"macs": 2_000_000, "pyramid_macs": 3_000_000}
    first, *notes = cost_lines(detection(), network, cost, (side, side), name)
    said = f"seen at {side} x {side} pixels: 2 M MACs are the backbone's, 3 M with its pyramid"
    assert first == f"{said}; {tokens} tokens in its first stage"
    assert len(notes) == bool(note)
    assert all(line.startswith("note: ") and line.endswith(f": {note}") for line in notes)


def test_a_detector_is_torchvisions() -> None:
    config = DetectorConfig("mask_rcnn").filled(None, True)
    model: Any = build_detector(backbone("test_resnet", None), config, 80, (0.5,), (0.2,))
    assert (model.transform.min_size, model.transform.max_size) == ((800,), 1333)
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert model.roi_heads.box_roi_pool.canonical_scale == 224
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 512
    assert model.roi_heads.box_predictor.cls_score.out_features == 81


def test_sides() -> None:
    for changes, size, expected in (
        ({}, (64, 128), (64, 128)),
        ({}, (64, 129), (800, 1333)),
        ({}, None, (800, 1333)),
        ({"short_side": 1500}, None, (1500, 2500)),
        ({"long_side": 2000}, None, (1201, 2000)),
        ({"short_side": 480}, None, (480, 1333)),
        ({"short_side": 96}, (64, 48), (96, 128)),
        ({"long_side": 32}, (64, 48), (32, 32)),
    ):
        filled = DetectorConfig(**changes).filled(size, True)  # type: ignore[arg-type]
        assert (filled.short_side, filled.long_side) == expected, changes


def test_macs_are_counted_at_the_largest_size_that_torchvision_resizes_to() -> None:
    for changes, sizes, expected in (
        ({}, [], (800, 1333)),
        ({}, [(480, 640), (300, 900), (640, 480), (100, 1000)], (1066, 800)),
        ({"long_side": 32}, [(64, 48)], (32, 24)),
        ({"short_side": 30}, [(64, 48), (60, 60), (40, 80)], (30, 60)),
    ):
        config = DetectorConfig(**changes).filled(sizes[0] if len(sizes) == 1 else None, True)  # type: ignore[arg-type]
        assert detection(**vars(config)).seen_size(sizes) == expected, changes
        resize = GeneralizedRCNNTransform(int(config.short_side or 0), int(config.long_side or 0), [0.5], [0.2])
        seen = [tuple(resize([torch.rand(1, *size)])[0].image_sizes[0]) for size in sizes]
        assert not seen or max(seen, key=lambda size: (size[0] * size[1], size)) == expected, changes


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rois": 0}, "--rois 0 is not a whole number of at least 1"),
        ({"detector": "yolo"}, "--detector 'yolo' is not one of mask_rcnn, faster_rcnn, retinanet"),
        ({"anchor_scale": 0.0}, "--anchor-scale 0.0 is not a positive number below 1000"),
        ({"short_side": 900, "long_side": 800}, "--short-side 900 is more than --long-side 800"),
        ({"hflip": 1.5}, "--hflip 1.5 is not a number from 0 to 1"),
        ({"jitter": (1.2, 0.8)}, "--jitter 1.2 0.8 is not a range"),
    ],
)
def test_wrong_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        (DenseAugment if {"hflip", "jitter"} & set(setting) else DetectorConfig)(**setting)


def test_no_image_is_replaced_by_its_drawing(tmp_path: Path) -> None:
    for name in ("a.png", "more/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    paths = [tmp_path / "a.png", tmp_path / "more" / "a.jpg"]
    files = files_for([*paths, paths[0]], str(tmp_path / "found"), False)
    assert [file.name for file in files.values()] == ["a.png", "a-2.png"]
    with pytest.raises(UserError, match=r"a\.png is one of the images, which are never replaced"):
        files_for(paths, str(tmp_path), True)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "a.png").touch()
    with pytest.raises(UserError, match=r"a\.png is there already: give --overwrite"):
        files_for(paths, str(tmp_path / "found"), False)
    assert files_for(paths, str(tmp_path / "found"), True) == dict(list(files.items()))
    with pytest.raises(UserError, match="is a file: give a folder"):
        files_for(paths, str(paths[0]), True)
