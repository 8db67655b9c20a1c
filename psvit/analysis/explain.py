"""`psvit predict --explain`: a figure of what each layer attends to, drawn over the image.

Legend: H, W pixels of the image that the network takes, N tokens of a layer (P prefix tokens, then places), L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor

from psvit.analysis.explain_figure import Panel, write_figure
from psvit.analysis.find_layers import find_layers
from psvit.analysis.layers import Layer
from psvit.analysis.maps import look
from psvit.analysis.rollout import attended, rollout, token_of_pixels
from psvit.arch.arch import SHARE
from psvit.data.sources import load_image
from psvit.engine.accelerator import open_machine
from psvit.engine.open_model import load_checkpoint
from psvit.engine.train_config import Machine
from psvit.errors import UserError
from psvit.files import check_writable
from psvit.models.macs import explicit_attention
from psvit.models.psvit import PSViT
from psvit.tasks.classification.evaluate import Prediction, preprocess


class Explainer:
    """Draws what the layers of a checkpoint's network attend to, one PNG per image.

    The maps are always computed in float32 with explicit attention.

    Args:
        checkpoint: a folder with a PSViT or another vision transformer of timm that has maps between all tokens.
        paths: all images that `draw` will be called for; see `name_figures`.
        output: folder of the figures.
        machine: device and threads.
        overwrite: replace existing figures.

    Raises:
        UserError: a network without such maps, an ONNX file, or figures that would replace a file.
    """

    def __init__(
        self, checkpoint: str, paths: Sequence[Path], output: str | Path, machine: Machine, overwrite: bool = False
    ) -> None:
        if Path(checkpoint).suffix.lower() == ".onnx" and not Path(checkpoint).is_dir():
            raise UserError(f"{checkpoint} is an ONNX file, whose attention maps cannot be read: "
                            "give --explain with the checkpoint folder that it was exported from")  # fmt: skip
        self.files = name_figures(paths, Path(output))
        _check_files(self.files, Path(output), overwrite)
        self.device = open_machine(replace(machine, precision="float32")).device
        with explicit_attention():
            self.model: Any = load_checkpoint(checkpoint).to(self.device)
        config = resolve_data_config({}, model=self.model)
        self.in_chans, height, width = config["input_size"]
        self.size = (height, width)
        self.mean, self.std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
        self.transform = preprocess(self.model)
        probe = torch.randn(2, *config["input_size"], generator=torch.Generator().manual_seed(0))
        self.layers, left_out = find_layers(self.model, checkpoint, probe.to(self.device))
        placed = [layer.grid is not None for layer in self.layers]
        if not any(placed):
            raise UserError(f"the tokens of {checkpoint} lie on no known grid: --explain cannot place them in an image")
        ours, first = isinstance(self.model, PSViT), self.layers[0]
        self.stride: int | None = self.model.arch.stride if ours else None
        self.by_class_token = first.prefix > 0 and _reads_class_token(self.model)
        self.rolls = all(placed) and not left_out and (ours or all(layer.stage == 0 for layer in self.layers))
        self.exact = ours or (all(layer.grid == first.grid for layer in self.layers) and self._patches_tile())

    def _patches_tile(self) -> bool:
        patch, grid = getattr(getattr(self.model, "patch_embed", None), "patch_size", None), self.layers[0].grid
        sides = patch if isinstance(patch, tuple) else (patch, patch)
        return None not in sides and grid is not None and (grid[0] * sides[0], grid[1] * sides[1]) == self.size

    def legend(self) -> str:
        """The legend of the figures."""
        who = "what the class token attends to" if self.by_class_token else (
            "what each token receives from the average token (the mean of the map's columns)")  # fmt: skip
        said = [f"Attention, mean of the heads: {who}. Grey image: an equal share, 1 / N of a layer with N tokens.",
                f"The image is the {self.size[0]}×{self.size[1]} pixels that the network sees, after resizing and "
                "cropping."]  # fmt: skip
        if windowed := _by_window(self.layers):
            said.append(f"Within windows: {'; '.join(windowed)}. There an equal share is what a token gets if all "
                        "attend alike within their windows.")  # fmt: skip
        if self.rolls:
            pools = any(a.stage != b.stage for a, b in pairwise(self.layers))
            means = "; a pooled token counts as the mean of its window" if pools else ""
            said.append(f"Rollout: all layers together (Abnar & Zuidema 2020){means}.")
        if not self.exact:
            said.append("This network's tokens do not tile the image exactly: they are drawn as equal parts of it.")
        if missing := [str(n) for n, layer in enumerate(self.layers, start=1) if layer.grid is None]:
            said.append(f"Not drawn, since their tokens lie on no known grid: layers {', '.join(missing)}.")
        return " ".join(said)

    @torch.inference_mode()
    def panels(self, image: Tensor) -> list[Panel]:
        """A panel for each layer, and for the rollout if possible, for a preprocessed image (C, H, W)."""
        seen = look(self.model, self.layers, image[None].to(self.device))
        maps = [attn[0].float().mean(dim=0).cpu() for attn in seen.maps]  # (1, heads, N, N) -> (N, N)
        made = []
        for number, (layer, attn) in enumerate(zip(self.layers, maps, strict=True), start=1):
            if layer.grid is not None:
                does = "attends in windows" if layer.window else "attends"
                does = f"shares map of {number - 1}" if layer.kind == SHARE else does
                times = attended(attn, layer.prefix, self.by_class_token, layer.keys)
                made.append(self._panel(f"layer {number} {does}", times, layer))
        if self.rolls:
            last, first = self.layers[-1], self.layers[0]
            rolled = rollout(maps, self.layers)
            row = rolled[0] if self.by_class_token else rolled[last.prefix :].mean(dim=0)
            made.append(self._panel("rollout", row[first.prefix :] * first.tokens, first))
        return made

    def _panel(self, title: str, times: Tensor, layer: Layer) -> Panel:
        assert layer.grid is not None
        tokens = f"{prod(layer.grid)}" if layer.one_row and layer.stage > 0 else f"{layer.grid[0]}×{layer.grid[1]}"
        pixels = token_of_pixels(layer, self.layers[0], self.size, self.stride)
        low, high = (f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in (times.min(), times.max()))
        return Panel(f"{title}\n{tokens} tokens, {low}–{high}×", times[pixels])

    def draw(self, found: Prediction) -> Path:
        """Write the figure of one image of `paths`, with its prediction as title; returns the figure's path.

        Raises:
            OSError: the image cannot be read, or the figure cannot be written.
        """
        path = Path(found.image)
        image = self.transform(load_image(path))
        colours = (image * self.std + self.mean).clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3)
        title = f"{path.name}: {found.labels[0]} {100 * found.probabilities[0]:.1f} %"
        write_figure(self.files[path], title, self.legend(), colours, self.panels(image))
        return self.files[path]


def _by_window(layers: Sequence[Layer]) -> list[str]:
    """For each size of windows, its layers, in words."""
    found: dict[tuple[int, int], list[str]] = {}
    for number, layer in enumerate(layers, start=1):
        if layer.window_size is not None:
            found.setdefault(layer.window_size, []).append(str(number))
    return [f"layer{'s' * (len(names) > 1)} {', '.join(names)} ({height}×{width} tokens)"
            for (height, width), names in found.items()]  # fmt: skip


def _reads_class_token(model: Any) -> bool:
    pool = getattr(model, "global_pool", None)
    return pool == "token" if isinstance(pool, str) else getattr(model, "cls_token", None) is not None


def name_figures(paths: Sequence[Path], output: Path) -> dict[Path, Path]:
    """A PNG in `output` for each image, named after it: ``x.png``, ``x-2.png`` for a second image called x."""
    files: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        stem, number = path.stem[:60], 1  # names of files are limited in length
        name = stem
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        files[path] = output / f"{name}.png"
    return files


def _check_files(files: dict[Path, Path], output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"--explain {output} is a file: give a folder")
    check_writable(output, f"--explain {output}")
    images = {path.resolve() for path in files}
    for file in files.values():
        if file.resolve() in images:
            raise UserError(f"the figure {file} would replace an image: give --explain another folder")
        if file.exists() and not overwrite:
            raise UserError(f"{file} is there already: give --overwrite to replace it, or --explain another folder")
