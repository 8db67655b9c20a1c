"""Splits that never move, the list that keeps them, and evaluations that know the training images."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from image_folders import by_split, classes, fill, opened, picture
from tiny import MACHINE, Cli, read

from psvit.data.data_config import DataConfig
from psvit.data.image_list import IMAGES, read_image_list
from psvit.data.image_sets import open_image_set
from psvit.data.splits import cut_by_hash, hashed_position
from psvit.errors import UserError

NETWORK = ["--model", "AS-A", "--widths", "8", "16", "--head-dim", "8", "--patch-size", "4", "--img-size", "16"]
TRAIN = ["train", *NETWORK, *MACHINE, "--batch-size", "8", "--epochs", "2", "--workers", "0"]


# ---- the cut


def test_the_cut_is_the_same_on_every_machine() -> None:
    assert hashed_position("cat/000.jpg", "test") == pytest.approx(0.0598728, abs=1e-7)
    keys = [f"cat/{at}.jpg" for at in range(2000)]
    off, ranked = cut_by_hash(keys, ["cat"] * 2000, 0.2, "test")
    assert off.sum() == 365  # 400 expected, with a deviation of 18
    assert not ranked
    other, _ = cut_by_hash(keys, ["cat"] * 2000, 0.2, "validation split 0")
    assert (off & other).sum() == pytest.approx(0.04 * 2000, abs=27)  # apart from each other


def test_a_small_class_is_cut_by_ranks_and_said() -> None:
    for count, expected in ((1, 0), (2, 1), (3, 1)):
        keys = [f"rare/{at}.jpg" for at in range(count)]
        off, ranked = cut_by_hash(keys, ["rare"] * count, 0.01, "test")
        assert (int(off.sum()), ranked) == (expected, ("rare",))
        if expected:
            assert off.argmax() == min(range(count), key=lambda at: hashed_position(keys[at], "test"))


def test_no_image_moves_when_others_come_go_or_are_renamed(tmp_path: Path) -> None:
    classes(tmp_path / "set", 60)
    before = by_split(opened(tmp_path / "set"))
    assert set(before.values()) == {"train", "validation", "test"}
    fill(tmp_path / "set" / "cat", 1, start=600)
    fill(tmp_path / "set" / "ant", 20)
    (tmp_path / "set" / "cat" / "0005.png").write_bytes(picture())
    (tmp_path / "set" / "dog" / "007.png").unlink()
    (tmp_path / "set" / "dog" / "008.png").rename(tmp_path / "set" / "dog" / "a name.png")
    moved = shutil.move(tmp_path / "set", tmp_path / "elsewhere")
    after = by_split(opened(Path(moved)))
    assert all(after[path] == split for path, split in before.items() if path in after)
    assert len(before.keys() & after.keys()) == 118
    shutil.move(tmp_path / "elsewhere", tmp_path / "new" / "TRAIN")  # as a split, for its validation split
    again = opened(tmp_path / "new", validation=0.1)
    assert sum(split == "validation" for split in again.splits) > 5


def test_the_test_split_stays_and_the_validation_split_follows_the_seed(tmp_path: Path) -> None:
    classes(tmp_path, 60)
    zero, one = (by_split(opened(tmp_path, seed=seed)) for seed in (0, 1))

    same = {name: [path for path in zero if zero[path] == name] == [path for path in one if one[path] == name]
            for name in ("validation", "test")}  # fmt: skip
    assert same == {"validation": False, "test": True}
    assert by_split(opened(tmp_path, seed=1, split_seed=0)) == zero


def test_limit_is_even_and_what_it_leaves_out_is_not_used(tmp_path: Path) -> None:
    classes(tmp_path, 60)
    whole, few = opened(tmp_path), opened(tmp_path, limit=11)
    labels = sorted(row.label for row, split in zip(few.rows, few.splits, strict=True) if split == "train")
    assert labels == ["cat"] * 6 + ["dog"] * 5
    for path, split in by_split(few).items():
        assert by_split(whole)[path] == ("train" if split == "unused" else split)
    with pytest.raises(UserError, match="--limit 1 is below the 2 classes"):
        opened(tmp_path, limit=1)


def test_a_validation_folder_is_the_validation_split_where_there_is_a_test_split(tmp_path: Path) -> None:
    for name, count in (("train", 6), ("val", 3), ("test", 2)):
        classes(tmp_path / name, count)
    assert {path.split("/")[0]: split for path, split in by_split(opened(tmp_path)).items()} == {
        "train": "train", "val": "validation", "test": "test",
    }  # fmt: skip
    without = opened(tmp_path, validation=0)
    assert without.splits.count("unused") == 6
    assert "val/ is not used: --validation is 0" in without.notes


def test_images_of_equal_bytes_are_named_and_put_together_on_request(tmp_path: Path) -> None:
    classes(tmp_path / "train", 12)
    classes(tmp_path / "test", 4)
    shutil.copy(tmp_path / "train" / "cat" / "003.png", tmp_path / "test" / "cat" / "copy.png")
    shutil.copy(tmp_path / "test" / "dog" / "001.png", tmp_path / "train" / "cat" / "wrong.png")
    apart = opened(tmp_path, validation=0)
    assert apart.images.repeated() == [
        "images of equal bytes in several splits: 2 (train/cat/003.png = test/cat/copy.png; "
        "train/cat/wrong.png = test/dog/001.png); --join-duplicates puts them into one",
        "images of equal bytes in several classes: 1 (train/cat/wrong.png = test/dog/001.png)",
    ]
    together = opened(tmp_path, validation=0, join_duplicates=True)
    assert by_split(together)["train/cat/003.png"] == by_split(together)["train/cat/wrong.png"] == "test"
    assert "images moved to the split of others with equal bytes (--join-duplicates): 2" in together.notes


def test_known_images_keep_their_split_wherever_they_lie(tmp_path: Path) -> None:
    classes(tmp_path, 60)
    kept = opened(tmp_path).images
    was = {row.digest: row.split for row in kept.rows}
    for at, path in enumerate(sorted((tmp_path / "cat").iterdir())):  # renamed, so that hashes would cut anew
        path.rename(path.with_name(f"renamed {at}.png"))
    now = open_image_set(DataConfig(str(tmp_path)), kept)
    assert {row.digest: split for row, split in zip(now.images.rows, now.splits, strict=True)} == was
    anew = opened(tmp_path)
    assert {row.digest: split for row, split in zip(anew.images.rows, anew.splits, strict=True)} != was


def test_of_equal_images_each_keeps_its_split(tmp_path: Path) -> None:
    classes(tmp_path, 60)
    splits = by_split(opened(tmp_path))
    learned, tested = (next(path for path in splits if splits[path] == split) for split in ("train", "test"))
    shutil.copy(tmp_path / tested, tmp_path / learned)
    kept = opened(tmp_path).images
    now = open_image_set(DataConfig(str(tmp_path)), kept)
    assert kept.changes(now.images) == []
    assert by_split(now) == splits


def test_another_folder_without_splits_is_evaluated_whole(tmp_path: Path) -> None:
    kept = opened(classes(tmp_path / "mine", 20)).images
    classes(tmp_path / "other", 50)
    whole = open_image_set(DataConfig(str(tmp_path / "other")), kept, ("cat", "dog"))
    assert whole.splits.count("test") == 100
    shutil.rmtree(tmp_path / "other" / "cat")  # which need not hold all classes
    some = open_image_set(DataConfig(str(tmp_path / "other")), kept, ("cat", "dog"))
    assert (some.classes, some.source("test").targets) == (("cat", "dog"), [1] * 50)
    own = open_image_set(DataConfig(str(tmp_path / "mine")), kept, ("cat", "dog"))
    assert own.images == kept
    classes(tmp_path / "split" / "test", 5)
    assert open_image_set(DataConfig(str(tmp_path / "split")), None, ("cat", "dog")).splits == ("test",) * 10


# ---- from training to evaluation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ and a run/ of a network that was trained on them."""
    from psvit.cli import main

    root = tmp_path_factory.mktemp("kept")
    classes(root / "photos", 40)
    assert main([*TRAIN, "--data", str(root / "photos"), "--output", str(root / "run"), "--keep-state"]) == 0
    return root


