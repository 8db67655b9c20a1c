"""Loading: a batch depends only on seed, epoch and position; unreadable images."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sources import Numbered, same, source_of, truncated_jpeg
from PIL import Image
from tiny import image_folder
from torch import Tensor

from psvit.data.augment import eval_transform, train_transform
from psvit.data.data_config import Augment, DataConfig
from psvit.data.datasets import Data, open_data
from psvit.data.loading import eval_batches, train_batches
from psvit.data.samples import Batch, ImageSplit
from psvit.data.sources import FileSource, Subset
from psvit.errors import UserError


def value_and_noise(image: Image.Image) -> Tensor:
    """One number from each generator, so that equal tensors mean equal draws."""
    values = [image.getpixel((0, 0)), random.random(), np.random.rand(), torch.rand(()).item()]
    return torch.tensor(values)[:, None, None]


def numbered(size: int = 20, training: bool = True) -> ImageSplit:
    return ImageSplit(Numbered(size), value_and_noise, training=training)


@pytest.fixture(scope="module")
def digit_split(digits: Data) -> ImageSplit:
    augment = Augment(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    return ImageSplit(digits.train, train_transform(digits, augment), training=True)


# ---- the order and the draws


def test_workers_do_not_change_a_batch(digit_split: ImageSplit) -> None:
    runs = [
        list(train_batches(digit_split, batch_size=16, batches=5, epoch=3, seed=7, workers=workers))
        for workers in (0, 2)
    ]
    assert same(*runs)
    assert runs[0][0].images.shape == (16, 1, 8, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_in_mid_epoch_equals_the_tail(digit_split: ImageSplit, workers: int) -> None:
    whole = list(train_batches(digit_split, batch_size=16, batches=6, epoch=1, seed=0))
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    tail = list(train_batches(digit_split, batch_size=16, batches=6, epoch=1, seed=0, start=4, workers=workers))
    assert same(whole[4:], tail)


def test_epoch_and_seed_change_order_and_draws() -> None:
    def first(epoch: int, seed: int) -> Batch:
        return next(train_batches(numbered(), batch_size=20, batches=1, epoch=epoch, seed=seed))

    assert not torch.equal(first(0, 0).labels, first(1, 0).labels)
    assert not torch.equal(first(0, 0).labels, first(0, 1).labels)
    assert sorted(first(0, 0).labels.tolist()) == list(range(20))
    assert set(first(0, 0).images[:, 1, 0, 0].tolist()).isdisjoint(first(1, 0).images[:, 1, 0, 0].tolist())


def test_two_ranks_make_up_one_process() -> None:
    one = list(train_batches(numbered(), batch_size=8, batches=5, epoch=2, seed=1))
    ranks = [
        list(train_batches(numbered(), batch_size=4, batches=5, epoch=2, seed=1, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    for whole, left, right in zip(one, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([left.images, right.images]))
        assert torch.equal(whole.labels, torch.cat([left.labels, right.labels]))


def test_a_small_set_wraps_around_with_a_fresh_permutation() -> None:
    batches = list(train_batches(numbered(5), batch_size=4, batches=5, epoch=0, seed=0))
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    turns = [labels[at : at + 5] for at in range(0, 20, 5)]
    assert all(sorted(turn) == list(range(5)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_repeats_stand_in_a_row_with_different_draws_and_the_usual_length() -> None:
    [batch] = train_batches(numbered(12), batch_size=12, batches=1, epoch=0, seed=0, repeats=3)
    labels = batch.labels.view(4, 3)
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0].tolist())) == 4  # a third of the images, each three times
    assert len(set(batch.images[:, 1, 0, 0].tolist())) == 12
    ranks = [
        next(train_batches(numbered(12), batch_size=4, batches=1, epoch=0, seed=0, repeats=3, rank=r, world_size=3))
        for r in range(3)
    ]
    assert torch.equal(torch.cat([part.images for part in ranks]), batch.images)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_each_image_once(world_size: int, workers: int) -> None:
    split = numbered(23, training=False)
    seen: list[int] = []
    for rank in range(world_size):
        for batch in eval_batches(split, batch_size=4, rank=rank, world_size=world_size, workers=workers):
            seen += batch.labels.tolist()
    assert sorted(seen) == list(range(23))


def test_the_global_generators_are_left_alone(digit_split: ImageSplit) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    def start() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    start()
    expected = draws()
    for workers in (0, 1):
        start()
        list(train_batches(digit_split, batch_size=8, batches=2, epoch=0, seed=0, workers=workers))
        plain = ImageSplit(digit_split.source, eval_transform(open_data(DataConfig())))
        list(eval_batches(plain, batch_size=8, world_size=60, workers=workers))
        assert draws() == expected


def test_an_empty_split_says_so(digits: Data) -> None:
    empty = ImageSplit(Subset(source_of(digits.train), []), eval_transform(digits))
    with pytest.raises(UserError, match="holds no images"):
        next(train_batches(empty, batch_size=2, batches=1, epoch=0, seed=0))
    with pytest.raises(UserError, match="holds no images"):
        next(eval_batches(empty, batch_size=2))


# ---- unreadable images


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, set[str]]:
    image_folder(tmp_path / "train", each=4)
    image_folder(tmp_path / "test", each=4)
    bad = {str(truncated_jpeg(tmp_path / "train" / "ant" / "1x.jpg"))}
    text = tmp_path / "train" / "bee" / "text.png"
    text.write_text("not an image")
    return tmp_path, bad | {str(text)}


def named(batches: list[Batch]) -> list[str]:
    """Names of the images that batches lack, each with a reason behind it."""
    told = [one for batch in batches for one in batch.unreadable]
    assert all(re.fullmatch(r"\S+ \(cannot be read: .+\)", one) for one in told)
    return [one.partition(" (")[0] for one in told]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_in_training(broken: tuple[Path, set[str]], workers: int) -> None:
    root, bad = broken
    data = open_data(DataConfig(str(root), validation=0, img_size=8))
    split = ImageSplit(data.train, train_transform(data, Augment()), training=True)
    batches = list(train_batches(split, batch_size=5, batches=2, epoch=0, seed=0, workers=workers))
    assert [len(batch.labels) for batch in batches] == [5, 5]
    assert sorted(named(batches)) == sorted(bad)
    again = list(train_batches(split, batch_size=5, batches=2, epoch=0, seed=0))
    assert same(batches, again)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_dropped_in_evaluation(broken: tuple[Path, set[str]], workers: int) -> None:
    root, bad = broken
    data = open_data(DataConfig(str(root), validation=0, img_size=8))
    for batch_size in (1, 3, 10):
        split = ImageSplit(data.train, eval_transform(data))
        batches = list(eval_batches(split, batch_size=batch_size, workers=workers))
        assert sum(len(batch.labels) for batch in batches) == 8
        assert all(len(batch.labels) for batch in batches)
        assert sorted(named(batches)) == sorted(bad)
    for training in (True, False):
        split = ImageSplit(data.train, eval_transform(data), training=training, strict=True)
        with pytest.raises(UserError) as caught:
            list(train_batches(split, batch_size=5, batches=2, epoch=0, seed=0, workers=workers) if training else
                 eval_batches(split, batch_size=5, workers=workers))  # fmt: skip
        assert any(name in str(caught.value) for name in bad)
        assert "\n" not in str(caught.value)


def test_when_nothing_can_be_read(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(40)]
    source = FileSource(paths, [0] * 40)
    split = ImageSplit(source, value_and_noise, training=True)
    with pytest.raises(UserError, match=r"16 images in a row .*from .*/\d+.png \(cannot be read: No such"):
        list(train_batches(split, batch_size=2, batches=1, epoch=0, seed=0))
    with pytest.raises(UserError, match=r"none of 40 images can be read.* is .*/0.png \(cannot be read: No such"):
        list(eval_batches(ImageSplit(source, value_and_noise), batch_size=3))


def test_a_process_that_can_read_none_of_its_images_leaves_it_to_the_others(tmp_path: Path) -> None:
    Image.new("L", (1, 1), 9).save(tmp_path / "0.png")
    source = FileSource([str(tmp_path / f"{i}.png") for i in range(4)], [0] * 4)
    split = ImageSplit(source, lambda image: torch.zeros(1, 1, 1))
    first, second = (list(eval_batches(split, batch_size=3, rank=rank, world_size=2)) for rank in range(2))
    assert [batch.labels.tolist() for batch in first] == [[0]]
    assert [len(batch.labels) for batch in second] == [0]
    assert [Path(name).name for name in named([*first, *second])] == ["2.png", "1.png", "3.png"]
