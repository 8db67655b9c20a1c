"""Training: the recipes, and what one step computes, by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from tiny import CPU, config, log, read, weights
from torch import Tensor, nn

from psvit.arch.model_config import ModelConfig
from psvit.data.datasets import open_data
from psvit.data.samples import Batch
from psvit.engine.accelerator import open_machine
from psvit.engine.checkpoints import save_checkpoint
from psvit.engine.open_model import open_model
from psvit.engine.seeding import INIT, seed_step
from psvit.engine.train_config import Distillation, Machine, Recipe, TrainConfig
from psvit.errors import UserError
from psvit.tasks.classification.classify import ClassifierTrainer, train

pytestmark = pytest.mark.usefixtures("one_thread")


def learning(chosen: TrainConfig) -> ClassifierTrainer:
    data = open_data(chosen.data)
    seed_step(chosen.data.seed, INIT)
    model = open_model(
        chosen.model, chosen.recipe.drop_path, img_size=data.img_size, in_chans=data.in_chans, num_classes=10
    )
    return ClassifierTrainer(model, chosen, open_machine(chosen.machine), data)


def batch(size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(size, 1, 8, 8, generator=generator), torch.arange(size) % 10, ())


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()]).double()


def log_softmax(logits: Tensor) -> NDArray[np.float64]:
    values = logits.detach().double().numpy()
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# ---- recipes


def test_the_learning_rate_grows_with_the_global_batch() -> None:
    recipe = Recipe(batch_size=32, accumulate=4, base_lr=1e-3)
    assert recipe.global_batch(2) == 256
    assert recipe.scaled_lr(2) == 1e-3 * 256 / 512
    assert replace(recipe, lr=0.7).scaled_lr(2) == 0.7


# ---- one step


def test_warm_up_and_cosine() -> None:
    trainer = learning(config(lr=0.01, min_lr=1e-4, warmup=0.4, epochs=5, batch_size=12))  # 4 steps an epoch
    for step in range(21):
        trainer.scheduler.step_update(step)
        warm = 1e-6 + step * (0.01 - 1e-6) / 8
        cosine = 1e-4 + (0.01 - 1e-4) * (1 + math.cos(math.pi * min(step, 20) / 20)) / 2
        assert trainer.lr == pytest.approx(warm if step < 8 else cosine, rel=1e-9)


def test_the_loss_is_the_cross_entropy_with_smoothed_labels() -> None:
    for smoothing in (0.0, 0.1):
        trainer, images = learning(config(label_smoothing=smoothing)), batch()
        logs = log_softmax(trainer.plain(images.images))
        target = np.eye(10)[images.labels] * (1 - smoothing) + smoothing / 10
        assert trainer.loss(images, 0).item() == pytest.approx(-(target * logs).sum(axis=1).mean(), rel=1e-6), smoothing


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixup_and_cutmix_mix_images_and_labels_alike(mixup: float, cutmix: float) -> None:
    trainer, images = learning(config(mixup=mixup, cutmix=cutmix, label_smoothing=0.1)), batch()
    assert trainer.mix is not None
    seed_step(0, 5)
    mixed, target = trainer.mix(images.images.clone(), images.labels)
    other = images.images.flip(0)
    labels = np.eye(10)[images.labels] * 0.9 + 0.01
    if mixup:  # one share for the batch: recover it from the pixels
        share = float(((mixed - other) / (images.images - other)).median())
        torch.testing.assert_close(mixed, share * images.images + (1 - share) * other, atol=1e-5, rtol=1e-5)
    else:  # the share is the part of pixels that stayed
        share = float((mixed == images.images).float().mean())
    assert 0 < share < 1
    np.testing.assert_allclose(target, share * labels + (1 - share) * labels[::-1], atol=1e-5)
    seed_step(0, 5)
    expected = -(target.double().numpy() * log_softmax(trainer.plain(mixed))).sum(axis=1).mean()
    assert trainer.loss(images, 0).item() == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model of timm."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("teacher") / "vit"
    shape: dict[str, Any] = {"img_size": 8, "in_chans": 1, "num_classes": 10}
    args = {"patch_size": 4, "depth": 1, "embed_dim": 32, "num_heads": 2}
    model = open_model(ModelConfig.of("vit_tiny_patch16_224", model_args=args), **shape)
    nn.init.normal_(model.head.weight)
    preprocessing = {"input_size": (1, 8, 8), "mean": (0.3,), "std": (0.4,), "interpolation": "bicubic", "crop_pct": 1}
    save_checkpoint(folder, model, model.state_dict(), preprocessing, list("0123456789"), {})
    return folder


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation(kind: Any, teacher: Path) -> None:
    distillation = Distillation(str(teacher), kind, distill_weight=0.3, distill_temperature=2.0)
    trainer, images = learning(config(distillation=distillation, label_smoothing=0.1)), batch()
    student = trainer.plain(images.images)
    logits = timm.create_model(f"local-dir:{teacher}", pretrained=True).eval()(images.images)
    own = -((np.eye(10)[images.labels] * 0.9 + 0.01) * log_softmax(student)).sum(axis=1).mean()
    p, q = log_softmax(logits / 2), log_softmax(student / 2)
    taught = (np.exp(p) * (p - q)).sum(axis=1).mean() * 4
    if kind == "hard":
        taught = -log_softmax(student)[np.arange(16), logits.argmax(dim=1).numpy()].mean()
    assert taught > 0.1
    assert trainer.loss(images, 0).item() == pytest.approx(0.7 * own + 0.3 * taught, rel=1e-5)
    trainer.step([images], 0)
    assert trainer.teacher is not None
    assert all(p.grad is None for p in trainer.teacher.model.parameters())
    assert not trainer.teacher.model.training


def test_a_teacher_of_other_classes_is_refused(teacher: Path, tmp_path: Path) -> None:
    other = read(teacher / "config.json")
    model = open_model(ModelConfig.of(str(teacher)), num_classes=7)
    preprocessing = {name: other["pretrained_cfg"][name] for name in ("input_size", "mean", "std")}
    save_checkpoint(tmp_path / "seven", model, model.state_dict(), preprocessing, list("abcdefg"), {})
    with pytest.raises(UserError, match="knows 7 classes, the data have 10"):
        train(config(tmp_path / "run", distillation=Distillation(str(tmp_path / "seven"))))
    assert not (tmp_path / "run").exists()


def test_fused_steps_are_plain_steps_also_from_a_state_of_another_layout() -> None:
    """A state written on a GPU has its tensors channels first; fused kernels would take them for the parameter's."""
    trained = {}
    for fused in (False, True):
        trainer = learning(config(lr=0.01, warmup=0.0))
        assert all(group["fused"] for group in trainer.optimizer.param_groups)
        for group in trainer.optimizer.param_groups:
            group["fused"] = fused
        for step in range(3):
            trainer.step([batch()], step)
            state = trainer.state_dict()
            for moments in state["optimizer"]["state"].values():
                moments |= {name: value.contiguous() for name, value in moments.items()}
            trainer.restore({**state, "train": {"step": step + 1}})
        trained[fused] = trainer
    pooling = trained[True].plain.get_submodule("stages.1.pool.conv").weight
    assert not pooling.is_contiguous()
    torch.testing.assert_close(parameters(trained[True].plain), parameters(trained[False].plain), rtol=1e-4, atol=1e-5)


