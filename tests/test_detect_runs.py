"""psvit detect: stopped and resumed is uninterrupted, two processes agree, checkpoints evaluate as the training did."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_dense import CPU, FEW, HEADS, MACHINE, TRAIN, VIT, config
from tiny import Cli, log, read, same_weights, start, stop_at, torchrun, weights

from psvit.arch.model_config import ModelConfig
from psvit.cli import main
from psvit.tasks.dense.dense_checkpoints import evaluate_dense, load_dense
from psvit.tasks.dense.dense_training import train_dense
from psvit.tasks.detection.detect import Detection

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = ["--ema-decay", "0.9", "--drop-path", "0.2", "--color-jitter", "0.3", "--save-every", "1", "--keep-state"]
SHORT = [*TRAIN, *KEPT, "--batch-size", "4"]  # 4 steps an epoch
# ---- interrupted and resumed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([*SHORT, "--output", str(folder)]) == 0
    return folder


def test_the_validation_split_is_that_of_the_training(cli: Cli, whole: Path) -> None:
    words = ["detect", "evaluate", whole / "last", "--split", "validation", *MACHINE]
    found = json.loads(cli.ok(*words, "--json"))
    kept = read(whole / "last" / "metrics.json")
    assert kept["trained_on"] == {
        "data": "digits-scenes", "validation": 0.25, "seed": 0, "split_seed": None, "scenes": 16
    }  # fmt: skip
    assert json.loads(cli.ok(*words, "--scenes", "8", "--json"))["images"] == 2  # as asked for
    assert found["images"] == kept["images"] == 4
    assert found["mask_ap"] == pytest.approx(kept["mask_ap"], abs=1e-3)
    for other in (["--seed", "1"], ["--split-seed", "1"], ["--validation", "0.5"]):
        said = cli.refused(*words, *other)
        assert "was trained on digits-scenes with --validation 0.25 --split-seed 0, so it knows images" in said


def check_equal(run: Path, whole: Path) -> None:
    for name in ("best", "last"):
        assert same_weights(run / name, whole / name)
    assert log(run) == log(whole)
    a, b = (torch.load(folder / "state.pt", weights_only=True) for folder in (run, whole))
    assert all(torch.equal(a[part][name], b[part][name]) for part in ("model", "ema") for name in a[part])
    assert a["train"]["metric"] == "mask_ap"


def test_stopped_and_resumed_is_uninterrupted(
    cli: Cli, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        said = cli.refused(*SHORT, "--output", tmp_path)
    assert said == f"psvit: stopped at step 6 of 8, saved in {tmp_path}: go on with --resume\n"
    assert "resumed at step 6" in cli.ok(*SHORT, "--output", tmp_path, "--resume")
    check_equal(tmp_path, whole)
    assert "there is nothing to resume" in cli.ok(*SHORT, "--output", tmp_path, "--resume")
    assert same_weights(tmp_path / "best", whole / "best")
    said = cli.refused(*SHORT, "--output", tmp_path, "--resume", "--rois", "9")
    assert "was trained with --rois 8, not 9: resume with the same settings" in said
    assert "already holds a run" in cli.refused(*SHORT, "--output", tmp_path)


def test_it_learns_and_reports(cli: Cli, tmp_path: Path) -> None:
    said = cli.ok(*TRAIN, "--epochs", "4", "--batch-size", "4", "--validation", "0", "--output", tmp_path)
    losses = [line["train_loss"] for line in log(tmp_path)]
    assert losses[3] < 0.9 * losses[0]
    assert "network   mask_rcnn on A-AS-AS: 23.79 M MACs" in said
    assert "16 training and 0 validation images of 48x48 pixels, 10 classes" in said
    assert "seen at 48 x 48 pixels: 23.79 M MACs are the backbone's, 24.42 M with its pyramid; 144 tokens" in said
    assert "note: " not in said
    assert f"next      psvit detect evaluate {tmp_path / 'best'} --data digits-scenes" in said
    assert same_weights(tmp_path / "best", tmp_path / "last")  # without a validation split the last is the best


# ---- several processes


@pytest.mark.slow
def test_two_processes_agree(cli: Cli, tmp_path: Path) -> None:
    """Each samples boxes of its own, and its batch norms see images of its own: what is evaluated is their average."""
    words = [*TRAIN, "--model", "test_resnet", "--ema-decay", "0.9", "--output", tmp_path, "--batch-size", "2"]
    process = start("-m", "psvit", *words, launcher=torchrun())
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("batch     4 images globally = 2 a process x 1 accumulated x 2 processes; 4 steps an epoch") == 1
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [4, 8]
    assert lines[1]["train_loss"] < lines[0]["train_loss"] < 20
    # one process evaluates their weights as they did together
    said = json.loads(cli.ok("detect", "evaluate", tmp_path / "last", "--split", "validation", *MACHINE, "--json"))
    for name in ("box_ap", "box_ap50", "images"):
        assert said[name] == pytest.approx(lines[1][name], abs=1e-3)
    assert "has a global batch of 4, not 2" in cli.refused(*words, "--resume")


# ---- checkpoints


@pytest.mark.parametrize(
    ("detector", "model"),
    [
        ("mask_rcnn", ModelConfig.of("AS-A", widths=(16, 32), head_dim=8, patch_size=4)),
        ("faster_rcnn", ModelConfig.of("test_resnet")),
        ("retinanet", ModelConfig.of("vit_tiny_patch16_224", model_args=VIT)),
    ],
)
def test_a_checkpoint_evaluates_as_its_training_did(detector: Any, model: ModelConfig, tmp_path: Path) -> None:
    heads = replace(HEADS, detector=detector, score_threshold=0.0, frozen_norm=detector == "faster_rcnn")
    data = replace(FEW, img_size=(48, 64))
    best = train_dense(Detection, config(tmp_path, model=model, data=data, detector=heads), lambda line: None)
    data = replace(data, img_size=None)
    found, opened = evaluate_dense(Detection, str(tmp_path / "best"), data, CPU, "validation", 4)
    assert opened.img_size == (48, 64)
    shown = {name: None if value is None else pytest.approx(value, abs=1e-3) for name, value in best.items()}
    assert found.to_dict() == {name: shown[name] for name in found.to_dict()}
    assert (found.mask is not None) == (detector == "mask_rcnn")
    metrics = read(tmp_path / "best" / "metrics.json")
    assert metrics["backbone_params"] < metrics["params"]
    assert 0 < metrics["macs"] < metrics["pyramid_macs"]
    images = [torch.rand(1, 48, 64), torch.rand(1, 37, 53), torch.rand(1, 90, 30)]
    (one, task), (two, _) = (load_dense(Detection, tmp_path / "best") for _ in range(2))
    saved = weights(tmp_path / "best")
    assert all(torch.equal(value, saved[name]) for name, value in one.state_dict().items())
    assert task.head.detector == detector
    with torch.inference_mode():
        for a, b in zip(one(images), two(images), strict=True):
            assert len(a["boxes"]) > 0
            assert all(torch.equal(a[name], b[name]) for name in a)
