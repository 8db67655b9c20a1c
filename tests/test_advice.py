"""Measures -> advice and words: what may be shared and pooled, what is said of it."""

import shlex
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from small_analyses import THRESHOLDS, row

from psvit import Arch
from psvit.analysis.advice import Advice, AnalyzeConfig, advise, may_pool, may_share, rule, suggested
from psvit.analysis.analyzed_model import open_analyzed
from psvit.analysis.commands import to_try
from psvit.analysis.find_layers import find_layers
from psvit.analysis.verdict import CAVEAT, words
from psvit.arch.model_config import ModelConfig
from psvit.cli import main
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.errors import UserError


def test_what_a_plain_vit_of_timm_is_in_our_words() -> None:
    data = DataConfig("digits")
    opened = open_data(data)
    analyzed = open_analyzed(ModelConfig.of("deit_tiny_patch16_224"), data, opened)
    layers, _ = find_layers(analyzed.model, "deit", torch.zeros(2, 1, 224, 224))
    arch = analyzed.arch(layers)
    assert arch == Arch("A" * 12, (192,), 64, pooling="2d", patch_size=16, class_token=True)
    assert analyzed.weights == "random"
    assert analyzed.img_size == (224, 224)  # its own
    assert analyzed.model.num_classes == 10
    for other in ("beit_base_patch16_224", "vit_small_patch16_36x1_224"):  # relative positions; layer scale
        model = timm.create_model(other, depth=2, in_chans=1, num_classes=10)
        assert replace(analyzed, model=model).arch(layers[:2]) is None


def advice(rows: list[dict[str, Any]], far: float | None = None) -> Advice:
    """`advise`, where layers further apart than one correlate as neighbours do, or by `far`."""
    matrix: list[list[float | None]] = [[1.0] * len(rows) for _ in rows]
    for i in range(len(rows)):
        for j in range(i):
            near = min(rows[k]["before"]["correlation"] for k in range(j + 1, i + 1))
            matrix[i][j] = matrix[j][i] = near if i - j == 1 or far is None else far
    return advise(rows, matrix, THRESHOLDS)


def test_alike_and_cheap_is_shared() -> None:
    found = advice(
        [row(1), row(2, near=0.9), row(3, near=0.9, sharing=0.2), row(4), row(5, near=0.7), row(6, near=0.8)]
    )
    assert found.share == (1, 4, 5)
    assert found.free == (3,)  # cheap, though its map is another
    assert found.genotype == "ASAASS"
    assert found.sources == {1: 0, 4: 3, 5: 3}
    assert found.poolings == ()


def test_what_costs_many_points_is_not_cheap() -> None:
    rows = [row(1, alike=0.9), row(2, near=0.9, alike=0.9), row(3, near=0.1), row(4, near=0.1)]
    for place, kind, top1 in ((0, "pooling", -17.2), (1, "pooling", 3.0), (1, "sharing", -17.2), (2, "sharing", -2.5)):
        rows[place][kind]["top1"] = top1
    found = advice(rows)
    assert (found.share, found.free, found.pool) == ((), (3,), (1,))
    assert advise(rows, [[0.9] * 4] * 4, replace(THRESHOLDS, drop_below=20)).share == (1, 2, 3)


def test_a_run_shares_only_what_is_near_its_first_map() -> None:
    found = advice([row(1), row(2, near=0.9), row(3, near=0.9), row(4, near=0.9)], far=0.5)
    assert found.share == (1, 2, 3)
    assert found.genotype == "ASAS"
    assert found.sources == {1: 0, 3: 2}


def test_pooling_twice_at_the_most_and_apart() -> None:
    found = advice([row(1), *(row(i, alike=0.9, near=0.9) for i in range(2, 10))])
    assert found.pool == (1, 2, 3, 4, 5, 6, 7)  # not behind the last layer
    assert found.poolings == (1, 4)
    assert found.genotype == "AS-ASS-ASSS"
    assert advice([row(1, alike=0.9, pooling=0.2), row(2)]).genotype is None
    small = advice([row(i, alike=0.9, grid=(4, 4)) for i in range(1, 7)])
    assert small.genotype == "A-AAAAA"  # a second pooling would leave a single token
    sequence = advice([row(i, alike=0.9, grid=(4, 4), one_row=True) for i in range(1, 7)])
    assert sequence.genotype == "A-AA-AAA"  # 16 tokens, 8, 4


def test_stages_that_are_there_count() -> None:
    rows = [row(1, alike=0.9), row(2, alike=0.9), row(3, stage=2, alike=0.9), row(4, stage=2, kind="S", near=1.0),
            row(5, stage=2, near=0.9), row(6, stage=2)]  # fmt: skip
    assert [may_share(rows, i) for i in range(6)] == [False, True, False, False, True, True]
    # not behind 2, where tokens are pooled already, nor behind 3, whose map the next layer shares
    assert [may_pool(rows, i) for i in range(6)] == [True, False, False, True, True, False]
    assert advice(rows).genotype == "A-A-ASSA"
    full = [row(1, alike=0.9), row(2, alike=0.9), row(3, stage=2), row(4, stage=3)]
    assert advice(full).genotype is None  # two poolings already
    fewer_heads = [row(1), row(2, near=0.9, heads=4)]
    assert advice(fewer_heads).share == ()


