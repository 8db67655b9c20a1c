"""Packages of the extra ``dense``, and what to install where they are not. No torch here."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from psvit.errors import UserError


def need(what: str, *names: str, package: str, extra: str = "dense") -> ModuleType:
    """The first of these modules that is there.

    Args:
        what: asks for it, with its verb, for the message.
        names: of modules, the preferred one first.
        package: that holds the preferred one; extra: of psvit, that installs it.

    Raises:
        UserError: none is installed.
    """
    for name in names:
        try:
            return import_module(name)
        except ImportError as error:
            missing = error
    raise UserError(f'{what} {package}: pip install "psvit[{extra}]"') from missing


def mask_tools() -> ModuleType:
    """COCO's polygons and runs of pixels, by faster-coco-eval or pycocotools.

    Raises:
        UserError: neither is installed.
    """
    return need("masks of COCO need", "faster_coco_eval.core.mask", "pycocotools.mask", package="faster-coco-eval")


def coco_classes() -> tuple[Any, Any]:
    """The classes COCO and COCOeval of faster-coco-eval or pycocotools.

    Raises:
        UserError: neither is installed.
    """
    found = need("average precision needs", "faster_coco_eval", "pycocotools.coco", package="faster-coco-eval")
    if hasattr(found, "COCOeval_faster"):
        return found.COCO, found.COCOeval_faster
    return found.COCO, import_module("pycocotools.cocoeval").COCOeval


def decoders() -> ModuleType:
    """segmentation_models_pytorch.

    Raises:
        UserError: it is not installed.
    """
    return need("decoders need", "segmentation_models_pytorch", package="segmentation-models-pytorch")
