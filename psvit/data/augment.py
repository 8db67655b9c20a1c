"""PIL image -> tensor (C, H, W): timm's transforms for training and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torchvision.transforms import RandomCrop

from psvit.data.array_transform import ArrayTransform
from psvit.data.data_config import INTERPOLATION, Augment
from psvit.data.datasets import SMALL, Data
from psvit.data.image_cache import ImageCache, reduced_for_evaluation, reduced_for_training
from psvit.data.samples import ImageSplit, Transform
from psvit.data.sources import Source, Stream
from psvit.errors import UserError, one_line


def train_transform(data: Data, augment: Augment) -> Transform:
    """Build timm's training transform: image -> normalized tensor (C, H, W); shifts stand behind the crop.

    Raises:
        UserError: timm does not know the auto_augment policy.
    """
    augment = augment if data.mirror else replace(augment, hflip=0.0)
    try:
        transform = create_transform(
            (data.in_chans, *data.img_size),
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]  # a jitter of 0 still costs time
            auto_augment=augment.auto_augment,
            re_prob=augment.random_erasing,
            re_mode="pixel",  # DeiT's choice
            interpolation=augment.interpolation,
            mean=data.mean,
            std=data.std,
        )
    except (AssertionError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"--auto-augment {augment.auto_augment!r} is not a policy of timm's ({one_line(error)}): "
            "give for example rand-m9-mstd0.5-inc1, augmix-m3-w3, original or 3a"
        ) from error
    _mend_posterize(transform)
    if augment.shift:
        transform.transforms.insert(1, RandomCrop(data.img_size, padding=augment.shift))
    return ArrayTransform(transform, data.img_size, data.mean, data.std, augment)


def _mend_posterize(transform: Any) -> None:
    # timm's posterize keeps 0 bits at full strength, which Pillow refuses since version 13; it was black before
    for step in transform.transforms:
        policies = getattr(step, "policy", None) or [getattr(step, "ops", ())]
        for op in (op for policy in policies for op in policy):
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def eval_transform(data: Data) -> Transform:
    """Build timm's evaluation transform: resize, centre crop, normalize."""
    config = preprocessing(data)
    return for_arrays(create_transform(**config), config)


def for_arrays(transform: Transform, config: Mapping[str, Any]) -> Transform:
    """timm's evaluation transform of this configuration, also for whole batches if it does not crop."""
    if config["crop_pct"] != 1:
        return transform
    return ArrayTransform(transform, tuple(config["input_size"][1:]), config["mean"], config["std"])


def train_split(data: Data, augment: Augment, strict: bool = False) -> ImageSplit:
    """The training images of the set."""
    source = reduced_for_training(data.train, data.img_size, augment.scale, data.cache)
    return ImageSplit(source, train_transform(data, augment), training=True, strict=strict)


def eval_split(data: Data, source: Source | Stream, strict: bool = False) -> ImageSplit:
    """Images of the set for evaluation."""
    return ImageSplit(eval_source(source, preprocessing(data), data.cache), eval_transform(data), strict=strict)


def eval_source(source: Source | Stream, config: Mapping[str, Any], cache: ImageCache | None) -> Source | Stream:
    """The images, for timm's evaluation transform of this configuration; those of a folder are read from the cache."""
    first = create_transform(**config).transforms[0]
    return reduced_for_evaluation(source, first, config["input_size"][0], cache)


def preprocessing(data: Data) -> dict[str, Any]:
    """The preprocessing for evaluation, with the keys of timm's pretrained_cfg; a crop of 0.9 is DeiT's."""
    return {
        "input_size": (data.in_chans, *data.img_size),
        "mean": data.mean,
        "std": data.std,
        "interpolation": INTERPOLATION,
        "crop_pct": 1.0 if max(data.img_size) <= SMALL else 0.9,
    }
