"""A network -> a graph of one image size: an ONNX model, a program of torch.export, a traced TorchScript module.

The network is set to its size beforehand, so position embeddings are constants and only the batch size may vary.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from psvit.errors import UserError, one_line
from psvit.export.export_config import ExportConfig
from psvit.export.operators import count_operators, onnx_calls, program_calls, torchscript_calls
from psvit.export.runtime import INSTALL
from psvit.models.fold import fold_norms

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

INPUT, OUTPUT = "images", "logits"
LARGEST = 2_000_000_000
"""The most bytes of weights in one ONNX file (protobuf is limited to 2 GiB)."""


def frozen_copy(model: nn.Module) -> Any:
    """A copy of a network in float32 on the CPU, in evaluation mode, without gradients, batch norms folded."""
    return fold_norms(copy.deepcopy(model).to("cpu", torch.float32)).requires_grad_(False)


def example_images(input_size: tuple[int, int, int], batch_size: int, seed: int = 0) -> Tensor:
    """Normal noise (B, C, H, W), like normalized images."""
    return torch.randn(batch_size, *input_size, generator=torch.Generator().manual_seed(seed))


def to_onnx(
    model: nn.Module,
    input_size: tuple[int, int, int],
    batch_size: int | None = None,
    opset: int = ExportConfig.opset,
) -> onnx.ModelProto:
    """Export to ONNX: ``images`` (B, C, H, W) float32 -> ``logits`` (B, classes), plain operators only.

    Attention is exported unfused: the decomposition of the fused kernel has more operators, and shapes computed at run
    time.

    Args:
        model: see `frozen_copy`.
        input_size: channels, height, width.
        batch_size: B; None for any.
        opset: version of ONNX's operators.

    Raises:
        UserError: ONNX is not installed, or knows no such opset; the network cannot be exported; or
            `psvit.export.operators.count_operators` refuses its graph.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX files cannot be written: {INSTALL}") from error
    if sum(weight.numel() * 4 for weight in model.state_dict().values()) > LARGEST:
        raise UserError("the network's weights exceed the 2 GB of one ONNX file: give --format torch-export")
    explicit = copy.deepcopy(model)
    module: Any
    for module in explicit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    images, shapes = _example(input_size, batch_size)
    with quietly(_refusal("ONNX", batch_size)):
        program: Any = torch.onnx.export(
            explicit, (images,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=shapes,
            opset_version=opset, verbose=False,
        )  # fmt: skip
    proto: onnx.ModelProto = program.model_proto
    del proto.metadata_props[:]
    for node in proto.graph.node:  # the exporter writes source locations there
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.producer_name = "psvit"
    if opset_of(proto) != opset:  # the exporter only warns
        raise UserError(
            f"--opset {opset} cannot be written by the installed torch and onnxscript, which wrote {opset_of(proto)}: "
            f"give --opset {opset_of(proto)}"
        )
    count_operators(onnx_calls(proto))
    onnx.checker.check_model(proto)
    return proto


def opset_of(model: onnx.ModelProto) -> int:
    """The ONNX opset of a model."""
    return next(int(used.version) for used in model.opset_import if not used.domain)


def to_program(model: nn.Module, input_size: tuple[int, int, int], batch_size: int | None = None) -> ExportedProgram:
    """Export with torch.export: images (B, C, H, W) float32 -> logits (B, classes). Arguments as `to_onnx`.

    Raises:
        UserError: the network cannot be exported, or `count_operators` refuses its graph.
    """
    images, shapes = _example(input_size, batch_size)
    with quietly(_refusal("torch.export", batch_size)):
        program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    count_operators(program_calls(program))
    return program


def to_torchscript(model: nn.Module, input_size: tuple[int, int, int], batch_size: int | None = None) -> Any:
    """Trace to TorchScript: images (B, C, H, W) float32 -> logits (B, classes). Arguments as `to_onnx`.

    TorchScript is deprecated in torch; it is for runtimes that load nothing else.

    Raises:
        UserError: the network cannot be traced, or `count_operators` refuses its graph.
    """
    images, _ = _example(input_size, batch_size)
    with quietly(_refusal("TorchScript", batch_size)):
        traced = torch.jit.trace(model, (images,), check_trace=False)
    count_operators(torchscript_calls(traced))
    return traced


def _example(input_size: tuple[int, int, int], batch_size: int | None) -> tuple[Tensor, Any]:
    """Images to export with, and torch.export's dynamic shapes: any batch if `batch_size` is None."""
    shapes = ({0: torch.export.Dim("batch")},) if batch_size is None else None
    return example_images(input_size, batch_size or 2), shapes


def _refusal(what: str, batch_size: int | None) -> str:
    hint = ": try a fixed --batch-size" if batch_size is None else ""
    return f"this network cannot be exported to {what}{hint}"


@contextmanager
def quietly(refusal: str, logger: str | None = "torch.onnx") -> Iterator[None]:
    """Silence an exporter, and turn its failure into one line that begins with `refusal`.

    Raises:
        UserError: whatever fails within.
    """
    speaker = logging.getLogger(logger)
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # exporters fail on foreign networks in many ways
        raise UserError(f"{refusal}: {one_line(error, kind=True)}") from error
    finally:
        speaker.setLevel(level)
