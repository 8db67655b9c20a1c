"""The operators of an exported graph, and those that it may not have.

A graph of plain operators, whose shapes are known but for the batch, runs on every runtime and compiles to fixed
memory. Control flow, sorting, and reads and writes at places that the data choose do neither.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule, Node

from psvit.errors import UserError

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

BANNED_ONNX = frozenset({
    "If", "Loop", "Scan",  # control flow
    "TopK", "NonZero", "Unique", "Compress", "NonMaxSuppression",  # shapes that depend on the data
    "Scatter", "ScatterElements", "ScatterND", "GatherElements", "GatherND",  # places that depend on the data
    "Resize", "Upsample", "GridSample",  # position embeddings that were not computed beforehand
})  # fmt: skip
"""Operators that `check_onnx` refuses; and Gather, unless its indices are constants."""

BANNED_ATEN = frozenset({
    "cond", "while_loop", "scan", "map_impl", "If", "Loop",  # control flow; the last two are TorchScript's
    "topk", "sort", "argsort", "msort", "kthvalue", "nonzero", "nonzero_numpy", "argwhere", "unique", "_unique2",
    "unique_dim", "unique_consecutive", "masked_select", "scatter", "scatter_", "scatter_add", "scatter_reduce",
    "index_put", "index_put_", "index_add", "index_copy", "masked_scatter", "gather", "grid_sampler",
    "grid_sampler_2d", "bincount", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "__interpolate",
})  # fmt: skip
"""Operators of torch, without their overload, that `check_program` and `check_torchscript` refuse; and indexing, unless
by constants."""

INDEXING = frozenset({"index", "index_select", "embedding", "take", "take_along_dim"})


def onnx_operators(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator stands in an ONNX model, in its branches and functions too; foreign ones by domain."""
    return Counter(node.domain + "." * bool(node.domain) + node.op_type for node in nodes_of(model))


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of an ONNX model, in its branches and functions too."""

    def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            yield node
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    yield from walk(graph.node)

    yield from walk(model.graph.node)
    for function in model.functions:
        yield from walk(function.node)


def check_onnx(model: onnx.ModelProto) -> Counter[str]:
    """The operators of an ONNX model, none of them banned.

    Raises:
        UserError: the first that is, with the name of its node.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in nodes_of(model) if node.op_type == "Constant"}
    for node in nodes_of(model):
        by_data = node.op_type == "Gather" and node.input[1] not in constants
        if node.op_type in BANNED_ONNX or by_data:
            raise _refusal(node.op_type, node.name, "at indices that the data choose" if by_data else "")
    return onnx_operators(model)


def program_operators(program: ExportedProgram) -> Counter[str]:
    """How often each operator of torch stands in an exported program, as ``aten.linear``; in its branches too."""
    return Counter(name for _, name in _calls(program))


def _calls(program: ExportedProgram) -> Iterator[tuple[Node, str]]:
    """The nodes that call an operator, with its name, in branches too."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            if node.op == "call_function" and node.target is not operator.getitem:
                yield node, str(getattr(node.target, "overloadpacket", getattr(node.target, "__name__", node.target)))


def check_program(program: ExportedProgram) -> Counter[str]:
    """The operators of an exported program, none of them banned.

    Raises:
        UserError: the first that is, with the name of its node.
    """
    images = set(program.graph_signature.user_inputs)
    for node, name in _calls(program):
        short = name.rpartition(".")[2]
        by_data = short in INDEXING and _from_data(
            node.all_input_nodes[1:], images, lambda one: one.name, lambda one: one.all_input_nodes
        )
        if short in BANNED_ATEN or by_data:
            raise _refusal(name, node.name, "at indices that the data choose" if by_data else "")
    return program_operators(program)


def _from_data(
    values: Iterable[Any], images: set[str], name: Callable[[Any], str], before: Callable[[Any], Iterable[Any]]
) -> bool:
    """Whether one of these values depends on the images.

    Args:
        values: of a graph; name: of each, which no other has; before: the values that it is computed from.
        images: names of the graph's inputs.
    """
    seen: set[str] = set()
    waiting = list(values)
    while waiting:
        one = waiting.pop()
        if name(one) in images:
            return True
        if name(one) not in seen:
            seen.add(name(one))
            waiting += before(one)
    return False


def torchscript_operators(traced: Any) -> Counter[str]:
    """How often each operator of torch stands in a traced module, as ``aten.linear``; in the modules in it too."""
    return Counter(name for _, name in _script_calls(traced.inlined_graph))


def _script_calls(block: Any) -> Iterator[tuple[Any, str]]:
    """The nodes that call an operator or branch, with its name; a branch before what is in it."""
    for node in block.nodes():
        space, _, name = node.kind().partition("::")
        if space != "prim" or name in BANNED_ATEN:  # prim's others make lists, constants and the like
            yield node, f"{space}.{name}"
        for inner in node.blocks():
            yield from _script_calls(inner)


def check_torchscript(traced: Any) -> Counter[str]:
    """The operators of a traced module, none of them banned.

    Raises:
        UserError: the first that is, with the module that calls it.
    """
    graph = traced.inlined_graph
    images = {value.debugName() for value in list(graph.inputs())[1:]}  # the first is the module
    for node, name in _script_calls(graph):
        short = name.rpartition(".")[2]
        by_data = short in INDEXING and _from_data(
            list(node.inputs())[1:], images, lambda one: one.debugName(), _script_before
        )
        if short in BANNED_ATEN or by_data:
            place = node.scopeName().rpartition("/")[2].removeprefix("__module.") or node.output().debugName()
            raise _refusal(name, place, "at indices that the data choose" if by_data else "")
    return torchscript_operators(traced)


def _script_before(value: Any) -> list[Any]:
    """What a value is computed from; what depends on a shape alone does not depend on the pixels."""
    return [] if value.node().kind() == "aten::size" else list(value.node().inputs())


def _refusal(name: str, node: str, how: str) -> UserError:
    what = f"{name} {how}".rstrip()
    return UserError(
        f"the graph holds the operator {what} (node {node}): a network whose graph is not fixed cannot be exported"
    )
