"""Sets that timm reads: streams of WebDataset, and those of torchvision and of Hugging Face."""

import io
import logging
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sources import same, source_of, write_idx
from PIL import Image
from tiny import image_folder
from torch import Tensor

from psvit.data import timm_sets
from psvit.data.array_transform import ArrayTransform
from psvit.data.augment import eval_transform, train_transform
from psvit.data.data_config import Augment, DataConfig
from psvit.data.datasets import open_data
from psvit.data.loading import eval_batches, train_batches
from psvit.data.samples import Batch, ImageSplit
from psvit.errors import UserError


def write_shard(path: Path, first: int, size: int) -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + size):
            stream = io.BytesIO()
            Image.new("RGB", (16, 16), (i, i, i)).save(stream, "png")
            for extension, raw in (("png", stream.getvalue()), ("cls", str(i % 3).encode())):
                entry = tarfile.TarInfo(f"{i:04}.{extension}")
                entry.size = len(raw)
                tar.addfile(entry, io.BytesIO(raw))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    pytest.importorskip("webdataset")
    for number in range(4):
        write_shard(tmp_path / f"tiny-train-{number}.tar", 10 * number, 10)
    write_shard(tmp_path / "tiny-val-0.tar", 100, 4)
    write_shard(tmp_path / "tiny-val-1.tar", 104, 3)
    return tmp_path


def grey(image: Image.Image) -> Tensor:
    return torch.tensor([image.getpixel((0, 0))[0], random.random()])[:, None, None]  # type: ignore[index]


def values(batches: list[Batch]) -> list[int]:
    return [int(v) for batch in batches for v in batch.images[:, 0, 0, 0]]


