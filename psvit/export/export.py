"""``psvit export``: a checkpoint -> a file or folder that runs elsewhere, checked against the network."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
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
from psvit.export.check import Timing, check_difference, largest_difference, rows_of
from psvit.export.export_config import SUFFIXES, ExportConfig
from psvit.export.graph import frozen_copy, to_program, to_torchscript
from psvit.export.hub import check_repository, push_to_hub, replacing_files, write_folder
from psvit.export.onnx_files import INT8, export_onnx, metadata_of
from psvit.files import check_writable, opened_for_torch, replacing, writing
from psvit.tasks.classification.evaluate import Classifier, open_checkpoint

METADATA = "psvit.json"
"""The file inside a .pt2 or TorchScript archive that tells what the metadata of an ONNX file tell."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote and found.

    Args:
        files: what was written: a file, two with int8, or a folder.
        differences: largest absolute difference to the network's logits, by precision.
        operators: how often each operator stands in the graph, by precision.
        opset: version of ONNX's operators; None of other formats.
        accuracy: top-1 in percent, by precision; on the images that `measured_on` names.
        timings: of the network and the files, by batch size.
        address: of the repository on the Hub.
    """

    files: tuple[Path, ...]
    differences: Mapping[str, float]
    operators: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    opset: int | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    measured_on: Mapping[str, Any] = field(default_factory=dict)
    timings: tuple[Timing, ...] = ()
    address: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "files": {str(path): path.stat().st_size if path.is_file() else None for path in self.files},
            "largest_difference": dict(self.differences),
            "operators": {name: dict(counts) for name, counts in self.operators.items()},
            "opset": self.opset,
            "top1": {name: round(value, 4) for name, value in self.accuracy.items()},
            "measured_on": dict(self.measured_on),
            "timings": rows_of(self.timings),
            "address": self.address,
        }


def export(
    checkpoint: str,
    config: ExportConfig,
    data: DataConfig | None = None,
    say: Callable[[str], None] = print,
) -> Exported:
    """Export a checkpoint, and check that what is written computes what the network computes.

    Args:
        checkpoint: its folder.
        config: what to write, and how it is checked.
        data: images to measure the accuracy on, as config.data names them; ONNX only. Of the set that the network
            was trained on, its validation split has to be the training's.
        say: takes lines for the user.

    Raises:
        UserError: a broken checkpoint, an output that is there already, a missing package, a network that cannot be
            exported, or one whose exported outputs differ by more than the tolerance; or data whose validation split
            the
            network has learned: nothing is written then. Or the Hub refuses the folder, which is written by then and
            stays.
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
                f"note      {checkpoint} does not tell its validation split: unless --validation and --seed are "
                f"its training's, "
                "images of it were learned"
            )
        else:
            check_cut(checkpoint, trained, data)
    network = getattr(classifier.model, "arch", None) or classifier.model.pretrained_cfg["architecture"]
    size = " x ".join(map(str, classifier.model.pretrained_cfg["input_size"]))
    say(f"network   {network}, images {size}, {len(classifier.classes)} classes")
    with cpu_threads(config.threads):
        if config.format == "onnx":
            return _onnx(classifier, config, data, outputs)
        if config.format == "timm":
            return _folder(classifier, config, outputs[0])
        return _archive(classifier, config, outputs[0])


