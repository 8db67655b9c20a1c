"""When does sharing save time: layers that share a map beside layers with fused attention, by the number of tokens?

    python benchmarks/sharing.py --output docs/results/sharing.json

Runs of layers take turns: AA with the fused kernel, AA with explicit maps, AS, ASS, and an ASS whose layers hand on
queries and keys, from which the fused kernel recomputes the map; whole layers and their attention alone, in eager mode.
In torch.compile and ONNX Runtime: whole layers of one width. ONNX files have no fused attention.
All in float32, with freed memory kept. Times are per layer, since runs differ in length; ratios are to AA of the same
round. A quarter of an hour on two quiet cores; --output is written after every case, and goes on where it was cut off.
--small is a first look, without torch.compile, in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from math import isqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit import Arch
from psvit.engine.hardware import cpu_threads, fresh_compiler, machine_info
from psvit.engine.memory import keep_freed_memory
from psvit.errors import one_line
from psvit.export.graph import to_onnx
from psvit.export.runtime import open_session
from psvit.files import write_json
from psvit.latency.timing import MIN_SECONDS, Stopwatch, seconds_in_turns
from psvit.models.attention import Attend, Share, merge_heads, split_heads
from psvit.models.stage import Stage, build_stages

TOKENS = 49, 64, 100, 196, 256, 576, 1024, 2304, 4096
SIZES = (4, 16), (3, 64), (6, 64)
"""Heads and their size."""
OTHER_MODES = (3, 64)
"""The size measured in torch.compile and ONNX Runtime, where every run is compiled or exported first."""
COMPILED = 64, 256, 1024, 4096
"""Token counts measured in torch.compile, at batch 1: compiling takes much longer than timing."""
SMALL_TOKENS, SMALL_SIZES = (64, 256, 1024), SIZES[:2]
BATCHES = 1, 16
LARGEST_MAP = 0.5e9
"""The most bytes of a map: an explicit layer holds two of them at once."""

BASE = "AA"
EXPLICIT = "AA explicit"
SHARING = "AS", "ASS"
RECOMPUTED = "ASS recomputed"


class Recomputed(nn.Module):
    """An A or S that hands on queries and keys instead of the map; the numbers are those of the explicit map."""

    def __init__(self, attn: Attend | Share) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor, handed_on: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """(B, N, C), and queries and keys -> (B, N, C), and queries and keys."""
        own, heads = self.attn, self.attn.num_heads
        if isinstance(own, Attend):
            *handed_on, v = split_heads(own.qkv(x), 3 * heads).chunk(3, dim=1)
        else:
            v = split_heads(own.v(x), heads)
        q, k = handed_on
        return own.proj(merge_heads(F.scaled_dot_product_attention(q, k, v))), handed_on


class Run(nn.Module):
    """Consecutive layers of one stage, or their attention alone: (B, 1, N, C) -> (B, N, C)."""

    def __init__(self, run: str, heads: int, head_dim: int, part: str = "layer") -> None:
        super().__init__()
        genotype = run.partition(" ")[0]
        arch = Arch(genotype, widths=(heads * head_dim,), head_dim=head_dim)
        self.stage: Stage = build_stages(arch, None, 0.0, 0.0, 0.0)[0]
        self.part = part
        block: Any
        for block in self.stage.blocks:
            block.attn.fused_attn = run != EXPLICIT
            if run == RECOMPUTED:
                block.attn = Recomputed(block.attn)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens behind the layers."""
        x, attn = x.squeeze(1), None
        side = isqrt(x.shape[1])
        if self.part == "layer":
            return self.stage(x, (side, side))[0]
        block: Any
        for block in self.stage.blocks:
            x, attn = block.attn(x, attn)
        return x


