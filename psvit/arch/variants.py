"""The Archs of the named variants. No torch here; `psvit.models.zoo` builds and registers them."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from psvit.arch.arch import ARCH_FIELDS, Arch, image_sides, parse_genotype
from psvit.errors import UserError

PLUS: dict[str, Any] = {"stem": "pool", "pool_norm": True}
"""The elements of the plus family, which is ours: convolutions with batch norms where tokens are pooled."""

VARIANTS: dict[str, Arch] = {
    "psvit_1d_tiny": Arch("ASAS-ASSASS-AS", widths=(192, 320, 320), pooling="1d"),
    "psvit_1d_small": Arch("ASSAS-ASSAS-AS", widths=(320, 384, 448), pooling="1d", stride=12),
    "psvit_1d_base": Arch("ASS-ASSASS-ASS", widths=(768, 768, 768), pooling="1d", stride=12),
    "psvit_2d_tiny": Arch("ASSS-AS-A", widths=(288, 384, 384), head_dim=96),
    "psvit_2d_small": Arch("AS-ASSASS-ASS", widths=(256, 320, 576), stride=8),
    "psvit_2d_base": Arch("ASS-ASSASS-ASS", widths=(448, 704, 896), stride=8),
    "psvit_plus_tiny": Arch("ASSAS-AS-A", widths=(256, 320, 448), **PLUS),
    "psvit_plus_small": Arch("ASS-ASSASS-ASS", widths=(192, 320, 576), patch_size=8, **PLUS),
    "psvit_plus_base": Arch("ASS-ASSASS-ASS", widths=(448, 576, 960), patch_size=8, **PLUS),
}
"""Name -> Arch, with the MACs of DeiT-Tiny, -Small or -Base at 224 pixels, within 2 %; those of the plus family with at
most the parameters of ResNet-18, ResNet-50 and DeiT-Base."""

FAMILIES: dict[str, dict[str, Any]] = {
    "psvit_1d": {"pooling": "1d"},
    "psvit_2d": {"pooling": "2d"},
    "psvit_plus": {"pooling": "2d", **PLUS},
}
"""Name of a family -> what its networks have in common."""

SMALL = 96
"""Images of at most this side, in pixels, get a small network by default."""


def default_arch(img_size: int | tuple[int, int] = 224) -> Arch:
    """psvit_plus_tiny; for images of at most 96 pixels a small network of its kind with at most 8 x 8 tokens.

    Four wide layers, since seven narrow ones take a third longer and were not better on a validation split of
    Fashion-MNIST (6 M MACs, 4 epochs, three seeds; the study ladder trains both).
    """
    side = max(image_sides(img_size))
    if side > SMALL:
        return VARIANTS["psvit_plus_tiny"]
    patch_size = max(2, 1 << (ceil(side / 8) - 1).bit_length())  # a stem halves, so a power of 2
    return Arch("A-AS-A", widths=(32, 64, 112), head_dim=16, patch_size=patch_size, **PLUS)


def paper_arch(img_size: int | tuple[int, int] = 224) -> Arch:
    """The paper's reading: psvit_2d_tiny; for images of at most 96 pixels a small PSViT-2D with at most 8 x 8 tokens.

    The grid was chosen on a validation split of Fashion-MNIST (12,000 images, 5 epochs, 12 M MACs, one seed): patches
    of 4 pixels 84.1 %, of 2 pixels 78.1 %.
    """
    side = max(image_sides(img_size))
    if side > SMALL:
        return VARIANTS["psvit_2d_tiny"]
    return Arch("AS-ASS-AS", widths=(48, 96, 144), head_dim=16, patch_size=ceil(side / 8))


def with_changes(arch: Arch, **changes: Any) -> Arch:
    """`arch` with other fields. A genotype of fewer stages keeps the first widths; new widths reset head_dim to 64.

    Raises:
        UserError: the new genotype has more stages than there are widths, or a wrong value.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    unknown = sorted(set(changes) - set(ARCH_FIELDS))
    if unknown:
        raise UserError(f"unknown Arch field {unknown[0]!r}: the fields are {', '.join(ARCH_FIELDS)}")
    if "patch_size" in changes:
        changes.setdefault("stride", changes["patch_size"])
    if "pooling" in changes and changes["pooling"] != arch.pooling:
        changes.setdefault("class_token", changes["pooling"] == "1d")
    if changes.get("pooling") == "1d" or changes.get("class_token"):  # windows need a grid
        changes.setdefault("windows", ())
    if "widths" in changes:  # the variant's head_dim need not divide them
        changes.setdefault("head_dim", Arch.head_dim)
    if "genotype" in changes and "widths" not in changes:
        stages = len(Arch(changes["genotype"], widths=()).stages) if changes["genotype"] else 0
        if stages > len(arch.widths):
            raise UserError(
                f"genotype {changes['genotype']!r} has {stages} stages, but {arch} has {len(arch.widths)} widths: "
                "give widths= too, one per stage"
            )
        changes["widths"] = arch.widths[:stages]
    if "genotype" in changes and arch.windows:  # additional stages have none
        stages = len(parse_genotype(changes["genotype"]))
        changes.setdefault("windows", (*arch.windows, *[0] * stages)[:stages])
    return replace(arch, **changes)


def find_arch(name: str, **changes: Any) -> Arch:
    """The Arch of a variant, a family or a genotype, with `changes` to its fields.

    A family with a genotype is that genotype with what the family has in common; without one, its tiny variant.

    Raises:
        UserError: `name` is none of these, or a family with another pooling.
    """
    if name in FAMILIES:
        common = FAMILIES[name]
        if changes.get("pooling") not in (None, common["pooling"]):
            given = changes["pooling"]
            raise UserError(f"{name} pools in {common['pooling']}: leave out --pooling {given}, or name another family")
        if changes.get("genotype") is None:
            return with_changes(VARIANTS[f"{name}_tiny"], **changes)
        given = {field: value for field, value in changes.items() if value is not None}
        name, changes = changes["genotype"], {**common, **given, "genotype": None}
    elif name in VARIANTS:
        return with_changes(VARIANTS[name], **changes)
    return Arch(name, **{field: value for field, value in changes.items() if value is not None})
