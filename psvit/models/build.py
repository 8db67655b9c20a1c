"""Build a network from an Arch or from the name of a model of timm."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import timm

from psvit.arch.arch import Arch, image_sides
from psvit.arch.cost import ImgSize
from psvit.arch.variants import VARIANTS
from psvit.errors import UserError, one_line
from psvit.models.psvit import PSViT
from psvit.models.zoo import build_psvit


def build_arch(arch: Arch, img_size: ImgSize = 224, **kwargs: Any) -> PSViT:
    """Build the network of `arch` for images of `img_size` pixels; keyword arguments are those of `PSViT`.

    Raises:
        UserError: images too small for it, or an argument that `PSViT` does not take.
    """
    sides = image_sides(img_size)
    check_tokens(arch, sides)
    variant = f"psvit_{arch.pooling}"
    try:
        model: Any = build_psvit(arch, variant, img_size=sides, **kwargs)
    except UserError:
        raise
    except Exception as error:  # --model-args may hold anything
        raise _no_argument(variant, _refused(error, kwargs), kwargs, error) from error
    fields = {name: value for name, value in arch.to_dict().items() if name != "pooling"}
    model._model_args = {"img_size": sides, **fields, **kwargs}  # for timm's own functions that save models
    model.pretrained_cfg["input_size"] = (kwargs.get("in_chans", 3), *sides)
    built: PSViT = model
    return built


def build_timm(name: str, img_size: ImgSize | None = None, *, pretrained: bool = False, **kwargs: Any) -> Any:
    """Build a model of timm; keyword arguments are those of ``timm.create_model``.

    Args:
        name: of the model.
        img_size: side or (height, width) in pixels; passed on to models with a fixed input size.
        pretrained: load timm's pretrained weights.
        kwargs: a `drop_path_rate` is left out where a model has none.

    Returns:
        The network, with the keyword arguments that rebuild it in its attribute ``model_args``.

    Raises:
        UserError: an unknown name (the message names close ones) or arguments that the model does not take.
    """
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, dict.fromkeys([*VARIANTS, *timm.list_models()]), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ": give a psvit variant, a genotype or a timm model"
        raise UserError(f"no model is called {name!r}{hint}")
    try:
        pretrained_cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # unknown weights after the dot
        raise UserError(f"no model is called {name!r}: {one_line(error)}") from error
    if img_size is not None and pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        kwargs.setdefault("img_size", image_sides(img_size))
    model = _create(name, pretrained, kwargs)
    if img_size is not None:
        in_chans = kwargs.get("in_chans", model.pretrained_cfg["input_size"][0])
        model.pretrained_cfg["input_size"] = (in_chans, *image_sides(img_size))
    return model


def check_tokens(arch: Arch, img_size: int | tuple[int, int], *, fixed: bool = False) -> None:
    """Refuse images so small that a stage or a pooling has a single token.

    Args:
        arch: of the network.
        img_size: side or (height, width) in pixels.
        fixed: the network is built already, so only the image size can change.

    Raises:
        UserError: too small; the message gives a suitable patch size, or for a `fixed` network the smallest side.
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
    return all(rows * columns > 1 for rows, columns in (grids[0], *grids[:-1]))  # all stages but the last are pooled


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:  # wrong arguments and failed downloads raise many types
        refused = _refused(error, kwargs)
        if "drop_path_rate" in refused:
            return _create(name, pretrained, {k: v for k, v in kwargs.items() if k != "drop_path_rate"})
        if pretrained and not refused:
            raise UserError(f"{name} with pretrained weights is not to be had: {one_line(error, kind=True)}") from error
        raise _no_argument(name, refused, kwargs, error) from error
    model.model_args = {key: value for key, value in kwargs.items() if key not in ("num_classes", "drop_path_rate")}
    return model


def _refused(error: Exception, given: Mapping[str, Any]) -> list[str]:
    """The arguments that a model does not take: messages differ between models, but all quote the name."""
    return [name for name in given if isinstance(error, TypeError) and f"'{name}'" in str(error)]


def _no_argument(name: str, refused: list[str], kwargs: Mapping[str, Any], error: Exception) -> UserError:
    if refused:
        return UserError(f"{name} takes no argument {refused[0]!r}: leave it out of --model-args")
    return UserError(f"{name} cannot be built with {kwargs}: {one_line(error, kind=True)}")
