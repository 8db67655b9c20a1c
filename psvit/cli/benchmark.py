"""``psvit benchmark``: images per second of networks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from psvit.cli.flags import Flags, config_from
from psvit.config import Text
from psvit.latency.benchmark_config import BenchmarkConfig

DESCRIPTION = """Images per second of networks side by side, in turns, on this machine: psvit variants, genotypes,
checkpoint folders and models of timm. Ratios are to the first.
Example: psvit benchmark deit_tiny_patch16_224 psvit_2d_tiny --dtype float32 bfloat16"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, measure and print a table."""
    defaults = BenchmarkConfig(("MODEL",))
    flags = Flags("benchmark MODEL [MODEL ...]", DESCRIPTION, defaults, apart=("models",))
    flags.add("models", "variants, genotypes, checkpoint folders, models of timm", tuple[Text, ...])
    flags.add("--json", "print JSON instead of a table", bool, False)
    values = flags.parse(arguments)
    config = config_from(values, defaults)

    from rich.console import Console

    from psvit.arch.model_config import ModelConfig
    from psvit.engine.open_model import open_model
    from psvit.latency.benchmark import benchmark
    from psvit.latency.benchmark_report import table
    from psvit.report.tables import to_rich

    console = Console(stderr=True)
    report = benchmark(
        config,
        lambda name, img_size: open_model(ModelConfig.of(name), img_size=img_size).eval(),
        progress=lambda line: console.print(line, style="dim", highlight=False),
    )
    if values.json:
        print(json.dumps(report.to_dict()))
    else:
        Console(width=None if sys.stdout.isatty() else 170).print(to_rich(table(report)))
    return 0