def test_no_image_of_the_training_is_tested_on(trained: Path, cli: Cli, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "it"))
    best, photos = root / "run" / "best", root / "photos"
    fill(photos / "cat", 7, start=700)
    for at, path in enumerate(sorted((photos / "dog").iterdir())):
        path.rename(path.with_name(f"renamed {at}.png"))
    found = json.loads(cli.ok("evaluate", best, "--data", photos, "--json", *MACHINE))
    assert (found["trained_on"], found["images"] >= 14) == (0, True)
    shutil.copytree(photos / "cat", tmp_path / "elsewhere" / "cat")
    for at in range(20):  # fewer than half of the images: another folder
        (tmp_path / "elsewhere" / "cat" / f"{at:03d}.png").unlink()
    kept = read_image_list(root / "run" / IMAGES)
    assert kept is not None
    cats = sum(row.split == "train" and row.path > "cat/020" for row in kept.rows if row.label == "cat")
    said = cli.ok("evaluate", best, "--data", tmp_path / "elsewhere", *MACHINE)
    assert "27 images" in said
    assert f"TRAINED ON {cats} of them" in said
    (root / "run" / IMAGES).unlink()
    found = json.loads(cli.ok("evaluate", best, "--data", photos, "--json", *MACHINE))
    assert found["images"] < 40  # its test split, cut again, not all 87
    assert found["trained_on"] is None


def test_a_changed_folder_is_not_resumed_unless_accepted(trained: Path, cli: Cli, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "it"))
    run = root / "run"
    words = [*TRAIN, "--data", root / "photos", "--output", run, "--resume", "--keep-state"]
    config = read(run / "run_config.json")
    config["config"]["data"]["data"] = str(root / "photos")
    (run / "run_config.json").write_text(json.dumps(config))
    (run / "log.jsonl").unlink()  # as if it had been killed
    before = read_image_list(run / IMAGES)
    fill(root / "photos" / "cat", 3, start=700)
    saved = torch.load(run / "state.pt", weights_only=True)
    saved["train"]["step"], saved["train"]["history"] = 1, []
    torch.save(saved, run / "state.pt")
    assert "3 added, such as cat/700.png" in cli.refused(*words)
    assert "changed since the run began: 3 added" in cli.ok(*words, "--accept-changes")
    after = read_image_list(run / IMAGES)
    assert before is not None
    assert after is not None
    assert len(after.rows) == len(before.rows) + 3
    assert {row.path: row.split for row in before.rows}.items() <= {row.path: row.split for row in after.rows}.items()
