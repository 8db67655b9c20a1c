"""psvit study: the same whatever the jobs; what it leaves, what it refuses."""

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from small_studies import NETWORK, STUDY, TRIALS, check_equal, on_a_machine, words
from tiny import Cli, image_folder, read

from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.data.sources import ArraySource
from psvit.studies.study_folder import RESULTS
from psvit.studies.worker_pool import DiedError

pytestmark = pytest.mark.usefixtures("threads_kept")


def test_what_a_study_leaves(finished: Path) -> None:
    data = read(finished / RESULTS)
    small, found = data["groups"]
    assert [row["label"] for row in small["rows"]] == ["shares", "attends"]
    for row in (*small["rows"], *found["rows"]):
        for folder, seed, top1 in zip(row["folders"], row["seeds"], row["top1"], strict=True):
            trial = read(finished / folder / "trial.json")
            assert (trial["result"]["top1"], trial["made_with"]["seed"]) == (top1, seed)
            assert (finished / folder / "best" / "model.safetensors").exists()
    assert small["rows"][0]["macs"] == 227648  # by hand in test_cli_checkpoints
    assert small["rows"][0]["images"] == 359, "the test split"
    assert found["searched"]["genotype"].replace("-", "") in ("AA", "AS")
    assert data["claims"][0]["ratio"][0] == pytest.approx(
        small["rows"][0]["error_ratio"] / small["rows"][1]["error_ratio"]
    )
    assert data["claims"][0]["apart"] in (True, False)
    assert data["machine"]["threads"] == 1
    for name in ("report.html", "tables.md", "mine.svg", "mine-2.png"):
        assert (finished / name).stat().st_size, name
    assert not list(finished.rglob(".*"))


def test_how_long_it_took(finished: Path) -> None:
    data = read(finished / RESULTS)
    small, found = data["groups"]
    assert "search_seconds" not in small
    took = read(finished / "found" / "search" / "seconds.json").values()
    assert found["search_seconds"] == pytest.approx(sum(took), abs=0.06)
    spent = read(finished / "study.json")["wall_seconds"]
    assert found["search_seconds"] + data["training_seconds"] - 1 <= data["wall_seconds"] <= spent + 0.5


