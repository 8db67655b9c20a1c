"""A network -> its feature maps: timm's features of a backbone, with its weights.

Legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import timm
from torch import Tensor, nn

from psvit.arch.arch import Arch
from psvit.arch.model_config import Auto, ModelConfig
from psvit.arch.variants import with_changes
from psvit.engine.checkpoints import network_config
from psvit.engine.open_model import open_model
from psvit.errors import UserError, one_line
from psvit.models.psvit import PSViT
from psvit.tasks.dense.dense_config import is_small

DENSE = Arch("A-AS-AS", widths=(64, 64, 96), head_dim=16, patch_size=4, windows=(8, 0, 0), stem="conv")
"""The network `auto` for scenes up to 128 px: maps at strides 4, 8 and 16.

Chosen on the validation split of digits-scenes; a wide first stage improves the position of boxes.
"""


def open_features(
    config: ModelConfig, img_size: tuple[int, int] | None, in_chans: int, drop_path_rate: float | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone of `config` as timm's ``features_only`` network, and its description.

    Args:
        config: which network; a checkpoint's weights are kept.
        img_size: height and width in pixels of all images; None if they differ.
        in_chans: image channels.
        drop_path_rate: stochastic depth.

    Returns:
        Images (B, C, H, W) -> a list of maps (B, C', H / stride, W / stride); and the arguments of `build_features`.

    Raises:
        UserError: there is no such network, or it has no feature maps.
    """
    model = open_model(
        _for_scenes(config, img_size), drop_path_rate, img_size=img_size, in_chans=in_chans, num_classes=0
    )
    if isinstance(model, PSViT) and model.arch.pooling == "1d" and len(model.arch.widths) > 1:
        raise UserError(f"{config.name} pools the sequence (1D), so its later stages have no maps: take a 2D variant")
    described = network_config(model, in_chans)
    features = build_features(described, img_size, drop_path_rate)
    names = take_weights(features, model.state_dict(), config.name)
    undecayed = set(getattr(model, "no_weight_decay", set)())
    kept = {name for name, match in names.items() if any(fnmatch(match, pattern) for pattern in undecayed)}
    features.no_weight_decay = lambda: kept  # type: ignore[assignment]  # timm's feature wrappers drop it
    return features, described


def _for_scenes(config: ModelConfig, img_size: tuple[int, int] | None) -> ModelConfig:
    """Replace `auto` for small scenes by a network with finer maps than a classifier has."""
    if not isinstance(config.network, Auto) or not is_small(img_size):
        return config
    return replace(config, network=with_changes(DENSE, **{"head_dim": DENSE.head_dim, **config.network.changes}))


def build_features(
    described: dict[str, Any], img_size: tuple[int, int] | None, drop_path_rate: float | None = None
) -> nn.Module:
    """Build a ``features_only`` network, with new weights, from the description that `open_features` returned.

    Transformers of timm for one size are made to accept others if possible, since detectors pad images.

    Args:
        described: architecture and model_args.
        img_size: height and width in place of the described ones, or None.
        drop_path_rate: stochastic depth.

    Raises:
        UserError: timm has no features for this network.
    """
    name, args = described["architecture"], dict(described["model_args"])
    if img_size is not None and "img_size" in args:
        args["img_size"] = img_size
    if drop_path_rate is not None:
        args["drop_path_rate"] = drop_path_rate
    known = timm.get_pretrained_cfg(name) if not name.startswith("psvit") else None
    ways: list[dict[str, Any]] = [{}]
    if known is not None and known.fixed_input_size:
        ways = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    for way in ways:
        try:
            features: nn.Module = timm.create_model(name, pretrained=False, features_only=True, **way, **args)
        except UserError:
            raise
        except Exception as error:  # models raise many exception classes
            if any(argument in str(error) for argument in way):
                continue
            if "drop_path_rate" in args and "drop_path_rate" in str(error):
                return build_features(described, img_size)
            raise UserError(
                f"{name} gives no maps of features ({one_line(error)}): take a psvit_2d or a timm model that has them"
            ) from error
        return features
    raise AssertionError("the last way adds no argument")


def take_weights(features: nn.Module, weights: dict[str, Tensor], source: str) -> dict[str, str]:
    """Copy the weights of the features; returns names in the features -> names in `weights`."""
    own = features.state_dict()
    names: dict[str, str] = {}
    flat = {name.replace(".", "_"): name for name in weights}
    for name in own:
        plain = name.removeprefix("model.").removeprefix("body.")
        # timm replaces dots by underscores if it flattens a network into a list
        match = flat.get(plain.replace(".", "_"))
        if match is None or weights[match].shape != own[name].shape:
            raise UserError(f"{source} has no weight {plain} of the shape {tuple(own[name].shape)} for its features")
        names[name] = match
    features.load_state_dict({name: weights[match] for name, match in names.items()})
    return names
