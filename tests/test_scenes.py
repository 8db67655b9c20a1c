"""digits-scenes: a scene is a function of (seed of its split, number), and its masks and boxes are what is drawn."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psvit.data.objects import scenes as scenes_module
from psvit.data.objects.object_sets import DenseData, open_objects
from psvit.data.objects.objects import boxes_of
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.data.objects.scenes import INK, VISIBLE, ScenesSource
from psvit.data.splits import digits
from psvit.errors import UserError


def opened(**config: object) -> DenseData:
    return open_objects(DenseDataConfig(**config))  # type: ignore[arg-type]


def scenes_of(data: DenseData, split: str) -> ScenesSource:
    source = getattr(data, split)
    assert isinstance(source, ScenesSource)
    return source


def digest(data: DenseData, split: str, i: int) -> str:
    scene = scenes_of(data, split).scene(i)
    return hashlib.sha256(scene.pixels.tobytes() + scene.masks.tobytes() + scene.labels.tobytes()).hexdigest()


def test_a_scene_is_the_same_in_every_order_and_process_and_needs_no_torch() -> None:
    forwards = [digest(opened(), "train", i) for i in range(4)]
    data = opened(limit=10, workers=2)
    assert [digest(data, "train", i) for i in reversed(range(4))] == forwards[::-1]
    code = ("import sys; from test_scenes import digest, opened; "
            "print(*(digest(opened(), 'train', i) for i in (2, 3)), 'torch' in sys.modules)")  # fmt: skip
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parent)
    assert printed.split() == [*forwards[2:], "False"]


def test_what_a_seed_changes() -> None:
    a, b, c = opened(seed=0), opened(seed=1), opened(seed=1, split_seed=0)
    assert digest(a, "test", 0) == digest(b, "test", 0)
    for split in ("train", "validation"):
        assert digest(a, split, 0) != digest(b, split, 0)
        assert digest(a, split, 0) == digest(c, split, 0)
    assert len({digest(a, split, i) for split in ("train", "validation", "test") for i in range(5)}) == 15


def test_the_splits_share_no_digit() -> None:
    data = opened(validation=0.2)
    every = np.concatenate([part[0] for part in digits()])
    drawn = [digit.tobytes() for split in ("train", "validation", "test") for digit in scenes_of(data, split).digits]
    assert sorted(drawn) == sorted(digit.tobytes() for digit in every)  # each digit in one split
    train, test = scenes_of(data, "train"), scenes_of(data, "test")
    assert len(test.digits) == len(digits()[1][0])
    assert set(train.labels.tolist()) == set(scenes_of(data, "validation").labels.tolist()) == set(range(10))


def test_masks_are_what_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = []
    on_canvas = scenes_module._on_canvas
    monkeypatch.setattr(scenes_module, "_on_canvas", lambda *a: whole.append(on_canvas(*a)) or whole[-1])
    source = scenes_of(opened(), "train")
    overlaps = 0
    for i in range(60):
        whole.clear()
        scene = source.scene(i)
        objects = source.objects(i)
        assert objects.masks is scene.masks
        assert 2 <= len(scene.labels) == len(whole) <= 8
        assert scene.masks.sum(axis=0).max() == 1
        for k, mask in enumerate(scene.masks):
            covered = np.any([*whole[k + 1 :], np.zeros((96, 96), bool)], axis=0)
            assert (mask == whole[k] & ~covered).all()
            assert mask.sum() >= VISIBLE * whole[k].sum() > 0
            overlaps += bool((whole[k] & covered).any())
            x0, y0, x1, y1 = objects.boxes[k].astype(int)
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert all(edge.any() for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))
        assert (objects.areas == scene.masks.sum(axis=(1, 2))).all()
        assert not objects.crowd.any()
    assert overlaps > 20


def test_labels_belong_to_the_masks() -> None:
    """The nearest training digit of an uncovered mask has its label, nearly always."""
    (pixels, labels), _ = digits()
    known = np.stack([cropped(digit > INK * 255) for digit in pixels])
    right = []
    source = scenes_of(opened(), "test")
    for i in range(40):
        objects = source.objects(i)
        assert objects.masks is not None
        for mask, label, box in zip(objects.masks, objects.labels, objects.boxes, strict=True):
            if box[3] - box[1] >= 14:
                nearest = np.abs(known - cropped(mask)).sum(axis=(1, 2)).argmin()
                right.append(labels[nearest] == label)
    assert np.mean(right) > 0.7
    assert isinstance(source.image(0), Image.Image)


def cropped(mask: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = boxes_of(mask[None])[0].astype(int)
    image = Image.fromarray(mask[y0:y1, x0:x1].astype(np.uint8) * 255)
    return np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR), dtype=float) / 255


def test_other_sizes() -> None:
    data = opened(img_size=192)
    assert data.img_size == (192, 192)
    assert data.test.image(0).size == (192, 192)
    heights = {side: [float(b[3] - b[1]) for i in range(40) for b in opened(img_size=side).train.objects(i).boxes]
               for side in (96, 192)}  # fmt: skip
    assert np.median(heights[192]) / np.median(heights[96]) == pytest.approx(2, rel=0.15)
    assert min(heights[96]) >= 5
    assert max(heights[96]) <= 45  # 8 pixels, enlarged 4 times, widened and turned
    assert opened(img_size=(64, 128)).train.image(0).size == (128, 64)
    with pytest.raises(UserError, match="--img-size 47 96 is too small"):
        opened(img_size=(47, 96))
