"""PSViT: image -> tokens -> stages of layers with token pooling between them -> logits.

Legend: B batch, N tokens (P prefix tokens and an h x w grid), C width of the stage.
"""

# without `from __future__ import annotations`: TorchScript cannot read the copy that torch.fx makes of forward

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.fx
from timm.layers import (
    resample_abs_pos_embed,
    resample_patch_embed,
    trunc_normal_,
)
from torch import Tensor, nn

from psvit.arch.arch import Arch, image_sides
from psvit.errors import UserError
from psvit.models.pooling import Grid, tokens_to_map
from psvit.models.stage import Stage, build_stages
from psvit.models.stem import PatchEmbed, build_stem

GlobalPool = Literal["", "token", "avg", "max"]


def check_size(images: Tensor, img_size: tuple[int, int]) -> None:
    """Raise unless `images` (B, C, H, W) are of `img_size` pixels."""
    size = (images.shape[2], images.shape[3])
    if size != img_size:
        raise UserError(f"an image of {size} pixels: with dynamic_img_size=False it must have {img_size}")


def positions_for(grid: Grid, pos_embed: Tensor, native: Grid, num_prefix_tokens: int) -> Tensor:
    """Position embeddings (1, P + h w, C) of `native` size, resampled where the grid of the input differs."""
    if tuple(grid) == tuple(native):
        return pos_embed
    return resample_abs_pos_embed(pos_embed, list(grid), list(native), num_prefix_tokens)


for function in (check_size, positions_for):
    torch.fx.wrap(function.__name__)  # they branch on sizes: torch.fx keeps them whole


@torch.no_grad()
def init_layers(model: nn.Module, stems: Iterable[nn.Module]) -> None:
    """As in DeiT: truncated normal of 0.02, zero biases; convolutions keep the variance; the stems' `proj` torch's."""
    kept = [stem.proj for stem in stems]
    for module in model.modules():
        if module in kept or not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        convolved = isinstance(module, nn.Conv2d)
        trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5 if convolved else 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PSViT(nn.Module):
    """A vision transformer that attends, shares and pools where its genotype says.

    Follows timm's model contract. Any input size is accepted: position embeddings are resampled to the grid of the
    input, and an image that the stride does not divide is padded with zeros.

    Args:
        arch: the network; a genotype alone takes the defaults of `Arch`.
        img_size: side or (height, width) in pixels for which the position embeddings are made.
        in_chans: image channels.
        num_classes: classes; 0 for no classifier.
        global_pool: ``"token"`` (class token), ``"avg"`` or ``"max"`` (over the grid) or ``""`` (none);
            by default the class token where there is one, else the average.
        drop_rate: dropout before the classifier; pos_drop_rate: after the position embeddings;
            proj_drop_rate: after projections and in MLPs; attn_drop_rate: of the attention maps.
        drop_path_rate: stochastic depth of the last layer, growing linearly from 0 at the first.
        dynamic_img_size: accept other input sizes; if False they raise.
        output_stride: largest stride of a stage in pixels, for dense tasks: poolings that would go beyond it keep all
            tokens and are dilated, with the same weights. By default every pooling halves.

    Raises:
        UserError: a wrong genotype, or a `global_pool` or `output_stride` that the network cannot do.
    """

    def __init__(
        self,
        arch: Arch | str,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: GlobalPool | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = True,
        output_stride: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        arch = Arch(arch) if isinstance(arch, str) else arch
        self.arch = arch
        self.img_size = image_sides(img_size)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_prefix_tokens = int(bool(arch.class_token))
        self.num_features = self.head_hidden_size = self.embed_dim = arch.widths[-1]
        self.dynamic_img_size = dynamic_img_size
        self.global_pool = self._checked_global_pool(global_pool)
        self.output_stride = _checked_output_stride(arch, output_stride)
        self.grid_size = arch.grids(self.img_size)[0]

        dim, num_patches = arch.widths[0], self.grid_size[0] * self.grid_size[1]
        self.patch_embed = build_stem(arch, in_chans, **dd)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **dd)) if arch.class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_prefix_tokens + num_patches, dim, **dd))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.stages = nn.ModuleList(
            build_stages(arch, self.output_stride, attn_drop_rate, proj_drop_rate, drop_path_rate, **dd)
        )
        self.feature_info = _feature_info(arch, self.output_stride)
        self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def _checked_global_pool(self, global_pool: str | None) -> str:
        if global_pool is None:
            return "token" if self.num_prefix_tokens else "avg"
        if global_pool not in ("", "token", "avg", "max"):
            raise UserError(f"global_pool {global_pool!r} is not one of 'token', 'avg', 'max' or '' (none)")
        if global_pool == "token" and not self.num_prefix_tokens:
            raise UserError("global_pool 'token' needs class_token=True: this network has no class token")
        return global_pool

    @torch.no_grad()
    def init_weights(self) -> None:
        """As in DeiT; see `init_layers`."""
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)
        init_layers(self, [self.patch_embed])

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Images (B, C, H, W) -> tokens with their positions (B, N, C) and the grid (h, w)."""
        if not self.dynamic_img_size:
            check_size(x, self.img_size)
        x, grid = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + positions_for(grid, self.pos_embed, self.grid_size, self.num_prefix_tokens)
        return self.pos_drop(x), grid

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> normalised tokens of the last stage (B, N, C)."""
        x, grid = self.embed(x)
        for stage in self.stages:
            x, grid = stage(x, grid)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, C) -> logits (B, classes), or the pooled features (B, C) before the classifier."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
        elif self.global_pool == "max":
            x = x[:, self.num_prefix_tokens :].amax(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes)."""
        x = self.forward_features(x)
        return self.forward_head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The final tokens, and the outputs of stages.

        Args:
            x: images (B, C, H, W).
            indices: stages to return: the last n, or a list; all by default.
            return_prefix_tokens: pair each output with its prefix tokens (B, P, C).
            norm: apply the final norm to the last stage's output (the others have another width).
            stop_early: skip the stages after the last requested one.
            output_fmt: ``"NCHW"`` (B, C, h, w), or ``"NLC"`` (B, h w, C).
            intermediates_only: return only the list of outputs.

        Raises:
            UserError: NCHW asked of a pooled 1D sequence, which has no grid.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt {output_fmt!r} is not NCHW or NLC")
        take = stages_to_take(len(self.stages), indices)
        last = max(take)
        if output_fmt == "NCHW" and self.arch.pooling == "1d" and last > 0:
            raise UserError(NO_GRID.format(genotype=self.arch.genotype))
        intermediates: list[Any] = []
        x, grid = self.embed(x)
        for index, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x, grid = stage(x, grid)
            if index in take:
                y = self.norm(x) if norm and index == len(self.stages) - 1 else x
                prefix, tokens = y[:, : self.num_prefix_tokens], y[:, self.num_prefix_tokens :]
                tokens = tokens_to_map(tokens, grid).contiguous() if output_fmt == "NCHW" else tokens
                intermediates.append((tokens, prefix) if return_prefix_tokens else tokens)
        if intermediates_only:
            return intermediates
        return (self.norm(x) if index == len(self.stages) - 1 else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and the norm and head if they are no longer used."""
        take = stages_to_take(len(self.stages), indices)
        last = max(take)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.num_features = self.head_hidden_size = self.embed_dim = self.arch.widths[last]
            self.reset_classifier(0, "")
        return take

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that no recipe should decay."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.pool", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear map (or an identity)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of `num_classes` (0: none), and the global pooling if given."""
        if global_pool is not None:
            self.global_pool = self._checked_global_pool(global_pool)
        self.num_classes = num_classes
        like: dict[str, Any] = {"device": self.pos_embed.device, "dtype": self.pos_embed.dtype}
        self.head = nn.Linear(self.num_features, num_classes, **like) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Resample position embeddings for another input size (pixels), and patches to another size (and stride).

        Raises:
            UserError: another patch size for a network whose stem has no patches.
        """
        if patch_size is not None and patch_size != self.arch.patch_size:
            if not isinstance(self.patch_embed, PatchEmbed):
                raise UserError(
                    f"patch_size {patch_size}: stem {self.arch.stem} has no patches to resample, its stride stays "
                    f"{self.arch.stride}: build and train a network of that patch size"
                )
            old = self.patch_embed.proj
            dd = {"device": old.weight.device, "dtype": old.weight.dtype}
            embed = PatchEmbed(patch_size, patch_size, self.in_chans, old.out_channels, **dd)
            weight = resample_patch_embed(old.weight, [patch_size, patch_size])
            embed.proj.load_state_dict({"weight": weight, "bias": old.bias})
            embed.requires_grad_(old.weight.requires_grad)
            self.patch_embed = embed.train(self.training)
            if self.output_stride is not None:  # keep the same poolings halving
                self.output_stride = self.output_stride // self.arch.stride * patch_size
            self.arch = replace(self.arch, patch_size=patch_size, stride=patch_size)
            self.feature_info = _feature_info(self.arch, self.output_stride)
        self.img_size = image_sides(img_size) if img_size is not None else self.img_size
        grid = self.arch.grids(self.img_size)[0]
        with torch.no_grad():
            positions = positions_for(grid, self.pos_embed, self.grid_size, self.num_prefix_tokens)
        self.pos_embed = nn.Parameter(positions.detach().clone(), requires_grad=self.pos_embed.requires_grad)
        self.grid_size = grid


