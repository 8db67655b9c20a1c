"""Count the operators of an exported graph, and refuse banned ones.

Every runtime supports plain operators with static shapes (except the batch), and can plan their memory. This does not
hold for control flow, sorting, and data-dependent indexing.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.fx import GraphModule

from psvit.errors import UserError

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

BANNED = frozenset({
    # ONNX: control flow; data-dependent shapes or indices; position embeddings resized at run time
    "If", "Loop", "Scan", "TopK", "NonZero", "Unique", "Compress", "NonMaxSuppression", "Scatter", "ScatterElements",
    "ScatterND", "GatherElements", "GatherND", "Resize", "Upsample", "GridSample",
    # torch
    "cond", "while_loop", "scan", "map_impl",
    "topk", "sort", "argsort", "msort", "kthvalue", "nonzero", "nonzero_numpy", "argwhere", "unique", "_unique2",
    "unique_dim", "unique_consecutive", "masked_select", "scatter", "scatter_", "scatter_add", "scatter_reduce",
    "index_put", "index_put_", "index_add", "index_copy", "masked_scatter", "gather", "grid_sampler",
    "grid_sampler_2d", "bincount", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "__interpolate",
})  # fmt: skip
"""Operators that `count_operators` refuses, without domain or overload. Indexing is refused unless by constants."""

INDEXING = frozenset({"index", "index_select", "embedding", "take", "take_along_dim"})
"""Indexing operators of torch; ONNX has Gather."""


class Call(NamedTuple):
    """One use of an operator in a graph: its name, its node, and whether its indices depend on the data."""

    name: str
    node: str
    by_data: bool


def count_operators(calls: Iterable[Call]) -> Counter[str]:
    """Count each operator of a graph.

    Args:
        calls: `onnx_calls`, `program_calls` or `torchscript_calls` of the graph.

    Raises:
        UserError: an operator is banned; the message names its node.
    """
    counts: Counter[str] = Counter()
    for name, node, by_data in calls:
        if by_data or name.rpartition(".")[2] in BANNED:
            what = f"{name} at indices that the data choose" if by_data else name
            raise UserError(
                f"the graph holds the operator {what} (node {node}): a network whose graph is not fixed cannot be "
                "exported"
            )
        counts[name] += 1
    return counts


def onnx_calls(model: onnx.ModelProto) -> Iterator[Call]:
    """The operators of an ONNX model, with branches and functions; those of other domains with their domain."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in nodes_of(model) if node.op_type == "Constant"}
    for node in nodes_of(model):
        by_data = node.op_type == "Gather" and node.input[1] not in constants
        yield Call(node.domain + "." * bool(node.domain) + node.op_type, node.name, by_data)


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of an ONNX model, with its branches and functions."""

    def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            yield node
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    yield from walk(graph.node)

    yield from walk(model.graph.node)
    for function in model.functions:
        yield from walk(function.node)


def program_calls(program: ExportedProgram) -> Iterator[Call]:
    """The operators of an exported program, such as ``aten.linear``, with its branches."""
    images = set(program.graph_signature.user_inputs)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            if node.op == "call_function" and node.target is not operator.getitem:
                name = str(getattr(node.target, "overloadpacket", getattr(node.target, "__name__", node.target)))
                by_data = name.rpartition(".")[2] in INDEXING and _depends(
                    node.all_input_nodes[1:], images, lambda one: one.name, lambda one: one.all_input_nodes
                )
                yield Call(name, node.name, by_data)


def torchscript_calls(traced: Any) -> Iterator[Call]:
    """The operators of a traced module, such as ``aten.linear``, with its branches and submodules."""
    graph = traced.inlined_graph
    images = {value.debugName() for value in list(graph.inputs())[1:]}  # the first is the module

    def before(value: Any) -> list[Any]:
        # a shape does not depend on the pixels
        return [] if value.node().kind() == "aten::size" else list(value.node().inputs())

    def walk(block: Any) -> Iterator[Call]:
        for node in block.nodes():
            space, _, name = node.kind().partition("::")
            if space != "prim" or name in BANNED:  # others of prim make lists, constants and so on
                module = node.scopeName().rpartition("/")[2].removeprefix("__module.")
                place = module or next((value.debugName() for value in node.outputs()), "")
                indices = list(node.inputs())[1:] if name in INDEXING else []
                yield Call(f"{space}.{name}", place, _depends(indices, images, lambda one: one.debugName(), before))
            for inner in node.blocks():
                yield from walk(inner)

    yield from walk(graph)


def _depends(
    values: Iterable[Any], images: set[str], name: Callable[[Any], str], before: Callable[[Any], Iterable[Any]]
) -> bool:
    """Whether one of these values depends on the images; `before` returns the inputs of a value."""
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
