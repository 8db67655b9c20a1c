"""Folders of boxes and masks as people have them: what counts, splits that never move, EXIF, numbers of masks."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_folders import SQUARE, an_object, coco, maps, mask_file, opened, save, voc_folder, write, xml
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


def test_two_numbers_with_smooth_edges_are_two_classes(tmp_path: Path) -> None:
    mask = smoothed(blobs(0, 255))
    data = maps(set_of(tmp_path, mask, mask.T.copy(), mask, mask, mask))
    assert data.classes == ("class 0", "class 255")
    assert np.array_equal(data.train.class_map(0), (mask > 127) if names(data.train)[0] != "1.png" else mask.T > 127)
    grey = len(set(np.unique(mask)) - {0, 255})
    assert f"hold 0, 255, a class each, and {grey} numbers between them in " in note(data, "smoothed")


def test_several_numbers_with_smooth_edges_keep_their_areas(tmp_path: Path) -> None:
    mask = smoothed(blobs(0, 60, 120, 240, side=48))
    data = maps(set_of(tmp_path, *[mask] * 5))
    assert data.classes == ("class 0", "class 60", "class 120", "class 240")
    found = data.train.class_map(0)
    assert all((found[mask == value] == at).all() for at, value in enumerate((0, 60, 120, 240)))
    assert (found[~np.isin(mask, (0, 60, 120, 240))] == 255).all()  # 60 lies between 0 and 120: no nearest
    assert "those are ignored" in note(data, "smoothed")


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
    said = refused(root)
    assert "the masks hold the numbers 0, 128, 255, but" in said
    assert "names 5 classes: give each number a line, as in '255: name'" in said
    write(root / "classes.txt", "0: a\n0: b\n")
    assert "gives several classes the number 0: 'a', 'b'" in refused(root)


def test_many_numbers_without_areas_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    assert "numbers up to 254, which are no class numbers" in refused(set_of(tmp_path, *[noise] * 5))
    photo = np.add.outer(np.arange(24), np.arange(24)).astype(np.uint8) * 5  # a gradient, a depth map
    assert "which are no class numbers" in refused(set_of(tmp_path / "depth", *[photo] * 5))


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
    soft = np.stack([smoothed(COLOURS[blobs(0, 1, 2, side=96)][..., at]) for at in range(3)], axis=-1)
    root = set_of(tmp_path / "soft", *[soft] * 5)
    write(root / "classes.txt", "ground 0 0 0\nred 200 0 0\nsky 0 0 250\n")
    data = maps(root)
    found = data.train.class_map(0)
    assert (found == 255).any()
    assert (found[(soft == (200, 0, 0)).all(axis=-1)] == 1).all()
    assert " colours that are no class's, in " in note(data, "colours")


@pytest.mark.parametrize("tool", ["cvat", "labelme"])
def test_names_of_a_palette(tmp_path: Path, tool: str) -> None:
    """CVAT and VOC's tools write colours as palettes of any numbers; labelme writes class numbers."""
    for name in "abcde":
        save(tmp_path / "JPEGImages" / f"{name}.jpg", (24, 24))
        image = Image.fromarray(blobs(2, 0, 1) if tool == "cvat" else blobs(0, 1))
        image.putpalette([200, 0, 0, 0, 0, 250, 0, 0, 0])
        path = tmp_path / ("SegmentationClass" if tool == "cvat" else "SegmentationClassPNG") / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    if tool == "cvat":
        write(tmp_path / "labelmap.txt", "# label\nground:0,0,0::\nred:200,0,0::\nsky:0,0,250::\n")
    else:
        write(tmp_path / "class_names.txt", "__ignore__\n_background_\ncat\n")
    data = maps(tmp_path)
    assert data.classes == (("ground", "red", "sky") if tool == "cvat" else ("_background_", "cat"))
    assert np.array_equal(data.train.class_map(0), blobs(0, 1, 2) if tool == "cvat" else blobs(0, 1))


# ---- what counts as an image, as a mask, as a split


@pytest.mark.parametrize(("ending", "how"), [(".tif", {}), (".TIFF", {}), (".PNG", {}), (".bmp", {}), (".gif", {}),
                                             (".webp", {"lossless": True})])  # fmt: skip
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
    voc_folder(tmp_path / "voc", {apart: xml(an_object()), "b": xml(an_object())}, {"train": composed, "val": "b"})
    assert len(opened(tmp_path / "voc").train) == 1


def lay(root: Path, layout: str, split: str, name: str) -> None:
    """One image with its mask, in one of the layouts."""
    image, mask = {
        "kind first": (f"images/{split}/{name}.png", f"masks/{split}/{name}.png"),
        "split first": (f"{split}/Images/{name}.png", f"{split}/Masks/{name}.png"),
        "deeper": (f"imgs/{split}/town/{name}.png", f"labels/{split}/town/{name}.png"),
        "beside": (f"{split}/{name}.png", f"{split}/{name}_mask.png"),
        "called alike": (f"{split}/{name}.png", f"{split}_labels/{name}.png"),
    }[layout]
    drawn(root / image, np.full((24, 24, 3), 7 * sum(map(ord, split + name)) % 250))
    drawn(root / mask, blobs(0, 1))


