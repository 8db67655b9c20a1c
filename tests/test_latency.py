"""The latency table: what is measured, sums, calibration, validation, the cache; never how fast anything is."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from psvit import Arch, UserError
from psvit.arch.cost import Parts
from psvit.arch.steps import Elements, Step, steps_of
from psvit.latency import measure, parts
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.measure import measure_networks
from psvit.latency.parts import WHOLE, Family, open_table, part_calls
from psvit.latency.table import LatencyTable, Validation, fit, validate
from psvit.latency.timing import Stopwatch
from psvit.models import attention
from psvit.models.build import build_arch
from psvit.models.macs import explicit_attention
from psvit.search.budget import Budget
from psvit.search.feasible_set import FeasibleSet
from psvit.search.space import Space

LIKE = Arch("A", (16,), head_dim=8, patch_size=2)
SPACE = Space(depth=(3, 4), stages=(1, 3), widths=((8, 16), (16, 24), (24,)), stems=("patch", "pool"),
              mlps=("plain", "local"), mlp_ratios=(2.0, 4.0), like=LIKE, img_size=16, num_classes=5)  # fmt: skip
FAMILY = Family(LIKE, SPACE.widths, True, *SPACE.shape, SPACE.elements)
NETWORKS = SPACE.different(WHOLE, random.Random(0))
QUICK = LatencyConfig(latency_rounds=2)
CPU = torch.device("cpu")
SCALE, OFFSET = 1.25, 0.003  # of the made-up machine's whole networks


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    """Made-up seconds, different for every part."""
    names = [str(name) for name, _ in part_calls(FAMILY, QUICK, CPU)]
    return LatencyTable({name: 0.001 + 0.0001 * place for place, name in enumerate(names)})


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch, table: LatencyTable) -> list[list[Any]]:
    """A machine whose networks take exactly SCALE times their parts, and OFFSET; what it was asked to race."""
    asked: list[list[Any]] = []

    def race(calls: Any, config: LatencyConfig, device: torch.device) -> dict[Any, float]:
        named = dict(calls)
        asked.append(list(named))
        return {n: SCALE * table.of(n) + OFFSET if isinstance(n, Arch) else table.seconds.get(n, 1.0) for n in named}

    monkeypatch.setattr(parts, "race", race)
    monkeypatch.setattr(parts, "network_calls", lambda builds, *rest: ((arch, None) for arch in builds))  # unbuilt
    return asked


def opened(cache: Path, family: Family = FAMILY, networks: Any = NETWORKS, threads: int = 1, **changes: Any) -> Any:
    """The table of the family, and what is said."""
    said: list[str] = []
    return open_table(family, networks, replace(QUICK, **changes), "cpu", threads, said.append, cache), said


PLACES = ("0 8", "0 16", "1 16", "1 24", "2 24")
LAYERS = [f"{place} {mlp} {ratio}" for place in PLACES for mlp in ("plain", "local") for ratio in (2, 4)]


# What is measured


def test_the_parts_are_those_of_the_family(table: LatencyTable) -> None:
    names = set(table.seconds)
    assert {name for name in names if name.startswith("embed")} == {
        f"embed {stem} {width}" for stem in ("patch", "pool") for width in (8, 16)
    }
    assert {name for name in names if name.startswith("pool")} == {
        "pool 1 8 16", "pool 1 16 16", "pool 1 8 24", "pool 1 16 24", "pool 2 16 24", "pool 2 24 24",
    }  # fmt: skip
    assert {name for name in names if name.startswith("head")} == {f"head {place}" for place in PLACES}
    for kind in ("A", "S", "explicit"):
        assert {name for name in names if name.startswith(kind)} == {f"{kind} {place}" for place in LAYERS}
    assert len(names) == 4 + 6 + 5 + 3 * 4 * 5
    alone = [str(name) for name, _ in part_calls(replace(FAMILY, shares=False), QUICK, CPU)]
    assert not [name for name in alone if name.startswith(("S", "explicit"))]


@pytest.mark.parametrize("like", [LIKE, replace(LIKE, pooling="1d", class_token=True, pool_conv="depthwise")])
def test_each_part_does_the_products_of_its_place(like: Arch) -> None:
    family, shape = replace(FAMILY, like=like, in_chans=2, img_size=(16, 24)), ((16, 24), 2, 5)
    with explicit_attention():
        for name, call in part_calls(family, replace(QUICK, latency_batch=3), CPU):
            match str(name).split():
                case "embed", stem, width:
                    expected = Parts(replace(like, stem=stem), 3, *shape).embed(int(width))[0]
                case "head", _, width:
                    expected = Parts(like, 3, *shape).head(int(width))[0]
                case "pool", *place:
                    expected = Parts(like, 3, *shape).pool(*map(int, place))[0]
                case kind, stage, width, mlp, ratio:
                    costs = Parts(replace(like, mlp=mlp, mlp_ratio=float(ratio)), 3, *shape)
                    expected = costs.layer("S" if kind == "S" else "A", int(stage), int(width))[0]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "inference_mode", torch.no_grad)  # there, torch counts no products
                with FlopCounterMode(display=False) as counter:
                    call()
            assert counter.get_total_flops() == 2 * 3 * expected, name


def test_only_the_shared_map_is_explicit_and_all_is_of_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = torch.nn.functional.scaled_dot_product_attention
    calls: list[torch.dtype] = []

    def spy(q: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        calls.append(q.dtype)
        return fused(q, *others, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    used = set()
    for name, call in part_calls(FAMILY, replace(QUICK, latency_dtype="bfloat16"), CPU):
        calls.clear()
        call()
        if calls:
            used.add(str(name))
            assert calls == [torch.bfloat16]
    assert used == {f"A {place}" for place in LAYERS}


@pytest.mark.parametrize("like", [LIKE, replace(LIKE, pooling="1d", class_token=True)])
def test_the_table_knows_where_an_explicit_map_loses(
    like: Arch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0

    def takes(function: Any, seconds: Any) -> Any:
        """A function that takes so long by the number of tokens; nothing else takes time."""

        def call(q: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
            nonlocal now
            now += seconds(q.shape[-2])
            return function(q, *others, **options)

        return call

    functional = torch.nn.functional
    fused = takes(functional.scaled_dot_product_attention, lambda tokens: 64.0 * tokens)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", fused)
    monkeypatch.setattr(attention, "attention_map", takes(attention.attention_map, lambda tokens: float(tokens**2)))
    monkeypatch.setattr(measure, "Stopwatch", partial(Stopwatch, clock=lambda: now))
    monkeypatch.setattr(measure, "MIN_SECONDS", 0.0)
    space = replace(SPACE, like=like, img_size=32)  # 256 tokens, 64 and 16, or 257, 129 and 65
    family = Family(like, space.widths, True, *space.shape, space.elements)
    table = open_table(family, space.different(8, random.Random(0)), QUICK, "cpu", 1, print, tmp_path)
    assert (table.scale, table.offset, table.validation.worst_error) == pytest.approx((1, 0, 0), abs=1e-9)
    like = replace(like, widths=(8, 16, 24), mlp_ratio=2.0, genotype="A-A-AA")
    networks = (replace(like, genotype=genotype) for genotype in ("A-A-AA", "A-A-AS", "AA-A-A", "AS-A-A"))
    late_attends, late_shares, early_attends, early_shares = map(table.of, networks)
    assert late_shares < late_attends
    assert early_shares > early_attends


class Fails(nn.Module):
    """A network that runs so often, and then no more."""

    pretrained_cfg: ClassVar = {"input_size": (3, 16, 16)}

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left: Iterator[int] = count(after, -1)

    def forward(self, x: Any) -> None:
        if next(self.left) <= 0:
            raise RuntimeError("out of memory\nsecond line")


def unbuildable() -> Any:
    raise UserError("no such network")


def test_what_cannot_run_is_refused_in_a_line_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MIN_SECONDS", 0.0)  # each timing is one call
    message = r"latency of one cannot be measured on cpu in float32, eager: RuntimeError: out of memory second line"
    for after in (0, 4):  # while it warms up, in a round
        with pytest.raises(UserError, match=message):
            measure_networks({"one": partial(Fails, after)}, LatencyConfig(latency_rounds=9), CPU)
    builds = {"never": unbuildable, "fails": partial(Fails, 4), "runs": partial(Fails, 99)}
    assert list(measure_networks(builds, LatencyConfig(latency_rounds=9), CPU, skip=True)) == ["runs"]


# Sums


def test_a_network_costs_the_sum_of_its_parts(table: LatencyTable) -> None:
    s = table.seconds
    expected = [
        s["embed pool 8"], s["A 0 8 local 2"], s["S 0 8 local 2"] + s["explicit 0 8 local 2"] - s["A 0 8 local 2"],
        s["S 0 8 local 2"], s["pool 1 8 24"], s["A 1 24 local 2"], s["head 1 24"],
    ]  # fmt: skip
    arch = replace(LIKE, genotype="ASS-A", widths=(8, 24), stem="pool", mlp="local", mlp_ratio=2.0)
    assert arch in SPACE
    assert table.of(arch) == pytest.approx(math.fsum(expected), rel=1e-12)
    changed = replace(table, scale=SCALE, offset=OFFSET)
    for arch in SPACE.enumerate():
        assert changed.of(arch) == pytest.approx(SCALE * table.of(arch) + OFFSET, rel=1e-12)
        assert SPACE.prices(changed).of(steps_of(arch))[2] == pytest.approx(changed.of(arch), rel=1e-12)
    with pytest.raises(UserError, match="no 'embed patch 32'"):
        table.embed(Step("A", 0, 0, 32, 0))


def test_a_budget_of_latency_holds(table: LatencyTable) -> None:
    costs = sorted(table.of(arch) for arch in SPACE.enumerate())
    limit = (costs[len(costs) // 3] + costs[len(costs) // 3 + 1]) / 2
    feasible = FeasibleSet(SPACE, Budget(latency=limit), SPACE.prices(table))
    assert sorted(table.of(arch) for arch in feasible) == pytest.approx([cost for cost in costs if cost <= limit])
    with pytest.raises(UserError, match=r"within 1 ms: the cheapest, .*raise --budget"):
        FeasibleSet(SPACE, Budget(latency=0.001), SPACE.prices(table))


# Calibration and validation


@pytest.mark.parametrize(
    ("sums", "measured", "expected"),
    [
        ([0.001, 0.002, 0.005], [0.0017, 0.0032, 0.0077], (1.5, 2e-4)),
        ([2.0], [3.0], (1.5, 0.0)),
        ([2.0, 2.0], [3.0, 3.0], (1.5, 0.0)),
        ([1.0, 1.1], [1.1, 1.0], (0.9866, 0.0)),  # against the sums: no offset
        # relative errors: at 2 exact, at 1 the least of ((p - 1) / 1)² + ((p - 4) / 4)², p = 20 / 17
        ([1.0, 1.0, 2.0], [1.0, 4.0, 4.0], (48 / 17, -28 / 17)),
    ],
)
def test_the_fit(sums: list[float], measured: list[float], expected: tuple[float, float]) -> None:
    assert fit(sums, measured) == pytest.approx(expected, rel=1e-3)


def test_validation_is_exact(table: LatencyTable) -> None:
    order = sorted(list(SPACE.enumerate())[::30][:4], key=table.of)
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
    assert [point.measured for point in found.points] == measured
    assert Validation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    one = validate(table, order[:1], [predicted[0] / 2])
    assert (one.kendall, one.spearman, one.r2, one.worst_error) == (None, None, None, pytest.approx(1.0))


# The table and its cache


def test_open_table_calibrates_and_validates(tmp_path: Path, races: list[list[Any]], table: LatencyTable) -> None:
    found, said = opened(tmp_path)
    assert dict(found.seconds) == dict(table.seconds)
    assert (found.scale, found.offset) == pytest.approx((SCALE, OFFSET))
    assert found.validation.networks == 12
    assert found.validation.kendall == pytest.approx(1.0)
    assert found.validation.worst_error == pytest.approx(0, abs=1e-9)
    assert races == [[*table.seconds, *NETWORKS]], "parts and networks take turns with each other"
    assert len(said) == 2
    assert said[0].startswith(f"measuring the latency of {len(table.seconds)} parts and 24 networks")
    assert opened(tmp_path)[0] == found
    assert len(races) == 1, "measured once"
    few, said = opened(tmp_path, networks=NETWORKS[:1])
    assert few.validation is None
    assert "not validated" in said[-1]


def test_a_broken_table_is_measured_anew(tmp_path: Path, races: list[list[Any]]) -> None:
    first, _ = opened(tmp_path)
    (path,) = tmp_path.iterdir()
    data = json.loads(path.read_text())
    broken = (
        path.read_text()[:-20],
        json.dumps({**data, "seconds": dict.fromkeys(data["seconds"], "1")}),
        "[]",
    )
    for measured, text in enumerate(broken, start=2):
        path.write_text(text)
        table, said = opened(tmp_path)
        assert table == first
        assert len(races) == measured, f"taken for a table: {text}"
        assert said[0].startswith(f"the latency table {path} is broken (")
    (tmp_path / "file").touch()
    assert opened(tmp_path / "file")[1][-1].startswith("the latency table cannot be kept: ")


def test_all_that_the_table_depends_on_is_in_its_key(tmp_path: Path, races: list[list[Any]]) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"threads": 2}, {"latency_batch": 2}, {"latency_dtype": "bfloat16"}, {"latency_rounds": 3},
        {"family": replace(FAMILY, num_classes=6)}, {"family": replace(FAMILY, img_size=20)},
        {"family": replace(FAMILY, elements=(*FAMILY.elements, Elements()))}, {"networks": NETWORKS[:12]},
    ]  # fmt: skip
    for number, change in enumerate(changes, start=1):
        opened(tmp_path, **change)
        assert len(list(tmp_path.iterdir())) == number, change
    opened(tmp_path, family=replace(FAMILY, img_size=(16, 16), like=replace(LIKE, genotype="AS")))  # the same
    assert len(list(tmp_path.iterdir())) == len(changes)
    with pytest.raises(UserError, match="--device cuda:99"):
        open_table(FAMILY, NETWORKS, QUICK, "cuda:99", 1, print, tmp_path)


def test_a_real_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MIN_SECONDS", 0.001)
    family, archs = (
        replace(FAMILY, widths=((8,), (8, 16))),
        [replace(LIKE, genotype=g, widths=(8, 16)) for g in ("AS-A", "A-AA")],
    )
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    found, _ = opened(tmp_path, family, archs)
    builds = {arch: partial(build_arch, arch, 16, num_classes=5) for arch in archs}
    seconds = measure_networks(builds, QUICK, "cpu", 1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert min(found.seconds.values()) > 0
    assert found.about["threads"] == 1
    assert all(math.isfinite(point.predicted) and point.measured > 0 for point in found.validation.points)
    assert list(seconds) == archs
    assert min(seconds.values()) > 0
