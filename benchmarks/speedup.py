"""Is the speed-up of a genotype over its plain twin at least its MACs ratio?

    python benchmarks/speedup.py --output docs/results/speedup.json

Draws genotypes of twelve layers from the compact set (and takes the named variants' own), builds each beside its plain
twin (same depth and first width, every layer attends, nothing pools) and times both in turns. About ten minutes on two
cores. The widths of all stages are equal, so that the MACs ratio comes from pooling and sharing alone.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from psvit import Arch, cost
from psvit.engine.memory import keep_freed_memory
from psvit.files import write_json
from psvit.latency.benchmark import benchmark
from psvit.latency.benchmark_config import BenchmarkConfig
from psvit.models.build import build_arch


def random_genotype(rng: random.Random, depth: int = 12) -> str:
    gaps = rng.choices(("A", "S", "-A"), weights=(3, 3, 1), k=depth - 1)
    letters = "A"
    for gap in gaps:
        pools = letters.count("-")
        letters += "A" if gap == "-A" and pools == 2 else gap
    return letters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8, help="genotypes to draw")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()

    rng = random.Random(arguments.seed)
    genotypes = ["ASASASASASAS", "AAAA-AAAA-AAAA", *(random_genotype(rng) for _ in range(arguments.count))]
    rows = []
    for genotype in genotypes:
        arch = Arch(genotype, widths=(arguments.width,) * (genotype.count("-") + 1))
        pair = {"twin": arch.plain(), "genotype": arch}
        config = BenchmarkConfig(
            tuple(pair), batch_size=arguments.batch_size, dtype=tuple(arguments.dtype), rounds=arguments.rounds
        )

        def built(name: str, img_size: Any, pair: dict[str, Arch] = pair) -> Any:
            return build_arch(pair[name]).eval()

        report = benchmark(config, built)
        macs_ratio = cost.macs(pair["twin"]) / cost.macs(arch)
        for row in report.rows:
            if row.model == "genotype" and row.speed is not None and row.speed.ratio is not None:
                speedup = row.speed.ratio.median
                holds = speedup >= macs_ratio
                rows.append({"genotype": genotype, "dtype": row.dtype, "macs_ratio": macs_ratio, "speedup": speedup})
                rows[-1]["holds"] = holds
                verdict = "holds" if holds else "FAILS"
                print(
                    f"{genotype:<18} {row.dtype:<9} MACs {macs_ratio:.2f}x  speed {speedup:.2f}x  {verdict}", flush=True
                )
    if arguments.output:
        config_used = {**vars(arguments), "output": str(arguments.output)}
        write_json(arguments.output, {"config": config_used, "machine": report.machine, "rows": rows})


if __name__ == "__main__":
    main()
