"""psvit detect: killed and resumed is uninterrupted, two processes agree, checkpoints, files, and what is refused."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_folders import save, write
from PIL import Image
from tiny import TRAIN as CLASSIFY
from tiny import Cli, log, read, same_weights, saved_behind, start, start_slowed, torchrun, weights

from psvit.dense.data.coco_writer import write_coco
from psvit.dense.data.objects import DenseSource, DenseSubset, Objects
from psvit.dense.data.sets import open_objects
from psvit.dense.data.settings import DenseDataSettings
from psvit.dense.detection.detect import (
    DetectorLearning,
    detect,
    evaluate_checkpoint,
    load_detector,
    train_detector,
)
from psvit.dense.detection.settings import DetectorSettings, DetectSettings
from psvit.dense.recipes import DenseAugment, DenseRecipe
from psvit.dense.splits import ObjectSplit, check_holdout
from psvit.errors import UserError
from psvit.training.machine import open_machine
from psvit.training.recipes import Machine, ModelSettings, RunSettings

CPU = Machine("cpu", "float32", 1)
SCENES = DenseDataSettings(scenes=16, img_size=48, holdout=0.25)  # 16 to train on, 4 of the hold-out
HEADS = DetectorSettings(channels=16, rois=8, proposals=20, head_width=16, mask_layers=1)
MACHINE = ["--device", "cpu", "--threads", "1", "--precision", "float32"]
TRAIN = ["detect", "train", "--scenes", "16", "--img-size", "48", "--holdout", "0.25", "--epochs", "2", *MACHINE,
         "--channels", "16", "--rois", "8", "--proposals", "20", "--head-width", "16", "--mask-layers", "1",
         "--lr", "0.003", "--warmup-epochs", "0"]  # fmt: skip
LONG = [*TRAIN, "--batch-size", "2", "--ema-decay", "0.9", "--drop-path", "0.2", "--color-jitter", "0.3",
        "--save-every", "1", "--keep-state"]  # 8 steps an epoch  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def settings(output: Path, *, model: ModelSettings | None = None, data: DenseDataSettings = SCENES,
             detector: DetectorSettings = HEADS, **recipe: Any) -> DetectSettings:  # fmt: skip
    calm = {"epochs": 1, "batch_size": 4, "lr": 0.003, "warmup_epochs": 0, **recipe}
    return DetectSettings(model or ModelSettings(), data, DenseRecipe(**calm), CPU, RunSettings(str(output)), detector)


# ---- interrupted and resumed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was not interrupted."""
    from psvit.cli import main

    folder = tmp_path_factory.mktemp("whole")
    assert main([*LONG, "--output", str(folder)]) == 0
    return folder


