"""``psvit detect``: objects in images, with their boxes and masks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psvit.cli.dense import evaluated, evaluation_flags, prediction_flags, run_action
from psvit.cli.evaluate import prints, report_unreadable
from psvit.cli.flags import config_from, with_recipe
from psvit.cli.predict import find_images, readable
from psvit.config import Fraction
from psvit.data.objects.objects_config import ObjectDataConfig
from psvit.engine.train_config import Machine, RunConfig
from psvit.tasks.dense.dense_config import RECIPES
from psvit.tasks.detection.detector_config import DetectConfig

HELP = """usage: psvit detect train | evaluate | predict [flags]        psvit detect train --help tells the flags

  train      Mask R-CNN, Faster R-CNN or RetinaNet on a PSViT, or on any model of timm with feature maps
  evaluate   COCO's average precision of a checkpoint, of boxes and of masks
  predict    the objects in image files and folders, drawn and as JSON

try: psvit detect train --data digits-scenes --epochs 6"""

TRAIN = """Train a detector: torchvision's Mask R-CNN, Faster R-CNN or RetinaNet on a backbone.
Example:                   psvit detect train --data digits-scenes --epochs 6
From a trained classifier: psvit detect train --model runs/train/best --data FOLDER (a layout of COCO or Pascal VOC)"""

EVALUATE = """COCO's average precision of a detector on the test split (or another): boxes, and masks where it has them.
Example: psvit detect evaluate runs/detect/best --data digits-scenes"""

PREDICT = """The objects in image files, and in all images in folders.
Example: psvit detect predict runs/detect/best photo.jpg more-photos --output found"""


def main(arguments: Sequence[str]) -> int:
    """Run the action that the first argument names."""
    return run_action("detect", HELP, {"train": train, "evaluate": evaluate, "predict": predict}, arguments)


def train(arguments: Sequence[str]) -> int:
    """Parse the flags and train."""
    run = RunConfig(output="runs/detect")
    config = with_recipe(
        "detect train",
        TRAIN,
        lambda recipe: DetectConfig(recipe=recipe, run=run),
        arguments,
        RECIPES,
        ("data_dir", "class_folders"),
    )

    from psvit.engine.hardware import keep_freed_memory

    keep_freed_memory()
    from psvit.tasks.dense.dense_training import train_dense
    from psvit.tasks.detection.detect import Detection

    train_dense(Detection, config)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Parse the flags, evaluate and print."""
    data = ObjectDataConfig()
    values = evaluation_flags("detect", EVALUATE, data).parse(arguments)

    from psvit.engine.hardware import keep_freed_memory

    keep_freed_memory()
    from psvit.tasks.dense.dense_checkpoints import as_trained
    from psvit.tasks.detection.detect import Detection

    data = as_trained(values.checkpoint, data)
    values = evaluation_flags("detect", EVALUATE, data).parse(arguments)  # again: the default of --scenes is known now
    found = evaluated(Detection, values, data)
    figures = found.figures
    if not prints():
        return 0
    if values.json:
        print(json.dumps({**figures.to_dict(), "box_per_class": figures.box["per_class"],
                          "mask_per_class": figures.mask["per_class"] if figures.mask else None,
                          "unreadable": list(figures.unreadable), **found.told()}, ensure_ascii=False))  # fmt: skip
        return 0
    print(f"{found.heading(values, figures.images)}\naverage precision in percent\n")
    kinds = {"box": figures.box, "mask": figures.mask}
    shown = {kind: part for kind, part in kinds.items() if part is not None}
    print("        AP     AP50   AP75   small  medium large")
    for kind, part in shown.items():
        print(f"{kind:<6}" + "".join(f"{_percent(part[name]):>7}" for name in part if name != "per_class"))
    names = list(figures.box["per_class"])
    width = max(map(len, names))
    print("\n" + " " * (width + 2) + "".join(f"{kind:>8}" for kind in shown))
    for name in names:
        print(f"  {name:<{width}}" + "".join(f"{_percent(part['per_class'][name]):>8}" for part in shown.values()))
    report_unreadable(figures.unreadable)
    return 0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def predict(arguments: Sequence[str]) -> int:
    """Parse the flags, detect, print one line an image and draw what was found."""
    flags = prediction_flags("detect", PREDICT, "folder for the images with what was found in them drawn")
    flags.add("--threshold", "least score of what is shown", Fraction, 0.5)
    values = flags.parse(arguments)
    paths = find_images(values.images)

    from psvit.engine.hardware import keep_freed_memory

    keep_freed_memory()
    from psvit.tasks.dense.dense_checkpoints import predict_dense
    from psvit.tasks.dense.drawing import draw_objects, files_for
    from psvit.tasks.detection.detect import Detection

    drawn = files_for(paths, values.output, values.overwrite) if values.output else {}
    machine = config_from(values, Machine())
    predictions = predict_dense(Detection, values.checkpoint, paths, machine, score_threshold=values.threshold)
    for path, found in readable(paths, predictions):
        objects = [_plain(label, score, box) for label, score, box in
                   zip(found.labels, found.scores, found.boxes.tolist(), strict=True)]  # fmt: skip
        if values.json:
            print(json.dumps({"image": found.image, "objects": objects}, ensure_ascii=False))
        else:
            summary = "  ".join(f"{one['label']} {100 * one['score']:.0f} %" for one in objects) or "nothing"
            print(f"{found.image}  {summary}")
        if path in drawn:
            draw_objects(found.pixels, found.boxes, found.labels, found.scores, found.masks, drawn[path])
    if values.output:
        print(f"drawn in {Path(values.output)}", file=sys.stderr)
    return 0


def _plain(label: str, score: float, box: Sequence[float]) -> dict[str, Any]:
    return {"label": label, "score": round(score, 4), "box": [round(side, 1) for side in box]}
