"""psvit benchmark: its order, its errors, its files; never how fast anything is."""

import io
import json

import pytest
import timm
import torch
from refusals import refuses
from rich.console import Console
from small_networks import Tiny

from psvit import UserError
from psvit.engine.memory import page_faults
from psvit.latency import benchmark as bench
from psvit.latency import peak as machine
from psvit.latency.benchmark import benchmark
from psvit.latency.benchmark_config import BenchmarkConfig
from psvit.latency.benchmark_report import Report, table
from psvit.latency.timing import Spread
from psvit.report.tables import to_rich


class NoBfloat16(Tiny):
    def forward(self, x):
        if x.dtype == torch.bfloat16:
            raise RuntimeError("no [bold]kernel[/bold] for bfloat16\nsecond line")
        return super().forward(x)


def build(name, img_size):
    if name == "unknown":
        raise UserError("model 'unknown' is not known")
    if name == "broken":
        raise TypeError("unexpected keyword img_size")
    return {"tiny": Tiny, "picky": NoBfloat16}[name]().eval()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(machine, "PEAK_SHAPES", ((16, 16, 16), (32, 16, 16)))
    monkeypatch.setattr(machine, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(bench, "MIN_SECONDS", 0.0)


def config(*models, **changes):
    return BenchmarkConfig(**{"models": models, "batch_size": 2, "img_size": 4, "rounds": 3, "device": "cpu"} | changes)


def rendered(report):
    console = Console(file=io.StringIO(), width=250)
    console.print(to_rich(table(report)))
    return console.file.getvalue()


# The whole


def test_benchmark():
    told = []
    chosen = config("tiny", "picky", "tiny", dtype=["float32", "bfloat16"])
    report = benchmark(chosen, build, told.append)
    assert [(row.model, row.dtype) for row in report.rows] == [
        (name, dtype) for dtype in ("float32", "bfloat16") for name in ("tiny", "picky", "tiny")
    ]
    assert set(report.peaks) == {"float32", "bfloat16"}
    assert told.count("counting tiny") == 1
    for row in report.rows:
        assert row.input_size == (2, 4, 4)
        assert row.parameters == 32 * 7 + 7 + 7 * 5 + 5
        assert row.macs == row.macs_timed == 32 * 7 + 7 * 5
        assert row.compile_seconds is None
        if (row.model, row.dtype) == ("picky", "bfloat16"):
            assert row.error == "RuntimeError: no [bold]kernel[/bold] for bfloat16 second line"
            assert row.speed is row.gmacs_per_second is row.peak_fraction is row.page_faults is None
        else:
            assert row.error is None
            assert len(row.seconds) == 3
            assert (row.page_faults is None) == (page_faults() is None)
            rate = sorted(row.macs_timed * 2 / 1e9 / seconds for seconds in row.seconds)[1]
            assert row.gmacs_per_second == pytest.approx(rate)
            assert row.peak_fraction == pytest.approx(rate / report.peaks[row.dtype])
    assert report.rows[0].speed.ratio == Spread(1, 1, 1)
    assert "no [bold]kernel[/bold] for bfloat16" in rendered(report)


def test_benchmark_of_training():
    made = []

    def step(build, input_size, dtype, compiled):
        made.append((type(build()), input_size, dtype, compiled))
        return lambda: None

    chosen = config("tiny", "picky", dtype=["float32", "bfloat16"], train=True)
    report = benchmark(chosen, build, steps={"bare": step, "psvit": step, "timm": step})
    assert [(row.model, row.step) for row in report.rows[:6]] == [
        (model, step) for model in ("tiny", "picky") for step in ("bare", "psvit", "timm")
    ]
    assert made[3:7] == [(NoBfloat16, (2, 4, 4), "float32", False)] * 3 + [(Tiny, (2, 4, 4), "bfloat16", False)]
    for first, *others in (report.rows[at : at + 3] for at in range(0, 12, 3)):
        assert first.macs == 32 * 7 + 7 * 5
        assert first.macs_timed == 2 * 32 * 7 + 3 * 7 * 5
        assert first.speed.ratio == Spread(1, 1, 1)
        for other in others:  # to the same model's first step, not to the first model's
            ratios = [a / b for a, b in zip(first.seconds, other.seconds, strict=True)]
            assert other.speed.ratio == Spread.of(ratios)
    ours, timms = report.rows[4:6]
    ratio = sorted(b / a for a, b in zip(ours.seconds, timms.seconds, strict=True))[1]
    assert f"picky, float32, eager: psvit {ratio:.3f} [" in rendered(report)
    assert Report.from_dict(report.to_dict()) == report
    with pytest.raises(ValueError, match="hand in the steps"):
        benchmark(chosen, build)


def test_the_dtype_is_that_of_weights_and_images():
    seen = []

    class Spy(Tiny):
        def forward(self, x):
            y = super().forward(x)
            seen.append((self.training, x.dtype, self.head.weight.dtype, y.dtype, torch.is_inference_mode_enabled()))
            return y

    benchmark(config("spy", dtype=["bfloat16"]), lambda name, img_size: Spy().eval())
    assert seen[-1] == (False, *[torch.bfloat16] * 3, True)


def test_compile(monkeypatch):
    def compile_(model, dynamic):
        assert dynamic is False
        if isinstance(model, NoBfloat16):
            raise RuntimeError("graph break")
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    report = benchmark(config("tiny", "picky", mode=["eager", "compile"]), build)
    assert [row.mode for row in report.rows] == ["eager", "eager", "compile", "compile"]
    assert [row.compile_seconds is None for row in report.rows] == [True, True, False, True]
    assert [row.error for row in report.rows] == [None, None, None, "RuntimeError: graph break"]


def test_models_own_input_size():
    model = timm.create_model("deit_tiny_patch16_224", depth=1, img_size=32).eval()
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    row = benchmark(config("vit", img_size=None, rounds=1, warmup=1), lambda name, img_size: model).rows[0]
    assert (row.input_size, row.error) == ((3, 32, 32), None)


# JSON


def test_json_round_trip(tmp_path):
    path = tmp_path / "new" / "report.json"
    report = benchmark(config("broken", "tiny", "picky", dtype=["bfloat16"], output=str(path)), build)
    broken, tiny, picky = report.rows
    assert (broken.error, broken.macs) == ("TypeError: unexpected keyword img_size", None)
    assert tiny.speed.ratio is None
    assert picky.error
    data = json.loads(path.read_text())
    assert data == report.to_dict()
    assert Report.from_dict(data) == report
    assert {"torch", "cpu", "threads", "device"} <= set(data["machine"])
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    with pytest.raises(UserError, match="not known"):
        benchmark(config("tiny", "unknown"), build)


def test_an_output_is_not_overwritten(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("mine")

    def never(name, img_size):
        raise AssertionError("measured before looking at the output")

    with pytest.raises(UserError, match=r"--output .* exists: .*--overwrite$"):
        benchmark(config("tiny", output=str(path)), never)
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match="is a folder"):
        benchmark(config("tiny", output=str(tmp_path), overwrite=True), never)
    benchmark(config("tiny", output=str(path), overwrite=True), build)
    assert "rows" in json.loads(path.read_text())


# Settings and devices


def test_config_name_the_flag():
    refuses(
        lambda changes: config(**{"models": ("tiny",)} | changes),
        (
            ({"models": ()}, "models"),
            ({"dtype": ["int8"]}, "--dtype 'int8' is not one of float32, bfloat16, float16"),
            ({"dtype": ["float32", "float32"]}, "--dtype float32 float32 is not one or more"),
            ({"mode": ["jit"]}, "--mode 'jit' is not one of eager, compile"),
            ({"batch_size": 0}, "--batch-size 0 is not a whole number of at least 1"),
            ({"rounds": 1.5}, "--rounds"),
            ({"threads": True}, "--threads"),
            ({"data": "digits"}, "--data digits needs --train"),
            ({"device": "cpu:1"}, "--device 'cpu:1' is not auto, cpu"),
        ),
    )