def test_the_hold_out_is_the_trainings(cli: Cli, whole: Path) -> None:
    words = ["detect", "evaluate", whole / "last", "--split", "holdout", *MACHINE]
    figures = json.loads(cli.ok(*words, "--json"))
    kept = read(whole / "last" / "metrics.json")
    assert kept["trained_on"] == {
        "data": "digits-scenes", "holdout": 0.25, "seed": 0, "split_seed": None, "scenes": 16
    }  # fmt: skip
    assert json.loads(cli.ok(*words, "--scenes", "8", "--json"))["images"] == 2  # if others are asked for
    assert figures["images"] == kept["images"] == 4
    assert figures["mask_ap"] == pytest.approx(kept["mask_ap"], abs=1e-3)
    for other in (["--seed", "1"], ["--split-seed", "1"], ["--holdout", "0.5"]):
        said = cli.refused(*words, *other)
        assert "was trained on digits-scenes with --holdout 0.25 --split-seed 0, so it knows images" in said


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_resumed_is_uninterrupted(how: signal.Signals, cli: Cli, tmp_path: Path, whole: Path) -> None:
    process = start_slowed(8, *LONG, "--output", tmp_path)
    step = saved_behind(8, tmp_path, process)
    process.send_signal(how)
    _, said = process.communicate(timeout=600)
    if how == signal.SIGINT:
        assert process.returncode == 2
        assert said.startswith("psvit: stopped at step ")
        assert said.endswith(f" of 16, saved in {tmp_path}: go on with --resume\n")
    else:
        assert process.returncode == -signal.SIGKILL
    assert len(log(tmp_path)) == 1
    said = cli.ok(*LONG, "--output", tmp_path, "--resume")
    assert step <= int(said.partition("resumed at step ")[2].split()[0]) < 16
    for name in ("best", "last"):
        assert same_weights(tmp_path / name, whole / name)
    assert log(tmp_path) == log(whole)
    a, b = (torch.load(folder / "state.pt", weights_only=True) for folder in (tmp_path, whole))
    assert all(torch.equal(a[part][name], b[part][name]) for part in ("model", "ema") for name in a[part])
    assert a["train"]["metric"] == "mask_ap"
    again = cli.ok(*LONG, "--output", tmp_path, "--resume")  # nothing is left to do
    assert "resumed at step 16" in again
    # a finished run whose state is gone knows its best epoch from its log
    (tmp_path / "state.pt").unlink()
    assert "best      epoch" in cli.ok(*LONG, "--output", tmp_path, "--resume")
    assert same_weights(tmp_path / "best", whole / "best")
    said = cli.refused(*LONG, "--output", tmp_path, "--resume", "--rois", "9")
    assert "was trained with --rois 8, not 9: resume with the same settings" in said
    assert "already holds a run" in cli.refused(*LONG, "--output", tmp_path)


def test_it_learns_and_says_what(cli: Cli, tmp_path: Path) -> None:
    said = cli.ok(*TRAIN, "--epochs", "4", "--batch-size", "4", "--holdout", "0", "--output", tmp_path)
    losses = [line["train_loss"] for line in log(tmp_path)]
    assert losses[3] < 0.9 * losses[0]
    assert "network   mask_rcnn on A-AS-AS: 23.79 M MACs" in said
    assert "16 training and 0 hold-out images of 48x48 pixels, 10 classes" in said
    assert "seen at 48 x 48 pixels: 23.79 M MACs are the backbone's, 24.42 M with its pyramid; 144 tokens" in said
    assert "note: " not in said
    assert f"next      psvit detect evaluate {tmp_path / 'best'} --data digits-scenes" in said
    assert same_weights(tmp_path / "best", tmp_path / "last")  # without a hold-out the last is the best


# ---- several processes


NORMS = """
import sys
import torch
from psvit.cli import main
from psvit.dense.detection.detect import DetectorLearning

evaluate = DetectorLearning.evaluate

def evaluated(self):
    for name, model in (("plain", self.plain), ("ema", self.ema.module)):
        norms = {name: value for name, value in model.named_buffers() if "running" in name}
        torch.save(norms, f"{sys.argv[1]}/{name}{self.accelerator.process_index}.pt")
    return evaluate(self)

DetectorLearning.evaluate = evaluated
sys.exit(main(sys.argv[2:]))
"""
"""psvit, which leaves what the batch norms of each process remember when it evaluates."""


