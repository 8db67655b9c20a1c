"""A name -> a network: psvit variants, genotypes and every model of timm."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import timm
from torch import nn

from psvit.arch.arch import Arch, image_sides
from psvit.arch.cost import scale_to
from psvit.arch.variants import AUTO, FAMILIES, VARIANTS, default_arch, find_arch, with_changes
from psvit.errors import UserError, flag, one_line


def is_psvit(name: str) -> bool:
    """Whether `name` is one of our variants or families, ``auto``, or is written in the letters of a genotype."""
    return name in (AUTO, *VARIANTS, *FAMILIES) or re.fullmatch(r"[AS-]+", name) is not None


def build(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    drop_path_rate: float | None = None,
    macs: float | None = None,
    arch_changes: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a network by name through timm. Arguments that are None keep the network's own default.

    Args:
        name: a psvit variant or family, a genotype, any model of timm, or ``auto``: `psvit.arch.variants.default_arch`.
        img_size: side or (height, width) in pixels; given on to models that are made for one size.
        in_chans: image channels.
        num_classes: classes.
        drop_path_rate: stochastic depth; left out where a model has none.
        macs: scale a psvit network to this many MACs for one image.
        arch_changes: fields of `Arch` that differ.
        model_args: further keyword arguments of ``timm.create_model``.
        pretrained: load timm's pretrained weights.

    Returns:
        The network; its attribute ``model_args`` holds what a checkpoint's config needs to build it again.

    Raises:
        UserError: an unknown name (the message names close ones) or arguments that the model does not take.
    """
    given = {"in_chans": in_chans, "num_classes": num_classes, "drop_path_rate": drop_path_rate}
    kwargs = {key: value for key, value in given.items() if value is not None} | dict(model_args or {})
    if is_psvit(name):
        if pretrained:
            raise UserError(f"there are no pretrained weights of {name}: leave out --pretrained, or give a checkpoint")
        if name not in (AUTO, *VARIANTS, *FAMILIES) and "genotype" in (arch_changes or {}):
            raise UserError(f"{name} is a genotype already: leave out --genotype, or give a variant to change")
        changes = dict(arch_changes or {})
        arch = with_changes(default_arch(img_size or 224), **changes) if name == AUTO else find_arch(name, **changes)
        if macs is not None:
            arch = scale_to(
                arch, macs, img_size or 224, in_chans or 3, num_classes if num_classes is not None else 1000
            )
        return build_arch(arch, img_size or 224, name=name if arch == VARIANTS.get(name) else None, **kwargs)
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, dict.fromkeys([*VARIANTS, *timm.list_models()]), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ": give a psvit variant, a genotype or a timm model"
        raise UserError(f"no model is called {name!r}{hint}")
    changed = [field for field, value in (arch_changes or {}).items() if value is not None]
    if ours := [flag(field) for field in (["macs"] if macs is not None else []) + changed]:
        belongs = "belongs" if len(ours) == 1 else "belong"
        raise UserError(
            f"{', '.join(ours)} {belongs} to psvit networks, but {name!r} is not one: use --model-args for timm's"
        )
    try:
        pretrained_cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # what follows the dot names no weights
        raise UserError(f"no model is called {name!r}: {one_line(error)}") from error
    if img_size is not None and pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        kwargs.setdefault("img_size", image_sides(img_size))
    model: Any = _create(name, pretrained, kwargs)
    if img_size is not None:
        sides = image_sides(img_size)
        model.pretrained_cfg["input_size"] = (kwargs.get("in_chans", model.pretrained_cfg["input_size"][0]), *sides)
    built: nn.Module = model
    return built


def build_arch(
    arch: Arch, img_size: int | tuple[int, int] = 224, *, name: str | None = None, **kwargs: Any
) -> nn.Module:
    """Build the network that `arch` describes, through timm, for images of `img_size` pixels."""
    sides = image_sides(img_size)
    fields = {} if name else {field: value for field, value in arch.to_dict().items() if field != "pooling"}
    check_tokens(arch, sides)
    model = _create(name or f"psvit_{arch.pooling}", False, {"img_size": sides, **fields, **kwargs})
    model.pretrained_cfg["input_size"] = (kwargs.get("in_chans", 3), *sides)
    built: nn.Module = model
    return built


def check_tokens(arch: Arch, img_size: int | tuple[int, int], *, fixed: bool = False) -> None:
    """Refuse images so small that a stage, or a pooling, has one token only to work on.

    Args:
        arch: of the network.
        img_size: side or (height, width) in pixels.
        fixed: the network is there already, so that only the images can change.

    Raises:
        UserError: the message tells a patch size that would do, or that there are too many stages; of a network that
            is `fixed`, the least side.
    """
    height, width = image_sides(img_size)
    if _has_tokens(arch, (height, width)):
        return
    rows, columns = arch.grids((height, width))[0]
    small = (
        f"{height} x {width} pixels with patch size {arch.patch_size} leave a {rows} x {columns} grid, too small for "
        f"{len(arch.stages)} stages"
    )
    if fixed:
        least = next(side for side in count(1) if _has_tokens(arch, (side, side)))
        raise UserError(f"{small}: the least side for this network is {least} pixels")
    sides = [
        side for side in range(arch.stride - 1, 0, -1) if arch.stem == "patch" or (side > 1 and not side & side - 1)
    ]
    smaller = (replace(arch, patch_size=side, stride=side) for side in sides)
    fitting = next((other.patch_size for other in smaller if _has_tokens(other, (height, width))), None)
    raise UserError(
        f"{small}: give " + ("fewer stages or larger images" if fitting is None else f"--patch-size {fitting} or less")
    )


def _has_tokens(arch: Arch, sides: tuple[int, int]) -> bool:
    grids = arch.grids(sides)
    return all(rows * columns > 1 for rows, columns in (grids[0], *grids[:-1]))  # every stage pools but the last


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **kwargs)
    except UserError:
        raise
    except Exception as error:  # models refuse their arguments, and downloads fail, in many ways
        refused = _refused(error, kwargs)
        if "drop_path_rate" in refused:
            return _create(name, pretrained, {k: v for k, v in kwargs.items() if k != "drop_path_rate"})
        if refused:
            raise UserError(f"{name} takes no argument {refused[0]!r}: leave it out of --model-args") from error
        reason = one_line(error, kind=True)
        if pretrained:
            raise UserError(f"{name} with pretrained weights is not to be had: {reason}") from error
        raise UserError(f"{name} cannot be built with {kwargs}: {reason}") from error
    model.model_args = {key: value for key, value in kwargs.items() if key not in ("num_classes", "drop_path_rate")}
    return model


def _refused(error: Exception, given: Mapping[str, Any]) -> list[str]:
    """The arguments that a model says it does not take: each words it in its own way, and quotes their names."""
    return [name for name in given if isinstance(error, TypeError) and f"'{name}'" in str(error)]
