"""Arch, the description of a network, and the grammar of its genotype. No torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any, Literal, get_args

from psvit.arch.stem_convolutions import Stem, check_stem
from psvit.errors import UserError

ATTEND, SHARE, POOL = "A", "S", "-"

Pooling = Literal["1d", "2d"]
PoolOrder = Literal["conv-pool", "pool-conv"]
PoolConv = Literal["full", "depthwise"]
PoolOp = Literal["max", "avg", "stride"]
Sharing = Literal["map", "projections"]
MlpKind = Literal["plain", "local"]

DEFAULT_WIDTHS = (192, 256, 384, 512)
"""Default widths of the stages, first to fourth."""


def parse_genotype(genotype: str) -> tuple[str, ...]:
    """Split a genotype into its stages: ``"AS-ASS"`` -> ``("AS", "ASS")``.

    Grammar: ``stage ("-" stage)*`` with ``stage = A (A | S)*``.

    Raises:
        ValueError: the string is not a genotype; the message names the position (from 1) and the rule.
    """
    if not isinstance(genotype, str) or not genotype:
        raise UserError(f"genotype {genotype!r} is empty: write one letter a layer, for example ASAS-ASSA-AS")
    stage_start = True
    for position, letter in enumerate(genotype, start=1):
        where = f"genotype {genotype!r}, position {position}"
        if letter not in (ATTEND, SHARE, POOL):
            raise UserError(f"{where}: {letter!r} is not A (attend), S (share) or - (pool)")
        if stage_start and letter == SHARE:
            reason = "there is no map to share yet" if position == 1 else "a map cannot cross a pooling"
            raise UserError(f"{where}: a stage starts with A, because {reason}")
        if stage_start and letter == POOL:
            raise UserError(f"{where}: a stage holds at least one layer, so '-' stands between two layers")
        stage_start = letter == POOL
    if stage_start:
        raise UserError(f"genotype {genotype!r}, position {len(genotype)}: '-' stands between two layers")
    return tuple(genotype.split(POOL))


@dataclass(frozen=True)
class Arch:
    """The description of a network: where it attends, shares and pools, and how wide it is.

    Frozen, hashable, equal by value; `to_json` and `from_json` round trip, `str(arch)` is short.

    Args:
        genotype: one letter per layer: ``A`` attends, ``S`` shares the map of the layer before it; ``-`` pools.
        widths: channels of each stage, one per stage; by default the first of 192, 256, 384, 512.
        head_dim: channels of one attention head; divides every width.
        mlp_ratio: hidden channels of the MLP over the width.
        pooling: ``"1d"`` pools the token sequence (PSViT-1D), ``"2d"`` the token grid (PSViT-2D).
        patch_size: side of a patch in pixels.
        stride: pixels from patch to patch; by default patch_size. If it is smaller, patches overlap.
        class_token: prepend a class token and classify by it; by default in 1D (as DeiT), not in 2D.
        qkv_bias: biases in the query, key and value projections.
        pool_order: convolve before or after the token pooling.
        pool_conv: ``"full"`` convolution, or ``"depthwise"`` and then a linear map to the next width.
        pool_kernel: side of the convolution, odd; 1 is a linear map.
        pool_op: ``"max"`` or ``"avg"`` over windows of 2 with stride 2, or ``"stride"``: the convolution strides.
        sharing: what an S shares with the layer before: the attention ``"map"`` (as in the paper), or only the query
            and key ``"projections"``, from which it computes its own map (for ablations: saves parameters, no MACs).
        windows: for each stage, the largest side in tokens of its attention windows; 0: attention over the whole
            grid. ``(14, 0, 0)`` bounds the memory for large images. Empty: all 0. 2D only.
        stem: ``"patch"``, a convolution whose kernel is a patch (DeiT); ``"conv"``, 3 x 3 convolutions of stride 2
            that together reach `stride`, and a linear map (Xiao et al. 2021, arXiv 2106.14881); or ``"pool"``, 3 x 3
            convolutions, each with a batch norm, max pooling and GELU: the first token pooling (after CCT, Hassani et
            al. 2021, arXiv 2104.05704). The latter two need a stride of 2, 4, 8, ... equal to the patch size.
        pool_norm: a batch norm behind the convolution of each token pooling, and a GELU behind the pooling.
        mlp: ``"plain"``, two linear maps (DeiT), or ``"local"``, with a depthwise convolution of 3 tokens a side
            between them (after LocalViT, Li et al. 2021, arXiv 2104.05707).

    Raises:
        ValueError: a wrong value; the message names it and the rule.
    """

    genotype: str
    widths: tuple[int, ...] = ()
    head_dim: int = 64
    mlp_ratio: float = 4.0
    pooling: Pooling = "2d"
    patch_size: int = 16
    stride: int = 0
    class_token: bool | None = None
    qkv_bias: bool = True
    pool_order: PoolOrder = "conv-pool"
    pool_conv: PoolConv = "full"
    pool_kernel: int = 3
    pool_op: PoolOp = "max"
    sharing: Sharing = "map"
    windows: tuple[int, ...] = ()
    stem: Stem = "patch"
    pool_norm: bool = False
    mlp: MlpKind = "plain"

    def __post_init__(self) -> None:
        stages = parse_genotype(self.genotype)
        self._fill_defaults(len(stages))
        self._check_widths(len(stages))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}")
        if not isinstance(self.class_token, bool):
            raise UserError(f"class_token {self.class_token!r} is not true, false or left out")
        for name in ("qkv_bias", "pool_norm"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} {getattr(self, name)!r} is not true or false")
        _check_positive_int("patch_size", self.patch_size)
        _check_positive_int("stride", self.stride)
        if self.stride > self.patch_size or (self.patch_size - self.stride) % 2:
            raise UserError(
                f"stride {self.stride} does not fit patch_size {self.patch_size}: "
                "it is at most the patch size and differs from it by an even number"
            )
        if not 0 < self.mlp_ratio < inf or min(self.hidden_widths) < 1:
            raise UserError(f"mlp_ratio {self.mlp_ratio!r} is not a positive number")
        _check_positive_int("pool_kernel", self.pool_kernel)
        if self.pool_kernel % 2 == 0:
            raise UserError(f"pool_kernel {self.pool_kernel} is even: an odd side keeps the grid in place")
        self._check_windows(len(stages))
        check_stem(self.stem, self.stride, self.patch_size, self.widths[0])

    def _fill_defaults(self, stages: int) -> None:
        if not self.widths:
            if stages > len(DEFAULT_WIDTHS):
                raise UserError(f"genotype {self.genotype!r} has {stages} stages: give widths, one per stage")
            object.__setattr__(self, "widths", DEFAULT_WIDTHS[:stages])
        for name in ("widths", "windows"):
            given: object = getattr(self, name)  # from JSON or the command line it may be of any type
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise UserError(f"{name} {given!r} is not a list of whole numbers, one per stage")
            object.__setattr__(self, name, tuple(given))
        if not isinstance(self.mlp_ratio, (int, float)) or isinstance(self.mlp_ratio, bool):
            raise UserError(f"mlp_ratio {self.mlp_ratio!r} is not a positive number")
        object.__setattr__(self, "mlp_ratio", float(self.mlp_ratio))
        if self.stride == 0:
            object.__setattr__(self, "stride", self.patch_size)
        if self.class_token is None:
            object.__setattr__(self, "class_token", self.pooling == "1d")

    def _check_widths(self, stages: int) -> None:
        _check_positive_int("head_dim", self.head_dim)
        if len(self.widths) != stages:
            raise UserError(
                f"widths {self.widths} has {len(self.widths)} entries, but genotype {self.genotype!r} "
                f"has {stages} stages: give one width per stage"
            )
        for stage, width in enumerate(self.widths, start=1):
            _check_positive_int(f"width of stage {stage}", width)
            if width % self.head_dim:
                raise UserError(
                    f"width {width} of stage {stage} is not a multiple of head_dim {self.head_dim}: "
                    "a layer splits its width into whole heads"
                )

    def _check_windows(self, stages: int) -> None:
        if not self.windows:
            return
        if len(self.windows) != stages:
            raise UserError(
                f"windows {self.windows} has {len(self.windows)} entries, but genotype {self.genotype!r} "
                f"has {stages} stages: give one window per stage, 0 for none"
            )
        for stage, window in enumerate(self.windows, start=1):
            if not isinstance(window, int) or isinstance(window, bool) or window < 0:
                raise UserError(f"window of stage {stage} {window!r} is not a whole number of tokens, or 0 for none")
        if not any(self.windows):  # the same as no windows: one network has one description
            object.__setattr__(self, "windows", ())
        elif self.pooling == "1d" or self.class_token:
            what = "a sequence (pooling 1d)" if self.pooling == "1d" else "a class token"
            raise UserError(f"windows {self.windows} divide a grid, which {what} does not have: leave one of them out")

    def window(self, stage: int) -> int:
        """Largest side in tokens of the windows in `stage` (from 0); 0: no windows."""
        return self.windows[stage] if self.windows else 0

    @property
    def stages(self) -> tuple[str, ...]:
        """The layers of each stage, for example ``("ASAS", "ASSA", "AS")``."""
        return tuple(self.genotype.split(POOL))

    @property
    def depth(self) -> int:
        """Number of layers."""
        return sum(map(len, self.stages))

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads of each stage."""
        return tuple(width // self.head_dim for width in self.widths)

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Hidden channels of the MLPs in each stage."""
        return tuple(int(width * self.mlp_ratio) for width in self.widths)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from token to token in each stage, for a 2D grid (1D pooling halves the sequence instead)."""
        return tuple(self.stride * 2**stage for stage in range(len(self.widths)))

    def grids(self, img_size: int | tuple[int, int], stages: int | None = None) -> tuple[tuple[int, int], ...]:
        """Token grid (rows, columns) of each stage for an image of `img_size` pixels (side, or height and width).

        Sizes that do not divide are rounded up: the image is padded to a multiple of `stride`, and pooling keeps the
        last odd row and column (7 -> 4). A 1D sequence is a grid of one row after its first pooling. `stages` is the
        number of stages, by default this network's.
        """
        height, width = image_sides(img_size)
        grid = (-(-height // self.stride), -(-width // self.stride))
        grids = [grid]
        for _ in range((stages or len(self.widths)) - 1):
            rows, columns = (1, grid[0] * grid[1]) if self.pooling == "1d" else grid
            grid = (-(-rows // 2), -(-columns // 2))
            grids.append(grid)
        return tuple(grids)

    def plain(self) -> Arch:
        """The plain twin: same stem, depth, first width and MLPs, full attention in each layer, no pooling between."""
        return replace(self, genotype=ATTEND * self.depth, widths=self.widths[:1], windows=(), pool_norm=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `from_dict`; fields added in later versions are left out at their defaults."""
        data = asdict(self) | {"widths": list(self.widths), "windows": list(self.windows)}
        return {name: value for name, value in data.items() if not self._is_new_default(name)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Arch:
        """Rebuild an Arch from `to_dict`.

        Raises:
            ValueError: an unknown field, a missing genotype or a wrong value.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"unknown Arch field {unknown[0]!r}: the fields are {', '.join(ARCH_FIELDS)}")
        if "genotype" not in data:
            raise UserError("an Arch needs a genotype, for example ASAS-ASSA-AS")
        return cls(**data)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Arch:
        """Rebuild an Arch from `to_json`.

        Raises:
            ValueError: not JSON, or not an Arch.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"not an Arch in JSON: {error}") from error
        if not isinstance(data, dict):
            raise UserError(f"not an Arch in JSON: expected an object, found {type(data).__name__}")
        return cls.from_dict(data)

    def __str__(self) -> str:
        windows = f" w{'-'.join(map(str, self.windows))}" if self.windows else ""
        stem = "" if self.stem == "patch" else f" {self.stem}"
        local = " local" if self.mlp == "local" else ""
        ratio = "" if self.mlp_ratio == Arch.mlp_ratio else f" mlp {self.mlp_ratio:.3g}"
        norm = " norm" if self.pool_norm else ""
        widths = "-".join(map(str, self.widths))
        return f"{self.genotype} {self.pooling} {widths} /{self.stride}{stem}{norm}{local}{ratio}{windows}"

    def __repr__(self) -> str:  # part of the signature of searches on disk
        shown = (field.name for field in fields(self) if not self._is_new_default(field.name))
        return f"Arch({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def _is_new_default(self, name: str) -> bool:
        """Whether a field was added in a later version and has its default: then it is left out of descriptions."""
        return name in _LATER and getattr(self, name) == _LATER[name]


ARCH_FIELDS = tuple(field.name for field in fields(Arch))
_CHOICES: dict[str, tuple[str, ...]] = {
    "pooling": get_args(Pooling),
    "pool_order": get_args(PoolOrder),
    "pool_conv": get_args(PoolConv),
    "pool_op": get_args(PoolOp),
    "sharing": get_args(Sharing),
    "stem": get_args(Stem),
    "mlp": get_args(MlpKind),
}
_LATER: dict[str, Any] = {"windows": (), "stem": "patch", "pool_norm": False, "mlp": "plain"}


def even_parts(length: int, most: int) -> tuple[int, int]:
    """Split `length` into the fewest parts of at most `most`: their number and even size; 15, 14 -> 2, 8."""
    parts = -(-length // most)
    return parts, -(-length // parts)


def image_sides(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels from one side or from both.

    Raises:
        ValueError: not one or two positive whole numbers.
    """
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"img_size {img_size!r} is not a positive side or a (height, width) in pixels")
    return sides[0], sides[1]


def _check_positive_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} {value!r} is not a positive whole number")
