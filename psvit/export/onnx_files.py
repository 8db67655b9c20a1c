"""A network -> ONNX files, float32 and int8, with metadata; checked, evaluated and timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
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
from psvit.engine.trained_on import TRAINED_ON, set_name, trained_on
from psvit.errors import UserError
from psvit.export.export_config import ExportConfig
from psvit.export.exported import (
    EAGER,
    FLOAT32,
    INT8,
    Exported,
    check_difference,
    largest_difference,
    time_in_turns,
)
from psvit.export.graph import frozen_copy, to_onnx
from psvit.export.int8 import quantize
from psvit.export.operators import count_operators, onnx_calls
from psvit.export.runtime import PREPROCESSING, OnnxModel, write_metadata
from psvit.files import replacing, writing
from psvit.models.psvit import PSViT
from psvit.tasks.classification.evaluate import Classifier, check_classes, evaluate_classifier, preprocess

if TYPE_CHECKING:
    import onnx

CALIBRATION_BATCH = 16


def export_onnx(
    classifier: Classifier, config: ExportConfig, data: DataConfig | None, outputs: tuple[Path, ...]
) -> Exported:
    """Export the network of a checkpoint to ONNX; files are written only after all checks.

    Args:
        classifier: see `psvit.tasks.classification.evaluate.open_checkpoint`, set to its image size.
        config: what to export.
        data: images for calibration and accuracy.
        outputs: the float32 file, and with config.int8 the int8 file.

    Raises:
        UserError: a package is missing, the network cannot be exported, the outputs of the file differ, or the data
            have other classes.
    """
    opened = _open_data(classifier, data, config) if data is not None else None  # fails before the export
    model, batches = frozen_copy(classifier.model), config.checked_batches
    input_size = tuple(classifier.model.pretrained_cfg["input_size"])
    with TemporaryDirectory() as name, writing(name):
        folder = Path(name)
        models = {FLOAT32: to_onnx(model, input_size, config.batch_size, config.opset)}
        files = {FLOAT32: _opened(models[FLOAT32], metadata_of(classifier, FLOAT32), folder / "float32.onnx")}
        differences = {FLOAT32: largest_difference(model, files[FLOAT32], input_size, batches)}
        check_difference(differences[FLOAT32], config.tolerance, "the ONNX file")
        if config.int8:
            images = calibration_images(classifier, opened, config, data.seed) if opened and data else None
            models[INT8] = quantize(models[FLOAT32], folder, images, config.reduce_range)
            files[INT8] = _opened(models[INT8], metadata_of(classifier, INT8), folder / "described.onnx")
            differences[INT8] = largest_difference(model, files[INT8], input_size, batches)
        measured: tuple[dict[str, float], dict[str, Any]] = ({}, {})
        if data is not None and opened is not None:
            measured = measure(classifier, files, config, data, opened)
        accuracy, measured_on = measured
        timings = []
        sizes = config.timed_batches if config.batch_size is None else batches
        for batch_size in sizes if config.rounds else ():
            timings += time_in_turns({EAGER: model, **files}, input_size, batch_size, config.rounds)
    for precision, path in zip(models, outputs, strict=True):
        found: dict[str, Any] = {"largest_difference": differences[precision]}
        if accuracy:
            found["accuracy"] = {"top1": accuracy[precision], "float32_top1": accuracy[FLOAT32], **measured_on}
        describe(models[precision], metadata_of(classifier, precision) | found)
        with replacing(path) as temporary:
            temporary.write_bytes(models[precision].SerializeToString())
    operators = {precision: count_operators(onnx_calls(proto)) for precision, proto in models.items()}
    return Exported(outputs, differences, operators, config.opset, accuracy, measured_on, timings)


def metadata_of(classifier: Classifier, precision: str) -> dict[str, Any]:
    """The metadata of an exported file, which `psvit.export.runtime.OnnxModel` reads."""
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
    """Replace the metadata of a model."""
    import onnx

    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, write_metadata(metadata))


def _opened(proto: onnx.ModelProto, metadata: dict[str, Any], path: Path) -> OnnxModel:
    """Write a model with its metadata, and open it in ONNX Runtime."""
    describe(proto, metadata)
    path.write_bytes(proto.SerializeToString())
    return OnnxModel(path, torch.get_num_threads())


def _open_data(classifier: Classifier, data: DataConfig, config: ExportConfig) -> Data:
    sized = replace(data, img_size=tuple(classifier.model.pretrained_cfg["input_size"][1:]))
    opened = open_data(sized, classifier.images)
    check_classes(classifier.source, classifier.classes, classifier.model.num_classes, opened)
    if config.split == "validation" and not len(opened.validation):
        raise UserError(
            f"there is no validation split of {data.data}, with --validation {data.validation:g}: give --split test"
        )
    return opened


def calibration_images(
    classifier: Classifier, data: Data, config: ExportConfig, seed: int = 0
) -> Iterator[NDArray[Any]]:
    """Yield batches of training images (B, C, H, W), balanced over the classes.

    The last batch may be smaller; with a fixed batch size it is padded with its last image.

    Raises:
        UserError: a training split without readable images.
    """
    source: Source | Stream = data.train
    if isinstance(source, Source):
        order = balanced_order(np.asarray(source.labels()), np.random.default_rng(seed))
        source = Subset(source, order[: config.calibration])
    batch_size = config.batch_size or CALIBRATION_BATCH
    left = config.calibration
    for batch in eval_batches(ImageSplit(source, preprocess(classifier.model)), batch_size=batch_size):
        images = batch.images[:left].numpy()
        if len(images):  # a batch may hold no readable image
            left -= len(images)
            missing = 0 if config.batch_size is None else batch_size - len(images)
            yield np.concatenate([images, images[-1:].repeat(missing, axis=0)])
        if not left:
            return


def measure(
    classifier: Classifier, files: dict[str, OnnxModel], config: ExportConfig, data: DataConfig, opened: Data
) -> tuple[dict[str, float], dict[str, Any]]:
    """Top-1 of each file in percent; and data set, split and number of images."""
    machine = Machine("cpu", "float32", torch.get_num_threads())
    accuracy, images = {}, 0
    for name, file in files.items():
        named = replace(classifier, model=file)
        metrics, _ = evaluate_classifier(named, data, machine, config.split, opened=opened)
        if not metrics.count:
            raise UserError(f"the {config.split} split of {data.data} holds no images: choose another --split")
        accuracy[name], images = metrics.top1, metrics.count
    return accuracy, {"data": set_name(data.data), "split": config.split, "images": images}
