"""The page of psvit analyze: the network as a diagram, the figures side by side, and how to use it."""

import re
import shlex
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from small_exports import checkpoint
from tiny import CPU, DIGITS, Cli, read

from psvit import Arch, cost
from psvit.analysis.advice import AnalyzeConfig
from psvit.analysis.analysis_page import CAPTIONS, SECTIONS, page
from psvit.analysis.analyze import analyze
from psvit.analysis.analyzed_model import AnalyzedModel
from psvit.analysis.commands import in_python, to_use
from psvit.arch.model_config import ModelConfig
from psvit.cli import main
from psvit.data.data_config import DataConfig
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


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A checkpoint, and the numbers and the page of its analysis."""
    torch.manual_seed(0)  # in whatever order tests run
    best = checkpoint(tmp_path_factory.mktemp("analysis") / "best")
    return best, *analysis_of(ModelConfig.of(str(best)), best.parent / "out")


def section(html: str, heading: str) -> str:
    """What stands below a heading."""
    found = re.search(rf"<h2[^>]*>{heading}</h2>(.*?)(?=<h2|</main>)", html, re.S)
    assert found, heading
    return found[1]


def codes(html: str) -> list[str]:
    """The lines to copy."""
    return [unescape(code) for code in re.findall(r"<pre><code>(.*?)</code></pre>", html, re.S)]


# the network


def test_a_checkpoint_is_drawn_with_its_cost(analysis: tuple[Path, dict[str, Any], str]) -> None:
    _, report, html = analysis
    arch = Arch("AS-AA", (16, 24), 8, patch_size=4)
    assert Arch.from_dict(report["arch"]) == arch
    assert report["params"] == cost.params(arch, 12, 1, 10)
    drawn = section(html, "The network")
    assert f'alt="Diagram of the network {arch}"' in drawn
    macs = cost.macs(arch, 12, 1, 10)
    assert f"{macs / 1e6:,.2f} M MACs for one image, {report['params'] / 1e6:,.3f} M parameters." in drawn
    assert drawn.count("<figure>") == 1  # nothing is suggested
    both = page(report, {}, Arch("AS-AAAAA", (32, 32), 8, patch_size=4)).html()
    assert section(both, "The network").count("<figure>") == 2  # as it is, and as suggested
    shown = [section(html, "Attention maps").index(CAPTIONS[name].split(".")[0].replace("'", "&#39;"))
             for name in SECTIONS[0][1]]  # fmt: skip
    assert shown == sorted(shown)


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


# how to use it


def test_five_lines_use_the_checkpoint(
    analysis: tuple[Path, dict[str, Any], str], tmp_path: Path, cli: Cli, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    best, report, html = analysis
    lines, shell = codes(section(html, "How to use it"))
    assert lines == report["use"]["python"]
    assert len(lines.splitlines()) == 5
    Image.new("L", (12, 12)).save(tmp_path / "IMAGE", format="png")
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    said = capfd.readouterr().out.strip()
    predict, *others = shell.splitlines()
    assert cli.ok(*shlex.split(predict.removesuffix(" ..."))[1:]).split()[1] == said
    assert others == [f"psvit evaluate {best} --data digits", f"psvit benchmark {best}"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("model", "size"),
    [(ModelConfig.of("AS-A", widths=(16, 32), head_dim=8, patch_size=2), None), (VIT, (32, 48))],
)
def test_five_lines_build_what_has_no_weights(
    model: ModelConfig, size: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("psvit.tasks.classification.classify.train", asked.append)
    monkeypatch.setattr("psvit.cli.keep_freed_memory", lambda **_: None)
    report, html = analysis_of(model, tmp_path / "out", replace(DIGITS, img_size=size))
    lines, shell = codes(section(html, "How to use it"))
    assert len(lines.splitlines()) == 5
    built: dict[str, Any] = {}
    exec(lines, built)
    assert sum(p.numel() for p in built["model"].parameters()) == report["params"]
    assert built["logits"].shape == (1, 10)
    assert main(shlex.split(shell)[1:]) == 0
    assert (asked[0].model, asked[0].data) == (model, DataConfig("digits", img_size=size))


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
