"""An image and what is in it, varied alike: boxes, masks and class maps follow the image."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from psvit.data.objects.objects import Objects, boxes_of
from psvit.data.objects.objects_config import DenseAugment
from psvit.data.objects.transforms import Vary, to_tensor, vary_objects

pytestmark = pytest.mark.usefixtures("one_thread")


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
@examples(max_examples=30)
def test_boxes_and_masks_move_with_the_image(seed: int, low: float, high: float, has_masks: bool) -> None:
    image, there = scene()
    if not has_masks:
        there = Objects(there.boxes, there.labels, None, there.crowd)
    torch.manual_seed(seed)
    vary = Vary(DenseAugment(hflip=0.5, jitter=(low, high)), mirror=True, mean=(0.0,))
    pixels, target = vary_objects(vary, image, there)
    assert pixels.shape == (1, 60, 80)
    assert set(target["labels"].tolist()) <= {2, 4}  # class numbers from 1; the crowd is left out
    bright = pixels[0].numpy() > 0.49  # half of a pixel on the edge of the image is padding
    seen = np.zeros_like(bright)
    for i, (x0, y0, x1, y1) in enumerate(target["boxes"].tolist()):
        assert min(x1 - x0, y1 - y0) >= 1
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
    for number in range(120):
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
    assert len(shifts) > 30
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.1  # in pixels; torchvision's resizing of masks is off by 0.5


def test_a_thin_image_is_varied() -> None:
    for size in ((1, 300), (300, 1)):
        there = objects([np.ones(size, dtype=bool)], [0], size)
        for crop in (None, (16, 16)):
            vary = Vary(DenseAugment(hflip=0, jitter=(0.3, 0.4)), mirror=True, mean=(0.0,), crop=crop)
            pixels, target = vary_objects(vary, Image.new("L", size[::-1], 255), there)
            assert pixels.shape == (1, *(crop or size))
            assert pixels.max() == 1
            assert len(target["boxes"]) == 1


def test_a_box_around_more_than_its_mask_moves_as_it_was_drawn() -> None:
    """A pixel more is a rounding; an object of whose mask nothing is left is left out, as what is cut away."""
    image, there = scene()
    assert there.masks is not None
    drawn = there.boxes + np.asarray([[0, 0, 0, 20], [-1, 0, 1, 0.5], [0, 0, 0, 0]], dtype=np.float32)
    there = Objects(drawn, there.labels, there.masks, there.crowd)
    still = Vary(DenseAugment(hflip=0, jitter=(1.0, 1.0)), mirror=False, mean=(0.0,))
    assert vary_objects(still, image, there)[1]["boxes"].tolist() == [[10, 8, 34, 44], [50, 30, 70, 52]]
    mirrored = Vary(DenseAugment(hflip=1.0, jitter=(1.0, 1.0)), mirror=True, mean=(0.0,))
    assert vary_objects(mirrored, image, there)[1]["boxes"].tolist() == [[46, 8, 70, 44], [10, 30, 30, 52]]
    for seed in range(30):
        torch.manual_seed(seed)
        _, target = vary_objects(Vary(DenseAugment(hflip=0, jitter=(4.0, 4.0)), False, (0.0,)), image, there)
        assert (target["masks"] > 0).flatten(1).any(dim=1).all()
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            x0, y0, x1, y1 = boxes_of(mask.bool().numpy()[None])[0]
            assert (box[:2] <= torch.tensor([x0 + 1, y0 + 1])).all()
            assert (box[2:] >= torch.tensor([x1 - 1, y1 - 1])).all()


def test_mirroring_is_for_classes_that_can_be_mirrored() -> None:
    image, there = scene()
    for mirror, moved in ((False, False), (True, True)):
        vary = Vary(DenseAugment(hflip=0.999999, jitter=(1.0, 1.0)), mirror=mirror, mean=(0.0,))
        pixels, target = vary_objects(vary, image, there)
        assert torch.equal(pixels, to_tensor(image).flip(2)) == moved
        assert torch.equal(pixels, to_tensor(image)) != moved
        x0, x1 = target["boxes"][0, [0, 2]].tolist()
        assert (x0, x1) == ((46, 70) if moved else (10, 34))
