"""Training: what a step computes, by hand; what a run leaves; killed and resumed, or on two processes, the same."""

import csv
import math
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from tiny import (
    CPU,
    DATA,
    DIGITS,
    EVERYTHING,
    MACHINE,
    NETWORK,
    TRAIN,
    Cli,
    log,
    read,
    same_weights,
    settings,
    start,
    weights,
)
from torch import Tensor, nn

from psvit.errors import UserError
from psvit.search.run import run
from psvit.search.settings import RunAllSettings
from psvit.training import machine
from psvit.training.checkpoints import open_model, save_checkpoint
from psvit.training.data import open_data
from psvit.training.evaluate import evaluate_checkpoint
from psvit.training.loading import Batch
from psvit.training.loop import INIT, InterruptedTrainingError, Learning, train
from psvit.training.machine import Interrupt, interrupts, open_machine, seed_step
from psvit.training.recipes import (
    CompareSettings,
    Distillation,
    Machine,
    ModelSettings,
    Recipe,
    TrainSettings,
    deit,
    light,
)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learning(chosen: TrainSettings) -> Learning:
    data = open_data(chosen.data)
    seed_step(chosen.data.seed, INIT)
    model = open_model(
        chosen.model, chosen.recipe.drop_path, img_size=data.img_size, in_chans=data.in_chans, num_classes=10
    )
    return Learning(model, chosen, open_machine(chosen.machine), data)


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


