"""The latencies of a study's networks: measured once, all together."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from small_studies import NETWORK, STUDY, words
from tiny import Cli, read

from psvit.latency.benchmark_config import LatencyConfig
from psvit.studies.study_folder import RESULTS

OWN: dict[str, Any] = {"widths": (16, 32), "head_dim": 8, "patch_size": 2}


pytestmark = pytest.mark.usefixtures("threads_kept")


def latencies(folder: Path) -> dict[str, float | None]:
    rows = [row for group in read(folder / RESULTS)["groups"] for row in group["rows"]]
    return {row["label"]: row["latency_ms"] for row in rows}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A machine on which the networks take 1, 2, 3 seconds; what it was asked to measure."""
    asked: list[list[str]] = []

    def measure(builds: Any, config: LatencyConfig, *where: Any, skip: bool) -> dict[str, float]:
        assert skip
        assert config == LatencyConfig()
        assert where == (torch.device("cpu"), 1)
        asked.append([build.args[0].flags().model for build in builds.values()])
        return {name: float(place) for place, name in enumerate(builds, start=1)}

    monkeypatch.setattr("psvit.studies.plan.measure_networks", measure)
    monkeypatch.setattr("psvit.studies.study.write_report", lambda folder, *_: [folder / "report.html"])
    return asked


def test_every_network_has_a_latency_and_equal_ones_the_same(finished: Path) -> None:
    found = latencies(finished)
    assert list(found) == ["shares", "attends", "searched", "again"]
    assert all(one is not None and 0 < one < 60_000 for one in found.values())
    assert found["again"] == found["shares"]
    kept = read(finished / "latency.json")
    assert len(kept["milliseconds"]) == 3
    assert read(finished / RESULTS)["latency"] == asdict(LatencyConfig())
    assert kept == kept | asdict(LatencyConfig()) | {"device": "cpu", "threads": 1}


@pytest.mark.usefixtures("here")
def test_latencies_are_measured_once_and_all_together(cli: Cli, copied: Path, measured: list[list[str]]) -> None:
    before = latencies(copied)
    cli.ok(*words(copied), "--resume")
    assert (measured, latencies(copied)) == ([], before)
    path, asked = copied / "latency.json", copy.deepcopy(STUDY)
    kept = read(path)
    more = {"more": {**NETWORK, "network": "A", "widths": [16]}}
    for text, added in (
        (json.dumps({**kept, "cpu": "another"}), {}),
        ("[", {}),
        (json.dumps({**kept, "milliseconds": dict(list(kept["milliseconds"].items())[1:])}), {}),  # one is lost
        (json.dumps(kept), more),
    ):
        measured.clear()
        path.write_text(text)
        asked["groups"]["small"]["networks"].update(added)
        cli.ok(*words(copied, asked), "--resume")
        (models,) = measured
        assert models[:-1] == ["AS-A", "AA-A", *["A"] * bool(added)], text
        assert list(latencies(copied).values()) == [1000 * place for place in (*range(1, len(models) + 1), 1)]
