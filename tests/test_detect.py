"""Detection: boxes and masks that follow the image, true strides, detectors whose every parameter learns."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tiny import settings as tiny_training
from tiny import weights
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from psvit import cost
from psvit.dense.data.objects import DenseSource, Objects, boxes_of
from psvit.dense.data.sets import open_objects
from psvit.dense.data.settings import DenseDataSettings
from psvit.dense.detection.detect import detector_facts, evaluate_detector, seen_size
from psvit.dense.detection.detectors import Anchors, build_detector
from psvit.dense.detection.pasting import cut, mask_loss, paste
from psvit.dense.detection.pyramid import Backbone, pyramid_strides
from psvit.dense.detection.settings import DetectorSettings
from psvit.dense.drawing import files_for
from psvit.dense.features import DENSE, open_features
from psvit.dense.recipes import DenseAugment
from psvit.dense.splits import ObjectSplit
from psvit.dense.transforms import Vary, to_tensor, vary_objects
from psvit.errors import UserError
from psvit.measure.macs import count_macs
from psvit.training.learning import make_optimizer
from psvit.training.loop import train
from psvit.training.machine import attention_for_training, open_machine
from psvit.training.recipes import Machine, ModelSettings, light

VIT: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2}
SMALL: dict[str, Any] = {"channels": 16, "rois": 8, "proposals": 20, "head_width": 16, "mask_layers": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- what training does to an image


def objects(masks: list[NDArray[np.bool_]], labels: list[int], size: tuple[int, int], crowd: Any = None) -> Objects:
    stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)
    crowd = np.zeros(len(labels), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool)
    return Objects(boxes_of(stacked), np.asarray(labels, dtype=np.int64), stacked, crowd)


def scene(size: tuple[int, int] = (60, 80)) -> tuple[Image.Image, Objects]:
    """Two bright rectangles on black, and a crowd in a corner that is not bright."""
    pixels, masks = np.zeros(size, dtype=np.uint8), np.zeros((3, *size), dtype=bool)
    masks[0, 8:24, 10:34], masks[1, 30:52, 50:70], masks[2, :6, :6] = True, True, True
    pixels[masks[:2].any(axis=0)] = 255
    return Image.fromarray(pixels), objects(list(masks), [3, 1, 0], size, [False, False, True])


@given(seed=st.integers(0, 2**31), low=st.floats(0.3, 1), high=st.floats(1, 2.5), has_masks=st.booleans())
@examples(max_examples=60)
def test_boxes_and_masks_move_with_the_image(seed: int, low: float, high: float, has_masks: bool) -> None:
    image, there = scene()
    if not has_masks:
        there = Objects(there.boxes, there.labels, None, there.crowd)
    torch.manual_seed(seed)
    vary = Vary(DenseAugment(hflip=0.5, jitter=(low, high)), mirror=True, mean=(0.0,))
    pixels, target = vary_objects(vary, image, there)
    assert pixels.shape == (1, 60, 80)
    assert set(target["labels"].tolist()) <= {2, 4}  # class numbers from 1; the crowd is left out
    bright = pixels[0].numpy() > 0.5
    seen = np.zeros_like(bright)
    for i, (x0, y0, x1, y1) in enumerate(target["boxes"].tolist()):
        assert x1 - x0 >= 1
        assert y1 - y0 >= 1
        if has_masks:
            mask = target["masks"][i].bool().numpy()
            assert boxes_of(mask[None])[0].tolist() == [x0, y0, x1, y1]
            seen |= mask
        else:
            seen[round(y0) : round(y1), round(x0) : round(x1)] = True
    # masks take the nearest pixel, the image a mean of several: they differ at edges alone, by a pixel
    inside, outside = eroded(seen), ~eroded(~seen)
    assert not (inside & ~bright).any()
    assert not (bright & ~outside).any()


def eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without pixels within two of another kind; what lies outside counts as the same."""
    kept = nn.functional.max_pool2d(torch.from_numpy(~mask)[None].float(), 5, 1, 2)[0] == 0
    return np.asarray(kept.numpy(), dtype=bool)