def test_the_deit_recipe_is_deits() -> None:
    recipe = deit()
    assert (recipe.epochs, recipe.warmup_epochs, recipe.opt, recipe.weight_decay) == (300, 5, "adamw", 0.05)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.drop_path) == (0.8, 1.0, 0.1, 0.1)
    assert (recipe.repeats, recipe.ema_decay, recipe.min_lr, recipe.clip_grad) == (3, 0.99996, 1e-5, None)
    assert (recipe.augment.auto_augment, recipe.augment.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert recipe.scaled_lr(8) == 5e-4 * 128 * 8 / 512  # its global batch of 1024


def test_the_light_recipe_is_light() -> None:
    recipe = light()
    assert (recipe.mixup, recipe.cutmix, recipe.ema_decay, recipe.repeats) == (0, 0, 0, 1)
    assert recipe.augment.auto_augment is None
    assert recipe.scaled_lr(1) == 4e-3 * 128 / 512


def test_the_learning_rate_grows_with_the_global_batch() -> None:
    recipe = Recipe(batch_size=32, accumulate=4, base_lr=1e-3)
    assert recipe.global_batch(2) == 256
    assert recipe.scaled_lr(2) == 1e-3 * 256 / 512
    assert replace(recipe, lr=0.7).scaled_lr(2) == 0.7


# ---- one step


def test_warm_up_and_cosine() -> None:
    learn = learning(settings(lr=0.01, min_lr=1e-4, warmup_epochs=2, epochs=5, batch_size=12))  # 4 steps an epoch
    for step in range(21):
        learn.scheduler.step_update(step)
        warm = 1e-6 + step * (0.01 - 1e-6) / 8
        cosine = 1e-4 + (0.01 - 1e-4) * (1 + math.cos(math.pi * min(step, 20) / 20)) / 2
        assert learn.lr == pytest.approx(warm if step < 8 else cosine, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    learn, images = learning(settings(label_smoothing=smoothing)), batch()
    logs = log_softmax(learn.plain(images.images))
    target = np.eye(10)[images.labels] * (1 - smoothing) + smoothing / 10
    assert learn.loss(images, 0).item() == pytest.approx(-(target * logs).sum(axis=1).mean(), rel=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixup_and_cutmix_mix_images_and_labels_alike(mixup: float, cutmix: float) -> None:
    learn, images = learning(settings(mixup=mixup, cutmix=cutmix, label_smoothing=0.1)), batch()
    assert learn.mix is not None
    seed_step(0, 5)
    mixed, target = learn.mix(images.images.clone(), images.labels)
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
    expected = -(target.double().numpy() * log_softmax(learn.plain(mixed))).sum(axis=1).mean()
    assert learn.loss(images, 0).item() == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model of timm."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("teacher") / "vit"
    shape: dict[str, Any] = {"img_size": 8, "in_chans": 1, "num_classes": 10}
    args = {"patch_size": 4, "depth": 1, "embed_dim": 32, "num_heads": 2}
    model = open_model(ModelSettings("vit_tiny_patch16_224", model_args=args), **shape)
    nn.init.normal_(model.head.weight)
    preprocessing = {"input_size": (1, 8, 8), "mean": (0.3,), "std": (0.4,), "interpolation": "bicubic", "crop_pct": 1}
    save_checkpoint(folder, model, model.state_dict(), preprocessing, list("0123456789"), {})
    return folder


def test_soft_distillation(teacher: Path) -> None:
    distillation = Distillation(str(teacher), "soft", distill_weight=0.3, distill_temperature=2.0)
    learn, images = learning(settings(distillation=distillation, label_smoothing=0.1)), batch()
    student = learn.plain(images.images)
    taught = timm.create_model(f"local-dir:{teacher}", pretrained=True).eval()(images.images)
    target = np.eye(10)[images.labels] * 0.9 + 0.01
    own = -(target * log_softmax(student)).sum(axis=1).mean()
    p, q = log_softmax(taught / 2), log_softmax(student / 2)
    divergence = (np.exp(p) * (p - q)).sum(axis=1).mean() * 4
    assert divergence > 0.1
    assert learn.loss(images, 0).item() == pytest.approx(0.7 * own + 0.3 * divergence, rel=1e-5)


def test_hard_distillation(teacher: Path) -> None:
    distillation = Distillation(str(teacher), "hard", distill_weight=0.25)
    learn, images = learning(settings(distillation=distillation, label_smoothing=0.0)), batch()
    logs = log_softmax(learn.plain(images.images))
    choice = timm.create_model(f"local-dir:{teacher}", pretrained=True).eval()(images.images).argmax(dim=1).numpy()
    rows = np.arange(16)
    own, taught = -logs[rows, images.labels].mean(), -logs[rows, choice].mean()
    assert learn.loss(images, 0).item() == pytest.approx(0.75 * own + 0.25 * taught, rel=1e-6)
    learn.step([images], 0)
    assert learn.teacher is not None
    assert all(p.grad is None for p in learn.teacher.model.parameters())
    assert not learn.teacher.model.training


def test_a_teacher_of_other_classes_is_refused(teacher: Path, tmp_path: Path) -> None:
    other = read(teacher / "config.json")
    model = open_model(ModelSettings(str(teacher)), num_classes=7)
    preprocessing = {name: other["pretrained_cfg"][name] for name in ("input_size", "mean", "std")}
    save_checkpoint(tmp_path / "seven", model, model.state_dict(), preprocessing, list("abcdefg"), {})
    with pytest.raises(UserError, match="knows 7 classes, the data have 10"):
        train(settings(tmp_path / "run", distillation=Distillation(str(tmp_path / "seven"))))
    assert not (tmp_path / "run").exists()


def test_the_average_of_the_weights() -> None:
    learn = learning(settings(ema_decay=0.6, lr=0.1, warmup_epochs=0, opt="sgd"))
    average = parameters(learn.plain)
    for step in range(5):
        learn.step([batch()], step)
        warm = 1 - (1 + step) ** (-2 / 3)  # timm's warm-up of the decay
        decay = min(warm, 0.6)
        average = decay * average + (1 - decay) * parameters(learn.plain)
    assert decay == 0.6
    torch.testing.assert_close(parameters(learn.evaluated), average, rtol=1e-5, atol=1e-7)
    assert (parameters(learn.plain) - average).abs().max() > 1e-3
    assert learning(settings()).ema is None


def test_clipping_bounds_the_gradient() -> None:
    quick: dict[str, Any] = {"opt": "sgd", "lr": 0.5, "warmup_epochs": 0}
    steps = []
    for clip in (None, 0.01):
        learn = learning(settings(clip_grad=clip, **quick))
        before = parameters(learn.plain)
        learn.step([batch()], 0)
        steps.append(parameters(learn.plain) - before)
    # timm's sgd has Nesterov momentum 0.9: its first step is lr x (1 + 0.9) x gradient
    assert float(steps[1].norm()) == pytest.approx(0.5 * 1.9 * 0.01, rel=1e-3)
    assert float(steps[0].norm()) > 0.5 * 1.9 * 0.02
    assert float(torch.cosine_similarity(*steps, dim=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_accumulated_batches_are_one_batch(opt: str, tmp_path: Path) -> None:
    for batch_size, accumulate in ((16, 1), (8, 2)):
        chosen = {"batch_size": batch_size, "accumulate": accumulate, "opt": opt, "lr": 0.01}
        train(settings(tmp_path / str(accumulate), **chosen))
    one, two = weights(tmp_path / "1" / "last"), weights(tmp_path / "2" / "last")
    for name in one:  # adamw divides by the gradient's size, and so magnifies the rounding of one that is nearly 0
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6 if opt == "sgd" else 1e-4)
    for a, b in zip(log(tmp_path / "1"), log(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_bfloat16_computes_in_it_and_keeps_float32_weights(tmp_path: Path) -> None:
    half = Machine("cpu", "bfloat16", 1)
    losses, dtypes = [], []
    for chosen in (CPU, half):
        learn = learning(settings(machine=chosen))
        hook = learn.plain.get_submodule("stages.0.blocks.0.mlp.fc1").register_forward_hook(
            lambda module, given, output: dtypes.append(output.dtype)
        )
        losses.append(learn.loss(batch(), 0).item())
        hook.remove()
        assert {p.dtype for p in learn.plain.parameters()} == {torch.float32}
    assert dtypes == [torch.float32, torch.bfloat16]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    # the average of the weights is what is evaluated, and what is kept
    best = train(settings(tmp_path / "run", machine=half, ema_decay=0.5, lr=0.01))
    metrics, _ = evaluate_checkpoint(str(tmp_path / "run" / "best"), DIGITS, half, split="holdout", batch_size=16)
    # training computes maps explicitly on a CPU, evaluation in the fused kernel: equal to rounding
    assert metrics.to_dict() == pytest.approx({name: best[name] for name in metrics.to_dict()}, rel=1e-4)


def test_a_step_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    learn = learning(settings(lr=0.01))
    learn.step([batch()], 0)
    before = parameters(learn.plain)
    loss = learn.loss
    monkeypatch.setattr(learn, "loss", lambda images, step: loss(images, step) * math.nan)
    with pytest.raises(UserError, match=r"the loss is nan .* at step 1 .*lower --lr, set --clip-grad 1"):
        learn.step([batch()], 1)
    assert torch.equal(parameters(learn.plain), before)


# ---- runs


def test_the_global_batch_and_the_scaled_rate_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    train(settings(tmp_path, batch_size=8, accumulate=3, base_lr=2e-3, epochs=1), told.append)
    text = "\n".join(told)
    assert "batch     24 images globally = 8 a process x 3 accumulated x 1 processes; 2 steps an epoch" in text
    assert "lr        9.38e-05 = 0.002 x 24 / 512, 1 epochs" in text
    assert "network   AS-A 2d 16-32 /2: 0.2276 M MACs, 0.02409 M parameters" in text
    assert "48 training and 30 hold-out images of 8x8 pixels, 10 classes" in text


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_resnet", {}),
        ("test_convnext", {}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}),
    ],
)
def test_any_model_of_timm_trains(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    data = replace(DIGITS, img_size=32)
    best = train(settings(tmp_path, data=data, model=ModelSettings(name, model_args=args), epochs=1))
    model = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True)
    assert best["images"] == 30
    assert sum(p.numel() for p in model.parameters()) == read(tmp_path / "best" / "metrics.json")["params"]
    assert read(tmp_path / "best" / "metrics.json")["macs"] > 0
    metrics, _ = evaluate_checkpoint(
        str(tmp_path / "best"), replace(data, img_size=None), CPU, split="holdout", batch_size=16
    )
    assert metrics.to_dict() == pytest.approx({name: best[name] for name in metrics.to_dict()}, rel=1e-5)


def test_a_run_leaves_its_best_and_its_last_checkpoint_and_a_log(tmp_path: Path) -> None:
    best = train(settings(tmp_path, epochs=4, lr=0.02, warmup_epochs=0, data=replace(DIGITS, limit=200)))
    lines = log(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines] == [12, 24, 36, 48]
    order = [(line["top1"], -line["loss"], line["epoch"]) for line in lines]
    assert best["epoch"] == max(order)[2]
    for name, line in (("best", lines[best["epoch"] - 1]), ("last", lines[3])):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "config.json",
            "metrics.json",
            "model.safetensors",
        ]
        metrics = read(tmp_path / name / "metrics.json")
        assert {**metrics, **line} == metrics
        assert (metrics["macs"], metrics["params"]) == (227648, 24090)  # by hand in test_cli
        again, _ = evaluate_checkpoint(
            str(tmp_path / name), replace(DIGITS, limit=200), CPU, split="holdout", batch_size=16
        )
        assert (again.loss, again.top1) == pytest.approx((line["loss"], line["top1"]), rel=1e-5)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows] == lines
    assert not (tmp_path / "state.pt").exists()
    assert not list(tmp_path.glob(".*"))


def test_tensorboard_shows_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(settings(tmp_path))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "train_loss", "top1", "lr"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in log(tmp_path)]


