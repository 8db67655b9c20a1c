"""Exported files: plain operators, the network's own numbers, and a file that predicts as its checkpoint does."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from PIL import Image
from tiny import DIGITS, MACHINE, Cli
from torch import Tensor, nn

import psvit
from psvit import Arch, UserError
from psvit.export.check import Timing, check_difference, largest_difference, rows_of, time_in_turns
from psvit.export.export import METADATA, export
from psvit.export.graph import example_images, frozen_copy, to_onnx, to_program
from psvit.export.onnx_files import calibration_images
from psvit.export.operators import check_onnx, check_program, onnx_operators, program_operators
from psvit.export.runtime import InBatches, OnnxModel, open_classifier, providers_for, training_of
from psvit.export.settings import ExportSettings
from psvit.model.build import build_arch
from psvit.training.checkpoints import cut_of, save_checkpoint
from psvit.training.data import open_data
from psvit.training.evaluate import open_checkpoint
from psvit.training.settings import DataSettings

SMALL: dict[str, Any] = {"widths": (16, 24), "head_dim": 8, "patch_size": 4}
ARCHS = {
    "2d, map, max": Arch("AS-AA", **SMALL),
    "2d, projections, avg, depthwise, class token, pool first": Arch(
        "AS-A",
        **SMALL,
        sharing="projections",
        pool_op="avg",
        pool_conv="depthwise",
        class_token=True,
        pool_order="pool-conv",
    ),
    "1d, map, stride": Arch("AS-A", **SMALL, pooling="1d", pool_op="stride"),
    "1d, projections, max, overlap": Arch("AS-A", **SMALL, pooling="1d", sharing="projections", stride=2),
}
NETWORKS = [*ARCHS, "deit"]

PLAIN_ONNX = {
    "Add", "AveragePool", "Concat", "Conv", "Expand", "Gather", "Gelu", "Gemm", "LayerNormalization", "MatMul",
    "MaxPool", "Mul", "ReduceMean", "Reshape", "Shape", "Slice", "Softmax", "Split", "Squeeze", "Transpose",
}  # fmt: skip
PLAIN_ATEN = {
    "_assert_tensor_metadata", "add", "alias", "avg_pool2d", "cat", "chunk", "contiguous", "conv2d", "dropout",
    "expand", "flatten", "gelu", "layer_norm", "linear", "matmul", "max_pool2d", "mean", "mul", "pad", "permute",
    "reshape", "scaled_dot_product_attention", "select", "slice", "softmax", "sym_size", "to", "transpose", "unbind",
}  # fmt: skip


def network(name: str) -> tuple[Any, tuple[int, int, int]]:
    """A tiny network for images whose sides the stride does not divide, and the size of these."""
    if name == "deit":
        args = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
        return frozen_copy(timm.create_model("deit_tiny_patch16_224", **args)), (3, 16, 16)
    return frozen_copy(build_arch(ARCHS[name], (18, 22), in_chans=1, num_classes=5)), (1, 18, 22)


def checkpoint(
    folder: Path,
    arch: Arch = ARCHS["2d, map, max"],
    chans: int = 1,
    side: int = 12,
    trained: DataSettings | None = None,
) -> Path:
    """A checkpoint of digits, whose weights are random; it tells that it was trained on `trained`."""
    model = build_arch(arch, side, in_chans=chans, num_classes=10)
    with torch.no_grad():
        model.head.weight.mul_(20)  # type: ignore[operator, union-attr]  # so that images have different classes
    preprocessing = {"input_size": [chans, side, side], "mean": [0.3] * chans, "std": [0.4] * chans,
                     "interpolation": "bicubic", "crop_pct": 1.0}  # fmt: skip
    classes = open_data(DIGITS).classes
    metrics = {"top1": 12.5, "images": 30} | ({"trained_on": cut_of(trained)} if trained else {})
    save_checkpoint(folder, model, model.state_dict(), preprocessing, classes, metrics)
    return folder


@pytest.fixture
def best(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "run" / "best")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, best, and best.onnx, best.int8.onnx, and fixed.onnx for batches of 4."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    best = str(checkpoint(folder / "best"))
    calm = ExportSettings(int8=True, data="digits", rounds=0, calibration=32)
    export(best, calm, DIGITS)
    export(best, ExportSettings(output=str(folder / "fixed.onnx"), batch_size=4, rounds=0))
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


# ---- graphs


@pytest.mark.parametrize(("name", "batch_size"), [*((name, None) for name in NETWORKS), ("1d, map, stride", 2)])
def test_an_onnx_graph_is_plain_and_computes_the_same(name: str, batch_size: int | None, tmp_path: Path) -> None:
    import onnxruntime

    model, size = network(name)
    proto = to_onnx(model, size, batch_size)
    assert set(onnx_operators(proto)) <= PLAIN_ONNX
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (node,) = session.get_inputs()
    assert node.shape == ["batch" if batch_size is None else 2, *size]
    for count in (1, 2, 5) if batch_size is None else (2,):
        inputs = example_images(size, count, seed=count)
        (logits,) = session.run(None, {"images": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_of_torch_is_plain(name: str) -> None:
    model, size = network(name)
    operators = program_operators(to_program(model, size))
    assert {name.removeprefix("aten.") for name in operators} <= PLAIN_ATEN
    assert operators["aten.linear"] == sum(isinstance(module, nn.Linear) for module in model.modules()) + sum(
        type(module).__name__ == "ShareProjections" for module in model.modules()
    )  # each once; tied projections of a layer that shares them again


def test_nothing_of_our_source_is_in_the_file() -> None:
    proto = to_onnx(*network("2d, map, max"))
    assert b"site-packages" not in proto.SerializeToString()
    assert str(Path(psvit.__file__).parent).encode() not in proto.SerializeToString()


def graph(nodes: list[Any], *, initializers: list[Any] | None = None) -> onnx.ModelProto:
    """A model of some nodes, x (2, 3) -> y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], initializer=initializers or []))


