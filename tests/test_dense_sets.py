"""Sets of boxes and class maps: files listed twice, images in both splits, image sizes."""

from pathlib import Path

import pytest
from dense_folders import HEIGHT, SQUARE, WIDTH, coco, coco_folder, maps, mask_file, opened, save, write

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


@pytest.mark.parametrize("how", ["link", "listed"])
def test_an_image_in_both_splits_is_refused(tmp_path: Path, how: str) -> None:
    """Under another path, or as a link."""
    if how == "listed":
        root = coco_folder(tmp_path, coco([{"segmentation": [SQUARE]}]))
        write(root / "annotations" / "instances_val.json", coco([{"segmentation": [SQUARE]}], 1, "../images/"))
    else:
        train, test = (save(tmp_path / "images" / split / "a.jpg", (4, 2)) for split in ("train", "val"))
        for split in ("train", "val"):
            mask_file(tmp_path / "masks" / split / "a.png", [1, 2])
        test.unlink()
        test.symlink_to(train)
    for opener in (maps, opened) if how == "listed" else (maps,):
        with pytest.raises(UserError, match=r"images of \S*val\S* are in \S*train\S* too: .*; what is tested on"):
            opener(tmp_path)
    joined = maps(tmp_path, join_duplicates=True)
    assert (len(joined.train), len(joined.test)) == (0, 3 if how == "listed" else 2)  # all of equal bytes


def test_images_of_a_folder_keep_their_sizes(tmp_path: Path) -> None:
    content = coco([{"segmentation": [SQUARE]}], 2, "val")
    root = coco_folder(tmp_path, coco([{"segmentation": [SQUARE]}]))
    write(root / "annotations" / "instances_val.json", content)
    save(tmp_path / "images" / "val1.png")
    for opener in (maps, opened):
        assert opener(tmp_path).img_size == (HEIGHT, WIDTH)
        with pytest.raises(UserError, match=r"--img-size is the side of digits-scenes: images of .* keep their sizes"):
            opener(tmp_path, img_size=32)
    content["images"][1]["width"] += 1  # the last image of the test split
    write(root / "annotations" / "instances_val.json", content)
    assert opened(tmp_path).img_size is None


def test_the_size_of_masks_is_that_of_all_images_that_can_be_read(tmp_path: Path) -> None:
    for name in ("train/a", "val/b", "val/c"):
        other = save(tmp_path / "images" / f"{name}.jpg")
        mask_file(tmp_path / "masks" / f"{name}.png", [0, 1], size=(WIDTH, HEIGHT))
    assert maps(tmp_path).img_size == (HEIGHT, WIDTH)
    save(other, (WIDTH + 1, HEIGHT))
    assert maps(tmp_path).img_size is None
    other.write_bytes(b"no image")
    assert maps(tmp_path).img_size == (HEIGHT, WIDTH)