@pytest.mark.parametrize("layout", ["kind first", "split first", "deeper", "beside", "called alike"])
@pytest.mark.parametrize("splits", [("train", "val"), ("Training", "Validation", "TEST"), ("train2017", "dev")])
def test_splits_by_any_of_their_names(tmp_path: Path, layout: str, splits: tuple[str, ...]) -> None:
    """Where there is a test split, the validation split is the validation split; else it is the test split."""
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


def test_roboflows_masks(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for name in "ab":
            lay(tmp_path, "beside", split, split + name)
        write(tmp_path / split / "_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n")
    data = maps(tmp_path)
    assert data.classes == ("background", "cat")
    assert parts(data) == {
        "train": {"traina.png", "trainb.png"},
        "validation": set(),
        "test": {"testa.png", "testb.png"},
    }
    assert "valid/ is not used: --validation is 0" in data.notes


def test_a_split_with_images_and_no_masks_is_named(tmp_path: Path) -> None:
    for name in "abc":
        lay(tmp_path, "kind first", "train", name)
    save(tmp_path / "images" / "test" / "x.png", (24, 24))
    assert "images that no annotation or mask is for, not used: 1 in images/test/" in maps(tmp_path).notes
    (tmp_path / "images" / "train").rename(tmp_path / "images" / "val")
    (tmp_path / "masks" / "train").rename(tmp_path / "masks" / "val")
    assert "has masks in masks/val, but none to train on" in refused(tmp_path)


@pytest.mark.parametrize("how", ["files", "roboflow"])
def test_coco_splits_by_any_of_their_names(tmp_path: Path, how: str) -> None:
    for split in ("Training", "valid", "Test"):
        name = f"{split[:2]}0"
        at = f"{split}/_annotations.coco.json" if how == "roboflow" else f"annotations/instances_{split}.json"
        save(tmp_path / (split if how == "roboflow" else f"images/{split}") / f"{name}.png", value=len(split))
        write(tmp_path / at, coco([{}], 1, split[:2]))
    data = opened(tmp_path, validation=0.1)
    assert parts(data) == {"train": {"Tr0.png"}, "validation": {"va0.png"}, "test": {"Te0.png"}}


# ---- splits that never move


def labelled(root: Path, count: int, start: int = 0) -> Path:
    for at in range(start, start + count):
        drawn(root / "images" / f"{at}.png", np.full((24, 24, 3), at))
        drawn(root / "masks" / f"{at}.png", blobs(0, 1))
    return root


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
    """Whole, though it has not all classes, and in the order of the network's."""
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
    """On the folder that it was trained on an evaluation takes the splits as kept; elsewhere it counts by content."""
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
    labelled(tmp_path / "other", 4)
    labelled(tmp_path / "other", 3, start=200)
    trained = sum(row.split == "train" for row in kept.rows if row.path in {f"images/{at}.png" for at in range(4)})
    text = cli.ok(*evaluate, tmp_path / "other")
    assert "test split (all images), 7 images" in text
    assert f"the network was TRAINED ON {trained} of them" in text
    resume = [*SEGMENT, "--data", root, "--epochs", "1", "--keep-state", "--output", run, "--resume"]
    (run / "log.jsonl").unlink()  # by which a run is known to be finished
    assert "1 added, such as images/90.png: bring them back, give --accept-changes" in cli.refused(*resume)
    assert "changed since the run began: 1 added" in cli.ok(*resume, "--accept-changes")


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


def turned_set(root: Path, width: int, height: int) -> Path:
    content = coco([{"segmentation": [SQUARE]}], 1)
    content["images"][0] |= {"file_name": "0.jpg", "width": width, "height": height}
    write(root / "labels.json", content)
    return root


def test_boxes_on_upright_pictures_fit(tmp_path: Path) -> None:
    phone(tmp_path / "0.jpg")
    data = opened(turned_set(tmp_path, 16, 20))
    assert data.train.image(0).size == (16, 20)
    assert bright(data.train.image(0)) == [(0, -1)]
    assert not any("EXIF" in line for line in data.notes)


def test_boxes_on_stored_pixels_fit(tmp_path: Path) -> None:
    """One quarter turn tells it of all, also of a half turn, whose size does not."""
    phone(tmp_path / "0.jpg")
    phone(tmp_path / "1.jpg", orientation=3)
    content = coco([{}], 2)
    for at, entry in enumerate(content["images"]):
        entry["file_name"] = f"{at}.jpg"
    write(tmp_path / "labels.json", content)
    data = opened(tmp_path, limit=None)
    assert [len(data.train), len(data.test)] == [1, 1]
    for part in (data.train, data.test):
        assert part.image(0).size == (20, 16)
        assert bright(part.image(0)) == [(0, 0)]
    assert "images whose EXIF orientation annotations ignore, read as they are stored: 2" in note(data, "EXIF")


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