def test_the_average_of_the_weights() -> None:
    trainer = learning(config(ema_decay=0.6, lr=0.1, warmup=0.0, opt="sgd"))
    average = parameters(trainer.plain)
    for step in range(5):
        trainer.step([batch()], step)
        warm = 1 - (1 + step) ** (-2 / 3)  # timm's warm-up of the decay
        decay = min(warm, 0.6)
        average = decay * average + (1 - decay) * parameters(trainer.plain)
    assert decay == 0.6
    torch.testing.assert_close(parameters(trainer.evaluated), average, rtol=1e-5, atol=1e-7)
    assert (parameters(trainer.plain) - average).abs().max() > 1e-3
    assert learning(config()).ema is None


def test_clipping_bounds_the_gradient() -> None:
    quick: dict[str, Any] = {"opt": "sgd", "lr": 0.5, "warmup": 0.0}
    steps = []
    for clip in (None, 0.01):
        trainer = learning(config(clip_grad=clip, **quick))
        before = parameters(trainer.plain)
        trainer.step([batch()], 0)
        steps.append(parameters(trainer.plain) - before)
    # timm's sgd has Nesterov momentum 0.9: its first step is lr x (1 + 0.9) x gradient
    assert float(steps[1].norm()) == pytest.approx(0.5 * 1.9 * 0.01, rel=1e-3)
    assert float(steps[0].norm()) > 0.5 * 1.9 * 0.02
    assert float(torch.cosine_similarity(*steps, dim=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_accumulated_batches_are_one_batch(opt: str, tmp_path: Path) -> None:
    for batch_size, accumulate in ((16, 1), (8, 2)):
        chosen = {"batch_size": batch_size, "accumulate": accumulate, "opt": opt, "lr": 0.01}
        train(config(tmp_path / str(accumulate), **chosen))
    one, two = weights(tmp_path / "1" / "last"), weights(tmp_path / "2" / "last")
    for name in one:  # adamw divides by the gradient's size, and so magnifies the rounding of one that is nearly 0
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6 if opt == "sgd" else 1e-4)
    for a, b in zip(log(tmp_path / "1"), log(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_bfloat16_computes_in_it_and_keeps_float32_weights() -> None:
    half = Machine("cpu", "bfloat16", 1)
    losses, dtypes = [], []
    for chosen in (CPU, half):
        trainer = learning(config(machine=chosen))
        hook = trainer.plain.get_submodule("stages.0.blocks.0.mlp.fc1").register_forward_hook(
            lambda module, given, output: dtypes.append(output.dtype)
        )
        losses.append(trainer.loss(batch(), 0).item())
        hook.remove()
        assert {p.dtype for p in trainer.plain.parameters()} == {torch.float32}
    assert dtypes == [torch.float32, torch.bfloat16]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_a_step_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = learning(config(lr=0.01))
    trainer.step([batch()], 0)
    before = parameters(trainer.plain)
    loss = trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda images, step: loss(images, step) * math.nan)
    with pytest.raises(UserError, match=r"the loss is nan .* at step 1 .*lower --lr, set --clip-grad 1"):
        trainer.step([batch()], 1)
    assert torch.equal(parameters(trainer.plain), before)