def test_masks_and_class_maps_stay_on_their_image_when_resized() -> None:
    vary = Vary(DenseAugment(hflip=0.0, jitter=(0.5, 1.5)), mirror=False, mean=(0.0,))
    shifts = []
    for number in range(200):
        left, top, width, height = 25 + number % 7, 26 + number % 5, 12 + number % 11, 13 + number % 9
        mask = np.zeros((96, 96), bool)
        mask[top : top + height, left : left + width] = True
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        shown, target = vary_objects(vary, image, objects([mask], [0], (96, 96), [False]))
        seen = shown[0]
        if max(seen[0].sum(), seen[-1].sum(), seen[:, 0].sum(), seen[:, -1].sum()) > 0 or len(target["boxes"]) != 1:
            continue  # cut off
        place = torch.arange(96) + 0.5
        x, y = ((seen.sum(axis) * place).sum() / seen.sum() for axis in (0, 1))
        x0, y0, x1, y1 = target["boxes"][0]
        shifts.append(((x0 + x1) / 2 - x, (y0 + y1) / 2 - y))
    assert len(shifts) > 50
    assert (
        np.abs(np.mean(shifts, axis=0)).max() < 0.1
    )  # pixels; half a one, where masks are resized as torchvision does


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_a_thin_image_is_varied(size: tuple[int, int]) -> None:
    there = objects([np.ones(size, dtype=bool)], [0], size)
    for crop in (None, (16, 16)):
        vary = Vary(DenseAugment(hflip=0, jitter=(0.3, 0.4)), mirror=True, mean=(0.0,), crop=crop)
        pixels, target = vary_objects(vary, Image.new("L", size[::-1], 255), there)
        assert pixels.shape == (1, *(crop or size))
        assert pixels.max() == 1
        assert len(target["boxes"]) == 1


def test_what_is_cut_away_is_left_out() -> None:
    image, there = scene()
    vary = Vary(DenseAugment(hflip=0, jitter=(4.0, 4.0)), mirror=True, mean=(0.0,))
    counts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        _, target = vary_objects(vary, image, there)
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        assert bool((target["boxes"][:, 2:] > target["boxes"][:, :2]).all())
        counts.add(len(target["boxes"]))
    assert counts == {0, 1, 2}


def test_mirroring_is_for_classes_that_can_be_mirrored() -> None:
    image, there = scene()
    for mirror, moved in ((False, False), (True, True)):
        vary = Vary(DenseAugment(hflip=0.999999, jitter=(1.0, 1.0)), mirror=mirror, mean=(0.0,))
        pixels, target = vary_objects(vary, image, there)
        assert torch.equal(pixels, to_tensor(image).flip(2)) == moved
        assert torch.equal(pixels, to_tensor(image)) != moved
        x0, x1 = target["boxes"][0, [0, 2]].tolist()
        assert (x0, x1) == ((46, 70) if moved else (10, 34))


# ---- backbones


def backbone(name: str, size: tuple[int, int] | None = (64, 64), neck: Any = "auto", **more: Any) -> Backbone:
    model = ModelSettings(name, **more) if name.startswith("A") else ModelSettings(name, model_args=more)
    return Backbone(open_features(model, size, 1, 0.0)[0], neck, 16).eval()


@pytest.mark.parametrize(
    ("name", "more", "strides", "simple"),
    [
        ("auto", {}, [4, 8, 16], False),
        ("AS-A-A", {}, [4, 8, 16, 32, 64], False),
        ("test_resnet", {}, [4, 8, 16, 32], False),
        ("vit_tiny_patch16_224", VIT, [4, 8, 16, 32], True),
        ("vit_tiny_patch16_224", VIT | {"patch_size": 14}, [7, 14, 28, 56], True),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, [4, 8, 16, 32], False),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (37, 53), (96, 160)])
