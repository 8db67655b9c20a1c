"""psvit detect: folders of photos of any size, predictions, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_folders import save, write
from PIL import Image
from small_dense import CPU, FEW, HEADS, MACHINE, SCENES, TRAIN, VIT, config
from tiny import Cli, read

from psvit.arch.model_config import ModelConfig
from psvit.data.objects.object_sets import open_objects
from psvit.data.objects.objects import DenseSubset, Objects
from psvit.data.objects.objects_config import DenseAugment, DenseDataConfig
from psvit.errors import UserError
from psvit.tasks.dense.dense_checkpoints import load_dense, predict_dense
from psvit.tasks.dense.dense_training import train_dense
from psvit.tasks.detection.detect import Detection
from psvit.tasks.detection.detector_config import DetectorConfig

pytestmark = pytest.mark.usefixtures("one_thread")
EVALUATE = ["detect", "evaluate", *MACHINE, "--workers", "0"]


# ---- folders


def photo_folder(root: Path, has_masks: bool = True) -> Path:
    """Grey photos with one bright square each, in COCO's layout; the last has none, the first has a crowd as well."""
    for split in ("train", "val"):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (root / split).mkdir(parents=True)
        for i, (height, width) in enumerate(((40, 60), (64, 48), (37, 53), (80, 80), (30, 90), (50, 50))):
            image = Image.new("RGB", (width, height), (60, 60, 60))
            if i < 5:
                image.paste((200, 220, 210), (5, 6, 25, 24))
            image.save(root / split / f"{i:06d}.png")
            images.append({"id": i, "file_name": f"{i:06d}.png", "width": width, "height": height})
            for x, y, w, h, crowd in [(5, 6, 20, 18, 0)] * (i < 5) + [(0, 0, 8, 8, 1)] * (i == 0):
                outline = {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]} if has_masks else {}
                annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": i % 2 + 1,
                                    "bbox": [x, y, w, h], "iscrowd": crowd, **outline})  # fmt: skip
        content = {"images": images, "annotations": annotations,
                   "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}  # fmt: skip
        write(root / "annotations" / f"instances_{split}.json", content)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The photos with masks and with boxes alone; one file of the test split is broken."""
    found = {name: photo_folder(tmp_path_factory.mktemp(name), name == "masks") for name in ("masks", "boxes")}
    for folder in found.values():
        (folder / "val" / "000003.png").write_bytes(b"\x89PNG broken")
    return found


@pytest.fixture(scope="module")
def best(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A detector of the photos, and what its training said."""
    heads = DetectorConfig(short_side=48, long_side=64, channels=8, rois=8, proposals=20, head_width=8, mask_layers=1)
    data = DenseDataConfig(str(folders["masks"]), validation=0.4, workers=0)
    folder, lines = tmp_path_factory.mktemp("best"), list[str]()
    model = ModelConfig.of("vit_tiny_patch16_224", model_args=VIT)
    train_dense(Detection, config(folder, model=model, data=data, detector=heads, batch_size=2), lines.append)
    return folder / "best", "\n".join(lines)


def test_photos_of_different_sizes(cli: Cli, folders: dict[str, Path], best: tuple[Path, str]) -> None:
    checkpoint, said = best
    assert "seen at up to 64 x 48 pixels" in said
    evaluate = [*EVALUATE, checkpoint, "--data"]
    found = cli(*evaluate, folders["masks"])
    assert found.code == 0, found.err
    assert "test split (annotations/instances_val.json), 5 images" in found.out
    assert "skipped 1 unreadable images" in found.err
    assert "000003.png" in found.err
    assert "000003.png" in cli.refused(*evaluate, folders["masks"], "--strict")
    # a set without masks gives box metrics only
    found = cli(*evaluate, folders["boxes"], "--json")
    assert found.code == 0, found.err
    metrics = json.loads(found.out)
    assert metrics["mask_per_class"] is None
    assert "box_ap" in metrics
    assert "mask_ap" not in metrics


@pytest.mark.parametrize("name", ["mask_rcnn", "faster_rcnn", "retinanet"])
def test_training_targets_equal_the_annotations(name: Any, tmp_path: Path) -> None:
    """A box larger than its mask, a mask too thin to be drawn and an empty one: boxes as annotated, none left out."""
    boxes = [[10, 10, 40, 60], [5, 80, 60, 2], [70, 70, 10, 10]]
    shapes = [[[10, 10, 50, 10, 50, 30, 10, 30]], [[5, 80.1, 65, 80.2, 65, 80.3, 5, 80.25]],
              {"size": [100, 100], "counts": [10_000]}]  # fmt: skip
    for split in ("train", "val"):
        content = {"images": [{"id": i, "file_name": f"{split}{i}.png", "height": 100, "width": 100} for i in range(2)],
                   "annotations": [{"id": 3 * i + k, "image_id": i, "category_id": 1, "bbox": boxes[k],
                                    "segmentation": shapes[k]} for i in range(2) for k in range(3)],
                   "categories": [{"id": 1, "name": "a"}]}  # fmt: skip
        write(tmp_path / "annotations" / f"instances_{split}.json", content)
        for i in range(2):
            save(tmp_path / "images" / f"{split}{i}.png", (100, 100))
    data = open_objects(DenseDataConfig(str(tmp_path), validation=0, workers=0))
    assert any("masks without a pixel, their box is taken: 4 " in note for note in data.notes)
    task = Detection.of(config(tmp_path / "run", detector=replace(HEADS, detector=name)), data)
    split = task.train_split(data, DenseAugment(hflip=0.0, jitter=(1.0, 1.0)), strict=True)
    target, truth = split[0, 0].label, data.test.objects(0)
    assert target["boxes"].tolist() == truth.boxes.tolist() == [[10, 10, 50, 70], [5, 80, 65, 82], [70, 70, 80, 80]]
    assert ("masks" in target) == (name == "mask_rcnn")
    if "masks" in target:
        assert target["masks"].sum(dim=(1, 2)).tolist() == truth.areas.tolist() == [800, 120, 100]


def test_a_validation_split_that_cannot_be_read_is_refused_before_training(cli: Cli, tmp_path: Path) -> None:
    held = open_objects(DenseDataConfig(str(photo_folder(tmp_path / "data")), validation=0.1)).validation
    assert len(held) == 1
    Path(held.name(0)).write_bytes(b"\x89PNG broken")
    words = ["detect", "train", *MACHINE, "--data", tmp_path / "data", "--validation", "0.1", "--workers", "0"]
    said = cli.refused(*words, "--output", tmp_path / "run")
    assert "none of the 1 images of the validation split can be evaluated, the first is image " in said
    assert "mend it, give another --split-seed, or go without a validation split by --validation 0\n" in said
    assert not (tmp_path / "run").exists()


def test_a_validation_split_without_objects_has_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_objects(FEW)

    class Crowds(DenseSubset):
        def objects(self, i: int) -> Objects:
            return replace(found := super().objects(i), crowd=np.ones(len(found), dtype=bool))

    data = replace(opened, validation=Crowds(opened.validation, range(2)))
    monkeypatch.setattr(Detection, "open_data", staticmethod(lambda *_: data))
    told: list[str] = []
    best = train_dense(Detection, config(tmp_path, data=FEW, epochs=2), told.append)
    assert (best["epoch"], best["mask_ap"]) == (2, None)
    assert not any("mask AP" in line for line in told)


# ---- predictions


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training."""
    folder = tmp_path_factory.mktemp("whole")
    train_dense(Detection, config(folder, data=FEW), lambda line: None)
    return folder


def test_predict(cli: Cli, whole: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    open_objects(SCENES).test.image(0).save(photos / "scene.png")
    Image.new("RGB", (53, 37), (90, 20, 30)).save(photos / "photo.jpg")
    (photos / "broken.png").write_bytes(b"\x89PNG broken")
    words = ["detect", "predict", whole / "best", photos, "--threshold", "0", *MACHINE]
    result = cli(*words, "--json", "--output", tmp_path / "found")
    assert result.code == 0
    assert "broken.png" in result.err
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["photo.jpg", "scene.png"]
    assert {one["label"] for one in lines[1]["objects"]} <= set("0123456789")
    for line, (width, height) in zip(lines, ((53, 37), (48, 48)), strict=True):
        scores = [one["score"] for one in line["objects"]]
        assert scores == sorted(scores, reverse=True)
        assert scores
        for one in line["objects"]:
            x0, y0, x1, y1 = one["box"]
            assert 0 <= x0 <= x1 <= width
            assert 0 <= y0 <= y1 <= height
    drawn = {path.name: Image.open(path).size for path in (tmp_path / "found").iterdir()}
    assert drawn == {"photo.png": (477, 333), "scene.png": (480, 480)}  # enlarged by a whole number
    assert "is there already: give --overwrite" in cli.refused(*words, "--output", tmp_path / "found")
    plain = cli.ok("detect", "predict", whole / "best", photos / "photo.jpg", "--threshold", "0.999", *MACHINE)
    assert plain == f"{photos / 'photo.jpg'}  nothing\n"
    [one] = predict_dense(Detection, str(whole / "best"), [photos / "scene.png"], CPU, score_threshold=0.0)
    assert not isinstance(one, UserError)
    assert one.masks is not None
    assert one.masks.shape == (len(one.boxes), 48, 48)


# ---- refused


def test_predict_without_a_readable_image_is_refused(cli: Cli, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    result = cli("detect", "predict", whole / "best", tmp_path / "broken.png", *MACHINE)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1] == "psvit: none of 1 images can be read"


def test_checkpoints_of_another_task_are_refused(cli: Cli, whole: Path, trained: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(image)
    for words in (["evaluate", trained], ["predict", trained, image]):
        said = cli.refused("detect", *words, *MACHINE)
        assert "is a checkpoint for classes, not for detection: take psvit evaluate or psvit predict" in said
    used = "take psvit detect evaluate or psvit detect predict\n"
    trained = "take a classifier's checkpoint, from which backbones start too; --resume goes on with a run\n"
    for command, hint in (
        (["evaluate", whole / "best", "--data", "digits", *MACHINE], used),
        (["predict", whole / "best", image, *MACHINE], used),
        (["train", "--data", "digits", "--model", whole / "best", "--output", tmp_path / "x", *MACHINE], trained),
        (["detect", "train", "--model", whole / "best", "--output", tmp_path / "x", *MACHINE], trained),
        (["export", whole / "best"], "detectors and segmenters cannot be exported, only classifiers\n"),
    ):
        assert f"is a checkpoint for detection, not for classes: {hint}" in cli.refused(*command)
    config = read(whole / "best" / "config.json") | {"task": "segmentation"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    (tmp_path / "other" / "model.safetensors").write_bytes((whole / "best" / "model.safetensors").read_bytes())
    said = cli.refused("detect", "evaluate", tmp_path / "other", *MACHINE)
    assert "is a checkpoint for segmentation, not for detection: take psvit segment evaluate or psvit" in said


def test_broken_configs_are_refused(whole: Path, tmp_path: Path) -> None:
    config = read(whole / "best" / "config.json")
    (tmp_path / "model.safetensors").write_bytes((whole / "best" / "model.safetensors").read_bytes())
    changes: tuple[tuple[Any, str], ...] = (
        ({"detector": {"detector": "yolo"}}, "--detector 'yolo' is not one of mask_rcnn"),
        ({"detector": {"boxes": 3}}, r"config\.json describes no detector"),
        ({"backbone": {}}, r"config\.json describes no detector"),
        ({"backbone": None}, r"config\.json describes no detector"),
        ({"label_names": ["a", "b"]}, "another class count"),
    )
    for change, message in changes:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            load_dense(Detection, tmp_path)


def test_an_evaluation_on_other_classes_is_refused(cli: Cli, whole: Path, folders: dict[str, Path]) -> None:
    said = cli.refused("detect", "evaluate", whole / "best", *MACHINE, "--data", folders["masks"])
    assert "it is another set's" in said


def test_masks_need_masks(cli: Cli, folders: dict[str, Path], tmp_path: Path) -> None:
    said = cli.refused("detect", "train", *MACHINE, "--data", folders["boxes"], "--detector", "mask_rcnn", "--output",
                       tmp_path / "run")  # fmt: skip
    assert "--detector mask_rcnn needs masks, the set has boxes only: take faster_rcnn or retinanet" in said
    assert not (tmp_path / "run").exists()


def test_wrong_commands_are_refused(cli: Cli, tmp_path: Path) -> None:
    for words, message in (
        (["detect", "learn"], "psvit detect does not know 'learn': give train, evaluate or predict"),
        ([*TRAIN, "--output", tmp_path / "run", "--data", tmp_path / "nowhere"], "layout of COCO or Pascal VOC\n"),
    ):
        assert message in cli.refused(*words), words
    assert not (tmp_path / "run").exists()
    assert "usage: psvit detect train | evaluate | predict" in cli.ok("detect")
