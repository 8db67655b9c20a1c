"""What was analyzed -> how to use it: in Python, and by commands."""

from __future__ import annotations

import shlex

from psvit.analysis.subject import Subject
from psvit.arch.model_config import ModelConfig
from psvit.data.data_config import DataConfig
from psvit.engine.train_config import TrainConfig
from psvit.models.psvit import PSViT
from psvit.report.command import command_line
from psvit.report.in_python import (
    arch_in_python,
    build_in_python,
    build_timm_in_python,
    use_in_python,
    use_timm_in_python,
)


def in_python(subject: Subject, name: str) -> str:
    """Five lines that open what is analyzed, and use it.

    Args:
        subject: the model.
        name: of the model or of its folder.
    """
    shape = subject.img_size, subject.in_chans, subject.model.num_classes
    if subject.weights == "trained":
        return use_in_python(name, subject.in_chans)
    if subject.weights == "pretrained":
        return use_timm_in_python(name, subject.in_chans)
    if isinstance(subject.model, PSViT):
        return build_in_python(arch_in_python(subject.model.arch), shape)
    return build_timm_in_python(name, subject.model.model_args, shape)


def commands(subject: Subject, config: ModelConfig, data: DataConfig) -> list[str]:
    """What a checkpoint is used by; for a network without one, the training that leaves one.

    Args:
        subject: the model.
        config: that it was opened by.
        data: the images that were asked for.
    """
    if subject.weights == "trained":
        name = shlex.quote(config.name)
        images = DataConfig(data.data, data.data_dir)
        evaluates = command_line(f"psvit evaluate {name}", images, DataConfig(), always=("data",))
        return [
            f"psvit predict {name} IMAGE ...",
            *([] if subject.unlabelled else [evaluates]),
            f"psvit benchmark {name}",
        ]
    height, width = subject.img_size
    own_size = not isinstance(subject.model, PSViT) or data.img_size is not None
    size = None if not own_size else height if height == width else (height, width)
    asked = TrainConfig(config, DataConfig(data.data, data.data_dir, size))
    return [command_line("psvit train", asked, TrainConfig(), always=("model", "data"))]
