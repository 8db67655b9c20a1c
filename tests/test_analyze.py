"""psvit analyze: a model and images -> numbers, figures, a page; what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CPU, DATA, DIGITS, MACHINE, TRAIN, Cli, image_folder, read

from psvit import Arch, PSViT, cost
from psvit.analysis.advice import AnalyzeConfig
from psvit.analysis.analysis_page import CAPTIONS, FILES
from psvit.analysis.analyze import analyze, measure
from psvit.analysis.analyzed_model import AnalyzedModel, open_analyzed
from psvit.analysis.find_layers import find_layers
from psvit.analysis.verdict import NO_PLACE, RANDOM
from psvit.arch.model_config import ModelConfig
from psvit.cli import main
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.data.loading import eval_batches
from psvit.data.samples import Batch, ImageSplit
from psvit.data.sources import ArraySource
from psvit.models.macs import explicit_attention

VALIDATION = [*DATA[:2], "--validation", "0.02", "--device", "cpu", "--threads", "1", "--images", "20"]
EVERYTHING = ["--share-above", "-1", "--pool-above", "-1", "--loss-below", "1000", "--drop-below", "100"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a plain network (plain/best) and of one that shares and pools (psvit/best).

    So short a training leaves them guessing: their heads are fitted to the validation split's digits.
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
    """Ridge regression of the classes of the validation split's images."""
    data = DataConfig("digits", validation=0.02)
    opened = open_data(data)
    analyzed = open_analyzed(ModelConfig.of(str(folder)), data, opened)
    with torch.inference_mode():
        (batch,) = eval_batches(ImageSplit(opened.validation, analyzed.transform), batch_size=64)
        x = analyzed.model.forward_head(analyzed.model.forward_features(batch.images), pre_logits=True)
        mean = x.mean(dim=0)
        away, classes = x - mean, torch.nn.functional.one_hot(batch.labels, 10) - 0.1
        spread = away.T @ away
        weight = 4 * torch.linalg.solve(spread + 1e-3 * spread.trace() / len(spread) * torch.eye(len(spread)),
                                        away.T @ classes).T  # fmt: skip
    weights = load_file(folder / "model.safetensors")
    weights |= {"head.weight": weight.contiguous(), "head.bias": -weight @ mean}
    save_file(weights, folder / "model.safetensors")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Analyses without their figures, which take most of the time."""
    monkeypatch.setattr("psvit.analysis.analyze.drawings", lambda report: {})


# the command
def test_a_plain_network(trained: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    said = cli.ok("analyze", trained / "plain" / "best", *VALIDATION, "--output", out, *EVERYTHING)
    report = read(out / "redundancy.json")
    assert report["data"] == {"name": "digits", "split": "validation", "images": 20, "img_size": [8, 8], "in_chans": 1,
                              "classes": 10}  # fmt: skip
    assert report["macs"] == cost.macs(Arch("AAA", (16,), 8, patch_size=2), 8, 1, 10)
    assert len(report["layers"]) == len(report["cka"]) == 3
    for place, row in enumerate(report["layers"]):
        assert (row["tokens"], row["grid"], len(row["distance"]["heads"])) == (16, [4, 4], 2)
        assert report["maps"]["matched"]["correlation"][place][place] == pytest.approx(1)
        assert report["maps"]["matched"]["divergence"][place][place] == 0
        assert report["cka"][place][place] == pytest.approx(1)
        assert 1 <= row["tokens_are"]["rank"] <= 16
    assert [row["sharing"] is not None for row in report["layers"]] == [False, True, True]
    assert [row["pooling"] is not None for row in report["layers"]] == [True, True, False]
    # with thresholds that everything meets: pooled at once, again a third of the depth behind; nothing left to share
    suggestion = report["suggestion"]
    assert (suggestion["share"], suggestion["pool_behind"]) == ([2, 3], [1, 2])
    assert suggestion["genotype"] == "A-AS"  # a second pooling would leave one token
    assert suggestion["macs"] == cost.macs(Arch("A-AS", (16, 16), 8, patch_size=2), 8, 1, 10)
    assert f"next      {suggestion['commands'][0]}\n" in said
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == len(CAPTIONS) + 2  # and the diagrams: as it is, and as suggested
    assert "<script" not in page
    for name in FILES:
        assert (out / name).stat().st_size > 1000, name


@pytest.mark.usefixtures("undrawn")
def test_what_shares_already_is_no_finding(trained: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    said = cli.ok("analyze", trained / "psvit" / "best", *VALIDATION, "--output", out, "--share-above", "0")
    report = read(out / "redundancy.json")
    assert [row["kind"] for row in report["layers"]] == ["A", "S", "A"]
    one = pytest.approx(1)
    before = {"correlation": one, "cosine": one, "divergence": 0, "by_construction": True}
    assert report["layers"][1]["before"] == before
    assert report["maps"]["matched"]["correlation"][0][2] is None
    assert report["suggestion"]["share"] == []
    assert NO_PLACE in said


@pytest.mark.usefixtures("undrawn")
def test_the_same_seed_gives_the_same_numbers(trained: Path, tmp_path: Path, cli: Cli) -> None:
    call = ["analyze", trained / "psvit" / "best", *VALIDATION, "--json"]
    one, other = (cli.ok(*call, "--output", tmp_path / name) for name in "ab")
    assert one == other
    assert json.loads(one) == read(tmp_path / "a" / "redundancy.json")
    for name in ("redundancy.json", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    drawn = cli.ok(*call, "--seed", "1", "--split-seed", "0", "--output", tmp_path / "c")  # other images of the split
    assert json.loads(drawn)["layers"] != json.loads(one)["layers"]


@pytest.mark.usefixtures("undrawn")
def test_the_test_split_is_not_read(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_from: set[str] = set()
    for name in ("image", "arrays"):  # one image, or a batch
        reader = getattr(ArraySource, name)
        monkeypatch.setattr(
            ArraySource, name, lambda self, at, reader=reader: read_from.add(self.title) or reader(self, at)
        )
    config = AnalyzeConfig(images=8, output=str(tmp_path))
    analyze(ModelConfig.of(str(trained / "psvit" / "best")), DIGITS, CPU, config, say=lambda line: None)
    assert read_from == {"digits train"}


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
    analyzed = AnalyzedModel(model, "trained", lambda image: image, 1, (8, 8), "")
    layers, _ = find_layers(model, "it", images)
    found = measure(analyzed, layers, lambda: [Batch(images, labels, ())], torch.device("cpu"), lambda line: None)
    assert (found.second.top1, found.second.guess) == (pytest.approx(100 * right / 40), 50)
    assert found.guesses == bool(found.unlabelled) == guessing
    assert (found.rows[1]["sharing"] is None) == guessing


# what is refused
def test_a_wrong_input_is_one_line(tmp_path: Path, cli: Cli) -> None:
    for arguments, says in (
        (["nowhere/best"], "there is no checkpoint folder nowhere/best"),
        (["AS-A"], "give --patch-size 7 or less"),
        (["AS", "--patch-size", "2", "--pretrained"], "there are no pretrained weights of AS"),
    ):
        assert says in cli.refused("analyze", *arguments, "--device", "cpu", "--output", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_an_analysis_is_not_overwritten_unasked(tmp_path: Path, cli: Cli) -> None:
    call = ["analyze", "AAS", "--patch-size", "2", *VALIDATION, "--output", tmp_path / "out"]
    mine, stale = (tmp_path / "out" / "figures" / name for name in ("mine.svg", "sharing.svg"))
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    cli.ok(*call)
    stale.write_text("of an earlier analysis")
    assert "already holds an analysis: give --overwrite" in cli.refused(*call)
    cli.ok(*call, "--overwrite")
    assert not stale.exists()
    assert mine.read_text() == "mine"


@pytest.mark.usefixtures("undrawn")
def test_random_weights_or_other_classes_suggest_nothing(trained: Path, tmp_path: Path, cli: Cli) -> None:
    cli.ok("analyze", "AAS", "--patch-size", "2", *VALIDATION, "--output", tmp_path / "out")
    report = read(tmp_path / "out" / "redundancy.json")
    assert (report["weights"], report["verdict"]) == ("random", [RANDOM])
    assert report["no_changes_because"] == "the weights are random"
    assert all(row["sharing"] is row["pooling"] is None for row in report["layers"])
    photos = image_folder(tmp_path / "photos", each=8)
    words = ["analyze", trained / "psvit" / "best", "--data", photos, "--output", tmp_path / "a"]
    assert "images, at least 4 are needed: raise --validation" in cli.refused(*words)
    cli.ok(*words, "--validation", "0.5", "--workers", "0", "--device", "cpu", "--threads", "1")
    report = read(tmp_path / "a" / "redundancy.json")
    assert "knows 10 classes" in report["no_changes_because"]
    assert report["loss"] is report["top1"] is None
