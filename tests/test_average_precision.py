"""Average precision: equal to pycocotools' own on random objects, with crowds, overlaps and absent classes."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from psvit.data.objects.objects import Objects, boxes_of
from psvit.errors import UserError
from psvit.tasks.dense.dense_checkpoints import evaluate_dense
from psvit.tasks.dense.dense_training import train_dense
from psvit.tasks.detection.average_precision import METRICS, average_precision, found_objects, true_objects
from psvit.tasks.detection.detect import Detection
from psvit.tasks.detection.detector_config import DetectConfig

CLASSES = ("ant", "bee", "cat", "dog", "eel")  # there is never a dog


def shape(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A rectangle, or half of one along its diagonal, so that its area is not its box's."""
    mask = np.zeros(size, dtype=bool)
    height, width = (int(rng.integers(6, side // 2)) for side in size)
    y, x = int(rng.integers(size[0] - height)), int(rng.integers(size[1] - width))
    rows, columns = np.mgrid[:height, :width]
    mask[y : y + height, x : x + width] = (rows / height + columns / width < 1) | (rng.random() < 0.5)
    return mask


def stacked(masks: list[NDArray[np.bool_]], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)


def said_of(masks: NDArray[np.bool_], labels: Any, scores: Any) -> dict[str, torch.Tensor]:
    """The output of a detector that found these objects."""
    return {
        "boxes": torch.from_numpy(boxes_of(masks)),
        "labels": torch.tensor(labels, dtype=torch.int64) + 1,
        "scores": torch.tensor(scores, dtype=torch.float32),
        "masks": torch.from_numpy(masks[:, None]),
    }


Case = tuple[list[dict[str, int]], list[Objects], list[dict[str, torch.Tensor]]]
"""Images, their objects, and predictions."""


def crowded(seed: int) -> Case:
    """Ten images of 60 to 250 pixels with overlapping objects and crowds, and poor predictions."""
    rng = np.random.default_rng(seed)
    images, truths, found = [], [], []
    for number in range(10):
        size = (int(rng.integers(60, 250)), int(rng.integers(60, 250)))
        masks = [shape(rng, size) for _ in range(rng.integers(7))]
        labels = [int(label) for label in rng.choice([0, 1, 2, 4], len(masks))]
        said = [(np.roll(mask, rng.integers(-4, 5, 2), (0, 1)), label if rng.random() < 0.8 else int(rng.integers(5)))
                for mask, label in zip(masks, labels, strict=True) for _ in range(rng.integers(3))]  # fmt: skip
        said += [(shape(rng, size), int(rng.integers(4))) for _ in range(rng.integers(5))]
        images.append({"id": number, "height": size[0], "width": size[1]})
        whole = stacked(masks, size)
        truths.append(Objects(boxes_of(whole), np.asarray(labels, np.int64), whole, rng.random(len(masks)) < 0.15))
        scores = rng.random(len(said)).round(1)  # with ties
        found.append(said_of(stacked([mask for mask, _ in said], size), [label for _, label in said], scores))
    return images, truths, found


def precision_of(case: Case, kind: str) -> dict[str, Any]:
    images, truths, found = case
    truth = [line for number, there in enumerate(truths) for line in true_objects(number, there)]
    said = [line for number, one in enumerate(found) for line in found_objects(number, one)]
    return average_precision(images, truth, said, CLASSES, kind)


def by_pycocotools(case: Case, kind: str) -> dict[str, Any]:
    """The six metrics and those of the classes, in percent, -100 for None."""
    images, truths, found = case
    truth = COCO()
    areas = [float(mask.sum()) for there in truths for mask in there.masks]  # type: ignore[union-attr]
    lines = [line for number, there in enumerate(truths) for line in true_objects(number, there)]
    lines = [{**line, "id": at + 1, "area": area} for at, (line, area) in enumerate(zip(lines, areas, strict=True))]
    other = "bbox" if kind == "mask" else "segmentation"
    said = [{key: value for key, value in line.items() if key != other}
            for number, one in enumerate(found) for line in found_objects(number, one)]  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    truth.dataset = {"images": images, "categories": categories, "annotations": lines}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(said), "bbox" if kind == "box" else "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    per_class = {name: 100 * evaluation.eval["precision"][:, :, number, 0, -1].mean()
                 for number, name in enumerate(CLASSES)}  # fmt: skip
    return dict(zip(METRICS, 100 * evaluation.stats[:6], strict=True)) | per_class


@pytest.mark.parametrize("library", ["faster-coco-eval", "pycocotools"])
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_average_precision_is_pycocotools(
    kind: str, library: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if library == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    for seed in range(3):
        case = crowded(seed)
        expected = by_pycocotools(case, kind)
        capfd.readouterr()
        metrics = precision_of(case, kind)
        flat = {name: metrics[name] for name in METRICS} | metrics["per_class"]
        assert flat == {name: None if value < 0 else pytest.approx(value, abs=1e-4) for name, value in expected.items()}
        assert flat["dog"] is None
        assert 5 < flat["ap"] < flat["ap50"] < 60
        assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_perfect_nothing_found_and_nothing_to_find(kind: str) -> None:
    images, truths, _ = crowded(0)
    perfect = [said_of(there.masks, there.labels, np.full(len(there), 0.9)) for there in truths]  # type: ignore[arg-type]
    none = [{name: value[:0] for name, value in one.items()} for one in perfect]
    for said, value in ((perfect, 100), (none, 0)):
        metrics = precision_of((images, truths, said), kind)
        assert metrics["ap"] == metrics["ap75"] == metrics["ap_small"] == value
        assert metrics["per_class"] == {"ant": value, "bee": value, "cat": value, "dog": None, "eel": value}
    sizes = [(image["height"], image["width"]) for image in images]
    empty = [Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), stacked([], size), np.zeros(0, bool))
             for size in sizes]  # fmt: skip
    crowds = [Objects(boxes_of(whole), np.ones(1, np.int64), whole, np.ones(1, bool))
              for whole in (np.ones((1, *size), dtype=bool) for size in sizes)]  # fmt: skip
    for nothing in (empty, crowds):  # crowds need not be found
        for said in (perfect, none):
            metrics = precision_of((images, nothing, said), kind)
            assert {*(metrics[name] for name in METRICS), *metrics["per_class"].values()} == {None}


def test_without_a_library_average_precision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("faster_coco_eval", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    config = DetectConfig()
    for work in (lambda: train_dense(Detection, config),
                 lambda: evaluate_dense(Detection, "unused", config.data, config.machine)):  # fmt: skip
        with pytest.raises(UserError, match=r'needs faster-coco-eval: pip install "psvit\[dense\]"'):
            work()
