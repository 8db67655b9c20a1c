"""``psvit segment``: a class for each pixel."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from psvit.cli.dense import evaluated, evaluation_flags, prediction_flags, run_action
from psvit.cli.evaluate import prints, report_unreadable
from psvit.cli.flags import config_from, with_recipe
from psvit.cli.predict import find_images, readable
from psvit.data.objects.objects_config import ClassMapDataConfig
from psvit.engine.train_config import Machine, RunConfig
from psvit.errors import UserError
from psvit.files import check_writable
from psvit.tasks.dense.dense_config import RECIPES
from psvit.tasks.segmentation.segmenter_config import SegmentConfig

HELP = """usage: psvit segment train | evaluate | predict [flags]        psvit segment train --help tells the flags

  train      FPN, Unet, UPerNet, DeepLabV3+, SegFormer or DPT on a PSViT, or on any model of timm with feature maps
  evaluate   mean intersection over union of a checkpoint, and of each class
  predict    the classes in image files and folders, as class maps, drawn and as JSON

try: psvit segment train --data digits-scenes --epochs 4"""

TRAIN = """Train a segmenter: a decoder of segmentation_models_pytorch on a backbone.
Example:                   psvit segment train --data digits-scenes --epochs 4
From a trained classifier: psvit segment train --model runs/train/best --data FOLDER (ADE20K, VOC, images and masks)"""

EVALUATE = """Mean intersection over union of a segmenter on the test split (or another), over whole images.
Example: psvit segment evaluate runs/segment/best --data digits-scenes"""

PREDICT = """The class of each pixel of image files, and of all images in folders.
Example: psvit segment predict runs/segment/best photo.jpg more-photos --output found"""


def main(arguments: Sequence[str]) -> int:
    """Run the action that the first argument names."""
    return run_action("segment", HELP, {"train": train, "evaluate": evaluate, "predict": predict}, arguments)


def train(arguments: Sequence[str]) -> int:
    """Parse the flags and train."""
    run = RunConfig(output="runs/segment")
    config = with_recipe(
        "segment train", TRAIN, lambda recipe: SegmentConfig(recipe=recipe, run=run), arguments, RECIPES,
        ("data_dir", "class_folders"),
    )  # fmt: skip

    from psvit.engine.hardware import keep_freed_memory

    keep_freed_memory()
    from psvit.tasks.dense.dense_training import train_dense
    from psvit.tasks.segmentation.segment import Segmentation

    train_dense(Segmentation, config)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Parse the flags, evaluate and print."""
    data = ClassMapDataConfig()
    values = evaluation_flags("segment", EVALUATE, data).parse(arguments)

    from psvit.engine.hardware import keep_freed_memory

    keep_freed_memory()
    from psvit.tasks.dense.dense_checkpoints import as_trained
    from psvit.tasks.segmentation.segment import Segmentation

    data = as_trained(values.checkpoint, data)
    values = evaluation_flags("segment", EVALUATE, data).parse(arguments)  # again: the default of --scenes is known now
    found = evaluated(Segmentation, values, data)
    figures = found.figures
    if not prints():
        return 0
    per_class = figures.per_class
    if values.json:
        print(json.dumps({**figures.to_dict(), "per_class": per_class, "unreadable": list(figures.unreadable),
                          **found.told()}, ensure_ascii=False))  # fmt: skip
        return 0
    print(f"{found.heading(values, figures.images)}\nin percent\n")
    counted = sum(value is not None for value in per_class.values())
    print(f"mean intersection over union   {figures.miou:6.2f}   (mean of {counted} of {len(per_class)} classes)")
    print(f"pixel accuracy                 {figures.pixel_accuracy:6.2f}\n")
    width = max(map(len, per_class))
    for name, value in per_class.items():
        print(f"  {name:<{width}}  " + ("     - neither there nor predicted" if value is None else f"{value:6.2f}"))
    report_unreadable(figures.unreadable)
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Parse the flags, segment, print one line an image, and write class maps and drawn images."""
    output = "folder for masks/ (PNG, pixels are class numbers), drawn/ and classes.txt"
    values = prediction_flags("segment", PREDICT, output).parse(arguments)
    paths = find_images(values.images)

    from psvit.engine.hardware import keep_freed_memory

    keep_freed_memory()
    from psvit.tasks.dense.dense_checkpoints import predict_dense
    from psvit.tasks.dense.drawing import draw_class_map, files_for, write_class_map
    from psvit.tasks.segmentation.segment import Segmentation

    folder = Path(values.output) if values.output else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: give a folder")
    if folder is not None:
        check_writable(folder, f"--output {folder}")
    if (
        folder is not None
        and values.overwrite
        and any(p.parent.resolve() == (folder / "images").resolve() for p in paths)
    ):
        raise UserError(f"--overwrite would replace the masks of the set in {folder}, whose images these are: give "
                        "another --output")  # fmt: skip
    masks = files_for(paths, str(folder / "masks"), values.overwrite) if folder else {}
    drawn = files_for(paths, str(folder / "drawn"), values.overwrite) if folder else {}
    predictions = predict_dense(Segmentation, values.checkpoint, paths, config_from(values, Machine()))
    for path, found in readable(paths, predictions):
        shares = found.shares
        if values.json:
            height, width = found.classes.shape
            parts = {name: round(share, 4) for name, share in shares.items()}
            print(json.dumps({"image": found.image, "height": height, "width": width, "percent": parts},
                             ensure_ascii=False))  # fmt: skip
        else:
            told = (f"{name} {share:.1f} %" for name, share in shares.items() if round(share, 1))
            print(f"{found.image}  " + "  ".join(told))
        if folder:
            _write_names(folder / "classes.txt", found.names, values.overwrite)
            write_class_map(found.classes, masks[path], found.background)
            draw_class_map(found.pixels, found.classes, drawn[path], found.background)
    if folder:
        print(f"class maps in {folder / 'masks'}, drawn in {folder / 'drawn'}", file=sys.stderr)
    return 0


def _write_names(file: Path, names: Sequence[str], overwrite: bool) -> None:
    """One name a line, by class number: with masks/, the layout that --data reads."""
    from psvit.files import replacing

    text = "".join(f"{name}\n" for name in names)
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace") == text:
        return
    if file.exists() and not overwrite:
        raise UserError(f"{file} names other classes: give --overwrite to replace it, or another --output")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
