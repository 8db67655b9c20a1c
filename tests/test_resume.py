"""Training killed and resumed, or on two processes, is the same training."""

import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import (
    CPU,
    DATA,
    EVERYTHING,
    MACHINE,
    NETWORK,
    TRAIN,
    Cli,
    config,
    log,
    same_weights,
    saved_behind,
    start,
    start_slowed,
    stop_at,
    torchrun,
    weights,
)

from psvit.engine import accelerator
from psvit.engine import interrupts as signals
from psvit.engine.accelerator import open_machine
from psvit.engine.interrupts import Interrupt, InterruptedTrainingError, interrupts
from psvit.engine.train_config import Machine
from psvit.errors import UserError
from psvit.tasks.classification.classify import train

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- interrupted and resumed

LONG = [*TRAIN, *EVERYTHING, "--limit", "240", "--batch-size", "8", "--save-every", "2", "--keep-state"]  # 15 steps


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


def test_stopped_and_resumed_is_uninterrupted(
    cli: Cli, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything that is random or remembered: twice stopped, and once more when nothing is left to do."""
    for step, more in ((9, []), (8, ["--resume"])):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            said = cli.refused(*LONG, "--output", tmp_path, *more)
        at = 9 if step == 9 else 17
        assert said == f"psvit: stopped at step {at} of 30, saved in {tmp_path}: go on with --resume\n"
    for says in ("resumed at step 17", "there is nothing to resume"):
        assert says in cli.ok(*LONG, "--output", tmp_path, "--resume")
        check_equal(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(cli: Cli, tmp_path: Path, uninterrupted: Path) -> None:
    process = start_slowed(15, *LONG, "--output", tmp_path)
    step = saved_behind(15, tmp_path, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(log(tmp_path)) == 1
    (tmp_path / ".state.pt.1.tmp").write_bytes(b"half")  # as a kill in the midst of writing leaves it
    (tmp_path / "last").rename(tmp_path / ".last.old")  # and one between the two renamings of a folder
    said = cli.ok(*LONG, "--output", tmp_path, "--resume")
    assert step <= int(said.partition("resumed at step ")[2].split()[0]) < 30
    check_equal(tmp_path, uninterrupted)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(cli: Cli, tmp_path: Path, uninterrupted: Path) -> None:
    process = start_slowed(15, *LONG, "--output", tmp_path)
    saved_behind(15, tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 2
    assert said.startswith("psvit: stopped at step ")
    assert said.endswith(f" of 30, saved in {tmp_path}: go on with --resume\n")
    assert said.count("\n") == 1
    step = int(said.split("step ")[1].split()[0])
    assert int(torch.load(tmp_path / "state.pt", weights_only=True)["train"]["step"]) == step
    assert f"resumed at step {step}" in cli.ok(*LONG, "--output", tmp_path, "--resume")
    check_equal(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("steps", "recipe"),
    [
        ((1, 3, 4), {"opt": "adamw", "drop_path": 0.3, "ema_decay": 0.9}),
        ((4,), {"opt": "sgd"}),
        ((4,), {"opt": "muon"}),
    ],
)
def test_resumed_at_any_step(
    steps: tuple[int, ...], recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(tmp_path / "run", **recipe)
    train(replace(chosen, run=replace(chosen.run, output=str(tmp_path / "whole"))))
    for step in steps:
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(InterruptedTrainingError, match=f"step {step} of 6"):
                train(replace(chosen, run=replace(chosen.run, overwrite=step > steps[0])))
        best = train(replace(chosen, run=replace(chosen.run, resume=True)))
        assert same_weights(tmp_path / "run" / "last", tmp_path / "whole" / "last"), step
        assert log(tmp_path / "run") == log(tmp_path / "whole"), step
        assert {**best, **log(tmp_path / "whole")[best["epoch"] - 1]} == best, step


def test_a_second_ctrl_c_interrupts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts() as interrupt:
        for _ in range(2):  # torchrun passes on what the terminal has sent already
            signal.raise_signal(signal.SIGINT)
        assert interrupt.requested(open_machine(CPU))
        monkeypatch.setattr(signals, "PATIENCE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("own", "other", "stop"), [(None, 0, False), (None, 1, True), (0.0, 0, True)])
def test_all_processes_stop_after_the_same_step(own: float | None, other: int, stop: bool) -> None:
    """What another process was asked arrives by the sum over all."""
    two: Any = SimpleNamespace(
        num_processes=2, device=torch.device("cpu"), reduce=lambda value, reduction: value + other
    )
    interrupt = Interrupt()
    interrupt.asked = own
    assert interrupt.requested(two) is stop


# ---- several processes

TWO = [*NETWORK, *DATA, *MACHINE, "--epochs", "2", "--drop-path", "0", "--lr", "0.003"]


@pytest.mark.slow
def test_two_processes_are_one_at_the_same_global_batch(cli: Cli, tmp_path: Path) -> None:
    two = ["train", *TWO, "--batch-size", "8", "--output", tmp_path / "two"]
    process = start("-m", "psvit", *two, launcher=torchrun())
    cli.ok("train", *TWO, "--batch-size", "16", "--output", tmp_path / "one")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("batch     16 images globally = 8 a process x 1 accumulated x 2 processes; 3 steps an epoch") == 1
    for line, other in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert other == pytest.approx(line, rel=1e-5)
    a, b = weights(tmp_path / "one" / "last"), weights(tmp_path / "two" / "last")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-4)
    # a run on two processes does not go on on one, unless its global batch stays
    assert "has a global batch of 16, not 8" in cli.refused(*two, "--resume")


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "resolve_device", torch.device)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cuda:1 is one device for 2 processes: give --device cuda"):
        open_machine(Machine("cuda:1", "float32"))
