"""Data: the splits that a name opens, the settings, and the transforms."""

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sources import save, source_of
from tiny import image_folder

from psvit.data.augment import eval_transform, preprocessing, train_transform
from psvit.data.data_config import Augment, DataConfig
from psvit.data.datasets import Data, open_data
from psvit.data.loading import eval_batches, train_batches
from psvit.data.samples import ImageSplit
from psvit.data.sources import Source, Stream, Subset, load_image
from psvit.data.splits import cut
from psvit.errors import UserError


def indices(source: Source | Stream) -> set[int]:
    assert isinstance(source, Subset)
    return set(source.indices.tolist())


# ---- the splits


def test_digits(digits: Data) -> None:
    train, validation, test = source_of(digits.train), source_of(digits.validation), source_of(digits.test)
    assert (len(train), len(validation), len(test)) == (1295, 143, 359)
    assert (digits.in_chans, digits.img_size, digits.mirror, digits.workers) == (1, (8, 8), False, 0)
    assert isinstance(train, Subset)
    pixels = source_of(train.source).pixels / 255  # type: ignore[attr-defined]
    assert digits.mean == pytest.approx((pixels.mean(),), abs=1e-4)
    assert digits.std == pytest.approx((pixels.std(),), abs=1e-4)
    assert train.image(0).mode == "L"
    assert max(np.asarray(train.image(i)).max() for i in range(50)) == 255


def test_the_validation_is_stratified_seeded_and_apart_from_train_and_test(digits: Data) -> None:
    assert indices(digits.train).isdisjoint(indices(digits.validation))
    assert indices(digits.train) | indices(digits.validation) == set(range(1438))
    counts = [np.bincount(source_of(split).labels() or []) for split in (digits.train, digits.validation)]
    assert np.abs(counts[1] - 0.1 * (counts[0] + counts[1])).max() <= 0.5
    other = open_data(DataConfig(seed=1))
    assert indices(other.validation) != indices(digits.validation)
    for i in range(0, 359, 50):  # the test split does not move with the seed
        assert source_of(other.test).image(i) == source_of(digits.test).image(i)
    everything = source_of(open_data(DataConfig(validation=0)).train)
    assert len(everything) == 1438


def test_a_class_of_one_image_cannot_be_cut_and_what_is_advised_helps() -> None:
    labels, rng = np.asarray([0, 0, 0, 1]), np.random.default_rng(0)
    with pytest.raises(UserError, match=r"class 'bee' has one image, .* or give --validation 0"):
        cut(labels, 0.1, rng, ("ant", "bee"))
    kept, off = cut(labels, 0.0, rng, ("ant", "bee"))
    assert (kept.tolist(), off.tolist()) == ([0, 1, 2, 3], [])


def test_limit_is_balanced_and_seeded() -> None:
    few = source_of(open_data(DataConfig(limit=25)).train)
    assert sorted(np.bincount(few.labels() or []).tolist()) == [2] * 5 + [3] * 5
    assert indices(few) == indices(open_data(DataConfig(limit=25)).train)
    assert indices(few) != indices(open_data(DataConfig(limit=25, seed=1)).train)
    assert indices(few).isdisjoint(indices(open_data(DataConfig()).validation))
    again = open_data(DataConfig(limit=25, seed=1, split_seed=0))
    assert indices(again.train) == indices(few)
    with pytest.raises(UserError, match="limit 9 is below the 10 classes"):
        open_data(DataConfig(limit=9))


def test_the_test_images_are_never_opened_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "val")
    true_open = builtins.open

    def guarded(file: object, *args: object, **kwargs: object) -> object:
        if str(tmp_path / "val") in str(file):
            raise AssertionError(f"{file} was opened")
        return true_open(file, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", guarded)
    data = open_data(DataConfig(str(tmp_path), img_size=8, validation=0.3))
    split = ImageSplit(data.train, train_transform(data, Augment()), training=True)
    assert len(list(train_batches(split, batch_size=4, batches=4, epoch=0, seed=0))) == 4
    assert len(list(eval_batches(ImageSplit(data.validation, eval_transform(data)), batch_size=8))) == 1
    with pytest.raises((AssertionError, OSError), match="was opened"):
        source_of(data.test).image(0)


# ---- the settings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": "nowhere"}, "'nowhere' is neither a folder nor a known set: give digits, fashion-mnist"),
        ({"data": "torch/nonesuch"}, "Unknown torchvision dataset nonesuch"),
        ({"data": "wds/x"}, "--data-dir None is not a folder"),
        ({"validation": -0.1}, "validation -0.1 is not a fraction"),
        ({"img_size": 0}, "--img-size 0 is not a positive"),
        ({"img_size": (8, 8, 8)}, "--img-size"),
        ({"limit": 0}, "limit 0"),
        ({"image_cache": 0}, "--image-cache is about a folder of images, which 'digits' is not"),
        ({"image_cache_dir": "x"}, "--image-cache-dir is about a folder"),
        ({"image_cache": -1}, "--image-cache -1.0 is not a number of at least 0"),
    ],
)
def test_a_users_mistake_is_one_line(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_data(DataConfig(**config))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [{"scale": (0, 1)}, {"ratio": (2, 1)}, {"hflip": 2}, {"random_erasing": -1}, {"interpolation": "nearest-ish"}],
)
def test_augment_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(fields)).replace("_", "-")):
        Augment(**fields)  # type: ignore[arg-type]


# ---- transforms


def test_digits_are_never_mirrored(digits: Data) -> None:
    image = source_of(digits.train).image(0)
    plain = Augment(scale=(1, 1), ratio=(1, 1), hflip=1, color_jitter=0)
    assert torch.equal(train_transform(digits, plain)(image), eval_transform(digits)(image))


@pytest.mark.parametrize("size", [(1, 1), (5000, 20), (20, 5000)])
def test_odd_sizes_go_through_both_transforms(size: tuple[int, int], digits: Data, tmp_path: Path) -> None:
    image = load_image(save(tmp_path / "a.png", size=size))
    data = open_data(DataConfig(str(image_folder(tmp_path / "set")), img_size=(32, 48)))
    for transform in (eval_transform(data), train_transform(data, Augment())):
        tensor = transform(image)
        assert tensor.shape == (3, 32, 48)
        assert tensor.isfinite().all()


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "v0", "3a"])
def test_the_policies_work_on_grey_images(policy: str, digits: Data) -> None:
    split = ImageSplit(digits.train, train_transform(digits, Augment(auto_augment=policy)), training=True)
    [batch] = train_batches(split, batch_size=100, batches=1, epoch=0, seed=0)
    assert batch.images.shape == (100, 1, 8, 8)
    assert batch.images.isfinite().all()
    with pytest.raises(UserError, match="--auto-augment 'magic'"):
        train_transform(digits, Augment(auto_augment="magic"))


def test_preprocessing_is_timms(digits: Data, tmp_path: Path) -> None:
    shown = {"input_size": (1, 8, 8), "mean": digits.mean, "std": digits.std, "interpolation": "bicubic"}
    assert preprocessing(digits) == shown | {"crop_pct": 1.0}
    assert preprocessing(open_data(DataConfig(str(image_folder(tmp_path)))))["crop_pct"] == 0.9
