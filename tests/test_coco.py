"""Folders in the layout of COCO: what is read, mended, and named."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_folders import HEIGHT, SQUARE, WIDTH, coco, coco_folder, filled, maps, objects, opened, refusal, save, write
from PIL import ImageFile

from psvit.data.loading import eval_batches
from psvit.data.objects.batches import ClassMapSplit, ObjectSplit
from psvit.data.objects.object_sets import open_class_maps
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.data.objects.outlines import mask_tools
from psvit.errors import UserError


def test_coco_ids_with_gaps_become_class_numbers(tmp_path: Path) -> None:
    data = opened(coco_folder(tmp_path, coco([{"category_id": k} for k in (90, 3, 7)])))
    assert data.classes == ("ant", "cat", "zebra")
    found = objects(data)
    assert found.labels.tolist() == [2, 0, 1]
    assert found.boxes.tolist() == [[2, 3, 8, 9]] * 3
    assert (found.masks, data.has_masks, data.img_size, data.in_chans) == (None, False, (HEIGHT, WIDTH), 3)
    assert found.areas.tolist() == [36, 36, 36]
    assert len(data.test) == 1
    assert data.test.objects(0).masks is None
    assert data.train.image(0).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("missing", ["pycocotools.mask", "faster_coco_eval.core.mask"])
def test_coco_masks_of_every_kind_are_the_same_pixels(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A polygon, two polygons, runs of pixels as a list, the same as text, a crowd; by either package."""
    monkeypatch.setitem(sys.modules, missing, None)
    square = filled(2, 3, 8, 9)
    column = [2 * HEIGHT + 3] + [6, HEIGHT - 6] * 5 + [6]
    listed = {"size": [HEIGHT, WIDTH], "counts": [*column, HEIGHT * WIDTH - sum(column)]}
    text = mask_tools().encode(np.asfortranarray(square.astype(np.uint8)))["counts"].decode()
    kinds = [
        {"segmentation": [SQUARE]},
        {"segmentation": [[2, 3, 5, 3, 5, 9, 2, 9], [5, 3, 8, 3, 8, 9, 5, 9]]},
        {"segmentation": listed},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": text}},
        {"segmentation": listed, "iscrowd": 1},
    ]
    data = opened(coco_folder(tmp_path, coco(kinds)))
    found = objects(data)
    assert data.has_masks
    assert found.masks is not None
    assert found.masks.dtype == bool
    assert (found.masks == square).all()
    assert found.crowd.tolist() == [False] * 4 + [True]
    assert found.areas.tolist() == [36] * 5
    assert objects(data, 1).masks.shape == (0, HEIGHT, WIDTH)  # type: ignore[union-attr]
    assert any("images without objects, kept as background: 1" in note for note in data.notes)


def test_coco_boxes_outside_of_the_image(tmp_path: Path) -> None:
    boxes = [
        [-5, -5, 10, 10], [15, 10, 50, 50], [2, 3, 0, 6], [2, 3, 6, -6], [30, 3, 6, 6], [2, 3, 6],
        [2, 3, 6, float("nan")], "2 3 6 6", [19.5, 3, 1.0, 6], None,
    ]  # fmt: skip
    data = opened(coco_folder(tmp_path, coco([{"bbox": box} for box in boxes])))
    assert objects(data).boxes.tolist() == [[0, 0, 5, 5], [15, 10, 20, 16], [19.5, 3, 20, 9]]
    notes = "\n".join(data.notes)
    assert "boxes that stand out of their image, clipped: 2 ('annotation 0', 'annotation 1')" in notes
    assert "boxes without area in their image, dropped: 3 ('annotation 2', 'annotation 3', 'annotation 4')" in notes
    assert "boxes that are not four numbers, dropped: 4 ('annotation 5'" in notes


