"""Small networks and checkpoints to export."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from tiny import DIGITS

from psvit import Arch
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.engine.checkpoints import save_checkpoint
from psvit.engine.trained_on import cut_of
from psvit.export.export_config import ExportConfig
from psvit.export.graph import to_onnx
from psvit.models.build import build_arch

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


def checkpoint(
    folder: Path,
    arch: Arch = ARCHS["2d, map, max"],
    chans: int = 1,
    side: int = 12,
    trained: DataConfig | None = None,
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


_WRITTEN: dict[Any, onnx.ModelProto] = {}


def remembered(model: Any, size: Any, batch_size: int | None = None, opset: int = ExportConfig.opset) -> Any:
    """`to_onnx`, which takes seconds, once for each network, its weights, and what is asked for."""
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    key = (str(getattr(model, "arch", type(model))), sha256(weights).digest(), tuple(size), batch_size, opset)
    if key not in _WRITTEN:
        _WRITTEN[key] = to_onnx(model, size, batch_size, opset)
    copy = onnx.ModelProto()
    copy.CopyFrom(_WRITTEN[key])
    return copy


def graph(nodes: list[Any], *, initializers: list[Any] | None = None) -> onnx.ModelProto:
    """A model of some nodes, x (2, 3) -> y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], initializer=initializers or []))
