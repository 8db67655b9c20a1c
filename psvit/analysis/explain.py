"""A checkpoint and an image -> a figure of what each layer attends to, drawn over the image: `psvit predict --explain`.

Legend: H, W pixels of the image that the network takes, N tokens of a layer (P prefix tokens, then places), L layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import log2, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.data import resolve_data_config
from torch import Tensor

from psvit.analysis.maps import Layer, find_layers, look
from psvit.arch.arch import SHARE
from psvit.data.sources import load_image
from psvit.engine.accelerator import open_machine
from psvit.engine.open_model import load_checkpoint
from psvit.engine.train_config import Machine
from psvit.errors import UserError
from psvit.files import check_writable, replacing
from psvit.models.macs import explicit_attention
from psvit.models.psvit import PSViT
from psvit.report.figures import STYLE
from psvit.tasks.classification.evaluate import Prediction, preprocess

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LESS, MORE = (0.12, 0.42, 0.78), (0.95, 0.50, 0.08)
"""Red, green and blue of less and of more than an equal share: blue and orange, which the colour-blind tell apart."""

STRENGTH = 0.85
"""Of the colour over the image, at the ends of the scale."""

GREY = (0.15, 0.85)
"""What black and white become under the colours, which would not show on black and on white alike."""

ENDS = (1.1, 1.25, 1.5, 2, 4, 8, 16, 32)
"""Multiples of an equal share at which the scale may end; its other end is 1 over it."""

COLUMNS, PANEL, DOTS = 5, 1.9, 150  # panels in a row, inches, dots per inch


class Panel(NamedTuple):
    """One picture: its title, and for each pixel (H, W) what its token gets, as a multiple of an equal share."""

    title: str
    times: Tensor


# From maps to numbers ------------------------------------------------------------------------------------------------


def token_of_pixels(layer: Layer, first: Layer, size: tuple[int, int], stride: int | None) -> Tensor:
    """(H, W) the number of the token, from 0 without prefix tokens, in which each pixel lies.

    A token after poolings covers the pixels of all tokens that it was pooled from: a block of the grid in 2D, in 1D a
    run of patches in reading order, which may go on in the next row.

    Args:
        layer: which tokens; `first`: the first layer, whose tokens are the patches. Both have a grid.
        size: H and W.
        stride: pixels from patch to patch in a PSViT, where the pooling windows are known. None: another model; its
            grid divides the image into equal parts.
    """
    height, width = size
    y, x = torch.arange(height), torch.arange(width)
    rows, columns = first.grid if stride is not None else layer.grid  # type: ignore[misc]  # both have one
    if stride is None:
        return (y * rows // height)[:, None] * columns + x * columns // width
    patches = (y // stride)[:, None] * columns + x // stride
    windows = first.windows(layer.stage - first.stage)
    assert windows is not None
    return windows[patches]


def attended(attn: Tensor, prefix: int, by_class_token: bool, keys: Tensor | None = None) -> Tensor:
    """What each place gets of a map, as a multiple of an equal share 1 / N.

    Within windows an equal share is what a place would get if every token attended alike to all that it sees: 1 / N
    too where the windows tile the grid; where they overlap, a place in two of them is seen by more tokens.

    Args:
        attn: (N, N), rows sum to 1.
        prefix: P.
        by_class_token: by the first token alone, which classifies (its row); else by the average place (the mean of
            their rows), as networks classify that average their tokens.
        keys: (N, n) which tokens each token attends to; None: all. There are no prefix tokens beside windows.

    Returns:
        (N - P,): 1 where it gets an equal share. Without windows the mean is 1 less what the prefix tokens get.
    """
    row = attn[0] if by_class_token else attn[prefix:].mean(dim=0)
    times = row[prefix:] * attn.shape[-1]
    if keys is None:
        return times
    return times * keys.shape[1] / torch.bincount(keys.flatten(), minlength=len(times))


def rollout(maps: Sequence[Tensor], layers: Sequence[Layer]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): the product of ``(A + I) / 2`` over the layers, poolings between them.

    Rollout follows which token is mixed into which, and nothing else: no values, no MLPs. Of a pooling it follows the
    windows: a pooled token is the mean of its window, and a prefix token passes. The convolution at a pooling, which
    also looks at neighbouring windows, is not followed, nor which token a maximum takes. Where windows of attention
    overlap, each computes the tokens in both for itself: the one whose result is kept is followed.

    Args:
        maps: of each layer (N, N), the mean of its heads.
        layers: theirs, of a PSViT, or of a model without pooling.

    Returns:
        (N of the last layer, N of the first); rows sum to 1.
    """
    rolled = torch.eye(len(maps[0]), dtype=maps[0].dtype, device=maps[0].device)
    befores: list[Layer | None] = [None, *layers[:-1]]
    for attn, layer, before in zip(maps, layers, befores, strict=True):
        if before is not None and before.stage != layer.stage:
            rolled = _pooled_rows(rolled, before, layer.stage - before.stage)
        rolled = (attn @ rolled + rolled) / 2
    return rolled


