"""psvit analyze: a model and images -> numbers, figures, a page; the advice; what is refused."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny import CPU, DATA, DIGITS, MACHINE, TRAIN, Cli, image_folder, read

from psvit import Arch, PSViT, cost
from psvit.cli import main
from psvit.errors import UserError
from psvit.measure.macs import explicit_attention
from psvit.study.advice import Advice, AnalyzeSettings, advise, may_pool, may_share, rule, suggested
from psvit.study.analysis_page import (
    CAPTIONS,
    FILES,
    OF_MAPS,
    OF_TOKENS,
    SHORT,
    layer_legend,
    layer_table,
    page,
)
from psvit.study.analyze import analyze, measure
from psvit.study.maps import find_layers
from psvit.study.measures import guesses
from psvit.study.subject import Subject, open_subject
from psvit.study.verdict import CAVEAT, GUESSING, NO_PLACE, RANDOM, search_command, train_command, words
from psvit.training.data import open_data
from psvit.training.loading import Batch, ImageSplit, eval_batches
from psvit.training.recipes import ModelSettings
from psvit.training.settings import DataSettings

HOLDOUT = [*DATA[:2], "--holdout", "0.02", "--device", "cpu", "--threads", "1", "--images", "20"]
THRESHOLDS = AnalyzeSettings()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a plain network (plain/best) and of one that shares and pools (psvit/best).

    So short a training leaves them guessing: their heads are fitted to the hold-out's digits.
    """
    folder = tmp_path_factory.mktemp("trained")
    plain = ["train", "--model", "AAA", "--widths", "16", "--head-dim", "8", "--patch-size", "2", *DATA, *MACHINE,
             "--batch-size", "16", "--epochs", "2", "--lr", "0.003"]  # fmt: skip
    assert main([*plain, "--output", str(folder / "plain")]) == 0
    assert main([*TRAIN, "--output", str(folder / "psvit")]) == 0
    for name in ("plain", "psvit"):
        fit_head(folder / name / "best")
    return folder


def fit_head(folder: Path) -> None:
    """Ridge regression of the classes of the hold-out's images."""
    data = DataSettings("digits", holdout=0.02)
    opened = open_data(data)
    subject = open_subject(ModelSettings(str(folder)), data, opened)
    with torch.inference_mode():
        (batch,) = eval_batches(ImageSplit(opened.holdout, subject.transform), batch_size=64)
        x = subject.model.forward_head(subject.model.forward_features(batch.images), pre_logits=True)
        mean = x.mean(dim=0)
        away, classes = x - mean, torch.nn.functional.one_hot(batch.labels, 10) - 0.1
        spread = away.T @ away
        weight = 4 * torch.linalg.solve(spread + 1e-3 * spread.trace() / len(spread) * torch.eye(len(spread)),
                                        away.T @ classes).T  # fmt: skip
    weights = load_file(folder / "model.safetensors")
    weights |= {"head.weight": weight.contiguous(), "head.bias": -weight @ mean}
    save_file(weights, folder / "model.safetensors")


# the command


