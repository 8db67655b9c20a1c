"""``psvit export``: a checkpoint for other runtimes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial

from psvit.cli.flags import Flags, SplitFlags, config_from
from psvit.data.data_config import OF_A_RUN, DataConfig
from psvit.errors import UserError
from psvit.export.export_config import ExportConfig

DESCRIPTION = """Write a checkpoint as an ONNX file (float32 and int8), a program of torch.export, TorchScript, or a
folder for timm and the Hugging Face Hub. The result is loaded again and compared with the network; ONNX files are timed
against it.
Example: psvit export runs/train/best --int8 --data fashion-mnist"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, export and print a summary."""
    defaults = ExportConfig(), SplitFlags(), DataConfig()
    flags = Flags("export CHECKPOINT", DESCRIPTION, *defaults, apart=("limit", *OF_A_RUN))
    flags.add("checkpoint", "checkpoint folder, for example runs/train/best")
    flags.add("--json", "print JSON", bool, False)
    values = flags.parse(arguments)
    config = config_from(values, ExportConfig())
    if config.data is None and config.split != "validation":
        raise UserError(f"--split {config.split} needs images: give --data")

    from psvit.engine.checkpoints import read_metrics
    from psvit.engine.trained_on import trained_on
    from psvit.export.export import export
    from psvit.export.exported import summary, timing_table
    from psvit.report.tables import print_table

    data = None
    if config.data is not None:
        trained = trained_on(read_metrics(values.checkpoint))
        data = config_from(values, DataConfig(), img_size=None, **config_from(values, SplitFlags()).filled(trained))
    say = partial(print, file=sys.stderr if values.json else sys.stdout)
    result = export(values.checkpoint, config, data, say)
    if values.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
        return 0
    if result.timings:
        print_table(timing_table(result.timings))
    for line in summary(result, config):
        print(line)
    return 0
