"""psvit segment: resumed and distributed runs, checkpoints, predictions, refusals."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import MACHINE, Cli, log, read, same_weights, saved_behind, start, start_slowed, stop_at, torchrun, weights
from torch import Tensor

from psvit.cli import main
from psvit.data.objects.object_sets import open_class_maps
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.tasks.dense.dense_checkpoints import load_dense
from psvit.tasks.dense.drawing import class_colour
from psvit.tasks.segmentation.segment import Segmentation
from psvit.tasks.segmentation.segmenter_config import SegmenterConfig

NETWORK = ["--model", "AS-A", "--widths", "16", "32", "--head-dim", "8", "--patch-size", "4"]
SCENES = ["--data", "digits-scenes", "--scenes", "24", "--img-size", "48", "--validation", "0.2"]  # 5 to validate on
TRAIN = ["segment", "train", *NETWORK, *SCENES, *MACHINE, "--epochs", "2", "--channels", "32"]


# ---- runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segment") / "run"
    assert main([*KEPT, "--output", str(folder)]) == 0
    return folder


# batch norms, drop path and an average of weights: all the state and randomness of a step
KEPT = [*TRAIN, "--decoder", "unet", "--save-every", "1", "--keep-state", "--drop-path", "0.2", "--ema-decay", "0.9"]


def test_stopped_and_resumed_is_uninterrupted(
    cli: Cli, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 4)  # of 6, in the second epoch
        assert "stopped at step 4 of 6" in cli.refused(*KEPT, "--output", tmp_path)
    assert "resumed at step 4" in cli.ok(*KEPT, "--output", tmp_path, "--resume")
    for name in ("best", "last"):
        assert same_weights(tmp_path / name, trained / name)
    assert log(tmp_path) == log(trained)


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(cli: Cli, tmp_path: Path, trained: Path) -> None:
    process = start_slowed(3, *KEPT, "--output", tmp_path)
    step = saved_behind(3, tmp_path, process)  # of 6, in the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    said = cli.ok(*KEPT, "--output", tmp_path, "--resume")
    assert step <= int(said.partition("resumed at step ")[2].split()[0]) < 6
    for name in ("best", "last"):
        assert same_weights(tmp_path / name, trained / name)
    assert log(tmp_path) == log(trained)


@pytest.mark.slow
def test_two_processes_are_one_at_the_same_global_batch(cli: Cli, tmp_path: Path) -> None:
    # fpn has group norms; batch norms and Dice's loss see only the images of their own process
    shared = [*TRAIN, "--decoder", "fpn", "--dropout", "0", "--drop-path", "0", "--lr", "0.001",
              "--loss", "cross-entropy"]  # fmt: skip
    process = start("-m", "psvit", *shared, "--batch-size", "4", "--output", tmp_path / "two", launcher=torchrun())
    cli.ok(*shared, "--batch-size", "8", "--output", tmp_path / "one")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=0.05)
        assert two["images"] == one["images"] == 5
    a, b = weights(tmp_path / "one" / "last"), weights(tmp_path / "two" / "last")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_evaluated_as_its_training_did(cli: Cli, trained: Path) -> None:
    # at the same size, on the same validation split
    words = ["segment", "evaluate", trained / "last", "--data", "digits-scenes", *MACHINE, "--split", "validation"]
    metrics = json.loads(cli.ok(*words, "--json"))
    kept = read(trained / "last" / "metrics.json")
    for name in ("miou", "pixel_accuracy", "loss", "images"):
        assert metrics[name] == pytest.approx(kept[name], rel=1e-6)
    assert list(metrics["per_class"]) == ["background", *"0123456789"]
    assert 0 < kept["macs"] < kept["segmenter_macs"]
    table = cli.ok(*words)
    said = cli.refused(*words, "--validation", "0.4")
    assert "was trained on digits-scenes with --validation 0.2 --split-seed 0, so it knows images" in said
    assert f"{metrics['miou']:.2f}" in table
    assert f"background  {metrics['per_class']['background']:6.2f}" in table


def test_predict_writes_class_maps(cli: Cli, trained: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    words = ["segment", "predict", trained / "last", tmp_path / "odd.png", tmp_path / "broken.png", *MACHINE,
             "--output", tmp_path / "found"]  # fmt: skip
    code, out, err = cli(*words, "--json")
    assert code == 0
    assert "broken.png cannot be read" in err
    line = json.loads(out)
    assert (line["height"], line["width"]) == (37, 53)
    assert sum(line["percent"].values()) == pytest.approx(100, abs=1e-2)
    model, task = load_dense(Segmentation, trained / "last")
    with torch.no_grad():
        expected: Tensor = task.logits(model, torch.from_numpy(pixels)[None, None] / 255)[0].argmax(dim=0)
    with Image.open(tmp_path / "found" / "masks" / "odd.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), expected)
        assert np.array_equal(np.asarray(mask.convert("RGB"))[0, 0], class_colour(int(expected[0, 0])))
    assert Image.open(tmp_path / "found" / "drawn" / "odd.png").size == (9 * 53, 9 * 37)
    assert (tmp_path / "found" / "classes.txt").read_text().split() == ["background", *"0123456789"]
    assert "is there already: give --overwrite" in cli.refused(*words)
    assert " %" in cli(*words, "--overwrite").out


def test_predict_replaces_no_mask_of_the_set_it_reads(cli: Cli, tmp_path: Path) -> None:
    images, mask = tmp_path / "own" / "images", tmp_path / "own" / "masks" / "a.png"
    for file in (images / "a.png", mask):
        file.parent.mkdir(parents=True)
        Image.new("L", (8, 8), 1).save(file)
    drawn = mask.read_bytes()
    said = cli.refused("segment", "predict", tmp_path / "best", images, "--output", tmp_path / "own", "--overwrite")
    assert f"--overwrite would replace the masks of the set in {tmp_path / 'own'}" in said
    assert mask.read_bytes() == drawn


# ---- bad input


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of different sizes with masks of three classes, and ignored pixels."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i, size in enumerate([(40, 52), (37, 53), (60, 33), (40, 52), (70, 70), (41, 41), (37, 53), (30, 64)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
        mask = rng.integers(0, 3, size, dtype=np.uint8)
        mask[:5] = 255
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def of_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned from the photos."""
    words = ["segment", "train", *NETWORK, "--data", str(photos), *MACHINE, "--epochs", "1", "--batch-size", "2",
             "--channels", "32", "--crop-size", "32", "--workers", "0", "--validation", "0.3"]  # fmt: skip
    folder = tmp_path_factory.mktemp("photos") / "run"
    assert main([*words, "--output", str(folder)]) == 0
    return folder


