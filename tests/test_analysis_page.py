"""The page of psvit analyze: the network as a diagram, the figures side by side, and how to use it."""

import re
import shlex
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from PIL import Image
from small_exports import checkpoint
from tiny import CPU, DIGITS, Cli, read

from psvit import Arch, PSViT, cost
from psvit.analysis.advice import AnalyzeConfig
from psvit.analysis.analysis_page import CAPTIONS, SECTIONS, drawings, page
from psvit.analysis.analyze import analyze
from psvit.analysis.analyzed_model import AnalyzedModel
from psvit.analysis.commands import in_python, to_use
from psvit.arch.model_config import ModelConfig
from psvit.cli import main
from psvit.data.data_config import DataConfig
from psvit.report.figures import svg
from psvit.report.in_python import use_timm_in_python

RESULTS = Path(__file__).parent.parent / "docs" / "results"
BEIT = ModelConfig.of("beit_base_patch16_224", model_args={"depth": 2, "embed_dim": 24, "num_heads": 2})
VIT = ModelConfig.of("vit_tiny_patch16_224", model_args={"depth": 2, "embed_dim": 24, "num_heads": 2})


def analysis_of(model: ModelConfig, folder: Path, data: DataConfig = DIGITS) -> tuple[dict[str, Any], str]:
    """The numbers and the page of an analysis."""
    config = AnalyzeConfig(images=8, output=str(folder))
    report = analyze(model, data, CPU, config, say=lambda line: None)
    assert report == read(folder / "redundancy.json")
    return report, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Analyses without their figures, which take most of the time."""
    monkeypatch.setattr("psvit.analysis.analyze.drawings", lambda report: {})


class Analysis(NamedTuple):
    """An analysis of a checkpoint: the checkpoint, the folder, the page, and the numbers, to be changed."""

    best: Path
    folder: Path
    html: str

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = read(self.folder / "redundancy.json")
        return found


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """An analysis of a checkpoint, with its figures."""
    torch.manual_seed(0)  # in whatever order tests run
    folder = tmp_path_factory.mktemp("analysis")
    best = checkpoint(folder / "best")
    return Analysis(best, folder / "out", analysis_of(ModelConfig.of(str(best)), folder / "out")[1])


def section(html: str, heading: str) -> str:
    """What stands below a heading."""
    found = re.search(rf"<h2[^>]*>{heading}</h2>(.*?)(?=<h2|</main>)", html, re.S)
    assert found, heading
    return found[1]


def codes(html: str) -> list[str]:
    """The lines to copy."""
    return [unescape(code) for code in re.findall(r"<pre><code>(.*?)</code></pre>", html, re.S)]


# the network


def test_a_checkpoint_is_drawn_with_its_cost(analysis: Analysis) -> None:
    report, html = analysis.report, analysis.html
    arch = Arch("AS-AA", (16, 24), 8, patch_size=4)
    assert Arch.from_dict(report["arch"]) == arch
    assert report["params"] == cost.params(arch, 12, 1, 10)
    drawn = section(html, "The network")
    assert f'alt="Diagram of the network {arch}"' in drawn
    macs = cost.macs(arch, 12, 1, 10)
    assert f"{macs / 1e6:,.2f} M MACs for one image, {report['params'] / 1e6:,.3f} M parameters." in drawn
    assert drawn.count("<figure>") == 1  # nothing is suggested


def test_as_it_is_and_as_suggested() -> None:
    report = read(RESULTS / "redundancy-deit.json")
    own, new = Arch("A" * 7, (32,), 8, pooling="1d", patch_size=4), Arch("AS-AAAAA", (32, 32), 8, patch_size=4)
    drawn = section(page({**report, "arch": own.to_dict()}, {}, new).html(), "The network")
    assert drawn.count('<div class="beside"') == 1
    assert drawn.index(f"Diagram of the network {own}") < drawn.index(f"Diagram of the network {new}")


@pytest.mark.usefixtures("undrawn")
def test_a_plain_vit_is_drawn_and_another_is_not(tmp_path: Path) -> None:
    data = replace(DIGITS, img_size=32)
    report, html = analysis_of(VIT, tmp_path / "vit", data)
    assert Arch.from_dict(report["arch"]) == Arch("AA", (24,), 12, patch_size=16, class_token=True)
    assert "Diagram of the network AA" in section(html, "The network")
    report, html = analysis_of(BEIT, tmp_path / "beit", data)
    assert report["arch"] is None
    told = section(html, "The network")
    assert "<img" not in told
    assert f"beit_base_patch16_224: {report['macs'] / 1e6:,.2f} M MACs" in told
    assert f"{report['params'] / 1e6:,.3f} M parameters" in told


# the figures


def test_the_cosine_stands_beside_correlation_and_divergence(analysis: Analysis) -> None:
    report, html = analysis.report, analysis.html
    for kind in ("svg", "png"):
        assert (analysis.folder / "figures" / f"map_cosine.{kind}").stat().st_size > 1000
    row = re.search(r'<div class="beside".*?</div>', section(html, "Attention maps"), re.S)
    assert row
    places = [row[0].index(CAPTIONS[name].split(".")[0].replace("'", "&#39;")) for name in SECTIONS[0][1]]
    assert places == sorted(places)
    cosine = report["maps"]["matched"]["cosine"]
    cosine[2][3] = cosine[3][2] = 0.37
    drawn = drawings(report)
    assert ">.37<" in svg(drawn["map_cosine"])
    assert ">.37<" not in svg(drawn["map_correlation"])


# how to use it


def test_five_lines_use_the_checkpoint(
    analysis: Analysis, tmp_path: Path, cli: Cli, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best, report, html = analysis.best, analysis.report, analysis.html
    lines, shell = codes(section(html, "How to use it"))
    assert lines == report["use"]["python"]
    assert len(lines.splitlines()) == 5
    assert str(best) in lines
    Image.new("L", (12, 12)).save(tmp_path / "IMAGE", format="png")
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    said = capfd.readouterr().out.strip()
    predict, evaluate, benchmark = shell.splitlines()
    assert cli.ok(*shlex.split(predict.removesuffix(" ..."))[1:]).split()[1] == said
    assert evaluate == f"psvit evaluate {best} --data digits"
    assert benchmark == f"psvit benchmark {best}"


def test_a_folder_with_blanks_is_quoted_and_other_classes_are_not_evaluated() -> None:
    analyzed = AnalyzedModel(None, "trained", lambda image: image, 1, (12, 12), "other classes")
    found = to_use(analyzed, ModelConfig.of("my runs/best"), DataConfig("x"))
    assert found == ["psvit predict 'my runs/best' IMAGE ...", "psvit benchmark 'my runs/best'"]


@pytest.mark.usefixtures("undrawn")
def test_five_lines_build_what_has_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("psvit.tasks.classification.classify.train", asked.append)
    monkeypatch.setattr("psvit.cli.keep_freed_memory", lambda: None)
    ours = ModelConfig.of("AS-A", widths=(16, 32), head_dim=8, patch_size=2)
    report, html = analysis_of(ours, tmp_path / "ours")
    lines, shell = codes(section(html, "How to use it"))
    assert "with new weights" in html
    assert len(lines.splitlines()) == 5
    built: dict[str, Any] = {}
    exec(lines, built)
    assert isinstance(built["model"], PSViT)
    assert built["model"].arch == Arch.from_dict(report["arch"])
    assert built["logits"].shape == (1, 10)
    assert main(shlex.split(shell)[1:]) == 0
    assert (asked[0].model, asked[0].data) == (ours, DataConfig("digits"))

    report, html = analysis_of(VIT, tmp_path / "vit", replace(DIGITS, img_size=(32, 48)))
    lines, shell = codes(section(html, "How to use it"))
    assert len(lines.splitlines()) == 5
    exec(lines, built)
    assert sum(p.numel() for p in built["model"].parameters()) == report["params"]
    assert built["logits"].shape == (1, 10)
    assert main(shlex.split(shell)[1:]) == 0
    assert (asked[1].model, asked[1].data.img_size) == (VIT, (32, 48))


def test_five_lines_use_a_pretrained_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vit_tiny_patch16_224"
    analyzed = AnalyzedModel(timm.create_model(name, depth=1), "pretrained", lambda image: image, 3, (224, 224), "")
    lines = in_python(analyzed, name)
    assert lines == use_timm_in_python(name, 3)
    assert len(lines.splitlines()) == 5
    assert to_use(analyzed, ModelConfig.of(name, pretrained=True), DIGITS) == [
        f"psvit train --model {name} --data digits --pretrained --img-size 224"
    ]
    opened: list[tuple[str, bool]] = []

    def create(name: str, pretrained: bool) -> torch.nn.Module:
        opened.append((name, pretrained))
        return analyzed.model  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", create)  # nothing is downloaded
    Image.new("RGB", (32, 32)).save(tmp_path / "IMAGE", format="png")
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert opened == [(name, True)]
    assert 0 <= int(capsys.readouterr().out) < 1000
