"""Run an exported ONNX file as a classifier; class names and preprocessing are in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from psvit.engine.hardware import resolve_device
from psvit.errors import UserError, one_line
from psvit.tasks.classification.evaluate import Classifier, open_checkpoint

if TYPE_CHECKING:
    import onnxruntime

SUFFIX = ".onnx"
INSTALL = 'it needs packages that are not installed: pip install "psvit[export]"'
PREFIX = "psvit."
"""Prefix of our entries in the metadata of a file."""
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct")


def open_classifier(name: str, threads: int | None = None, precision: str = "auto", device: str = "cpu") -> Classifier:
    """The classifier in a checkpoint folder or in an ONNX file of ours.

    Args:
        name: folder or file.
        threads: CPU threads of ONNX Runtime; by default its own choice.
        precision: auto, or that of the file.
        device: device for a file: cpu, cuda, cuda:1, or auto: CUDA if both torch and ONNX Runtime have it. A
            checkpoint is moved by the caller.

    Raises:
        UserError: there is neither, the file has another precision, or ONNX Runtime lacks the device; see `OnnxModel`
            and `psvit.tasks.classification.evaluate.open_checkpoint`.
    """
    if Path(name).suffix.lower() != SUFFIX or Path(name).is_dir():
        return open_checkpoint(name)
    model = OnnxModel(Path(name), threads, device)
    own = model.metadata.get("precision", "float32")
    if precision not in ("auto", own):
        raise UserError(f"--precision {precision} is not {name}'s: a file keeps its own, {own}; leave it out")
    return Classifier(name, model, model.classes, model.metadata)


def batch_size_for(classifier: Classifier, asked: int | None, default: int) -> int:
    """The batch size for a classifier: the fixed one of its file, else `asked` or the default.

    Raises:
        UserError: `asked` differs from that of the file.
    """
    own = classifier.model.batch_size if isinstance(classifier.model, OnnxModel) else None
    if own is not None and asked not in (None, own):
        raise UserError(
            f"--batch-size {asked} is not {classifier.source}'s, which takes batches of {own} images: leave it out, or "
            "export without --batch-size"
        )
    return own or (default if asked is None else asked)


class OnnxModel(nn.Module):
    """An ONNX file of ours in ONNX Runtime: images (B, C, H, W) float32 -> logits (B, classes) float32.

    Args:
        path: the file.
        threads: CPU threads of ONNX Runtime; by default its own choice.
        device: see `open_classifier`.

    Attributes:
        batch_size: the fixed B of the file; None for any.
        metadata: written by `psvit export`, by name.

    Raises:
        UserError: there is no such file, it is not an ONNX file of psvit, or ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None, device: str = "cpu") -> None:
        super().__init__()
        self.path = path
        self.session = open_session(path, threads, device)
        entries = self.session.get_modelmeta().custom_metadata_map
        self.metadata = read_metadata(entries, path)
        self.classes = tuple(self.metadata["label_names"])
        self.num_classes = len(self.classes)
        self.pretrained_cfg = {**self.metadata["preprocessing"], "fixed_input_size": True}
        self.input, batch_size = self._checked_input()
        self.batch_size = batch_size

    def _checked_input(self) -> tuple[str, int | None]:
        """The name of the input, and the batch size if it is fixed."""
        images, *more = self.session.get_inputs()
        logits, *others = self.session.get_outputs()
        sides = tuple(self.pretrained_cfg["input_size"])
        if more or tuple(images.shape[1:]) != sides or others:
            raise UserError(f"{self.path} is not a file of psvit export: it does not take images of {sides} alone")
        if logits.shape[1:] != [self.num_classes]:
            raise UserError(
                f"{self.path} names {self.num_classes} classes, but gives logits of the shape {logits.shape}: export "
                "the checkpoint again"
            )
        return images.name, images.shape[0] if isinstance(images.shape[0], int) else None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), preprocessed by `pretrained_cfg` -> logits (B, classes).

        With a fixed batch size the batch is split, and the last part is padded.

        Raises:
            UserError: the image size differs from that of the file.
        """
        if tuple(images.shape[1:]) != (sides := tuple(self.pretrained_cfg["input_size"])):
            raise UserError(f"{self.path} takes images of {sides} (channels, height, width), not {images.shape[1:]}")
        pixels = images.detach().to("cpu", torch.float32).contiguous()
        size = self.batch_size or len(pixels)
        filled = torch.cat([pixels, pixels[-1:].expand(-len(pixels) % size, -1, -1, -1)])
        logits = [self.session.run(None, {self.input: part.numpy()})[0] for part in filled.split(size)]
        return torch.from_numpy(np.concatenate(logits)[: len(images)]).to(images.device)

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Refuse any size but that of the file.

        Raises:
            ValueError: another size.
        """
        own = tuple(self.pretrained_cfg["input_size"][1:])
        if tuple(img_size) != own:
            raise ValueError(f"{self.path} is made for {own}; export it with --img-size")


def open_session(path: Path, threads: int | None = None, device: str = "cpu") -> onnxruntime.InferenceSession:
    """Open a file in ONNX Runtime.

    Raises:
        UserError: there is no such file, it is not an ONNX file, or ONNX Runtime or the device is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path} cannot be run: {INSTALL}") from error
    if not path.is_file():
        raise UserError(f"there is no file {path}: check the path")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimizations
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = providers_for(device, onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # a broken file raises many exception classes
        raise UserError(f"{path} is not an ONNX file that ONNX Runtime can run: {one_line(error)}") from error


def providers_for(device: str, there: Sequence[str]) -> list[str | tuple[str, dict[str, int]]]:
    """The ONNX Runtime providers for a device, best first.

    Args:
        device: see `open_classifier`.
        there: the providers of this ONNX Runtime.

    Raises:
        UserError: the machine or ONNX Runtime has no such device.
    """
    chosen, cpu = resolve_device(device), "CPUExecutionProvider"
    if chosen.type == "cuda" and "CUDAExecutionProvider" in there:
        return [("CUDAExecutionProvider", {"device_id": chosen.index or 0}), cpu]
    if chosen.type != "cpu" and device != "auto":
        raise UserError(
            f"--device {device} is not in this ONNX Runtime, which has {', '.join(there)}: give --device cpu"
            + (", or pip install onnxruntime-gpu" if chosen.type == "cuda" else "")
        )
    return [cpu]


def write_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Plain data by name -> entries of a file's metadata: JSON by prefixed name."""
    return {PREFIX + name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}


def read_metadata(entries: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The entries of `write_metadata` -> plain data by name.

    Raises:
        UserError: an entry that `psvit predict` needs is missing.
    """
    try:
        found = {key[len(PREFIX) :]: json.loads(text) for key, text in entries.items() if key.startswith(PREFIX)}
        names, preprocessing = found["label_names"], found["preprocessing"]
        well = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        if not well or not all(name in preprocessing for name in PREPROCESSING):
            raise KeyError("label_names")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no class names and preprocessing of psvit: only files of psvit export can be used here"
        ) from error
    return found
