"""ONNX files: a file predicts as its checkpoint does, in 8 bits too; files that are not ours."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image
from small_exports import checkpoint, graph, remembered
from tiny import DIGITS, MACHINE, Cli
from torch import nn

import psvit
from psvit import UserError
from psvit.data.datasets import open_data
from psvit.export.export import export
from psvit.export.export_config import ExportConfig
from psvit.export.graph import to_onnx
from psvit.export.onnx_files import calibration_images
from psvit.export.operators import count_operators, onnx_calls
from psvit.export.runtime import OnnxModel, open_classifier, providers_for
from psvit.tasks.classification.evaluate import open_checkpoint


@pytest.fixture(scope="module", autouse=True)
def _graphs_are_written_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psvit.export.onnx_files.to_onnx", remembered)
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, best, and best.onnx, best.int8.onnx, and fixed.onnx for batches of 4."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    best = str(checkpoint(folder / "best"))
    calm = ExportConfig(int8=True, data="digits", rounds=0, calibration=32)
    export(best, calm, DIGITS)
    export(best, ExportConfig(output=str(folder / "fixed.onnx"), batch_size=4, rounds=0))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of seven images."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (9, 14), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


# ---- a file predicts as its checkpoint does


@pytest.mark.parametrize("file", ["best.onnx", "fixed.onnx"])
def test_predict_and_evaluate_take_a_file(cli: Cli, exported: Path, images: Path, file: str) -> None:
    batch = ["--batch-size", 3] if file == "best.onnx" else []  # the other is made for 4

    def classes(name: str) -> list[Any]:
        lines = cli.ok("predict", exported / name, images, *MACHINE, "--json", *batch).splitlines()
        return [json.loads(line) for line in lines]

    for ours, theirs in zip(classes("best"), classes(file), strict=True):
        assert ours["image"] == theirs["image"]
        for a, b in zip(ours["classes"], theirs["classes"], strict=True):
            assert a["label"] == b["label"]
            assert a["probability"] == pytest.approx(b["probability"], abs=2e-5)

    def metrics(name: str) -> dict[str, Any]:
        data = ["--data", "digits", "--validation", "0.02", "--split", "validation", *batch]
        return json.loads(cli.ok("evaluate", exported / name, *data, *MACHINE, "--json"))

    ours, theirs = metrics("best"), metrics(file)
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert (theirs["top1"], theirs["images"], theirs["per_class"]) == (ours["top1"], 30, ours["per_class"])


def test_the_file_tells_what_it_needs(exported: Path) -> None:
    model = OnnxModel(exported / "best.onnx")
    config = json.loads((exported / "best" / "config.json").read_text())
    told = model.metadata
    assert list(model.classes) == told["label_names"] == config["label_names"]
    assert told["preprocessing"] == {"input_size": [1, 12, 12], "mean": [0.3], "std": [0.4], "crop_pct": 1.0,
                                     "interpolation": "bicubic"}  # fmt: skip
    assert (told["version"], told["genotype"], told["precision"]) == (psvit.__version__, "AS-AA", "float32")
    assert told["arch"] == config["psvit"]["arch"]
    assert 0 <= told["largest_difference"] < 1e-4


def test_another_batch_or_precision_than_the_files_is_refused(cli: Cli, exported: Path, images: Path) -> None:
    fixed = exported / "fixed.onnx"
    for command in (["evaluate", fixed], ["predict", fixed, images]):
        said = cli.refused(*command, "--batch-size", 2, *MACHINE)
        assert f"--batch-size 2 is not {fixed}'s, which takes batches of 4 images: leave it out, or export" in said
        cli.ok(*command, "--batch-size", 4, *MACHINE)
    for file, own in (("best.onnx", "float32"), ("best.int8.onnx", "int8")):
        for command in (["evaluate", exported / file], ["predict", exported / file, images]):
            said = cli.refused(*command, "--precision", "bfloat16")
            assert f"--precision bfloat16 is not {exported / file}'s: a file keeps its own, {own}; leave it out" in said
    cli.ok("predict", exported / "best.int8.onnx", images)


def test_another_image_size_is_refused(cli: Cli, exported: Path) -> None:
    with pytest.raises(UserError, match=r"takes images of \(1, 12, 12\)"):
        OnnxModel(exported / "best.onnx")(torch.zeros(1, 1, 8, 8))
    for file in ("best.onnx", "fixed.onnx"):
        assert "is made for (12, 12)" in cli.refused("evaluate", exported / file, "--img-size", 16, *MACHINE)
        cli.ok("evaluate", exported / file, "--img-size", 12, *MACHINE)


# ---- int8


ROWS = ["--data", "digits", "--split", "validation", "--json"]


@pytest.mark.parametrize(
    "flags", [[], ["--reduce-range"], pytest.param(["--batch-size", 40], marks=pytest.mark.slow)], ids=str
)
def test_int8_is_as_right_as_float32(cli: Cli, able: Path, tmp_path: Path, flags: list[Any]) -> None:
    output = tmp_path / "m.onnx"
    told = json.loads(cli.ok("export", able, "--int8", *ROWS[:2], *flags, "--output", output, "--rounds", 0, "--json"))
    assert told["top1"]["float32"] > 60
    assert abs(told["top1"]["int8"] - told["top1"]["float32"]) < 3
    assert told["measured_on"] == {"data": "digits", "split": "validation", "images": 143}
    for name, file in (("float32", output), ("int8", tmp_path / "m.int8.onnx")):
        assert json.loads(cli.ok("evaluate", file, *ROWS, *MACHINE[:4]))["top1"] == told["top1"][name], name
        assert OnnxModel(file).metadata["accuracy"]["top1"] == pytest.approx(told["top1"][name], abs=1e-4)
    assert json.loads(cli.ok("evaluate", able, *ROWS, *MACHINE))["top1"] == told["top1"]["float32"]


def test_int8_quantizes_all_but_the_first_convolution(exported: Path) -> None:
    plain, small = (onnx.load(exported / name) for name in ("best.onnx", "best.int8.onnx"))
    operators = count_operators(onnx_calls(small))
    with_weights = sum(
        isinstance(module, nn.Linear) for module in open_checkpoint(str(exported / "best")).model.modules()
    )
    assert operators["MatMulInteger"] == with_weights
    assert (
        operators["MatMul"] == count_operators(onnx_calls(plain))["MatMul"] + 1 - with_weights
    )  # the head is a Gemm in float32
    from_int8 = {node.output[0] for node in small.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in small.graph.node if node.op_type == "Conv"]
    assert [node.input[1] in from_int8 for node in convolutions] == [False, True]


def test_int8_without_data_leaves_convolutions(cli: Cli, best: Path, tmp_path: Path) -> None:
    text = cli.ok("export", best, "--int8", "--output", tmp_path / "m.onnx", "--rounds", 0, "--reduce-range")
    assert "accuracy  not measured" in text
    operators = count_operators(onnx_calls(onnx.load(tmp_path / "m.int8.onnx")))
    assert operators["MatMulInteger"] > 0
    assert not operators["QuantizeLinear"]


def test_calibration_sees_training_images_alone(best: Path) -> None:
    classifier = open_checkpoint(str(best))
    data = open_data(replace(DIGITS, limit=None, img_size=12))
    batches = list(calibration_images(classifier, data, ExportConfig(calibration=50)))
    assert [batch.shape for batch in batches] == [(count, 1, 12, 12) for count in (16, 16, 16, 2)]
    whole = list(calibration_images(classifier, data, ExportConfig(calibration=9000)))
    assert 1400 < sum(map(len, whole)) <= len(data.train)
    assert len(np.unique(np.concatenate(whole), axis=0)) > 1280, "they are different images"


def test_a_fixed_batch_of_calibration_is_filled_with_its_last_image(best: Path) -> None:
    classifier, data = open_checkpoint(str(best)), open_data(replace(DIGITS, limit=None, img_size=12))
    for calibration, batch_size, batches in ((50, 20, 3), (8, 20, 1), (40, 20, 2)):
        free = np.concatenate(list(calibration_images(classifier, data, ExportConfig(calibration=calibration))))
        assert len(free) == calibration
        config = ExportConfig(calibration=calibration, batch_size=batch_size)
        fixed = list(calibration_images(classifier, data, config))
        assert [len(batch) for batch in fixed] == [batch_size] * batches
        filled = np.concatenate(fixed)
        assert (filled[:calibration] == free).all()
        assert (filled[calibration:] == free[-1]).all()


# ---- files that are not ours


@pytest.mark.parametrize(("key", "value", "message"), [
    ("preprocessing", '{"input_size": [1, 16, 16], "mean": [0], "std": [1], "crop_pct": 1, "interpolation": "bicubic"}',
     "does not take images of (1, 16, 16) alone"),
    ("label_names", json.dumps(list("abcdefghijkl")), "names 12 classes, but gives logits of the shape ['batch', 10]"),
    *(("label_names", broken, "holds no class names and preprocessing of psvit")
      for broken in ("{}", '["a", 1]', "no json", '"ab"', None)),
])  # fmt: skip
def test_wrong_metadata_are_refused(exported: Path, tmp_path: Path, key: str, value: str | None, message: str) -> None:
    model = onnx.load(exported / "best.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == f"psvit.{key}")
    if value is None:
        model.metadata_props.remove(entry)
    else:
        entry.value = value
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(UserError, match=re.escape(message)):
        open_classifier(str(tmp_path / "wrong.onnx"))


def test_files_that_are_not_ours_are_refused(cli: Cli, images: Path, tmp_path: Path) -> None:
    onnx.save(graph([helper.make_node("Relu", ["x"], ["y"])]), tmp_path / "foreign.onnx")
    (tmp_path / "text.onnx").write_text("no")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, message in (
        ("foreign.onnx", "holds no class names and preprocessing of psvit"),
        ("text.onnx", "is not an ONNX file that ONNX Runtime can run"),
        ("empty.onnx", "is not an ONNX file that ONNX Runtime can run"),
        ("missing.onnx", "there is no file"),
    ):
        for arguments in (["predict", tmp_path / name, images], ["evaluate", tmp_path / name]):
            assert message in cli.refused(*arguments), name


def test_what_is_no_checkpoint_says_what_opens_it(cli: Cli, images: Path, tmp_path: Path) -> None:
    expected = {"x.pt2": "torch.export.load alone", "x.torchscript.pt": "torch.jit.load alone", "x.pt": "a pickle"}
    for name, message in expected.items():
        (tmp_path / name).touch()
        assert message in cli.refused("predict", tmp_path / name, images, *MACHINE)
    (tmp_path / "x.onnx").touch()
    assert "(an ONNX file of psvit export: psvit predict and evaluate)" in cli.refused("export", tmp_path / "x.onnx")


def test_a_file_runs_on_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    assert providers_for("cpu", [cuda, cpu]) == [cpu]
    assert providers_for("auto", [cpu]) == [cpu]
    with pytest.raises(UserError, match="--device cuda:7 is not on this machine"):
        providers_for("cuda:7", [cuda, cpu])
    monkeypatch.setattr("psvit.export.runtime.resolve_device", lambda name: torch.device("cuda:1"))
    for device in ("auto", "cuda:1"):
        assert providers_for(device, [cuda, cpu]) == [(cuda, {"device_id": 1}), cpu]
    assert providers_for("auto", [cpu]) == [cpu]
    with pytest.raises(UserError, match=rf"which has {cpu}: give --device cpu, or pip install onnxruntime-gpu"):
        providers_for("cuda:1", [cpu])


def test_a_missing_package_is_named(
    cli: Cli, exported: Path, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UserError, match=r'pip install "psvit\[export\]"'):
                to_onnx(nn.Linear(1, 1), (1, 1, 1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for words in (["export", exported / "best", "--output", tmp_path / "m.onnx"],
                  ["predict", exported / "best.onnx", images]):  # fmt: skip
        assert 'pip install "psvit[export]"' in cli.refused(*words)
