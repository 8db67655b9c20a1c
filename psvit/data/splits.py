"""Stratified cuts of a split, and the digits in two splits. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psvit.errors import UserError

TEST_FRACTION = 0.2
"""Test fraction of each class in a set without a test split; the seed is fixed, so all runs share the test images."""


def cut(
    labels: NDArray[Any], fraction: float, rng: np.random.Generator, classes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut a fraction of each class, with at least one image on both sides: indices kept and indices cut off.

    Raises:
        UserError: a class has one image only.
    """
    off = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels) if fraction else ():
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise UserError(
                f"class {classes[label]!r} has one image, and training and the validation split need one each: add "
                "images or remove the class, or give --validation 0"
            )
        off[members[: min(max(round(fraction * len(members)), 1), len(members) - 1)]] = True
    return np.flatnonzero(~off), np.flatnonzero(off)


DIGITS = tuple(map(str, range(10)))
"""Class names of the digits."""

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Pixels (N, H, W) and class numbers (N,)."""


def digits() -> tuple[Labelled, Labelled]:
    """scikit-learn's digits, 8 x 8, in a fixed training and test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, labels = np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target
    train, test = cut(labels, TEST_FRACTION, np.random.default_rng(0), DIGITS)
    return (pixels[train], labels[train]), (pixels[test], labels[test])


def hashed_position(key: str, salt: str) -> float:
    """Hash a text to 0 <= x < 1, the same on every machine."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def cut_by_hash(
    keys: Sequence[str], labels: Sequence[str], fraction: float, salt: str
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Cut about a fraction of each class by a hash of the key of each image.

    An image is cut off if its hash is below the fraction, whatever other images there are. If that leaves no image on
    one side of a class, the images of the lowest hashes are cut off instead, at least one; a single image is kept.

    Args:
        keys: class and relative path of each image; equal keys stay together.
        labels: class of each image.
        fraction: fraction of each class.
        salt: name of the cut; other salts give other cuts.

    Returns:
        Whether each image is cut off, and the classes that were too small for the threshold.
    """
    at = np.asarray([hashed_position(key, salt) for key in keys])
    off = at < fraction
    ranked = []
    groups = {label: members for label, members in _members(labels).items() if fraction}
    for label, members in groups.items():
        positions = np.unique(at[members])
        if off[members].any() and not off[members].all():
            continue
        ranked.append(label)
        count = min(max(round(fraction * len(positions)), 1), len(positions) - 1)
        off[members] = at[members] < positions[count] if count else False
    return off, tuple(ranked)


def _members(labels: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    found: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        found.setdefault(label, []).append(place)
    return {label: np.asarray(places, dtype=np.int64) for label, places in found.items()}