def test_strides_are_true(
    name: str, more: dict[str, Any], strides: list[int], simple: bool, size: tuple[int, int]
) -> None:
    """Of a backbone made for 64 x 64 pixels, at other sizes too, padded as the detector pads them."""
    built = backbone(name, **more)
    assert (built.strides[: len(strides)], built.simple) == (strides, simple)
    step = built.strides[-2]
    height, width = (-(-side // step) * step for side in size)
    with torch.no_grad():
        maps = built(torch.rand(1, 1, height, width))
    assert list(maps) == [*map(str, range(len(built.strides) - 1)), "pool"]
    for stride, one in zip(built.strides, maps.values(), strict=True):
        # only the last, which is every second of the one before, may be cut in its midst
        assert one.shape == (1, 16, -(-height // stride), -(-width // stride))
    assert all(height % stride == width % stride == 0 for stride in built.strides[:-1])


def test_a_simple_pyramid_has_whole_strides() -> None:
    assert {stride: pyramid_strides(stride)[0] for stride in (1, 4, 8, 14, 16, 28, 32)} == {
        1: 1, 4: 4, 8: 4, 14: 7, 16: 4, 28: 7, 32: 8
    }  # fmt: skip


def test_backbones_that_cannot_are_refused() -> None:
    with pytest.raises(UserError, match=r"AS-A pools the sequence .* take a 2D variant"):
        open_features(ModelSettings("AS-A", pooling="1d"), (64, 64), 1)
    with pytest.raises(UserError, match="--neck fpn needs maps of different strides"):
        backbone("vit_tiny_patch16_224", neck="fpn", **VIT)
    fixed = backbone("hiera_tiny_224", embed_dim=24)
    with pytest.raises(UserError, match=r"the backbone cannot take images of 96 x 128 pixels \(.*take one that takes"):
        fixed(torch.rand(1, 1, 96, 128))


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_full_memory_is_not_taken_for_a_wrong_network(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    built = backbone("test_resnet")

    def full(x: Tensor) -> list[Tensor]:
        raise error

    monkeypatch.setattr(built.body, "forward", full)
    with pytest.raises(type(error), match="memory"):
        built(torch.rand(1, 1, 64, 64))


def test_weights_that_a_simple_pyramid_does_not_read_are_refused() -> None:
    for name, more in (("test_resnet", {}), ("vit_tiny_patch16_224", VIT), ("hrnet_w18_small", {})):
        body, described = open_features(ModelSettings(name, model_args=more), (64, 64), 1)
        for neck in ("simple", "fpn") if name != "vit_tiny_patch16_224" else ("simple",):
            model = detector(Backbone(body, neck, 16), "faster_rcnn")
            if (name, neck) != ("hrnet_w18_small", "simple"):
                assert detector_facts(model, described, (64, 64))["macs"] > 0
                continue
            with pytest.raises(UserError, match=r"--neck simple reads .* last map alone, and 66 of .*: take fpn"):
                detector_facts(model, described, (64, 64))


def test_a_one_dimensional_network_without_pooling_has_maps() -> None:
    model = ModelSettings("AA", pooling="1d", patch_size=8, class_token=True)
    built = Backbone(open_features(model, (64, 64), 1)[0], "auto", 16)
    assert built.simple
    assert [one.shape[-1] for one in built(torch.rand(1, 1, 64, 64)).values()] == [16, 8, 4, 2, 1]


def test_features_have_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    train(tiny_training(tmp_path, epochs=1))
    saved = weights(tmp_path / "best")
    body, described = open_features(ModelSettings(str(tmp_path / "best")), (64, 64), 1)
    own = body.state_dict()
    assert described["model_args"]["genotype"] == "AS-A"
    assert {name.removeprefix("model.") for name in own} == set(saved) - {f"{part}.{kind}" for part in ("norm", "head")
                                                                         for kind in ("weight", "bias")}  # fmt: skip
    for name, value in own.items():
        if "pos_embed" not in name:  # resampled to the larger grid
            assert torch.equal(value, saved[name.removeprefix("model.")])
    with pytest.raises(UserError, match="takes 1 image channels, the data have 3"):
        open_features(ModelSettings(str(tmp_path / "best")), (64, 64), 3)


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
    optimizer = make_optimizer(model, light(), 1)
    kept = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.05 for p in group["params"]}
    named = dict(model.named_parameters())
    assert kept | decayed == {id(p) for p in named.values()}
    for name, p in named.items():
        assert (id(p) in kept) == (p.ndim < 2 or name.rpartition(".")[2] in apart), name
    assert apart <= {name.rpartition(".")[2] for name in named}


def test_macs_are_those_of_the_padded_image() -> None:
    settings = DetectorSettings(short_side=60, long_side=100).filled((30, 45), True)
    assert seen_size(settings, {(30, 45)}) == (60, 90)
    body, described = open_features(ModelSettings("auto"), (64, 64), 1)
    facts = detector_facts(detector(Backbone(body, "auto", 16), "mask_rcnn"), described, (60, 90))
    assert facts["macs"] == cost.macs(DENSE, (64, 96), 1, 0)  # multiples of 16
    assert facts["pyramid_macs"] == count_macs(lambda: copy.deepcopy(Backbone(body, "auto", 16)), (1, 64, 96))
    assert facts["backbone_params"] < facts["params"]


# ---- detectors


def detector(built: Backbone, name: Any, **changes: Any) -> Any:
    settings = DetectorSettings(name, **(SMALL | changes)).filled((64, 64), True)
    return build_detector(built, settings, 3, (0.5,), (0.2,))


def targets(masks: bool = True) -> list[dict[str, Tensor]]:
    found = []
    for corner in (4, 20):
        boxes = torch.tensor([[corner, 8, corner + 20, 40], [30, corner, 60, corner + 20]]).float()
        drawn = torch.zeros(2, 64, 64, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(drawn, boxes.long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        found.append({"boxes": boxes, "labels": torch.tensor([1, 3])} | ({"masks": drawn} if masks else {}))
    return found


@pytest.mark.parametrize("name", ["mask_rcnn", "faster_rcnn", "retinanet"])
@pytest.mark.parametrize(
    ("network", "more"),
    [("auto", {}), ("AS-A", {"patch_size": 8}), ("test_resnet", {}), ("vit_tiny_patch16_224", VIT)],
)
def test_every_parameter_gets_a_gradient(name: str, network: str, more: dict[str, Any]) -> None:
    with attention_for_training(torch.device("cpu")):
        model = detector(backbone(network, **more), name, rois=256).train()  # all of them: no level is left out
    for p in model.parameters():
        if not p.any():  # what starts at zero stops the gradient of what is before it
            nn.init.constant_(p, 0.1)
    images = [torch.rand(1, 64, 64), torch.rand(1, 64, 64)]
    losses = model(images, targets(name == "mask_rcnn"))
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    idle = [n for n, p in model.named_parameters() if not p.grad.any()]
    assert idle == [] or all("qkv.bias" in n or "attn.q" in n for n in idle), idle


@pytest.mark.parametrize("name", ["mask_rcnn", "faster_rcnn", "retinanet"])
def test_an_image_without_objects_trains(name: str) -> None:
    model = detector(backbone("auto"), name).train()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64),
               "masks": torch.zeros(0, 64, 64, dtype=torch.uint8)}  # fmt: skip
    losses = model([torch.rand(1, 64, 64)] * 2, [dict(nothing), dict(nothing)])
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    assert all(p.grad is not None for p in model.parameters())  # DDP would wait for one that has none


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_a_thin_image_is_seen_one_pixel_thin(size: tuple[int, int]) -> None:
    model = detector(backbone("auto"), "mask_rcnn", score_threshold=0.0).train()
    box = torch.tensor([[0.0, 0.0, size[1], size[0]]])
    target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "masks": torch.ones(1, *size)}
    seen, targets = model.transform([torch.rand(1, *size)], [target])
    expected = tuple(max(1, side * 64 // 300) for side in size)
    assert seen.image_sizes == [expected]
    assert targets[0]["boxes"].tolist() == [[0, 0, expected[1], expected[0]]]
    assert targets[0]["masks"].shape == (1, *expected)
    assert sum(model([torch.rand(1, *size)], [target]).values()).isfinite()
    [found] = model.eval()([torch.rand(1, *size)])
    assert found["masks"].shape[2:] == size
    assert (found["boxes"] <= box[0, [2, 3, 2, 3]]).all()
    assert min(seen_size(DetectorSettings(short_side=64, long_side=64), [size])) == 1


@pytest.mark.parametrize("network", ["auto", "test_resnet", "vit_tiny_patch16_224"])
def test_what_is_found_does_not_depend_on_the_images_before(network: str) -> None:
    """torchvision's RoIAlign guesses strides from the first image that it meets."""
    more = VIT if network.startswith("vit") else {}
    built = backbone(network, (96, 96), **more)
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


@pytest.mark.parametrize("name", ["mask_rcnn", "faster_rcnn", "retinanet"])
def test_boxes_are_float32_under_bfloat16(name: str) -> None:
    model = detector(backbone("auto"), name, score_threshold=0.0).eval()
    image = torch.rand(1, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model([image])[0]
        maps = model.backbone(image[None])
    assert {one.dtype for one in maps.values()} == {torch.float32}  # anchors are made in the maps' type
    assert {found[part].dtype for part in found if part not in ("labels", "masks")} == {torch.float32}
    assert len(found["boxes"]) > 5
    rounded = found["boxes"].bfloat16().float() == found["boxes"]
    assert rounded.float().mean() < 0.5  # those at the image's edge alone


def test_retinanet_finds_objects_of_classes_alone() -> None:
    model = detector(backbone("auto"), "retinanet", score_threshold=0.0).eval()
    nn.init.zeros_(model.head.classification_head.cls_logits.weight)
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.copy_(torch.tensor([4.0, 1.0, 0.0, 0.0]).repeat(9))
        [found] = model([torch.rand(1, 64, 64)])
    assert set(found["labels"].tolist()) == {1}  # class 0, which looks likelier, takes no place of it


def test_masks_are_pasted_where_their_boxes_are() -> None:
    mask = torch.rand(1, 1, 7, 5)
    whole = paste(mask, torch.tensor([[3.0, 2.0, 8.0, 9.0]]), (12, 10))  # a pixel for each cell
    expected = torch.zeros(1, 1, 12, 10, dtype=torch.bool)  # not floats, which would take four times the memory
    expected[:, :, 2:9, 3:8] = mask > 0.5
    assert whole.dtype == torch.bool
    assert torch.equal(whole, expected)
    # a disc of 14 x 14 cells in boxes at any place is the disc itself, up to pixels that its edge goes through
    rows, columns = torch.meshgrid(torch.arange(14) + 0.5, torch.arange(14) + 0.5, indexing="ij")
    disc = ((rows - 7).hypot(columns - 7) < 6.5).float()[None, None]
    rows, columns = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    for x, y, side in ((10.0, 5.0, 20.0), (10.4, 5.7, 19.3), (-3.2, 25.5, 23.6), (45.9, -0.5, 11.1)):
        found = paste(disc, torch.tensor([[x, y, x + side, y + side]]), (40, 60))[0, 0]
        far = (rows - y - side / 2).hypot(columns - x - side / 2) - side / 14 * 6.5
        assert bool(found[far < -0.8].all())
        assert not bool(found[far > 0.8].any())
    assert paste(disc, torch.tensor([[8.0, 8.0, 8.0, 9.0]]), (12, 12)).sum() == 0
    assert paste(disc[:0], torch.zeros(0, 4), (12, 12)).shape == (0, 1, 12, 12)


def test_what_masks_are_learned_from_is_pasted_where_it_came_from() -> None:
    found, true = 0, 0
    scenes = open_objects(DenseDataSettings(scenes=40)).test
    for number in range(len(scenes)):
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
    """Knows what is in the images of a source; of digit 7 it says 8."""

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


def test_an_evaluation_of_what_is_known() -> None:
    data = open_objects(DenseDataSettings(scenes=200, img_size=64))
    split, machine = ObjectSplit(data.holdout), open_machine(Machine("cpu", "float32", 1))
    figures = evaluate_detector(Oracle(data.holdout), split, data, machine, batch_size=3, workers=0)
    assert figures.images == len(data.holdout) == 20
    assert figures.mask is not None
    for kind in (figures.box, figures.mask):
        assert kind["ap"] == pytest.approx(sum(kind["per_class"].values()) / 10, abs=1e-3)
        assert {name for name, value in kind["per_class"].items() if value == 100} == set("01234569")
        assert kind["per_class"]["7"] == 0
        assert 10 < kind["per_class"]["8"] < 90


def test_a_detector_is_torchvisions() -> None:
    settings = DetectorSettings("mask_rcnn").filled(None, True)
    model: Any = build_detector(backbone("test_resnet", None), settings, 80, (0.5,), (0.2,))
    assert (model.transform.min_size, model.transform.max_size) == ((800,), 1333)
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert model.roi_heads.box_roi_pool.canonical_scale == 224
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 512
    assert model.roi_heads.box_predictor.cls_score.out_features == 81


@pytest.mark.parametrize(
    ("changes", "size", "expected"),
    [
        ({}, (96, 96), (96, 96)),
        ({}, (64, 128), (64, 128)),
        ({}, (64, 129), (800, 1333)),
        ({}, None, (800, 1333)),
        ({"short_side": 1500}, None, (1500, 2500)),
        ({"long_side": 2000}, None, (1201, 2000)),
        ({"long_side": 1333}, None, (800, 1333)),
        ({"short_side": 800}, None, (800, 1333)),
        ({"long_side": 600}, None, (600, 600)),
        ({"short_side": 480}, None, (480, 1333)),
        ({"short_side": 192}, (96, 96), (192, 192)),
        ({"short_side": 96}, (64, 48), (96, 128)),
        ({"short_side": 24}, (64, 48), (24, 64)),
        ({"long_side": 128}, (64, 48), (96, 128)),
        ({"long_side": 32}, (64, 48), (32, 32)),
        ({"short_side": 400, "long_side": 700}, (96, 96), (400, 700)),
    ],
)
def test_sides(changes: dict[str, int], size: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    filled = DetectorSettings(**changes).filled(size, True)  # type: ignore[arg-type]
    assert (filled.short_side, filled.long_side) == expected


@pytest.mark.parametrize(
    ("changes", "sizes", "expected"),
    [
        ({}, [], (800, 1333)),
        ({}, [(480, 640)], (800, 1066)),
        ({}, [(480, 640), (300, 900), (640, 480), (100, 1000)], (1066, 800)),
        ({"short_side": 48}, [(64, 48)], (64, 48)),
        ({"short_side": 96}, [(64, 48)], (128, 96)),
        ({"long_side": 32}, [(64, 48)], (32, 24)),
        ({"short_side": 30}, [(64, 48), (60, 60), (40, 80)], (30, 60)),
    ],
)
def test_the_size_that_macs_are_told_for(
    changes: dict[str, int], sizes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    """The largest to which torchvision really resizes an image of the set."""
    settings = DetectorSettings(**changes).filled(sizes[0] if len(sizes) == 1 else None, True)  # type: ignore[arg-type]
    assert seen_size(settings, sizes) == expected
    resize = GeneralizedRCNNTransform(int(settings.short_side or 0), int(settings.long_side or 0), [0.5], [0.2])
    seen = [tuple(resize([torch.rand(1, *size)])[0].image_sizes[0]) for size in sizes]
    assert not seen or max(seen, key=lambda size: (size[0] * size[1], size)) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rois": 0}, "--rois 0 is not a whole number of at least 1"),
        ({"detector": "yolo"}, "--detector 'yolo' is not mask_rcnn, faster_rcnn or retinanet"),
        ({"neck": "long"}, "--neck 'long' is not auto, fpn or simple"),
        ({"score_threshold": 1.0}, "--score-threshold 1.0 is not a fraction"),
        ({"anchor_scale": 0.0}, "--anchor-scale 0.0 is not above 0"),
        ({"short_side": 900, "long_side": 800}, "--short-side 900 is more than --long-side 800"),
    ],
)
def test_wrong_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DetectorSettings(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hflip": 1.5}, "--hflip 1.5 is not between 0 and 1"),
        ({"jitter": (1.2, 0.8)}, r"--jitter \(1.2, 0.8\) is not a range"),
        ({"color_jitter": float("nan")}, "--color-jitter nan is negative"),
    ],
)
def test_wrong_augmentation(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DenseAugment(**setting)


# ---- drawing


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
