"""Train the supernet: the training loop, with networks drawn for every step."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from psvit.arch.arch import ATTEND, SHARE, Arch
from psvit.data.augment import eval_split
from psvit.data.datasets import Data
from psvit.data.loading import eval_batches
from psvit.data.samples import Batch
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import load_weights
from psvit.engine.display import describe_data
from psvit.engine.learning_rates import family_of_layers, with_learning_rate
from psvit.engine.run_folder import Description, RunFolder
from psvit.engine.seeding import INIT, seed_step
from psvit.engine.train_config import TrainConfig
from psvit.errors import UserError, one_line
from psvit.models.attention import attention_for_training
from psvit.search.feasible_set import FeasibleSet
from psvit.search.search_config import SupernetConfig
from psvit.search.space import Space
from psvit.search.supernet import Supernet
from psvit.tasks.classification.classify import ClassifierTrainer
from psvit.tasks.classification.evaluate import evaluate

WEIGHTS = "supernet.safetensors"

WATCHED = 4
"""Number of fixed networks that are evaluated after every epoch."""


@dataclass(frozen=True)
class SupernetTraining(TrainConfig):
    """Everything that a supernet's training depends on.

    Args:
        supernet: how networks are drawn and what they share.
        space: the search space as plain data; budget: its limits.
    """

    supernet: SupernetConfig = field(default_factory=SupernetConfig)
    space: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)


def train_supernet(
    feasible: FeasibleSet, config: SupernetTraining, data: Data, say: Callable[[str], None] = print
) -> tuple[Supernet, Accelerator]:
    """Train one set of weights for all networks of `feasible`, or load it if the training is finished.

    Args:
        feasible: the networks to draw from.
        config: settings of the training; config.run.output is the folder.
        data: the images.
        say: takes lines for the user.

    Returns:
        The trained supernet on its device, and the Accelerator.

    Raises:
        UserError, InterruptedTrainingError: see `psvit.tasks.classification.classify.train`.
    """
    accelerator = open_machine(config.machine)
    stems = feasible.space.stems
    stem = "pool" if "pool" in stems else stems[0]
    config = with_learning_rate(config, family_of_layers(stem, ATTEND + SHARE, feasible.space.like.pooling))
    run = RunFolder(config, accelerator)
    seed_step(config.data.seed, INIT)
    with attention_for_training(accelerator.device):
        supernet = Supernet(feasible.space)
    trainer = SupernetTrainer(supernet, feasible, config, accelerator, data)
    trainer.fit(run, _description(feasible), describe_data(data), say)
    accelerator.wait_for_everyone()
    load_supernet(supernet, run.path)
    return supernet.to(accelerator.device).eval(), accelerator


def load_supernet(supernet: Supernet, folder: Path) -> None:
    """Load the weights in `folder`.

    Raises:
        UserError: they are missing, broken, or of another space.
    """
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): train anew with --overwrite") from error
    load_weights(supernet, weights, str(path))


class SupernetTrainer(ClassifierTrainer):
    """The trainer of a supernet.

    Every process draws the same networks, from (seed, step). So all have gradients for the same parameters, which are
    averaged after the backward pass; DDP, which must track unused parameters, is not needed.

    Args:
        supernet: the weights.
        feasible: the networks to draw from.
        config: settings of the training.
        accelerator: device, precision, processes.
        data: the images.
    """

    def __init__(
        self, supernet: Supernet, feasible: FeasibleSet, config: SupernetTraining, accelerator: Accelerator, data: Data
    ) -> None:
        super().__init__(supernet, config, accelerator, data)
        self.feasible, self.options = feasible, config.supernet
        self.smallest: Arch | None = None
        self.largest: Arch | None = None
        if self.options.sandwich:
            self.smallest, self.largest = _ends(feasible)
        rng = random.Random(config.data.seed)
        self.watched = [feasible.sample(rng) for _ in range(WATCHED)]

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Move the network to the device, without DDP."""
        prepared: Optimizer = self.accelerator.prepare(optimizer)
        return model.to(self.accelerator.device), prepared

    def gather_gradients(self) -> None:
        """Average the gradients over all processes in one reduction."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.plain.parameters() if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def members(self, step: int) -> list[Arch]:
        """The networks to train in a step, the same on every process.

        Their MACs are close, so that their gradients conflict less (ElasticViT; Tang et al. 2023, arXiv 2303.09730).
        """
        rng = random.Random(f"{self.seed} {step}")
        drawn = [self.feasible.sample(rng)]
        drawn += [self.feasible.sample_near(drawn[0], rng) for _ in range(self.options.draws - 1)]
        return drawn if self.smallest is None else [self.smallest, *drawn]

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean cross-entropy over the networks, each on its own part of the batch: a scalar, in nats.

        With the sandwich rule the largest network is also trained on the whole batch, and with in-place distillation
        the others learn its probabilities instead of the labels (BigNAS; OFA).
        """
        images, target, smoothing = self.targets(batch)
        if target.ndim == 1:
            target = _spread(target, self.num_classes, smoothing)
        supernet: Any = self.model
        total = torch.zeros((), device=images.device)
        if self.largest is not None:
            with self.accelerator.autocast():
                logits = supernet(images, self.largest).float()
            total = total + F.cross_entropy(logits, target)
            if self.options.distill:
                target = logits.detach().softmax(dim=-1)
        members = self.members(step)[: len(images)]
        for number, arch in enumerate(members):
            part = slice(number, None, len(members))
            with self.accelerator.autocast():
                logits = supernet(images[part], arch).float()
            total = total + F.cross_entropy(logits, target[part], reduction="sum") / len(images)
        return total / (1 if self.largest is None else 2)

    def evaluate(self) -> dict[str, Any]:
        """The mean metrics of a few fixed networks on the validation split; empty if there is none."""
        data = self.data
        if len(data.validation) == 0:
            return {}
        batches = eval_batches(
            eval_split(data, data.validation, self.config.data.strict),
            batch_size=self.recipe.batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=data.workers,
        )
        few = list(islice(batches, max(1, 1024 // self.recipe.batch_size)))
        metrics = [
            evaluate(_Member(self.evaluated, arch), few, self.num_classes, self.accelerator) for arch in self.watched
        ]
        images = sum(one.count for one in metrics)
        return {
            "top1": round(sum(one.top1 for one in metrics) / len(metrics), 4),
            "loss": sum(one.loss for one in metrics) / len(metrics),
            "images": images // len(metrics),
        }


class _Member(nn.Module):
    """One network of a supernet as a module."""

    def __init__(self, supernet: nn.Module, arch: Arch) -> None:
        super().__init__()
        self.supernet, self.arch = supernet, arch

    def forward(self, x: Tensor) -> Tensor:
        return self.supernet(x, self.arch)


def _spread(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels (B,) -> smoothed targets (B, classes), as in torch's cross-entropy."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def _ends(feasible: FeasibleSet) -> tuple[Arch, Arch]:
    """The smallest and the largest network by MACs, of all or of 1,000 drawn ones."""
    rng = random.Random(0)
    members = feasible.members or [feasible.sample(rng) for _ in range(1000)]
    costs = [(feasible.costs(arch)[0], place) for place, arch in enumerate(members)]
    return members[min(costs)[1]], members[max(costs)[1]]


def _description(feasible: FeasibleSet) -> Description:
    """The description of the supernet's run."""
    cost = feasible.costs(feasible.nearest())
    members = f"{len(feasible.members):,} networks" if feasible.members is not None else "networks too many to list"
    facts = {"macs": cost[0], "params": cost[1]}
    return Description(f"supernet of {members}, the largest", facts, weights=WEIGHTS)


def supernet_training(
    config: TrainConfig, supernet: SupernetConfig, space: Space, budget: Mapping[str, Any]
) -> SupernetTraining:
    """Settings of a supernet's training, from those of a network."""
    plain = {name: getattr(config, name) for name in ("data", "recipe", "machine", "run")}
    described = {**asdict(space), "like": space.like.to_dict()}  # without the fields that are off
    return SupernetTraining(**plain, supernet=supernet, space=described, budget=dict(budget))