NO_GRID = (
    "{genotype} pools the sequence (1D), so its later stages have no 2D grid: "
    "take a 2D variant, output_fmt='NLC', or the first stage alone"
)


def stages_to_take(num_stages: int, indices: int | Sequence[int] | None) -> list[int]:
    """Stage numbers from timm's `indices`: all (None), the last n (int), or a list that may count from the end.

    Raises:
        UserError: an index outside the network.
    """
    if indices is None:
        return list(range(num_stages))
    if isinstance(indices, int):
        taken = list(range(num_stages - indices, num_stages))
    else:
        taken = [index + num_stages if index < 0 else index for index in indices]
    if not taken or min(taken) < 0 or max(taken) >= num_stages:
        raise UserError(f"indices {indices} are not stages: the network has {num_stages}, 0 to {num_stages - 1}")
    return taken


def _checked_output_stride(arch: Arch, output_stride: int | None) -> int | None:
    if output_stride is None or output_stride >= arch.strides[-1]:
        return None
    if arch.pooling == "1d":
        raise UserError(
            f"output_stride {output_stride} needs a grid in every stage, PSViT-1D has none: take a 2D variant"
        )
    if output_stride not in arch.strides:
        raise UserError(
            f"output_stride {output_stride} is none of this network's strides {arch.strides}: "
            "take one of them, or a smaller stride of the patches (stride=)"
        )
    return output_stride


def _feature_info(arch: Arch, output_stride: int | None) -> list[dict[str, Any]]:
    """timm's feature_info: channels, true stride and module of each stage's output."""
    return [
        {"num_chs": width, "reduction": min(stride, output_stride or stride), "module": f"stages.{stage}"}
        for stage, (width, stride) in enumerate(zip(arch.widths, arch.strides, strict=True))
    ]
