"""8-bit weights and activations, by ONNX Runtime's quantization.

Matrix products are quantized dynamically: the range of their input is found in each run, which needs no calibration
and loses little accuracy. Convolutions are quantized statically, since ONNX Runtime's dynamic 8-bit convolution is
slower than the float one; their input ranges are calibrated on training images. The first convolution stays float32:
it is cheap, and quantizing it costs most accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from psvit.errors import UserError
from psvit.export.graph import INPUT, quietly
from psvit.export.operators import count_operators, nodes_of, onnx_calls
from psvit.export.runtime import INSTALL
from psvit.files import writing

if TYPE_CHECKING:
    import onnx


def quantize(
    model: onnx.ModelProto,
    folder: Path,
    calibration: Iterable[NDArray[Any]] | None = None,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """Quantize a float32 model of `psvit.export.graph.to_onnx` to 8 bits, weights by output channel.

    Args:
        model: the float32 model.
        folder: for intermediate files.
        calibration: preprocessed images (B, C, H, W) that calibrate convolutions; without them, convolutions stay
            float32.
        reduce_range: weights of 7 bits, for x86 processors without VNNI, whose sums of 8-bit products saturate.

    Raises:
        UserError: ONNX Runtime is not installed or cannot quantize this model, or
            `psvit.export.operators.count_operators` refuses the result.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise UserError(f"--int8 cannot be done: {INSTALL}") from error
    names = ("float32", "plain", "convolved", "int8")
    float32, plain, convolved, done = (folder / f"{name}.onnx" for name in names)
    onnx.save(model, float32)
    weights: dict[str, Any] = {"per_channel": True, "reduce_range": reduce_range, "weight_type": QuantType.QInt8}
    # its log advises preprocessing, which is done here
    with quietly("ONNX Runtime cannot quantize this network", logger=None), writing(folder):
        # symbolic inference needs sympy, and only the batch size is unknown
        quant_pre_process(float32, plain, skip_symbolic_shape=True)
        convolutions = [node for node in onnx.load(plain).graph.node if node.op_type == "Conv"]
        stems = [node.name for node in convolutions if node.input[0] == INPUT]
        if calibration is not None and len(stems) < len(convolutions):
            quantize_static(
                plain, convolved, _Reader(calibration), op_types_to_quantize=["Conv"], nodes_to_exclude=stems,
                activation_type=QuantType.QUInt8, **weights,
            )  # fmt: skip
        else:
            convolved = plain
        quantize_dynamic(convolved, done, op_types_to_quantize=["MatMul", "Gemm"], **weights)
    small = onnx.load(done)
    used = {node.domain for node in nodes_of(small)}
    opsets = [opset for opset in small.opset_import if opset.domain in used]  # ONNX Runtime lists all that it knows
    del small.opset_import[:]
    small.opset_import.extend(opsets)
    count_operators(onnx_calls(small))
    return small


class _Reader:
    """The data reader that ONNX Runtime's calibration expects."""

    def __init__(self, batches: Iterable[NDArray[Any]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch by the name of the input; None at the end."""
        return next(({INPUT: batch} for batch in self.batches), None)
