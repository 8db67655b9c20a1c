"""Which networks of a study are faster at the same accuracy? Their milliseconds in eager mode and in ONNX Runtime.

    psvit study claims --groups "3 M MACs, 4 epochs" "6 M MACs, 4 epochs" --output runs/study/claims
    python benchmarks/equal_accuracy.py runs/study/claims --output docs/results/equal-accuracy.json

Takes the first training of each network of these groups, folds its batch norms and times one batch of noise, all
networks in turns, one thread. A few minutes. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from psvit.engine.hardware import cpu_threads, machine_info
from psvit.engine.memory import keep_freed_memory
from psvit.engine.open_model import load_checkpoint
from psvit.export.graph import to_onnx
from psvit.export.runtime import open_session
from psvit.files import write_json
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.measure import inference
from psvit.latency.timing import MIN_SECONDS, Stopwatch, seconds_in_turns
from psvit.models.fold import for_inference
from psvit.studies.definition import slug

CPU = torch.device("cpu")
GROUPS = "3 M MACs, 4 epochs", "6 M MACs, 4 epochs"
RUNTIMES = "eager", "onnx"


def networks(study: Path, groups: list[str]) -> Iterator[tuple[dict[str, Any], Path]]:
    """The trained networks of the groups, each with its row of the results."""
    results = json.loads((study / "results.json").read_text(encoding="utf-8"))
    for group in results["groups"]:
        for row in group["rows"] if slug(group["name"]) in map(slug, groups) else ():
            if row["mean"] is not None and row["folders"][0]:
                kept = ("label", "network", "macs", "params", "mean", "interval", "error_ratio")
                yield {"group": group["name"], **{name: row[name] for name in kept}}, study / row["folders"][0] / "best"


def call(checkpoint: Path, runtime: str, batch: int, file: Path, threads: int) -> Callable[[], object]:
    """The call to time: one batch through the network."""
    model = load_checkpoint(checkpoint)
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
    if runtime == "onnx":
        if not file.exists():
            file.write_bytes(to_onnx(model, size).SerializeToString())
        return partial(open_session(file, threads).run, None, {"images": images.numpy()})
    return inference(for_inference(model, CPU, torch.float32), (images,), LatencyConfig())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--groups", nargs="+", default=GROUPS)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory(largest=True)
    load, found = os.getloadavg()[0], list(networks(arguments.study, list(arguments.groups)))
    rows = [{**row, "ms": {runtime: {} for runtime in RUNTIMES}} for row, _ in found]
    with TemporaryDirectory() as folder, cpu_threads(arguments.threads):
        for runtime in RUNTIMES:
            for batch in arguments.batch_size:
                watches = {
                    place: Stopwatch(
                        call(checkpoint, runtime, batch, Path(folder) / f"{place}.onnx", arguments.threads), CPU,
                        MIN_SECONDS,
                    )
                    for place, (_, checkpoint) in enumerate(found)
                }  # fmt: skip
                for place, seconds in seconds_in_turns(watches, arguments.rounds).items():
                    rows[place]["ms"][runtime][str(batch)] = round(1000 * statistics.median(seconds), 4)
        machine = {**machine_info(CPU), "load_before": load}
    for row in rows:
        print(f"{row['group']:20} {row['label']:14} {row['mean']:.2f} % {row['ms']}")
    if arguments.output:
        config = {"rounds": arguments.rounds, "threads": arguments.threads, "batch_sizes": arguments.batch_size}
        write_json(arguments.output, {"config": config, "machine": machine, "runtimes": rows})


if __name__ == "__main__":
    main()
