"""``psvit predict``: classes of images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from psvit.cli.flags import Flags, config_from
from psvit.config import Count, Text
from psvit.engine.train_config import Machine
from psvit.errors import UserError

T = TypeVar("T")

DESCRIPTION = """The most likely classes of image files, and of all images in folders, with their probabilities.
Example: psvit predict runs/train/best photo.jpg more-photos --top 3"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, predict and print one line per image."""
    flags = Flags("predict CHECKPOINT IMAGE [IMAGE ...]", DESCRIPTION, Machine())
    add_prediction_flags(flags, "checkpoint folder, for example runs/train/best, or an ONNX file of psvit export")
    flags.add("--top", "number of classes per image", Count, 5)
    flags.add("--batch-size", f"images at a time {batch_text(64)}", Count)
    flags.add("--explain", "draw what each layer attends to, one PNG per image, into this folder")
    flags.add("--overwrite", "replace existing figures of --explain", bool, False)
    values = flags.parse(arguments)
    paths = find_images(values.images)

    from psvit.export.runtime import batch_size_for, open_classifier
    from psvit.tasks.classification.evaluate import predict

    width = max(len(str(path)) for path in paths)
    machine = config_from(values, Machine())
    classifier = open_classifier(values.checkpoint, machine.threads, machine.precision, machine.device)
    batch_size = batch_size_for(classifier, values.batch_size, 64)
    predictions = predict(classifier, paths, machine, values.top, batch_size)
    explainer = None
    if values.explain is not None:
        from psvit.analysis.explain import Explainer

        explainer = Explainer(values.checkpoint, paths, values.explain, machine, values.overwrite)
    for _, found in readable(paths, predictions):
        figure = {"figure": str(explainer.draw(found))} if explainer is not None else {}
        ranking = list(zip(found.labels, found.probabilities, strict=True))
        if values.json:
            classes = [{"label": label, "probability": round(p, 6)} for label, p in ranking]
            print(json.dumps({"image": found.image, "classes": classes, **figure}, ensure_ascii=False))
        else:
            print(f"{found.image:<{width}}  " + "  ".join(f"{label} {100 * p:.1f} %" for label, p in ranking))
    if explainer is not None and not values.json:
        print(f"figures   {values.explain}")
    return 0


def batch_text(default: int) -> str:
    """Help text of the default of a classifier's --batch-size."""
    return f"(default {default}, or that of an ONNX file with a fixed batch)"


def add_prediction_flags(flags: Flags, checkpoint: str) -> None:
    """Add the flags of any prediction; `checkpoint` is the help text of the checkpoint."""
    flags.add("checkpoint", checkpoint)
    flags.add("images", "image files, or folders of them", tuple[Text, ...])
    flags.add("--json", "print one JSON object a line", bool, False)


def readable(paths: Sequence[Path], found: Iterable[T | UserError]) -> Iterator[tuple[Path, T]]:
    """Image files with their predictions; unreadable ones are reported on stderr.

    Raises:
        UserError: no image can be read.
    """
    read = 0
    for path, one in zip(paths, found, strict=True):
        if isinstance(one, UserError):
            print(f"psvit: {one}", file=sys.stderr)
        else:
            read += 1
            yield path, one
    if not read:
        raise UserError(f"none of {len(paths)} images can be read")


def find_images(names: Sequence[str]) -> list[Path]:
    """The image files in `names`, and all images in folders; files left out are reported on stderr.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    from psvit.data.image_files import images_in

    found, left_out = images_in(names)
    for line in left_out.lines():
        print(f"left out: {line}", file=sys.stderr)
    return found
