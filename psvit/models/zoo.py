"""Registers the variants with timm, and converts weights of DeiT and of other image sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import ceil
from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from psvit.arch.arch import ARCH_FIELDS, SHARE, Arch, image_sides
from psvit.arch.variants import FAMILIES, VARIANTS, with_changes
from psvit.errors import UserError
from psvit.models.features import Features, maps_to_take
from psvit.models.psvit import NO_GRID, PSViT


def _cfg() -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "num_classes": 1000,
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "fixed_input_size": False,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in (*VARIANTS, *FAMILIES)})


def block_names(arch: Arch) -> list[str]:
    """Module names of the layers, in order: ``stages.0.blocks.0``, ..."""
    return [f"stages.{s}.blocks.{b}" for s, layers in enumerate(arch.stages) for b in range(len(layers))]


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: PSViT) -> dict[str, Tensor]:
    """Weights of a timm ViT or DeiT, or of another PSViT -> weights with the names and position grid of `model`.

    Layers keep their order. A layer that shares takes only the value part of DeiT's qkv. Position embeddings of
    another grid are resampled. Names of a PSViT stay as they are.
    """
    names = block_names(model.arch)
    kinds = "".join(model.arch.stages)
    ours: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        layer = re.match(r"blocks\.(\d+)\.(.*)", key)
        if layer and int(layer[1]) < len(names):
            key = f"{names[int(layer[1])]}.{layer[2]}"
            if kinds[int(layer[1])] == SHARE and ".attn.qkv." in key:
                key, value = key.replace(".qkv.", ".v."), value.chunk(3)[2].clone()
        if key == "pos_embed" and value.shape != model.pos_embed.shape:
            value = resample_abs_pos_embed(
                value, list(model.grid_size), _grid_of_source(model, value), num_prefix_tokens=model.num_prefix_tokens
            )
        ours[key] = value
    return ours


def _grid_of_source(model: PSViT, pos_embed: Tensor) -> list[int] | None:
    """The grid of a checkpoint's position embeddings, from its model_args; None: a square, as in timm."""
    args: dict[str, Any] = getattr(model, "pretrained_model_args", {})
    stride = args.get("stride") or args.get("patch_size")
    if "img_size" not in args or not stride:
        return None
    grid = [ceil(side / stride) for side in image_sides(args["img_size"])]
    tokens = grid[0] * grid[1] + model.num_prefix_tokens
    return grid if tokens == pos_embed.shape[1] else None


def build_psvit(arch: Arch, variant: str, pretrained: bool = False, **kwargs: Any) -> Any:
    """Build the network of `arch` through timm, or its features with ``features_only``.

    Args:
        arch: the network.
        variant: its name in timm.
        pretrained: load weights.
        kwargs: those of `PSViT` and of timm's `build_model_with_cfg`.

    Raises:
        UserError: 2D features of a pooled 1D sequence, or a wrong argument.
    """
    features: dict[str, Any] = {}
    if kwargs.get("features_only"):
        wanted = maps_to_take(arch, kwargs.get("out_indices"))
        if arch.pooling == "1d" and wanted != [0]:
            raise UserError(NO_GRID.format(genotype=arch.genotype))
        features = {"out_indices": tuple(wanted), "feature_cls": Features}
        if "feature_cls" in kwargs:  # timm's own extractors return only the stages
            features["out_indices"] = tuple(range(len(arch.stages)))
    return build_model_with_cfg(
        PSViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=features,
        arch=arch,
        **kwargs,
    )


def create_psvit(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build `variant`; keyword arguments are those of `PSViT` and the fields of `Arch`.

    Raises:
        UserError: a wrong value; or see `build_psvit`.
    """
    changes = {name: kwargs.pop(name) for name in ARCH_FIELDS if name in kwargs}
    base = VARIANTS[variant] if variant in VARIANTS else VARIANTS[f"{variant}_tiny"]
    model: nn.Module = build_psvit(with_changes(base, **changes), variant, pretrained, **kwargs)
    return model


def _entrypoint(variant: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create_psvit(variant, pretrained, **kwargs)

    build.__name__ = build.__qualname__ = variant
    build.__doc__ = (
        f"{VARIANTS.get(variant, f'Any {variant}')}; takes the fields of `Arch` and the arguments of `PSViT`."
    )
    return build


for variant in default_cfgs:
    globals()[variant] = register_model(_entrypoint(variant))