def test_the_suggested_network_keeps_its_widths_and_windows() -> None:
    arch = Arch("AAA-AAA", (32, 64), 16, patch_size=4, sharing="projections", windows=(14, 0))
    new = suggested(arch, "AS-A-ASA")
    assert new == Arch("AS-A-ASA", (32, 32, 64), 16, patch_size=4, windows=(14, 14, 0))
    assert (suggested(arch, "AAA-ASS").widths, suggested(arch, "AAA-ASS").windows) == ((32, 64), (14, 0))


def test_the_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Any] = []
    monkeypatch.setattr("psvit.tasks.classification.classify.train", caught.append)
    monkeypatch.setattr("psvit.cli.keep_freed_memory", lambda **_: None)
    arch = Arch("AS-A", (48, 96), 16, 3.0, "2d", 4, 2, pool_op="avg", windows=(14, 0))
    train, search = to_try(arch, 12_345_678, DataConfig("my photos"), (32, 48))
    assert main(shlex.split(train)[1:]) == 0
    assert caught[0].model.network == arch
    assert (caught[0].data.data, caught[0].data.img_size) == ("my photos", (32, 48))
    assert search == "psvit search --data 'my photos' --img-size 32 48 --budget 12.3M"
    assert to_try(None, None, DataConfig("digits"), None) == ["psvit search --data digits"]


def verdict(rows: list[dict[str, Any]], found: Advice, config: AnalyzeConfig = THRESHOLDS, **more: Any) -> list[str]:
    suggestion = {"macs": None, "cost": None}
    report = {"weights": "trained", "layers": rows, "macs": 10e6, "data": {"images": 256}, "suggestion": suggestion}
    return words({**report, **more}, found, config)


def test_the_verdict_in_words() -> None:
    rows = [row(1, alike=0.95), row(2, near=0.9, sharing=-0.004), row(3, near=0.8, sharing=0.5),
            row(4, near=-0.1, map_entropy=0.99)]  # fmt: skip
    cost = {"loss": 0.25, "error": 0.125, "top1": -3.04}
    said = verdict(rows, advice(rows), suggestion={"macs": 5e6, "cost": cost})
    assert said[0] == (
        "Layer 2 could share: its map correlates 0.90 with that of the layer before, and 0.20 with its own map for "
        "another image. With the map before in its place the loss changes by −0.004 ± 0.010 nats and top-1 by −0.2 "
        "points."
    )
    for line, begins in zip(
        said[1:],
        ("Layer 3 has a map near the one before (0.80), but needs its own.", "Layer 4 depends little on the map",
         "Behind layer 1 tokens could be pooled", "Together this suggests `A-AAA`: 5.00 M MACs for one image instead",
         "With all of it at once, without training, the loss changes by +0.250 ± 0.125 nats", CAVEAT),
        strict=True,
    ):  # fmt: skip
        assert line.startswith(begins)
    assert "by at most 0.1 nats and lowers top-1 by at most 2 points" in rule(THRESHOLDS, True)
    assert "nats" not in rule(THRESHOLDS, False)
    low = [row(1, alike=-0.3), row(2, near=-0.21, sharing=0.5), row(3, near=-0.4, sharing=0.5)]
    assert verdict(low, advice(low))[-1].endswith("By the rule nothing is redundant here, and nothing is suggested.")


@pytest.mark.parametrize(("images", "flag"), [(6, "--validation"), (20, "--images"), (64, None)])
def test_few_images_are_told(images: int, flag: str | None) -> None:
    rows, config = [row(1), row(2)], replace(THRESHOLDS, images=256 if images == 6 else images)
    said = verdict(rows, advice(rows), config, data={"images": images})
    told = f"Only {images} images were measured, and one of them is {100 / images:.1f} points of top-1"
    assert said[0].startswith(told) == (flag is not None)
    assert flag is None or said[0].endswith(f"raise {flag}.")


def test_without_labels_the_likeness_alone_judges() -> None:
    rows = [row(i, near=0.9, alike=0.2) | {"sharing": None, "pooling": None} for i in (1, 2, 3)]
    found = advice(rows)
    assert (found.share, found.free, found.genotype) == ((1, 2), (), "ASS")
    said = verdict(rows, found, weights="pretrained")
    assert said[0].endswith("with its own map for another image.")
    assert said[-2].startswith("Together this suggests `ASS`, as a pattern: psvit does not build this model")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 3}, "--images 3 is not a whole number of at least 4"),
        ({"share_above": 2.0}, "--share-above 2.0 is not a number from -1 to 1"),
        ({"drop_below": -1.0}, "--drop-below -1.0 is not a number from 0 to 100"),
    ],
)
def test_thresholds_have_limits(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AnalyzeConfig(**wrong)
