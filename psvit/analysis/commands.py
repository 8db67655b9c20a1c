"""Python lines and commands to use the analyzed model and to try the suggestion."""

from __future__ import annotations

import shlex

from psvit.analysis.analyzed_model import AnalyzedModel
from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.arch.quantities import format_count
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


def in_python(analyzed: AnalyzedModel, name: str) -> str:
    """Five lines that open the model or checkpoint `name` and use it."""
    shape = analyzed.img_size, analyzed.in_chans, analyzed.model.num_classes
    if analyzed.weights == "trained":
        return use_in_python(name, analyzed.in_chans)
    if analyzed.weights == "pretrained":
        return use_timm_in_python(name, analyzed.in_chans)
    if isinstance(analyzed.model, PSViT):
        return build_in_python(arch_in_python(analyzed.model.arch), shape)
    return build_timm_in_python(name, analyzed.model.model_args, shape)


def to_use(analyzed: AnalyzedModel, config: ModelConfig, data: DataConfig) -> list[str]:
    """The commands that use a checkpoint, or the command that trains an untrained network.

    Args:
        analyzed: the model.
        config: the config of the model.
        data: the images.
    """
    if analyzed.weights == "trained":
        name = shlex.quote(config.name)
        evaluate = command_line(f"psvit evaluate {name}", _images(data, None), DataConfig(), always=("data",))
        return [f"psvit predict {name} IMAGE ...", *([] if analyzed.unlabelled else [evaluate]),
                f"psvit benchmark {name}"]  # fmt: skip
    own_size = not isinstance(analyzed.model, PSViT) or data.img_size is not None
    return [_train(config, _images(data, analyzed.img_size if own_size else None))]


def to_try(new: Arch | None, macs: float | None, data: DataConfig, img_size: tuple[int, int] | None) -> list[str]:
    """The commands that train the suggested network, and that search at its MACs.

    Args:
        new: the suggested network; None if it has no Arch.
        macs: its MACs, if known.
        data: the images.
        img_size: their size, if it is not the data's own.
    """
    images = _images(data, img_size)
    budget = f" --budget {format_count(macs, digits=3).replace(' ', '')}" if macs else ""
    search = command_line("psvit search", images, DataConfig(), always=("data",))
    return [*([] if new is None else [_train(ModelConfig(new), images)]), search + budget]


def _images(data: DataConfig, img_size: tuple[int, int] | None) -> DataConfig:
    square = img_size is not None and img_size[0] == img_size[1]
    side = img_size[0] if img_size and square else img_size
    return DataConfig(data.data, data.data_dir, side, class_folders=data.class_folders)


def _train(model: ModelConfig, images: DataConfig) -> str:
    return command_line("psvit train", TrainConfig(model, images), TrainConfig(), always=("model", "data"))
