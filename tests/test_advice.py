"""Measures -> advice and words: what may be shared and pooled, what is said of it."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_analyses import THRESHOLDS, row
from tiny import read

from psvit import Arch
from psvit.analysis.advice import Advice, AnalyzeConfig, advise, may_pool, may_share, rule, suggested
from psvit.analysis.analysis_page import (
    OF_MAPS,
    OF_TOKENS,
    SHORT,
    layer_legend,
    layer_table,
    page,
)
from psvit.analysis.maps import find_layers
from psvit.analysis.subject import open_subject
from psvit.analysis.verdict import CAVEAT, search_command, train_command, words
from psvit.arch.model_config import ModelConfig
from psvit.cli import main
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.errors import UserError


def test_what_a_plain_vit_of_timm_is_in_our_words() -> None:
    data = DataConfig("digits")
    opened = open_data(data)
    subject = open_subject(ModelConfig.of("deit_tiny_patch16_224"), data, opened)
    layers, _ = find_layers(subject.model, "deit", torch.zeros(2, 1, 224, 224))
    arch = subject.arch(layers)
    assert arch == Arch("A" * 12, (192,), 64, pooling="2d", patch_size=16, class_token=True)
    assert subject.weights == "random"
    assert subject.img_size == (224, 224)  # its own
    assert subject.model.num_classes == 10
    for other in ("beit_base_patch16_224", "vit_small_patch16_36x1_224"):  # relative positions; layer scale
        model = timm.create_model(other, depth=2, in_chans=1, num_classes=10)
        assert replace(subject, model=model).arch(layers[:2]) is None


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


def test_the_suggested_network_keeps_its_widths() -> None:
    arch = Arch("AAA-AAA", (32, 64), 16, patch_size=4, sharing="projections")
    new = suggested(arch, "AS-A-ASA")
    assert new == Arch("AS-A-ASA", (32, 32, 64), 16, patch_size=4)
    assert suggested(arch, "AAA-ASS").widths == (32, 64)


def test_the_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    caught: list[Any] = []
    monkeypatch.setattr("psvit.tasks.classification.classify.train", caught.append)
    monkeypatch.setattr("psvit.cli.keep_freed_memory", lambda: None)
    arch = Arch("AS-A", (48, 96), 16, 3.0, "2d", 4, 2, True, pool_op="avg")
    command = train_command(arch, {"data": "my photos", "data_dir": None, "img_size": [32, 48]})
    assert main(shlex.split(command)[1:]) == 0
    config = caught[0]
    assert config.model.network == arch
    assert (config.data.data, config.data.img_size) == ("my photos", (32, 48))
    assert (
        search_command({"data": "digits", "img_size": None}, 12_345_678) == "psvit search --data digits --budget 12.3M"
    )
    assert search_command({"data": "digits"}, 1.255e9) == "psvit search --data digits --budget 1.25G"
    assert search_command({"data": "digits"}, None) == "psvit search --data digits"


def test_the_verdict_in_words() -> None:
    rows = [
        row(1, alike=0.95),
        row(2, near=0.9, sharing=-0.004),
        row(3, near=0.8, sharing=0.5),
        row(4, map_entropy=0.99),
    ]
    found = advice(rows)
    report = {
        "weights": "trained", "layers": rows, "macs": 10e6, "data": {"images": 256},
        "suggestion": {"macs": 5e6, "cost": {"loss": 0.25, "error": 0.125, "top1": -3.04}},
    }  # fmt: skip
    said = words(report, found, THRESHOLDS)
    assert said == [
        "Layer 2 could share: its map correlates 0.90 with that of layer 1, and 0.20 with its own map for another "
        "image. With the map before in its place the loss changes by −0.004 ± 0.010 nats and top-1 by −0.2 points.",
        "Layer 3 has a map near the one before (0.80), but cannot do without one of its own. With the map before in "
        "its place the loss changes by +0.500 ± 0.010 nats and top-1 by −0.2 points.",
        "Layer 4 depends little on the map: it is not like the map before, but taking that one changes the loss by "
        "0.000 nats and top-1 by −0.2 points only. It is nearly uniform there, so that its shape matters little. To "
        "share there may cost little, but not because maps are alike; the suggestion leaves it out.",
        "Behind layer 1 tokens could be pooled: neighbours have a mean cosine of 0.95 (all pairs 0.10), and averaging "
        "keeps 50% of the variance. With them averaged the loss changes by 0.000 ± 0.010 nats and top-1 by 0.0 points.",
        "Together this suggests `A-AAA`: 5.00 M MACs for one image instead of 10.00 M, or 0.50 of them.",
        "With all of it at once, and nothing trained, the loss changes by +0.250 ± 0.125 nats and top-1 by −3.0 "
        "points: more together than the rule lets a single change cost.",
        CAVEAT,
    ]
    assert "by at most 0.1 nats and lowers top-1 by at most 2 points" in rule(THRESHOLDS, True)
    assert "nats" not in rule(THRESHOLDS, False)


def test_numbers_below_0_have_a_minus_sign() -> None:
    rows = [row(1, alike=-0.3), row(2, near=-0.21, sharing=0.5), row(3, near=-0.4, sharing=0.5)]
    report = {"weights": "trained", "layers": rows, "macs": 1e6, "data": {"images": 256}}
    said = " ".join(words(report, advice(rows), THRESHOLDS))
    assert "the highest correlation is −0.210, of layer 2" in said
    assert not re.search(r"(?<!top)-\d", said)
    rows[1]["before"]["correlation"] = rows[2]["before"]["correlation"] = -0.2
    said = " ".join(words(report, advise(rows, [[-0.2] * 3] * 3, replace(THRESHOLDS, share_above=-0.5)), THRESHOLDS))
    assert not re.search(r"(?<!top)-\d", said)


def test_few_images_are_told() -> None:
    for images, flag in ((6, "--validation"), (20, "--images"), (64, None)):
        rows = [row(1), row(2)]
        report = {"weights": "trained", "layers": rows, "macs": 1e6, "data": {"images": images}}
        said = words(report, advice(rows), replace(THRESHOLDS, images=256 if images == 6 else images))
        told = f"Only {images} images were measured, and one of them is {100 / images:.1f} points of top-1"
        assert said[0].startswith(told) == (flag is not None), images
        assert flag is None or said[0].endswith(f"raise {flag}."), images


def test_a_page_of_an_analysis_before_there_were_windows() -> None:
    report = read(Path(__file__).parent.parent / "docs" / "results" / "redundancy-psvit.json")
    for layer in report["layers"]:
        layer.pop("window", None)
    before = page(report, {}, None).html()
    for layer in report["layers"]:
        layer["window"] = None
    assert page(report, {}, None).html() == before


def test_the_layers_stand_in_two_tables() -> None:
    rows = read(Path(__file__).parent.parent / "docs" / "results" / "redundancy-deit.json")
    every, maps, tokens, short = (layer_table(rows, columns)[0] for columns in (None, OF_MAPS, OF_TOKENS, SHORT))
    assert set(maps) | set(tokens) == set(every)
    assert set(maps) & set(tokens) == {"layer", "tokens"}
    assert set(short) < set(every)
    for columns in (OF_MAPS, OF_TOKENS):
        said = layer_legend(rows, columns)
        for name in every:
            assert (f"{name.removesuffix(' bits')}:" in said or f"{name}, " in said) == (
                name in columns and name not in ("layer", "tokens"))  # fmt: skip


def test_without_labels_the_likeness_alone_judges() -> None:
    rows = [row(i, near=0.9, alike=0.2, sharing=0, pooling=0) | {"sharing": None, "pooling": None} for i in (1, 2, 3)]
    found = advice(rows)
    assert (found.share, found.free, found.genotype) == ((1, 2), (), "ASS")
    report = {
        "weights": "pretrained",
        "layers": rows,
        "macs": 1e6,
        "data": {"images": 256},
        "suggestion": {"macs": None, "cost": None},
    }
    said = words(report, found, THRESHOLDS)
    assert said[0].endswith("with its own map for another image.")
    assert said[-2].startswith("Together this suggests `ASS`, as a pattern: this model is none that psvit builds")


def test_many_layers_are_told_at_once() -> None:
    rows = [row(i, near=0.7 + i / 100, alike=0.8 + i / 100, sharing=i / 1000, pooling=-i / 1000) for i in range(1, 7)]
    report = {"weights": "trained", "layers": rows, "macs": 1e6, "data": {"images": 256},
              "suggestion": {"macs": 1e5, "cost": None}}  # fmt: skip
    said = words(report, advice(rows), THRESHOLDS)
    assert said[:2] == [
        "Layers 2, 3, 4, 5 and 6 could share: their maps correlate 0.72 to 0.76 with that of the layers before them, "
        "and 0.20 with their own maps for another image. With the map before in its place the loss changes by +0.002 "
        "to +0.006 nats and top-1 by −0.2 points, one layer at a time.",
        "Behind layers 1, 2, 3, 4 and 5 tokens could be pooled: neighbours have a mean cosine of 0.81 to 0.85 (all "
        "pairs 0.10), and averaging keeps 50% of the variance. With them averaged the loss changes by −0.005 to −0.001 "
        "nats and top-1 by 0.0 points, one layer at a time.",
    ]
    assert len(said) == 4


def test_thresholds_have_limits() -> None:
    for wrong, message in (
        ({"images": 3}, "--images 3 is not a whole number of at least 4"),
        ({"batch_size": 0}, "--batch-size 0 is not"),
        ({"share_above": 2.0}, "--share-above 2.0 is not a number from -1 to 1"),
        ({"pool_above": math.nan}, "--pool-above nan is not a number from -1 to 1"),
        ({"loss_below": math.inf}, "--loss-below inf is not a number of at least 0"),
        ({"drop_below": -1.0}, "--drop-below -1.0 is not a number from 0 to 100"),
    ):
        with pytest.raises(UserError, match=message):
            AnalyzeConfig(**wrong)
