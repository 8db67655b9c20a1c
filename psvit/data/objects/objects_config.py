"""Settings of images with boxes, masks or class maps. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from psvit.config import Config, Count, NotNegative, Probability, Range, Rule
from psvit.data.data_config import DataConfig

WITH_OBJECTS = "digits-scenes, or a folder in the layout of COCO or Pascal VOC"
WITH_CLASS_MAPS = (
    "digits-scenes, or a folder in the layout of ADE20K, COCO-stuff, COCO or Pascal VOC, or of images/ and masks/"
)
"""What --data may be, for detection and for segmentation."""

NotUsed = Annotated[None, Rule("used for boxes and masks: give the folder as --data, and leave this out")]


@dataclass(frozen=True)
class DenseDataConfig(DataConfig):
    """Which images with boxes, masks or class maps to read, and how.

    Args:
        data: digits-scenes, or a folder in a layout for the task.
        data_dir: not used here: give the folder as --data.
        class_folders: not used here: images have no class.
        img_size: side in pixels of the scenes of digits-scenes, or height and width; 96 by default.
        validation: fraction that is cut from the training split as validation split.
        limit: train on this many images only (for prototypes).
        image_cache: not used here: images keep their size.
        image_cache_dir: not used here.
        scenes: number of training scenes of digits-scenes; an evaluation takes that of the training.
    """

    known: ClassVar[str] = WITH_CLASS_MAPS

    data: str = "digits-scenes"
    data_dir: NotUsed = None
    class_folders: NotUsed = None
    image_cache: NotUsed = None
    image_cache_dir: NotUsed = None
    scenes: Count = 2000


@dataclass(frozen=True)
class ObjectDataConfig(DenseDataConfig):
    """Which images with boxes, and masks if there are any, to read, and how.

    Args:
        data: digits-scenes, or a folder in the layout of COCO or Pascal VOC.
    """

    known: ClassVar[str] = WITH_OBJECTS


@dataclass(frozen=True)
class ClassMapDataConfig(DenseDataConfig):
    """Which images with a class for each pixel to read, and how.

    Args:
        data: digits-scenes, or a folder in the layout of ADE20K, COCO-stuff, COCO or Pascal VOC, or of images/ and
            masks/.
    """


@dataclass(frozen=True)
class DenseAugment(Config):
    """Random augmentation of images with their objects, by torchvision's transforms.

    Args:
        hflip: probability of mirroring; 0 for sets where mirroring changes the class.
        jitter: least and greatest factor by which an image is resized; it is then cropped or padded to its size.
        color_jitter: strength of random brightness, contrast and saturation.
    """

    hflip: Probability = 0.5
    jitter: Annotated[Range, Rule("a range up to 10, as 0.8 1.25", lambda pair: pair[1] <= 10)] = (0.8, 1.25)
    color_jitter: NotNegative = 0.0
