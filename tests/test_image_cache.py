"""Images of a folder are decoded once, and a batch is bitwise the same with and without the cache."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sources import count_decoded, same, save, truncated_jpeg
from PIL import Image
from test_full_disk import largest_file
from timm.data import create_transform
from tiny import config, log, same_weights, stop_at

from psvit.data import image_cache
from psvit.data.augment import eval_split, eval_transform, preprocessing, train_split
from psvit.data.data_config import Augment, DataConfig
from psvit.data.datasets import Data, open_data
from psvit.data.image_cache import NAME, ImageCache, ToShorterSide, reduced_for_evaluation, reduced_for_training
from psvit.data.loading import eval_batches, train_batches
from psvit.data.samples import Batch, ImageSplit
from psvit.data.sources import FileSource, load_image
from psvit.engine.interrupts import InterruptedTrainingError
from psvit.engine.train_config import TrainConfig
from psvit.pipeline.compare import compare
from psvit.pipeline.run_config import CompareConfig
from psvit.tasks.classification.classify import train

AUGMENT = Augment(scale=(0.25, 1.0))
TO_16 = ToShorterSide(16)
READ = 12
"""Images of the training and the validation split."""

HALF = 1.3e-4
"""Gigabytes that hold some of them."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen images of two classes, six for the test split: JPEG and PNG, colour and grey, large and small."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(18):
        pixels = rng.integers(0, 256, (90 - 4 * number, 40 + 5 * number, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("L" if number % 4 == 0 else "RGB")
        (folder := root / ("ant", "bee")[number % 2]).mkdir(exist_ok=True)
        image.save(folder / f"{number}.{('jpg', 'png', 'jpg')[number % 3]}")
    return root


def opened(root: Path, cache: Path | None, gigabytes: float | None = None, **more: object) -> Data:
    folder = None if cache is None else str(cache)
    given = {"img_size": 32, "validation": 0.4, "image_cache": gigabytes, "image_cache_dir": folder, **more}
    return open_data(DataConfig(str(root), **given))  # type: ignore[arg-type]


def epoch(data: Data, number: int = 0, workers: int = 0) -> list[Batch]:
    """An epoch of training and its evaluation."""
    return [
        *train_batches(train_split(data, AUGMENT), batch_size=4, batches=2, epoch=number, seed=0, workers=workers),
        *eval_batches(eval_split(data, data.validation), batch_size=4, workers=workers),
    ]


def rows(folder: Path) -> int:
    """The number of images that a file holds, which is whole."""
    with sqlite3.connect(folder / NAME) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(file.execute("SELECT count(*) FROM images").fetchone()[0])


# ---- the same pixels


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_cache(photos: Path, tmp_path: Path, workers: int) -> None:
    plain = [epoch(opened(photos, None), number) for number in (0, 1)]
    for name, gigabytes in (("whole", None), ("half", HALF), ("none", 0))[:: 1 + workers]:
        data = opened(photos, tmp_path / name, gigabytes)
        for number in (0, 1):  # it is filled, then read
            assert same(epoch(data, number, workers), plain[number])
    assert rows(tmp_path / "whole") == READ
    if not workers:
        assert 0 < rows(tmp_path / "half") < READ
        assert not (tmp_path / "none").exists()


def test_an_image_is_decoded_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_decoded(monkeypatch)
    for _ in range(2):  # runs
        data = opened(photos, tmp_path)
        for number in range(2):
            epoch(data, number)
    assert len(decoded) == len(set(decoded)) == READ


@pytest.mark.parametrize("size", [8, 50, (8, 20), (33, 12)])
def test_an_evaluation_is_bitwise_that_without_reduction(photos: Path, tmp_path: Path, size: object) -> None:
    data = opened(photos, tmp_path, img_size=size)
    files = data.train
    for read in range(2):
        (plain,) = eval_batches(ImageSplit(files, eval_transform(data)), batch_size=12)
        (kept,) = eval_batches(eval_split(data, files), batch_size=12)
        assert torch.equal(plain.images, kept.images), read


def test_a_grey_network_sees_what_it_saw(photos: Path, tmp_path: Path) -> None:
    data = opened(photos, tmp_path)
    first = create_transform(**preprocessing(data)).transforms[0]
    reduced = reduced_for_evaluation(data.train, first, 1, ImageCache(tmp_path, 1))
    assert isinstance(data.train, FileSource)
    assert isinstance(reduced, FileSource)
    for i, path in enumerate(data.train.paths * 2):
        found = reduced.image(i % len(data.train))
        assert found.mode == "L"
        assert found.tobytes() == first(load_image(path, 1)).tobytes()


def test_no_crop_is_enlarged_by_reducing_first(photos: Path) -> None:
    reduced = reduced_for_training(opened(photos, None).train, (8, 6), (0.25, 1.0), None)
    assert isinstance(reduced, FileSource)
    for i, path in enumerate(reduced.paths):
        before, after = load_image(path).size, reduced.image(i).size
        assert min(after) == min(*before, 16)  # the least crop of a square has 8 pixels
        assert abs(after[0] / after[1] - before[0] / before[1]) < 0.1 * before[0] / before[1]


def test_a_photograph_upright_by_exif_and_decoded_at_a_part_looks_as_the_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize(
        (900, 600), Image.Resampling.BICUBIC
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    whole.save(tmp_path / "a.jpg", quality=95, exif=exif)
    found = TO_16.decode(str(tmp_path / "a.jpg"))
    plain = load_image(tmp_path / "a.jpg").resize((16, 24), Image.Resampling.BICUBIC)
    assert found.size == (16, 24)
    assert np.abs(np.asarray(found, dtype=float) - np.asarray(plain)).mean() < 2


# ---- valid by size and time


@pytest.mark.parametrize("change", ["size", "time", "pixels"])
def test_a_changed_file_is_decoded_anew(change: str, tmp_path: Path) -> None:
    """A tool that edits pixels and sets the time back changes the inode's time."""
    path, cache = save(tmp_path / "a.bmp", seed=0), ImageCache(tmp_path, 1)
    first = cache.read(str(path), TO_16).tobytes()
    before = path.stat()
    save(path, seed=1, size=(12, 11) if change == "size" else (12, 10))
    later = before.st_mtime_ns + (1000 if change == "time" else 0)
    os.utime(path, ns=(later, later))
    assert (path.stat().st_size != before.st_size) == (change == "size")
    second = cache.read(str(path), TO_16).tobytes()
    assert second == TO_16.decode(str(path)).tobytes() != first


def test_each_reduction_has_its_own_pixels(tmp_path: Path) -> None:
    path, cache = str(save(tmp_path / "a.png", size=(40, 30))), ImageCache(tmp_path, 1)
    sizes = [cache.read(path, ToShorterSide(side)).size for side in (10, 15, 10, 15)]
    assert sizes == [(13, 10), (20, 15)] * 2


def test_an_unreadable_file_is_not_kept(tmp_path: Path) -> None:
    path, cache = truncated_jpeg(tmp_path / "a.jpg"), ImageCache(tmp_path, 1)
    for _ in range(2):
        with pytest.raises(OSError, match=r"a\.jpg cannot be read"):
            cache.read(str(path), TO_16)
    with pytest.raises(OSError, match=r"gone\.jpg cannot be read: No such file"):
        cache.read(str(tmp_path / "gone.jpg"), TO_16)
    assert rows(tmp_path) == 0
    save(path)
    assert cache.read(str(path), TO_16).size == (12, 10)
    assert cache.note() is None


# ---- several processes, kills


def reading(root: Path, order: list[int]) -> Callable[[], int]:
    """What a process does: it reads all images twice, and counts wrong ones."""
    paths = [str(path) for path in sorted(root.glob("*.png"))]

    def read() -> int:
        cache = ImageCache(root, 1)
        wrong = [cache.read(paths[i], TO_16).tobytes() != TO_16.decode(paths[i]).tobytes() for i in order * 2]
        return sum(wrong) + (cache.note() is not None)

    return read


def in_processes(*works: Callable[[], int]) -> list[int]:
    """The ids of a process for each function, whose result is its exit status."""
    ids = []
    for work in works:
        ids.append(os.fork())
        if ids[-1] == 0:
            os._exit(work())
    return ids


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.parametrize("kill", [False, True])
def test_processes_write_at_a_time_and_may_be_killed(kill: bool, tmp_path: Path) -> None:
    for number in range(40):
        save(tmp_path / f"{number}.png", seed=number, size=(24, 20))
    works = [reading(tmp_path, list(np.random.default_rng(seed).permutation(40))) for seed in range(4)]
    works[0]()  # a connection of this process is not carried into those
    image_cache.remove_cache(tmp_path)
    ids = in_processes(*works)
    if kill:
        while not (tmp_path / NAME).exists():
            time.sleep(0.001)
        time.sleep(0.02)
        os.kill(ids[0], signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in ids]
    assert ends[1:] == [0, 0, 0]
    assert ends[0] in (0, -signal.SIGKILL)
    assert works[0]() == 0
    assert rows(tmp_path) == 40


# ---- the bound, the disk, and a file that cannot be used


def test_the_bound_holds_and_one_line_says_so(photos: Path, tmp_path: Path) -> None:
    data = opened(photos, tmp_path, HALF)
    assert data.cache is not None
    epoch(data, workers=2)
    note = data.cache.note()
    held = "images that it does not hold are decoded in every epoch"
    assert note == f"{tmp_path / NAME} is full (0.00013 GB by --image-cache): {held}"
    assert data.cache.note() is None
    data.cache.close()
    assert (tmp_path / NAME).stat().st_size <= HALF * 1e9 + 2 * image_cache.PAGE


def test_half_of_the_free_disk_stays_free(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: os.statvfs_result)
    monkeypatch.setattr(os.statvfs_result, "free", 60_000, raising=False)
    data = opened(photos, tmp_path)
    assert same(epoch(data), epoch(opened(photos, None)))
    assert data.cache is not None
    assert "GB, half of the free disk)" in str(data.cache.note())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_ends_nothing(photos: Path, tmp_path: Path, workers: int) -> None:
    data = opened(photos, tmp_path)
    with largest_file(100_000):
        found = epoch(data, workers=workers)
    assert same(found, epoch(opened(photos, None)))
    assert data.cache is not None
    assert "takes no more images (" in str(data.cache.note())
    data.cache.close()
    assert rows(tmp_path) < READ


def test_a_file_that_is_no_cache_is_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"mine" * 1000)
    data = opened(photos, tmp_path)
    assert same(epoch(data), epoch(opened(photos, None)))
    assert data.cache is not None
    assert "cannot be used (file is not a database)" in str(data.cache.note())
    assert (tmp_path / NAME).read_bytes() == b"mine" * 1000


# ---- runs


def of_folder(output: Path, root: Path, run: dict[str, object] | None = None, **data: object) -> TrainConfig:
    chosen = DataConfig(str(root), img_size=8, validation=0.4, workers=0, **data)  # type: ignore[arg-type]
    return config(output, data=chosen, run=run, batch_size=2, augment=AUGMENT)


@pytest.mark.usefixtures("one_thread")
def test_a_training_resumes_with_and_without_its_cache_and_leaves_none(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(of_folder(tmp_path / "whole", photos))
    assert not list((tmp_path / "whole").glob("images.sqlite*"))
    for name, gigabytes in (("kept", None), ("without", 0)):
        with monkeypatch.context() as patch:
            stop_at(patch, 2)
            with pytest.raises(InterruptedTrainingError):
                train(of_folder(tmp_path / name, photos))
        assert rows(tmp_path / name) > 0
        resumed = {"resume": True, "keep_state": name == "kept"}
        train(of_folder(tmp_path / name, photos, resumed, image_cache=gigabytes))
        assert same_weights(tmp_path / name / "last", tmp_path / "whole" / "last")
        assert log(tmp_path / name) == log(tmp_path / "whole")
        assert (tmp_path / name / NAME).exists() == (name == "kept")


@pytest.mark.usefixtures("one_thread")
def test_the_trainings_of_a_run_share_one_file(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_decoded(monkeypatch)
    like = of_folder(tmp_path / "unused", photos, image_cache_dir=str(tmp_path))
    networks = dict.fromkeys("ab", like.model)
    compare(CompareConfig(models=("a", "b"), output=str(tmp_path / "run")), networks, like, lambda line: None)
    assert len(decoded) == len(set(decoded))
    assert rows(tmp_path) == len(decoded)
