"""What to export and how to check it, as plain settings: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from psvit.config import Config, Count, ImageSize, Positive, Whole, between
from psvit.errors import UserError, flag

Format = Literal["onnx", "torch-export", "torchscript", "timm"]

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "torchscript": ".torchscript.pt", "timm": "-timm"}
"""Default endings of the output, a folder for timm."""

OPSETS = (18, 25)
"""The oldest and the newest ONNX opset that torch's exporter writes."""


@dataclass(frozen=True)
class ExportConfig(Config):
    """What to export, and how it is checked.

    Args:
        format: onnx, torch-export (.pt2), torchscript (deprecated by torch), or timm: a folder with a model card, for
            timm and the Hub.
        int8: also write an ONNX file with 8-bit weights, beside the float32 one.
        data: images to measure the accuracy on, as psvit evaluate takes them; its training images calibrate int8
            convolutions. Without it, convolutions stay float32.
        split: images of --data to measure the accuracy on.
        calibration: number of training images for the calibration.
        reduce_range: int8 weights of 7 bits, for x86 processors without VNNI, whose 8-bit products saturate.
        output: file, or folder for timm; by default beside the checkpoint, with its name and an ending.
        opset: ONNX opset of the file; older runtimes need an older one.
        img_size: side in pixels, or height and width; by default the checkpoint's.
        batch_size: fixed batch size of the file; by default any.
        tolerance: largest difference to the outputs of the network; not for int8.
        timed_batches: batch sizes to time (--batch-size if that is given).
        rounds: rounds of the timing; 0 for no timing.
        threads: CPU threads for timing and accuracy; by default torch's choice.
        push_to_hub: repository on the Hugging Face Hub, as user/name, to upload the folder for timm to.
        private: make that repository private.
        license: licence of the weights for the model card, such as apache-2.0.
        overwrite: replace an existing output; in a folder, only our own files.
    """

    format: Format = "onnx"
    int8: bool = False
    data: str | None = None
    split: Literal["validation", "test"] = "validation"
    calibration: Count = 256
    reduce_range: bool = False
    output: str | None = None
    opset: Annotated[int, between(*OPSETS)] = 20
    img_size: ImageSize | None = None
    batch_size: Count | None = None
    tolerance: Positive = 1e-4
    timed_batches: tuple[Count, ...] = (1, 16)
    rounds: Whole = 15
    threads: Count | None = None
    push_to_hub: str | None = None
    private: bool = False
    license: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.int8 and self.format != "onnx":
            raise UserError(f"--int8 is ONNX Runtime's, --format is {self.format}: give --format onnx")
        if self.format != "onnx" and self.opset != ExportConfig.opset:
            raise UserError(f"--opset is of ONNX files, --format is {self.format}: leave it out")
        if self.reduce_range and not self.int8:
            raise UserError("--reduce-range narrows int8 weights: give --int8 too, or leave it out")
        if self.data is not None and self.format != "onnx":
            raise UserError(f"--data measures ONNX files, --format is {self.format}: use psvit evaluate CHECKPOINT")
        if self.format == "timm" and self.batch_size is not None:
            raise UserError("--batch-size fixes a graph, --format timm holds none: leave it out")
        if self.private and not self.push_to_hub:
            raise UserError("--private is of a repository on the Hub: give --push-to-hub too, or leave it out")
        for name in ("push_to_hub", "private", "license"):
            if getattr(self, name) and self.format != "timm":
                raise UserError(f"{flag(name)} belongs to the folder that the Hub reads: give --format timm")

    @property
    def checked_batches(self) -> tuple[int, ...]:
        """Batch sizes at which outputs are compared."""
        return (1, 3) if self.batch_size is None else (self.batch_size,)
