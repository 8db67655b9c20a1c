"""What benchmarks/export.py wrote -> a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psvit.report.tables import Table, to_markdown


def export_table(data: Mapping[str, Any]) -> str:
    """Exported files beside the network in torch: size, difference, accuracy, speed."""
    lines = []
    for found in data["exports"]:
        name = f"`{found['network']}`, " + ("28 px, trained" if found["trained"] else "224 px")
        for file in ("float32", "int8"):
            timings = {one["batch_size"]: one for one in found["timings"] if one["name"] == file}
            accuracy = (found.get("top1") or {}).get(file)
            for batch, timing in timings.items():
                first = batch == min(timings)
                over = timing["speed_over"]
                lines.append((
                    name if first and file == "float32" else "",
                    file if first else "",
                    f"{found['bytes'][file] / 1e6:.2f}" if first else "",
                    f"{found['largest_difference'][file]:.0e}" if first else "",
                    f"{accuracy:.2f}" if first and accuracy is not None else "",
                    str(batch),
                    f"{timing['ms_per_batch'][1]:.2f}",
                    _spread(over.get("torch")),
                    _spread(over.get("float32")),
                ))  # fmt: skip
    headings = ("network", "file", "MB", "largest difference", "test top-1 %", "batch", "ms", "× torch", "× float32")
    machine = data["machine"]
    note = (
        f"ONNX Runtime {machine['onnxruntime']} beside torch {machine['torch'].partition('+')[0]} in eager mode, "
        f"{data['config']['threads']} thread, {machine['cpu']}; median [quartiles] of {data['config']['rounds']} "
        "interleaved rounds. × torch: times as fast as the network in torch; × float32: as the float32 file. Largest "
        "difference: of an output to the network's."
    )
    return f"{to_markdown(Table(headings, lines, 2))}\n\n{note}"


def _spread(values: Sequence[float] | None) -> str:
    return "" if not values else f"{values[1]:.2f} [{values[0]:.2f}, {values[2]:.2f}]"


FROM_EXPORT = {"exports": export_table}
"""The key that tells the file of benchmarks/export.py, and the table of such a file."""
