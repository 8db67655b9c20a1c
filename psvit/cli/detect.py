"""``psvit detect``: objects in images, with their boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from psvit.cli.dense import DenseCommand
from psvit.config import Fraction
from psvit.data.objects.objects_config import ObjectDataConfig
from psvit.tasks.detection.detector_config import DetectConfig

if TYPE_CHECKING:
    from psvit.tasks.detection.detect import Detection, DetectionMetrics, Detections

HELP = """usage: psvit detect train | evaluate | predict [flags]        psvit detect train --help lists the flags

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
    """Run the action named by the first argument."""
    return _Detect().run(arguments)


class _Detect(DenseCommand):
    name = "detect"
    help: ClassVar = {"detect": HELP, "train": TRAIN, "evaluate": EVALUATE, "predict": PREDICT}
    data = ObjectDataConfig()
    config = DetectConfig
    output = "folder for the images with the objects drawn in them"
    head_flags: ClassVar = {"score_threshold": ("--threshold", "least score of an object", Fraction, 0.5)}

    def task(self) -> type[Detection]:
        from psvit.tasks.detection.detect import Detection

        return Detection

    def per_class(self, metrics: DetectionMetrics) -> dict[str, Any]:
        masks = metrics.mask["per_class"] if metrics.mask else None
        return {"box_per_class": metrics.box["per_class"], "mask_per_class": masks}

    def print_metrics(self, metrics: DetectionMetrics) -> None:
        kinds = {"box": metrics.box} | ({"mask": metrics.mask} if metrics.mask is not None else {})
        print("average precision in percent\n\n        AP     AP50   AP75   small  medium large")
        for kind, part in kinds.items():
            print(f"{kind:<6}" + "".join(f"{_percent(part[name]):>7}" for name in part if name != "per_class"))
        names = list(metrics.box["per_class"])
        width = max(map(len, names))
        print("\n" + " " * (width + 2) + "".join(f"{kind:>8}" for kind in kinds))
        for name in names:
            print(f"  {name:<{width}}" + "".join(f"{_percent(part['per_class'][name]):>8}" for part in kinds.values()))

    def plain(self, found: Detections) -> dict[str, Any]:
        objects = zip(found.labels, found.scores, found.boxes.tolist(), strict=True)
        return {"objects": [{"label": label, "score": round(score, 4), "box": [round(side, 1) for side in box]}
                            for label, score, box in objects]}  # fmt: skip

    def summary(self, found: Detections) -> str:
        shown = zip(found.labels, found.scores, strict=True)
        return "  ".join(f"{label} {100 * score:.0f} %" for label, score in shown) or "nothing"

    def drawing(self, folder: Path, paths: Sequence[Path], overwrite: bool) -> tuple[Callable[[Path, Any], None], str]:
        from psvit.tasks.dense.drawing import draw_objects, files_for

        drawn = files_for(paths, str(folder), overwrite)

        def draw(path: Path, found: Detections) -> None:
            draw_objects(found.pixels, found.boxes, found.labels, found.scores, found.masks, drawn[path])

        return draw, f"drawn in {folder}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