def test_two_processes_agree(cli: Cli, tmp_path: Path) -> None:
    """Before any step they are one process; later each samples boxes of its own, so only their figures agree.

    The batch norms of test_resnet have seen other images in each process: what is evaluated is their average.
    """
    words = [*TRAIN, "--model", "test_resnet", "--ema-decay", "0.9", "--output"]
    (tmp_path / "norms.py").write_text(NORMS)
    process = start(tmp_path / "norms.py", tmp_path, *words, tmp_path / "two", "--batch-size", "2", launcher=torchrun())
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("batch     4 images globally = 2 a process x 1 accumulated x 2 processes; 4 steps an epoch") == 1
    lines = log(tmp_path / "two")
    assert [line["step"] for line in lines] == [4, 8]
    assert all(0 < line["train_loss"] < 20 for line in lines)
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    last = weights(tmp_path / "two" / "last")
    for name in ("plain", "ema"):
        first, second = (torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in range(2))
        assert len(first) > 10
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(first[key], last[key]) for key in first)  # the average of weights is what is kept
    # what two processes found together is what one finds with the weights that they left
    said = json.loads(cli.ok("detect", "evaluate", tmp_path / "two" / "last", "--split", "holdout", "--scenes", "16",
                             "--holdout", "0.25", "--batch-size", "2", *MACHINE, "--json"))  # fmt: skip
    for name, value in said.items():
        if name in lines[1] and value is not None:
            assert value == pytest.approx(lines[1][name], abs=1e-3)
    assert said["images"] == 4
    assert "has a global batch of 4, not 2" in cli.refused(*words, tmp_path / "two", "--batch-size", "2", "--resume")


def test_two_processes_are_one_where_nothing_is_sampled(cli: Cli, tmp_path: Path) -> None:
    """RetinaNet learns from all anchors; a loss is a mean over images, so two halves of a batch are the whole."""
    words = [*TRAIN, "--detector", "retinanet", "--drop-path", "0", "--opt", "sgd", "--lr", "0.001", "--output"]
    process = start("-m", "psvit", *words, tmp_path / "two", "--batch-size", "4", launcher=torchrun())
    cli.ok(*words, tmp_path / "one", "--batch-size", "8")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert two == {name: value and pytest.approx(value, rel=1e-4, abs=1e-4) for name, value in one.items()}
    a, b = weights(tmp_path / "one" / "last"), weights(tmp_path / "two" / "last")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-5)


# ---- checkpoints

VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize(
    ("detector", "model"),
    [
        ("mask_rcnn", ModelSettings("AS-A", widths=(16, 32), head_dim=8, patch_size=4)),
        ("faster_rcnn", ModelSettings("resnet18")),
        ("retinanet", ModelSettings("vit_tiny_patch16_224", model_args=VIT)),
    ],
)
def test_a_checkpoint_gives_what_the_training_saw(detector: Any, model: ModelSettings, tmp_path: Path) -> None:
    heads = replace(HEADS, detector=detector, score_threshold=0.0, frozen_norm=detector == "faster_rcnn")
    data = replace(SCENES, img_size=(48, 64))
    best = train_detector(settings(tmp_path, model=model, data=data, detector=heads), lambda line: None)
    figures, opened = evaluate_checkpoint(str(tmp_path / "best"), replace(data, img_size=None), CPU, "holdout", 4)
    assert opened.img_size == (48, 64)
    shown = {name: None if value is None else pytest.approx(value, abs=1e-3) for name, value in best.items()}
    assert figures.to_dict() == {name: shown[name] for name in figures.to_dict()}
    assert (figures.mask is not None) == (detector == "mask_rcnn")
    metrics = read(tmp_path / "best" / "metrics.json")
    assert metrics["backbone_params"] < metrics["params"]
    assert 0 < metrics["macs"] < metrics["pyramid_macs"]
    images = [torch.rand(1, 48, 64), torch.rand(1, 37, 53), torch.rand(1, 90, 30)]
    (one, config), (two, _) = (load_detector(tmp_path / "best") for _ in range(2))
    saved = weights(tmp_path / "best")
    assert all(torch.equal(value, saved[name]) for name, value in one.state_dict().items())
    assert config["detector"]["detector"] == detector
    with torch.inference_mode():
        for a, b in zip(one(images), two(images), strict=True):
            assert len(a["boxes"]) > 0
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_detector_starts_from_a_classifier(cli: Cli, tmp_path: Path) -> None:
    cli.ok(*CLASSIFY, "--epochs", "1", "--output", tmp_path / "classes")
    still = ["--lr", "1e-30", "--weight-decay", "0", "--epochs", "1", "--drop-path", "0"]
    cli.ok(*TRAIN, *still, "--model", tmp_path / "classes" / "best", "--neck", "simple", "--output", tmp_path / "boxes")
    before, after = weights(tmp_path / "classes" / "best"), weights(tmp_path / "boxes" / "last")
    body = {name.removeprefix("backbone.body.model."): value for name, value in after.items() if ".body." in name}
    assert set(before) - set(body) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    for name, value in body.items():
        if name != "pos_embed":
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12)


