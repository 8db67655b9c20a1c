"""psvit detect predict and what psvit detect refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from coco_writer import write_coco
from PIL import Image
from small_detect_runs import CPU, FEW, MACHINE, SCENES, config
from tiny import Cli, read

from psvit.data.objects.object_sets import open_objects
from psvit.data.objects.objects import DenseSubset
from psvit.errors import UserError
from psvit.tasks.detection.detect import (
    detect,
    load_detector,
    train_detector,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training."""
    folder = tmp_path_factory.mktemp("whole")
    train_detector(config(folder, data=FEW), lambda line: None)
    return folder


# ---- predict


def test_predict(cli: Cli, whole: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    open_objects(SCENES).test.image(0).save(photos / "scene.png")
    Image.new("RGB", (53, 37), (90, 20, 30)).save(photos / "photo.jpg")
    (photos / "broken.png").write_bytes(b"\x89PNG broken")
    words = ["detect", "predict", whole / "best", photos, "--threshold", "0", *MACHINE]
    result = cli(*words, "--json", "--output", tmp_path / "found")
    assert result.code == 0
    assert [line.split(":")[0] for line in result.err.splitlines()[:1]] == ["psvit"]
    assert "broken.png" in result.err
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["photo.jpg", "scene.png"]
    assert {one["label"] for one in lines[1]["objects"]} <= set("0123456789")
    for line, (width, height) in zip(lines, ((53, 37), (48, 48)), strict=True):
        scores = [one["score"] for one in line["objects"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) > 0
        for one in line["objects"]:
            x0, y0, x1, y1 = one["box"]
            assert 0 <= x0 <= x1 <= width
            assert 0 <= y0 <= y1 <= height
    drawn = {path.name: Image.open(path).size for path in (tmp_path / "found").iterdir()}
    assert drawn == {"photo.png": (477, 333), "scene.png": (480, 480)}  # enlarged by a whole number
    assert "is there already: give --overwrite" in cli.refused(*words, "--output", tmp_path / "found")
    plain = cli.ok("detect", "predict", whole / "best", photos / "photo.jpg", "--threshold", "0.999", *MACHINE)
    assert plain == f"{photos / 'photo.jpg'}  nothing\n"
    [one] = detect(str(whole / "best"), [photos / "scene.png"], CPU, 0.0)
    assert not isinstance(one, UserError)
    assert one.masks is not None
    assert one.masks.shape == (len(one.boxes), 48, 48)


def test_predict_refuses(cli: Cli, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = tmp_path / "a.png"
    Image.new("L", (48, 48)).save(image)
    for words, message in (
        ([whole / "best", tmp_path / "empty"], "holds no images"),
        ([whole / "best", tmp_path / "nowhere.png"], "there is no file or folder"),
        ([whole, image], "did you mean"),
        ([tmp_path / "nowhere", image], "there is no checkpoint folder"),
        ([whole / "best", image, "--threshold", "1"], "--threshold 1.0 is not a fraction"),
        ([whole / "best", image, "--output", image], "is a file: give a folder"),
        ([whole / "best", image, "--output", tmp_path, "--overwrite"], "is one of the images"),
    ):
        assert message in cli.refused("detect", "predict", *words, *MACHINE)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    result = cli("detect", "predict", whole / "best", tmp_path / "broken.png", *MACHINE)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1] == "psvit: none of 1 images can be read"


# ---- refused


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
    assert (
        "is a checkpoint for segmentation, not for detection: take psvit segment evaluate or psvit segment predict"
        in said
    )


def test_broken_configs_are_refused(whole: Path, tmp_path: Path) -> None:
    config = read(whole / "best" / "config.json")
    (tmp_path / "model.safetensors").write_bytes((whole / "best" / "model.safetensors").read_bytes())
    changes: tuple[tuple[Any, str], ...] = (
        ({"detector": {"detector": "yolo"}}, "--detector 'yolo' is not mask_rcnn"),
        ({"detector": {"boxes": 3}}, r"config\.json describes no detector"),
        ({"backbone": {}}, r"config\.json describes no detector"),
        ({"backbone": None}, r"config\.json describes no detector"),
        ({"label_names": ["a", "b"]}, "another class count"),
    )
    for change, message in changes:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            load_detector(tmp_path)


def test_an_evaluation_that_would_mislead_is_refused(cli: Cli, whole: Path, tmp_path: Path) -> None:
    write_coco(DenseSubset(open_objects(FEW).test, range(2)), tuple("abcdefghij"), tmp_path, "val")
    write_coco(DenseSubset(open_objects(FEW).train, range(2)), tuple("abcdefghij"), tmp_path, "train")
    evaluate = ["detect", "evaluate", whole / "best", *MACHINE]
    assert "it is another set's" in cli.refused(*evaluate, "--data", tmp_path)
    assert "--batch-size 0 is not a whole number" in cli.refused(*evaluate, "--batch-size", "0")
    assert "was trained on" in cli.refused(*evaluate, "--validation", "0", "--split", "validation")


def test_help_is_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    """Layouts that can be read, and where `auto` ends."""
    from psvit.cli import main

    for words, layouts in (
        (("detect", "train"), "in the layout of COCO or Pascal VOC (default"),
        (("detect", "evaluate"), "in the layout of COCO or Pascal VOC (default"),
        (
            ("segment", "train"),
            "in the layout of ADE20K, COCO-stuff, COCO or Pascal VOC, or of images/ and masks/ (def",
        ),
        (
            ("segment", "evaluate"),
            "in the layout of ADE20K, COCO-stuff, COCO or Pascal VOC, or of images/ and masks/ (",
        ),
    ):
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert f"--data DATA digits-scenes, or a folder {layouts}" in said
        assert "96 px" not in said
        assert ("up to 128 px, else psvit_2d_tiny" in said) == (words[1] == "train")
