"""``psvit export``: a checkpoint -> a file or folder for other runtimes, checked against the network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from psvit.arch.arch import image_sides
from psvit.data.data_config import DataConfig
from psvit.engine.checkpoints import CONFIG, WEIGHTS
from psvit.engine.hardware import cpu_threads
from psvit.engine.open_model import set_size
from psvit.engine.trained_on import check_cut, trained_on
from psvit.errors import UserError
from psvit.export.export_config import SUFFIXES, ExportConfig
from psvit.export.exported import FLOAT32, Exported, check_difference, largest_difference
from psvit.export.graph import frozen_copy, to_program, to_torchscript
from psvit.export.hub import check_repository, push_to_hub, replacing_files, write_folder
from psvit.export.onnx_files import export_onnx, metadata_of
from psvit.export.operators import count_operators, program_calls, torchscript_calls
from psvit.files import check_writable, opened_for_torch, replacing
from psvit.tasks.classification.evaluate import Classifier, open_checkpoint

METADATA = "psvit.json"
"""The file with our metadata inside a .pt2 or TorchScript archive."""


def export(
    checkpoint: str,
    config: ExportConfig,
    data: DataConfig | None = None,
    say: Callable[[str], None] = print,
) -> Exported:
    """Export a checkpoint, and check that the result computes the same as the network.

    Args:
        checkpoint: its folder.
        config: what to write, and how to check it.
        data: images to measure the accuracy on; ONNX only. If the network was trained on this set, the validation
            split must be that of the training.
        say: takes lines for the user.

    Raises:
        UserError: the checkpoint is broken, the output exists, a package is missing, the network cannot be exported,
            its exported outputs differ by more than the tolerance, or the network was trained on the validation split
            of the data; nothing is written then. Or the Hub refuses the folder, which stays.
    """
    if config.push_to_hub is not None:
        check_repository(config.push_to_hub)
    outputs = output_paths(checkpoint, config)
    classifier = open_checkpoint(checkpoint, "detectors and segmenters cannot be exported, only classifiers", say)
    if config.img_size is not None:
        sides = image_sides(config.img_size)
        set_size(classifier.model, sides)
        channels = classifier.model.pretrained_cfg["input_size"][0]
        classifier.model.pretrained_cfg["input_size"] = (channels, *sides)
    if data is not None and (config.split == "validation" or config.int8):
        trained = trained_on(classifier.metadata)
        if trained is None:
            say(
                f"note      {checkpoint} does not tell its validation split: unless --validation and --seed are those "
                "of its training, it was trained on some of these images"
            )
        else:
            check_cut(checkpoint, trained, data)
    network = getattr(classifier.model, "arch", None) or classifier.model.pretrained_cfg["architecture"]
    size = " x ".join(map(str, classifier.model.pretrained_cfg["input_size"]))
    say(f"network   {network}, images {size}, {len(classifier.classes)} classes")
    with cpu_threads(config.threads):
        if config.format == "onnx":
            return export_onnx(classifier, config, data, outputs)
        if config.format == "timm":
            return _folder(classifier, config, outputs[0])
        return _archive(classifier, config, outputs[0])


def output_paths(checkpoint: str, config: ExportConfig) -> tuple[Path, ...]:
    """The paths to write: a file, with int8 a second one beside it, or a folder.

    Raises:
        UserError: one exists and --overwrite is not given, is of another kind, or is not writable.
    """
    folder = Path(checkpoint)
    default = folder.with_name(folder.resolve().name + SUFFIXES[config.format])
    output = Path(config.output) if config.output is not None else default
    outputs = (output, output.with_name(f"{output.stem}.int8{output.suffix}")) if config.int8 else (output,)
    if config.format == "onnx" and output.suffix.lower() != SUFFIXES["onnx"]:
        raise UserError(f"--output {output} does not end with .onnx, by which psvit predict knows it: add that")
    for path in outputs:
        if not path.exists():
            continue
        if path.is_dir() != (config.format == "timm"):
            what = "a folder: name a file" if path.is_dir() else "a file: name a folder"
            raise UserError(f"--output {path} is {what}")
        if path.resolve() == folder.resolve():
            raise UserError(f"--output {path} is the checkpoint itself: name another folder")
        if path.is_dir() and not all((path / part).is_file() for part in (CONFIG, WEIGHTS)):
            raise UserError(f"--output {path} is a folder that holds no checkpoint, and is not replaced: name another")
        if not config.overwrite:
            raise UserError(f"--output {path} exists: name another, or give --overwrite")
    for place in (output.parent, output) if output.is_dir() else (output.parent,):
        check_writable(place, f"--output {output}")
    return outputs


def _archive(classifier: Classifier, config: ExportConfig, output: Path) -> Exported:
    """Write a .pt2 or TorchScript file, and compare what torch loads from it with the network."""
    model = frozen_copy(classifier.model)
    input_size = tuple(classifier.model.pretrained_cfg["input_size"])
    described = {METADATA: json.dumps(metadata_of(classifier, FLOAT32), ensure_ascii=False)}
    with replacing(output) as temporary, warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # that TorchScript is deprecated is in the help
            warnings.simplefilter("ignore", category)
        if config.format == "torch-export":
            program = to_program(model, input_size, config.batch_size)
            operators = count_operators(program_calls(program))
            with opened_for_torch(temporary) as file:  # given a path, torch would insist on the ending .pt2
                torch.export.save(program, file, extra_files=described)
            with temporary.open("rb") as file:
                loaded: Any = torch.export.load(file).module()
        else:
            traced = to_torchscript(model, input_size, config.batch_size)
            operators = count_operators(torchscript_calls(traced))
            with opened_for_torch(temporary) as file:
                torch.jit.save(traced, file, _extra_files=described)
            loaded = torch.jit.load(temporary)
        difference = largest_difference(model, loaded, input_size, config.checked_batches)
        check_difference(difference, config.tolerance, f"the file of {config.format}")
    return Exported((output,), {FLOAT32: difference}, {FLOAT32: operators})


def _folder(classifier: Classifier, config: ExportConfig, output: Path) -> Exported:
    """Write a folder for timm and the Hub, and compare what timm loads from it with the network."""
    input_size = tuple(classifier.model.pretrained_cfg["input_size"])
    with replacing_files(output) as temporary:
        write_folder(temporary, classifier, config.push_to_hub, config.license, output)
        loaded = timm.create_model(f"local-dir:{temporary}", pretrained=True).eval()
        difference = largest_difference(frozen_copy(classifier.model), loaded, input_size, (1, 3))
        check_difference(difference, config.tolerance, "the folder")
    address = push_to_hub(output, config.push_to_hub, config.private) if config.push_to_hub else None
    return Exported((output,), {FLOAT32: difference}, address=address)
