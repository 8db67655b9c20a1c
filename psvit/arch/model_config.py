"""Which network to build: the flags, and the Arch, timm model or checkpoint that they name. No torch here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from psvit.arch.arch import ARCH_FIELDS, DEFAULT_WIDTHS, Arch, MlpKind, PoolConv, Pooling, PoolOp, PoolOrder, Sharing
from psvit.arch.cost import ImgSize, scale_to
from psvit.arch.quantities import format_count, parse_macs
from psvit.arch.stem_convolutions import Stem
from psvit.arch.variants import FAMILIES, VARIANTS, default_arch, find_arch, with_changes
from psvit.config import Config, Text
from psvit.errors import UserError, flag, one_line

AUTO = "auto"
"""The name of the default network for the image size."""

ARCH_FILE, CHECKPOINT_CONFIG = "arch.json", "config.json"
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tar"}


@dataclass(frozen=True)
class Auto:
    """The default network for the image size, with `changes` to the fields of its Arch."""

    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TimmModel:
    """A model of timm, with timm's weights if `pretrained`."""

    name: str
    pretrained: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """The network of a checkpoint folder, with its weights."""

    folder: str


@dataclass(frozen=True)
class ModelConfig:
    """Which network to build; `ModelConfig.of` makes one from a name.

    Args:
        network: the kind of network.
        macs: widen or narrow an Arch or the default network to this many MACs for one image.
        model_args: further keyword arguments of timm.create_model.
    """

    network: Auto | Arch | TimmModel | Checkpoint = field(default_factory=Auto)
    macs: float | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, **others: Any) -> ModelConfig:
        """The config for a value of ``--model`` and the other fields of `ModelFlags`."""
        return ModelFlags(model, **others).config()

    def arch(self, img_size: ImgSize = 224, in_chans: int = 3, num_classes: int = 1000) -> Arch | None:
        """The Arch for images of this shape; None for a timm model or a checkpoint."""
        if isinstance(self.network, Auto):
            arch = with_changes(default_arch(img_size), **self.network.changes)
        elif isinstance(self.network, Arch):
            arch = self.network
        else:
            return None
        return arch if self.macs is None else scale_to(arch, self.macs, img_size, in_chans, num_classes)

    @property
    def name(self) -> str:
        """The value of ``--model``."""
        return self.flags().model

    def flags(self) -> ModelFlags:
        """The flags for this config, as written in commands, YAML files and run records."""
        network = self.network
        changes: Mapping[str, Any] = {}
        if isinstance(network, Arch):
            name = next((name for name, arch in VARIANTS.items() if arch == network), network.genotype)
            changes = {} if name in VARIANTS else _given_fields(network)
        elif isinstance(network, Auto):
            name, changes = AUTO, network.changes
        else:
            name = network.name if isinstance(network, TimmModel) else network.folder
        macs = None if self.macs is None else format_count(self.macs, digits=15).replace(" ", "")
        pretrained = isinstance(network, TimmModel) and network.pretrained
        return ModelFlags(name, **changes, macs=macs, model_args=dict(self.model_args), pretrained=pretrained)


def _given_fields(arch: Arch) -> dict[str, Any]:
    """The fields of `arch`, except genotype, that differ from their defaults."""
    defaults = {item.name: item.default for item in fields(Arch)}
    defaults |= {"genotype": arch.genotype, "widths": DEFAULT_WIDTHS[: len(arch.widths)]}
    defaults |= {"stride": arch.patch_size, "class_token": arch.pooling == "1d"}
    return {name: getattr(arch, name) for name in ARCH_FIELDS if getattr(arch, name) != defaults[name]}


