"""Exported graphs: plain operators, the network's own numbers, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from onnx import TensorProto, helper
from small_exports import ARCHS, graph
from torch import Tensor, nn

import psvit
from psvit import UserError
from psvit.export.exported import check_difference, largest_difference, timing_rows
from psvit.export.graph import example_images, frozen_copy, to_onnx, to_program, to_torchscript
from psvit.export.operators import count_operators, onnx_calls, program_calls, torchscript_calls
from psvit.models.build import build_arch

NETWORKS = [*ARCHS, "deit"]
FAST = NETWORKS[1]  # with a class token, shared projections and a depthwise convolution

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


# ---- graphs


@pytest.mark.parametrize(("name"), [FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != FAST)])
def test_an_onnx_graph_is_plain_and_computes_the_same(name: str) -> None:
    import onnxruntime

    model, size = network(name)
    proto = to_onnx(model, size)
    assert set(count_operators(onnx_calls(proto))) <= PLAIN_ONNX
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (node,) = session.get_inputs()
    assert node.shape == ["batch", *size]
    for count in (1, 2, 5):
        inputs = example_images(size, count, seed=count)
        (logits,) = session.run(None, {"images": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(inputs), rtol=1e-5, atol=1e-5)
    for ours in (b"site-packages", str(Path(psvit.__file__).parent).encode()):
        assert ours not in proto.SerializeToString(), "nothing of our source"


@pytest.mark.parametrize("name", [FAST, "deit"])
def test_graphs_of_torch_are_plain(name: str) -> None:
    model, size = network(name)
    operators = count_operators(program_calls(to_program(model, size)))
    traced = count_operators(torchscript_calls(to_torchscript(model, size)))
    assert {name.removeprefix("aten.") for name in operators} <= PLAIN_ATEN
    assert operators["aten.linear"] == sum(isinstance(module, nn.Linear) for module in model.modules()) + sum(
        type(module).__name__ == "ShareProjections" for module in model.modules()
    )  # each once; tied projections of a layer that shares them again
    found = {name.removeprefix("aten.") for name in traced}
    assert found <= PLAIN_ATEN | {"Int", "_convolution", "floor_divide", "neg", "pow", "remainder", "size"}
    assert traced["aten.layer_norm"] == operators["aten.layer_norm"]


class Resizes(nn.Module):
    """A network that enlarges its images."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2, mode="bicubic").mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("write", "operator"),
    [(to_onnx, "Resize"), (to_program, "aten.upsample_bicubic2d"), (to_torchscript, "aten.upsample_bicubic2d")],
)
def test_no_format_resizes(write: Any, operator: str) -> None:
    with pytest.raises(UserError, match=rf"the graph holds the operator {operator} \(node "):
        write(Resizes(), (3, 8, 8))


def test_an_onnx_graph_with_a_banned_operator_is_refused() -> None:
    for operator in ("TopK", "ScatterND", "GatherND", "NonZero", "Resize", "Loop"):
        model = graph([helper.make_node(operator, ["x", "x"], ["y"], name="here")])
        with pytest.raises(UserError, match=rf"the operator {operator} \(node here\)"):
            count_operators(onnx_calls(model))


def test_a_banned_operator_in_a_branch_or_a_function_is_found() -> None:
    inner = helper.make_graph([helper.make_node("TopK", ["x", "k"], ["v"], name="deep")], "branch", [], [])
    node = helper.make_node("Foreign", ["x"], ["y"], domain="elsewhere")
    node.attribute.append(helper.make_attribute("body", inner))
    assert [call.name for call in onnx_calls(graph([node]))] == ["elsewhere.Foreign", "TopK"]
    with pytest.raises(UserError, match="deep"):
        count_operators(onnx_calls(graph([node])))
    model = graph([helper.make_node("F", ["x"], ["y"], domain="local")])
    steps = [helper.make_node("If", ["x"], ["y"], name="choice")]
    model.functions.append(helper.make_function("local", "F", ["x"], ["y"], steps, model.opset_import))
    with pytest.raises(UserError, match="the operator If"):
        count_operators(onnx_calls(model))


def test_onnx_may_gather_at_constants_but_not_by_data() -> None:
    index = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    gather = helper.make_node("Gather", ["x", "i"], ["y"], name="g")
    assert count_operators(onnx_calls(graph([gather], initializers=[index]))) == {"Gather": 1}
    cast = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64)
    with pytest.raises(UserError, match="Gather at indices that the data choose"):
        count_operators(onnx_calls(graph([cast, gather])))


class Calls(nn.Module):
    """A function of images as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constant", torch.tensor([1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constant)


def test_a_graph_of_torch_with_a_banned_operator_is_refused() -> None:
    for function, operator in (
        (lambda x, i: x.topk(1).values, "aten.topk"),
        (lambda x, i: x[(x.sum(1) > 0).long()], "aten.index at indices"),
        (lambda x, i: x.index_select(0, x.argmax(0)), "aten.index_select at indices"),
        (lambda x, i: x.scatter(0, x.long().clamp(0, 1), 1.0), "aten.scatter"),
        (lambda x, i: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), "cond"),
    ):
        program = torch.export.export(Calls(function), (torch.ones(2, 2),))
        with pytest.raises(UserError, match=f"the operator {operator}"):
            count_operators(program_calls(program))
        if operator != "cond":  # tracing takes one of its branches
            traced = torch.jit.trace(nn.Sequential(nn.Identity(), Calls(function)), (torch.ones(2, 2),))
            with pytest.raises(UserError, match=rf"the operator {operator}.*\(node 1\)"):
                count_operators(torchscript_calls(traced))


class Branches(nn.Module):
    """A branch that the data choose."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            x = x.topk(1)[0]
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_control_flow_of_torchscript_is_refused() -> None:
    traced = torch.jit.trace(nn.Sequential(torch.jit.script(Branches())), (torch.ones(2, 2),))
    names = [call.name for call in torchscript_calls(traced)]
    assert names.count("prim.If") == names.count("aten.topk") == 1
    with pytest.raises(UserError, match=r"the operator prim\.If "):
        count_operators(torchscript_calls(traced))


def test_a_graph_of_torch_may_index_by_constants_and_by_sizes() -> None:
    def last(x: Tensor, i: Tensor) -> Tensor:
        return x[i].index_select(1, torch.arange(x.shape[1]))

    assert count_operators(program_calls(torch.export.export(Calls(last), (torch.ones(2, 2),))))["aten.index"] == 1
    assert count_operators(torchscript_calls(torch.jit.trace(Calls(last), (torch.ones(2, 2),))))["aten.index"] == 1


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
    slow, fast = timing_rows({"slow": (1.0, 2.0, 8.0), "fast": (0.5, 0.5, 4.0)}, 4)
    assert (slow["ms_per_batch"][1], slow["speed_over"]) == (2000, {})
    assert fast["speed_over"] == {"slow": [2, 2, 3]}
