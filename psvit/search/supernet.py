"""The supernet: one set of weights for every network of a space, by weight entanglement.

A network's weights are slices of the widest network's. Each part runs as the module of PSViT, called with those slices,
so a network in the supernet and the same network extracted from it compute the same.

Legend: B batch, N tokens, C width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import Any

import torch
from timm.layers import trunc_normal_, use_fused_attn
from torch import Tensor, nn
from torch.func import functional_call

from psvit.arch.arch import ATTEND, SHARE, Arch
from psvit.arch.stem_convolutions import Stem
from psvit.arch.steps import Elements, Step, steps_of
from psvit.errors import UserError
from psvit.models.attention import Attend, Block, Share
from psvit.models.build import build_arch
from psvit.models.mlp import LocalMixer, Mlp
from psvit.models.pooling import Grid, TokenPool
from psvit.models.psvit import PSViT, init_layers, positions_for
from psvit.models.stem import Tokenizer, build_stem
from psvit.search.batch_norms import STATISTICS, norm_by_batch
from psvit.search.space import Space, bounds


class Supernet(nn.Module):
    """One set of weights for every network of a space; the network to run is an argument of `forward`.

    Layers with the same index in the same stage share weights, so that a layer always works at one resolution.

    Args:
        space: the networks.

    Raises:
        UserError: a space whose layers share something other than maps.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        if space.like.sharing != "map":
            raise UserError(f"sharing {space.like.sharing!r} cannot be searched: a supernet's layers share maps")
        self.space, self.like = space, space.like
        self.num_prefix_tokens = int(bool(self.like.class_token))
        self.num_classes = space.num_classes
        self.fused_attn = use_fused_attn() > 0  # read when the network is built, as in `Attend`
        depth = bounds(space.depth)[1]
        widest = [max(choice) for choice in space.widths]
        local = "local" in space.mlps
        self.widest = Elements(mlp="local" if local else "plain", mlp_ratio=max(space.mlp_ratios))
        rows, columns = self.like.grids(space.img_size)[0]
        self.grid_size = (rows, columns)
        stems: dict[str, nn.Module] = {
            stem: _build_stem(self.like, space.in_chans, stem, widest[0]) for stem in space.stems
        }
        self.stems = nn.ModuleDict(stems)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, widest[0])) if self.like.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + rows * columns, widest[0]))
        # at least s layers come before stage s, so it has at most depth - s
        self.layers = nn.ModuleList(
            nn.ModuleList(self._widest_layer(width) for _ in range(depth - stage)) for stage, width in enumerate(widest)
        )
        self.pools = nn.ModuleList(_widest_pool(self.like, before, after) for before, after in pairwise(widest))
        self.norm = nn.LayerNorm(max(widest), eps=1e-6)
        self.head = nn.Linear(max(widest), space.num_classes)
        norm_by_batch(self)
        self.init_weights()

    def _widest_layer(self, width: int) -> Block:
        return _build_block(self.like, self.widest, ATTEND, width, False, None)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise as `PSViT.init_weights` does."""
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)
        init_layers(self, self.stems.values())

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay."""
        return {"pos_embed", "cls_token"}

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Images (B, C, H, W) through the network `arch` -> logits (B, classes)."""
        steps = steps_of(arch)
        x, grid = self.embed(x, steps[0].elements.stem, steps[0].width)
        attn: Tensor | None = None
        for (index, step), following in zip_longest(indexed(steps), steps[1:]):
            x, grid = self.pool(x, grid, step)
            map_is_shared = following is not None and following.kind == SHARE
            x, attn = self.layer(x, attn, grid, step, index, map_is_shared)
        return self.classify(x, steps[-1])

    def embed(self, x: Tensor, stem: Stem, width: int) -> tuple[Tensor, Grid]:
        """Images (B, C, H, W) -> tokens with their positions (B, N, C) and the grid."""
        skeleton = _stem(self.like, self.space.in_chans, stem, width)
        x, grid = functional_call(skeleton, dict(_sliced(self.stems[stem], skeleton)), (x,))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token[..., :width].expand(x.shape[0], -1, -1), x], dim=1)
        positions = self.pos_embed[..., :width]
        return x + positions_for(grid, positions, self.grid_size, self.num_prefix_tokens), grid

    def pool(self, x: Tensor, grid: Grid, step: Step) -> tuple[Tensor, Grid]:
        """The pooling before a layer, where there is one: (B, N, C) and its grid -> (B, N', C') and its grid."""
        if not step.pooled_from:
            return x, grid
        skeleton = _pool(self.like, step.pooled_from, step.width)
        return functional_call(skeleton, dict(_sliced(self.pools[step.stage - 1], skeleton)), (x, grid))

    def layer(
        self, x: Tensor, attn: Tensor | None, grid: Grid, step: Step, index: int, map_is_shared: bool
    ) -> tuple[Tensor, Tensor | None]:
        """One layer: (B, N, C) and the map of the layer before -> (B, N, C) and the map for the next one.

        Args:
            x: tokens.
            attn: the map (B, H, N, N), for a layer that shares.
            grid: of the tokens.
            step: which layer.
            index: in its stage.
            map_is_shared: the next layer shares this layer's map.
        """
        skeleton = _block(self.like, step.elements, step.kind, step.width, map_is_shared, self.fused_attn)
        return functional_call(skeleton, dict(self._layer_slices(step, index)), (x, attn, grid))

    def classify(self, x: Tensor, step: Step) -> Tensor:
        """Tokens (B, N, C) behind the last layer -> logits (B, classes)."""
        width = step.width
        x = nn.functional.layer_norm(x, (width,), self.norm.weight[:width], self.norm.bias[:width], self.norm.eps)
        x = x[:, 0] if self.num_prefix_tokens else x.mean(dim=1)
        return nn.functional.linear(x, self.head.weight[:, :width], self.head.bias)

    @torch.no_grad()
    def extract(self, arch: Arch) -> PSViT:
        """Build the network `arch` with copies of its weights; its batch norms have yet to be calibrated."""
        model = build_arch(
            arch, self.space.img_size, in_chans=self.space.in_chans, num_classes=self.num_classes
        ).to(self.pos_embed.device)  # fmt: skip
        assert isinstance(model, PSViT)
        fresh = {name: buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in STATISTICS}
        model.load_state_dict({**fresh, **{name: tensor.clone() for name, tensor in self.slices(arch)}})
        return model.train(self.training)

    def slices(self, arch: Arch) -> Iterator[tuple[str, Tensor]]:
        """The weights of the network `arch`, by their names in `PSViT`."""
        steps = steps_of(arch)
        width, last = steps[0].width, steps[-1].width
        stem = arch.stem
        skeleton = _stem(self.like, self.space.in_chans, stem, width)
        yield from _named("patch_embed", _sliced(self.stems[stem], skeleton))
        if self.cls_token is not None:
            yield "cls_token", self.cls_token[..., :width]
        yield "pos_embed", self.pos_embed[..., :width]
        for index, step in indexed(steps):
            if step.pooled_from:
                pool = _pool(self.like, step.pooled_from, step.width)
                yield from _named(f"stages.{step.stage}.pool", _sliced(self.pools[step.stage - 1], pool))
            yield from _named(f"stages.{step.stage}.blocks.{index}", self._layer_slices(step, index))
        yield from (("norm.weight", self.norm.weight[:last]), ("norm.bias", self.norm.bias[:last]))
        yield from (("head.weight", self.head.weight[:, :last]), ("head.bias", self.head.bias))

    def _layer_slices(self, step: Step, index: int) -> Iterator[tuple[str, Tensor]]:
        wide: Any = self.layers[step.stage][index]  # type: ignore[index]
        C, hidden = step.width, int(step.width * step.elements.mlp_ratio)
        for norm in ("norm1", "norm2"):
            yield f"{norm}.weight", getattr(wide, norm).weight[:C]
            yield f"{norm}.bias", getattr(wide, norm).bias[:C]
        qkv = wide.attn.qkv
        projections = qkv.weight.chunk(3)  # q, k and v of the widest network
        biases = qkv.bias.chunk(3) if qkv.bias is not None else ()
        if step.kind == SHARE:
            yield "attn.v.weight", projections[2][:C, :C]
            yield from (("attn.v.bias", bias[:C]) for bias in biases[2:])
        else:
            yield "attn.qkv.weight", torch.cat([projection[:C, :C] for projection in projections])
            if biases:
                yield "attn.qkv.bias", torch.cat([bias[:C] for bias in biases])
        yield "attn.proj.weight", wide.attn.proj.weight[:C, :C]
        yield "attn.proj.bias", wide.attn.proj.bias[:C]
        yield from (("mlp.fc1.weight", wide.mlp.fc1.weight[:hidden, :C]), ("mlp.fc1.bias", wide.mlp.fc1.bias[:hidden]))
        if step.elements.mlp == "local":
            for name, weight in wide.mlp.mixer.named_parameters():
                yield f"mlp.mixer.{name}", weight[:hidden]
        yield from (("mlp.fc2.weight", wide.mlp.fc2.weight[:C, :hidden]), ("mlp.fc2.bias", wide.mlp.fc2.bias[:C]))


def indexed(steps: tuple[Step, ...]) -> Iterator[tuple[int, Step]]:
    """Every layer with its index in its stage."""
    index = 0
    for step in steps:
        index = 0 if step.pooled_from else index
        yield index, step
        index += 1


def _sliced(wide: nn.Module, part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of `part` out of those of the widest such part: the first along every dimension."""
    weights = dict(wide.named_parameters())
    for name, own in part.named_parameters():
        yield name, weights[name][tuple(map(slice, own.shape))]


