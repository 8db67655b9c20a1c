"""Build the network of a `ModelConfig` (an Arch, a timm model or a checkpoint), and count its MACs and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from psvit.arch import cost
from psvit.arch.arch import image_sides
from psvit.arch.cost import ImgSize
from psvit.arch.model_config import Checkpoint, ModelConfig, TimmModel
from psvit.engine.checkpoints import CONFIG, class_names, load_weights, read_config, read_weights
from psvit.errors import UserError, one_line
from psvit.models.build import build_arch, build_timm, check_tokens
from psvit.models.macs import count_macs
from psvit.models.psvit import PSViT


def open_model(
    config: ModelConfig,
    drop_path_rate: float | None = None,
    *,
    img_size: ImgSize | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
) -> Any:
    """Build the network of `config`; a checkpoint comes with its weights.

    Arguments that are None keep the network's defaults: for an Arch 224 pixels, 3 channels, 1000 classes.

    Args:
        config: which network.
        drop_path_rate: stochastic depth; ignored by models without it.
        img_size: side or (height, width) in pixels.
        in_chans: image channels.
        num_classes: classes; a checkpoint of another class count gets a new classifier.

    Raises:
        UserError: see `psvit.models.build`; or a broken or unsuitable checkpoint.
    """
    network = config.network
    if isinstance(network, Checkpoint):
        return _adapted(network.folder, drop_path_rate, img_size, in_chans, num_classes)
    given = {"in_chans": in_chans, "num_classes": num_classes, "drop_path_rate": drop_path_rate}
    kwargs = {name: value for name, value in given.items() if value is not None} | dict(config.model_args)
    if isinstance(network, TimmModel):
        return build_timm(network.name, img_size, pretrained=network.pretrained, **kwargs)
    img_size = img_size or 224
    arch = config.arch(img_size, in_chans or 3, 1000 if num_classes is None else num_classes)
    assert arch is not None, "only timm models and checkpoints have no Arch"
    return build_arch(arch, img_size, **kwargs)


def _adapted(
    folder: str,
    drop_path_rate: float | None,
    img_size: ImgSize | None,
    in_chans: int | None,
    num_classes: int | None,
) -> Any:
    """A checkpoint's network, adapted to another image size or number of classes."""
    model = load_checkpoint(folder, CLASSIFIER, drop_path_rate=drop_path_rate)
    if in_chans not in (None, model.in_chans):
        raise UserError(f"{folder} takes {model.in_chans} image channels, the data have {in_chans}")
    if num_classes not in (None, model.num_classes):
        model.reset_classifier(num_classes)
    if img_size is not None:
        set_size(model, img_size)
    return model


CLASSIFIER = "take a classifier's checkpoint, from which backbones start too; --resume goes on with a run"
"""Advice when a training is to start from the checkpoint of a detector or segmenter."""


def load_checkpoint(folder: str | Path, instead: str | None = None, **changes: Any) -> Any:
    """Build the network of a checkpoint folder, in evaluation mode, with its weights.

    Args:
        folder: the checkpoint.
        instead: see `read_config`.
        changes: keyword arguments of ``timm.create_model`` to change, for example drop_path_rate.

    Raises:
        UserError: see `read_config`; or weights that are broken or do not fit the config.
    """
    config = read_config(folder, instead)
    weights = read_weights(folder)
    try:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=False, **changes)
    except Exception as error:  # a config may hold anything
        if "drop_path_rate" in changes and "'drop_path_rate'" in str(error):  # a model without stochastic depth
            del changes["drop_path_rate"]
            return load_checkpoint(folder, instead, **changes)
        raise UserError(f"{Path(folder) / CONFIG} describes no network: {one_line(error)}") from error
    model.model_args = config.get("model_args", {})
    if config.get("label_names"):
        model.pretrained_cfg["label_names"] = list(class_names(config["label_names"], model.num_classes))
    load_weights(model, weights, f"{folder} ({config.get('psvit', {}).get('genotype', config['architecture'])})")
    return model.eval()


def set_size(model: Any, img_size: int | tuple[int, int]) -> None:
    """Change the image size of a network; position embeddings are resampled.

    Raises:
        UserError: the network cannot take this size.
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


def network_facts(model: nn.Module, input_size: Sequence[int], config: ModelConfig) -> dict[str, Any]:
    """MACs of one image and parameters: computed from the Arch for a PSViT, counted for other models."""
    in_chans, *sides = input_size
    if isinstance(model, PSViT):
        macs = cost.macs(model.arch, (sides[0], sides[1]), in_chans, model.num_classes)
    else:
        macs = timm_macs(config, input_size, model.num_classes)
    return {"macs": macs, "params": sum(p.numel() for p in model.parameters())}


def timm_macs(config: ModelConfig, input_size: Sequence[int], num_classes: Any) -> int:
    """MACs of one image through a newly built model of timm.

    Raises:
        UserError: an unknown model, or one that cannot take images of this size.
    """
    in_chans, *sides = input_size
    shape: dict[str, Any] = {"img_size": (sides[0], sides[1]), "in_chans": in_chans, "num_classes": num_classes}
    try:
        return count_macs(lambda: open_model(config, **shape), tuple(input_size))
    except UserError:
        raise
    except Exception as error:  # models raise many types for a wrong image size
        size = f"{sides[0]} x {sides[1]} pixels"
        raise UserError(
            f"{config.name} cannot take images of {size} ({one_line(error)}): give another --img-size"
        ) from error
