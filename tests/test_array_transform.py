"""Whole batches of images in memory: the pixels of a plain transform of each image, by draws of its own."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from image_sources import same, source_of
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from psvit.data.array_transform import (
    ArrayTransform,
    central_crop,
    crop,
    random_boxes,
    uniforms,
)
from psvit.data.augment import eval_transform, train_transform
from psvit.data.data_config import Augment, DataConfig
from psvit.data.datasets import Data, open_data
from psvit.data.loading import eval_batches, train_batches
from psvit.data.samples import ImageSplit
from psvit.engine.train_config import deit, light
from psvit.tasks.classification.evaluate import preprocess

MOVES = Augment(shift=2, scale=(1, 1), hflip=0.5, color_jitter=0)
CROPS = Augment(shift=1, scale=(0.3, 1), color_jitter=0, interpolation="bilinear")


@pytest.fixture(scope="module")
def mirrored(digits: Data) -> Data:
    """Digits, as if they might be mirrored."""
    return replace(digits, mirror=True)


def split(data: Data, augment: Augment) -> ImageSplit:
    return ImageSplit(data.train, train_transform(data, augment), training=True)


# ---- the pixels


def test_numbers_are_those_of_splitmix64() -> None:
    known = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    found = uniforms(np.array([1234567, 5]), 0, 4)
    assert found[:, 0].tolist() == [(value >> 11) / 2**53 for value in known]
    np.testing.assert_array_equal(uniforms(np.array([5]), 1, 2)[:, 0], found[1:3, 1])


def test_shifts_and_flips_are_those_of_each_image(mirrored: Data) -> None:
    """In the order crop, flip, shift, which are then normalized as in evaluation."""
    transform, plain = train_transform(mirrored, MOVES), eval_transform(mirrored)
    assert isinstance(transform, ArrayTransform)
    indices, draws = np.arange(400), np.random.default_rng(0).integers(2**63, size=400)
    arrays = source_of(mirrored.train).arrays(indices)
    assert arrays is not None
    found, seen = transform.batch(arrays[0], draws), set()
    for i, (flip, down, right) in enumerate(uniforms(draws, 0, 3).T):
        image = source_of(mirrored.train).image(i)
        image = TF.hflip(image) if flip < 0.5 else image
        at = (int(down * 5), int(right * 5))
        expected = plain(TF.crop(TF.pad(image, [2]), *at, 8, 8))
        assert torch.equal(found[i], expected)
        seen.add((flip < 0.5, *at))
    assert len(seen) == 50  # every one of them


@pytest.mark.parametrize("size", [(28, 28), (28, 40), (12, 9)])
def test_crops_are_pillows(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(60, 1, 12, 9), dtype=np.uint8)
    boxes = random_boxes(rng.random((22, 60)), 12, 9, (0.1, 1.0), (0.5, 1.5))
    assert len(np.unique(boxes, axis=1).T) > 50
    for image, box, found in zip(pixels, boxes.T, crop(pixels, boxes, size), strict=True):
        expected = TF.resized_crop(Image.fromarray(image[0]), *box, size, TF.InterpolationMode.BILINEAR)
        assert np.abs(found[0] - np.asarray(expected, dtype=float)).max() < 1.01  # Pillow rounds twice


def test_crops_are_drawn_as_timm_draws_them() -> None:
    boxes = random_boxes(np.random.default_rng(0).random((22, 4000)), 28, 20, (0.2, 0.9), (0.6, 1.2))
    timms = RandomResizedCropAndInterpolation.get_params
    drawn = np.array([timms(Image.new("L", (20, 28)), (0.2, 0.9), (0.6, 1.2)) for _ in range(4000)]).T
    np.testing.assert_allclose(boxes.mean(axis=1), drawn.mean(axis=1), atol=0.4)
    np.testing.assert_allclose(boxes.std(axis=1), drawn.std(axis=1), atol=0.3)
    assert (boxes[:2] >= 0).all()
    assert (boxes[0] + boxes[2]).max() == 28
    assert (boxes[1] + boxes[3]).max() == 20


@pytest.mark.parametrize("ratio", [(2.0, 3.0), (0.1, 0.4), (0.75, 1.3)])
def test_a_crop_that_never_fits_is_timms_central_one(ratio: tuple[float, float]) -> None:
    timms = RandomResizedCropAndInterpolation.get_params(Image.new("L", (20, 27)), (1.0, 1.0), ratio)
    assert central_crop(27, 20, ratio) == timms
    assert random_boxes(np.full((22, 1), 0.99), 27, 20, (1.0, 1.0), ratio)[:, 0].tolist() == list(timms)


# ---- when, and whether in batches of any cut


def test_what_goes_by_whole_batches() -> None:
    data = open_data(DataConfig("fashion-mnist"))
    for augment, shape, whole in (
        (light().augment, (28, 28), True),
        (light().augment, (28, 28, 1), True),
        (light().augment, (28, 28, 3), False),  # colours for a grey network
        (light().augment, (30, 30), False),  # Pillow averages when it makes images smaller
        (light().augment, (20, 28), True),
        (MOVES, (28, 28), True),
        (MOVES, (20, 28), False),  # bicubic
        (CROPS, (28, 28), True),
        (replace(CROPS, color_jitter=0.1), (28, 28), False),
        (replace(CROPS, random_erasing=0.1), (28, 28), False),
        (deit().augment, (28, 28), False),
    ):
        transform = train_transform(data, augment)
        assert isinstance(transform, ArrayTransform)
        assert transform.takes(shape) is whole, (augment, shape)


@pytest.mark.parametrize("augment", [MOVES, CROPS])
def test_a_batch_does_not_depend_on_processes_or_on_the_start(augment: Augment, mirrored: Data) -> None:
    images = split(mirrored, augment)
    whole = list(train_batches(images, batch_size=16, batches=4, epoch=1, seed=3))
    assert same(whole[2:], list(train_batches(images, batch_size=16, batches=4, epoch=1, seed=3, start=2, workers=2)))
    left, right = (
        list(train_batches(images, batch_size=8, batches=4, epoch=1, seed=3, rank=rank, world_size=2))
        for rank in (0, 1)
    )
    for one, first, second in zip(whole, left, right, strict=True):
        assert torch.equal(one.images, torch.cat([first.images, second.images]))
        assert torch.equal(one.labels, torch.cat([first.labels, second.labels]))
    other = list(train_batches(images, batch_size=16, batches=4, epoch=2, seed=3))
    assert not torch.equal(other[0].images, whole[0].images)


def test_shifts_stand_beside_any_other_augmentation(mirrored: Data) -> None:
    image = source_of(mirrored.train).image(0)
    plain = eval_transform(mirrored)
    shifted = {plain(TF.crop(TF.pad(image, [1]), *at, 8, 8)) for at in np.ndindex(3, 3)}
    erased = replace(MOVES, shift=1, hflip=0, random_erasing=1e-9)
    for key in range(20):
        found = split(mirrored, erased)[0, key].image
        assert found is not None
        assert any(torch.equal(found, one) for one in shifted)


# ---- evaluation


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_has_the_pixels_of_each_image(channels: int, digits: Data) -> None:
    config = {"input_size": (channels, 8, 8), "mean": (0.3,) * channels, "std": (0.4,) * channels, "crop_pct": 1.0}
    network = SimpleNamespace(pretrained_cfg={**config, "interpolation": "bicubic"})
    for transform in (preprocess(network), *([eval_transform(digits)] if channels == 1 else [])):
        assert isinstance(transform, ArrayTransform)
        whole = list(eval_batches(ImageSplit(digits.validation, transform), batch_size=50))
        singly = list(eval_batches(ImageSplit(digits.validation, transform.per_image), batch_size=50))
        assert whole[0].images.shape == (50, channels, 8, 8)
        assert same(whole, singly)


def test_evaluation_at_another_size_is_timms(digits: Data) -> None:
    larger = eval_transform(replace(digits, img_size=(12, 12)))
    (batch,) = eval_batches(ImageSplit(digits.validation, larger), batch_size=400)
    assert torch.equal(batch.images[0], larger(source_of(digits.validation).image(0)))