# ---- files


class Photos(DenseSource):
    """Grey photos of different sizes with one bright square each; the last has none, the first a crowd too."""

    sizes = ((40, 60), (64, 48), (37, 53), (80, 80), (30, 90), (50, 50))

    def __init__(self, has_masks: bool) -> None:
        self.has_masks = has_masks

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, i: int) -> Image.Image:
        image = Image.new("RGB", self.sizes[i][::-1], (60, 60, 60))
        if i < 5:
            image.paste((200, 220, 210), (5, 6, 25, 24))
        return image

    def name(self, i: int) -> str:
        return f"photo {i}"

    def objects(self, i: int) -> Objects:
        boxes = [[5, 6, 25, 24]] * (i < 5) + [[0, 0, 8, 8]] * (i == 0)
        masks = np.zeros((len(boxes), *self.sizes[i]), dtype=bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
        crowd = np.arange(len(boxes)) == 1
        labels = np.full(len(boxes), i % 2, dtype=np.int64)
        return Objects(
            np.asarray(boxes, dtype=np.float32).reshape(-1, 4), labels, masks if self.has_masks else None, crowd
        )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The photos in COCO's layout, with masks and with boxes alone; one file of the test split is broken."""
    found = {}
    for name, has_masks in (("masks", True), ("boxes", False)):
        found[name] = tmp_path_factory.mktemp(name)
        for split in ("train", "val"):
            write_coco(Photos(has_masks), ("cat", "dog"), found[name], split)
        (found[name] / "val" / "000003.png").write_bytes(b"\x89PNG broken")
    return found


def test_photos_of_different_sizes(cli: Cli, folders: dict[str, Path], tmp_path: Path) -> None:
    photos = ["--data", folders["masks"], "--workers", "0", "--short-side", "48", "--long-side", "64"]
    words = ["--epochs", "1", "--lr", "0.003", "--batch-size", "2", "--channels", "8", "--rois", "8", "--proposals",
             "20", "--head-width", "8", "--mask-layers", "1", "--holdout", "0.4", "--model", "vit_tiny_patch16_224",
             "--model-args", json.dumps(VIT), "--output", tmp_path / "run"]  # fmt: skip
    said = cli.ok("detect", "train", *MACHINE, *photos, *words)
    assert "seen at up to 64 x 48 pixels" in said
    evaluate = ["detect", "evaluate", tmp_path / "run" / "best", *MACHINE, "--workers", "0", "--data"]
    found = cli(*evaluate, folders["masks"])
    assert found.code == 0, found.err
    assert "test split, 5 images" in found.out
    assert "skipped 1 unreadable images" in found.err
    assert "000003.png" in found.err
    assert "000003.png" in cli.refused(*evaluate, folders["masks"], "--strict")
    # two processes, of which one has no image left, say once what one process says
    for split, numbers in (("train", range(6)), ("val", range(2))):
        write_coco(DenseSubset(Photos(True), numbers), ("cat", "dog"), tmp_path / "two", split)
    (tmp_path / "two" / "val" / "000001.png").write_bytes(b"\x89PNG broken")
    process = start("-m", "psvit", *evaluate, tmp_path / "two", "--json", launcher=torchrun())
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out) == json.loads(cli.ok(*evaluate, tmp_path / "two", "--json"))
    # of a set with boxes alone, boxes alone are evaluated
    found = cli(*evaluate, folders["boxes"], "--json")
    assert found.code == 0, found.err
    figures = json.loads(found.out)
    assert figures["mask_per_class"] is None
    assert "box_ap" in figures
    assert "mask_ap" not in figures


