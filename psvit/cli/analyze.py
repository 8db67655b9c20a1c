"""``psvit analyze``: redundancy of attention maps and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from psvit.analysis.advice import AnalyzeConfig
from psvit.arch.model_config import ModelFlags
from psvit.cli.flags import Flags, config_from
from psvit.data.data_config import OF_A_RUN, DataConfig
from psvit.engine.train_config import Machine

DESCRIPTION = """Measure how similar attention maps of different layers, and neighbouring tokens, are in a vision
transformer, and where it could share maps and pool tokens. Writes figures, numbers and a page with a verdict.
MODEL is a checkpoint folder, or a vision transformer of timm (with --pretrained).
Example: psvit analyze runs/train/best --data digits"""

KEPT = ("pretrained", "patch_size")
"""Flags of a network that this command has."""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, analyze, and print a table and the verdict."""
    apart = ("limit", "precision", *OF_A_RUN, *(f.name for f in fields(ModelFlags) if f.name not in KEPT))
    defaults = AnalyzeConfig(), DataConfig(), ModelFlags(), Machine()
    flags = Flags("analyze MODEL", DESCRIPTION, *defaults, apart=apart)
    flags.add("model", "checkpoint folder, model of timm, variant or genotype")
    flags.add("--json", "print the numbers as JSON instead of a table", bool, False)
    values = flags.parse(arguments)
    config = config_from(values, AnalyzeConfig())
    model = config_from(values, ModelFlags(), model=values.model).config()

    import json

    from rich.console import Console

    from psvit.analysis.analysis_page import PAGE, SHORT, layer_table
    from psvit.analysis.analyze import analyze
    from psvit.report.tables import print_table

    progress = Console(stderr=True)
    report = analyze(
        model,
        config_from(values, DataConfig()),
        config_from(values, Machine()),
        config,
        say=lambda line: progress.print(line, style="dim", highlight=False, markup=False, soft_wrap=True),
    )
    if values.json:
        print(json.dumps(report))
        return 0
    print_table(layer_table(report, SHORT))
    print()
    for line in report["verdict"]:
        print(f"- {line.replace('`', '')}")
    for command in report["suggestion"]["commands"]:
        print(f"next      {command}")
    print(f"page      {Path(config.output) / PAGE}")
    return 0
