"""Sets of boxes and of class maps in every layout: their splits, what leaks between them, the sizes of their images."""

from pathlib import Path

import pytest
from dense_folders import (
    HEIGHT,
    SQUARE,
    WIDTH,
    an_object,
    coco,
    coco_folder,
    maps,
    mask_file,
    opened,
    save,
    voc_folder,
    write,
    xml,
)

from psvit.errors import UserError


def test_a_file_that_is_listed_twice_is_cut_as_one(tmp_path: Path) -> None:
    content = coco([{}], images=20)
    content["images"] += [{**entry, "id": 100 + at} for at, entry in enumerate(content["images"])]
    root = coco_folder(tmp_path, content, images=20)
    (root / "annotations" / "instances_val.json").unlink()
    data = opened(root, validation=0.25)
    parts = [{part.name(i) for i in range(len(part))} for part in (data.train, data.validation, data.test)]
    assert all(parts)
    assert [2 * len(part) for part in parts] == [len(data.train), len(data.validation), len(data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(data.files.rows) == 20  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("layout", "how"),
    [*((layout, "link") for layout in ("masks", "voc", "coco")), *((layout, "listed") for layout in ("stuff", "coco"))],
)  # fmt: skip
def test_an_image_in_both_splits_is_refused(tmp_path: Path, layout: str, how: str) -> None:
    """Whatever path leads to it: the file itself, named from elsewhere, or a link to it."""
    if layout == "coco":
        root = coco_folder(tmp_path, coco([{"segmentation": [SQUARE]}]))
        val = coco([{"segmentation": [SQUARE]}], 1, "val" if how == "link" else "../images/")
        write(root / "annotations" / "instances_val.json", val)
        test, train = root / "images" / "val0.png", root / "images" / "0.png"
    elif layout == "voc":
        voc_folder(tmp_path, {"a": xml(an_object()), "b": xml(an_object())}, {"train": "a", "val": "b"})
        test, train = tmp_path / "JPEGImages" / "b.jpg", tmp_path / "JPEGImages" / "a.jpg"
    else:
        folders = {
            "masks": ("images/train", "images/val", "masks/train", "masks/val"),
            "stuff": ("train2017", "val2017", "stuffthingmaps/train2017", "stuffthingmaps/val2017"),
        }[layout]
        train, test = (save(tmp_path / folder / "a.jpg", (4, 2)) for folder in folders[:2])
        for folder in folders[2:]:
            mask_file(tmp_path / folder / "a.png", [1, 2])
        if how == "listed":  # the folder is a link
            test.unlink()
            test.parent.rmdir()
            test.parent.symlink_to(train.parent)
    if how == "link":
        test.unlink()
        test.symlink_to(train)
    for opener in (maps, opened) if layout == "coco" else (opened,) if layout == "voc" else (maps,):
        with pytest.raises(UserError, match=r"1 images of \S*val\S* are in \S*train\S* too: .*; what is tested on"):
            opener(tmp_path)
        if layout == "masks":
            joined = opener(tmp_path, join_duplicates=True)
            assert (len(joined.train), len(joined.test)) == (0, 2)


@pytest.mark.parametrize("layout", ["masks", "voc", "coco"])
def test_images_of_a_folder_keep_their_sizes(tmp_path: Path, layout: str) -> None:
    """--img-size is of scenes: it is refused, not passed over, where it would change nothing."""
    if layout == "coco":
        coco_folder(tmp_path, coco([{"segmentation": [SQUARE]}]))
    elif layout == "voc":
        voc_folder(tmp_path, {name: xml(an_object()) for name in "ab"}, {"train": "a", "val": "b"})
        for name in "ab":
            mask_file(tmp_path / "SegmentationClass" / f"{name}.png", [0, 20])
    else:
        for name in "ab":
            save(tmp_path / "images" / f"{name}.jpg", (4, 2))
            mask_file(tmp_path / "masks" / f"{name}.png", [1, 2])
    openers = (maps, opened) if layout in ("coco", "voc") else (maps,)
    for opener in openers:
        assert opener(tmp_path).img_size == ((HEIGHT, WIDTH) if layout in ("coco", "voc") else (2, 4))
        with pytest.raises(UserError, match=r"--img-size is the side of digits-scenes: images of .* keep their sizes"):
            opener(tmp_path, img_size=32)


@pytest.mark.parametrize("layout", ["masks", "voc", "coco"])
def test_one_size_is_that_of_all_splits(tmp_path: Path, layout: str) -> None:
    """The last image of the test split is another one's size, or cannot be read."""
    if layout == "coco":
        content = coco([{"segmentation": [SQUARE]}], 2, "val")
        write(coco_folder(tmp_path, coco([{}])) / "annotations" / "instances_val.json", content)
        save(tmp_path / "images" / "val1.png")
        other = write(tmp_path / "annotations" / "instances_val.json", content)
    else:
        images = "JPEGImages" if layout == "voc" else "images"
        for name in "abc":
            split = "" if layout == "voc" else "train/" if name == "a" else "val/"
            other = save(tmp_path / images / f"{split}{name}.jpg")
            mask_file(
                tmp_path / ("SegmentationClass" if layout == "voc" else "masks") / f"{split}{name}.png", [0, 1],
                size=(WIDTH, HEIGHT),
            )  # fmt: skip
        if layout == "voc":
            voc_folder(tmp_path, {name: xml(an_object()) for name in "abc"}, {"train": "a", "val": "b c"})
            voc_folder(tmp_path, {}, {"train": "a", "val": "b c"}, "Segmentation")
    opener = opened if layout == "coco" else maps
    assert opener(tmp_path).img_size == (HEIGHT, WIDTH)
    if layout == "coco":
        content["images"][1]["width"] += 1
        write(other, content)
    else:
        save(other, (WIDTH + 1, HEIGHT))
    assert opener(tmp_path).img_size is None
    if layout != "coco":
        other.write_bytes(b"no image")
        assert opener(tmp_path).img_size == (HEIGHT, WIDTH)
    if layout == "voc":
        assert opened(tmp_path).img_size == (HEIGHT, WIDTH)
        wider = xml(an_object(), size="<size><width>21</width><height>16</height></size>")
        write(tmp_path / "Annotations" / "c.xml", wider)
        assert opened(tmp_path).img_size is None