@dataclass(frozen=True)
class ModelFlags(Config):
    """Which network to build.

    Args:
        model: a psvit variant, a genotype, any model of timm, the folder of a search (its network, from scratch), or a
            checkpoint folder to start from; auto is psvit_plus_tiny, or a small network of its kind for small images.
        genotype: another genotype for the variant, or the one of psvit_1d, psvit_2d or psvit_plus.
        widths: another width for each stage.
        head_dim: channels of one attention head.
        mlp_ratio: hidden channels of the MLP over the width.
        pooling: 1d or 2d.
        patch_size: side of a patch in pixels.
        stride: pixels from patch to patch; by default the patch size.
        class_token: classify by a class token.
        qkv_bias: biases in the query, key and value projections.
        pool_order: conv-pool or pool-conv.
        pool_conv: full or depthwise.
        pool_kernel: side of the pooling's convolution.
        pool_op: max, avg or stride.
        sharing: what an S shares: map, or only the query and key projections.
        windows: tokens on a side of each stage's attention windows, 0 for none, for example 14 0 0.
        stem: patch, or conv: convolutions of stride 2 instead of patches, or pool: convolutions and max pooling.
        pool_norm: a batch norm and a GELU in each token pooling.
        mlp: plain, or local: with a depthwise convolution between the linear maps.
        macs: widen or narrow the network to this many MACs, for example 25M.
        model_args: further keyword arguments of timm.create_model, as JSON.
        pretrained: start from timm's pretrained weights.
    """

    model: Text = AUTO
    genotype: str | None = None
    widths: tuple[int, ...] | None = None
    head_dim: int | None = None
    mlp_ratio: float | None = None
    pooling: Pooling | None = None
    patch_size: int | None = None
    stride: int | None = None
    class_token: bool | None = None
    qkv_bias: bool | None = None
    pool_order: PoolOrder | None = None
    pool_conv: PoolConv | None = None
    pool_kernel: int | None = None
    pool_op: PoolOp | None = None
    sharing: Sharing | None = None
    windows: tuple[int, ...] | None = None
    stem: Stem | None = None
    pool_norm: bool | None = None
    mlp: MlpKind | None = None
    macs: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False

    def config(self) -> ModelConfig:
        """The config that the flags describe; reads the arch.json of a search's folder.

        Raises:
            UserError: a wrong genotype or other value, or a flag that does not apply to this kind of network.
        """
        name = self.model
        changes = {name: value for name in ARCH_FIELDS if (value := getattr(self, name)) is not None}
        if is_psvit(name):
            if self.pretrained:
                raise UserError(
                    f"there are no pretrained weights of {name}: leave out --pretrained, or give a checkpoint"
                )
            if "genotype" in changes and name not in (AUTO, *VARIANTS, *FAMILIES):
                raise UserError(f"{name} is a genotype already: leave out --genotype, or give a variant to change")
            return self._scaled(Auto(changes) if name == AUTO else find_arch(name, **changes))
        ours = [*(["macs"] if self.macs is not None else []), *changes]
        if not is_folder(name):
            if ours:
                close = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.8)
                hint = f"did you mean {close[0]}?" if close else "use --model-args for timm's"
                belong = "belongs" if len(ours) == 1 else "belong"
                raise UserError(f"{_flags(ours)} {belong} to psvit networks, but {name!r} is not one: {hint}")
            return ModelConfig(TimmModel(name, self.pretrained), None, self.model_args)
        if (path := arch_file(name)) is not None:
            if changes:
                raise UserError(f"{path} describes the network already: leave out {_flags(changes)}")
            if self.pretrained:
                raise UserError(f"{path} describes a network without weights: leave out --pretrained")
            return self._scaled(read_arch(path))
        if given := [*(part for part in ("model_args", "pretrained") if getattr(self, part)), *ours]:
            raise UserError(f"{name} is a checkpoint, whose network is fixed: leave out {_flags(given)}")
        return ModelConfig(Checkpoint(name))

    def _scaled(self, network: Auto | Arch) -> ModelConfig:
        return ModelConfig(network, None if self.macs is None else parse_macs(self.macs), self.model_args)


def _flags(names: Iterable[str]) -> str:
    return ", ".join(map(flag, names))


def is_psvit(name: str) -> bool:
    """Whether `name` is ``auto``, a variant, a family, or consists of the letters of a genotype."""
    return name in (AUTO, *VARIANTS, *FAMILIES) or re.fullmatch(r"[AS-]+", name) is not None


def is_folder(name: str) -> bool:
    """Whether `name` is a path rather than the name of a model; ``./NAME`` is always a path."""
    if any(mark in name for mark in ("/", "\\")) or Path(name).suffix in {*PICKLES, ".json"}:
        return True
    if is_psvit(name) or not Path(name).exists():
        return False
    import timm  # slow to import, and only needed if a folder of this name exists

    return not timm.is_model(name.partition(".")[0])


def arch_file(name: str) -> Path | None:
    """The Arch file: `name` itself, or arch.json in the folder `name` (of a search); None if there is none."""
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return path
    inside = path / ARCH_FILE
    return inside if inside.is_file() and not (path / CHECKPOINT_CONFIG).exists() else None


def read_arch(path: Path) -> Arch:
    """The Arch in a JSON file.

    Raises:
        UserError: not an Arch.
    """
    try:
        return Arch.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} describes no network: {one_line(error)}") from error


def to_plain(config: Any) -> dict[str, Any]:
    """A config, possibly nested, as plain data; a `ModelConfig` in it becomes its flags."""
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, ModelConfig):
            found[item.name] = asdict(value.flags())
        else:
            found[item.name] = to_plain(value) if is_dataclass(value) else value
    return found
