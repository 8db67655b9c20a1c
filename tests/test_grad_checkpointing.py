"""--grad-checkpointing computes activations again and changes nothing: gradients, statistics, weights, resumed runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import EVERYTHING, TRAIN, Cli, config, read, same_weights
from torch import Tensor, nn

from psvit.arch.model_config import ModelConfig
from psvit.engine.gradient_checkpointing import norms_at_rest, recompute_activations
from psvit.engine.interrupts import Interrupt, InterruptedTrainingError
from psvit.engine.open_model import open_model
from psvit.engine.train_config import RunConfig
from psvit.errors import UserError
from psvit.tasks.classification.classify import train

VIT = ModelConfig.of("vit_tiny_patch16_224", model_args={"depth": 3, "embed_dim": 32, "num_heads": 2, "patch_size": 8})
PSVIT = ModelConfig.of("AS-ASA", widths=(16, 32), head_dim=8, patch_size=4)
WINDOWED = ModelConfig.of("AS-ASA", widths=(16, 32), head_dim=8, patch_size=4, windows=(3, 0))
RESNET = ModelConfig.of("test_resnet")

NEAR = {"rtol": 1e-5, "atol": 1e-6}


@contextmanager
def bytes_kept() -> Iterator[list[int]]:
    """How many bytes autograd keeps for the backward pass, of tensors that are no parameters."""
    kept = [0]

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[0] += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def learned(model: nn.Module, run: Any) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], int]:
    """Loss, gradients, what else the network remembers, and the bytes kept: of one step in training, the same noise."""
    model.train()
    torch.manual_seed(3)
    with bytes_kept() as kept:
        loss = run(model)
    with norms_at_rest(model):
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, {name: value.clone() for name, value in model.named_buffers()}, kept[0]


def agree(build: Any, run: Any, less: float = 1.0) -> None:
    """The network that recomputes learns what the other learns, and keeps less than a part `less` of its bytes."""
    found = []
    for recomputes in (False, True):
        torch.manual_seed(1)
        model = build()
        if recomputes:
            recompute_activations(model, "it")
        found.append(learned(model, run))
    (loss, gradients, buffers, kept), (other_loss, others, other_buffers, other_kept) = found
    assert torch.equal(loss, other_loss)
    assert gradients.keys() == others.keys()
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())
    for name in gradients:
        torch.testing.assert_close(others[name], gradients[name], **NEAR, msg=name)
    for name in buffers:
        assert torch.equal(buffers[name], other_buffers[name]), name
    assert other_kept < less * kept


@pytest.mark.parametrize("model", [PSVIT, WINDOWED, VIT, RESNET], ids=["psvit", "windows", "vit", "resnet"])
def test_a_classifier_has_the_same_gradients(model: ModelConfig) -> None:
    drops = 0.3 if model is not RESNET else None
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])

    def run(network: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(network(images), labels)

    agree(lambda: open_model(model, drops, img_size=32, in_chans=3, num_classes=4), run, 0.8)


def test_a_network_that_cannot_is_refused() -> None:
    with pytest.raises(UserError, match=r"it cannot compute its .* again \(.*not supported\): leave out --grad"):
        recompute_activations(timm.create_model("pit_ti_224"), "it")
    with pytest.raises(UserError, match=r"it cannot .* \(it has no gradient checkpointing\): leave out --grad-check"):
        recompute_activations(nn.Sequential(nn.Linear(2, 2)), "it")


# runs


def test_a_run_with_it_is_bitwise_the_run_without(tmp_path: Path, cli: Cli) -> None:
    """With all that is random in one."""
    cli.ok(*TRAIN, *EVERYTHING, "--output", tmp_path / "plain")
    cli.ok(*TRAIN, *EVERYTHING, "--grad-checkpointing", "--output", tmp_path / "less")
    assert read(tmp_path / "less" / "run_config.json")["config"]["run"]["grad_checkpointing"] is True
    assert same_weights(tmp_path / "plain" / "last", tmp_path / "less" / "last")


def test_it_may_change_when_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = config(tmp_path / "whole", drop_path=0.3)
    train(whole)
    run = RunConfig(str(tmp_path / "part"), grad_checkpointing=True)
    part = replace(whole, run=run)
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", lambda self, accelerator: True)
        with pytest.raises(InterruptedTrainingError):
            train(part)
    train(replace(part, run=replace(run, resume=True, grad_checkpointing=False)))
    assert same_weights(tmp_path / "whole" / "last", tmp_path / "part" / "last")