def _pooled_rows(rows: Tensor, layer: Layer, poolings: int) -> Tensor:
    """(N, K) -> (N', K): the means of windows of the layer's places; prefix rows as they are."""
    windows = layer.windows(poolings)
    assert windows is not None
    windows = windows.to(rows.device)
    sizes = torch.bincount(windows).to(rows.dtype)
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, windows, rows[layer.prefix :])
    return torch.cat([rows[: layer.prefix], sums / sizes[:, None]])


def overlay(image: Tensor, times: Tensor, end: float) -> Tensor:
    """Colour a grey image by attention: as it is where a pixel gets an equal share, orange for more, blue for less.

    Args:
        image: (H, W, 3), from 0 to 1.
        times: (H, W), multiples of an equal share.
        end: the colour is strongest from this multiple on, and below 1 over it; the scale between is logarithmic.

    Returns:
        (H, W, 3), from 0 to 1.
    """
    place = (times.log2() / log2(end)).clamp(-1, 1)[..., None]
    colour = torch.where(place > 0, image.new_tensor(MORE), image.new_tensor(LESS))
    weight = STRENGTH * place.abs()
    grey = GREY[0] + (GREY[1] - GREY[0]) * image.mean(dim=-1, keepdim=True)
    return grey * (1 - weight) + colour * weight


# From a checkpoint to files ------------------------------------------------------------------------------------------


class Explainer:
    """Draws what the layers of a checkpoint's network attend to, one PNG an image.

    The maps are computed anew, in float32 with explicit attention, whatever kernel and precision predicted.

    Args:
        checkpoint: a folder with a PSViT or any vision transformer of timm that has maps between all tokens.
        paths: every image that `draw` will be asked for; a figure has the name of its image, with a number behind
            it where two images share a name.
        output: folder of the figures.
        machine: device and threads.
        overwrite: replace figures that are there.

    Raises:
        UserError: a network without such maps or an ONNX file, and figures that would replace a file.
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
        """What the figures show, in words."""
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
        """What each layer attends to in an image (C, H, W) as the network takes it; at last the rollout, if known."""
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
        """Write the figure of one image of `paths`, whose title tells its prediction; returns the figure's path.

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
    """For each size of windows, which layers attend within them, in words."""
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
        stem, number = path.stem[:60], 1  # a name's end may be too long for more
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


# The figure ----------------------------------------------------------------------------------------------------------


def write_figure(path: Path, title: str, legend: str, image: Tensor, panels: Sequence[Panel]) -> None:
    """Write the image (H, W, 3) and the panels over it as a PNG, whole or not at all."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style = {**STYLE, "font.size": 9, "axes.titlesize": 9, "xtick.labelsize": 8}
    with matplotlib.rc_context(style), replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class name in letters that the font has not
        figure = _figure(title, legend, image, panels)
        FigureCanvasAgg(figure)
        figure.savefig(temporary, format="png", dpi=DOTS, metadata={"Software": None})


def _figure(title: str, legend: str, image: Tensor, panels: Sequence[Panel]) -> Figure:
    import textwrap

    from matplotlib.figure import Figure

    greatest = max(float(panel.times.max()) for panel in panels)
    end = next((end for end in ENDS if end >= greatest), ENDS[-1])
    columns = min(COLUMNS, len(panels) + 1)
    rows = -(-(len(panels) + 1) // columns)
    aspect = min(max(image.shape[0] / image.shape[1], 0.25), 4)
    width = max(columns * PANEL, 3.5 * PANEL)
    text = textwrap.fill(legend, int(17 * width))
    heights = [rows * (PANEL * aspect + 0.45), 0.7, 0.15 * (text.count("\n") + 1) + 0.1]  # panels, scale, words
    figure = Figure((width, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(textwrap.shorten(title, int(9 * width), placeholder=" …"), fontsize=12)
    above, middle, below = figure.subfigures(3, 1, squeeze=False, height_ratios=heights).flatten()
    cells = above.subplots(rows, columns, squeeze=False).flatten()
    for axes in cells:
        axes.set_axis_off()
    _show(cells[0], f"image\n{image.shape[0]}×{image.shape[1]} pixels", image)
    for axes, panel in zip(cells[1:], panels, strict=False):
        _show(axes, panel.title, overlay(image, panel.times, end))
    _scale(middle.subplots(), end)
    below.text(0.01, 0.95, text, fontsize=8, va="top")
    return figure


def _show(axes: Axes, title: str, image: Tensor) -> None:
    axes.imshow(image.numpy(), interpolation="nearest")
    axes.set_title(title)


def _scale(axes: Axes, end: float) -> None:
    """The scale of the colours, over a middle grey."""
    side = log2(end)
    bar = overlay(torch.full((1, 401, 3), 0.5), 2.0 ** torch.linspace(-side, side, 401)[None], end)
    axes.imshow(bar.numpy(), aspect="auto", extent=(-side, side, 0, 1))
    ups = [2.0**power for power in range(1, int(side) + 1)] if end > 2 else [end]
    axes.set_xticks(
        [*(-log2(up) for up in reversed(ups)), 0, *map(log2, ups)],
        [*(f"1/{up:g}" for up in reversed(ups)), "1", *(f"{up:g}×" for up in ups)],
    )
    axes.set_yticks([])
    axes.set_xlabel("attention, times an equal share")
    for spine in axes.spines.values():
        spine.set_visible(False)