def test_a_plain_network(trained: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    said = cli.ok("analyze", trained / "plain" / "best", *HOLDOUT, "--output", out, "--share-above", "-1",
                  "--pool-above", "-1", "--loss-below", "1000", "--drop-below", "100")  # fmt: skip
    report = read(out / "redundancy.json")
    assert report["data"] == {"name": "digits", "split": "holdout", "images": 20, "img_size": [8, 8], "in_chans": 1,
                              "classes": 10}  # fmt: skip
    assert report["weights"] == "trained"
    assert report["macs"] == cost.macs(Arch("AAA", (16,), 8, patch_size=2), 8, 1, 10)
    assert len(report["layers"]) == len(report["cka"]) == 3
    for place, row in enumerate(report["layers"]):
        assert row["tokens"] == 16
        assert row["grid"] == [4, 4]
        assert report["maps"]["matched"]["correlation"][place][place] == pytest.approx(1)
        assert report["maps"]["matched"]["divergence"][place][place] == 0
        assert report["cka"][place][place] == pytest.approx(1)
        assert 1 <= row["tokens_are"]["rank"] <= 16
        assert len(row["distance"]["heads"]) == 2
    assert [row["sharing"] is not None for row in report["layers"]] == [False, True, True]
    assert [row["pooling"] is not None for row in report["layers"]] == [True, True, False]
    # with thresholds that everything meets: pooled at once, again a third of the depth behind; nothing left to share
    suggestion = report["suggestion"]
    assert suggestion["share"] == [2, 3]
    assert suggestion["pool_behind"] == [1, 2]
    assert suggestion["genotype"] == "A-AS"  # a second pooling would leave one token
    assert suggestion["macs"] == cost.macs(Arch("A-AS", (16, 16), 8, patch_size=2), 8, 1, 10)
    assert suggestion["cost"]["loss"] != 0
    assert "Layer 2 could share" in said
    assert "Behind layer 1 tokens could be pooled" in said
    assert f"next      {suggestion['commands'][0]}\n" in said
    assert suggestion["commands"][0] == (
        "psvit train --model A-AS --widths 16 16 --head-dim 8 --pooling 2d --patch-size 2 --data digits"
    )
    assert report["verdict"][-1] == CAVEAT
    page = (out / "report.html").read_text()
    assert page.count("<svg") == len(CAPTIONS) + 2  # and the diagrams: as it is, and as suggested
    assert "<script" not in page
    for name in FILES:
        assert (out / name).stat().st_size > 1000, name
    for svg in (out / "figures").glob("*.svg"):
        text = svg.read_text()
        assert "var(" not in text
        assert "currentColor" not in text
        assert "<image" not in text  # a picture in a picture is blocked in the page


def test_nothing_redundant_is_said(trained: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli.ok("analyze", trained / "plain" / "best", *HOLDOUT, "--output", tmp_path / "out", "--share-above", "1",
                  "--pool-above", "1")  # fmt: skip
    report = read(tmp_path / "out" / "redundancy.json")
    assert report["suggestion"]["genotype"] is None
    assert report["suggestion"]["commands"] == []
    assert "By the rule nothing is redundant here, and nothing is suggested." in said
    assert "No layer's map is near that of the layer before it" in said
    assert "Nowhere are neighbouring tokens alike enough" in said


def test_what_shares_already_is_no_finding(trained: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    said = cli.ok("analyze", trained / "psvit" / "best", *HOLDOUT, "--output", out, "--share-above", "0")
    report = read(out / "redundancy.json")
    assert [row["kind"] for row in report["layers"]] == ["A", "S", "A"]
    before = report["layers"][1]["before"]
    assert before == {
        "correlation": pytest.approx(1),
        "cosine": pytest.approx(1),
        "divergence": 0,
        "by_construction": True,
    }
    assert report["maps"]["matched"]["correlation"][0][2] is None
    assert report["maps"]["averaged"]["cosine"][0][2] is None
    assert report["suggestion"]["share"] == []
    assert "Layer 2 shares a map already: the correlation of 1 with the map before is by construction" in said
    assert NO_PLACE in said
    assert not (out / "figures" / "sharing.svg").exists()  # nothing to draw


def test_the_same_seed_gives_the_same_numbers(trained: Path, tmp_path: Path, cli: Cli) -> None:
    call = ["analyze", trained / "psvit" / "best", *HOLDOUT, "--json"]
    one, other = (cli.ok(*call, "--output", tmp_path / name) for name in "ab")
    assert one == other
    assert json.loads(one) == read(tmp_path / "a" / "redundancy.json")
    assert (tmp_path / "a" / "redundancy.json").read_bytes() == (tmp_path / "b" / "redundancy.json").read_bytes()
    assert (tmp_path / "a" / "report.html").read_bytes() == (tmp_path / "b" / "report.html").read_bytes()
    drawn = cli.ok(
        *call, "--seed", "1", "--split-seed", "0", "--output", tmp_path / "c"
    )  # other images of the hold-out
    assert json.loads(drawn)["layers"] != json.loads(one)["layers"]


def test_the_test_split_is_not_read(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from psvit.training import sources

    read_from: set[str] = set()
    image = sources.ArraySource.image
    monkeypatch.setattr(sources.ArraySource, "image",
                        lambda self, i: read_from.add(self.title) or image(self, i))  # fmt: skip
    report = analyze(ModelSettings(str(trained / "psvit" / "best")), DIGITS, CPU,
                     replace(THRESHOLDS, images=8, output=str(tmp_path)), say=lambda line: None)  # fmt: skip
    assert read_from == {"digits train"}
    assert report["data"]["images"] == 8


def test_random_weights_suggest_nothing(tmp_path: Path, cli: Cli) -> None:
    said = cli.ok("analyze", "AAS", "--patch-size", "2", *HOLDOUT, "--output", tmp_path / "out")
    report = read(tmp_path / "out" / "redundancy.json")
    assert report["weights"] == "random"
    assert report["verdict"] == [RANDOM]
    assert report["no_changes_because"] == "the weights are random"
    assert all(row["sharing"] is row["pooling"] is None for row in report["layers"])
    assert RANDOM in said
    assert "the weights are random" in (tmp_path / "out" / "report.html").read_text()


def test_a_network_that_guesses_suggests_nothing(trained: Path, tmp_path: Path, cli: Cli) -> None:
    folder = shutil.copytree(trained / "plain" / "best", tmp_path / "best")
    weights = load_file(folder / "model.safetensors")
    weights["head.weight"].zero_()  # one class is named, whatever there is to see
    save_file(weights, folder / "model.safetensors")
    said = cli.ok("analyze", folder, *HOLDOUT, "--output", tmp_path / "out", "--share-above", "-1", "--pool-above",
                  "-1", "--loss-below", "9", "--drop-below", "100")  # fmt: skip
    report = read(tmp_path / "out" / "redundancy.json")
    assert report["top1"] == pytest.approx(10)
    assert report["no_changes_because"] == (
        "a top-1 of 10.0 % is hardly better than guessing, since 10.0 % of the 20 images are of one class"
    )
    assert all(row["sharing"] is row["pooling"] is None for row in report["layers"])
    assert (report["suggestion"]["genotype"], report["suggestion"]["share"], report["rule"]) == (None, [], None)
    assert report["verdict"][0].startswith("Only 20 images were measured")
    assert report["verdict"][1:] == [GUESSING]
    assert GUESSING in said


@pytest.mark.parametrize(
    ("top1", "guess", "images", "guessing"),
    [
        (69.5, 50, 256, False),  # 6 standard errors above a coin's
        (56.2, 50, 256, True),  # 2 are 6.25 points
        (56.3, 50, 256, False),
        (69.5, 66, 256, True),  # always the one class of two thirds of the images
        (14.0, 10, 256, False),
        (60.0, 50, 20, True),
        (99.9, 100, 256, True),
    ],
)
def test_what_guessing_is(top1: float, guess: float, images: int, guessing: bool) -> None:
    assert guesses(top1, guess, images) == guessing


@pytest.mark.parametrize(("right", "guessing"), [(28, False), (24, True)])
def test_two_classes_are_told_apart_or_guessed(right: int, guessing: bool) -> None:
    torch.manual_seed(0)
    with explicit_attention():
        model = PSViT(Arch("AA", (8,), head_dim=8, patch_size=4), 8, in_chans=1, num_classes=2).eval()
    images = torch.randn(40, 1, 8, 8)
    with torch.no_grad():
        apart = model(images).diff(dim=1).squeeze(1)
        model.head.bias[0] += apart.median() + 1e-6  # names both classes, each for 20 images
        labels = model(images).argmax(dim=1)
    for name in (0, 1):
        labels[(labels == name).nonzero()[right // 2 :, 0]] += 2  # those that it is to miss
    labels = torch.where(labels > 1, 3 - labels, labels)
    subject = Subject(model, "trained", lambda image: image, 1, (8, 8), "")
    layers, _ = find_layers(model, "it", images)
    found = measure(subject, layers, lambda: [Batch(images, labels, ())], torch.device("cpu"), lambda line: None)
    assert (found.second.top1, found.second.guess) == (pytest.approx(100 * right / 40), 50)
    assert found.guesses == bool(found.unlabelled) == guessing
    assert (found.rows[1]["sharing"] is None) == guessing


def test_other_classes_cost_nothing_that_is_told(trained: Path, tmp_path: Path, cli: Cli) -> None:
    photos = image_folder(tmp_path / "photos", each=8)
    said = cli.refused("analyze", trained / "psvit" / "best", "--data", photos, "--output", tmp_path / "a")
    assert "the hold-out has 2 images" in said
    cli.ok("analyze", trained / "psvit" / "best", "--data", photos, "--holdout", "0.5", "--workers", "0", "--output",
           tmp_path / "a", "--device", "cpu", "--threads", "1")  # fmt: skip
    report = read(tmp_path / "a" / "redundancy.json")
    assert "knows 10 classes" in report["no_changes_because"]
    assert report["loss"] is report["top1"] is None
    assert report["data"]["img_size"] == [8, 8]  # the checkpoint's own size


# what is refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["resnet18"], "resnet18 has no attention maps: give a vision transformer"),
        (["swin_tiny_patch4_window7_224"], "it attends within windows"),
        (["deit_tinny"], "no model is called 'deit_tinny'"),
        (["nowhere/best"], "there is no checkpoint folder nowhere/best"),
        (["AS-A"], "give --patch-size 7 or less"),
        (["AS", "--patch-size", "2", "--pretrained"], "there are no pretrained weights of AS"),
        (["AS", "--patch-size", "2", "--images", "3"], "--images 3 is not a whole number of at least 4"),
        (["AS", "--patch-size", "2", "--share-above", "1.5"], "--share-above 1.5 is not between -1 and 1"),
        (["AS", "--patch-size", "2", "--loss-below", "-1"], "--loss-below -1.0 is not a number of nats"),
        (["AS", "--patch-size", "2", "--drop-below", "-1"], "--drop-below -1.0 is not a number of points from 0"),
        (
            ["AS", "--patch-size", "2", "--holdout", "0"],
            "the hold-out has 0 images, at least 4 are needed: raise --holdout",
        ),
        (["AS", "--genotype", "AA"], "there is no flag --genotype"),
        ([], "model"),
    ],
)
def test_a_wrong_input_is_one_line(arguments: list[str], says: str, tmp_path: Path, cli: Cli) -> None:
    assert says in cli.refused("analyze", *arguments, "--device", "cpu", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_analysis_is_not_overwritten_unasked(tmp_path: Path, cli: Cli) -> None:
    call = ["analyze", "AAS", "--patch-size", "2", *HOLDOUT, "--output", tmp_path / "out"]
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "figures" / "mine.svg").write_text("mine")
    cli.ok(*call)
    stale = tmp_path / "out" / "figures" / "sharing.svg"
    stale.write_text("of an earlier analysis")
    assert "already holds an analysis: give --overwrite" in cli.refused(*call)
    cli.ok(*call, "--overwrite")
    assert not stale.exists()
    assert (tmp_path / "out" / "figures" / "mine.svg").read_text() == "mine"
    (tmp_path / "file").write_text("")
    assert "is a file" in cli.refused(*call[:-1], tmp_path / "file")


# opening


def test_what_a_plain_vit_of_timm_is_in_our_words() -> None:
    data = DataSettings("digits")
    opened = open_data(data)
    subject = open_subject(ModelSettings("deit_tiny_patch16_224"), data, opened)
    layers, _ = find_layers(subject.model, "deit", torch.zeros(2, 1, 224, 224))
    arch = subject.arch(layers)
    assert arch == Arch("A" * 12, (192,), 64, pooling="2d", patch_size=16, class_token=True)
    assert subject.weights == "random"
    assert subject.img_size == (224, 224)  # its own
    assert subject.model.num_classes == 10
    for other in ("beit_base_patch16_224", "vit_small_patch16_36x1_224"):  # relative positions; layer scale
        model = timm.create_model(other, depth=2, in_chans=1, num_classes=10)
        assert replace(subject, model=model).arch(layers[:2]) is None


# the advice


def row(layer: int, **changes: Any) -> dict[str, Any]:
    """A layer of a plain network on 16 x 16 tokens, in which nothing is redundant."""
    near, alike, sharing, pooling = (changes.pop(name, value) for name, value in (
        ("near", 0.1), ("alike", 0.1), ("sharing", 0.0), ("pooling", 0.0)))  # fmt: skip
    return {
        "layer": layer, "kind": "A", "stage": 1, "heads": 3, "tokens": 256, "grid": (16, 16), "one_row": False,
        "before": {"correlation": near} if layer > 1 else None, "other_image": {"correlation": 0.2},
        "map_entropy": 0.5,
        "tokens_are": {"neighbour_cosine": alike, "pair_cosine": 0.1, "kept_by_pooling": 0.5},
        "sharing": {"loss": sharing, "error": 0.01, "top1": -0.2},
        "pooling": {"loss": pooling, "error": 0.01, "top1": 0.0},
        **changes,
    }  # fmt: skip


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
    monkeypatch.setattr("psvit.training.loop.train", caught.append)
    monkeypatch.setattr("psvit.measure.machine.keep_freed_memory", lambda: None)
    arch = Arch("AS-A", (48, 96), 16, 3.0, "2d", 4, 2, True, pool_op="avg")
    command = train_command(arch, {"data": "my photos", "data_dir": None, "img_size": [32, 48]})
    assert main(shlex.split(command)[1:]) == 0
    settings = caught[0]
    from psvit.variants import find_arch

    assert find_arch(settings.model.model, **settings.model.arch_changes) == arch
    assert (settings.data.data, settings.data.img_size) == ("my photos", (32, 48))
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


@pytest.mark.parametrize(("images", "flag"), [(6, "--holdout"), (20, "--images"), (64, None)])
def test_few_images_are_told(images: int, flag: str | None) -> None:
    rows = [row(1), row(2)]
    report = {"weights": "trained", "layers": rows, "macs": 1e6, "data": {"images": images}}
    said = words(report, advice(rows), replace(THRESHOLDS, images=256 if images == 6 else images))
    told = f"Only {images} images were measured, and one of them is {100 / images:.1f} points of top-1"
    assert said[0].startswith(told) == (flag is not None)
    assert flag is None or said[0].endswith(f"raise {flag}.")


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
    for wrong in (
        {"images": 3},
        {"batch_size": 0},
        {"share_above": 2.0},
        {"pool_above": math.nan},
        {"loss_below": math.inf},
        {"drop_below": math.nan},
    ):
        with pytest.raises(UserError, match="--"):
            AnalyzeSettings(**wrong)
