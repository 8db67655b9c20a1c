"""``psvit segment``: a class for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from psvit.cli.dense import DenseCommand
from psvit.data.objects.objects_config import ClassMapDataConfig
from psvit.errors import UserError
from psvit.files import check_writable, replacing
from psvit.tasks.segmentation.segmenter_config import SegmentConfig

if TYPE_CHECKING:
    from psvit.tasks.segmentation.mean_iou import SegmentationMetrics
    from psvit.tasks.segmentation.segment import ClassMap, Segmentation

HELP = """usage: psvit segment train | evaluate | predict [flags]        psvit segment train --help lists the flags

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
    """Run the action named by the first argument."""
    return _Segment().run(arguments)


class _Segment(DenseCommand):
    name = "segment"
    help: ClassVar = {"segment": HELP, "train": TRAIN, "evaluate": EVALUATE, "predict": PREDICT}
    data = ClassMapDataConfig()
    config = SegmentConfig
    output = "folder for masks/ (PNG, pixels are class numbers), drawn/ and classes.txt"

    def task(self) -> type[Segmentation]:
        from psvit.tasks.segmentation.segment import Segmentation

        return Segmentation

    def per_class(self, metrics: SegmentationMetrics) -> dict[str, Any]:
        return {"per_class": metrics.per_class}

    def print_metrics(self, metrics: SegmentationMetrics) -> None:
        classes = metrics.per_class
        counted = sum(value is not None for value in classes.values())
        print(f"in percent\n\nmean intersection over union   {metrics.miou:6.2f}   "
              f"(mean of {counted} of {len(classes)} classes)")  # fmt: skip
        print(f"pixel accuracy                 {metrics.pixel_accuracy:6.2f}\n")
        width = max(map(len, classes))
        for name, value in classes.items():
            print(f"  {name:<{width}}  " + ("     - neither there nor predicted" if value is None else f"{value:6.2f}"))

    def plain(self, found: ClassMap) -> dict[str, Any]:
        height, width = found.classes.shape
        shares = {name: round(share, 4) for name, share in found.shares.items()}
        return {"height": height, "width": width, "percent": shares}

    def summary(self, found: ClassMap) -> str:
        return "  ".join(f"{name} {share:.1f} %" for name, share in found.shares.items() if round(share, 1))

    def drawing(self, folder: Path, paths: Sequence[Path], overwrite: bool) -> tuple[Callable[[Path, Any], None], str]:
        from psvit.tasks.dense.drawing import draw_class_map, files_for, write_class_map

        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output {folder} is a file: give a folder")
        check_writable(folder, f"--output {folder}")
        if overwrite and any(path.parent.resolve() == (folder / "images").resolve() for path in paths):
            raise UserError(f"--overwrite would replace the masks of the set in {folder}, whose images these are: give "
                            "another --output")  # fmt: skip
        masks = files_for(paths, str(folder / "masks"), overwrite)
        drawn = files_for(paths, str(folder / "drawn"), overwrite)

        def draw(path: Path, found: ClassMap) -> None:
            _write_names(folder / "classes.txt", found.names, overwrite)
            write_class_map(found.classes, masks[path], found.background)
            draw_class_map(found.pixels, found.classes, drawn[path], found.background)

        return draw, f"class maps in {folder / 'masks'}, drawn in {folder / 'drawn'}"


def _write_names(file: Path, names: Sequence[str], overwrite: bool) -> None:
    """Write the class names, one per line: with masks/ the folder can be given as --data."""
    text = "".join(f"{name}\n" for name in names)
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace") == text:
        return
    if file.exists() and not overwrite:
        raise UserError(f"{file} names other classes: give --overwrite to replace it, or another --output")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
