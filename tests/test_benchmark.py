"""psvit benchmark: its counts, its arithmetic, its order and its errors; never how fast anything is."""

import dataclasses
import io
import json
import platform
import subprocess
import sys

import pytest
import timm
import torch
from rich.console import Console
from timm.layers import set_fused_attn, use_fused_attn
from torch import nn

from psvit import UserError
from psvit.errors import one_line
from psvit.measure import benchmark as bench
from psvit.measure import machine
from psvit.measure.benchmark import Report, Row, benchmark, finish, table, write_report
from psvit.measure.machine import keep_freed_memory, matmul_peak, page_faults, resolve_device
from psvit.measure.macs import count_macs, explicit_attention
from psvit.measure.settings import BenchmarkSettings
from psvit.measure.timing import Spread, Stopwatch, interleave, summarise

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """An image of 4 x 4 pixels to `hidden` numbers to 5 classes."""

    def __init__(self, hidden=7, in_chans=2):
        super().__init__()
        self.in_chans = in_chans
        self.hidden = nn.Linear(in_chans * 16, hidden)
        self.head = nn.Linear(hidden, 5)

    def forward(self, x):
        return self.head(self.hidden(x.flatten(1)))


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


def settings(*models, **changes):
    return BenchmarkSettings(
        **{"models": models, "batch_size": 2, "img_size": 4, "rounds": 3, "device": "cpu"} | changes
    )


def rendered(report):
    console = Console(file=io.StringIO(), width=250)
    console.print(table(report))
    return console.file.getvalue()


# Counting


def test_macs_of_deit_tiny():
    C, N = 192, 1 + 14 * 14
    patches = 14 * 14 * (3 * 16 * 16) * C
    projections = N * C * (3 * C) + N * C * C  # query, key and value; output
    attention = 2 * N * N * C  # QK^T and AV, over all heads
    mlp = 2 * N * C * (4 * C)
    head = C * 1000
    by_hand = patches + 12 * (projections + attention + mlp) + head
    assert by_hand == 1_253_683_200
    assert count_macs(lambda: timm.create_model("deit_tiny_patch16_224"), (3, 224, 224)) == by_hand


def test_macs_of_resnet18():
    stem = 112**2 * (3 * 7 * 7) * 64
    stage1 = 4 * 56**2 * (64 * 9) * 64
    # Halving the side and doubling the width leaves the same count in the later stages.
    stage = 28**2 * (64 * 9) * 128 + 3 * 28**2 * (128 * 9) * 128 + 28**2 * 64 * 128
    by_hand = stem + stage1 + 3 * stage + 512 * 1000
    assert by_hand == 1_814_073_344
    assert count_macs(lambda: timm.create_model("resnet18"), (3, 224, 224)) == by_hand


def test_macs_where_torch_trips_over_parameters_as_inputs():
    # pit hands its position embedding to a module; 0.7 G in its paper
    assert count_macs(lambda: timm.create_model("pit_ti_224"), (3, 224, 224)) == pytest.approx(0.70e9, rel=0.01)


