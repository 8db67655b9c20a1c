"""Checkpoints: folders of config.json, model.safetensors and metrics.json, in the format of timm and the Hub.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads one after ``import psvit``. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from psvit.arch.arch import Arch, image_sides
from psvit.arch.cost import scale_to
from psvit.data.data_config import DataConfig
from psvit.data.image_list import ImageList, find_image_list
from psvit.engine.train_config import ModelConfig
from psvit.errors import UserError, flag, one_line
from psvit.files import replacing
from psvit.models.build import build, build_arch, check_tokens, is_psvit
from psvit.models.psvit import PSViT

ARCH = "arch.json"  # what a search leaves
CONFIG, WEIGHTS, METRICS = "config.json", "model.safetensors", "metrics.json"
TRAINED_ON = "trained_on"  # an entry of metrics.json
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tar"}


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    preprocessing: Mapping[str, Any],
    classes: Sequence[str],
    metrics: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder, whole or not at all.

    Args:
        folder: where; an earlier checkpoint there is replaced.
        model: the network, for its architecture and arguments.
        state_dict: its weights.
        preprocessing: input_size, mean, std, interpolation and crop_pct, as in timm's pretrained_cfg.
        classes: class names, by class number.
        metrics: plain data for metrics.json.
    """
    write_checkpoint(folder, config_of(model, preprocessing, classes), state_dict, metrics)


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], metrics: Mapping[str, Any]
) -> None:
    """Write config.json, model.safetensors and metrics.json, all or none; an earlier checkpoint is replaced."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        _write(temporary / CONFIG, config)
        save_weights(temporary / WEIGHTS, state_dict)
        _write(temporary / METRICS, metrics)


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors, for all to read who can read a new file."""
    # copies, since safetensors refuses tensors that share their memory, as tied weights do
    weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state_dict.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(weights, path, metadata={"format": "pt"})  # it puts a file of the user's alone in its place
    path.chmod(mode)


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config_of(model: nn.Module, preprocessing: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A classifier's config.json; arguments as of `save_checkpoint`."""
    # num_classes stands at the top and in pretrained_cfg only: transformers refuses one repeated in model_args
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
    """What builds a network again: the `architecture` that timm knows, and its `model_args`."""
    args: dict[str, Any] = dict(getattr(model, "model_args", {}))  # see psvit.models.build
    architecture = model.pretrained_cfg.get("architecture")  # type: ignore[union-attr, operator]  # timm's, a dict
    if isinstance(model, PSViT):
        architecture = f"psvit_{model.arch.pooling}"
        args = {key: value for key, value in model.arch.to_dict().items() if key != "pooling"}
        args["img_size"] = list(model.img_size)
        if model.output_stride is not None:
            args["output_stride"] = model.output_stride
    return {"architecture": architecture, "model_args": args | {"in_chans": in_chans}}


CUT = ("validation", "seed", "split_seed")
"""Settings of the data that say which of its images are the validation split."""


def set_name(data: str) -> str:
    """What a file tells of --data: of a folder its name alone, for others may read it."""
    folder = Path(os.path.expanduser(data))
    return folder.resolve().name if folder.is_dir() else data


def cut_of(data: DataConfig) -> dict[str, Any]:
    """The set that a network is trained on, and what cut its validation split: an entry of metrics.json, see
    `trained_on`.
    """
    return {"data": set_name(data.data), **{name: getattr(data, name) for name in CUT}}


def trained_on(metrics: Mapping[str, Any]) -> DataConfig | None:
    """The set that a network was trained on, and its validation split: no other setting of the data.

    Args:
        metrics: of its metrics.json, or of the metadata of its ONNX file.

    Returns:
        None if they do not tell: of older checkpoints, and of timm's.
    """
    try:
        told = metrics[TRAINED_ON]
        return DataConfig(told["data"], **{name: told[name] for name in CUT})
    except (KeyError, TypeError, UserError):
        return None


def known_images(source: str | Path, metrics: Mapping[str, Any]) -> ImageList | None:
    """The images that a network was trained on, held out or tested; None where their list lies not beside it.

    Args:
        source: the checkpoint, or an ONNX file.
        metrics: see `trained_on`.
    """
    told = metrics.get(TRAINED_ON)
    return find_image_list(Path(source), told.get("images")) if isinstance(told, dict) else None


def check_cut(source: str, trained: DataConfig, data: DataConfig) -> None:
    """Refuse a validation split of the set that a network was trained on, if it is another than the training's.

    Args:
        source: the checkpoint or file, for the message.
        trained: see `trained_on`.
        data: the images that are asked for.

    Raises:
        UserError: the network may have learned images of this validation split.
    """
    if set_name(data.data) == trained.data and _cut(data) != _cut(trained):
        (before, seed), (validation, other) = _cut(trained), _cut(data)
        raise UserError(
            f"{source} was trained on {trained.data} with --validation {before:g} --split-seed {seed}, so it "
            f"knows images "
            f"of the validation split of --validation {validation:g} --split-seed {other}: leave these flags "
            f"and --seed out"
        )


def _cut(data: DataConfig) -> tuple[float, int]:
    return data.validation, data.seed if data.split_seed is None else data.split_seed


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """What metrics.json of a checkpoint folder tells; nothing if it is not there."""
    try:
        metrics = json.loads((Path(folder) / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(metrics) if isinstance(metrics, dict) else {}


def read_config(folder: str | Path, instead: str | None = None) -> dict[str, Any]:
    """The config of a checkpoint folder; its `label_names` are those of `id2label` where somebody gave that.

    Args:
        folder: the checkpoint.
        instead: what to do where it is one of another task; by default that task's evaluate and predict.

    Raises:
        UserError: no folder, a file in its place, a part missing, a config that is not one of ours or timm's, or one of
            another task.
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
    """The class names of `id2label`, as transformers spells it; None without one, or with its fillers LABEL_0, ..."""
    told = config.get("id2label")
    if not isinstance(told, dict) or not told or len(told) != config.get("num_classes", len(told)):
        return None
    names = [told.get(str(number)) for number in range(len(told))]
    if names == [f"LABEL_{number}" for number in range(len(told))]:
        return None
    known = [name for name in names if isinstance(name, str)]
    return known if len(known) == len(told) else None


def class_names(label_names: Any, num_classes: int) -> tuple[str, ...]:
    """The names of a network's classes, by class number.

    Args:
        label_names: those that its config tells. transformers keeps the names that a network had before it was
            fine-tuned, however many classes it has then.
        num_classes: of its classifier.

    Returns:
        `label_names` if there is one for each class, else the numbers.
    """
    told = isinstance(label_names, list) and all(isinstance(name, str) for name in label_names)
    return tuple(label_names) if told and len(label_names) == num_classes else tuple(map(str, range(num_classes)))


COMMANDS = {"detection": "detect", "segmentation": "segment"}
"""The command for the checkpoints of a task."""


def read_json(folder: str | Path) -> dict[str, Any]:
    """The config of a checkpoint folder of any task.

    Raises:
        UserError: no folder, a file in its place, a part missing, or a config that is none.
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


CLASSIFIER = "take a classifier's checkpoint, from which backbones start too; --resume goes on with a run"
"""What to do where a network is to start from the checkpoint of a detector or segmenter."""


def load_checkpoint(folder: str | Path, instead: str | None = None, **changes: Any) -> Any:
    """Build the network of a checkpoint folder, in evaluation mode, with its weights.

    Args:
        folder: the checkpoint.
        instead: see `read_config`.
        changes: keyword arguments of ``timm.create_model`` that differ, for example drop_path_rate.

    Raises:
        UserError: see `read_config`; or weights that are broken or do not belong to the config.
    """
    config = read_config(folder, instead)
    weights = read_weights(folder)
    try:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=False, **changes)
    except Exception as error:  # a config may hold anything, and models fail on it in many ways
        if "drop_path_rate" in changes and "'drop_path_rate'" in str(error):  # a model without stochastic depth
            del changes["drop_path_rate"]
            return load_checkpoint(folder, instead, **changes)
        raise UserError(f"{Path(folder) / CONFIG} describes no network: {one_line(error)}") from error
    model.model_args = config.get("model_args", {})
    if config.get("label_names"):
        model.pretrained_cfg["label_names"] = list(class_names(config["label_names"], model.num_classes))
    load_weights(model, weights, f"{folder} ({config.get('psvit', {}).get('genotype', config['architecture'])})")
    return model.eval()


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint folder.

    Raises:
        UserError: they are broken.
    """
    try:
        return load_file(Path(folder) / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{Path(folder) / WEIGHTS} is not a whole safetensors file: {one_line(error)}") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `model`; all of them have to fit.

    Raises:
        UserError: the first weight that is missing, left over, or of another shape.
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


def is_folder(name: str) -> bool:
    """Whether `name` reads as a path, not as a model's name; ``./NAME`` is always a path."""
    if any(mark in name for mark in ("/", "\\")) or Path(name).suffix in {*PICKLES, ".json"}:
        return True
    return not is_psvit(name) and not timm.is_model(name.partition(".")[0]) and Path(name).exists()


def open_model(config: ModelConfig, drop_path_rate: float | None = None, **shape: Any) -> Any:
    """The network that `config` name: built anew, or with the weights of a checkpoint folder.

    The folder of a search, or its arch.json, names the network that it chose, without weights.

    Args:
        config: a name, genotype or folder, and what differs.
        drop_path_rate: stochastic depth.
        shape: img_size, in_chans and num_classes, as `psvit.models.build.build` takes them. A checkpoint of another
            class count gets a new classifier.

    Raises:
        UserError: see `read_config` and `psvit.models.build.build`.
    """
    if not is_folder(config.model):
        return build(
            config.model,
            macs=parse_macs(config.macs) if config.macs is not None else None,
            arch_changes=config.arch_changes,
            model_args=config.model_args,
            pretrained=config.pretrained,
            drop_path_rate=drop_path_rate,
            **shape,
        )
    if (path := arch_file(config.model)) is not None:
        if given := list(map(flag, config.arch_changes)):
            raise UserError(f"{path} describes the network already: leave out {', '.join(given)}")
        if config.pretrained:
            raise UserError(f"{path} describes a network without weights: leave out --pretrained")
        arch = read_arch(path)
        sized: dict[str, Any] = {
            name: shape[name] for name in ("in_chans", "num_classes") if shape.get(name) is not None
        }
        img_size = shape.get("img_size") or 224
        if config.macs is not None:
            arch = scale_to(arch, parse_macs(config.macs), img_size, **sized)
        if drop_path_rate is not None:
            sized["drop_path_rate"] = drop_path_rate
        return build_arch(arch, img_size, **(sized | config.model_args))
    model = load_checkpoint(config.model, CLASSIFIER, drop_path_rate=drop_path_rate)
    apart = {"model_args": config.model_args, "pretrained": config.pretrained, "macs": config.macs is not None}
    if given := [flag(name) for name, value in apart.items() if value] + list(map(flag, config.arch_changes)):
        raise UserError(f"{config.model} is a checkpoint, whose network is fixed: leave out {', '.join(given)}")
    if shape.get("in_chans") not in (None, model.in_chans):
        raise UserError(f"{config.model} takes {model.in_chans} image channels, the data have {shape['in_chans']}")
    if shape.get("num_classes") not in (None, model.num_classes):
        model.reset_classifier(shape["num_classes"])
    if shape.get("img_size") is not None:
        set_size(model, shape["img_size"])
    return model


def read_arch(path: Path) -> Arch:
    """The Arch in a JSON file.

    Raises:
        UserError: it is no Arch.
    """
    try:
        return Arch.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} describes no network: {one_line(error)}") from error


def arch_file(name: str) -> Path | None:
    """The file of an Arch that `name` is, or that is in the folder (a search's) of this name; None if there is none."""
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return path
    inside = path / ARCH
    return inside if inside.is_file() and not (path / CONFIG).exists() else None


def set_size(model: Any, img_size: int | tuple[int, int]) -> None:
    """Make a network that is built for one image size fit another; position embeddings are resampled.

    Raises:
        UserError: the network has no such size.
    """
    sides = image_sides(img_size)
    if isinstance(model, PSViT):
        check_tokens(model.arch, sides, fixed=True)
    elif not model.pretrained_cfg.get("fixed_input_size"):
        return
    if not hasattr(model, "set_input_size"):
        raise UserError(
            f"this network takes images of {model.pretrained_cfg['input_size'][1:]} pixels only, not {sides}"
        )
    try:
        model.set_input_size(sides)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"this network cannot take images of {sides} pixels: {one_line(error)}") from error
    if not isinstance(model, PSViT):
        model.model_args = {**getattr(model, "model_args", {}), "img_size": list(sides)}


def parse_macs(text: str) -> float:
    """``"25M"`` -> 25e6; also G, k, or a plain number.

    Raises:
        UserError: not a positive number with one of these letters.
    """
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"--macs {text!r} is not a positive number such as 25M or 1.25G")
    return value
