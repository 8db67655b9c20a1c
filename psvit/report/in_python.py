"""Five lines of Python that build or open a network and use it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from psvit.arch.arch import Arch
from psvit.errors import UserError

Shape = tuple[tuple[int, int], int, int]
"""(height, width), channels, number of classes."""


def use_in_python(checkpoint: str, in_chans: int) -> str:
    """Five lines that open a checkpoint folder and print the class of an image of `in_chans` channels."""
    answer = 'print(model.pretrained_cfg["label_names"][logits.argmax()])'
    return _use("import PIL.Image, PIL.ImageOps, psvit, timm", f"local-dir:{checkpoint}", in_chans, answer)


def use_timm_in_python(name: str, in_chans: int) -> str:
    """Five lines that open a model of timm with its weights and print the class number of an image."""
    return _use("import PIL.Image, PIL.ImageOps, timm", name, in_chans, "print(logits.argmax().item())")


def _use(imports: str, name: str, in_chans: int, answer: str) -> str:
    mode = {1: "L", 3: "RGB"}.get(in_chans, "RGB")
    return (
        f"{imports}\n"
        f"model = timm.create_model({name!r}, pretrained=True).eval()\n"
        "transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))\n"
        f'logits = model(transform(PIL.ImageOps.exif_transpose(PIL.Image.open("IMAGE")).convert("{mode}"))[None])\n'
        f"{answer}"
    )


def build_in_python(arch: str, shape: Shape) -> str:
    """Five lines that build the network of an Arch, untrained; `arch` is Python, see `arch_in_python`."""
    (height, width), in_chans, classes = shape
    return (
        "import torch\n"
        "from psvit import Arch, PSViT\n"
        f"arch = {arch}\n"
        f"model = PSViT(arch, img_size=({height}, {width}), in_chans={in_chans}, num_classes={classes})\n"
        f"logits = model(torch.randn(1, {in_chans}, {height}, {width}))"
    )


def build_timm_in_python(name: str, arguments: Mapping[str, Any], shape: Shape) -> str:
    """Five lines that build a model of timm, untrained; `arguments` of ``timm.create_model`` without num_classes."""
    (height, width), in_chans, classes = shape
    return (
        "import timm, torch\n"
        f"model = timm.create_model({name!r}, {_keywords({**arguments, 'num_classes': classes})}).eval()\n"
        f"images = torch.randn(1, {in_chans}, {height}, {width})\n"
        "logits = model(images)\n"
        "print(logits.argmax(dim=1))"
    )


def arch_in_python(arch: Arch) -> str:
    """The call that builds an Arch, without fields at their defaults."""
    given = arch.to_dict()
    for name in list(given):
        fewer = {other: value for other, value in given.items() if other != name}
        with suppress(UserError):  # a required field
            given = fewer if Arch.from_dict(fewer) == arch else given
    return f"Arch({_keywords(given)})"


def _keywords(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={tuple(value) if isinstance(value, list) else value!r}" for name, value in values.items())