@pytest.mark.parametrize("operator", ["TopK", "ScatterND", "GatherND", "NonZero", "Resize", "Loop"])
def test_an_onnx_graph_with_a_banned_operator_is_refused(operator: str) -> None:
    model = graph([helper.make_node(operator, ["x", "x"], ["y"], name="here")])
    with pytest.raises(UserError, match=rf"the operator {operator} \(node here\)"):
        check_onnx(model)


def test_a_banned_operator_in_a_branch_or_a_function_is_found() -> None:
    inner = helper.make_graph([helper.make_node("TopK", ["x", "k"], ["v"], name="deep")], "branch", [], [])
    node = helper.make_node("Foreign", ["x"], ["y"], domain="elsewhere")
    node.attribute.append(helper.make_attribute("body", inner))
    assert onnx_operators(graph([node])) == {"elsewhere.Foreign": 1, "TopK": 1}
    with pytest.raises(UserError, match="deep"):
        check_onnx(graph([node]))
    model = graph([helper.make_node("F", ["x"], ["y"], domain="local")])
    steps = [helper.make_node("If", ["x"], ["y"], name="choice")]
    model.functions.append(helper.make_function("local", "F", ["x"], ["y"], steps, model.opset_import))
    with pytest.raises(UserError, match="the operator If"):
        check_onnx(model)


def test_onnx_may_gather_at_constants_but_not_by_data() -> None:
    index = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    gather = helper.make_node("Gather", ["x", "i"], ["y"], name="g")
    assert check_onnx(graph([gather], initializers=[index])) == {"Gather": 1}
    cast = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64)
    with pytest.raises(UserError, match="Gather at indices that the data choose"):
        check_onnx(graph([cast, gather]))