def _named(prefix: str, slices: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((f"{prefix}.{name}", tensor) for name, tensor in slices)


# The parts, on the meta device: they have no weights of their own, and are called with slices of the supernet's.


def _build_stem(like: Arch, in_chans: int, stem: Stem, width: int, **dd: Any) -> Tokenizer:
    return norm_by_batch(build_stem(replace(like, stem=stem, widths=(width,)), in_chans, **dd))


def _build_block(
    like: Arch, elements: Elements, kind: str, width: int, map_is_shared: bool, device: str | None
) -> Block:
    heads, dd = width // like.head_dim, {"device": device}
    if kind == SHARE:
        attn: nn.Module = Share(width, heads, like.qkv_bias, **dd)  # type: ignore[arg-type]
    else:
        attn = Attend(width, heads, like.qkv_bias, map_is_shared=map_is_shared, **dd)  # type: ignore[arg-type]
    hidden = int(width * elements.mlp_ratio)
    mixer = LocalMixer(hidden, like, **dd) if elements.mlp == "local" else None  # type: ignore[arg-type]
    return Block(attn, Mlp(width, hidden, mixer, **dd), width, **dd)  # type: ignore[arg-type]


def _widest_pool(like: Arch, before: int, after: int) -> TokenPool:
    pool = TokenPool(before, after, like)
    if like.class_token:  # narrower networks need it even if the widest keeps its width
        pool.prefix_proj = nn.Linear(before, after)
    return pool


@lru_cache(maxsize=1024)
def _block(like: Arch, elements: Elements, kind: str, width: int, map_is_shared: bool, fused: bool) -> Block:
    block = _build_block(like, elements, kind, width, map_is_shared, "meta")
    if isinstance(block.attn, Attend):
        block.attn.fused_attn = fused
    return block


@lru_cache(maxsize=1024)
def _pool(like: Arch, before: int, after: int) -> TokenPool:
    return norm_by_batch(TokenPool(before, after, like, device="meta"))


@lru_cache(maxsize=64)
def _stem(like: Arch, in_chans: int, stem: Stem, width: int) -> Tokenizer:
    return _build_stem(like, in_chans, stem, width, device="meta")
