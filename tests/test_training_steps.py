"""The steps that psvit benchmark --train times: all train the network, on the same images."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as TF
from image_sources import source_of
from tiny import ARCH, CPU, DIGITS
from torch import Tensor, nn

from psvit.data.augment import eval_transform
from psvit.data.datasets import Data, open_data
from psvit.data.sources import Stream
from psvit.engine.open_model import open_model
from psvit.errors import UserError
from psvit.tasks.classification.training_steps import TrainingSteps

SIZE = (1, 8, 8)


@pytest.fixture(scope="module")
def few() -> Data:
    return open_data(DIGITS)


def built() -> tuple[Callable[[], nn.Module], list[nn.Module]]:
    """A function that builds a network from the same weights each time, and what it has built."""
    made: list[nn.Module] = []

    def build() -> nn.Module:
        torch.manual_seed(0)
        made.append(open_model(ARCH, img_size=8, in_chans=1, num_classes=10))
        return made[-1]

    return build, made


@pytest.mark.parametrize("name", ["bare", "psvit", "timm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_trains_the_network(name: str, dtype: Any, few: Data) -> None:
    build, made = built()
    before = build().state_dict()
    step = TrainingSteps(8, CPU, few, DIGITS).all()[name](build, SIZE, dtype, False)
    dtypes: list[torch.dtype] = []
    made[1].get_submodule("stages.0.blocks.0.mlp.fc1").register_forward_hook(lambda *a: dtypes.append(a[2].dtype))
    for _ in range(7):  # beyond an epoch of 48 images
        step()
    assert made[1].training
    assert dtypes == [getattr(torch, dtype)] * 7
    after = made[1].state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith("fc1.weight"))
    assert {value.dtype for value in after.values()} == {torch.float32}


def test_both_loaders_give_shifted_digits(few: Data) -> None:
    def rounded(images: Tensor) -> set[bytes]:
        return {image.numpy().round(3).tobytes() for image in images + 0.0}

    plain, source = eval_transform(few), source_of(few.train)
    shifted: set[bytes] = set()
    for i in range(len(source)):
        padded = TF.pad(source.image(i), [2])
        shifted |= rounded(
            torch.stack([plain(TF.crop(padded, top, left, 8, 8)) for top in range(5) for left in range(5)])
        )
    steps, build = TrainingSteps(8, CPU, few, DIGITS), built()[0]
    timms = steps.timms_batches(few, torch.device("cpu"))
    ours = steps.batches(steps._trainer(build, SIZE, "float32", False))
    for _ in range(8):
        for images in (next(timms)[0], next(ours).images):
            assert images.shape == (8, 1, 8, 8)
            assert rounded(images) <= shifted


def test_without_a_set_the_images_are_noise_of_the_networks_size() -> None:
    for channels in (1, 3):
        noise = TrainingSteps(2, CPU)._opened((channels, 6, 8), 7)
        assert (noise.in_chans, noise.img_size, len(noise.classes), len(noise.train)) == (channels, (6, 8), 7, 40)
        assert eval_transform(noise)(source_of(noise.train).image(0)).shape == (channels, 6, 8)


def test_a_stream_is_refused(few: Data) -> None:
    streamed = replace(few, train=Stream(lambda **_: None))
    with pytest.raises(UserError, match="--data 'digits' is a stream"):
        TrainingSteps(2, CPU, streamed).all()["bare"](built()[0], SIZE, "float32", False)