def test_coco_masks_that_cannot_be_drawn_become_boxes(tmp_path: Path) -> None:
    size = [HEIGHT, WIDTH]
    wrong: list[Any] = [
        [], None, [[1, 2, 3, 4]], [[2, 3, 8, 3, 8, float("inf")]], [["a"] * 6], "text", {"size": size},
        {"size": [5, 5], "counts": [25]}, {"size": size, "counts": [1, 2, 3]}, {"size": size, "counts": "z" * 40},
    ]  # fmt: skip
    # too thin, outside the image, drawn back over itself, an empty run
    empty: list[Any] = [
        [[2, 3.1, 8, 3.2, 8, 3.3, 2, 3.25]], [[30, 3, 36, 3, 36, 9]], [[2, 3, 8, 9, 2, 3, 8, 9]],
        {"size": size, "counts": [HEIGHT * WIDTH]},
    ]  # fmt: skip
    data = opened(coco_folder(tmp_path, coco([{"segmentation": s} for s in [[SQUARE], *wrong, *empty]])))
    found = objects(data)
    assert found.masks is not None
    assert len(found.masks) == 1 + len(wrong) + len(empty)
    assert (found.masks == filled(2, 3, 8, 9)).all()
    notes = "\n".join(data.notes)
    assert f"masks that cannot be drawn, their box is taken: {len(wrong) - 2} (" in notes
    assert f"objects without a mask, their box is taken: {len(wrong) + len(empty)}" in notes
    assert f"masks without a pixel, their box is taken: {len(empty)} (" in notes


def test_a_set_whose_masks_are_all_empty_has_none(tmp_path: Path) -> None:
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    assert not opened(coco_folder(tmp_path, coco([{"segmentation": empty}]))).has_masks


def test_images_that_cannot_be_used_are_named_with_the_reason(tmp_path: Path) -> None:
    root = coco_folder(
        tmp_path, coco([{}, {"image_id": 11, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "P1"}}])
    )
    save(root / "images" / "0.png", (HEIGHT, WIDTH))
    for split in (ObjectSplit(opened(root).train), ClassMapSplit(opened(root).train)):
        turned, undrawn = (split[i, 0].unreadable[0] for i in range(2))
        assert turned.startswith(f"{root}/images/0.png (is {HEIGHT} x {WIDTH} pixels, but its annotations are for ")
        assert undrawn.startswith(f"{root}/images/1.png (a mask cannot be decoded")
        with pytest.raises(UserError, match=r"none of 2 images can be read, the first is .*0\.png \(is 16 x 20 "):
            list(eval_batches(split, batch_size=2))


def test_coco_images_that_are_not_there(tmp_path: Path) -> None:
    root = coco_folder(tmp_path, coco([{}, {"image_id": 12}], images=4))
    data = opened(root)
    assert len(data.train) == 2
    assert "instances_train.json: images not on disk, skipped: 2 ('2.png', '3.png')" in data.notes
    assert "images not on disk: '2.png'" in refusal(root, strict=True)
    (root / "images" / "0.png").unlink()
    (root / "images" / "1.png").unlink()
    assert "none of its 4 images can be read" in refusal(root)


def test_coco_annotations_of_what_is_not_listed(tmp_path: Path) -> None:
    data = opened(coco_folder(tmp_path, coco([{}, {"image_id": 99}, {"category_id": 1}, {"id": 0}])))
    assert len(objects(data)) == 2
    notes = "\n".join(data.notes)
    assert "annotations of an image that is not listed, dropped: 1 ('1')" in notes
    assert "annotations of a category that is not listed, dropped: 1 ('2')" in notes
    assert "annotation ids used twice, both kept: 1 ('0')" in notes


def test_coco_without_sizes_reads_them_from_the_files(tmp_path: Path) -> None:
    content = coco([{"bbox": [2, 3, 50, 6]}])
    content["images"] = [{"id": 10 + i, "file_name": f"{i}.png"} for i in range(3)]
    root = coco_folder(tmp_path, content, images=3)
    (root / "images" / "2.png").write_bytes(b"no image")
    data = opened(root)
    assert objects(data).boxes.tolist() == [[2, 3, WIDTH, 9]]
    assert len(data.train) == 2
    assert any("images that cannot be read, skipped: 1" in note for note in data.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ([], "holds a list, not an object"),
        (coco([]) | {"annotations": [{"id": 1, "category_id": 7}]}, "entry 0 of its 'annotations' has no 'image_id'"),
        (coco([]) | {"images": []}, "lists no images: there is nothing to read"),
        (coco([]) | {"images": [{"id": 1, "file_name": "0.png"}] * 2}, "gives several images one id: '1'"),
        (coco([]) | {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
         "gives several categories the id 1: 'a' and 'b'"),
    ],
)  # fmt: skip
def test_coco_files_that_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    assert message in refusal(coco_folder(tmp_path, content))


def test_coco_names_used_twice_are_told_apart(tmp_path: Path) -> None:
    twice = [{"id": 1, "name": "a"}, {"id": 5, "name": "a"}, {"id": 2, "name": "b"}]
    root = coco_folder(tmp_path, coco([{"category_id": 5}]) | {"categories": twice})
    (root / "annotations" / "instances_val.json").unlink()
    data = opened(root)
    assert data.classes == ("a (1)", "b", "a (5)")