@dataclass(frozen=True)
class Case:
    """What takes turns: the runs of one size on one input."""

    mode: str
    part: str
    tokens: int
    heads: int
    head_dim: int
    batch: int

    def skipped(self) -> str | None:
        """Why it is not measured."""
        size = 4 * self.batch * self.heads * self.tokens**2
        return f"a map takes {size / 1e9:.1f} GB" if size > LARGEST_MAP else None

    def images(self) -> Tensor:
        """The input of every run: noise."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 1, self.tokens, self.heads * self.head_dim, generator=generator)


def cases(small: bool) -> Iterator[Case]:
    """Every case; other modes than eager are measured for whole layers of one size."""
    modes = ("eager", "onnx") if small else ("eager", "compile", "onnx")
    sizes, tokens = (SMALL_SIZES, SMALL_TOKENS) if small else (SIZES, TOKENS)
    for mode, part, (heads, head_dim), batch, count in product(modes, ("layer", "attention"), sizes, BATCHES, tokens):
        other = part == "layer" and (heads, head_dim) == OTHER_MODES
        if mode == "eager" or (other and (mode == "onnx" or (batch == 1 and count in COMPILED))):
            yield Case(mode, part, count, heads, head_dim, batch)


def call(case: Case, run: str, folder: Path, threads: int) -> Callable[[], object]:
    """The call to time."""
    model = Run(run, case.heads, case.head_dim, case.part).eval().requires_grad_(False)
    images = case.images()
    if case.mode == "onnx":
        path = folder / f"{run}-{case.tokens}.onnx"
        if not path.exists():
            path.write_bytes(to_onnx(model, (1, *images.shape[2:])).SerializeToString())
        return partial(open_session(path, threads).run, None, {"images": images.numpy()})
    runs = torch.compile(model, dynamic=False) if case.mode == "compile" else model

    def infer() -> None:
        with torch.inference_mode():
            runs(images)

    return infer


def measured(case: Case, rounds: int, folder: Path, threads: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Milliseconds a layer of each run, and its ratio to `BASE`."""
    runs = [BASE, *SHARING, *([EXPLICIT, RECOMPUTED] if case.mode == "eager" else [])]
    cpu = torch.device("cpu")
    watches = {run: Stopwatch(call(case, run, folder, threads), cpu, MIN_SECONDS, clock) for run in runs}
    timed = seconds_in_turns(watches, rounds).items()
    seconds = {run: [second / len(run.partition(" ")[0]) for second in timings] for run, timings in timed}
    return {
        "ms": {run: 1000 * statistics.median(own) for run, own in seconds.items()},
        "ratio": {
            run: statistics.median(a / b for a, b in zip(own, seconds[BASE], strict=True))
            for run, own in seconds.items()
        },
    }


def crossings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each size and run that shares: the tokens from which on it is slower than `BASE`; None if it never is."""
    found = []
    alike = "mode", "part", "heads", "head_dim", "batch"
    for key in dict.fromkeys(tuple(row[name] for name in alike) for row in rows):
        group = [row for row in rows if tuple(row[name] for name in alike) == key and not row["skipped"]]
        for run in SHARING:
            slower_from = None
            for row in sorted(group, key=lambda row: -row["tokens"]):
                if row["ratio"][run] <= 1:
                    break
                slower_from = row["tokens"]
            found.append({**dict(zip(alike, key, strict=True)), "run": run, "slower_from": slower_from})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--small", action="store_true", help="no torch.compile, fewer token counts and sizes, for a first look"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--cpu-time", action="store_true", help="for a busy machine, and one thread: CPU time counts")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    config = {
        "small": arguments.small,
        "rounds": arguments.rounds,
        "cpu_time": arguments.cpu_time,
        "dtype": "float32",
    }
    keep_freed_memory(largest=True)
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder, cpu_threads(arguments.threads), fresh_compiler():
        machine = machine_info(torch.device("cpu"))
        rows = kept(arguments.output, config, machine)
        for case in cases(arguments.small):
            if any(row.items() >= asdict(case).items() for row in rows):
                continue
            row: dict[str, Any] = {**asdict(case), "skipped": case.skipped()}
            if not row["skipped"]:
                try:
                    row |= measured(case, arguments.rounds, Path(folder), arguments.threads, clock)
                except Exception as error:  # no compiler, no memory, no ONNX Runtime
                    row["skipped"] = one_line(error, kind=True)
            print(*asdict(case).values(), row["skipped"] or {run: f"{x:.2f}" for run, x in row["ratio"].items()},
                  flush=True)  # fmt: skip
            rows.append(row)
            if arguments.output:
                told = {**machine, "load_before": load}
                write_json(
                    arguments.output,
                    {"config": config, "machine": told, "layers": rows, "crossings": crossings(rows)},
                )


def kept(output: Path | None, config: dict[str, Any], machine: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run that was cut off: of the same settings, on the same machine."""
    if output is None or not output.is_file():
        return []
    before = json.loads(output.read_text(encoding="utf-8"))
    same = before["config"] == config and machine.items() <= before["machine"].items()
    return list(before["layers"]) if same else []


if __name__ == "__main__":
    main()
