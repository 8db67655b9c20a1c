"""What a training leaves, and what psvit run compares."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
from tiny import CPU, DATA, DIGITS, MACHINE, TRAIN, Cli, config, log, read, same_weights, stop_at, weights

from psvit.arch.model_config import ModelConfig
from psvit.cli import main
from psvit.errors import UserError
from psvit.pipeline.compare import error_ratio
from psvit.pipeline.run import run
from psvit.pipeline.run_config import CompareConfig, RunAllConfig
from psvit.tasks.classification.classify import train
from psvit.tasks.classification.evaluate import evaluate_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- runs


def test_a_run_leaves_its_best_and_its_last_checkpoint_and_a_log(tmp_path: Path) -> None:
    best = train(config(tmp_path, epochs=4, lr=0.02, warmup=0.0, data=replace(DIGITS, limit=200)))
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
        assert (metrics["macs"], metrics["params"]) == (227648, 24090)  # by hand in test_cli_checkpoints
        again, _ = evaluate_checkpoint(
            str(tmp_path / name), replace(DIGITS, limit=200), CPU, split="validation", batch_size=16
        )
        assert (again.loss, again.top1) == pytest.approx((line["loss"], line["top1"]), rel=1e-5)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows] == lines
    assert not (tmp_path / "state.pt").exists()
    assert not list(tmp_path.glob(".*"))


def test_tensorboard_shows_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(config(tmp_path))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "train_loss", "top1", "lr"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in log(tmp_path)]


def test_without_a_validation_split_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    best = train(config(tmp_path, data=replace(DIGITS, validation=0.0)))
    assert best["epoch"] == 2
    assert "top1" not in best
    assert same_weights(tmp_path / "best", tmp_path / "last")


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config(tmp_path / name, data=replace(DIGITS, seed=seed), drop_path=0.3, mixup=0.5))
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
    chosen = config(tmp_path, data=replace(DIGITS, validation=0.0, limit=16), epochs=1, warmup=0.0)
    chosen = replace(chosen, recipe=replace(chosen.recipe, opt="sgd", lr=1e30, weight_decay=1e10))
    with pytest.raises(UserError, match=r"the weight .* is not finite"):
        train(chosen)
    assert not (tmp_path / "last").exists()
    train(replace(chosen, recipe=replace(chosen.recipe, weight_decay=0)))  # nothing was saved: nothing is in the way


# ---- psvit run

RUN = ["run", "--models", "deit", "AS-A", "--patch-size", "2", "--macs", "0.5M", "--head-dim", "8", *DATA, *MACHINE,
       "--batch-size", "16", "--epochs", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison."""
    folder = tmp_path_factory.mktemp("compared")
    assert main([*RUN, "--output", str(folder)]) == 0
    return folder


def test_a_comparison_goes_on_where_it_stopped(
    cli: Cli, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RUN, "--output", tmp_path / "run"]
    for step in (2, 6):  # in the first network; six steps later, in the second
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert cli.refused(*words, *(["--resume"] if step == 6 else [])).endswith("go on with --resume\n")
            assert not (tmp_path / "run" / "results.json").exists()
    assert "already holds a run" in cli.refused(*words)
    assert "--macs" not in cli.refused(*words, "--resume", "--epochs", "3")
    for _ in range(2):  # once more when nothing is left to do
        cli.ok(*words, "--resume")
        for row, whole in zip(results(tmp_path / "run"), results(compared), strict=True):
            apart = {"checkpoint": "", "latency_ms": 0.0}  # another place, and measured anew
            assert {**row, **apart} == {**whole, **apart}
    for name in ("deit", "AS-A"):
        assert same_weights(compared / name / "best", tmp_path / "run" / name / "best")


def results(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(folder / "results.json")["rows"]
    return rows


def test_a_comparison_is_at_equal_macs_and_by_hand(compared: Path) -> None:
    rows = results(compared)
    assert [row["name"] for row in rows] == ["deit", "AS-A"]
    for row in rows:
        assert row["macs"] == pytest.approx(0.5e6, rel=0.02)
        assert row["error_ratio"] == pytest.approx((100 - row["top1"]) / (100 - rows[0]["top1"]))
        metrics, opened = evaluate_checkpoint(row["checkpoint"], DIGITS, CPU)
        assert metrics.count == row["images"] == 359  # the test split
        assert (metrics.top1, metrics.loss) == pytest.approx((row["top1"], row["loss"]), abs=1e-4)
        assert row["per_class"] == dict(zip(opened.classes, metrics.per_class(), strict=True))
    assert error_ratio(75, 50) == 0.5
    assert error_ratio(100, 50) == 0
    assert error_ratio(75, 100) is None


def test_a_comparison_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for changes, message in (
        ({"models": ("deit", "A-A-A-A")}, "too small for 4 stages: give --patch-size 1 or less"),
        ({"models": ("deit", "resnext999")}, "no model is called 'resnext999'"),
        ({"models": ("deit", "ASS-")}, "stands between two layers"),
        ({"macs": "many", "models": ("deit",)}, "--macs 'many' is not a positive number"),
    ):
        given = {"patch_size": 2, "head_dim": 8, "macs": "0.5M", "output": str(tmp_path / "run"), **changes}
        with pytest.raises(UserError, match=message):
            run(RunAllConfig(compare=CompareConfig(**given), data=DIGITS, machine=CPU))  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_resnet", {}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}),
    ],
)
def test_any_model_of_timm_trains(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    data = replace(DIGITS, img_size=32)
    best = train(config(tmp_path, data=data, model=ModelConfig.of(name, model_args=args), epochs=1))
    model = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True)
    assert best["images"] == 30
    assert sum(p.numel() for p in model.parameters()) == read(tmp_path / "best" / "metrics.json")["params"]
    assert read(tmp_path / "best" / "metrics.json")["macs"] > 0
    metrics, _ = evaluate_checkpoint(
        str(tmp_path / "best"), replace(data, img_size=None), CPU, split="validation", batch_size=16
    )
    assert metrics.to_dict() == pytest.approx({name: best[name] for name in metrics.to_dict()}, rel=1e-5)
