"""Folders of boxes and masks as people have them: mask numbers, file formats, fixed splits, EXIF."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_folders import coco, maps, mask_file, opened, save, write
from numpy.typing import ArrayLike
from PIL import Image
from tiny import MACHINE, Cli

from psvit.data.image_list import read_image_list
from psvit.data.objects.object_sets import DenseData, open_class_maps, open_objects
from psvit.data.objects.objects import DenseSource
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.errors import UserError

TURNED = 6
"""An EXIF orientation of a quarter turn."""


def drawn(path: Path, pixels: ArrayLike, **how: Any) -> Path:
    """An image file of these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **how)
    return path


def blobs(*values: int, side: int = 24) -> np.ndarray:
    """A mask of broad stripes of these numbers."""
    return np.repeat(np.asarray(values, dtype=np.uint8), side // len(values))[None].repeat(side, axis=0)


def smoothed(mask: np.ndarray) -> np.ndarray:
    """A mask with soft edges, as a resize leaves them."""
    image = Image.fromarray(mask)
    small = image.resize((mask.shape[1] // 2 + 3, mask.shape[0] // 2 + 3), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))


def set_of(root: Path, *masks: np.ndarray, ending: str = ".png", **how: Any) -> Path:
    """Images and these masks."""
    for at, mask in enumerate(masks):
        drawn(root / "images" / f"{at}.png", np.full((*mask.shape[:2], 3), 10 * at))
        drawn(root / "masks" / f"{at}{ending}", mask, **how)
    return root


def names(source: DenseSource) -> list[str]:
    return [Path(source.name(at)).name for at in range(len(source))]


def parts(data: DenseData) -> dict[str, set[str]]:
    return {split: set(names(data.split(split))) for split in ("train", "validation", "test")}


def refused(root: Path, **config: Any) -> str:
    with pytest.raises(UserError) as error:
        maps(root, **config)
    assert "\n" not in str(error.value)
    return str(error.value)


def note(data: DenseData, part: str) -> str:
    return next(line for line in data.notes if part in line)


# ---- what the numbers of masks mean


@pytest.mark.parametrize("values", [(0, 255), (0, 60, 120, 240)])
def test_numbers_with_smooth_edges_keep_their_areas(tmp_path: Path, values: tuple[int, ...]) -> None:
    """Edges between two numbers go to the nearer one; among more, they are ignored: 60 lies between 0 and 120."""
    mask = smoothed(blobs(*values, side=48))
    data = maps(set_of(tmp_path, *[mask] * 5))
    assert data.classes == tuple(f"class {value}" for value in values)
    found = data.train.class_map(0)
    assert all((found[mask == value] == at).all() for at, value in enumerate(values))
    edges = ~np.isin(mask, values)
    assert (found[edges] == (255 if len(values) > 2 else mask[edges] > 127)).all()
    assert ("those are ignored" in note(data, "smoothed")) == (len(values) > 2)


@pytest.mark.parametrize(("values", "classes", "said"), [
    ((0, 128), ("class 0", "class 128"), "the numbers 0, 128: each is taken for a class, in this order"),
    ((0, 50, 100, 150), ("class 0", "class 50", "class 100", "class 150"), "each is taken for a class"),
    ((0, 128, 255), ("class 0", "class 128"), "in this order, 255 is ignored"),
    ((0, 1, 3), ("class 0", "class 1", "class 2", "class 3"), "no training mask holds the numbers 2"),
    ((1, 2, 3), ("class 0", "class 1", "class 2", "class 3"), "no training mask holds the numbers 0"),
])  # fmt: skip
def test_numbers_with_gaps(tmp_path: Path, values: tuple[int, ...], classes: tuple[str, ...], said: str) -> None:
    mask = blobs(*values)
    data = maps(set_of(tmp_path, *[mask] * 5))
    assert data.classes == classes
    keys = [int(name.split()[1]) for name in classes]
    expected = [255 if value == 255 else keys.index(value) for value in values]
    assert np.array_equal(data.train.class_map(0), blobs(*expected))
    assert any(said in line for line in data.notes)


def test_names_decide_what_numbers_are(tmp_path: Path) -> None:
    root = set_of(tmp_path, *[blobs(0, 128, 255)] * 5)
    write(root / "classes.txt", "ground\ncell\nedge\n")
    data = maps(root)
    assert data.classes == ("ground", "cell", "edge")
    assert np.array_equal(data.train.class_map(0), blobs(0, 1, 2))
    write(root / "classes.txt", "255: edge\n0: ground\n128: cell\n")
    assert maps(root).classes == ("ground", "cell", "edge")
    assert np.array_equal(maps(root).train.class_map(0), blobs(0, 1, 2))
    write(root / "classes.txt", "0: ground\n128: cell\n")
    assert np.array_equal(maps(root).train.class_map(0), blobs(0, 1, 255))
    write(root / "classes.txt", "0: ground\n255: edge\n")
    assert "no class has the number 128, which 33 % of the pixels of the masks are: give it in" in refused(root)
    write(root / "classes.txt", "a\nb\nc\nd\ne\n")
    assert "names 5 classes: give each number a line, as in '255: name'" in refused(root)
    write(root / "classes.txt", "0: a\n0: b\n")
    assert "gives several classes the number 0: 'a', 'b'" in refused(root)


def test_many_numbers_without_areas_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    assert "numbers up to 254, which are no class numbers" in refused(set_of(tmp_path, *[noise] * 5))


def test_class_numbers_of_which_some_are_thin_stay_class_numbers(tmp_path: Path) -> None:
    mask = blobs(0, 1, 2, 3)
    mask[5, ::2], mask[7, ::2], mask[9, ::2] = 4, 5, 6  # never nine in a square
    data = maps(set_of(tmp_path, *[mask] * 5))
    assert len(data.classes) == 7
    assert np.array_equal(data.train.class_map(0), mask)


COLOURS = np.asarray([(0, 0, 0), (200, 0, 0), (0, 0, 250)], dtype=np.uint8)


@pytest.mark.parametrize(("file", "text"), [
    ("classes.txt", "ground 0 0 0\nred car 200 0 0\nsky 0 0 250\n"),
    ("labelmap.txt", "# label:color_rgb:parts:actions\nground:0,0,0::\nred car:200,0,0::\nsky:0,0,250::\n"),
    ("class_dict.csv", "name,r,g,b\nground,0,0,0\nred car,200,0,0\nsky,0,0,250\n"),
    ("label_colors.txt", "0 0 0\tground\n200 0 0\tred car\n0 0 250\tsky\n"),
    ("obj_class_to_machine_color.json",
     '{"ground": [0, 0, 0], "red car": [200, 0, 0], "sky": [0, 0, 250]}'),
])  # fmt: skip
def test_colours_that_a_file_names_are_classes(tmp_path: Path, file: str, text: str) -> None:
    """Ours; CVAT's; CamVid's twice; Supervisely's."""
    root = set_of(tmp_path, *[COLOURS[blobs(0, 1, 2)]] * 5)
    assert "the masks hold 3 colours, such as " in refused(root)
    assert "classes.txt a line for each class, as in 'name " in refused(root)
    write(root / file, text)
    data = maps(root)
    assert data.classes == ("ground", "red car", "sky")
    assert np.array_equal(data.train.class_map(0), blobs(0, 1, 2))


def test_colours_that_no_file_names(tmp_path: Path) -> None:
    root = set_of(tmp_path, *[COLOURS[blobs(0, 1, 2)]] * 5)
    write(root / "classes.txt", "ground 0 0 0\nsky 0 0 250\n")
    assert "has no class for the colour 200 0 0, which 33 % of the pixels of the masks are" in refused(root)


def test_names_of_a_palette(tmp_path: Path) -> None:
    """CVAT and VOC's tools write colours as palettes of any numbers."""
    for name in "abcde":
        save(tmp_path / "JPEGImages" / f"{name}.jpg", (24, 24))
        image = Image.fromarray(blobs(2, 0, 1))
        image.putpalette([200, 0, 0, 0, 0, 250, 0, 0, 0])
        path = tmp_path / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    write(tmp_path / "labelmap.txt", "# label\nground:0,0,0::\nred:200,0,0::\nsky:0,0,250::\n")
    data = maps(tmp_path)
    assert data.classes == ("ground", "red", "sky")
    assert np.array_equal(data.train.class_map(0), blobs(0, 1, 2))


# ---- what counts as an image, as a mask, as a split


@pytest.mark.parametrize(("ending", "how"), [(".TIFF", {}), (".bmp", {}), (".gif", {}), (".webp", {"lossless": True})])
def test_masks_in_formats_that_keep_numbers(tmp_path: Path, ending: str, how: dict[str, Any]) -> None:
    data = maps(set_of(tmp_path, *[blobs(0, 1, 2)] * 5, ending=ending, **how))
    assert len(data.classes) == 3
    assert np.array_equal(data.train.class_map(0), blobs(0, 1, 2))


@pytest.mark.parametrize(("ending", "how"), [(".jpg", {"quality": 80}), (".webp", {"quality": 60})])
def test_masks_in_formats_that_change_numbers(tmp_path: Path, ending: str, how: dict[str, Any]) -> None:
    """Two numbers far apart can still be told; three cannot."""
    mask = np.zeros((48, 48), dtype=np.uint8)
    mask[5:30, 11:37] = 255
    data = maps(set_of(tmp_path / "two", *[mask] * 5, ending=ending, **how))
    assert len(data.classes) == 2
    assert (data.train.class_map(0) == (mask == 255)).mean() > 0.99
    said = refused(set_of(tmp_path / "three", *[blobs(0, 1, 2, side=48)] * 5, ending=ending, **how))
    assert "is of a format that changes numbers" in said
    assert "save masks as PNG" in said


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


def test_masks_by_number_stay_so_however_they_are_saved(tmp_path: Path) -> None:
    for at, mode in enumerate(("L", "RGB", "RGBA", "P", "1")):
        save(tmp_path / "images" / f"{at}.png", (4, 2))
        mask_file(tmp_path / "masks" / f"{at}.png", [0, 255] if mode == "1" else [0, 1], mode)
    data = maps(tmp_path)
    assert len(data.classes) == 2
    assert all((data.split(split).class_map(at) == [[0, 1, 0, 1]] * 2).all()
               for split in ("train", "test") for at in range(len(data.split(split))))  # fmt: skip
