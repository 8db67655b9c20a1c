"""Masks as people have them: what their numbers, colours and palettes mean, and in which file formats."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_folders import blobs, drawn, maps, mask_file, save, write
from PIL import Image
from refusals import refusal_of

from psvit.data.objects.object_sets import DenseData


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


refused = partial(refusal_of, maps)


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


# ---- formats


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


def test_masks_by_number_stay_so_however_they_are_saved(tmp_path: Path) -> None:
    for at, mode in enumerate(("L", "RGB", "RGBA", "P", "1")):
        save(tmp_path / "images" / f"{at}.png", (4, 2))
        mask_file(tmp_path / "masks" / f"{at}.png", [0, 255] if mode == "1" else [0, 1], mode)
    data = maps(tmp_path)
    assert len(data.classes) == 2
    assert all((data.split(split).class_map(at) == [[0, 1, 0, 1]] * 2).all()
               for split in ("train", "test") for at in range(len(data.split(split))))  # fmt: skip
