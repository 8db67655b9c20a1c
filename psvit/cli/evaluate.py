"""``psvit evaluate``: the metrics of a checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Literal

from psvit.cli.flags import Flags, SplitFlags, config_from
from psvit.cli.predict import batch_text
from psvit.config import Count
from psvit.data.data_config import OF_A_RUN, DataConfig
from psvit.engine.train_config import Machine

DESCRIPTION = """Top-1, top-5, loss and accuracy per class of a checkpoint on the test split (or another).
Example: psvit evaluate runs/train/best --data digits"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, evaluate and print."""
    defaults = SplitFlags(), DataConfig(), Machine()
    flags = Flags("evaluate CHECKPOINT", DESCRIPTION, *defaults, apart=("limit", *OF_A_RUN))
    checkpoint = "checkpoint folder, for example runs/train/best, or an ONNX file of psvit export"
    values = add_evaluation_flags(flags, checkpoint, None, batch_text(128)).parse(arguments)

    from psvit.engine.trained_on import check_cut, trained_on
    from psvit.export.runtime import batch_size_for, open_classifier
    from psvit.tasks.classification.evaluate import evaluate_classifier

    machine = config_from(values, Machine())
    classifier = open_classifier(values.checkpoint, machine.threads, machine.precision, machine.device)
    trained = trained_on(classifier.metadata)
    data = config_from(values, DataConfig(), **config_from(values, SplitFlags()).filled(trained))
    if values.split == "validation" and trained is not None:
        check_cut(classifier.source, trained, data)
    batch_size = batch_size_for(classifier, values.batch_size, 128)
    metrics, opened = evaluate_classifier(classifier, data, machine, values.split, batch_size)
    if not prints():
        return 0
    classes = opened.classes
    per_class = dict(zip(classes, metrics.per_class(), strict=True))
    if values.json:
        known = {"trained_on": metrics.trained_on} if opened.files is not None else {}
        print(json.dumps({**metrics.to_dict(), "per_class": per_class, "unreadable": list(metrics.unreadable), **known},
                         ensure_ascii=False))  # fmt: skip
        return 0
    for note in opened.notes:
        print(f"note      {note}", file=sys.stderr)
    origin = opened.files.origins[values.split] if opened.files is not None else None
    print_split(data.data, values.split, metrics.count, origin, metrics.trained_on)
    print(f"top-1 {metrics.top1:.2f} %   top-5 {metrics.top5:.2f} %   loss {metrics.loss:.4f}\n")
    width = max(map(len, classes))
    for (name, accuracy), images in zip(per_class.items(), metrics.images, strict=True):
        print(f"  {name:<{width}}  " + (f"{accuracy:6.2f} % of {images}" if accuracy is not None else "   no images"))
    print_unreadable(metrics.unreadable)
    return 0


def print_split(data: str, split: str, images: int, origin: str | None, trained_on: int | None) -> None:
    """Print the evaluated split and, for a folder (with an origin), how many images the network was trained on."""
    print(f"{data}, {split} split{f' ({origin})' if origin is not None else ''}, {images} images")
    if origin is None:
        return
    if trained_on is None:
        print("whether the network was trained on some of them is not known: no images.csv of its run lies beside it")
    elif split == "train" or not trained_on:
        print(f"the network was trained on {trained_on} of them")
    else:
        print(f"the network was TRAINED ON {trained_on} of them (equal bytes): these metrics are too high")


def prints() -> bool:
    """Whether this process prints the metrics: under torchrun only the first does."""
    from accelerate.state import PartialState

    return bool(PartialState().is_main_process)


def add_evaluation_flags(flags: Flags, checkpoint: str, batch_size: int | None, batch_text: str = "") -> Flags:
    """Add the flags of any evaluation to `flags`, and return them.

    Args:
        flags: those of the data and the machine.
        checkpoint: help text of the checkpoint.
        batch_size: the default.
        batch_text: help text of a default that is None.
    """
    flags.add("checkpoint", checkpoint)
    flags.add("--split", "images to evaluate on", Literal["test", "validation", "train"], "test")
    flags.add("--batch-size", f"images at a time {batch_text}".rstrip(), Count, batch_size)
    flags.add("--json", "print JSON", bool, False)
    return flags


def print_unreadable(names: Sequence[str]) -> None:
    """Print to stderr which images were skipped."""
    if names:
        print(f"skipped {len(names)} unreadable images: {', '.join(names[:3])}", file=sys.stderr)