def test_equal_config_are_trained_once(finished: Path) -> None:
    data = read(finished / RESULTS)
    shares, again = data["groups"][0]["rows"][0], data["groups"][1]["rows"][1]
    assert again["top1"] == shares["top1"][:1]
    assert again["folders"] == ["small/shares/seed-0"]
    assert data["trainings"] == 5
    assert sorted(str(path.parent.relative_to(finished)) for path in finished.rglob("trial.json")) == sorted(TRIALS)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_same_seeds_the_same_results_whatever_the_jobs(jobs: str, cli: Cli, finished: Path, tmp_path: Path) -> None:
    said = cli.ok(*words(tmp_path / "study"), "--jobs", jobs, "--results", tmp_path / "copy" / "results.json")
    check_equal(tmp_path / "study", finished)
    assert (tmp_path / "copy" / "results.json").read_bytes() == (tmp_path / "study" / RESULTS).read_bytes()
    assert "searched" in said
    assert "finished already" not in said
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_images_may_be_loaded_by_processes(cli: Cli, tmp_path: Path) -> None:
    image_folder(tmp_path / "images", each=12)
    data = {"data": str(tmp_path / "images"), "img_size": 8, "validation": 0.2, "workers": 1}
    asked = {"data": data, "recipe": {"epochs": 1, "batch_size": 4}, "groups": {"a": {"networks": {"n": NETWORK}}}}
    cli.ok(*words(tmp_path / "study", asked))
    assert read(tmp_path / "study" / RESULTS)["groups"][0]["rows"][0]["failed"] == {}


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("reads", ["validation", "test"])
def test_the_test_split_is_read_only_where_it_counts(
    reads: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden(ArraySource):
        def image(self, index: int) -> Any:
            raise AssertionError("an image of the test split is read")

        def labels(self) -> Any:
            raise AssertionError("the labels of the test split are read")

    def opened(config: DataConfig, *more: Any) -> Any:
        data = open_data(config, *more)
        test: Any = data.test
        test.__class__ = Forbidden
        return data

    for module in ("studies.plan", "search.search", "tasks.classification.classify", "tasks.classification.evaluate"):
        monkeypatch.setattr(f"psvit.{module}.open_data", opened)
    asked = words(tmp_path / "study", {**STUDY, "reads": reads})
    if reads == "test":
        with pytest.raises(AssertionError, match="of the test split"):
            cli(*asked)
        return
    cli.ok(*asked)
    row = read(tmp_path / "study" / RESULTS)["groups"][0]["rows"][0]
    log = (tmp_path / "study" / row["folders"][0] / "log.jsonl").read_text().splitlines()
    assert row["images"] == 30, "the validation split"
    assert f'"top1": {row["top1"][0]}' in log[-1], "the last epoch, not the best"


@pytest.mark.usefixtures("briefly")
def test_a_training_that_diverges_is_a_row_and_the_rest_goes_on(cli: Cli, tmp_path: Path) -> None:
    asked = copy.deepcopy(STUDY)
    asked["groups"]["found"] = {"recipe": {"lr": 1e20, "clip_grad": None}, "networks": {"wild": NETWORK}}
    asked["claims"] = [{"claim": "c", "better": ["found", "wild"], "worse": ["small", "attends"]}]
    said = cli.ok(*words(tmp_path / "study", asked))
    data = read(tmp_path / "study" / RESULTS)
    assert "lower --lr" in data["groups"][1]["rows"][0]["failed"]["0"]
    assert "lower --lr" in said
    assert data["claims"][0]["verdict"] == "not measured"
    assert all(row["mean"] for row in data["groups"][0]["rows"])
    told = (tmp_path / "study" / "found" / "wild" / "seed-0" / "output.txt").read_text()
    assert told.count("network   ") == 1, "it is not tried twice"
    again = cli.ok(*words(tmp_path / "study", asked), "--resume")
    assert "4 of 5 are finished already" in again, "but once more if asked to go on"


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(("given", "used"), [("auto", "bfloat16"), ("float32", "float32")])
def test_a_study_says_its_precision_unless_the_user_does(
    given: str, used: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine("float32", monkeypatch)
    groups = {"a": {"networks": {"n": NETWORK}}}
    asked = {**STUDY, "precision": "bfloat16", "groups": groups, "claims": []}
    cli.ok(*words(tmp_path / "study", asked), "--precision", given)
    machine = read(tmp_path / "study" / RESULTS)["machine"]
    assert (machine["precision"], machine["computed_in"]) == (used, used)
    assert read(tmp_path / "study" / "a" / "n" / "seed-0" / "trial.json")["made_with"]["precision"] == used


@pytest.mark.usefixtures("briefly")
def test_other_macs_are_named_as_such(cli: Cli, tmp_path: Path) -> None:
    def asked(macs: str) -> dict[str, Any]:
        group = {"macs": macs, "networks": {"n": {**NETWORK, "macs": None}}}
        return {**STUDY, "recipe": {"epochs": 1, "batch_size": 16}, "groups": {"a": group}, "claims": []}

    cli.ok(*words(tmp_path / "study", asked("250k")))
    said = cli.refused(*words(tmp_path / "study", asked("400k")), "--resume")
    assert f"was trained with macs 250k, not 400k as {tmp_path / 'mine.yaml'} says" in said
    assert "--mlp-ratio" not in said
    other = cli.refused(*words(tmp_path / "study", asked("250k")), "--resume", "--precision", "bfloat16")
    assert "was trained with --precision float32, not bfloat16: " in other


@pytest.mark.usefixtures("here")
def test_a_study_of_which_every_training_fails_is_refused_at_the_end(
    cli: Cli, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    group = {"recipe": {"lr": 1e20, "clip_grad": None}, "networks": {"wild": NETWORK}}
    said = cli.refused(*words(tmp_path / "study", {**STUDY, "groups": {"a": group}, "claims": []}))
    assert "every training failed, the first with: " in said
    assert "lower --lr" in said
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == [
        "a", "latency.json", "report.html", "results.json", "study.json", "tables.md",
    ]  # fmt: skip
    assert not list(recwarn)


def test_a_study_says_whose_process_died(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: object) -> None:
        raise DiedError(2)

    monkeypatch.setattr("psvit.studies.task_runner.work_all", died)
    said = cli.refused(*words(tmp_path / "study"), "--jobs", "2")
    assert "the process of small, attends, seed 0 died (out of memory?)" in said
    assert "go on with --resume, perhaps with fewer --jobs" in said