@pytest.mark.parametrize("size", [(40, 52), (140, 132)])
def test_photos_of_one_size(
    size: tuple[int, int], cli: Cli, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones are seen as they are, by small heads, and large ones are resized; photos of other sizes fit both."""
    monkeypatch.setattr(Photos, "sizes", (size,) * 6)
    for split in ("train", "val"):
        write_coco(Photos(True), ("cat", "dog"), tmp_path / "data", split)
    small = size[0] <= 128
    data = DenseDataSettings(str(tmp_path / "data"), holdout=0.4, workers=0)
    heads = HEADS if small else replace(HEADS, short_side=66)
    model = ModelSettings("vit_tiny_patch16_224", model_args=VIT)
    lines: list[str] = []
    best = train_detector(settings(tmp_path / "run", model=model, data=data, detector=heads), lines.append)
    said = "\n".join(lines)
    assert f"hold-out images of {size[0]}x{size[1]} pixels" in said
    assert f"seen at {'40 x 52' if small else '70 x 66'} pixels" in said
    config = read(tmp_path / "run" / "best" / "config.json")
    assert config["img_size"] == list(size)
    sides = (config["detector"]["short_side"], config["detector"]["long_side"], config["detector"]["anchor_scale"])
    assert sides == ((40, 52, 3) if small else (66, 1333, 8))
    figures, _ = evaluate_checkpoint(str(tmp_path / "run" / "best"), data, CPU, "holdout", 4)
    assert figures.box["ap"] == pytest.approx(best["box_ap"], abs=1e-3)
    found = cli("detect", "evaluate", tmp_path / "run" / "best", *MACHINE, "--workers", "0", "--data", folders["masks"])
    assert found.code == 0, found.err
    assert "test split, 5 images" in found.out


def test_masks_need_masks(cli: Cli, folders: dict[str, Path], tmp_path: Path) -> None:
    said = cli.refused("detect", "train", *MACHINE, "--data", folders["boxes"], "--detector", "mask_rcnn", "--output",
                       tmp_path / "run")  # fmt: skip
    assert "--detector mask_rcnn needs masks, the set has boxes only: take faster_rcnn or retinanet" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mask_rcnn", "faster_rcnn", "retinanet"])
def test_what_is_learned_from_is_what_is_asked_for(name: Any, tmp_path: Path) -> None:
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
    data = open_objects(DenseDataSettings(str(tmp_path), holdout=0, workers=0))
    assert any("masks without a pixel, their box is taken: 4 " in note for note in data.notes)
    still = DenseAugment(hflip=0.0, jitter=(1.0, 1.0))
    given = settings(tmp_path / "run", detector=replace(HEADS, detector=name), augment=still)
    metric = "mask_ap" if name == "mask_rcnn" else "box_ap"
    learn = DetectorLearning(torch.nn.Linear(1, 1), given, open_machine(CPU), data, metric)
    target, truth = learn.split[0, 0].label, data.test.objects(0)
    assert target["boxes"].tolist() == truth.boxes.tolist() == [[10, 10, 50, 70], [5, 80, 65, 82], [70, 70, 80, 80]]
    assert ("masks" in target) == (name == "mask_rcnn")
    if "masks" in target:
        assert target["masks"].sum(dim=(1, 2)).tolist() == truth.areas.tolist() == [800, 120, 100]


def test_a_hold_out_that_cannot_be_read_is_refused_before_training(cli: Cli, tmp_path: Path) -> None:
    write_coco(Photos(True), ("cat", "dog"), tmp_path / "data", "train")
    write_coco(Photos(True), ("cat", "dog"), tmp_path / "data", "val")
    held = open_objects(DenseDataSettings(str(tmp_path / "data"), holdout=0.1)).holdout
    assert len(held) == 1
    Path(held.name(0)).write_bytes(b"\x89PNG broken")
    words = ["detect", "train", *MACHINE, "--data", tmp_path / "data", "--holdout", "0.1", "--workers", "0", "--output"]
    said = cli.refused(*words, tmp_path / "run")
    assert "none of the 1 images of the hold-out can be evaluated, the first is image " in said
    assert "mend it, give another --split-seed, or go without a hold-out by --holdout 0\n" in said
    assert not (tmp_path / "run").exists()
    # one that can be read is enough
    two = ObjectSplit(open_objects(DenseDataSettings(str(tmp_path / "data"), holdout=0.4)).holdout)
    assert sorted(bool(two[i, 0].unreadable) for i in range(len(two))) == [False, True]
    check_holdout(two)


class Crowds(DenseSubset):
    """Images in which all that there is are crowds."""

    def objects(self, i: int) -> Objects:
        found = super().objects(i)
        return replace(found, crowd=np.ones(len(found), dtype=bool))


def test_a_hold_out_without_objects_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_objects(SCENES)
    monkeypatch.setattr(
        "psvit.dense.detection.detect.open_objects", lambda given: replace(data, holdout=Crowds(data.holdout, range(4)))
    )
    told: list[str] = []
    best = train_detector(settings(tmp_path, epochs=2), told.append)
    assert (best["epoch"], best["mask_ap"]) == (2, None)
    assert not any("mask AP" in line for line in told)


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


def test_checkpoints_of_another_task_are_refused(cli: Cli, whole: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(image)
    cli.ok(*CLASSIFY, "--epochs", "1", "--output", tmp_path / "classes")
    classes = tmp_path / "classes" / "best"
    for words in (["evaluate", classes], ["predict", classes, image]):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": {"detector": "yolo"}}, "--detector 'yolo' is not mask_rcnn"),
        ({"detector": {"boxes": 3}}, "config.json describes no detector"),
        ({"backbone": {}}, "config.json describes no detector"),
        ({"backbone": None}, "config.json describes no detector"),
        ({"label_names": ["a", "b"]}, "another class count"),
    ],
)
def test_broken_configs_are_refused(change: Any, message: str, cli: Cli, whole: Path, tmp_path: Path) -> None:
    config = read(whole / "best" / "config.json") | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((whole / "best" / "model.safetensors").read_bytes())
    assert message in cli.refused("detect", "evaluate", tmp_path, *MACHINE)


def test_wrong_commands_are_refused(cli: Cli, whole: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    run = ["--output", tmp_path / "run"]
    for words, message in (
        (["detect", "learn"], "psvit detect does not know 'learn': give train, evaluate or predict"),
        ([*TRAIN, *run, "--rois", "0"], "--rois 0 is not a whole number of at least 1"),
        ([*TRAIN, *run, "--pooling", "1d"], "pools the sequence (1D), so its later stages have no maps"),
        ([*TRAIN, *run, "--model", "psvit_1d_tiny"], "take a 2D variant"),
        ([*TRAIN, *run, "--model", "resnet19"], "no model is called 'resnet19'"),
        ([*TRAIN, *run, "--model", "hiera_tiny_224", "--img-size", "50"], "the backbone cannot take images of"),
        ([*TRAIN, *run, "--resume"], "holds no run to resume"),
        ([*TRAIN, *run, "--data", tmp_path / "nowhere"], "layout of COCO or Pascal VOC\n"),
        (["detect", "evaluate", whole / "best", "--data", folders["masks"], *MACHINE], "it is another set's"),
        (["detect", "evaluate", whole / "best", "--batch-size", "0", *MACHINE], "--batch-size 0 is not a whole number"),
        (["detect", "evaluate", whole / "best", "--holdout", "0", "--split", "holdout", *MACHINE], "was trained on"),
    ):
        assert message in cli.refused(*words), words
    assert not (tmp_path / "run").exists()
    assert "usage: psvit detect train | evaluate | predict" in cli.ok("detect")


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