def output_paths(checkpoint: str, config: ExportConfig) -> tuple[Path, ...]:
    """What will be written: a file, the int8 file beside it, or a folder.

    Raises:
        UserError: it is there already, and --overwrite is not given; it is something else than would be written; or
            nothing can be written there.
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


def _onnx(classifier: Classifier, config: ExportConfig, data: DataConfig | None, outputs: tuple[Path, ...]) -> Exported:
    with TemporaryDirectory() as folder, writing(folder):
        found = export_onnx(classifier, config, data, Path(folder))
    for path, proto in zip(outputs, found.models.values(), strict=True):
        with replacing(path) as temporary:
            temporary.write_bytes(proto.SerializeToString())
    return Exported(
        outputs, found.differences, found.operators, config.opset, found.accuracy, found.measured_on,
        tuple(found.timings),
    )  # fmt: skip


def _archive(classifier: Classifier, config: ExportConfig, output: Path) -> Exported:
    """A .pt2 or TorchScript file; what is compared is what torch loads from it again."""
    from psvit.export.operators import program_operators, torchscript_operators

    model = frozen_copy(classifier.model)
    input_size = tuple(classifier.model.pretrained_cfg["input_size"])
    described = {METADATA: json.dumps(metadata_of(classifier, "float32"), ensure_ascii=False)}
    with replacing(output) as temporary, warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # TorchScript's end: the help and the page tell it
            warnings.simplefilter("ignore", category)
        if config.format == "torch-export":
            program = to_program(model, input_size, config.batch_size)
            operators: Mapping[str, int] = program_operators(program)
            with opened_for_torch(temporary) as file:  # by its name alone torch would ask for .pt2
                torch.export.save(program, file, extra_files=described)
            with temporary.open("rb") as file:
                loaded: Any = torch.export.load(file).module()
        else:
            traced = to_torchscript(model, input_size, config.batch_size)
            operators = torchscript_operators(traced)
            with opened_for_torch(temporary) as file:
                torch.jit.save(traced, file, _extra_files=described)
            loaded = torch.jit.load(temporary)
        difference = largest_difference(model, loaded, input_size, config.checked_batches)
        check_difference(difference, config.tolerance, f"the file of {config.format}")
    return Exported((output,), {"float32": difference}, {"float32": operators})


def _folder(classifier: Classifier, config: ExportConfig, output: Path) -> Exported:
    """A folder for timm and the Hub; what is compared is what timm loads from it again."""
    input_size = tuple(classifier.model.pretrained_cfg["input_size"])
    with replacing_files(output) as temporary:
        write_folder(temporary, classifier, config.push_to_hub, config.license, output)
        loaded = timm.create_model(f"local-dir:{temporary}", pretrained=True).eval()
        difference = largest_difference(frozen_copy(classifier.model), loaded, input_size, (1, 3))
        check_difference(difference, config.tolerance, "the folder")
    address = push_to_hub(output, config.push_to_hub, config.private) if config.push_to_hub else None
    return Exported((output,), {"float32": difference}, address=address)


def summary(result: Exported, config: ExportConfig) -> list[str]:
    """Lines that tell the user what was found and what to do next."""
    lines = []
    if result.opset is not None:
        lines.append(f"opset     {result.opset} of ONNX")
    for name, operators in result.operators.items():
        counts = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{operator} {count}" for operator, count in counts)
        lines.append(f"operators {f'{name}: ' if len(result.operators) > 1 else ''}{listed}")
    batches = ", ".join(map(str, config.checked_batches))
    for name, difference in result.differences.items():
        limit = f", tolerance {config.tolerance:g}" if name != INT8 else ""
        lines.append(
            f"parity    {name} differs from the network by at most {difference:.2g} (batches of {batches}{limit})"
        )
    if result.accuracy:
        on = result.measured_on
        figures = ", ".join(f"{name} {value:.2f} %" for name, value in result.accuracy.items())
        lines.append(f"accuracy  {figures} (top-1 on {on['images']} images, {on['data']}, {on['split']} split)")
    elif config.int8:
        lines.append("accuracy  not measured, and convolutions left in float32: give --data with your images")
    sizes = (f"{path} ({path.stat().st_size / 1e6:.3g} MB)" if path.is_file() else str(path) for path in result.files)
    lines.append("written   " + ", ".join(sizes))
    if result.address:
        lines.append(f"hub       {result.address}")
    if config.format in ("onnx", "timm"):
        lines.append(f"next      psvit predict {shlex.quote(str(result.files[-1]))} IMAGE")
    return lines
