"""Folders in the layout of Pascal VOC: boxes, splits and class maps."""

from pathlib import Path

import numpy as np
from dense_folders import HEIGHT, WIDTH, an_object, objects, opened, refusal, save, voc_folder, write, xml
from PIL import Image

from psvit.data.objects.object_sets import open_class_maps
from psvit.data.objects.objects_config import DenseDataConfig


def test_voc_is_read_in_its_own_pixels(tmp_path: Path) -> None:
    files = {"a": xml(an_object(), an_object("dog", "1 1 20 16", 1)), "b": xml(an_object("person"))}
    voc_folder(tmp_path / "VOCdevkit" / "VOC2012", files, {"train": "a", "val": "b"})
    data = opened(tmp_path)
    assert len(data.classes) == 20
    assert (data.has_masks, data.notes) == (False, ())
    found = objects(data)
    assert found.boxes.tolist() == [[2, 3, 8, 9], [0, 0, 20, 16]]
    assert [data.classes[label] for label in found.labels] == ["cat", "dog"]
    assert found.crowd.tolist() == [False, True]
    assert data.classes[data.test.objects(0).labels[0]] == "person"


def test_voc_files_that_are_wrong(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "y">]>' + xml(an_object())
    no_box = "<object><name>mug</name></object>"
    files = {"a": xml(an_object("mug"), an_object("mug", "9 9 9 3"), no_box), "b": "<annotation>", "c": bomb,
             "e": xml(an_object("mug", "3 4 80 9"), size="")}  # fmt: skip
    root = voc_folder(tmp_path, files, {"train": "a b c d e f", "val": "a2"})
    save(root / "JPEGImages" / "f.jpg")
    voc_folder(tmp_path, {"a2": xml(an_object("mug"))}, {})
    data = opened(root)
    assert data.classes == ("mug",)
    assert [Path(data.train.name(i)).name for i in range(len(data.train))] == ["a.jpg", "e.jpg"]
    assert objects(data, 0).boxes.tolist() == [[2, 3, 8, 9]]
    assert objects(data, 1).boxes.tolist() == [[2, 3, 20, 9]]
    notes = "\n".join(data.notes)
    assert "annotation files that cannot be read, skipped: 2" in notes
    assert "images not on disk, skipped: 1 ('d')" in notes
    assert "images without an annotation file, skipped: 1 ('f')" in notes
    assert "boxes that are not four numbers, dropped: 1" in notes
    assert "b.xml" in refusal(root, strict=True)
    write(root / "Annotations" / "a2.xml", xml(an_object("cup")))
    assert "val.txt has classes that the training split lacks: 'cup'" in refusal(root)
    write(root / "ImageSets" / "Main" / "val.txt", "a")
    assert "images of val.txt are in train.txt too: 'a'" in refusal(root)


def test_voc_splits(tmp_path: Path) -> None:
    """2007: trainval against test. 2012, whose test.txt has no labels: train against val. No lists: a fifth is cut."""
    files = {name: xml(an_object()) for name in "abcde"}

    def splits(root: Path, lists: dict[str, str]) -> list[int]:
        data = opened(voc_folder(root, files, lists))
        return [len(data.train), len(data.test)]

    assert splits(tmp_path / "2007", {"train": "a", "val": "b", "trainval": "a b", "test": "c d e"}) == [2, 3]
    assert splits(tmp_path / "2012", {"train": "a b c", "val": "d e", "trainval": "a b c d e", "test": "x y"}) == [3, 2]
    assert splits(tmp_path / "none", {}) == [4, 1]
    assert splits(tmp_path / "val", {"val": "a b"}) == [3, 2]


def test_voc_segmentation_class(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("val", "b")):
        save(tmp_path / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        mask[2:4, 3:9], mask[1, 3:9] = 20, 255
        image = Image.fromarray(mask, "L").convert("P")
        image.putdata(mask.ravel().tolist())
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        image.save(tmp_path / "SegmentationClass" / f"{name}.png")
        write(tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt", name)
    data = open_class_maps(DenseDataConfig(data=str(tmp_path), validation=0))
    assert len(data.classes) == 21
    assert data.classes[20] == "tvmonitor"
    assert (data.train.class_map(0) == mask).all()
    assert len(data.test) == 1
