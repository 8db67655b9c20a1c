"""The networks that are compared by name, and what a comparison says of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import config

from psvit.arch import cost
from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.arch.variants import default_arch
from psvit.data.datasets import Data
from psvit.engine.learning_rates import BASE_LR, family_of
from psvit.engine.trainer import DivergedError
from psvit.errors import UserError
from psvit.pipeline import compare as comparison
from psvit.pipeline.baselines import baseline, baselines, contender
from psvit.pipeline.compare import compare, gains_table
from psvit.pipeline.run_config import CONTENDERS, CompareConfig


@pytest.mark.parametrize("name", [*CONTENDERS, "AA-ASS"])
def test_every_contender_has_the_macs_that_are_asked(name: str, digits: Data) -> None:
    arch = baseline(name, digits, 12e6).network
    assert isinstance(arch, Arch)
    assert cost.macs(arch, 8, 1, 10) == pytest.approx(12e6, rel=0.02)


def test_contenders_are_of_the_family_that_they_are_tuned_with() -> None:
    for name in BASE_LR.keys() - {"other"}:
        network = contender(name, 28) if name in CONTENDERS else None
        assert family_of(ModelConfig(network) if network else ModelConfig.of(name)) == name


def test_the_plain_twin_has_the_stem_and_the_layers() -> None:
    plus, twin = contender("psvit_plus", 28), contender("plain_twin", 28)
    assert plus == default_arch(28)
    assert twin == replace(plus, genotype="A" * plus.depth, widths=plus.widths[:1], pool_norm=False)
    deit = contender("deit", 28)
    assert (deit.stem, deit.mlp, deit.mlp_ratio, deit.class_token, set(deit.genotype)) == (
        "patch",
        "plain",
        4,
        True,
        {"A"},
    )


def test_a_genotype_and_other_fields_reach_the_contenders_made_by_hand(digits: Data) -> None:
    asked = CompareConfig(models=("psvit_2d", "psvit_plus", "plain_twin", "resnet18"), genotype="AA-A-A", macs="6M")
    found = {name: model.network for name, model in baselines(asked, digits, {}).items()}
    assert [found[name].genotype for name in asked.models[:3]] == ["AA-A-A", "AA-A-A", "AAAA"]  # type: ignore[union-attr]
    shared = contender("psvit_plus", 28, {"genotype": "AA-AAA-AA", "mlp_ratio": 3})
    assert shared == replace(default_arch(28), genotype="AA-AAA-AA", mlp_ratio=3)
    with pytest.raises(UserError, match="resnet18 is a model of timm, which has no head_dim"):
        baseline("resnet18", digits, 6e6, {"head_dim": 8})


def row(name: str, top1: float, ms: float | None = None) -> dict[str, Any]:
    return {"name": name, "top1": top1, "images": 10_000, "latency_ms": ms}


def test_what_is_gained_by_hand() -> None:
    rows = [row("plain_twin", 80, 2.0), row("psvit_plus", 90, 1.5), row("searched", 90.5, 1.0)]
    table = gains_table({"rows": rows})
    assert table is not None
    first, second = table.rows
    # standard errors of 80 and 90.5 %: 0.4 and 0.293; of 90 %: 0.3
    assert first == ("pooling and sharing", "searched over plain_twin", "+10.50 ± 0.50", "0.50", "")
    assert second[1:] == ("searched over psvit_plus", "+0.50 ± 0.42", "0.67", "within two standard errors")
    table = gains_table({"rows": rows[:2]})
    assert table is not None
    assert [line[1] for line in table.rows] == ["psvit_plus over plain_twin"]
    table = gains_table({"rows": rows, "pilot": {"pays": False}})
    assert table is not None
    assert [line[1] for line in table.rows] == ["searched over plain_twin"], "nothing was searched"
    assert gains_table({"rows": [row("deit", 80), row("psvit_2d", 90)]}) is None


def test_a_network_that_diverges_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str, *_: Any) -> dict[str, Any]:
        if name in diverging:
            raise DivergedError("the loss is nan")
        return {"name": name, "top1": 90.0}

    monkeypatch.setattr(comparison, "_row", made)
    networks = {name: ModelConfig.of("AS") for name in ("resnet18", "psvit_plus")}
    asked, said = CompareConfig(models=tuple(networks), output=str(tmp_path)), list[str]()
    diverging = {"resnet18"}
    assert [one["name"] for one in compare(asked, networks, config(), said.append)] == ["psvit_plus"]
    assert "left out  resnet18: the loss is nan" in said
    diverging = set(networks)
    with pytest.raises(DivergedError):
        compare(asked, networks, config(), said.append)
