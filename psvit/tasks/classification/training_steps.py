"""One optimizer step of a classifier on ready tensors, as psvit's trainer makes it, and as timm's train.py makes it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.loader import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import RandomCrop

from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data
from psvit.data.loading import train_batches
from psvit.data.samples import Batch
from psvit.data.sources import ArraySource, Source, no_images
from psvit.engine.accelerator import open_machine
from psvit.engine.train_config import Dtype, Machine, TrainConfig, light
from psvit.errors import UserError
from psvit.models.attention import attention_for_training
from psvit.tasks.classification.classify import ClassifierTrainer

NOISE_BATCHES = 20
"""Batches of noise that stand for a set."""


@dataclass(frozen=True)
class TrainingSteps:
    """Steps with AdamW and the recipe light, whose learning rate is fixed, since it does not change the time.

    Args:
        batch_size: images of a step.
        machine: the device; its precision is given to each step.
        data: the images; by default noise in memory.
        config: of the data; its workers also load for timm.
    """

    batch_size: int
    machine: Machine
    data: Data | None = None
    config: DataConfig = field(default_factory=DataConfig)

    def all(self) -> dict[str, Callable[..., Callable[[], object]]]:
        """The steps by name: bare, psvit, timm."""
        return {"bare": self.bare, "psvit": self.psvit, "timm": self.timm}

    def bare(
        self, build: Callable[[], nn.Module], input_size: tuple[int, int, int], dtype: Dtype, compiled: bool
    ) -> Callable[[], object]:
        """A step on ready tensors: the network and optimizer of psvit's trainer, and nothing else.

        Args:
            build: builds the network, on the CPU.
            input_size: channels, height, width.
            dtype: float32, or that of autocast.
            compiled: compile the network.
        """
        trainer = self._trainer(build, input_size, dtype, compiled)
        batch = next(self.batches(trainer))
        images, labels = (part.to(trainer.accelerator.device) for part in (batch.images, batch.labels))
        trainer.model.train()

        def step() -> None:
            with trainer.accelerator.autocast():
                logits = trainer.model(images).float()
            F.cross_entropy(logits, labels, label_smoothing=trainer.recipe.label_smoothing).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        return step

    def psvit(
        self, build: Callable[[], nn.Module], input_size: tuple[int, int, int], dtype: Dtype, compiled: bool
    ) -> Callable[[], object]:
        """A step of psvit's trainer, reading included; arguments as for `bare`."""
        trainer = self._trainer(build, input_size, dtype, compiled)
        batches, numbers = self.batches(trainer), count()
        return lambda: trainer.step([next(batches)], next(numbers))

    def _trainer(
        self, build: Callable[[], nn.Module], input_size: tuple[int, int, int], dtype: Dtype, compiled: bool
    ) -> ClassifierTrainer:
        accelerator = open_machine(replace(self.machine, precision=dtype))
        with attention_for_training(accelerator.device):
            model: Any = build()
        data = self._opened(input_size, model.num_classes)
        config = TrainConfig(data=self.config, recipe=replace(light(), batch_size=self.batch_size, lr=1e-4))
        trainer = ClassifierTrainer(model, config, accelerator, data)
        if compiled:
            trainer.model = torch.compile(trainer.model, dynamic=False)  # type: ignore[assignment]  # it calls alike
        return trainer

    def batches(self, trainer: ClassifierTrainer) -> Iterator[Batch]:
        """The batches of psvit's trainer, without end."""
        workers = trainer.workers
        return train_batches(
            trainer.split, batch_size=self.batch_size, batches=sys.maxsize, epoch=0, seed=0, workers=workers
        )

    def timm(
        self, build: Callable[[], nn.Module], input_size: tuple[int, int, int], dtype: Dtype, compiled: bool
    ) -> Callable[[], object]:
        """A step as timm's train.py makes it, with its loader; arguments as for `bare`."""
        recipe, device = light(), open_machine(replace(self.machine, precision=dtype)).device
        model: Any = build()
        data = self._opened(input_size, model.num_classes)
        model.to(device).train()
        optimizer = create_optimizer_v2(model, opt=recipe.opt, lr=1e-4, weight_decay=recipe.weight_decay)
        scheduler, _ = create_scheduler_v2(optimizer, num_epochs=100, step_on_epochs=False, updates_per_epoch=1000)
        loss_of = LabelSmoothingCrossEntropy(recipe.label_smoothing)
        autocast = partial(torch.autocast, device.type, getattr(torch, dtype), enabled=dtype != "float32")
        run: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False) if compiled else model
        batches, updates = self.timms_batches(data, device), count(1)

        def step() -> None:
            images, labels = next(batches)
            with autocast():
                loss = loss_of(run(images), labels)
            loss.backward()
            if recipe.clip_grad is not None:
                dispatch_clip_grad(model.parameters(), recipe.clip_grad, mode="norm")
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step_update(next(updates))

        return step

    def timms_batches(self, data: Data, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and class numbers from timm's loader, without end, augmented as `batches`."""
        augment, images = light().augment, _TimmsDataset(data)
        loader = create_loader(
            images,  # type: ignore[arg-type]  # any set with a transform
            (data.in_chans, *data.img_size),
            self.batch_size,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip if data.mirror else 0.0,
            color_jitter=0.0,
            interpolation=augment.interpolation,
            mean=data.mean,
            std=data.std,
            num_workers=data.workers,
            device=device,
        )
        if augment.shift:
            images.transform.transforms.insert(1, RandomCrop(data.img_size, padding=augment.shift))
        while True:
            yield from loader

    def _opened(self, input_size: tuple[int, int, int], classes: int) -> Data:
        if self.data is not None:
            if not isinstance(self.data.train, Source):
                raise UserError(f"--data {self.data.name!r} is a stream: time a step on a set with images by number")
            if len(self.data.train) < self.batch_size:
                raise UserError(
                    f"--batch-size {self.batch_size} is more than the {len(self.data.train):,} training images of "
                    f"{self.data.name}: give a smaller one"
                )
            return self.data
        channels, height, width = input_size
        rng, images = np.random.default_rng(0), NOISE_BATCHES * self.batch_size
        pixels = rng.integers(256, size=(images, height, width, channels), dtype=np.uint8)
        train = ArraySource(pixels[..., 0] if channels == 1 else pixels, rng.integers(classes, size=images), "noise")
        return Data(
            name="noise", classes=tuple(map(str, range(classes))), in_chans=channels, mean=(0.5,) * channels,
            std=(0.3,) * channels, mirror=True, img_size=(height, width), train=train, validation=no_images(),
            test=no_images(),
        )  # fmt: skip


class _TimmsDataset(Dataset[tuple[Any, int]]):
    """Images with class numbers, as timm's loader takes them: it sets the transform."""

    transform: Any = None

    def __init__(self, data: Data) -> None:
        assert isinstance(data.train, Source)
        self.source = data.train

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image: Image.Image = self.source.image(i)
        return self.transform(image), self.source.label(i)
