"""Folders of class maps: images/ beside masks/, ADE20K and COCO-Stuff, their numbers and the names of their classes."""

from pathlib import Path

import pytest
from dense_folders import maps, mask_file, save, write

from psvit.errors import UserError


def test_images_beside_masks(tmp_path: Path) -> None:
    for name in "abcde":
        save(tmp_path / "images" / f"{name}.jpg", (4, 2))
        mode = "I;16" if name == "c" else "L"
        mask_file(tmp_path / "masks" / (f"{name}_mask.png" if name == "d" else f"{name}.png"), [0, 2, 255], mode)
    save(tmp_path / "images" / "f.jpg", (4, 2))
    data = maps(tmp_path)
    assert data.classes == ("class 0", "class 1", "class 2")
    assert len(data.train) + len(data.test) == 5
    for i in range(len(data.train)):
        assert data.train.class_map(i).tolist() == [[0, 2, 255, 0], [2, 255, 0, 2]]
    assert any("images without a mask, skipped: 1" in note for note in data.notes)
    with pytest.raises(UserError, match="images without a mask"):
        maps(tmp_path, strict=True)
    with pytest.raises(UserError, match="has no boxes"):
        data.train.objects(0)


def test_masks_that_are_wrong(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "images" / "train" / f"{name}.jpg", (4, 2))
        mask_file(tmp_path / "masks" / "train" / f"{name}.png", [0, 1])
    save(tmp_path / "images" / "val" / "x.jpg", (4, 2))
    mask_file(tmp_path / "masks" / "val" / "x.png", [0, 5])
    mask_file(tmp_path / "masks" / "train" / "b.png", [0, 1], size=(2, 2))
    with pytest.raises(UserError, match=r"x\.png holds the number 5, but the set has classes 0 to 1"):
        maps(tmp_path)  # before an hour of training
    mask_file(tmp_path / "masks" / "val" / "x.png", [0, 1])
    data = maps(tmp_path)
    assert [len(data.train), len(data.test)] == [3, 1]
    with pytest.raises(OSError, match=r"b\.png is 2 x 2 pixels, its image 4 x 2"):
        data.train.class_map(1)
    (tmp_path / "masks" / "train" / "b.png").write_bytes(b"no image")
    data = maps(tmp_path)
    assert [data.train.name(i)[-5:] for i in range(len(data.train))] == ["a.jpg", "c.jpg"]
    assert any("masks that cannot be read, skipped: 1 (" in note and "b.png" in note for note in data.notes)
    with pytest.raises(UserError, match=r"masks that cannot be read: .*b\.png.*--strict"):
        maps(tmp_path, strict=True)
    save(tmp_path / "masks" / "train" / "c.png", (4, 2))
    with pytest.raises(UserError, match=r"the masks hold 3 colours, such as .*: give classes\.txt a line for each"):
        maps(tmp_path)


def test_masks_in_black_and_white(tmp_path: Path) -> None:
    for name in "abcde":
        save(tmp_path / "images" / f"{name}.jpg", (4, 2))
        mask_file(tmp_path / "masks" / f"{name}.png", [0, 255])
    for names, white in (("", 1), ("ground\nbox\n", 1), ("ground\nbox\nball\n", 255)):
        write(tmp_path / "classes.txt", names) if names else None
        data = maps(tmp_path)
        assert data.train.class_map(0).tolist() == [[0, white, 0, white]] * 2
        assert any("255 is taken as class 1" in note for note in data.notes) == (white == 1)
    for name in "abcde":
        mask_file(tmp_path / "masks" / f"{name}.png", [0])
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match="one class only"):
        maps(tmp_path)


@pytest.mark.parametrize(("masks", "images", "values", "classes"), [
    ("masks/train", "images/train", [255], 2), ("annotations/training", "images/training", [255, 0], 150),
])  # fmt: skip
def test_masks_in_which_every_pixel_is_ignored(
    tmp_path: Path, masks: str, images: str, values: list[int], classes: int
) -> None:
    for name in "abc":
        save(tmp_path / images / f"{name}.jpg", (4, 2))
        mask_file(tmp_path / masks / f"{name}.png", values)
    with pytest.raises(UserError, match=r"no pixel of the training split has a class, as in .*255 is ignored"):
        maps(tmp_path)
    mask_file(tmp_path / masks / "b.png", [255, 1])
    assert len(maps(tmp_path).classes) == classes


def test_what_holds_no_class_maps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no class maps: give a folder with images/ and masks/"):
        maps(tmp_path)
    save(tmp_path / "images" / "train" / "a.jpg")
    (tmp_path / "masks" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"masks holds no images: put the masks there, as PNG"):
        maps(tmp_path)
    mask_file(tmp_path / "masks" / "train" / "b.png", [0, 1])
    with pytest.raises(UserError, match=r"no image of .*images/train has a mask of its name in .*masks/train"):
        maps(tmp_path)
    (tmp_path / "masks" / "train" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the masks can be read; write them again as PNG"):
        maps(tmp_path)


ADE = ("images/{}", "annotations/{}", "training", "validation")
STUFF = ("{}", "stuffthingmaps/{}", "train2017", "val2017")
"""Where the images and the masks lie, and the splits."""


def lay(root: Path, layout: tuple[str, ...], values: list[int], name: str = "1") -> None:
    images, masks, *splits = layout
    for split in splits:
        save(root / images.format(split) / f"{name}.jpg", (4, 2))
        mask_file(root / masks.format(split) / f"{name}.png", values)


def test_ade20k(tmp_path: Path) -> None:
    """Classes are numbered from 1, and named by a file, or by their numbers."""
    lay(tmp_path, ADE, [0, 1, 150])
    data = maps(tmp_path)
    assert data.train.class_map(0).tolist() == [[255, 0, 149, 255], [0, 149, 255, 0]]
    assert (len(data.classes), data.classes[149], len(data.test)) == (150, "class 150", 1)
    write(tmp_path / "objectInfo150.txt", "Idx\tRatio\tName\n1\t0.5\tbox\n2\t0.5\tball, globe\n")
    with pytest.raises(UserError, match=r"1\.png holds the number 150, but the set has classes 1 to 2"):
        maps(tmp_path)
    lay(tmp_path, ADE, [1, 2])
    assert maps(tmp_path).classes == ("box", "ball, globe")
    write(tmp_path / "objectInfo150.txt", "255\tbox\n")
    with pytest.raises(UserError, match=r"objectInfo150\.txt names the number 255: .* from 1 to 254, .* a tab between"):
        maps(tmp_path)


@pytest.mark.parametrize("images", ["images/{}", "{}"])
def test_coco_stuff(tmp_path: Path, images: str) -> None:
    """Classes are numbered from 0 in masks, and from 1 in the file that names them."""
    lay(tmp_path, (images, *STUFF[1:]), [0, 181, 255])
    assert len(maps(tmp_path).classes) == 182
    write(tmp_path / "labels.txt", "0: unlabeled\n1: person\n182: wood\n")
    data = maps(tmp_path)
    assert len(data.classes) == 182
    assert [data.classes[at] for at in (0, 1, 181)] == ["person", "class 2", "wood"]
    assert data.train.class_map(0).tolist() == [[0, 181, 255, 0], [181, 255, 0, 181]]
    write(tmp_path / "labels.txt", "box\nball\n")
    with pytest.raises(UserError, match=r"labels\.txt names no class: .* a colon between them"):
        maps(tmp_path)