def test_without_a_hold_out_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    best = train(settings(tmp_path, data=replace(DIGITS, holdout=0.0)))
    assert best["epoch"] == 2
    assert "top1" not in best
    assert same_weights(tmp_path / "best", tmp_path / "last")


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings(tmp_path / name, data=replace(DIGITS, seed=seed), drop_path=0.3, mixup=0.5))
    assert same_weights(tmp_path / "a" / "last", tmp_path / "b" / "last")
    assert not same_weights(tmp_path / "a" / "last", tmp_path / "c" / "last")


def test_a_training_that_diverges_keeps_the_last_good_checkpoint(cli: Cli, tmp_path: Path) -> None:
    one_step = [*TRAIN, "--limit", "16", "--lr", "1e30", "--epochs", "3", "--clip-grad", "null", "--output", tmp_path]
    said = cli.refused(*one_step)  # the first epoch is the warm-up, at 1e-6; the second breaks the weights
    assert "is nan" in said
    assert "the checkpoints saved so far are kept; lower --lr" in said
    assert [line["epoch"] for line in log(tmp_path)] == [1]
    for name in ("best", "last"):
        assert read(tmp_path / name / "metrics.json")["epoch"] == 1
        assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path / name).values())
    cli.ok("evaluate", tmp_path / "last", "--data", "digits", *MACHINE)


