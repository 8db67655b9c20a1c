"""Average precision: equal to pycocotools' own on random objects, with crowds, overlaps and absent classes."""

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from psvit.data.objects.objects import Objects, boxes_of
from psvit.errors import UserError
from psvit.tasks.detection.average_precision import FIGURES, Detected, Truth, average_precision, encode_rle
from psvit.tasks.detection.detect import evaluate_checkpoint, train_detector
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


Raw = tuple[int, tuple[int, int], Objects]
"""Number, height and width, and objects of an image."""


def crowded(seed: int) -> tuple[list[Raw], list[Detected]]:
    """Ten images of 60 to 250 pixels with overlapping objects and crowds, and what a poor detector says of them."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for number in range(10):
        size = (int(rng.integers(60, 250)), int(rng.integers(60, 250)))
        masks = [shape(rng, size) for _ in range(rng.integers(7))]
        labels = [int(label) for label in rng.choice([0, 1, 2, 4], len(masks))]
        said = [(np.roll(mask, rng.integers(-4, 5, 2), (0, 1)), label if rng.random() < 0.8 else int(rng.integers(5)))
                for mask, label in zip(masks, labels, strict=True) for _ in range(rng.integers(3))]  # fmt: skip
        said += [(shape(rng, size), int(rng.integers(4))) for _ in range(rng.integers(5))]
        truths.append((number, size, objects(masks, labels, size, rng.random(len(masks)) < 0.15)))
        guesses = np.stack([mask for mask, _ in said]) if said else np.zeros((0, *size), dtype=bool)
        names = np.asarray([label for _, label in said], dtype=np.int64)
        scores = rng.random(len(said)).round(1).astype(np.float32)  # with ties
        found.append(Detected(number, boxes_of(guesses), names, scores, encode_rle(guesses)))
    return truths, found


def objects(masks: list[NDArray[np.bool_]], labels: list[int], size: tuple[int, int], crowd: Any = None) -> Objects:
    stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)
    crowd = np.zeros(len(labels), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool)
    return Objects(boxes_of(stacked), np.asarray(labels, dtype=np.int64), stacked, crowd)


def precision_of(truths: list[Raw], found: list[Detected], kind: str) -> dict[str, Any]:
    return average_precision([Truth.of(*one) for one in truths], found, CLASSES, kind)


def by_pycocotools(truths: list[Raw], found: list[Detected], kind: str) -> dict[str, Any]:
    """The six figures and those of the classes, in percent, -100 for None."""
    truth, said = COCO(), []
    lines: list[dict[str, Any]] = []
    for number, _, there in truths:
        for i in range(len(there)):
            x0, y0, x1, y1 = map(float, there.boxes[i])
            assert there.masks is not None
            lines.append({"id": len(lines) + 1, "image_id": number, "category_id": int(there.labels[i]) + 7,
                          "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(there.masks[i].sum()),
                          "segmentation": encode_rle(there.masks[i : i + 1])[0],
                          "iscrowd": int(there.crowd[i])})  # fmt: skip
    for guess in found:
        for i in range(len(guess.labels)):
            x0, y0, x1, y1 = map(float, guess.boxes[i])
            assert guess.masks is not None
            where = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "box" else {"segmentation": guess.masks[i]}
            said.append({"image_id": guess.number, "category_id": int(guess.labels[i]) + 7,
                         "score": float(guess.scores[i]), **where})  # fmt: skip
    truth.dataset = {
        "images": [{"id": number, "height": size[0], "width": size[1]} for number, size, _ in truths],
        "categories": [{"id": number + 7, "name": name} for number, name in enumerate(CLASSES)],
        "annotations": lines,
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(said), "bbox" if kind == "box" else "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = dict(zip(FIGURES, 100 * evaluation.stats[:6], strict=True))
    for number, name in enumerate(CLASSES):
        precision = evaluation.eval["precision"][:, :, number, 0, -1]
        figures[name] = 100 * precision.mean()
    return figures


@pytest.mark.parametrize("library", ["faster-coco-eval", "pycocotools"])
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_average_precision_is_pycocotools(
    kind: str, library: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if library == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    for seed in range(3):
        truths, found = crowded(seed)
        expected = by_pycocotools(truths, found, kind)
        capfd.readouterr()
        figures = precision_of(truths, found, kind)
        flat = {name: figures[name] for name in FIGURES} | figures["per_class"]
        assert flat == {name: None if value < 0 else pytest.approx(value, abs=1e-4) for name, value in expected.items()}
        assert flat["dog"] is None
        assert 5 < flat["ap"] < flat["ap50"] < 60
        assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_perfect_nothing_found_and_nothing_to_find(kind: str) -> None:
    truths, _ = crowded(0)
    perfect = []
    for number, _, there in truths:
        assert there.masks is not None
        sure = np.full(len(there), 0.9, dtype=np.float32)
        perfect.append(Detected(number, there.boxes, there.labels, sure, encode_rle(there.masks)))
    figures = precision_of(truths, perfect, kind)
    assert figures["ap"] == figures["ap75"] == figures["ap_small"] == 100
    assert figures["per_class"] == {"ant": 100, "bee": 100, "cat": 100, "dog": None, "eel": 100}
    none = [Detected(number, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), [])
            for number, _, _ in truths]  # fmt: skip
    figures = precision_of(truths, none, kind)
    assert figures["ap"] == figures["ap_small"] == 0
    assert figures["per_class"] == {"ant": 0, "bee": 0, "cat": 0, "dog": None, "eel": 0}
    empty = [(number, size, objects([], [], size)) for number, size, _ in truths]
    crowds = [(number, size, objects([np.ones(size, dtype=bool)], [1], size, [True])) for number, size, _ in truths]
    for nothing in (empty, crowds):  # a crowd is nothing that has to be found
        for said in (perfect, none):
            figures = precision_of(nothing, said, kind)
            assert {figures[name] for name in FIGURES} == {None}
            assert set(figures["per_class"].values()) == {None}


def test_without_a_library_average_precision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("faster_coco_eval", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    for task in (train_detector, lambda config: evaluate_checkpoint("unused", config.data, config.machine)):
        with pytest.raises(UserError, match=r'needs faster-coco-eval: pip install "psvit\[dense\]"'):
            task(DetectConfig())
