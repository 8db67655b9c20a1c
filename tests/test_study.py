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
    took = read(finished / "found" / "search" / "seconds.json").values()
    assert found["search_seconds"] == pytest.approx(sum(took), abs=0.06)
    for name in ("report.html", "tables.md", "mine.svg", "mine-2.png"):
        assert (finished / name).stat().st_size, name
    assert not list(finished.rglob(".*")), "temporary files"


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
    cli.ok(*words(tmp_path / "study"), "--jobs", jobs, "--results", tmp_path / "copy" / "results.json")
    check_equal(tmp_path / "study", finished)
    assert (tmp_path / "copy" / "results.json").read_bytes() == (tmp_path / "study" / RESULTS).read_bytes()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_images_may_be_loaded_by_processes(cli: Cli, tmp_path: Path) -> None:
    image_folder(tmp_path / "images", each=12)
    data = {"data": str(tmp_path / "images"), "img_size": 8, "validation": 0.2, "workers": 1}
    asked = {"data": data, "recipe": {"epochs": 1, "batch_size": 4}, "groups": {"a": {"networks": {"n": NETWORK}}}}
    cli.ok(*words(tmp_path / "study", asked))
    assert read(tmp_path / "study" / RESULTS)["groups"][0]["rows"][0]["failed"] == {}
    assert not list((tmp_path / "study").rglob("images.sqlite*"))


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("reads", ["validation", "test"])
def test_the_test_split_is_read_only_where_it_counts(
    reads: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden(ArraySource):
        def image(self, index: int) -> Any:
            raise AssertionError("an image of the test split is read")

        def arrays(self, indices: Any) -> Any:
            raise AssertionError("images of the test split are read")

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
    assert "lower --lr" in cli.ok(*words(tmp_path / "study", asked))
    data = read(tmp_path / "study" / RESULTS)
    assert "lower --lr" in data["groups"][1]["rows"][0]["failed"]["0"]
    assert data["claims"][0]["verdict"] == "not measured"
    assert all(row["mean"] for row in data["groups"][0]["rows"])
    again = cli.ok(*words(tmp_path / "study", asked), "--resume")
    assert "4 of 5 are finished already" in again, "the failed one is tried again"


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


def test_a_study_says_whose_process_died(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: object) -> None:
        raise DiedError(2)

    monkeypatch.setattr("psvit.studies.task_runner.work_all", died)
    said = cli.refused(*words(tmp_path / "study"), "--jobs", "2")
    assert "the process of small, attends, seed 0 died (out of memory?)" in said


@pytest.mark.usefixtures("here")
def test_a_study_whose_trainings_all_fail_is_refused_at_the_end(cli: Cli, tmp_path: Path) -> None:
    group = {"recipe": {"lr": 1e20, "clip_grad": None}, "networks": {"wild": NETWORK}}
    said = cli.refused(*words(tmp_path / "study", {**STUDY, "groups": {"a": group}, "claims": []}))
    assert "every training failed, the first with: " in said
    assert (tmp_path / "study" / "report.html").exists()
