"""``psvit benchmark``: images per second of networks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from psvit.cli.flags import Flags, config_from
from psvit.config import Text
from psvit.latency.benchmark_config import BenchmarkConfig

DESCRIPTION = """Images per second of networks side by side, in turns, on this machine: psvit variants, genotypes,
checkpoint folders and models of timm. Ratios are to the first; with --train, to a step on ready images.
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
    from psvit.data.data_config import DataConfig
    from psvit.data.datasets import open_data
    from psvit.engine.open_model import open_model
    from psvit.engine.train_config import Machine
    from psvit.latency.benchmark import benchmark
    from psvit.latency.benchmark_report import table
    from psvit.report.tables import to_rich
    from psvit.tasks.classification.training_steps import TrainingSteps

    asked = DataConfig(config.data or DataConfig.data, config.data_dir, config.img_size)
    data = open_data(asked) if config.data is not None else None
    shape = {} if data is None else {"in_chans": data.in_chans, "num_classes": len(data.classes)}
    size = config.img_size if data is None else data.img_size
    console = Console(stderr=True)
    report = benchmark(
        config,
        lambda name, _: open_model(ModelConfig.of(name), img_size=size, **shape).eval(),
        progress=lambda line: console.print(line, style="dim", highlight=False),
        steps=TrainingSteps(config.batch_size, Machine(config.device), data, asked).all() if config.train else None,
    )
    if values.json:
        print(json.dumps(report.to_dict()))
    else:
        Console(width=None if sys.stdout.isatty() else 170).print(to_rich(table(report)))
    return 0
