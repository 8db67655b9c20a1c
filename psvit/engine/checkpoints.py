"""Checkpoints: folders of config.json, model.safetensors and metrics.json, in the format of timm and the Hub.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads one after ``import psvit``. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from psvit.arch.model_config import CHECKPOINT_CONFIG, PICKLES
from psvit.errors import UserError, one_line
from psvit.files import replacing
from psvit.models.psvit import PSViT

CONFIG, WEIGHTS, METRICS = CHECKPOINT_CONFIG, "model.safetensors", "metrics.json"


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    preprocessing: Mapping[str, Any],
    classes: Sequence[str],
    metrics: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder, atomically.

    Args:
        folder: its path; an earlier checkpoint is replaced.
        model: gives the architecture and its arguments.
        state_dict: the weights.
        preprocessing: input_size, mean, std, interpolation and crop_pct, as in timm's pretrained_cfg.
        classes: class names, by class number.
        metrics: plain data for metrics.json.
    """
    write_checkpoint(folder, config_of(model, preprocessing, classes), state_dict, metrics)


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], metrics: Mapping[str, Any]
) -> None:
    """Write config.json, model.safetensors and metrics.json, atomically; an earlier checkpoint is replaced."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        _write(temporary / CONFIG, config)
        save_weights(temporary / WEIGHTS, state_dict)
        _write(temporary / METRICS, metrics)


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors, with the default permissions of a new file."""
    # copies: safetensors refuses tensors that share memory, such as tied weights
    weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state_dict.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(weights, path, metadata={"format": "pt"})  # creates a file that only the user can read
    path.chmod(mode)


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config_of(model: nn.Module, preprocessing: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A classifier's config.json; arguments as in `save_checkpoint`."""
    # num_classes only at the top and in pretrained_cfg: transformers refuses another one in model_args
    known: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]  # timm puts it on every model
    network = network_config(model, preprocessing["input_size"][0])
    num_classes: int = model.num_classes  # type: ignore[assignment]  # timm puts it on every model
    config = {
        "architecture": network["architecture"],
        "num_classes": num_classes,
        "num_features": model.num_features,
        "label_names": list(classes),
        "model_args": network["model_args"],
        "pretrained_cfg": {
            "num_classes": num_classes,
            **preprocessing,
            "fixed_input_size": bool(known.get("fixed_input_size")),
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }
    if isinstance(model, PSViT):
        config["psvit"] = {"genotype": model.arch.genotype, "arch": model.arch.to_dict()}
    return config


def network_config(model: nn.Module, in_chans: int) -> dict[str, Any]:
    """timm's `architecture` of a network and its `model_args`, from which it can be built again."""
    args: dict[str, Any] = dict(getattr(model, "model_args", {}))  # see psvit.models.build
    architecture = model.pretrained_cfg.get("architecture")  # type: ignore[union-attr, operator]  # timm's, a dict
    if isinstance(model, PSViT):
        architecture = f"psvit_{model.arch.pooling}"
        args = {key: value for key, value in model.arch.to_dict().items() if key != "pooling"}
        args["img_size"] = list(model.img_size)
        if model.output_stride is not None:
            args["output_stride"] = model.output_stride
    return {"architecture": architecture, "model_args": args | {"in_chans": in_chans}}


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """metrics.json of a checkpoint folder; empty if it is missing or broken."""
    try:
        metrics = json.loads((Path(folder) / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(metrics) if isinstance(metrics, dict) else {}


def read_config(folder: str | Path, instead: str | None = None) -> dict[str, Any]:
    """The config of a classifier's checkpoint folder; `label_names` come from `id2label` if it has one.

    Args:
        folder: the checkpoint.
        instead: advice for a checkpoint of another task; by default that task's evaluate and predict.

    Raises:
        UserError: not a folder, incomplete, not a config of psvit or timm, or a checkpoint of another task.
    """
    config = read_json(folder)
    task = config.get("task")
    if task is not None:
        command = f"psvit {COMMANDS.get(task, task)}"
        raise UserError(
            f"{folder} is a checkpoint for {task}, not for classes: "
            + (instead or f"take {command} evaluate or {command} predict")
        )
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{Path(folder) / CONFIG} names the architecture {architecture!r}, which timm does not know")
    if (names := _names_by_number(config)) is not None:
        config["label_names"] = names
    return config


def _names_by_number(config: Mapping[str, Any]) -> list[str] | None:
    """Class names from transformers' `id2label`; None if it is missing or holds the placeholders LABEL_0, ..."""
    told = config.get("id2label")
    if not isinstance(told, dict) or not told or len(told) != config.get("num_classes", len(told)):
        return None
    names = [told.get(str(number)) for number in range(len(told))]
    if names == [f"LABEL_{number}" for number in range(len(told))]:
        return None
    known = [name for name in names if isinstance(name, str)]
    return known if len(known) == len(told) else None


def class_names(label_names: Any, num_classes: int) -> tuple[str, ...]:
    """`label_names` of a config if there is one for each class, else the class numbers.

    The counts may differ: transformers keeps the names from before a fine-tuning.
    """
    told = isinstance(label_names, list) and all(isinstance(name, str) for name in label_names)
    return tuple(label_names) if told and len(label_names) == num_classes else tuple(map(str, range(num_classes)))


COMMANDS = {"detection": "detect", "segmentation": "segment"}
"""Task of a checkpoint -> its command."""


def read_json(folder: str | Path) -> dict[str, Any]:
    """The config of a checkpoint folder of any task.

    Raises:
        UserError: not a folder, incomplete, or not a checkpoint's config.
    """
    folder = Path(folder)
    if folder.is_file():
        kind = "a pickle, which could run anything: it is not opened" if folder.suffix in PICKLES else "a file"
        if folder.suffix == ".pt2" or folder.name.endswith(".torchscript.pt"):
            kind = f"opened by {'torch.export.load' if folder.suffix == '.pt2' else 'torch.jit.load'} alone"
        files = " (an ONNX file of psvit export: psvit predict and evaluate)" if folder.suffix == ".onnx" else ""
        raise UserError(f"{folder} is {kind}; a checkpoint is a folder with {CONFIG} and {WEIGHTS}{files}")
    if not folder.is_dir():
        raise UserError(f"there is no checkpoint folder {folder}: check the path")
    for part in (CONFIG, WEIGHTS):
        if not (folder / part).is_file():
            inside = next((n for n in ("best", "last") if (folder / n / part).is_file()), None)
            hint = f"; did you mean {folder / inside}?" if inside else ": the checkpoint is incomplete"
            raise UserError(f"{folder} holds no {part}{hint}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if "task" not in config:
            config["architecture"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} is not a checkpoint's config: {error!r}") from error
    return dict(config)


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint folder.

    Raises:
        UserError: a broken file.
    """
    try:
        return load_file(Path(folder) / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{Path(folder) / WEIGHTS} is not a whole safetensors file: {one_line(error)}") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `model`; names and shapes have to match.

    Raises:
        UserError: names the first weight that is missing, left over, or of another shape.
    """
    own = model.state_dict()
    for name in own:
        if name not in weights:
            raise UserError(f"{source} has no weight {name}: it is a checkpoint of another network")
        if own[name].shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, but this network's is {tuple(own[name].shape)}"
            raise UserError(f"{source}: {name} has the shape {shapes}: another class count, width or genotype")
    if extra := sorted(set(weights) - set(own)):
        raise UserError(f"{source} has the weight {extra[0]}, which this network lacks: another network's checkpoint")
    model.load_state_dict(dict(weights))
