"""Folders of boxes and masks as people have them: what counts as a split, splits that never move, EXIF."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from dense_folders import blobs, coco, drawn, maps, opened, save, write
from PIL import Image
from tiny import MACHINE, Cli

from psvit.data.image_list import read_image_list
from psvit.data.objects.object_sets import DenseData, open_class_maps, open_objects
from psvit.data.objects.objects import DenseSource
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.errors import UserError

TURNED = 6
"""An EXIF orientation of a quarter turn."""


def names(source: DenseSource) -> list[str]:
    return [Path(source.name(at)).name for at in range(len(source))]


def parts(data: DenseData) -> dict[str, set[str]]:
    return {split: set(names(data.split(split))) for split in ("train", "validation", "test")}


# ---- what counts as an image, as a mask, as a split


def test_names_are_compared_composed(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    for name in "abcd":
        save(tmp_path / "images" / f"{name}.png", (24, 24))
        drawn(tmp_path / "masks" / f"{name}.png", blobs(0, 1))
    save(tmp_path / "images" / f"{composed}.jpg", (24, 24))
    drawn(tmp_path / "masks" / f"{apart}_Mask.png", blobs(0, 1))
    assert len(maps(tmp_path).files.rows) == 5  # type: ignore[union-attr]
    content = coco([{}], 1)
    content["images"][0]["file_name"] = f"sub/{composed}.png"
    save(tmp_path / "coco" / "images" / "sub" / f"{apart}.png")
    write(tmp_path / "coco" / "labels.json", content)
    assert len(opened(tmp_path / "coco").train) == 1


def lay(root: Path, layout: str, split: str, name: str) -> None:
    """One image with its mask, in one of the layouts."""
    image, mask = {
        "kind first": (f"images/{split}/{name}.png", f"masks/{split}/{name}.png"),
        "split first": (f"{split}/Images/{name}.png", f"{split}/Masks/{name}.png"),
        "beside": (f"{split}/{name}.png", f"{split}/{name}_mask.png"),
        "called alike": (f"{split}/{name}.png", f"{split}_labels/{name}.png"),
    }[layout]
    drawn(root / image, np.full((24, 24, 3), 7 * sum(map(ord, split + name)) % 250))
    drawn(root / mask, blobs(0, 1))


@pytest.mark.parametrize("layout", ["kind first", "split first", "beside", "called alike"])
@pytest.mark.parametrize("splits", [("train2017", "dev"), ("Training", "Validation", "TEST")])
def test_splits_by_any_of_their_names(tmp_path: Path, layout: str, splits: tuple[str, ...]) -> None:
    """A validation folder is the validation split if there is a test folder, and otherwise the test split."""
    for split in splits:
        for name in "abc":
            lay(tmp_path, layout, split, split[:2] + name)
    data = maps(tmp_path, validation=0.3)
    found = parts(data)
    assert found["test"] == {f"{splits[-1][:2]}{name}.png" for name in "abc"}
    if len(splits) == 3:
        assert found["validation"] == {"Vaa.png", "Vab.png", "Vac.png"}
        assert len(found["train"]) == 3
    else:
        assert found["train"] | found["validation"] == {f"tr{name}.png" for name in "abc"}
        assert found["train"]


def test_coco_splits_by_any_of_their_names(tmp_path: Path) -> None:
    for split in ("Training", "valid", "Test"):
        save(tmp_path / split / f"{split[:2]}0.png", value=len(split))
        write(tmp_path / split / "_annotations.coco.json", coco([{}], 1, split[:2]))
    data = opened(tmp_path, validation=0.1)
    assert parts(data) == {"train": {"Tr0.png"}, "validation": {"va0.png"}, "test": {"Te0.png"}}


# ---- splits that never move


def labelled(root: Path, count: int, start: int = 0) -> Path:
    for at in range(start, start + count):
        drawn(root / "images" / f"{at}.png", np.full((24, 24, 3), at))
        drawn(root / "masks" / f"{at}.png", blobs(0, 1))
    return root


def test_one_more_image_moves_no_other(tmp_path: Path) -> None:
    before = parts(maps(labelled(tmp_path, 30), validation=0.2))
    assert all(before.values())
    after = parts(maps(labelled(tmp_path, 1, start=90), validation=0.2))
    assert all(before[split] <= after[split] for split in before)
    assert sum(map(len, after.values())) == 31


def test_images_of_a_training_keep_their_splits(tmp_path: Path) -> None:
    root = labelled(tmp_path / "set", 30)
    config = DenseDataConfig(str(root), validation=0.2)
    first = open_class_maps(config)
    kept = first.files.images  # type: ignore[union-attr]
    assert {row.label for row in kept.rows} == {""}
    for at in range(10):  # another name, so another hash
        (root / "images" / f"{at}.png").rename(root / "images" / f"new{at}.png")
        (root / "masks" / f"{at}.png").rename(root / "masks" / f"new{at}.png")
    again = parts(open_class_maps(config, kept))
    assert {name.removeprefix("new") for name in again["test"]} == parts(first)["test"]
    assert {name.removeprefix("new") for name in again["train"]} == parts(first)["train"]
    evaluated = open_class_maps(config, kept, first.classes)
    assert parts(evaluated) == again
    other = open_class_maps(DenseDataConfig(str(labelled(tmp_path / "other", 4, 50))), kept, first.classes)
    assert parts(other) == {"train": set(), "validation": set(), "test": {"50.png", "51.png", "52.png", "53.png"}}
    assert "this is another folder than the network was trained on" in other.notes


def test_a_folder_is_evaluated_by_the_classes_of_the_network(tmp_path: Path) -> None:
    """All of its images count, even if it lacks classes of the network."""
    root = tmp_path / "maps"
    for at, mask in enumerate((blobs(0, 128), blobs(0, 0))):
        drawn(root / "images" / f"{at}.png", np.full((24, 24, 3), at))
        drawn(root / "masks" / f"{at}.png", mask)
    known = ("class 0", "class 64", "class 128")
    data = open_class_maps(DenseDataConfig(str(root)), None, known)
    assert data.classes == known
    assert np.array_equal(data.test.class_map(0), blobs(0, 2))
    save(tmp_path / "coco" / "0.png")
    write(tmp_path / "coco" / "test.json", coco([{}], 1))
    order = ("zebra", "cat", "dog", "ant")
    boxes = open_objects(DenseDataConfig(str(tmp_path / "coco")), None, order)
    assert boxes.classes == order
    assert boxes.test.objects(0).labels.tolist() == [1]
    with pytest.raises(UserError, match=r"annotations in 'test\.json', but none to train on"):
        opened(tmp_path / "coco")


def test_too_few_images_for_a_cut_are_trained_on_and_it_is_said(tmp_path: Path) -> None:
    data = maps(labelled(tmp_path, 1), validation=0.1)
    assert parts(data)["train"] == {"0.png"}
    assert "too few images for a part of the test split; add some" in data.notes


SEGMENT = ["segment", "train", "--model", "AS-A", "--widths", "16", "32", "--head-dim", "8", "--patch-size", "4",
           "--channels", "32", "--workers", "0", *MACHINE]  # fmt: skip


def test_a_run_keeps_its_images(cli: Cli, tmp_path: Path) -> None:
    """An evaluation keeps the splits of the training folder; in another folder it finds known images by their bytes."""
    root, run = labelled(tmp_path / "set", 24), tmp_path / "run"
    said = cli.ok(*SEGMENT, "--data", root, "--epochs", "1", "--keep-state", "--output", run)
    assert "cut from the images by a hash of the path (20%)" in said
    kept = read_image_list(run / "images.csv")
    assert kept is not None
    assert {row.label for row in kept.rows} == {""}
    counts = kept.counts()
    labelled(root, 1, start=90)
    evaluate = ["segment", "evaluate", run / "best", *MACHINE, "--workers", "0", "--data"]
    for split in ("train", "test"):
        found = json.loads(cli.ok(*evaluate, root, "--json", "--split", split))
        assert found["trained_on"] == (counts["train"] if split == "train" else 0)
        assert counts[split] <= found["images"] <= counts[split] + 1
    labelled(labelled(tmp_path / "other", 4), 3, start=200)
    trained = sum(row.split == "train" for row in kept.rows if row.path in {f"images/{at}.png" for at in range(4)})
    text = cli.ok(*evaluate, tmp_path / "other")
    assert "test split (all images), 7 images" in text
    assert f"the network was TRAINED ON {trained} of them" in text


# ---- EXIF


def phone(path: Path, width: int = 20, height: int = 16, orientation: int = TURNED) -> Path:
    """A photograph that is stored `width` x `height` and is to be turned; its upper left stored corner is bright."""
    pixels = np.full((height, width, 3), 20, dtype=np.uint8)
    pixels[:4, :4] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    return drawn(path, pixels, exif=exif, quality=95)


def bright(image: Image.Image) -> list[tuple[int, int]]:
    """Whether each corner is bright: (row, column), 0 or -1."""
    pixels = np.asarray(image).mean(axis=2)
    return [(y, x) for y in (0, -1) for x in (0, -1) if pixels[y, x] > 128]


@pytest.mark.parametrize("upright", [True, False])
def test_boxes_of_turned_pictures(tmp_path: Path, upright: bool) -> None:
    """Where boxes fit the stored pixels of one quarter turn, all images are read as stored, half turns too."""
    phone(tmp_path / "0.jpg")
    phone(tmp_path / "1.jpg", orientation=TURNED if upright else 3)
    content = coco([{}], 2)
    for at, entry in enumerate(content["images"]):
        entry |= {"file_name": f"{at}.jpg"} | ({"width": 16, "height": 20} if upright else {})
    write(tmp_path / "labels.json", content)
    data = opened(tmp_path)
    for part in (data.train, data.test):
        assert part.image(0).size == ((16, 20) if upright else (20, 16))
        assert bright(part.image(0)) == [(0, -1 if upright else 0)]
    said = "images whose EXIF orientation annotations ignore, read as they are stored: 2"
    assert any(said in line for line in data.notes) is not upright


@pytest.mark.parametrize("upright", [True, False])
def test_masks_of_turned_pictures(tmp_path: Path, upright: bool) -> None:
    size = (20, 16) if upright else (16, 20)
    for at in range(3):
        phone(tmp_path / "images" / f"{at}.jpg")
        drawn(tmp_path / "masks" / f"{at}.png", np.arange(320).reshape(size) % 2)
    data = maps(tmp_path)
    assert data.img_size == size
    assert data.train.image(0).size == size[::-1]
    assert data.train.class_map(0).shape == size
    assert any("EXIF" in line for line in data.notes) is not upright