def test_coco_test_split_has_its_own_ids_of_the_same_names(tmp_path: Path) -> None:
    root = coco_folder(tmp_path, coco([{}]))
    val = coco([{"category_id": 1}], 1, "val") | {"categories": [{"id": 1, "name": "zebra"}]}
    write(root / "annotations" / "instances_val.json", val)
    assert opened(root).test.objects(0).labels.tolist() == [2]
    val["categories"].append({"id": 2, "name": "yak"})
    write(root / "annotations" / "instances_val.json", val)
    assert "categories that the training split lacks: 'yak'" in refusal(root)


@pytest.mark.parametrize(
    ("json_at", "image_at"),
    [
        ("annotations/instances_train2017.json", "train2017/0.png"),
        ("annotations/instances_train2017.json", "images/train2017/0.png"),
        ("train/_annotations.coco.json", "train/0.png"),
        ("result.json", "images/0.png"),
    ],
)
def test_coco_layouts(tmp_path: Path, json_at: str, image_at: str) -> None:
    save(tmp_path / image_at)
    write(tmp_path / json_at, coco([{}], 1))
    write(tmp_path / "annotations" / "captions_train2017.json", {})
    write(tmp_path / "package.json", {"name": "no data"})
    if "train" in json_at:
        test = json_at.replace("train", "val")
        save(tmp_path / image_at.replace("train", "val"))
        write(tmp_path / test, coco([{}], 1))
        data = opened(tmp_path)
        assert len(data.train) == len(data.test) == 1
        assert "val" in data.test.name(0) or "images/0" in data.test.name(0)
    else:
        assert len(opened(tmp_path).train) == 1


def test_coco_folders_that_are_unclear(tmp_path: Path) -> None:
    assert "holds no boxes: give a folder with annotations/instances_train.json" in refusal(tmp_path)
    write(tmp_path / "annotations" / "instances_val.json", coco([]))
    assert "has annotations in 'instances_val.json', but none to train on" in refusal(tmp_path)
    for year in (2014, 2017):
        write(tmp_path / "annotations" / f"instances_train{year}.json", coco([]))
    assert "several annotation files for its train split" in refusal(tmp_path)


def test_coco_masks_as_a_class_map(tmp_path: Path) -> None:
    """0 is the background; a small object shows upon a large one, whatever their order."""
    small = [4, 5, 6, 5, 6, 7, 4, 7]
    root = coco_folder(tmp_path, coco([{"segmentation": [small], "category_id": 90}, {"segmentation": [SQUARE]}]))
    data = open_class_maps(DenseDataConfig(data=str(root), validation=0))
    assert data.classes == ("background", "ant", "cat", "zebra")
    expected = 2 * filled(2, 3, 8, 9)
    expected[5:7, 4:6] = 3
    assert (data.train.class_map(0) == expected).all()
    assert (data.train.class_map(1) == 0).all()
    write(root / "annotations" / "instances_train.json", coco([{}]))
    with pytest.raises(UserError, match="has boxes, but no masks"):
        open_class_maps(DenseDataConfig(data=str(root), validation=0))


@pytest.mark.parametrize("annotation", [None, {"bbox": [2, 3, 0, 6]}, {"image_id": 99}])
def test_coco_without_an_object_to_learn_from_is_refused(tmp_path: Path, annotation: dict[str, Any] | None) -> None:
    root = coco_folder(tmp_path, coco([annotation] if annotation else []))
    said = refusal(root)
    assert "no image of the training split has an object that is neither a crowd" in said
    assert ("dropped: 1 (" in said) == (annotation is not None)
    with pytest.raises(UserError, match="no image of the training split has an object: "):
        maps(root)


def test_coco_crowds_alone_give_class_maps_but_no_boxes(tmp_path: Path) -> None:
    root = coco_folder(tmp_path, coco([{"iscrowd": 1, "segmentation": [SQUARE]}]))
    assert "no image of the training split has an object that is neither a crowd" in refusal(root)
    assert maps(root).train.class_map(0).max() == 2


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = coco_folder(tmp_path, coco([{"segmentation": [SQUARE]}]))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    data = opened(root)
    assert objects(data).masks is not None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("faster_coco_eval.core.mask", "pycocotools.mask"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r'masks of COCO need faster-coco-eval: pip install "psvit\[dense\]"'):
        mask_tools()