def test_weights_that_break_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    chosen = settings(tmp_path, data=replace(DIGITS, holdout=0.0, limit=16), epochs=1, warmup_epochs=0)
    chosen = replace(chosen, recipe=replace(chosen.recipe, opt="sgd", lr=1e30, weight_decay=1e10))
    with pytest.raises(UserError, match=r"the weight .* is not finite"):
        train(chosen)
    assert not (tmp_path / "last").exists()
    train(replace(chosen, recipe=replace(chosen.recipe, weight_decay=0)))  # nothing was saved: nothing is in the way


def test_two_trainings_in_one_process_may_differ_in_precision(tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16", "float32"):
        machine = Machine("cpu", precision, 1)  # type: ignore[arg-type]
        train(settings(tmp_path / precision, machine=machine, epochs=1, run={"overwrite": True}))


# ---- interrupted and resumed

LONG = [*TRAIN, *EVERYTHING, "--limit", "240", "--batch-size", "8", "--save-every", "2", "--keep-state"]  # 15 steps


def in_the_second_epoch(run: Path, process: "subprocess.Popen[str]") -> int:
    """Wait for a state saved in mid-epoch; its step."""
    for _ in range(6000):
        assert process.poll() is None, process.communicate()
        if (run / "state.pt").exists():
            step = int(torch.load(run / "state.pt", weights_only=True)["train"]["step"])
            if step > 15:
                return step
        time.sleep(0.005)
    raise AssertionError("it never came so far")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from psvit.cli import main

    folder = tmp_path_factory.mktemp("uninterrupted")
    assert main([*LONG, "--output", str(folder)]) == 0
    return folder


def check_equal(run: Path, uninterrupted: Path) -> None:
    for name in ("best", "last"):
        assert same_weights(run / name, uninterrupted / name)
    assert log(run) == log(uninterrupted)
    a, b = (torch.load(folder / "state.pt", weights_only=True) for folder in (run, uninterrupted))
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    assert not list(run.glob(".*"))


def test_killed_and_resumed_is_uninterrupted(cli: Cli, tmp_path: Path, uninterrupted: Path) -> None:
    process = start(*LONG, "--output", tmp_path)
    step = in_the_second_epoch(tmp_path, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(log(tmp_path)) == 1
    (tmp_path / ".state.pt.1.tmp").write_bytes(b"half")  # as a kill in the midst of writing leaves it
    (tmp_path / "last").rename(tmp_path / ".last.old")  # and one between the two renamings of a folder
    said = cli.ok(*LONG, "--output", tmp_path, "--resume")
    resumed = int(said.partition("resumed at step ")[2].split()[0])
    assert step <= resumed < 30
    check_equal(tmp_path, uninterrupted)
    finished = cli.ok(*LONG, "--output", tmp_path, "--resume")  # nothing is left to do
    assert "resumed at step 30" in finished
    check_equal(tmp_path, uninterrupted)


def test_ctrl_c_saves_and_says_how_to_go_on(cli: Cli, tmp_path: Path, uninterrupted: Path) -> None:
    process = start(*LONG, "--output", tmp_path)
    in_the_second_epoch(tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("psvit: stopped at step ")
    assert said.endswith(f" of 30, saved in {tmp_path}: go on with --resume\n")
    assert said.count("\n") == 1
    step = int(said.split("step ")[1].split()[0])
    assert int(torch.load(tmp_path / "state.pt", weights_only=True)["train"]["step"]) == step
    assert f"resumed at step {step}" in cli.ok(*LONG, "--output", tmp_path, "--resume")
    check_equal(tmp_path, uninterrupted)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C after so many steps of the next training."""
    seen = []

    def requested(self: Interrupt, accelerator: object) -> bool:
        seen.append(1)
        return len(seen) == step

    monkeypatch.setattr(Interrupt, "requested", requested)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_resumed_at_any_step(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(tmp_path / "run", drop_path=0.3, ema_decay=0.9, opt="adamw")
    train(replace(chosen, run=replace(chosen.run, output=str(tmp_path / "whole"))))
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(InterruptedTrainingError, match=f"step {step} of 6"):
            train(chosen)
    best = train(replace(chosen, run=replace(chosen.run, resume=True)))
    assert same_weights(tmp_path / "run" / "last", tmp_path / "whole" / "last")
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert {**best, **log(tmp_path / "whole")[best["epoch"] - 1]} == best


@pytest.mark.parametrize("opt", ["sgd", "lion", "lamb", "muon", "adafactor", "nadamw", "rmsproptf", "adopt"])
def test_the_state_of_other_optimizers_resumes(opt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(tmp_path / "run", opt=opt)
    train(replace(chosen, run=replace(chosen.run, output=str(tmp_path / "whole"))))
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(InterruptedTrainingError):
            train(chosen)
    train(replace(chosen, run=replace(chosen.run, resume=True)))
    assert same_weights(tmp_path / "run" / "last", tmp_path / "whole" / "last")


def test_a_second_ctrl_c_interrupts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts() as interrupt:
        for _ in range(2):  # torchrun passes on what the terminal has sent already
            signal.raise_signal(signal.SIGINT)
        assert interrupt.requested(open_machine(CPU))
        monkeypatch.setattr(machine, "PATIENCE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_all_processes_stop_after_the_same_step() -> None:
    class TwoProcesses:
        """An Accelerator whose other process has been asked, or not."""

        num_processes, device = 2, torch.device("cpu")

        def __init__(self, other: float) -> None:
            self.other = other

        def reduce(self, value: Tensor, reduction: str) -> Tensor:
            assert reduction == "sum"
            return value + self.other

    interrupt = Interrupt()
    assert not interrupt.requested(TwoProcesses(0))  # type: ignore[arg-type]
    assert interrupt.requested(TwoProcesses(1))  # type: ignore[arg-type]
    interrupt.asked = 0.0
    assert interrupt.requested(TwoProcesses(0))  # type: ignore[arg-type]


# ---- several processes

TWO = [*NETWORK, *DATA, *MACHINE, "--epochs", "2", "--drop-path", "0", "--lr", "0.003"]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_are_one_at_the_same_global_batch(launcher: str, cli: Cli, tmp_path: Path) -> None:
    port = str(free_port())
    launchers = {
        "torchrun": ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port),
        # --multi_gpu is accelerate's name for torchrun; its --cpu starts one process, unless there is MPI
        "accelerate": ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                       "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port),
    }  # fmt: skip
    process = start("-m", "psvit", "train", *TWO, "--batch-size", "8", "--output", tmp_path / "two",
                    launcher=launchers[launcher])  # fmt: skip
    cli.ok("train", *TWO, "--batch-size", "16", "--output", tmp_path / "one")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("batch     16 images globally = 8 a process x 1 accumulated x 2 processes; 3 steps an epoch") == 1
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    a, b = weights(tmp_path / "one" / "last"), weights(tmp_path / "two" / "last")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-4)
    # a run on two processes does not go on on one, unless its global batch stays
    said = cli.refused("train", *TWO, "--batch-size", "8", "--output", tmp_path / "two", "--resume")
    assert "has a global batch of 16, not 8" in said


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "resolve_device", torch.device)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cuda:1 is one device for 2 processes: give --device cuda"):
        open_machine(Machine("cuda:1", "float32"))


# ---- psvit run

RUN = ["run", "--models", "deit", "AS-A", "--patch-size", "2", "--macs", "0.5M", "--head-dim", "8", *DATA, *MACHINE,
       "--batch-size", "16", "--epochs", "2"]  # fmt: skip


def test_a_comparison_goes_on_where_it_stopped(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Path
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    cli.ok(*RUN)
    monkeypatch.chdir(tmp_path / "cut")
    for step in (2, 6):  # in the first network; six steps later, in the second
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            said = cli.refused(*RUN, *(["--resume"] if step == 6 else []))
            assert said.endswith("go on with --resume\n")
            assert not Path("runs/run/results.json").exists()
    assert "already holds a run" in cli.refused(*RUN)
    assert "--macs" not in cli.refused(*RUN, "--resume", "--epochs", "3")
    cli.ok(*RUN, "--resume")
    results = [read(tmp_path / name / "runs/run/results.json") for name in ("whole", "cut")]
    assert results[0] == results[1]
    for name in ("deit", "AS-A"):
        assert same_weights(tmp_path / "whole/runs/run" / name / "best", Path("runs/run") / name / "best")
    assert "already holds a run" in cli.refused(*RUN)
    cli.ok(*RUN, "--resume")
    assert read(Path("runs/run/results.json")) == results[0]
    cli.ok(*RUN, "--overwrite")
    assert read(Path("runs/run/results.json")) == results[0]


def test_a_comparison_is_at_equal_macs_and_by_hand(cli: Cli, tmp_path: Path) -> None:
    said = cli.ok(*RUN, "--output", tmp_path / "run", "--results", tmp_path / "other" / "results.json")
    results = read(tmp_path / "run" / "results.json")
    assert read(tmp_path / "other" / "results.json") == results
    assert [row["name"] for row in results["rows"]] == ["deit", "AS-A"]
    first = results["rows"][0]
    for row in results["rows"]:
        assert row["macs"] == pytest.approx(0.5e6, rel=0.02)
        assert row["error_ratio"] == pytest.approx((100 - row["top1"]) / (100 - first["top1"]))
        assert row["network"] in said
        metrics, classes = evaluate_checkpoint(row["checkpoint"], DIGITS, CPU)
        assert metrics.count == row["images"] == 359  # the test split
        assert (metrics.top1, metrics.loss) == pytest.approx((row["top1"], row["loss"]), abs=1e-4)
        assert row["per_class"] == dict(zip(classes, metrics.per_class(), strict=True))


def test_a_comparison_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for changes, message in (
        ({"resume": True}, "holds no run to resume"),
        ({"models": ("deit", "A-A-A-A")}, "too small for 4 stages: give --patch-size 1 or less"),
        ({"models": ("deit", "resnext999")}, "no model is called 'resnext999'"),
        ({"models": ("deit", "ASS-")}, "stands between two layers"),
        ({"macs": "many", "models": ("deit",)}, "--macs 'many' is not a positive number"),
    ):
        given = {"patch_size": 2, "head_dim": 8, "macs": "0.5M", "output": str(tmp_path / "run"), **changes}
        with pytest.raises(UserError, match=message):
            run(RunAllSettings(compare=CompareSettings(**given), data=DIGITS, machine=CPU))  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--resume and --overwrite contradict each other"):
        CompareSettings(resume=True, overwrite=True)