def test_webdataset(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    data = open_data(DataConfig("wds/tiny", data_dir=str(shards), validation=0.25))
    assert (data.classes, data.in_chans, len(data.train), len(data.validation)) == (("0", "1", "2"), 3, 30, 10)
    held = values(list(eval_batches(ImageSplit(data.validation, grey), batch_size=4)))
    kept = values(list(eval_batches(ImageSplit(data.train, grey), batch_size=4)))
    assert sorted(held + kept) == list(range(40))
    assert len({value // 10 for value in held}) == 1  # one whole shard
    for workers in (0, 2):
        split = ImageSplit(data.test, grey)
        ranks = [eval_batches(split, batch_size=2, rank=rank, world_size=2, workers=workers) for rank in (0, 1)]
        assert sorted(values([*ranks[0], *ranks[1]])) == list(range(100, 107))
    assert not caplog.records


def test_webdataset_training_repeats_and_resumes(shards: Path) -> None:
    data = open_data(DataConfig("wds/tiny", data_dir=str(shards), validation=0.25))
    split = ImageSplit(data.train, grey, training=True)

    def run(epoch: int = 0, batches: int = 5, **more: int) -> list[Batch]:
        return list(train_batches(split, batch_size=6, batches=batches, epoch=epoch, seed=3, **more))

    whole = run()
    assert sorted(values(whole)) == sorted(values(list(eval_batches(ImageSplit(data.train, grey), batch_size=4))))
    assert same(whole, run())
    assert same(whole[3:], run(start=3))
    assert values(run(epoch=1)) != values(whole)
    assert len(run(batches=12)) == 12  # more than a pass
    assert same(run(workers=2)[2:], run(start=2, workers=2))


def test_a_stream_refuses_what_it_cannot_do(shards: Path) -> None:
    config = {"data": "wds/tiny", "data_dir": str(shards)}
    for refused in ({"limit": 9}, {"strict": True}):
        with pytest.raises(UserError, match="is streamed"):
            open_data(DataConfig(**config, **refused))  # type: ignore[arg-type]
    data = open_data(DataConfig(**config))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="strict"):
        ImageSplit(data.train, grey, strict=True)
    split = ImageSplit(data.train, grey, training=True)
    with pytest.raises(UserError, match="repeats 3"):
        next(train_batches(split, batch_size=2, batches=1, epoch=0, seed=0, repeats=3))
    for shard in sorted(shards.glob("*train*"))[1:]:
        shard.unlink()
    with pytest.raises(UserError, match="is the only one"):
        open_data(DataConfig(**config))  # type: ignore[arg-type]
    (shards / "tiny-train-0.tar").write_bytes(b"no tar file")
    timm_sets._shard_labels.cache_clear()
    with pytest.raises(UserError, match=r"tiny-train-0\.tar cannot be read"):
        open_data(DataConfig(**config))  # type: ignore[arg-type]


@pytest.mark.parametrize("validation", [0.004, 0.996])
def test_a_validation_that_is_no_whole_percent_of_a_stream_is_refused(validation: float) -> None:
    with pytest.raises(UserError, match=f"--validation {validation} is .* TFDS cuts whole percents; give 0.01 to 0.99"):
        open_data(DataConfig("tfds/mnist", validation=validation))
    with pytest.raises(UserError, match=f"--validation {validation} cannot be cut from a stream"):
        open_data(DataConfig("hfids/mnist", validation=validation))


def test_a_set_without_training_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(list[object]):
        targets, classes = (), ("ant", "bee")

    monkeypatch.setattr(timm_sets, "_create", lambda config, splits: Empty())
    with pytest.raises(UserError, match="--data 'torch/empty' holds no training images"):
        open_data(DataConfig("torch/empty"))


def test_a_torchvision_set_through_timm(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, size in (("train", 40), ("t10k", 10)):
        write_idx(raw / f"{split}-images-idx3-ubyte", np.arange(size)[:, None, None] + np.zeros((1, 28, 28)))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(size) % 10)
    data = open_data(DataConfig("torch/mnist", data_dir=str(tmp_path)))
    assert (data.classes[3], data.img_size, data.mirror) == ("3 - three", (28, 28), False)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 10)
    assert source_of(data.test).labels() == list(range(10))
    assert source_of(data.test).image(7).getpixel((0, 0)) == (7, 7, 7)
    assert singly_and_at_once(ImageSplit(data.test, eval_transform(data)))
    with pytest.raises(UserError, match="give the folder itself"):
        open_data(DataConfig("torch/image_folder", data_dir=str(tmp_path)))


def singly_and_at_once(split: ImageSplit) -> bool:
    """Whether the images of a set in memory are the same when each is asked for."""
    assert source_of(split.source).arrays(np.arange(2)) is not None
    assert isinstance(split.transform, ArrayTransform)
    each = ImageSplit(split.source, split.transform.per_image)
    return same(list(eval_batches(split, batch_size=4)), list(eval_batches(each, batch_size=4)))


def test_a_torchvision_set_of_colours_is_read_by_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colours:
        data = np.random.default_rng(0).integers(256, size=(40, 8, 8, 3), dtype=np.uint8)
        targets, classes = tuple(range(10)) * 4, tuple("abcdefghij")

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.fromarray(self.data[i]), self.targets[i]

    monkeypatch.setattr(timm_sets, "_create", lambda config, splits: Colours())
    data = open_data(DataConfig("torch/cifar10"))
    assert singly_and_at_once(ImageSplit(data.train, eval_transform(data)))


def test_a_hugging_face_set_through_timm(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    image_folder(tmp_path / "set" / "train", each=5)
    image_folder(tmp_path / "set" / "test", each=2)
    data = open_data(DataConfig(f"hfds/{tmp_path / 'set'}", data_dir=str(tmp_path / "cache")))
    assert (data.classes, data.img_size, len(data.train), len(data.validation)) == (("ant", "bee"), (10, 12), 8, 2)
    assert source_of(data.test).labels() == [0, 0, 1, 1]
    split = ImageSplit(data.train, train_transform(data, Augment()), training=True)
    [batch] = train_batches(split, batch_size=8, batches=1, epoch=0, seed=0, workers=2)
    assert sorted(batch.labels.tolist()) == [0] * 4 + [1] * 4
