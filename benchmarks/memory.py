"""How much memory does a detector take for one large image: with and without windows in the first stage?

    python benchmarks/memory.py --output docs/results/memory.json

Forward and backward of torchvision's Faster R-CNN with a feature pyramid from stride 4 on, as `psvit detect train`
builds it on a CPU (explicit attention, freed memory kept), for one image of 800 x 1216 pixels. Each case has a process
of its own and is told by the most memory that was resident (VmHWM). No optimizer: AdamW adds 8 bytes a parameter. Cases
of which the attention alone would pass the limit are not run; one that passes it is stopped. Seconds are of a machine
that did other work beside, and no claim about speed.

Cases that the output holds already are kept, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from psvit.arch.arch import SHARE, Arch
from psvit.arch.cost import Parts, macs
from psvit.arch.variants import VARIANTS, with_changes
from psvit.files import write_json

SIDES = (800, 1216)
WINDOW = 14
NAMES = ("psvit_2d_tiny", "psvit_2d_small", "psvit_2d_base")
GB = 1e9
LEFT = 4 * GB
"""The machine keeps so much available for others: a case that would take of it is stopped."""


def main() -> None:
    """Parse the command line, measure case by case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*NAMES, "resnet18", "resnet50"])
    parser.add_argument("--limit", type=float, default=16.0, help="GB that no case may pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)  # what the processes are started with
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case)))
        return
    result: dict[str, Any] = {"image": SIDES, "detector": "Faster R-CNN with FPN", "target_gb": 12, "cases": []}
    if arguments.output and arguments.output.is_file():
        result["cases"] = json.loads(arguments.output.read_text())["cases"]
    done = [{name: row[name] for name in ("model", "windows", "precision", "checkpointing")} for row in result["cases"]]
    for case in cases(arguments.models):
        if case in done:
            continue
        row = {**case, **about(case)}
        if row["attention_gb"] > arguments.limit:
            row |= {"peak_gb": None, "over_gb": arguments.limit, "because": f"over {arguments.limit:g} GB (estimated)"}
        else:
            row |= run(case, arguments.limit, arguments.threads)
        print(row, flush=True)
        result["cases"].append(row)
        if arguments.output:
            write_json(arguments.output, {**result, **_machine(arguments.threads)})


def cases(models: list[str]) -> list[dict[str, Any]]:
    """Every model in every way; ResNets, for comparison, have no windows."""
    ways = product(models, (True, False), ("float32", "bfloat16"), (False, True))
    return [
        {"model": model, "windows": windowed_stages(model) if windowed else [], "precision": precision,
         "checkpointing": checkpointing}
        for model, windowed, precision, checkpointing in ways
        if model in VARIANTS or not (windowed or checkpointing)
    ]  # fmt: skip


def windowed_stages(model: str) -> list[int]:
    """Windows in the first stage alone."""
    return [WINDOW] + [0] * (len(VARIANTS[model].widths) - 1) if model in VARIANTS else []


def about(case: dict[str, Any]) -> dict[str, Any]:
    """MACs of a backbone, and a lower estimate of what its attention maps take in training."""
    if case["model"] not in VARIANTS:
        return {"backbone_gmacs": None, "attention_gb": 0.0}
    arch = with_changes(VARIANTS[case["model"]], windows=tuple(case["windows"]))
    gmacs = macs(arch, SIDES, num_classes=0) / 1e9
    return {"backbone_gmacs": round(gmacs, 1), "attention_gb": round(attention_bytes(arch, case["precision"]) / GB, 2)}


def attention_bytes(arch: Arch, precision: str) -> float:
    """Maps kept for the backward pass, and the largest three times more: gradients of it, and that of its scores.

    Autocast on a CPU leaves the softmax in bfloat16, so all of them are half as large.
    """
    parts, maps = Parts(arch, len(arch.widths), SIDES), []
    for stage, layers in enumerate(arch.stages):
        windows, tokens = parts.windows(stage)
        size = windows * arch.num_heads[stage] * tokens**2 * (4 if precision == "float32" else 2)
        maps += [size] * (len(layers) - layers.count(SHARE))
    return sum(maps) + 3 * max(maps)


def run(case: dict[str, Any], limit: float, threads: int) -> dict[str, Any]:
    """Measure a case in a process of its own, watched from here."""
    command = [sys.executable, __file__, "--threads", str(threads), "--case", json.dumps({**case, "threads": threads})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        resident = 0.0
        while process.poll() is None:
            resident = max(resident, kilobytes(f"/proc/{process.pid}/status", "VmRSS") * 1024 / GB)
            available = kilobytes("/proc/meminfo", "MemAvailable") * 1024
            if resident > limit or available < LEFT:
                process.kill()
                process.communicate()
                why = f"over {limit:g} GB" if resident > limit else f"over {resident:.1f} GB, all that was free"
                return {"peak_gb": None, "over_gb": round(min(resident, limit), 2), "because": why}
            time.sleep(0.1)
        out, err = process.communicate()
    if process.returncode:
        return {"peak_gb": None, "over_gb": None, "because": " ".join(err.splitlines()[-1:])[:300]}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Forward and backward of a detector for one image, in this process."""
    import torch

    from psvit.arch.model_config import ModelConfig
    from psvit.engine.memory import keep_freed_memory
    from psvit.models.attention import attention_for_training
    from psvit.tasks.dense.backbone import open_features
    from psvit.tasks.detection.detector_config import DetectorConfig
    from psvit.tasks.detection.detectors import build_detector
    from psvit.tasks.detection.pyramid import Backbone

    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(case["threads"])
    imported = peak()
    config = DetectorConfig(detector="faster_rcnn").filled(SIDES, False)
    with attention_for_training(torch.device("cpu")):
        body, _ = open_features(ModelConfig.of(case["model"], windows=tuple(case["windows"]) or None), SIDES, 3)
    if case["checkpointing"]:
        body.set_grad_checkpointing(True)  # type: ignore[operator]
    detector = build_detector(Backbone(body, "fpn", 256), config, 80, (0.5,) * 3, (0.2,) * 3).train()
    built = peak()
    corners = torch.rand(20, 2) * torch.tensor([SIDES[1] - 210, SIDES[0] - 210])
    boxes = torch.cat([corners, corners + 10 + 200 * torch.rand(20, 2)], dim=1)
    targets = [{"boxes": boxes, "labels": torch.randint(1, 81, (20,))}]
    begun = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case["precision"] == "bfloat16"):
        losses = detector([torch.rand(3, *SIDES)], targets)
    loss = torch.stack([value.float() for value in losses.values()]).sum()
    forward, forward_seconds = peak(), time.perf_counter() - begun
    loss.backward()
    seconds = time.perf_counter() - begun
    without = [name for name, p in body.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert loss.isfinite(), loss
    assert not without, without
    return {
        "peak_gb": round(peak(), 2),
        "forward_gb": round(forward, 2),
        "imported_gb": round(imported, 2),
        "built_gb": round(built, 2),
        "params": sum(p.numel() for p in detector.parameters()),
        "seconds": round(seconds, 1),
        "forward_seconds": round(forward_seconds, 1),
    }


def peak() -> float:
    """The most GB that were resident in this process so far."""
    return kilobytes("/proc/self/status", "VmHWM") * 1024 / GB


def kilobytes(path: str, name: str) -> int:
    """A line of one of the kernel's files; 0 where it is not, as of a process that has ended."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _machine(threads: int) -> dict[str, Any]:
    import torch

    from psvit.engine.hardware import machine_info

    return {"machine": {**machine_info(torch.device("cpu")), "threads": threads}}


if __name__ == "__main__":
    main()
