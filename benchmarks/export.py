"""What do exported files gain: the same numbers, milliseconds, accuracy in int8?

    python benchmarks/export.py runs/fashion/best runs/fashion-wide/best --output docs/results/export.json

Exports checkpoints of Fashion-MNIST, and the variants named (with random weights: for the time alone), to ONNX in
float32 and int8. Their accuracy is measured on the test split. Each file takes turns with the network in
torch. A few minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch

from psvit import VARIANTS, Arch
from psvit.data.data_config import DataConfig
from psvit.engine.checkpoints import read_config, save_checkpoint
from psvit.engine.hardware import machine_info
from psvit.engine.memory import keep_freed_memory
from psvit.export.export import export
from psvit.export.export_config import ExportConfig
from psvit.export.exported import Exported
from psvit.files import write_json
from psvit.models.build import build_arch


def random_checkpoint(folder: Path, name: str, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """A checkpoint of a variant with random weights, and beside it a folder of noise to calibrate with."""
    torch.manual_seed(0)
    model: Any = build_arch(VARIANTS[name], num_classes=len(classes))
    preprocessing = {key: model.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    save_checkpoint(
        folder / name, model, model.state_dict(), {"input_size": [3, 224, 224], **preprocessing}, classes, {}
    )
    return folder / name


def noise(folder: Path, classes: tuple[str, ...] = ("a", "b"), each: int = 8) -> Path:
    """A folder of noise images, a folder for each class in train and test."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def row(network: str, trained: bool, result: Exported) -> dict[str, Any]:
    found = result.to_dict()
    del found["address"]
    found["bytes"] = dict(zip(found["largest_difference"], found.pop("files").values(), strict=True))
    if not trained:
        del found["top1"], found["measured_on"]
    return {"network": network, "trained": trained, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="of Fashion-MNIST")
    parser.add_argument("--variants", nargs="*", default=["psvit_2d_tiny"], help="for images of 224 pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64], help="of the checkpoints")
    parser.add_argument("--variant-batches", nargs="+", type=int, default=[1, 8], help="of the variants")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)

    rows = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def exported(checkpoint: str, data: str, batches: list[int]) -> Exported:
            config = ExportConfig(
                int8=True, data=data, split="test", output=str(folder / "model.onnx"), overwrite=True,
                timed_batches=tuple(batches), rounds=arguments.rounds, threads=arguments.threads,
            )  # fmt: skip
            return export(checkpoint, config, DataConfig(data))

        for checkpoint in arguments.checkpoints:
            arch = Arch.from_json(json.dumps(read_config(checkpoint)["psvit"]["arch"]))
            rows.append(row(str(arch), True, exported(checkpoint, "fashion-mnist", arguments.batches)))
        data = str(noise(folder / "noise")) if arguments.variants else ""
        for name in arguments.variants:
            random = str(random_checkpoint(folder, name))
            rows.append(row(name, False, exported(random, data, arguments.variant_batches)))
    for one in rows:
        print(one["network"], one["largest_difference"], one.get("top1", ""))
        for timing in one["timings"]:
            print("  ", timing)
    machine = {**machine_info(torch.device("cpu")), "onnxruntime": onnxruntime.__version__, "load": os.getloadavg()[0]}
    if arguments.output:
        used = {
            **vars(arguments),
            "output": str(arguments.output),
            "checkpoints": ["/".join(Path(path).parts[-2:]) for path in arguments.checkpoints],
        }
        write_json(arguments.output, {"config": used, "machine": machine, "exports": rows})


if __name__ == "__main__":
    main()
