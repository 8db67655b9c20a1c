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
    report = benchmark(config("tiny", dtype=["float32", "bfloat16"], train=True), build)
    for row in report.rows:
        assert row.error is None
        assert row.macs == 32 * 7 + 7 * 5
        assert row.macs_timed == 2 * 32 * 7 + 3 * 7 * 5
    assert "training step" in rendered(report)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (True, (True, torch.float32, torch.float32, torch.bfloat16, True, False)),
        (False, (False, torch.bfloat16, torch.bfloat16, torch.bfloat16, False, True)),
    ],
)
def test_modes_and_dtypes(train, expected):
    seen = []

    class Spy(Tiny):
        def forward(self, x):
            y = super().forward(x)
            dtypes = (x.dtype, self.head.weight.dtype, y.dtype)
            seen.append((self.training, *dtypes, y.requires_grad, torch.is_inference_mode_enabled()))
            return {"logits": y, "more": (y, y)} if train else y

    benchmark(config("spy", dtype=["bfloat16"], train=train), lambda name, img_size: Spy().eval())
    assert seen[-1] == expected


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
            ({"device": "cpu:1"}, "--device 'cpu:1' is not auto, cpu"),
        ),
    )
