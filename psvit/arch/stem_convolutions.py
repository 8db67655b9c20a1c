"""The convolutions of a stem: how many, how wide, how far apart. No torch here."""

from __future__ import annotations

from typing import Literal, NamedTuple

from psvit.errors import UserError

Stem = Literal["patch", "conv", "pool"]

MIN_STEM_CHANNELS = 8
"""Fewest channels of a convolution in a stem."""


class StemConvolution(NamedTuple):
    """A 3 x 3 convolution of a stem; `pooled`: followed by max pooling of stride 2."""

    channels: int
    stride: int
    pooled: bool


def stem_convolutions(stem: Stem, stride: int, width: int) -> tuple[StemConvolution, ...]:
    """The convolutions of a stem that ends at `stride` pixels (2, 4, 8, ...); channels double with each halving.

    ``"conv"``: one for each halving: 8, 96 -> 24, 48, 96 channels. ``"pool"``: two (one at stride 2), each followed by
    max pooling; where that does not reach the stride, convolutions stride too, the first ones first: 16, 256 -> 64, 256
    channels, at a fourth and a sixteenth of the pixels.
    """
    if stem == "patch":
        return ()
    halvings = stride.bit_length() - 1
    number = halvings if stem == "conv" else max(min(halvings, 2), -(-halvings // 2))
    convolutions, left = [], halvings
    for place in range(number):
        strides = stem == "conv" or place < halvings - number
        left -= strides + (stem == "pool")
        convolutions.append(StemConvolution(width >> left, 2 if strides else 1, stem == "pool"))
    return tuple(convolutions)


def stem_multiple(stem: Stem, stride: int) -> int:
    """The first stage's width is a multiple of this, since a stem's channels double up to it."""
    convolutions = stem_convolutions(stem, stride, stride)
    return stride // convolutions[0].channels if convolutions else 1


def check_stem(stem: Stem, stride: int, patch_size: int, width: int) -> None:
    """Refuse a stem of convolutions that does not fit the stride, the patch size or the first stage's width.

    Raises:
        UserError: the message names the value and the rule.
    """
    if stem == "patch":
        return
    if stride < 2 or stride & (stride - 1):
        raise UserError(
            f"stride {stride} does not fit stem {stem}, which halves the image: "
            "take a patch_size of 2, 4, 8, 16, ..., or stem patch"
        )
    if patch_size != stride:
        raise UserError(
            f"patch_size {patch_size} and stride {stride} differ, but stem {stem} cuts no patches: "
            f"give both the same, for example patch_size {stride}"
        )
    multiple = stem_multiple(stem, stride)
    if width % multiple or width < MIN_STEM_CHANNELS * multiple:
        raise UserError(
            f"width {width} of stage 1 does not fit stem {stem} of stride {stride}, whose channels "
            f"double up to it: take a multiple of {multiple}, at least {MIN_STEM_CHANNELS * multiple}"
        )