class Attention(nn.Module):
    """Torch's own attention, which has a fused path of its own: 6 tokens of 8 channels."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


class Direct(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_macs_of_fused_kernels():
    N, C = 6, 8
    assert count_macs(Direct, (C, 2, 3)) == 2 * N * N * C
    assert count_macs(Attention, (C, 2, 3)) == 4 * N * C * C + 2 * N * N * C


def test_macs_of_the_backward_pass():
    hidden, head = 32 * 7, 7 * 5
    assert count_macs(Tiny, (2, 4, 4)) == hidden + head
    # Backward: both weights, and the input of the head; nobody asks for the image's gradient.
    assert count_macs(Tiny, (2, 4, 4), train=True) == (hidden + head) + (hidden + 2 * head)


@pytest.mark.parametrize("fused", [True, False])
def test_explicit_attention_restores_the_switch(fused):
    before = use_fused_attn()
    try:
        set_fused_attn(fused)
        with explicit_attention():
            assert not use_fused_attn()
            assert not torch.backends.mha.get_fastpath_enabled()
        with pytest.raises(RuntimeError):  # restored after an exception too
            count_macs(Tiny, (3, 5, 5))
        assert use_fused_attn() == fused
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        set_fused_attn(before)


# Arithmetic


def test_spread():
    assert Spread.of([5, 1, 4, 2, 3]) == Spread(2, 3, 4)
    assert Spread.of([1, 2]) == Spread(1.25, 1.5, 1.75)
    assert Spread.of([7]) == Spread(7, 7, 7)


def test_summarise():
    first, second, failed = summarise([[0.5, 1.0, 2.0], [0.25, 0.5, 1.0], None], batch_size=8)
    assert failed is None
    assert first.images_per_second == Spread(6, 8, 12)
    assert first.ms_per_image == Spread(93.75, 125, 187.5)
    assert first.ratio == Spread(1, 1, 1)
    # The machine slowed down fourfold; the ratio of every round is 2 all the same.
    assert second.ratio == Spread(2, 2, 2)


def test_ratio_is_the_median_of_ratios():
    speeds = summarise([[1.0, 2.0, 3.0], [1.0, 4.0, 1.0]], batch_size=1)
    assert speeds[1].ratio.median == 1.0  # of 1, 1/2 and 3; the ratio of the medians would be 2


def test_ratio_without_a_first_model():
    assert summarise([None, [1.0]], batch_size=1)[1].ratio is None


def test_finish():
    row = Row("a", "float32", "eager", macs=500_000_000, macs_timed=1_500_000_000, seconds=(0.5, 0.5))
    failed = Row("b", "float32", "eager", error="no")
    done, same = finish([row, failed], batch_size=4, peak=48.0)
    assert done.gmacs_per_second == 12.0
    assert done.peak_fraction == 0.25
    assert same == failed


def test_interleave_rotates():
    turns = []

    def watch(name):
        return lambda: turns.append(name) or float(len(turns))

    results = interleave([watch(name) for name in "abc"], rounds=4)
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc"
    assert results == [[1, 6, 8, 10], [2, 4, 9, 11], [3, 5, 7, 12]]


def test_interleave_goes_on_without_the_one_that_fails():
    timings = iter([1.0, RuntimeError("out of memory")])

    def failing():
        if isinstance(timing := next(timings), Exception):
            raise timing
        return timing

    failed, fine = interleave([failing, lambda: 2.0], rounds=4)
    assert str(failed) == "out of memory"
    assert fine == [2.0] * 4


class Clock:
    """Only calls take time."""

    def __init__(self, costs):
        self.now, self.costs, self.calls = 0.0, costs, 0

    def call(self):
        self.now += self.costs[min(self.calls, len(self.costs) - 1)]
        self.calls += 1

    def read(self):
        return self.now


def test_stopwatch_repeats_fast_calls():
    clock = Clock([64.0, 0.25])  # the first call compiles
    watch = Stopwatch(clock.call, CPU, min_seconds=1.0, clock=clock.read)
    assert watch.warm(3) == 64.0
    assert watch.repeats == 4
    calls = clock.calls
    assert watch() == 0.25
    assert clock.calls == calls + 4


def test_stopwatch_leaves_slow_calls_alone():
    clock = Clock([2.0])
    watch = Stopwatch(clock.call, CPU, min_seconds=1.0, clock=clock.read)
    watch.warm(1)
    assert watch.repeats == 1


def test_stopwatch_ends_though_the_clock_is_coarse():
    clock = Clock([0.0] * 50 + [0.125])
    watch = Stopwatch(clock.call, CPU, min_seconds=1.0, clock=clock.read)
    watch.warm(1)
    assert watch.repeats * 0.125 >= 1.0


def test_matmul_peak_takes_the_best_shape(monkeypatch):
    class Watch:
        def __init__(self, call, device, min_seconds):
            call()
            self.seconds = iter([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 9.0])

        def warm(self, calls):
            pass

        def __call__(self):
            return next(self.seconds)

    monkeypatch.setattr(machine, "Stopwatch", Watch)
    monkeypatch.setattr(machine, "PEAK_SECONDS", 1e9)
    # The median of the best three, 1, 2 and 3, is 2 seconds.
    assert matmul_peak(CPU, torch.float32) == 32 * 16 * 16 / 1e9 / 2
    monkeypatch.setattr(machine, "PEAK_SECONDS", 3.0)  # the second shape would take 4
    assert matmul_peak(CPU, torch.float32) == 16 * 16 * 16 / 1e9 / 2


def test_one_line():
    assert one_line(RuntimeError("\n a \nb")) == "a b"
    assert one_line(RuntimeError("\n a \nb"), kind=True) == "RuntimeError: a b"
    assert one_line(MemoryError()) == "MemoryError"
    assert len(one_line(RuntimeError("x" * 999))) == 160


# The whole


def test_benchmark():
    told = []
    chosen = settings("tiny", "picky", "tiny", dtype=["float32", "bfloat16"])
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
            assert row.peak_fraction == pytest.approx(row.gmacs_per_second / report.peaks[row.dtype])
    assert report.rows[0].speed.ratio == Spread(1, 1, 1)
    text = rendered(report)
    assert "no [bold]kernel[/bold] for bfloat16" in text
    assert "inference, batch 2, cpu" in text


def test_benchmark_of_training():
    report = benchmark(settings("tiny", dtype=["float32", "bfloat16"], train=True), build)
    for row in report.rows:
        assert row.error is None
        assert row.macs == 32 * 7 + 7 * 5
        assert row.macs_timed == 2 * 32 * 7 + 3 * 7 * 5
    assert "training step" in rendered(report)


def test_training_runs_in_training_mode_and_float32_weights():
    seen = []

    class Spy(Tiny):
        def forward(self, x):
            y = super().forward(x)
            seen.append((self.training, x.dtype, self.head.weight.dtype, y.dtype, y.requires_grad))
            return {"logits": y, "more": (y, y)}

    benchmark(settings("spy", dtype=["bfloat16"], train=True), lambda name, img_size: Spy().eval())
    assert seen[-1] == (True, torch.float32, torch.float32, torch.bfloat16, True)


def test_inference_runs_in_eval_mode_and_low_precision_weights():
    seen = []

    class Spy(Tiny):
        def forward(self, x):
            seen.append((self.training, x.dtype, self.head.weight.dtype, torch.is_inference_mode_enabled()))
            return super().forward(x)

    benchmark(settings("spy", dtype=["bfloat16"]), lambda name, img_size: Spy().eval())
    assert seen[-1] == (False, torch.bfloat16, torch.bfloat16, True)


def test_compile(monkeypatch):
    def compile_(model, dynamic):
        assert dynamic is False
        if isinstance(model, NoBfloat16):
            raise RuntimeError("graph break")
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    report = benchmark(settings("tiny", "picky", mode=["eager", "compile"]), build)
    assert [row.mode for row in report.rows] == ["eager", "eager", "compile", "compile"]
    assert [row.compile_seconds is None for row in report.rows] == [True, True, False, True]
    assert [row.error for row in report.rows] == [None, None, None, "RuntimeError: graph break"]


def test_ten_compiled_models_of_one_class_all_compile():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    with bench.fresh_compiler():
        for hidden in range(1, 11):
            torch.compile(Tiny(hidden), dynamic=False, backend=backend)(torch.zeros(1, 2, 4, 4))
    assert len(compiled) == 10


@pytest.mark.slow
def test_torch_compile():
    (row,) = benchmark(settings("tiny", mode=["compile"]), build).rows
    assert row.error is None
    assert row.compile_seconds > 0
    assert len(row.seconds) == 3


def test_page_faults_are_those_of_one_batch_in_the_median_round(monkeypatch):
    counts = iter([0, 1, 2, 6, 10, 110])  # before and after each of three rounds: 1, 4 and 100
    monkeypatch.setattr(bench, "page_faults", lambda: next(counts))
    assert benchmark(settings("tiny"), build).rows[0].page_faults == 4
    monkeypatch.setattr(bench, "page_faults", lambda: None)
    assert benchmark(settings("tiny"), build).rows[0].page_faults is None


def test_page_faults_of_repeated_calls():
    watch, faults = Stopwatch(lambda: None, CPU, 0.0), []
    watch.repeats = 4
    counts = iter([100, 110])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "page_faults", lambda: next(counts))
        bench._counting_faults(watch, faults)()
    assert faults == [2.5]


def test_models_own_input_size():
    report = benchmark(settings("vit", img_size=None, rounds=1, warmup=1), lambda name, img_size: _small_vit())
    assert report.rows[0].input_size == (3, 32, 32)
    assert report.rows[0].error is None


def _small_vit():
    model = timm.create_model("deit_tiny_patch16_224", depth=1, img_size=32).eval()
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    return model


def test_a_model_that_cannot_be_built():
    report = benchmark(settings("broken", "tiny"), build)
    assert report.rows[0].error == "TypeError: unexpected keyword img_size"
    assert report.rows[0].macs is None
    assert report.rows[1].speed.ratio is None
    assert "unexpected keyword" in rendered(report)


def test_an_unknown_model_stops_it():
    with pytest.raises(UserError, match="not known"):
        benchmark(settings("tiny", "unknown"), build)


def test_threads_are_restored():
    before = torch.get_num_threads()
    assert benchmark(settings("tiny", threads=1), build).machine["threads"] == 1
    assert torch.get_num_threads() == before


# JSON


def test_json_round_trip(tmp_path):
    path = tmp_path / "new" / "report.json"
    report = benchmark(settings("picky", "tiny", "broken", dtype=["bfloat16"], output=str(path)), build)
    data = json.loads(path.read_text())
    assert data == report.to_dict()
    assert Report.from_dict(data) == report
    assert {"torch", "cpu", "threads", "device"} <= set(data["machine"])
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_an_output_is_not_overwritten(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("mine")

    def never(name, img_size):
        raise AssertionError("measured before looking at the output")

    with pytest.raises(UserError, match=r"--output .* exists: .*--overwrite$"):
        benchmark(settings("tiny", output=str(path)), never)
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match="is a folder"):
        benchmark(settings("tiny", output=str(tmp_path), overwrite=True), never)
    benchmark(settings("tiny", output=str(path), overwrite=True), build)
    assert "rows" in json.loads(path.read_text())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    report = Report(settings("tiny"), {"device": "cpu"}, {"float32": float("nan")}, ())
    with pytest.raises(ValueError, match="JSON"):
        write_report(report, path, overwrite=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# Settings and devices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "models"),
        ({"models": "tiny"}, "models 'tiny' is not a list"),
        ({"models": ("a", "")}, "models"),
        ({"dtype": ["int8"]}, "--dtype 'int8' is not one of float32, bfloat16, float16"),
        ({"dtype": ["float32", "float32"]}, "--dtype float32 float32 names one twice"),
        ({"mode": ["jit"]}, "--mode 'jit' is not one of eager, compile"),
        ({"mode": []}, "--mode"),
        ({"batch_size": 0}, "--batch-size 0 is not a positive whole number"),
        ({"img_size": -1}, "--img-size"),
        ({"rounds": 1.5}, "--rounds"),
        ({"warmup": 0}, "--warmup"),
        ({"threads": True}, "--threads"),
        ({"device": "cpu:1"}, "--device 'cpu:1' is not auto, cpu"),
        ({"device": "cuda:"}, "--device"),
        ({"device": "tpu"}, "--device"),
    ],
)
def test_settings_name_the_flag(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**{"models": ("tiny",)} | changes)


def test_settings_are_plain_and_hashable():
    chosen = settings("a", dtype=["float32", "bfloat16"])
    assert chosen.dtype == ("float32", "bfloat16")
    assert hash(chosen) == hash(dataclasses.replace(chosen))


def test_resolve_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cuda:0")
    assert resolve_device("cuda").type == "cuda"
    with pytest.raises(UserError, match=r"--device cuda:1 is not on this machine.*cpu, cuda:0"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == CPU
    with pytest.raises(UserError, match="--device mps"):
        resolve_device("mps")


def test_a_dtype_the_device_does_not_know(monkeypatch):
    def refuse(a, b):
        raise RuntimeError('"addmm_impl_cpu_" not implemented for Half')

    monkeypatch.setattr(torch, "mm", refuse)
    with pytest.raises(UserError, match=r"--dtype float16 does not work on device cpu: RuntimeError.*Half"):
        benchmark(settings("tiny", dtype=["float16"]), build)


def test_the_settings_need_no_torch():
    code = "import psvit.measure.settings, sys; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives freed memory back at once")
def test_freed_memory_is_kept():
    def faults():
        before = page_faults()
        for _ in range(4):
            _ = [torch.zeros(4 * 2**20).fill_(1) for _ in range(6)]  # 6 blocks of 16 MiB, alive at once
        return page_faults() - before

    keep_freed_memory()
    faults()
    # 98,000 when every block is mapped anew; a system short of memory may take some back meanwhile
    assert min(faults() for _ in range(3)) < 1000


@pytest.mark.parametrize("libc", ["", "glibc"])
def test_where_freed_memory_cannot_be_kept_nothing_happens(libc, monkeypatch):
    def refuse(name):
        assert libc == "glibc"
        raise OSError("no library")

    monkeypatch.setattr(machine.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(machine.ctypes, "CDLL", refuse)
    keep_freed_memory()
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: object())
    keep_freed_memory()


def test_a_benchmark_keeps_freed_memory(monkeypatch):
    kept = []
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: kept.append(True))
    with pytest.raises(UserError, match="--device"):
        benchmark(settings("tiny", device="cuda:99"), build)
    assert kept == [True]
