"""8-bit weights and activations, by ONNX Runtime's quantization.

Products with weights are quantized dynamically: the range of their input is found anew in each run, so no image is
needed beforehand and little accuracy is lost. Convolutions are quantized statically, for ONNX Runtime's dynamic 8-bit
convolution is slower than its float one; a static one needs the range of its input, which training images tell. The
convolution that reads the pixels stays float32: it is cheap, and the first rounding costs most accuracy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from psvit.errors import UserError, one_line
from psvit.export.graph import INPUT
from psvit.export.operators import check_onnx, nodes_of
from psvit.export.runtime import INSTALL
from psvit.files import writing

if TYPE_CHECKING:
    import onnx

PRODUCTS = ["MatMul", "Gemm"]


def quantize(
    model: onnx.ModelProto,
    folder: Path,
    calibration: Iterable[NDArray[Any]] | None = None,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """Quantize a float32 model of `psvit.export.graph.to_onnx` to 8 bits, weights by output channel.

    Args:
        model: the float32 model.
        folder: where intermediate files may stand.
        calibration: images (B, C, H, W), as the model takes them, that set the ranges of convolutions; without any,
            convolutions stay float32.
        reduce_range: weights of 7 bits, for x86 processors without VNNI, whose sums of 8-bit products saturate.

    Raises:
        UserError: ONNX Runtime is not installed, or cannot quantize this model; or `psvit.export.operators.check_onnx`
            refuses what it makes of it.
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
    try:
        with _quietly(), writing(folder):
            # symbolic inference needs sympy and tells no more: every size is known but the batch's
            quant_pre_process(float32, plain, skip_symbolic_shape=True)
            stems, others = _convolutions(onnx.load(plain))
            if calibration is not None and others:
                quantize_static(
                    plain, convolved, _reader(calibration), op_types_to_quantize=["Conv"], nodes_to_exclude=stems,
                    activation_type=QuantType.QUInt8, **weights,
                )  # fmt: skip
            else:
                convolved = plain
            quantize_dynamic(convolved, done, op_types_to_quantize=PRODUCTS, **weights)
    except UserError:
        raise
    except Exception as error:  # it refuses foreign models in many ways
        raise UserError(f"ONNX Runtime cannot quantize this network: {one_line(error, kind=True)}") from error
    small = onnx.load(done)
    drop_unused_domains(small)
    check_onnx(small)
    return small


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Leave out of a model the domains that none of its nodes is of: ONNX Runtime writes all that it knows."""
    used = {node.domain for node in nodes_of(model)}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _convolutions(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Names of the convolutions that read the images, and of the others."""
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    stems = [node.name for node in nodes if node.input[0] == INPUT]
    return stems, [node.name for node in nodes if node.input[0] != INPUT]


def _reader(batches: Iterable[NDArray[Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """The batches one by one, then None."""

        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            """The next batch by the name of the input."""
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back advice to pre-process what is pre-processed already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
