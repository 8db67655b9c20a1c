"""Elements for which `Arch` has no field, each put into psvit_plus and trained alike: what would they bring?

python benchmarks/elements.py --output docs/results/elements.json [--seeds 0 1 2] [--only NAME ...]

Fashion-MNIST, 6 M MACs, 4 epochs, scored on the validation split; a row that the file holds is not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from psvit.arch.cost import scale_to
from psvit.arch.variants import default_arch
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.engine.accelerator import open_machine
from psvit.engine.seeding import INIT, seed_step
from psvit.engine.train_config import Machine, TrainConfig, light
from psvit.files import write_json
from psvit.models.attention import Attend, Block, Share, attention_for_training, merge_heads, split_heads
from psvit.models.build import build_arch
from psvit.models.psvit import PSViT
from psvit.tasks.classification.classify import ClassifierTrainer

DATA = DataConfig("fashion-mnist", validation=0.05)
LEARNING_RATE, EPOCHS = 4e-3, 4


class TokenBatchNorm(nn.BatchNorm1d):
    """A batch norm over the channels of tokens (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> the same shape."""
        return super().forward(x.flatten(0, 1)).view_as(x)


class MixingShare(Share):
    """A shared map with a depthwise 3 x 3 convolution of the values beside it (after SkipAT, arXiv 2301.02240)."""

    def __init__(self, shares: Share, dim: int) -> None:
        super().__init__(dim, shares.num_heads)
        self.load_state_dict(shares.state_dict())
        self.mixer = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)

    def forward(self, x: Tensor, attn: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `Share`."""
        assert attn is not None
        v = self.v(x)
        side = isqrt(v.shape[1])
        mixed = self.mixer(v.mT.unflatten(2, (side, side))).flatten(2).mT
        x = merge_heads(attn @ split_heads(v, self.num_heads)) + mixed
        return self.proj(x), attn


class LogitsAttend(Attend):
    """Hands on its logits, not its map."""

    def forward(self, x: Tensor, attn: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As `Attend`, with logits (B, H, N, N) for the next layer."""
        q, k, v = split_heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        logits = (q * q.shape[-1] ** -0.5) @ k.mT
        return self.proj(merge_heads(logits.softmax(-1) @ v)), logits


class LogitsShare(Share):
    """Adds a bias of its own to the shared logits."""

    def __init__(self, shares: Share, dim: int, tokens: int) -> None:
        super().__init__(dim, shares.num_heads)
        self.load_state_dict(shares.state_dict())
        self.bias = nn.Parameter(torch.zeros(shares.num_heads, tokens, tokens))

    def forward(self, x: Tensor, attn: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `Share`, with logits in place of the map."""
        assert attn is not None
        x = merge_heads((attn + self.bias).softmax(-1) @ split_heads(self.v(x), self.num_heads))
        return self.proj(x), attn


def batch_norms_in_layers(model: PSViT) -> None:
    """Batch norms in place of the layers' layer norms (LeViT, arXiv 2104.01136)."""
    for block in blocks(model):
        block.norm1, block.norm2 = (TokenBatchNorm(norm.normalized_shape[0]) for norm in (block.norm1, block.norm2))  # type: ignore[assignment]


def layer_norms_where_tokens_pool(model: PSViT) -> None:
    """Layer norms in place of the batch norms of stem and poolings."""
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, LayerNorm2d(child.num_features))


def activation_before_the_maxima(model: PSViT) -> None:
    """In the stem GELU, then max pooling, as in CCT."""
    layers: list[nn.Module] = list(model.patch_embed.convs)  # type: ignore[arg-type]
    for place, layer in enumerate(layers[:-1]):
        if isinstance(layer, nn.MaxPool2d):
            layers[place : place + 2] = layers[place : place + 2][::-1]
    model.patch_embed.convs = nn.Sequential(*layers)


def mixers_beside_shared_maps(model: PSViT) -> None:
    """A local mixer in each layer that shares."""
    for block in blocks(model):
        if isinstance(block.attn, Share):
            block.attn = MixingShare(block.attn, block.attn.v.in_features)


def shared_logits_with_own_biases(model: PSViT) -> None:
    """An S takes the logits of the layer before and adds a bias of its own before the softmax."""
    for stage, grid in zip(model.stages, model.arch.grids(model.img_size), strict=True):
        for block in stage.blocks:  # type: ignore[union-attr]
            if isinstance(block.attn, Share):
                block.attn = LogitsShare(block.attn, block.attn.v.in_features, grid[0] * grid[1])
            elif block.attn.map_is_shared:
                block.attn.__class__ = LogitsAttend


def blocks(model: PSViT) -> list[Block]:
    """All layers."""
    return [module for module in model.modules() if isinstance(module, Block)]


CHANGES: tuple[Callable[[PSViT], None], ...] = (
    batch_norms_in_layers,
    layer_norms_where_tokens_pool,
    activation_before_the_maxima,
    mixers_beside_shared_maps,
    shared_logits_with_own_biases,
)
ELEMENTS: dict[str, Callable[[PSViT], None]] = {
    "psvit_plus": lambda model: None,
    **{change.__name__.replace("_", " "): change for change in CHANGES},
}


def train(name: str, seed: int) -> dict[str, Any]:
    """Train one network; its metrics after each epoch."""
    config = TrainConfig(
        data=replace(DATA, seed=seed, split_seed=0),
        recipe=replace(light(), epochs=EPOCHS, lr=LEARNING_RATE),
        machine=Machine("cpu", "float32", 1),
    )
    data, accelerator = open_data(config.data), open_machine(config.machine)
    seed_step(seed, INIT)
    with attention_for_training(accelerator.device):
        model = build_arch(scale_to(default_arch(28), 6e6, 28, 1, 10), 28, in_chans=1, num_classes=10)
        ELEMENTS[name](model)
    trainer, start, step = ClassifierTrainer(model, config, accelerator, data), time.perf_counter(), 0
    scores = []
    for epoch in range(EPOCHS):
        for batch in trainer.epoch_batches(epoch, 0):
            trainer.step([batch], step)
            step += 1
        scores.append(trainer.evaluate()["top1"])
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"network": name, "seed": seed, "params": params, "validation_top1": scores,
            "seconds": round(time.perf_counter() - start)}  # fmt: skip


def main() -> None:
    """Train what is missing in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/elements.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(ELEMENTS), choices=list(ELEMENTS))
    options = parser.parse_args()
    rows = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    for seed in options.seeds:
        for name in options.only:
            if not any((row["network"], row["seed"]) == (name, seed) for row in rows):
                rows.append(train(name, seed))
                print(rows[-1], flush=True)
                write_json(options.output, {"lr": LEARNING_RATE, "epochs": EPOCHS, "macs": 6e6, "rows": rows})


if __name__ == "__main__":
    main()