EVALUATE = ["segment", "evaluate", *MACHINE, "--workers", "0", "--json"]


def test_a_folder_of_images_of_different_sizes(cli: Cli, photos: Path, of_photos: Path) -> None:
    words = [*EVALUATE, of_photos / "last", "--data", photos, "--split", "train"]
    metrics, single = (json.loads(cli.ok(*words, "--batch-size", size)) for size in (3, 1))
    assert metrics.pop("per_class") == pytest.approx(single.pop("per_class"))
    assert metrics.pop("unreadable") == single.pop("unreadable") == []
    assert metrics == pytest.approx(single)
    said = cli.refused("segment", "evaluate", of_photos / "last", *SCENES, *MACHINE)
    assert "knows 3 classes, digits-scenes has 11, and class 0 is class 0 in the checkpoint, background in" in said


@pytest.mark.slow
def test_two_processes_of_which_one_has_no_image_left_say_once_what_one_says(
    cli: Cli, photos: Path, of_photos: Path, tmp_path: Path
) -> None:
    for part in ("images", "masks"):
        for split, numbers in (("train", range(2)), ("val", range(2, 4))):
            (tmp_path / part / split).mkdir(parents=True)
            for i in numbers:
                (tmp_path / part / split / f"{i}.png").write_bytes((photos / part / f"{i}.png").read_bytes())
    (tmp_path / "images" / "val" / "3.png").write_bytes(b"no image")
    words = [*EVALUATE, of_photos / "last", "--data", tmp_path]
    process = start("-m", "psvit", *words, launcher=torchrun())
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    one, two = json.loads(cli.ok(*words)), json.loads(out)
    assert one["images"] == len(one["unreadable"]) == 1
    assert two.pop("per_class") == pytest.approx(one.pop("per_class"))
    assert (two.pop("unreadable"), two) == (one.pop("unreadable"), pytest.approx(one))


def test_a_validation_split_without_metrics_is_refused_before_training(cli: Cli, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "data")
    held = open_class_maps(DenseDataConfig(str(tmp_path / "data"), validation=0.1)).validation
    assert len(held) == 1
    name = Path(held.name(0)).name
    Image.fromarray(np.full(held.size_of(0), 255, dtype=np.uint8)).save(tmp_path / "data" / "masks" / name)
    words = ["segment", "train", *NETWORK, "--data", tmp_path / "data", *MACHINE, "--epochs", "1", "--crop-size", "32",
             "--channels", "32", "--validation", "0.1", "--workers", "0", "--output", tmp_path / "run"]  # fmt: skip
    said = cli.refused(*words)
    assert "none of the 1 images of the validation split can be evaluated, the first is " in said
    assert f"{name} (every pixel is 255, which is ignored)" in said
    assert not (tmp_path / "run").exists()


def test_what_is_refused(cli: Cli, tmp_path: Path) -> None:
    for words, message in (
        (["--model", "psvit_1d_tiny"], "pools the sequence (1D), so its later stages have no maps: take a 2D variant"),
        (["--decoder", "unets"], "--decoder"),
        (["--channels", "40"], "--channels 40 is not a multiple of 32"),
        (["--crop-size", "8", "9", "10"], "--crop-size 8 9 10 is not a height and a width"),
        (["--dropout", "1"], "--dropout 1.0 is not a fraction"),
        (["--data", "nowhere"], "--data 'nowhere' is neither a folder nor a known set: give digits-scenes, or a"),
        (["--decoder", "upernet", "--batch-size", "1"], "--batch-size 1 is too small for upernet"),
    ):  # fmt: skip
        said = cli.refused("segment", "train", *SCENES, *MACHINE, *words, "--output", tmp_path / "run")
        assert message in said
        assert not (tmp_path / "run").exists()


def test_what_is_cut_by_default() -> None:
    for size, crop, channels in (
        ((48, 64), (48, 64), 128),
        ((100, 129), (100, 129), 256),
        ((480, 640), (480, 512), 256),
        (None, (512, 512), 256),
    ):
        filled = SegmenterConfig().filled(size)
        assert (filled.crop_size, filled.channels) == (crop, channels), size