class Calls(nn.Module):
    """A function of images as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constant", torch.tensor([1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constant)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x, i: x.topk(1).values, "aten.topk"),
        (lambda x, i: x[(x.sum(1) > 0).long()], "aten.index at indices"),
        (lambda x, i: x.index_select(0, x.argmax(0)), "aten.index_select at indices"),
        (lambda x, i: x.scatter(0, x.long().clamp(0, 1), 1.0), "aten.scatter"),
        (lambda x, i: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), "cond"),
    ],
)
def test_a_program_with_a_banned_operator_is_refused(function: Any, operator: str) -> None:
    program = torch.export.export(Calls(function), (torch.ones(2, 2),))
    with pytest.raises(UserError, match=f"the operator {operator}"):
        check_program(program)


def test_a_program_may_index_by_constants() -> None:
    program = torch.export.export(Calls(lambda x, i: x[i]), (torch.ones(2, 2),))
    assert check_program(program)["aten.index"] == 1


# ---- checks


def test_the_largest_difference_is_found_and_held_to_the_tolerance() -> None:
    found = largest_difference(lambda x: x, lambda x: x + 0.25 * (len(x) == 3), (1, 2, 2), (1, 3))
    assert found == pytest.approx(0.25)
    check_difference(0.25, 0.25, "it")
    with pytest.raises(UserError, match=r"it differs from the network by 0.25, above --tolerance 0.2"):
        check_difference(0.25, 0.2, "it")
    broken = largest_difference(lambda x: x, lambda x: x * float("nan"), (1, 2, 2), (1,))
    with pytest.raises(UserError, match="by inf"):
        check_difference(broken, 1e9, "it")


def test_speeds_are_ratios_of_rounds() -> None:
    slow, fast = Timing("slow", 4, (1.0, 2.0, 8.0)), Timing("fast", 4, (0.5, 0.5, 4.0))
    assert fast.speed_over(slow).median == 2
    assert slow.ms_per_batch.median == 2000
    rows = rows_of([slow, fast, Timing("slow", 8, (1.0,))])
    assert rows[1]["speed_over"] == {"slow": [2, 2, 3]}
    assert rows[2]["speed_over"] == {}


def test_every_model_has_its_turns() -> None:
    timings = time_in_turns({"a": lambda x: x, "b": lambda x: x + 1}, (1, 2, 2), 3, rounds=2)
    assert [(timing.name, timing.batch_size, len(timing.seconds)) for timing in timings] == [("a", 3, 2), ("b", 3, 2)]


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

    def figures(name: str) -> dict[str, Any]:
        data = ["--data", "digits", "--holdout", "0.02", "--split", "holdout", *batch]
        return json.loads(cli.ok("evaluate", exported / name, *data, *MACHINE, "--json"))

    ours, theirs = figures("best"), figures(file)
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert (theirs["top1"], theirs["images"], theirs["per_class"]) == (ours["top1"], 30, ours["per_class"])


def test_the_file_tells_what_it_needs(exported: Path) -> None:
    model = OnnxModel(exported / "best.onnx")
    config = json.loads((exported / "best" / "config.json").read_text())
    told = model.metadata
    assert list(model.classes) == told["label_names"] == config["label_names"]
    assert told["preprocessing"] == {"input_size": [1, 12, 12], "mean": [0.3], "std": [0.4], "crop_pct": 1.0,
                                     "interpolation": "bicubic"}  # fmt: skip
    assert told["version"] == psvit.__version__
    assert told["genotype"] == "AS-AA"
    assert told["arch"] == config["psvit"]["arch"]
    assert told["precision"] == "float32"
    assert 0 <= told["largest_difference"] < 1e-4


def test_a_fixed_batch_is_kept(exported: Path) -> None:
    model = OnnxModel(exported / "fixed.onnx")
    with pytest.raises(UserError, match=r"fixed.onnx takes batches of 4 images, not 3: export without --batch-size"):
        model(torch.zeros(3, 1, 12, 12))
    inputs = example_images((1, 12, 12), 9)
    expected = OnnxModel(exported / "best.onnx")(inputs)
    torch.testing.assert_close(InBatches(model, 4)(inputs), expected, rtol=1e-5, atol=1e-5)


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


def test_another_size_is_exported_with_its_positions(best: Path, tmp_path: Path) -> None:
    output = tmp_path / "large.onnx"
    export(str(best), ExportSettings(output=str(output), img_size=(20, 16), rounds=0))
    network = open_checkpoint(str(best)).model
    network.set_input_size((20, 16))
    inputs = example_images((1, 20, 16), 2)
    with torch.inference_mode():
        torch.testing.assert_close(OnnxModel(output)(inputs), network(inputs), rtol=1e-5, atol=1e-5)


# ---- int8


def test_int8_is_small_near_and_measured(exported: Path) -> None:
    model, small = OnnxModel(exported / "best.onnx"), OnnxModel(exported / "best.int8.onnx")
    inputs = example_images((1, 12, 12), 16)
    a, b = model(inputs), small(inputs)
    assert 0 < (a - b).abs().max() < 0.1 * a.abs().max()
    told = small.metadata["accuracy"]
    assert (told["data"], told["split"], told["images"]) == ("digits", "holdout", 30)
    assert told["float32_top1"] == pytest.approx(model.metadata["accuracy"]["top1"])
    assert abs(told["top1"] - told["float32_top1"]) < 10.1  # three of thirty images
    assert small.metadata["precision"] == "int8"
    assert small.metadata["largest_difference"] > model.metadata["largest_difference"]


def test_int8_quantizes_all_but_the_first_convolution(exported: Path) -> None:
    plain, small = (onnx.load(exported / name) for name in ("best.onnx", "best.int8.onnx"))
    operators = onnx_operators(small)
    with_weights = sum(
        isinstance(module, nn.Linear) for module in open_checkpoint(str(exported / "best")).model.modules()
    )
    assert operators["MatMulInteger"] == with_weights
    assert operators["MatMul"] == onnx_operators(plain)["MatMul"] + 1 - with_weights  # the head is a Gemm in float32
    from_int8 = {node.output[0] for node in small.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in small.graph.node if node.op_type == "Conv"]
    assert [node.input[1] in from_int8 for node in convolutions] == [False, True]


def test_int8_without_data_leaves_convolutions(cli: Cli, best: Path, tmp_path: Path) -> None:
    text = cli.ok("export", best, "--int8", "--output", tmp_path / "m.onnx", "--rounds", 0, "--reduce-range")
    assert "accuracy  not measured" in text
    operators = onnx_operators(onnx.load(tmp_path / "m.int8.onnx"))
    assert operators["MatMulInteger"] > 0
    assert not operators["QuantizeLinear"]


def test_calibration_sees_training_images_alone(best: Path) -> None:
    classifier = open_checkpoint(str(best))
    data = replace(DIGITS, limit=None)
    batches = list(calibration_images(classifier, data, ExportSettings(calibration=50)))
    assert [batch.shape for batch in batches] == [(count, 1, 12, 12) for count in (16, 16, 16, 2)]
    whole = list(calibration_images(classifier, data, ExportSettings(calibration=9000)))
    assert 1400 < sum(map(len, whole)) <= len(open_data(data).train)
    assert len(np.unique(np.concatenate(whole), axis=0)) > 1280, "they are different images"


@pytest.mark.parametrize(("calibration", "batch_size", "batches"), [(50, 20, 3), (8, 20, 1), (40, 20, 2)])
def test_a_fixed_batch_of_calibration_is_filled_with_its_last_image(
    best: Path, calibration: int, batch_size: int, batches: int
) -> None:
    classifier, data = open_checkpoint(str(best)), replace(DIGITS, limit=None)
    free = np.concatenate(list(calibration_images(classifier, data, ExportSettings(calibration=calibration))))
    assert len(free) == calibration
    settings = ExportSettings(calibration=calibration, batch_size=batch_size)
    fixed = list(calibration_images(classifier, data, settings))
    assert [len(batch) for batch in fixed] == [batch_size] * batches
    filled = np.concatenate(fixed)
    assert (filled[:calibration] == free).all()
    assert (filled[calibration:] == free[-1]).all()


def test_int8_with_a_batch_above_the_calibration(cli: Cli, best: Path) -> None:
    flags = ["--int8", "--data", "digits", "--batch-size", 24, "--calibration", 8, "--rounds", 0]
    assert "accuracy  float32" in cli.ok("export", best, *flags)


# ---- the hold-out of the training


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> set[tuple[float, int, int | None]]:
    """Which hold-outs were opened: holdout, seed, split_seed."""
    opened: set[tuple[float, int, int | None]] = set()

    def recorded(settings: DataSettings) -> Any:
        opened.add((settings.holdout, settings.seed, settings.split_seed))
        return open_data(settings)

    monkeypatch.setattr("psvit.export.onnx_files.open_data", recorded)
    monkeypatch.setattr("psvit.training.evaluate.open_data", recorded)
    return opened


@pytest.mark.parametrize(
    ("flags", "cut"),
    [
        ([], (0.02, 1, None)),
        (["--seed", "1"], (0.02, 1, None)),
        (["--seed", "7", "--split-seed", "1"], (0.02, 7, 1)),
        (["--seed", "7", "--split", "test"], (0.02, 7, None)),  # the hold-out is not used
    ],
)
def test_the_hold_out_is_the_trainings(
    cli: Cli, tmp_path: Path, cuts: set[Any], flags: list[str], cut: tuple[float, int, int | None]
) -> None:
    trained = DataSettings("digits", holdout=0.02, seed=1)
    best = checkpoint(tmp_path / "best", trained=trained)
    text = cli.ok("export", best, "--data", "digits", "--rounds", 0, *flags)
    assert cuts == {cut}
    assert "does not tell its hold-out" not in text
    for file in (best, tmp_path / "best.onnx"):
        assert training_of(open_classifier(str(file))) == trained


@pytest.mark.parametrize(
    "flags",
    [["--seed", "0"], ["--split-seed", "0"], ["--holdout", "0.1"], ["--seed", "0", "--split", "test", "--int8"]],
)
def test_a_hold_out_that_was_learned_is_refused(cli: Cli, tmp_path: Path, flags: list[str]) -> None:
    best = checkpoint(tmp_path / "best", trained=DataSettings("digits", holdout=0.02, seed=1))
    said = cli.refused("export", best, "--data", "digits", *flags)
    assert (
        f"{best} was trained on digits with --holdout 0.02 --split-seed 1, so it knows images of the hold-out" in said
    )
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_training_without_a_hold_out_leaves_none_to_measure_on(cli: Cli, tmp_path: Path) -> None:
    best = checkpoint(tmp_path / "best", trained=DataSettings("digits", holdout=0))
    said = cli.refused("export", best, "--data", "digits")
    assert "there is no hold-out of digits, with --holdout 0: give --split test" in said


def test_a_checkpoint_that_tells_no_hold_out_goes_on_with_a_note(cli: Cli, best: Path, cuts: set[Any]) -> None:
    text = cli.ok("export", best, "--data", "digits", "--rounds", 0, "--seed", 3)
    assert f"note      {best} does not tell its hold-out: unless --holdout and --seed are its training's" in text
    assert cuts == {(0.1, 3, None)}
    assert training_of(open_classifier(f"{best}.onnx")) is None


# ---- the other formats


@pytest.mark.parametrize(
    ("format", "suffix", "batch_size"),
    [("torch-export", ".pt2", None), ("torch-export", ".pt2", 2), ("torchscript", ".torchscript.pt", None)],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchs_own_files(cli: Cli, best: Path, format: str, suffix: str, batch_size: int | None) -> None:
    fixed = [] if batch_size is None else ["--batch-size", batch_size]
    text = cli.ok("export", best, "--format", format, *fixed)
    output = best.with_name("best" + suffix)
    assert f"written   {output} (" in text
    extra = {METADATA: ""}
    if format == "torch-export":
        loaded: Any = torch.export.load(output, extra_files=extra).module()
    else:
        loaded = torch.jit.load(output, _extra_files=extra)
    assert json.loads(extra[METADATA])["label_names"][9] == "9"
    network = open_checkpoint(str(best)).model
    for count in (1, 5) if batch_size is None else (2,):
        inputs = example_images((1, 12, 12), count)
        torch.testing.assert_close(loaded(inputs), network(inputs), rtol=1e-5, atol=1e-5)


# ---- the command


def test_the_command_tells_what_it_found(cli: Cli, best: Path) -> None:
    text = cli.ok("export", best, "--rounds", 1, "--timed-batches", 2, "--threads", 1)
    assert "network   AS-AA 2d 16-24 /4, images 1 x 12 x 12, 10 classes" in text
    assert "LayerNormalization 9" in text
    assert "float32 differs from the network by at most" in text
    assert "speed over torch" in text
    assert f"next      psvit predict {best}.onnx IMAGE" in text
    told = json.loads(cli.ok("export", best, "--rounds", 0, "--overwrite", "--json"))
    assert told["files"] == {f"{best}.onnx": Path(f"{best}.onnx").stat().st_size}
    assert told["operators"]["Softmax"] == 3
    assert told["timings"] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tolerance", "1e-12"], "above --tolerance 1e-12: nothing is written"),
        (["--tolerance", "0"], "--tolerance 0.0 is not a positive number"),
        (["--format", "tensorrt"], "--format 'tensorrt' is not one of onnx"),
        (["--format", "timm", "--int8"], "--int8 is ONNX Runtime's"),
        (["--format", "torchscript", "--data", "digits"], "--data measures ONNX files"),
        (["--format", "timm", "--batch-size", "2"], "--batch-size fixes a graph"),
        (["--license", "mit"], "--license belongs to the folder that the Hub reads"),
        (["--push-to-hub", "a/b"], "--push-to-hub belongs to the folder"),
        (["--format", "timm", "--push-to-hub", "nobody"], "names no account: give user/name"),
        (["--format", "timm", "--push-to-hub", "a/b/c"], "is not the name of a repository"),
        (["--reduce-range"], "--reduce-range narrows int8 weights"),
        (["--batch-size", "0"], "--batch-size 0 is not a whole number of at least 1"),
        (["--timed-batches", "0"], "--timed-batches 0 is not a whole number"),
        (["--split", "test"], "--split test needs images: give --data"),
        (["--output", "model"], "does not end with .onnx"),
        (["--data", "nowhere"], "nowhere"),
        (["--img-size", "2"], "too small"),
        (
            ["--output", f"{__file__}/x.onnx"],
            f"{__file__}/x.onnx cannot be written ({__file__} is a file)",
        ),
    ],
)
def test_export_refuses(cli: Cli, best: Path, flags: list[str], message: str) -> None:
    before = sorted(best.parent.rglob("*"))
    assert message in cli.refused("export", best, "--rounds", "0", *flags)
    assert sorted(best.parent.rglob("*")) == before


def test_data_of_other_classes_are_refused(cli: Cli, best: Path, tmp_path: Path) -> None:
    config = json.loads((best / "config.json").read_text())
    config["label_names"][3] = "drei"
    (best / "config.json").write_text(json.dumps(config))
    said = cli.refused("export", best, "--data", "digits", "--int8", "--rounds", 0)
    assert "knows the class 'drei' where digits has '3'" in said
    assert not best.with_name("best.onnx").exists()


def test_nothing_of_the_users_is_overwritten(cli: Cli, best: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.onnx"
    mine.write_text("mine")
    assert f"--output {mine} exists" in cli.refused("export", best, "--output", mine)
    assert mine.read_text() == "mine"
    small = tmp_path / "other.int8.onnx"
    small.write_text("mine")
    assert f"--output {small} exists" in cli.refused("export", best, "--int8", "--output", tmp_path / "other.onnx")
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    assert "is a folder: name a file" in cli.refused("export", best, "--output", folder, "--overwrite")
    said = cli.refused("export", best, "--format", "timm", "--output", folder, "--overwrite")
    assert "holds no checkpoint, and is not replaced" in said
    said = cli.refused("export", best, "--format", "timm", "--output", best, "--overwrite")
    assert "is the checkpoint itself" in said
    assert "is a file: name a folder" in cli.refused("export", best, "--format", "timm", "--output", mine)


# ---- files that are not ours


def test_files_that_are_not_ours_are_refused(cli: Cli, exported: Path, images: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.onnx"
    node = helper.make_node("Relu", ["x"], ["y"])
    onnx.save(graph([node]), foreign)
    stripped = onnx.load(exported / "best.onnx")
    del stripped.metadata_props[:]
    onnx.save(stripped, tmp_path / "stripped.onnx")
    lying = onnx.load(exported / "best.onnx")
    for entry in lying.metadata_props:
        if entry.key == "psvit.preprocessing":
            entry.value = entry.value.replace("12", "16")
    onnx.save(lying, tmp_path / "lying.onnx")
    (tmp_path / "text.onnx").write_text("no")
    (tmp_path / "empty.onnx").write_bytes(b"")
    expected = {
        "foreign.onnx": "holds no class names and preprocessing of psvit",
        "stripped.onnx": "holds no class names and preprocessing of psvit",
        "lying.onnx": "does not take images of (1, 16, 16) alone",
        "text.onnx": "is not an ONNX file that ONNX Runtime can run",
        "empty.onnx": "is not an ONNX file that ONNX Runtime can run",
        "missing.onnx": "there is no file",
    }
    for name, message in expected.items():
        for arguments in (["predict", tmp_path / name, images], ["evaluate", tmp_path / name]):
            assert message in cli.refused(*arguments), name


@pytest.mark.parametrize("value", ["{}", "[]", '["a", 1]', "no json", '"ab"'])
def test_broken_metadata_are_refused(exported: Path, tmp_path: Path, value: str) -> None:
    broken = onnx.load(exported / "best.onnx")
    for entry in broken.metadata_props:
        if entry.key == "psvit.label_names":
            entry.value = value
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(UserError, match="holds no class names and preprocessing of psvit"):
        open_classifier(str(tmp_path / "broken.onnx"))


def test_what_is_no_checkpoint_says_what_opens_it(cli: Cli, images: Path, tmp_path: Path) -> None:
    expected = {"x.pt2": "torch.export.load alone", "x.torchscript.pt": "torch.jit.load alone", "x.pt": "a pickle"}
    for name, message in expected.items():
        (tmp_path / name).touch()
        assert message in cli.refused("predict", tmp_path / name, images, *MACHINE)
    (tmp_path / "x.onnx").touch()
    assert "(an ONNX file of psvit export: psvit predict and evaluate)" in cli.refused("export", tmp_path / "x.onnx")


def test_a_hold_out_that_was_learned_is_not_evaluated(cli: Cli, trained: Path) -> None:
    own = ["evaluate", trained, "--data", "digits", "--split", "holdout", "--json", *MACHINE]
    figures = json.loads(cli.ok(*own))
    settings = json.loads((trained / "metrics.json").read_text())["trained_on"]
    same = ["--holdout", settings["holdout"], "--seed", settings["seed"]]
    assert json.loads(cli.ok(*own, *same)) == figures
    assert "so it knows images of the hold-out" in cli.refused(*own, "--split-seed", "5")


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


def test_an_explanation_needs_a_checkpoint(cli: Cli, exported: Path, images: Path, tmp_path: Path) -> None:
    said = cli.refused("predict", exported / "best.onnx", images, "--explain", tmp_path / "figures", *MACHINE)
    assert "give --explain with the checkpoint folder" in said


@pytest.mark.parametrize("package", ["onnxruntime", "onnx", "onnxscript"])
def test_a_missing_package_is_named(
    cli: Cli, exported: Path, images: Path, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = cli.refused("export", exported / "best", "--output", tmp_path / "m.onnx")
    assert 'pip install "psvit[export]"' in said
    if package == "onnxruntime":
        assert 'pip install "psvit[export]"' in cli.refused("predict", exported / "best.onnx", images)
