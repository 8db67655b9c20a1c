"""Cuts of a split that keep its classes in proportion, and the one cut of the digits. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psvit.errors import UserError

TEST_FRACTION = 0.2
"""Of each class, in a set without a test split. Its seed is fixed: all runs are tested on the same images."""


def cut(
    labels: NDArray[Any], fraction: float, rng: np.random.Generator, classes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that stay and indices cut off: a fraction of each class, with at least one image on both sides.

    Raises:
        UserError: a class has one image only.
    """
    off = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels) if fraction else ():
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise UserError(
                f"class {classes[label]!r} has too few images: training, the hold-out and a test split that is cut "
                "need one each; add images or remove the class, or give --holdout 0"
            )
        off[members[: min(max(round(fraction * len(members)), 1), len(members) - 1)]] = True
    return np.flatnonzero(~off), np.flatnonzero(off)


DIGITS = tuple(map(str, range(10)))
"""Class names of the digits."""

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Pixels (N, H, W) and class numbers (N,)."""


def digits() -> tuple[Labelled, Labelled]:
    """scikit-learn's digits, 8 x 8: those to train on and those to test on, always the same."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, labels = np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target
    train, test = cut(labels, TEST_FRACTION, np.random.default_rng(0), DIGITS)
    return (pixels[train], labels[train]), (pixels[test], labels[test])
