"""The latency table: what is measured, sums, calibration, validation, the cache; never how fast anything is."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from psvit import Arch, UserError
from psvit.arch.cost import Parts
from psvit.arch.cost import macs as macs_of
from psvit.arch.steps import steps_of
from psvit.latency import parts as latency
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.parts import measure_networks, open_table
from psvit.latency.table import LatencyTable, Validation, fit, validate
from psvit.latency.timing import Stopwatch
from psvit.models.macs import explicit_attention
from psvit.search.budget import Budget, Prices
from psvit.search.feasible_set import FeasibleSet
from psvit.search.space import Space

LIKE = Arch("A", (16,), head_dim=8, patch_size=4)
SPACE = Space(depth=(3, 4), stages=(1, 3), widths=((8, 16), (16, 24), (24,)), like=LIKE, img_size=16, num_classes=5)
QUICK = LatencyConfig(latency_rounds=2)
CPU = torch.device("cpu")
SCALE, OFFSET = 1.25, 0.003  # of the made-up machine's whole networks


def prices_of(table: LatencyTable | None) -> Prices:
    return Prices(SPACE.like, 3, SPACE.img_size, SPACE.in_chans, SPACE.num_classes, table)


def part_seconds() -> dict[str, float]:
    """Made-up seconds, different for every part of the space."""
    names = [name for name, _ in latency.part_calls(SPACE, QUICK, CPU)]
    return {str(name): 0.001 + 0.0001 * place for place, name in enumerate(names)}


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return LatencyTable(part_seconds())


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch, table: LatencyTable) -> list[list[Any]]:
    """A machine whose networks take exactly SCALE times their parts, and OFFSET; what it was asked to race."""
    asked: list[list[Any]] = []

    def race(calls: Any, config: LatencyConfig, device: torch.device) -> dict[Any, float]:
        named = dict(calls)
        asked.append(list(named))
        return {n: SCALE * table.of(n) + OFFSET if isinstance(n, Arch) else table.seconds.get(n, 1.0) for n in named}

    monkeypatch.setattr(latency, "_race", race)
    monkeypatch.setattr(latency.gc, "collect", lambda: 0)  # slow in a process of many tests
    monkeypatch.setattr(latency, "_network_calls", lambda archs, *rest: ((arch, None) for arch in archs))  # unbuilt
    return asked


# What is measured


def test_the_parts_are_those_of_the_space() -> None:
    names = set(part_seconds())
    assert {name for name in names if name.startswith("embed")} == {"embed 8", "embed 16"}
    assert {name for name in names if name.startswith("pool")} == {
        "pool 1 8 16", "pool 1 16 16", "pool 1 8 24", "pool 1 16 24", "pool 2 16 24", "pool 2 24 24",
    }  # fmt: skip
    for kind in ("A", "S", "explicit", "head"):
        expected = {f"{kind} {place}" for place in ("0 8", "0 16", "1 16", "1 24", "2 24")}
        assert {name for name in names if name.startswith(kind)} == expected
    assert len(names) == 2 + 6 + 4 * 5


def test_no_share_no_explicit_map() -> None:
    names = [name for name, _ in latency.part_calls(replace(SPACE, max_share=0), QUICK, CPU)]
    assert not [name for name in names if str(name).startswith(("S", "explicit"))]


@pytest.mark.parametrize("like", [LIKE, replace(LIKE, pooling="1d", class_token=True, pool_conv="depthwise")])
def test_each_part_does_the_products_of_its_place(like: Arch) -> None:
    space = replace(SPACE, like=like, in_chans=2, img_size=(16, 24))
    parts = Parts(like, 3, (16, 24), 2, 5)
    with explicit_attention():
        for name, call in latency.part_calls(space, replace(QUICK, latency_batch=3), CPU):
            kind, *numbers = str(name).split()
            stage, *widths = map(int, numbers) if kind != "embed" else (0, *map(int, numbers))
            if kind in ("embed", "head"):
                expected = getattr(parts, kind)(*widths)[0]
            elif kind == "pool":
                expected = parts.pool(stage, *widths)[0]
            else:
                expected = parts.layer("S" if kind == "S" else "A", stage, *widths)[0]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "inference_mode", torch.no_grad)  # there, torch counts no products
                with FlopCounterMode(display=False) as counter:
                    call()
            assert counter.get_total_flops() == 2 * 3 * expected, name


def test_only_the_shared_map_is_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = torch.nn.functional.scaled_dot_product_attention
    calls: list[Any] = []
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), fused(*a, **k))[1]
    )
    used = set()
    for name, call in latency.part_calls(SPACE, QUICK, CPU):
        calls.clear()
        call()
        if calls:
            used.add(str(name))
    assert used == {name for name in part_seconds() if name.startswith("A ")}


def test_the_dtype_is_that_of_weights_and_images() -> None:
    seen = set()

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.update(arg.dtype for arg in args if isinstance(arg, torch.Tensor))
            return function(*args, **(kwargs or {}))

    for _, call in latency.part_calls(SPACE, replace(QUICK, latency_dtype="bfloat16"), CPU):
        with Spy():
            call()
    assert seen == {torch.bfloat16}


def test_medians_of_turns_by_a_made_up_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    drift = iter([1, 1, 1, 1, 1, 1, *range(1, 100)])

    def clock() -> float:
        return now

    def taking(seconds: float) -> Any:
        def call() -> None:
            nonlocal now
            now += seconds * next(drift)

        return call

    monkeypatch.setattr(latency, "Stopwatch", partial(Stopwatch, clock=clock))
    # three warm calls each; rounds: a 1, b 2 | b 3, a 4 | a 5, b 6
    medians = latency._race([("a", taking(1)), ("b", taking(10))], LatencyConfig(latency_rounds=3), CPU)
    assert medians == {"a": pytest.approx(4), "b": pytest.approx(30)}


def test_what_cannot_run_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MIN_SECONDS", 0.0)
    message = r"latency of pool 1 8 16 cannot be measured on cpu in float32, eager: RuntimeError: out of memory second"
    for fails_at in (1, 6):  # while it warms up, in a round
        calls = count(1)

        def call(fails_at: int = fails_at, calls: Iterator[int] = calls) -> None:
            if next(calls) >= fails_at:
                raise RuntimeError("out of memory\nsecond line")

        with pytest.raises(UserError, match=message):
            latency._race([("pool 1 8 16", call)], LatencyConfig(latency_rounds=9), CPU)


# Sums


def test_a_network_costs_the_sum_of_its_parts(table: LatencyTable) -> None:
    for arch in SPACE.enumerate():
        macs, _, seconds = prices_of(table).of(steps_of(arch))
        assert seconds == pytest.approx(table.of(arch), rel=1e-12)
        assert macs == macs_of(arch, 16, 3, 5)
    s = table.seconds
    expected = [
        s["embed 8"], s["A 0 8"], s["S 0 8"] + s["explicit 0 8"] - s["A 0 8"], s["S 0 8"],
        s["pool 1 8 24"], s["A 1 24"], s["head 1 24"],
    ]  # fmt: skip
    arch = replace(LIKE, genotype="ASS-A", widths=(8, 24))
    assert arch in SPACE
    assert table.of(arch) == pytest.approx(math.fsum(expected), rel=1e-12)


def test_the_first_share_pays_for_the_explicit_map(table: LatencyTable) -> None:
    s = table.seconds
    surcharge = table.layer("S", 1, 24, first_share=True) - table.layer("S", 1, 24, first_share=False)
    assert surcharge == pytest.approx(s["explicit 1 24"] - s["A 1 24"], rel=1e-9)
    pair = [steps_of(replace(LIKE, genotype=g, widths=(8,))) for g in ("AAA", "ASA", "ASS")]
    alone, one, two = (prices_of(table).of(steps)[2] for steps in pair)
    assert one - alone == pytest.approx(s["S 0 8"] + s["explicit 0 8"] - 2 * s["A 0 8"])
    assert two - one == pytest.approx(s["S 0 8"] - s["A 0 8"])


def test_calibration_scales_every_part_and_adds_the_offset_once(table: LatencyTable) -> None:
    changed = replace(table, scale=SCALE, offset=OFFSET)
    for arch in SPACE.enumerate():
        assert changed.of(arch) == pytest.approx(SCALE * table.of(arch) + OFFSET, rel=1e-12)
        assert prices_of(changed).of(steps_of(arch))[2] == pytest.approx(changed.of(arch), rel=1e-12)


def test_a_part_of_another_space(table: LatencyTable) -> None:
    with pytest.raises(UserError, match="no 'embed 32'"):
        table.embed(32)


def test_a_budget_of_latency_holds(table: LatencyTable) -> None:
    costs = sorted(table.of(arch) for arch in SPACE.enumerate())
    limit = (costs[len(costs) // 3] + costs[len(costs) // 3 + 1]) / 2
    feasible = FeasibleSet(SPACE, Budget(latency=limit), prices_of(table))
    assert sorted(table.of(arch) for arch in feasible) == pytest.approx([cost for cost in costs if cost <= limit])
    assert 0 < feasible.count() < SPACE.count()
    assert all(table.of(arch) <= limit for arch in feasible)
    with pytest.raises(UserError, match=r"within 1 ms: the cheapest, .*raise --budget"):
        FeasibleSet(SPACE, Budget(latency=0.001), prices_of(table))


# Calibration and validation


def test_the_fit_recovers_scale_and_offset() -> None:
    sums = [0.001, 0.002, 0.005]
    assert fit(sums, [1.5 * s + 2e-4 for s in sums]) == pytest.approx((1.5, 2e-4))
    assert fit(sums, [0.5 * s - 1e-4 for s in sums]) == pytest.approx((0.5, -1e-4))


def test_the_fit_counts_relative_errors() -> None:
    scale, offset = fit([1.0, 1.0, 2.0], [1.0, 4.0, 4.0])
    # at 1: least ((p - 1) / 1)² + ((p - 4) / 4)², at 2: exact
    at_1 = (1 + 1 / 4) / (1 + 1 / 16)
    assert (scale + offset, 2 * scale + offset) == pytest.approx((at_1, 4.0))


def test_without_a_slope_there_is_only_a_scale() -> None:
    for sums, measured, scale in (([2.0], [3.0], 1.5), ([2.0, 2.0], [3.0, 3.0], 1.5), ([1.0, 1.1], [1.1, 1.0], 0.9866)):
        assert fit(sums, measured) == pytest.approx((scale, 0.0), rel=1e-3)


def test_validation_is_exact(table: LatencyTable) -> None:
    archs = list(SPACE.enumerate())[::30][:4]
    order = sorted(archs, key=table.of)
    predicted = [table.of(arch) for arch in order]
    # the two middle ones change places: 5 of 6 pairs agree; Spearman: 1 - 6 (1 + 1) / (4 * 15)
    measured = [predicted[0] / 1.1, predicted[2], predicted[1], predicted[3] / 0.98]
    found = validate(table, order, measured)
    errors = [0.1, predicted[2] / predicted[1] - 1, 1 - predicted[1] / predicted[2], 0.02]
    mean = sum(measured) / 4
    residual = sum((m - p) ** 2 for m, p in zip(measured, predicted, strict=True))
    assert found.networks == 4
    assert found.kendall == pytest.approx(4 / 6)
    assert found.spearman == pytest.approx(0.8)
    assert found.median_error == pytest.approx(sum(sorted(errors)[1:3]) / 2)
    assert found.worst_error == pytest.approx(max(errors))
    assert found.r2 == pytest.approx(1 - residual / sum((m - mean) ** 2 for m in measured))
    assert [(point.genotype, point.widths) for point in found.points] == [
        (arch.genotype, arch.widths) for arch in order
    ]
    assert [point.measured for point in found.points] == measured
    assert Validation.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_one_network_has_no_rank(table: LatencyTable) -> None:
    arch = next(SPACE.enumerate())
    found = validate(table, [arch], [table.of(arch) / 2])
    assert (found.kendall, found.spearman, found.r2) == (None, None, None)
    assert found.median_error == found.worst_error == pytest.approx(1.0)
    assert "1 other network" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


# The table of a space


def test_open_table_calibrates_and_validates(tmp_path: Path, races: list[list[Any]], table: LatencyTable) -> None:
    said: list[str] = []
    found = open_table(SPACE, QUICK, "cpu", 1, said.append, tmp_path)
    assert dict(found.seconds) == dict(table.seconds)
    assert (found.scale, found.offset) == pytest.approx((SCALE, OFFSET))
    assert found.validation is not None
    assert found.validation.networks == 12
    assert found.validation.kendall == found.validation.spearman == pytest.approx(1.0)
    assert found.validation.worst_error == pytest.approx(0, abs=1e-9)
    assert found.validation.r2 == pytest.approx(1.0)
    (together,) = races  # parts and networks take turns with each other
    networks = {name for name in together if isinstance(name, Arch)}
    assert len(together) == len(table.seconds) + 24
    assert len(networks) == 24
    assert all(arch in SPACE for arch in networks)
    assert len(said) == 2
    assert said[0].startswith(f"measuring the latency of {len(table.seconds)} parts and 24 networks")
    assert "median error 0.0%" in said[1]


def test_a_table_is_measured_once(tmp_path: Path, races: list[list[Any]]) -> None:
    first = open_table(SPACE, QUICK, "cpu", 1, print, tmp_path)
    assert len(races) == 1
    said: list[str] = []
    again = open_table(SPACE, QUICK, CPU, 1, said.append, tmp_path)
    assert again == first
    assert len(races) == 1
    assert len(said) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_broken_table_is_measured_anew(tmp_path: Path, races: list[list[Any]]) -> None:
    first = open_table(SPACE, QUICK, "cpu", 1, print, tmp_path)
    (path,) = tmp_path.iterdir()
    data = json.loads(path.read_text())
    broken = (
        path.read_text()[:-20],
        "",
        json.dumps({**data, "about": {**data["about"], "threads": 7}}),
        json.dumps({**data, "seconds": dict.fromkeys(data["seconds"], "1")}),
        json.dumps({name: value for name, value in data.items() if name != "validation"}),
        "[]",
    )
    for measured, text in enumerate(broken, start=2):
        path.write_text(text)
        said: list[str] = []
        assert open_table(SPACE, QUICK, "cpu", 1, said.append, tmp_path) == first
        assert len(races) == measured, f"taken for a table: {text}"
        assert said[0].startswith(f"the latency table {path} is broken (")
    assert open_table(SPACE, QUICK, "cpu", 1, print, tmp_path) == first
    assert len(races) == measured
    path.unlink()
    path.mkdir()
    (path / "file").touch()
    assert open_table(SPACE, QUICK, "cpu", 1, print, tmp_path) == first


def test_a_cache_that_cannot_be_written(tmp_path: Path, races: list[list[Any]]) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    assert open_table(SPACE, QUICK, "cpu", 1, said.append, tmp_path / "file").validation
    assert said[-1].startswith("the latency table cannot be kept: ")


def test_what_the_figures_depend_on_is_in_the_key(tmp_path: Path, races: list[list[Any]]) -> None:
    def open_(space: Space = SPACE, threads: int = 1, **changes: Any) -> int:
        open_table(space, replace(QUICK, **changes), "cpu", threads, lambda line: None, tmp_path)
        return len(list(tmp_path.iterdir()))

    assert open_() == 1
    assert open_(threads=2) == 2
    assert open_(latency_batch=2) == 3
    assert open_(latency_dtype="bfloat16") == 4
    assert open_(latency_rounds=3) == 5
    assert open_(replace(SPACE, widths=((8, 16), (16,), (24,)))) == 6
    assert open_(replace(SPACE, num_classes=6)) == 7
    assert open_(replace(SPACE, img_size=20)) == 8
    assert open_(replace(SPACE, like=replace(LIKE, mlp_ratio=2))) == 9
    assert open_(replace(SPACE, stages=(1, 2))) == 10
    assert open_(replace(SPACE, depth=4)) == 11  # other networks calibrate
    # another spelling of the same
    assert open_(replace(SPACE, img_size=(16, 16), like=replace(LIKE, genotype="AS", widths=(24,)))) == 11


def test_a_space_of_few_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_race", lambda calls, config, device: {name: 0.01 for name, _ in calls})
    said: list[str] = []
    one = Space(depth=2, stages=2, widths=((8,), (16,)), like=LIKE, img_size=16)
    assert one.count() == 1
    found = open_table(one, QUICK, "cpu", 1, said.append, tmp_path)
    assert found.validation is None
    assert found.of(next(one.enumerate())) == pytest.approx(0.01)
    assert "not validated" in said[-1]
    assert open_table(one, QUICK, "cpu", 1, said.append, tmp_path) == found
    few = replace(one, depth=3)
    assert few.count() == 4  # A-AA, A-AS, AA-A, AS-A
    second = open_table(few, QUICK, "cpu", 1, said.append, tmp_path)
    assert second.validation is not None
    assert second.validation.networks == 2


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device cuda:99"):
        open_table(SPACE, QUICK, "cuda:99", 1, print, tmp_path)
    with pytest.raises(UserError, match="too small for 3 stages"):
        open_table(replace(SPACE, img_size=4), QUICK, "cpu", 1, print, tmp_path)


def test_a_real_measurement(tmp_path: Path) -> None:
    space = Space(depth=3, stages=2, widths=((8,), (8, 16)), like=LIKE, img_size=16, num_classes=5)
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "MIN_SECONDS", 0.001)
        found = open_table(space, QUICK, "cpu", 1, print, tmp_path)
        archs = list(space.enumerate())[:2]
        seconds = measure_networks([*archs, archs[0]], space, QUICK, "cpu", 1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert min(found.seconds.values()) > 0
    assert found.about["threads"] == 1
    assert found.validation is not None
    assert all(math.isfinite(point.predicted) and point.measured > 0 for point in found.validation.points)
    assert len(seconds) == 3
    assert seconds[0] == seconds[2] > 0
