"""Data: what a name opens, and that a batch depends on (seed, epoch, position) alone."""

import builtins
import gzip
import io
import logging
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from psvit.errors import UserError
from psvit.training import data as data_module
from psvit.training import timm_sets
from psvit.training.augment import eval_transform, preprocessing, train_transform
from psvit.training.data import Data, open_data, read_idx
from psvit.training.loading import Batch, ImageSplit, eval_batches, train_batches
from psvit.training.settings import Augment, DataSettings
from psvit.training.sources import FileSource, LazySource, Source, Stream, Subset, convert_image, load_image


def save(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_folder(root: Path, classes: tuple[str, ...] = ("ant", "bee"), each: int = 6) -> Path:
    for number, name in enumerate(classes):
        for i in range(each):
            save(root / name / f"{i}.png", seed=100 * number + i)
    return root


def truncated_jpeg(path: Path) -> Path:
    save(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:900])
    return path


def indices(source: Source | Stream) -> set[int]:
    assert isinstance(source, Subset)
    return set(source.indices.tolist())


def source_of(source: Source | Stream) -> Source:
    assert isinstance(source, Source)
    return source


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and x.unreadable == y.unreadable
        for x, y in zip(a, b, strict=True)
    )


class Numbered(Source):
    """Image i is a 1x1 grey of value i; records what is read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def image(self, i: int) -> Image.Image:
        return Image.new("L", (1, 1), i)

    def label(self, i: int) -> int:
        return i

    def name(self, i: int) -> str:
        return f"#{i}"


def value_and_noise(image: Image.Image) -> Tensor:
    """One number from each generator, so that equal tensors mean equal draws."""
    return torch.tensor([image.getpixel((0, 0)), random.random(), np.random.rand(), torch.rand(()).item()])[
        :, None, None
    ]


def numbered(size: int = 20, training: bool = True) -> ImageSplit:
    return ImageSplit(Numbered(size), value_and_noise, training=training)


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data(DataSettings())


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
    assert runs[0][0].images.dtype == torch.float32
    assert runs[0][0].labels.dtype == torch.int64


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
        plain = ImageSplit(digit_split.source, eval_transform(open_data(DataSettings())))
        list(eval_batches(plain, batch_size=8, world_size=60, workers=workers))
        assert draws() == expected


def test_an_empty_split_says_so(digits: Data) -> None:
    empty = ImageSplit(Subset(source_of(digits.train), []), eval_transform(digits))
    with pytest.raises(UserError, match="holds no images"):
        next(train_batches(empty, batch_size=2, batches=1, epoch=0, seed=0))
    with pytest.raises(UserError, match="holds no images"):
        next(eval_batches(empty, batch_size=2))


# ---- the splits


def test_digits(digits: Data) -> None:
    train, holdout, test = source_of(digits.train), source_of(digits.holdout), source_of(digits.test)
    assert (len(train), len(holdout), len(test)) == (1295, 143, 359)
    assert (digits.in_chans, digits.img_size, digits.mirror, digits.workers) == (1, (8, 8), False, 0)
    assert isinstance(train, Subset)
    pixels = source_of(train.source).pixels / 255  # type: ignore[attr-defined]
    assert digits.mean == pytest.approx((pixels.mean(),), abs=1e-4)
    assert digits.std == pytest.approx((pixels.std(),), abs=1e-4)
    assert train.image(0).mode == "L"
    assert max(np.asarray(train.image(i)).max() for i in range(50)) == 255


def test_the_holdout_is_stratified_seeded_and_apart_from_train_and_test(digits: Data) -> None:
    assert indices(digits.train).isdisjoint(indices(digits.holdout))
    assert indices(digits.train) | indices(digits.holdout) == set(range(1438))
    counts = [np.bincount(source_of(split).labels() or []) for split in (digits.train, digits.holdout)]
    assert np.abs(counts[1] - 0.1 * (counts[0] + counts[1])).max() <= 0.5
    other = open_data(DataSettings(seed=1))
    assert indices(other.holdout) != indices(digits.holdout)
    for i in range(0, 359, 50):  # the test split does not move with the seed
        assert source_of(other.test).image(i) == source_of(digits.test).image(i)
    everything = source_of(open_data(DataSettings(holdout=0)).train)
    assert len(everything) == 1438


def test_limit_is_balanced_and_seeded() -> None:
    few = source_of(open_data(DataSettings(limit=25)).train)
    assert sorted(np.bincount(few.labels() or []).tolist()) == [2] * 5 + [3] * 5
    assert indices(few) == indices(open_data(DataSettings(limit=25)).train)
    assert indices(few) != indices(open_data(DataSettings(limit=25, seed=1)).train)
    assert indices(few).isdisjoint(indices(open_data(DataSettings()).holdout))
    with pytest.raises(UserError, match="limit 9 is below the 10 classes"):
        open_data(DataSettings(limit=9))


def test_the_test_images_are_never_opened_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val")
    true_open = builtins.open

    def guarded(file: object, *args: object, **kwargs: object) -> object:
        if str(tmp_path / "val") in str(file):
            raise AssertionError(f"{file} was opened")
        return true_open(file, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", guarded)
    data = open_data(DataSettings(str(tmp_path), img_size=8, holdout=0.3))
    split = ImageSplit(data.train, train_transform(data, Augment()), training=True)
    assert len(list(train_batches(split, batch_size=4, batches=4, epoch=0, seed=0))) == 4
    assert len(list(eval_batches(ImageSplit(data.holdout, eval_transform(data)), batch_size=4))) == 1
    with pytest.raises((AssertionError, OSError), match="was opened"):
        source_of(data.test).image(0)


def test_a_lazy_source_opens_once_and_when_asked() -> None:
    opened = []

    def opens() -> Source:
        opened.append(1)
        return Numbered(3)

    lazy = LazySource(opens)
    assert not opened
    assert (len(lazy), lazy.label(2), lazy.name(1), lazy.labels(), lazy.image(0).size) == (
        3,
        2,
        "#1",
        [0, 1, 2],
        (1, 1),
    )
    assert len(opened) == 1


# ---- the settings


def test_the_settings_need_no_torch() -> None:
    code = "import psvit.training.settings, sys; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- folders


def test_a_folder_with_splits(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", ("ant", "bee", "cat 10", "cat 9", "größe m²", "蜂"))
    make_folder(tmp_path / "test", ("ant", "bee", "cat 10", "cat 9", "größe m²", "蜂"), each=2)
    make_folder(tmp_path / "val", ("ant",))
    data = open_data(DataSettings(str(tmp_path)))
    assert data.classes == ("ant", "bee", "cat 9", "cat 10", "größe m²", "蜂")
    assert (data.in_chans, data.img_size, data.mirror) == (3, (224, 224), True)
    assert (len(source_of(data.train)), len(source_of(data.holdout)), len(source_of(data.test))) == (30, 6, 12)
    assert data.notes == (
        f"{tmp_path / 'val'} is not used: {tmp_path / 'test'} is the test split, the hold-out is cut from train",
    )
    train = source_of(data.train)
    for i in range(len(train)):
        assert Path(train.name(i)).parent.name == data.classes[train.label(i)]


def test_a_folder_lists_as_timm_does(tmp_path: Path) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    make_folder(tmp_path, ("b10", "b9", "Alpha", "x y"), each=11)
    found, numbers = find_images_and_targets(str(tmp_path))
    data = open_data(DataSettings(str(tmp_path), holdout=0))
    assert data.classes == tuple(numbers)
    train, test = source_of(data.train), source_of(data.test)
    ours = {split.name(i): split.label(i) for split in (train, test) for i in range(len(split))}
    assert ours == dict(found)
    assert isinstance(train, Subset)
    assert isinstance(train.source, Subset)
    assert isinstance(train.source.source, FileSource)
    assert list(train.source.source.paths) == [path for path, _ in found]


def test_a_folder_without_splits_cuts_a_test_and_says_so(tmp_path: Path) -> None:
    make_folder(tmp_path, each=10)
    runs = [open_data(DataSettings(str(tmp_path), seed=seed)) for seed in (0, 1)]
    names = [
        [
            {source_of(split).name(i) for i in range(len(source_of(split)))}
            for split in (run.train, run.holdout, run.test)
        ]
        for run in runs
    ]
    assert [len(split) for split in names[0]] == [14, 2, 4]
    assert len(set.union(*names[0])) == 20
    assert names[0][2] == names[1][2]  # the cut does not move with the seed
    assert "20%" in runs[0].notes[0]


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    make_folder(tmp_path, ("car", "train"))
    assert open_data(DataSettings(str(tmp_path))).classes == ("car", "train")


def test_a_stray_image_is_no_class(tmp_path: Path) -> None:
    make_folder(tmp_path)
    save(tmp_path / "logo.png")
    assert open_data(DataSettings(str(tmp_path))).classes == ("ant", "bee")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "nowhere"}, "'nowhere' is neither a folder nor a known set: give digits, fashion-mnist"),
        ({"data": "torch/nonesuch"}, "Unknown torchvision dataset nonesuch"),
        ({"data": "wds/x"}, "--data-dir None is not a folder"),
        ({"data": " "}, "is not a name or a folder"),
        ({"holdout": 1.0}, "holdout 1.0 is not a fraction"),
        ({"holdout": -0.1}, "holdout -0.1 is not a fraction"),
        ({"holdout": float("nan")}, "holdout nan is not a fraction"),
        ({"img_size": 0}, "--img-size 0 is not a positive"),
        ({"img_size": (8, 8, 8)}, "--img-size"),
        ({"workers": -1}, "workers -1"),
        ({"limit": 0}, "limit 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_a_users_mistake_is_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_data(DataSettings(**settings))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folders_mistakes(tmp_path: Path) -> None:
    def error(root: Path, **settings: float) -> str:
        with pytest.raises(UserError) as caught:
            open_data(DataSettings(str(root), **settings))  # type: ignore[arg-type]
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "no class folder" in error(tmp_path / "empty")
    save(tmp_path / "flat" / "a.png")
    assert "no class folder" in error(tmp_path / "flat")
    assert "one class only, 'ant'" in error(make_folder(tmp_path / "one", ("ant",)))
    two = make_folder(tmp_path / "two", each=2)
    assert "class 'ant' has too few images" in error(two)
    assert len(source_of(open_data(DataSettings(str(two), holdout=0)).train)) == 2
    assert len(source_of(open_data(DataSettings(str(make_folder(tmp_path / "three", each=3)))).train)) == 2
    make_folder(tmp_path / "split" / "train")
    make_folder(tmp_path / "split" / "val", ("bee", "cow"))
    assert "lacks 'ant' and adds 'cow'" in error(tmp_path / "split")
    assert "is a file, not a folder" in error(save(tmp_path / "a.png"))


# ---- unreadable images


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, set[str]]:
    make_folder(tmp_path / "train", each=4)
    make_folder(tmp_path / "test", each=4)
    bad = {str(truncated_jpeg(tmp_path / "train" / "ant" / "1x.jpg"))}
    text = tmp_path / "train" / "bee" / "text.png"
    text.write_text("not an image")
    return tmp_path, bad | {str(text)}


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_in_training(broken: tuple[Path, set[str]], workers: int) -> None:
    root, bad = broken
    data = open_data(DataSettings(str(root), holdout=0, img_size=8))
    split = ImageSplit(data.train, train_transform(data, Augment()), training=True)
    batches = list(train_batches(split, batch_size=5, batches=2, epoch=0, seed=0, workers=workers))
    assert [len(batch.labels) for batch in batches] == [5, 5]
    assert sorted(name for batch in batches for name in batch.unreadable) == sorted(bad)
    again = list(train_batches(split, batch_size=5, batches=2, epoch=0, seed=0))
    assert same(batches, again)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_dropped_in_evaluation(broken: tuple[Path, set[str]], workers: int) -> None:
    root, bad = broken
    data = open_data(DataSettings(str(root), holdout=0, img_size=8))
    split = ImageSplit(data.train, eval_transform(data))
    for batch_size in (1, 3, 10):
        batches = list(eval_batches(split, batch_size=batch_size, workers=workers))
        assert sum(len(batch.labels) for batch in batches) == 8
        assert all(len(batch.labels) for batch in batches)
        assert sorted(name for batch in batches for name in batch.unreadable) == sorted(bad)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_strict_stops_and_names_the_file(broken: tuple[Path, set[str]], training: bool, workers: int) -> None:
    root, bad = broken
    data = open_data(DataSettings(str(root), holdout=0, img_size=8))
    split = ImageSplit(data.train, eval_transform(data), training=training, strict=True)
    if training:
        batches = train_batches(split, batch_size=5, batches=2, epoch=0, seed=0, workers=workers)
    else:
        batches = eval_batches(split, batch_size=5, workers=workers)
    with pytest.raises(UserError) as caught:
        list(batches)
    assert any(name in str(caught.value) for name in bad)
    assert "\n" not in str(caught.value)


def test_when_nothing_can_be_read(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(40)]
    source = FileSource(paths, [0] * 40)
    with pytest.raises(UserError, match="16 images in a row"):
        list(
            train_batches(ImageSplit(source, value_and_noise, training=True), batch_size=2, batches=1, epoch=0, seed=0)
        )
    with pytest.raises(UserError, match="none of 40 images can be read"):
        list(eval_batches(ImageSplit(source, value_and_noise), batch_size=3))


# ---- image files


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_every_mode_becomes_grey_or_colour(mode: str, in_chans: int, tmp_path: Path) -> None:
    names = {"CMYK": "tif", "YCbCr": "tif", "HSV": "npy", "PA": "npy", "F": "tif", "I": "tif"}
    extension = names.get(mode, "png")
    if extension == "npy":  # no file format holds it
        image = convert_image(Image.new("RGB", (3, 2)).convert("HSV" if mode == "HSV" else "P").convert(mode), in_chans)
    else:
        Image.new(mode, (3, 2), 1).save(tmp_path / f"a.{extension}")
        image = load_image(tmp_path / f"a.{extension}", in_chans)
    assert (image.mode, image.size) == ("L" if in_chans == 1 else "RGB", (3, 2))


def test_deep_pixels_are_scaled_not_clipped(tmp_path: Path) -> None:
    def grey(pixels: object, dtype: type, extension: str) -> list[int]:
        path = tmp_path / f"a.{extension}"
        Image.fromarray(np.array([pixels], dtype=dtype)).save(path)
        return [int(value) for value in np.asarray(load_image(path, 1))[0]]

    assert grey([0, 257, 32896, 65535], np.uint16, "png") == [0, 1, 128, 255]
    assert grey([0, 32896, 65535], np.int32, "tif") == [0, 128, 255]
    assert grey([0, 7, 255], np.int32, "tif") == [0, 7, 255]
    assert grey([-100, 0, 100], np.int32, "tif") == [0, 128, 255]
    assert grey([0, 0.5, 1], np.float32, "tif") == [0, 128, 255]
    assert grey([0, 7, 255], np.float32, "tif") == [0, 7, 255]


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    loaded = load_image(tmp_path / "p.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (4, 5, 6)]


@pytest.mark.parametrize("size", [(1, 1), (5000, 20), (20, 5000)])
def test_odd_sizes_go_through_both_transforms(size: tuple[int, int], digits: Data, tmp_path: Path) -> None:
    image = load_image(save(tmp_path / "a.png", size=size))
    data = open_data(DataSettings(str(make_folder(tmp_path / "set")), img_size=(32, 48)))
    for transform in (eval_transform(data), train_transform(data, Augment())):
        tensor = transform(image)
        assert tensor.shape == (3, 32, 48)
        assert tensor.isfinite().all()


def test_what_is_no_image_raises_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path in (text, tmp_path / "missing.png", truncated_jpeg(tmp_path / "cut.jpg"), tmp_path):
        with pytest.raises(OSError, match=path.name):
            load_image(path)
    with pytest.raises(OSError, match="from memory"):
        load_image(io.BytesIO(b"no image"))
    whole = save(tmp_path / "whole.png", size=(100, 100))
    broken_png = tmp_path / "broken.png"  # Pillow raises a SyntaxError on a broken chunk
    broken_png.write_bytes(whole.read_bytes()[:8] + b"\0\0\0\1XXXX" + whole.read_bytes()[8:])
    with pytest.raises(OSError, match=r"broken\.png"):
        load_image(broken_png)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match="decompression bomb"):
        load_image(whole)


# ---- transforms


def test_digits_are_never_mirrored(digits: Data) -> None:
    image = source_of(digits.train).image(0)
    plain = Augment(scale=(1, 1), ratio=(1, 1), hflip=1, color_jitter=0)
    assert torch.equal(train_transform(digits, plain)(image), eval_transform(digits)(image))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "v0", "original", "3a"])
def test_the_policies_work_on_grey_images(policy: str, digits: Data) -> None:
    split = ImageSplit(digits.train, train_transform(digits, Augment(auto_augment=policy)), training=True)
    [batch] = train_batches(split, batch_size=400, batches=1, epoch=0, seed=0)
    assert batch.images.shape == (400, 1, 8, 8)
    assert batch.images.isfinite().all()


@pytest.mark.parametrize(
    "fields",
    [{"scale": (0, 1)}, {"ratio": (2, 1)}, {"hflip": 2}, {"random_erasing": -1}, {"interpolation": "nearest-ish"}],
)
def test_augment_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(fields)).replace("_", "-")):
        Augment(**fields)  # type: ignore[arg-type]


def test_an_unknown_policy_is_refused(digits: Data) -> None:
    with pytest.raises(UserError, match="--auto-augment 'magic'"):
        train_transform(digits, Augment(auto_augment="magic"))


def test_preprocessing_is_timms(digits: Data, tmp_path: Path) -> None:
    assert preprocessing(digits) == {
        "input_size": (1, 8, 8),
        "mean": digits.mean,
        "std": digits.std,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    assert preprocessing(open_data(DataSettings(str(make_folder(tmp_path)))))["crop_pct"] == 0.9


# ---- fashion-mnist


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_from_idx_files(suffix: str, tmp_path: Path) -> None:
    pixels = np.arange(40 * 28 * 28).reshape(40, 28, 28) % 251
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", pixels)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.arange(40) % 10)
    data = open_data(DataSettings("fashion-mnist", data_dir=str(tmp_path), holdout=0.25))
    train = source_of(data.train)
    assert (len(train), len(source_of(data.holdout))) == (30, 10)
    assert (data.classes[9], data.img_size, data.in_chans, data.mirror) == ("Ankle boot", (28, 28), 1, True)
    assert isinstance(train, Subset)
    assert np.array_equal(np.asarray(train.image(0)), pixels[train.indices[0]])
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte cannot be read"):  # only now the test split is opened
        len(source_of(data.test))


@pytest.mark.parametrize(
    "raw", [b"", b"\0\0\x08\x01", b"\0\0\x08\x01\0\0\0\x05abc", b"\x89PNG....", b"\0\0\x08\x03" + b"\xff" * 12]
)
def test_a_broken_idx_file_is_named(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a-idx").write_bytes(raw)
    with pytest.raises(UserError, match=r"a-idx is broken"):
        read_idx(tmp_path / "a-idx")
    (tmp_path / "b.gz").write_bytes(gzip.compress(raw + b"0123456789")[:-6])
    with pytest.raises(UserError, match=r"b\.gz cannot be read"):
        read_idx(tmp_path / "b.gz")


def test_idx_files_that_are_no_pair(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((4, 28, 28)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(UserError, match="no pair"):
        open_data(DataSettings("fashion-mnist", data_dir=str(tmp_path)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(4, 10))
    with pytest.raises(UserError, match="class 10"):
        open_data(DataSettings("fashion-mnist", data_dir=str(tmp_path)))


def test_fashion_mnist_that_cannot_be_had_says_where_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    monkeypatch.setattr(data_module, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(UserError, match=r"\(no network\): apt-get install dataset-fashion-mnist.*--data-dir"):
        open_data(DataSettings("fashion-mnist", data_dir=str(tmp_path)))


def test_the_real_fashion_mnist() -> None:
    if not data_module.DEBIAN_FASHION_MNIST.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    data = open_data(DataSettings("fashion-mnist", data_dir=str(data_module.DEBIAN_FASHION_MNIST)))
    assert (len(source_of(data.train)), len(source_of(data.holdout)), len(source_of(data.test))) == (54000, 6000, 10000)
    pixels = source_of(data.train).source.pixels  # type: ignore[attr-defined]
    counts = np.bincount(pixels.ravel(), minlength=256)  # exact, and without 47 million floats
    mean = (counts * np.arange(256)).sum() / counts.sum() / 255
    std = np.sqrt((counts * (np.arange(256) / 255 - mean) ** 2).sum() / counts.sum())
    assert data.mean == pytest.approx((mean,), abs=1e-4)
    assert data.std == pytest.approx((std,), abs=1e-4)


# ---- sets that timm reads


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
    data = open_data(DataSettings("wds/tiny", data_dir=str(shards), holdout=0.25))
    assert (data.classes, data.in_chans, len(data.train), len(data.holdout)) == (("0", "1", "2"), 3, 30, 10)
    held = values(list(eval_batches(ImageSplit(data.holdout, grey), batch_size=4)))
    kept = values(list(eval_batches(ImageSplit(data.train, grey), batch_size=4)))
    assert sorted(held + kept) == list(range(40))
    assert len({value // 10 for value in held}) == 1  # one whole shard
    tests = [
        values(list(eval_batches(ImageSplit(data.test, grey), batch_size=2, rank=rank, world_size=2, workers=workers)))
        for workers in (0, 2)
        for rank in (0, 1)
    ]
    assert sorted(tests[0] + tests[1]) == sorted(tests[2] + tests[3]) == list(range(100, 107))
    assert not caplog.records


def test_webdataset_training_repeats_and_resumes(shards: Path) -> None:
    data = open_data(DataSettings("wds/tiny", data_dir=str(shards), holdout=0.25))
    split = ImageSplit(data.train, grey, training=True)

    def run(epoch: int = 0, start: int = 0, workers: int = 0, batches: int = 5) -> list[Batch]:
        return list(
            train_batches(split, batch_size=6, batches=batches, epoch=epoch, seed=3, start=start, workers=workers)
        )

    whole = run()
    assert sorted(values(whole)) == sorted(values(list(eval_batches(ImageSplit(data.train, grey), batch_size=4))))
    assert same(whole, run())
    assert same(whole[3:], run(start=3))
    assert values(run(epoch=1)) != values(whole)
    assert len(run(batches=12)) == 12  # more than a pass
    assert same(run(workers=2)[2:], run(start=2, workers=2))


def test_a_stream_refuses_what_it_cannot_do(shards: Path) -> None:
    settings = {"data": "wds/tiny", "data_dir": str(shards)}
    for refused in ({"limit": 9}, {"strict": True}):
        with pytest.raises(UserError, match="is streamed"):
            open_data(DataSettings(**settings, **refused))  # type: ignore[arg-type]
    data = open_data(DataSettings(**settings))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="strict"):
        ImageSplit(data.train, grey, strict=True)
    split = ImageSplit(data.train, grey, training=True)
    with pytest.raises(UserError, match="repeats 3"):
        next(train_batches(split, batch_size=2, batches=1, epoch=0, seed=0, repeats=3))
    for shard in sorted(shards.glob("*train*"))[1:]:
        shard.unlink()
    with pytest.raises(UserError, match="is the only one"):
        open_data(DataSettings(**settings))  # type: ignore[arg-type]
    (shards / "tiny-train-0.tar").write_bytes(b"no tar file")
    timm_sets._shard_labels.cache_clear()
    with pytest.raises(UserError, match=r"tiny-train-0\.tar cannot be read"):
        open_data(DataSettings(**settings))  # type: ignore[arg-type]


def test_a_torchvision_set_through_timm(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, size in (("train", 40), ("t10k", 10)):
        write_idx(raw / f"{split}-images-idx3-ubyte", np.arange(size)[:, None, None] + np.zeros((1, 28, 28)))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(size) % 10)
    data = open_data(DataSettings("torch/mnist", data_dir=str(tmp_path)))
    assert (data.classes[3], data.img_size, data.mirror) == ("3 - three", (28, 28), False)
    assert (len(data.train), len(data.holdout), len(data.test)) == (30, 10, 10)
    assert source_of(data.test).labels() == list(range(10))
    assert source_of(data.test).image(7).getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(UserError, match="give the folder itself"):
        open_data(DataSettings("torch/image_folder", data_dir=str(tmp_path)))


def test_a_hugging_face_set_through_timm(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    make_folder(tmp_path / "set" / "train", each=5)
    make_folder(tmp_path / "set" / "test", each=2)
    data = open_data(DataSettings(f"hfds/{tmp_path / 'set'}", data_dir=str(tmp_path / "cache")))
    assert (data.classes, data.img_size, len(data.train), len(data.holdout)) == (("ant", "bee"), (10, 12), 8, 2)
    assert source_of(data.test).labels() == [0, 0, 1, 1]
    split = ImageSplit(data.train, train_transform(data, Augment()), training=True)
    [batch] = train_batches(split, batch_size=8, batches=1, epoch=0, seed=0, workers=2)
    assert sorted(batch.labels.tolist()) == [0] * 4 + [1] * 4
