"""``psvit evaluate``: the figures of a checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from psvit.cli.flags import Flags, settings_from
from psvit.training.recipes import Machine
from psvit.training.settings import DataSettings

DESCRIPTION = """Top-1, top-5, loss and accuracy per class of a checkpoint on the test split (or another).
Example: psvit evaluate runs/train/best --data digits"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, evaluate and print."""
    flags = Flags("evaluate CHECKPOINT", DESCRIPTION, DataSettings(), Machine(), apart=("limit",))
    flags.add("checkpoint", help="checkpoint folder, for example runs/train/best")
    flags.add("--split", choices=["test", "holdout", "train"], default="test", help="images to evaluate on")
    flags.add("--batch-size", type=int, default=128, help="images at a time")
    flags.add("--json", action="store_true", help="print JSON")
    values = flags.parse(arguments)

    from psvit.measure.machine import keep_freed_memory

    keep_freed_memory()
    from psvit.training.evaluate import evaluate_checkpoint

    data = settings_from(values, DataSettings())
    metrics, classes = evaluate_checkpoint(
        values.checkpoint, data, settings_from(values, Machine()), values.split, values.batch_size
    )
    per_class = dict(zip(classes, metrics.per_class(), strict=True))
    if values.json:
        print(json.dumps({**metrics.to_dict(), "per_class": per_class, "unreadable": list(metrics.unreadable)},
                         ensure_ascii=False))  # fmt: skip
        return 0
    print(f"{data.data}, {values.split} split, {metrics.count} images")
    print(f"top-1 {metrics.top1:.2f} %   top-5 {metrics.top5:.2f} %   loss {metrics.loss:.4f}\n")
    width = max(map(len, classes))
    for (name, accuracy), images in zip(per_class.items(), metrics.images, strict=True):
        print(f"  {name:<{width}}  " + (f"{accuracy:6.2f} % of {images}" if accuracy is not None else "   no images"))
    if metrics.unreadable:
        print(f"skipped {len(metrics.unreadable)} unreadable images: {', '.join(metrics.unreadable[:3])}",
              file=sys.stderr)  # fmt: skip
    return 0
