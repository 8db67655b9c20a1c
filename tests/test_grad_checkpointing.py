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
from psvit.tasks.dense.backbone import open_features
from psvit.tasks.detection.detector_config import DetectorConfig
from psvit.tasks.detection.detectors import build_detector
from psvit.tasks.detection.pyramid import Backbone

VIT = ModelConfig.of("vit_tiny_patch16_224", model_args={"depth": 3, "embed_dim": 32, "num_heads": 2, "patch_size": 8})
PSVIT = ModelConfig.of("AS-ASA", widths=(16, 32), head_dim=8, patch_size=4)
WINDOWED = ModelConfig.of("AS-ASA", widths=(16, 32), head_dim=8, patch_size=4, windows=(3, 0))
RESNET = ModelConfig.of("test_resnet")
SWIN_ARGS = {"depths": (2, 2), "embed_dim": 16, "num_heads": (1, 2)}
SWIN = ModelConfig.of("swin_tiny_patch4_window7_224", model_args=SWIN_ARGS)

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


def targets() -> list[dict[str, Tensor]]:
    boxes, masks = torch.tensor([[4.0, 8, 24, 40]]), torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 8:40, 4:24] = 1
    return [{"boxes": boxes, "labels": torch.tensor([1]), "masks": masks} for _ in range(2)]


@pytest.mark.parametrize("model", [PSVIT, RESNET, SWIN], ids=["psvit", "resnet", "swin"])
def test_a_detector_has_the_same_gradients(model: ModelConfig) -> None:
    heads = DetectorConfig("mask_rcnn", channels=16, rois=8, proposals=20, head_width=16, mask_layers=1)

    def build() -> nn.Module:
        body, _ = open_features(model, (64, 64), 1, 0.3)
        return build_detector(Backbone(body, "auto", 16), heads.filled((64, 64), True), 3, (0.5,), (0.2,))

    images = torch.rand(2, 1, 64, 64)
    agree(build, lambda network: torch.stack(list(network(list(images), targets()).values())).sum(), 0.95)


def test_norms_rest_within_and_go_on_behind() -> None:
    norm, x = nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    norm(x)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with norms_at_rest(norm):
        norm(x + 1)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    norm(x + 1)
    assert not torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]
    assert norm.num_batches_tracked == 2


def test_a_network_that_cannot_is_refused() -> None:
    with pytest.raises(UserError, match=r"it cannot compute its .* again \(.*not supported\): leave out --grad"):
        recompute_activations(timm.create_model("pit_ti_224"), "it")
    with pytest.raises(UserError, match=r"it cannot .* \(it has no gradient checkpointing\): leave out --grad-check"):
        recompute_activations(nn.Sequential(nn.Linear(2, 2)), "it")


# runs


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that keeps its activations, with all that is random in one."""
    from psvit.cli import main

    folder = tmp_path_factory.mktemp("plain")
    assert main([*TRAIN, *EVERYTHING, "--output", str(folder)]) == 0
    return folder


def test_a_run_with_it_is_bitwise_the_run_without(plain: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli.ok(*TRAIN, *EVERYTHING, "--grad-checkpointing", "--output", tmp_path)
    assert "device    cpu, float32, activations computed again in the backward pass\n" in said
    assert read(tmp_path / "run_config.json")["config"]["run"]["grad_checkpointing"] is True
    assert same_weights(plain / "last", tmp_path / "last")


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
