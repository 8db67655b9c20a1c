"""A network -> ONNX files, float32 and int8: checked, measured on the user's images, timed, described in the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import psvit
from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, balanced_order, open_data
from psvit.data.loading import eval_batches
from psvit.data.samples import ImageSplit
from psvit.data.sources import Source, Stream, Subset
from psvit.engine.train_config import Machine
from psvit.engine.trained_on import (
    TRAINED_ON,
    set_name,
    trained_on,
)
from psvit.errors import UserError
from psvit.export.check import Timing, check_difference, largest_difference, time_in_turns
from psvit.export.export_config import ExportConfig
from psvit.export.graph import frozen_copy, to_onnx
from psvit.export.int8 import quantize
from psvit.export.operators import onnx_operators
from psvit.export.runtime import PREPROCESSING, InBatches, OnnxModel, write_metadata
from psvit.models.psvit import PSViT
from psvit.tasks.classification.evaluate import Classifier, check_classes, evaluate_classifier, preprocess

if TYPE_CHECKING:
    import onnx

CALIBRATION_BATCH = 16
EAGER, FLOAT32, INT8 = "torch", "float32", "int8"
"""The network in torch (eager, float32), and the two files in ONNX Runtime."""


@dataclass(frozen=True)
class OnnxExport:
    """ONNX files of a network, and what was found out about them.

    Args:
        models: the files' contents: float32, and int8 if asked for.
        operators: how often each operator stands in each file's graph.
        differences: largest absolute difference of each file's logits to the network's.
        accuracy: top1 in percent of each file, on the images that `measured_on` names; empty without data.
        measured_on: data set, split and number of images.
        timings: of the network and of each file, by batch size.
    """

    models: dict[str, onnx.ModelProto]
    operators: dict[str, Counter[str]]
    differences: dict[str, float]
    accuracy: dict[str, float]
    measured_on: dict[str, Any]
    timings: list[Timing]


def export_onnx(classifier: Classifier, config: ExportConfig, data: DataConfig | None, folder: Path) -> OnnxExport:
    """Export a checkpoint's network to ONNX.

    Args:
        classifier: see `psvit.tasks.classification.evaluate.open_checkpoint`, at its size.
        config: what to export.
        data: images to calibrate and to measure on.
        folder: where intermediate files may stand.

    Raises:
        UserError: a package is missing, the network cannot be exported, its file computes something else, or the data
            are of other classes.
    """
    if data is not None:
        opened = _opened_data(classifier, data)  # so that other classes are refused before the long work
        if config.split == "validation" and not len(opened.validation):
            raise UserError(
                f"there is no validation split of {data.data}, with --validation {data.validation:g}: give --split test"
            )
    model = frozen_copy(classifier.model)
    input_size = tuple(classifier.model.pretrained_cfg["input_size"])
    models = {FLOAT32: to_onnx(model, input_size, config.batch_size, config.opset)}
    describe(models[FLOAT32], metadata_of(classifier, FLOAT32))
    files = {FLOAT32: _opened(models[FLOAT32], folder / "float32.onnx")}
    batches = config.checked_batches
    differences = {FLOAT32: largest_difference(model, files[FLOAT32], input_size, batches)}
    check_difference(differences[FLOAT32], config.tolerance, "the ONNX file")
    if config.int8:
        images = calibration_images(classifier, data, config) if data is not None else None
        models[INT8] = quantize(models[FLOAT32], folder, images, config.reduce_range)
        describe(models[INT8], metadata_of(classifier, INT8))
        files[INT8] = _opened(models[INT8], folder / "int8-described.onnx")
        differences[INT8] = largest_difference(model, files[INT8], input_size, batches)
    accuracy, measured_on = _measured(classifier, files, config, data)
    timings = []
    sizes = config.timed_batches if config.batch_size is None else batches
    for batch_size in sizes if config.rounds else ():
        timings += time_in_turns({EAGER: model, **files}, input_size, batch_size, config.rounds)
    for name, proto in models.items():
        found: dict[str, Any] = {"largest_difference": differences[name]}
        if accuracy:
            found["accuracy"] = {"top1": accuracy[name], "float32_top1": accuracy[FLOAT32], **measured_on}
        describe(proto, metadata_of(classifier, name) | found)
    operators = {name: onnx_operators(proto) for name, proto in models.items()}
    return OnnxExport(models, operators, differences, accuracy, measured_on, timings)


def metadata_of(classifier: Classifier, precision: str) -> dict[str, Any]:
    """What an ONNX file tells of itself; `psvit.export.runtime.OnnxModel` reads it."""
    model = classifier.model
    cfg = model.pretrained_cfg
    known = {
        "version": psvit.__version__,
        "precision": precision,
        "label_names": list(classifier.classes),
        "preprocessing": {name: cfg[name] for name in PREPROCESSING},
        "architecture": cfg.get("architecture"),
    }
    if trained_on(classifier.metadata) is not None:
        known[TRAINED_ON] = classifier.metadata[TRAINED_ON]
    if isinstance(model, PSViT):
        known |= {"genotype": model.arch.genotype, "arch": model.arch.to_dict()}
    return known


def describe(proto: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Put `metadata` into a model, in place of what it told before."""
    import onnx

    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, write_metadata(metadata))


def _opened(proto: onnx.ModelProto, path: Path) -> OnnxModel:
    path.write_bytes(proto.SerializeToString())
    return OnnxModel(path, torch.get_num_threads())


def _opened_data(classifier: Classifier, data: DataConfig) -> Data:
    sized = replace(data, img_size=tuple(classifier.model.pretrained_cfg["input_size"][1:]))
    opened = open_data(sized, classifier.images)
    check_classes(classifier.source, classifier.classes, classifier.model.num_classes, opened)
    return opened


def calibration_images(classifier: Classifier, data: DataConfig, config: ExportConfig) -> Iterator[NDArray[Any]]:
    """Batches of training images (B, C, H, W), the classes as evenly as can be; none of the validation split or the
    test split.

    The last batch holds what is left; where the file takes batches of one size only, its last image fills it up.

    Raises:
        UserError: data of other classes, or a training split without readable images.
    """
    source: Source | Stream = _opened_data(classifier, data).train
    if isinstance(source, Source):
        order = balanced_order(np.asarray(source.labels()), np.random.default_rng(data.seed))
        source = Subset(source, order[: config.calibration])
    batch_size = config.batch_size or CALIBRATION_BATCH
    left = config.calibration
    for batch in eval_batches(ImageSplit(source, preprocess(classifier.model)), batch_size=batch_size):
        images = batch.images[:left].numpy()
        if len(images):  # of a batch, none may be readable
            left -= len(images)
            missing = 0 if config.batch_size is None else batch_size - len(images)
            yield np.concatenate([images, images[-1:].repeat(missing, axis=0)])
        if not left:
            return


def _measured(
    classifier: Classifier, files: dict[str, OnnxModel], config: ExportConfig, data: DataConfig | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Top-1 of each file in percent, and on what."""
    if data is None:
        return {}, {}
    machine = Machine("cpu", "float32", torch.get_num_threads())
    accuracy, images, opened = {}, 0, _opened_data(classifier, data)
    for name, file in files.items():
        model: Any = file if file.batch_size is None else InBatches(file, file.batch_size)
        metrics, _ = evaluate_classifier(replace(classifier, model=model), data, machine, config.split, opened=opened)
        if not metrics.count:
            raise UserError(f"the {config.split} split of {data.data} holds no images: choose another --split")
        accuracy[name], images = metrics.top1, metrics.count
    return accuracy, {"data": set_name(data.data), "split": config.split, "images": images}
