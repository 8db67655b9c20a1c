"""Opens the model to analyze, with explicit attention, and draws the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from psvit.analysis.layers import Layer
from psvit.analysis.redundancy import LEAST_IMAGES
from psvit.arch import cost
from psvit.arch.arch import ATTEND, Arch
from psvit.arch.model_config import Checkpoint, ModelConfig, TimmModel
from psvit.data.augment import eval_transform
from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, balanced_order
from psvit.data.samples import Transform
from psvit.data.sources import Source, Stream, Subset
from psvit.engine.checkpoints import read_config
from psvit.engine.open_model import open_model, set_size
from psvit.engine.seeding import INIT, seed_step
from psvit.errors import UserError
from psvit.models.macs import explicit_attention
from psvit.models.psvit import PSViT
from psvit.tasks.classification.evaluate import check_classes, preprocess


@dataclass(frozen=True, eq=False)
class AnalyzedModel:
    """The model to analyze.

    Args:
        model: built with explicit attention, in evaluation mode.
        weights: trained (a checkpoint), pretrained (timm's) or random.
        transform: image -> input of the model.
        in_chans: image channels; img_size: (height, width).
        unlabelled: why its accuracy cannot be measured on these images; empty if it can.
    """

    model: Any
    weights: str
    transform: Transform
    in_chans: int
    img_size: tuple[int, int]
    unlabelled: str

    def arch(self, layers: Sequence[Layer]) -> Arch | None:
        """The Arch of a PSViT or of a plain ViT of timm (with exactly the parameters of that Arch), else None."""
        if isinstance(self.model, PSViT):
            return self.model.arch
        try:
            first, patch = layers[0], self.model.patch_embed.patch_size[0]
            ratio = self.model.blocks[0].mlp.fc1.out_features / first.width
            arch = Arch(ATTEND * len(layers), (first.width,), first.width // first.heads, ratio, "2d", patch,
                        class_token=first.prefix == 1)  # fmt: skip
            params = cost.params(arch, self.img_size, self.in_chans, self.model.num_classes)
        except (AttributeError, TypeError, IndexError, UserError):
            return None
        return arch if params == sum(p.numel() for p in self.model.parameters()) else None


def open_analyzed(config: ModelConfig, data: DataConfig, opened: Data) -> AnalyzedModel:
    """Open a model with explicit attention; see `psvit.engine.open_model.open_model`.

    Checkpoints and pretrained models use their own image size and preprocessing, unless --img-size is given. Untrained
    networks use those of the data, except that models of timm keep their image size.

    Raises:
        UserError: see `open_model`.
    """
    network, name = config.network, config.name
    trained, of_timm = isinstance(network, Checkpoint), isinstance(network, TimmModel)
    pretrained = isinstance(network, TimmModel) and network.pretrained
    weights = "trained" if trained else "pretrained" if pretrained else "random"
    seed_step(data.seed, INIT)
    with explicit_attention():
        if trained:
            model = open_model(config)
            if data.img_size is not None:
                set_size(model, opened.img_size)
        else:
            own_size = of_timm and data.img_size is None
            shape = {} if pretrained else {"in_chans": opened.in_chans, "num_classes": len(opened.classes)}
            model = open_model(config, img_size=None if own_size else opened.img_size, **shape)
    in_chans, *sides = model.pretrained_cfg["input_size"]
    height, width = sides if data.img_size is None else opened.img_size
    if weights == "random":
        in_chans, transform = opened.in_chans, eval_transform(replace(opened, img_size=(height, width)))
    else:
        transform = preprocess(model, (height, width))
    unlabelled = _unlabelled(name, weights, model, opened)
    return AnalyzedModel(model.eval(), weights, transform, in_chans, (height, width), unlabelled)


def _unlabelled(name: str, weights: str, model: Any, opened: Data) -> str:
    if weights == "random":
        return "the weights are random"
    if weights == "trained":
        try:
            check_classes(name, read_config(name).get("label_names"), model.num_classes, opened)
        except UserError as error:
            return str(error)
    elif model.num_classes != len(opened.classes):
        return f"{name} knows {model.num_classes} classes, {opened.name} has {len(opened.classes)}"
    return ""


def draw_images(source: Source | Stream, images: int, data: DataConfig) -> Source | Stream:
    """The first images of a balanced random order (by the data's seed); a stream is returned as it is.

    Raises:
        UserError: too few images.
    """
    if not isinstance(source, Source):
        return source
    order = balanced_order(np.asarray(source.labels(), dtype=np.int64), np.random.default_rng(data.seed))[:images]
    if len(order) < LEAST_IMAGES:
        raise UserError(
            f"the validation split has {len(order)} images, at least {LEAST_IMAGES} are needed: raise --validation"
        )
    return Subset(source, order)
