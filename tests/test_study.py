"""psvit study: the same whatever the jobs; what it refuses; what it leaves alone."""

import copy
import html
import json
import multiprocessing
import re
import shlex
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small_studies import NETWORK, STUDY, TRIALS, check_equal, made, without_time, words, write
from tiny import MACHINE, Cli, image_folder, read
from torch import nn

from psvit.search import latency
from psvit.search.latency import measure_models
from psvit.search.settings import LatencySettings
from psvit.study.folder import RESULTS
from psvit.study.workers import DiedError, StoppedError
from psvit.training.checkpoints import open_model
from psvit.training.data import open_data
from psvit.training.recipes import ModelSettings
from psvit.training.settings import DataSettings
from psvit.training.sources import ArraySource

OWN: dict[str, Any] = {"widths": (16, 32), "head_dim": 8, "patch_size": 2}

pytestmark = pytest.mark.usefixtures("threads_kept")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, not to be changed."""
    return made(tmp_path_factory.mktemp("finished") / "study", STUDY)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished study, to be changed."""
    subprocess.run(["cp", "-a", finished, tmp_path / "study"], check=True)
    return tmp_path / "study"


def stamps(folder: Path) -> dict[str, int]:
    """When each file of the trials and the search was written."""
    files = [path for path in folder.glob("*/**/*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


# What it leaves ------------------------------------------------------------------------------------------------------


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


def test_equal_settings_are_trained_once(finished: Path) -> None:
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
    data = {"data": str(tmp_path / "images"), "img_size": 8, "holdout": 0.2, "workers": 1}
    asked = {"data": data, "recipe": {"epochs": 1, "batch_size": 4}, "groups": {"a": {"networks": {"n": NETWORK}}}}
    cli.ok(*words(tmp_path / "study", asked))
    assert read(tmp_path / "study" / RESULTS)["groups"][0]["rows"][0]["failed"] == {}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("reads", ["holdout", "test"])
def test_the_test_split_is_read_only_where_it_counts(
    reads: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden(ArraySource):
        def image(self, index: int) -> Any:
            raise AssertionError("an image of the test split is read")

        def labels(self) -> Any:
            raise AssertionError("the labels of the test split are read")

    def opened(settings: DataSettings) -> Any:
        data = open_data(settings)
        test: Any = data.test
        test.__class__ = Forbidden
        return data

    for module in ("study.tasks", "search.search", "training.loop", "training.evaluate"):
        monkeypatch.setattr(f"psvit.{module}.open_data", opened)
    asked = words(tmp_path / "study", {**STUDY, "reads": reads})
    if reads == "test":
        with pytest.raises(AssertionError, match="of the test split"):
            cli(*asked)
        return
    cli.ok(*asked)
    row = read(tmp_path / "study" / RESULTS)["groups"][0]["rows"][0]
    log = (tmp_path / "study" / row["folders"][0] / "log.jsonl").read_text().splitlines()
    assert row["images"] == 30, "the hold-out"
    assert f'"top1": {row["top1"][0]}' in log[-1], "the last epoch, not the best"


@pytest.mark.usefixtures("here")
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


def changed(group: str, **entries: Any) -> dict[str, Any]:
    """The small study with other entries in a group."""
    asked = copy.deepcopy(STUDY)
    asked["groups"][group] |= entries
    return asked


# Latency -------------------------------------------------------------------------------------------------------------


def latencies(folder: Path) -> dict[str, float | None]:
    rows = [row for group in read(folder / RESULTS)["groups"] for row in group["rows"]]
    return {row["label"]: row["latency_ms"] for row in rows}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A machine on which the networks take 1, 2, 3 seconds; what it was asked to measure."""
    asked: list[list[str]] = []

    def measure(models: Any, settings: LatencySettings, *where: Any) -> dict[str, float | None]:
        assert settings == LatencySettings()
        assert where == (torch.device("cpu"), 1)
        asked.append([model.model for model, _ in models.values()])
        return {name: float(place) for place, name in enumerate(models, start=1)}

    monkeypatch.setattr("psvit.study.tasks.measure_models", measure)
    return asked


def test_every_network_has_a_latency_and_equal_ones_the_same(finished: Path) -> None:
    found = latencies(finished)
    assert list(found) == ["shares", "attends", "searched", "again"]
    assert all(one is not None and 0 < one < 60_000 for one in found.values())
    assert found["again"] == found["shares"]
    kept = read(finished / "latency.json")
    assert len(kept["networks"]) == 3
    assert read(finished / RESULTS)["latency"] == asdict(LatencySettings())
    assert kept == kept | asdict(LatencySettings()) | {"device": "cpu", "threads": 1}


@pytest.mark.usefixtures("here")
def test_a_latency_is_measured_once(cli: Cli, copied: Path, measured: list[list[str]]) -> None:
    before = latencies(copied)
    cli.ok(*words(copied), "--resume")
    assert measured == []
    assert latencies(copied) == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("why", ["machine", "threads", "broken", "lost", "network"])
def test_latencies_are_measured_anew_all_together(why: str, cli: Cli, copied: Path, measured: list[list[str]]) -> None:
    path, asked = copied / "latency.json", copy.deepcopy(STUDY)
    kept = read(path)
    if why == "network":
        asked["groups"]["small"]["networks"]["more"] = {**NETWORK, "network": "A", "widths": [16]}
    elif why == "broken":
        path.write_text("[")
    elif why == "lost":
        path.write_text(json.dumps({**kept, "networks": kept["networks"][1:]}))
    else:
        path.write_text(json.dumps({**kept, **({"cpu": "another"} if why == "machine" else {"threads": 7})}))
    cli.ok(*words(copied, asked), "--resume")
    (models,) = measured
    assert models[:-1] == ["AS-A", "AA-A", *["A"] * (why == "network")]
    assert list(latencies(copied).values()) == [1000 * place for place in (*range(1, len(models) + 1), 1)]


def test_what_cannot_be_measured_has_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"img_size": [12, 8], "in_chans": 2, "num_classes": 5}
    sizes = []

    class Fails(nn.Module):
        pretrained_cfg: ClassVar = {"input_size": (2, 12, 8)}

        def __init__(self, after: int) -> None:
            super().__init__()
            self.left = after

        def forward(self, x: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("no memory")

    def opened(model: ModelSettings, **shape: Any) -> Any:
        if model.model.startswith("fails"):
            return Fails(int(model.model[5:]))
        network = open_model(model, **shape)
        network.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
        return network

    monkeypatch.setattr(latency, "open_model", opened)
    monkeypatch.setattr(latency, "MIN_SECONDS", 0.0)  # each timing is one call
    names = ("AS-A", "resnet10t", "vit_nothing", "fails0", "fails4")
    models = {name: (ModelSettings(name, **(OWN if name == "AS-A" else {})), shape) for name in names}
    found = measure_models(models, LatencySettings(latency_rounds=3), torch.device("cpu"), 1)
    assert [name for name, seconds in found.items() if seconds is not None] == ["AS-A", "resnet10t"]
    assert set(sizes) == {(1, 2, 12, 8)}
    assert list(found) == list(names)


# Resumed -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_finished_study_trains_nothing(cli: Cli, copied: Path) -> None:
    before, data = stamps(copied), read(copied / RESULTS)
    (copied / RESULTS).unlink()
    assert "5 of 5 are finished already" in cli.ok(*words(copied), "--resume")
    after = stamps(copied)
    assert {name for name in after if after[name] != before.get(name)} == {"found/search/output.txt"}
    assert without_time(read(copied / RESULTS)) == without_time(data)


@pytest.mark.usefixtures("here")
def test_the_seconds_of_all_runs_are_added_up(cli: Cli, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = copied / "study.json"
    record.write_text(json.dumps({**read(record), "wall_seconds": 1e6}))
    cli.ok(*words(copied), "--resume")
    spent = read(record)["wall_seconds"]
    assert 1e6 < spent < 1e6 + 600
    assert read(copied / RESULTS)["wall_seconds"] == pytest.approx(spent, abs=60)

    def stopped(*_: object) -> None:
        time.sleep(0.2)
        raise StoppedError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("psvit.study.crew.work_all", stopped)
        (copied / TRIALS[0] / "trial.json").unlink()
        assert "stopped, all is kept" in cli.refused(*words(copied), "--resume")
    assert read(record)["wall_seconds"] > spent + 0.1, "of a run that was stopped too"
    cli.ok(*words(copied), "--overwrite")
    assert read(record)["wall_seconds"] < 1e6


@pytest.mark.usefixtures("here")
def test_an_interrupted_search_has_no_seconds(cli: Cli, copied: Path) -> None:
    (copied / "found" / "search" / "seconds.json").unlink()  # as a search that was resumed leaves it
    cli.ok(*words(copied), "--resume")
    assert read(copied / RESULTS)["groups"][1]["search_seconds"] is None


@pytest.mark.usefixtures("here")
def test_a_further_seed_and_a_further_network_are_all_that_is_trained(cli: Cli, copied: Path) -> None:
    before = stamps(copied)
    asked = copy.deepcopy(STUDY)
    asked["groups"]["small"]["seeds"] = [0, 1, 2]
    asked["groups"]["found"]["networks"]["more"] = {**NETWORK, "network": "A"} | {"widths": [16]}
    cli.ok(*words(copied, asked), "--resume")
    after = stamps(copied)
    assert {name: stamp for name, stamp in after.items() if name in before} | {"found/search/output.txt": 0} == {
        **before,
        "found/search/output.txt": 0,
    }
    new = {Path(name).parent.as_posix() for name in after.keys() - before.keys() if name.endswith("trial.json")}
    assert new == {"small/shares/seed-2", "small/attends/seed-2", "found/more/seed-0"}
    assert read(copied / RESULTS)["groups"][0]["rows"][0]["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("half", [False, True])
def test_other_settings_are_refused_before_anything_is_trained(half: bool, cli: Cli, copied: Path) -> None:
    for path in copied.rglob("trial.json") if half else ():
        path.unlink()  # as a kill in the midst of all trainings leaves them
    before, mine = stamps(copied), copied.parent / "mine.yaml"
    other = {**STUDY["groups"]["small"]["networks"], "shares": {**NETWORK, "widths": [16, 48]}}
    for changes, reason in (
        ({"recipe": {"epochs": 3, "batch_size": 16}}, f"was trained with epochs 2, not 3 as {mine} says"),
        ({"data": {**STUDY["data"], "limit": 50}}, f"was trained with limit 48, not 50 as {mine} says"),
        (
            changed("small", networks=other),
            f"was trained with another network, widths [16, 32], than {mine} asks for, widths [16, 48]",
        ),
    ):
        said = cli.refused(*words(copied, {**STUDY, **changes}), "--resume")
        assert reason in said
        assert "start anew with --overwrite" in said
        assert str(copied) in said
    assert stamps(copied) == before


RENAMED = {**STUDY, "groups": {"tiny": STUDY["groups"]["small"], "found": STUDY["groups"]["found"]}, "claims": []}


@pytest.mark.parametrize(
    ("name", "asked", "given", "reason"),
    [
        ("other", STUDY, [], "holds the study 'mine', not 'other': "),
        ("mine", {**STUDY, "reads": "holdout"}, [], "holds a study that reads test, not holdout: "),
        ("mine", {**STUDY, "quick": {"seeds": [0]}}, ["--quick"], "holds a study without --quick: "),
        ("mine", {**RENAMED, "recipe": {"epochs": 1}}, [], "holds a study with the group 'small', which "),
        ("mine", {**changed("small", networks={"shares": NETWORK}), "claims": []}, [],
         "holds a study with the network 'attends' of group 'small', which "),
    ],
)  # fmt: skip
def test_another_study_is_not_resumed(
    name: str, asked: Any, given: list[str], reason: str, cli: Cli, copied: Path
) -> None:
    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in copied.rglob("*") if path.is_file()}

    before = everything()
    path = write(copied.parent / f"{name}.yaml", asked)
    said = cli.refused("study", path, "--output", copied, *MACHINE, "--resume", *given)
    assert f"{copied} {reason}" in said
    assert "give another --output, or start anew with --overwrite" in said
    assert everything() == before


@pytest.mark.usefixtures("here")
def test_a_refused_addition_leaves_the_study_as_it_was(cli: Cli, copied: Path) -> None:
    more = changed("small", networks={**STUDY["groups"]["small"]["networks"], "more": NETWORK})
    assert "epochs 2, not 3" in cli.refused(
        *words(copied, {**more, "recipe": {"epochs": 3, "batch_size": 16}}), "--resume"
    )
    cli.ok(*words(copied), "--resume")


@pytest.mark.usefixtures("here")
def test_a_folder_of_an_older_psvit_is_resumed(cli: Cli, copied: Path) -> None:
    (copied / "study.json").unlink()
    assert "5 of 5 are finished already" in cli.ok(*words(copied), "--resume")
    assert read(copied / "study.json")["name"] == "mine"
    assert read(copied / RESULTS)["wall_seconds"] is None, "it kept none"
    assert "by the clock" not in (copied / "tables.md").read_text()


def on_a_machine(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let auto come to `precision`."""
    for module in ("study.trials", "training.machine"):
        monkeypatch.setattr(f"psvit.{module}.best_precision", lambda device: precision)


@pytest.mark.usefixtures("here")
def test_what_auto_came_to_is_kept_and_not_mixed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "study"
    auto = [
        *words(folder, {**STUDY, "groups": {"a": {"networks": {"n": NETWORK}}}, "claims": []}),
        "--precision",
        "auto",
    ]
    on_a_machine("bfloat16", monkeypatch)
    cli.ok(*auto)
    trial = folder / "a" / "n" / "seed-0" / "trial.json"
    machine = read(folder / RESULTS)["machine"]
    assert (machine["precision"], machine["computed_in"]) == ("auto", "bfloat16")
    assert read(trial)["computed_in"] == read(folder / "study.json")["computed_in"] == "bfloat16"
    assert read(trial)["made_with"]["precision"] == "auto"
    cli.ok(*auto, "--resume")

    on_a_machine("float32", monkeypatch)
    reason = (
        "was computed in bfloat16, and --precision auto comes to float32 here: resume on the machine it was begun on"
    )
    assert f"{trial.parent} {reason}" in cli.refused(*auto, "--resume")
    trial.unlink()
    assert f"{folder} {reason}" in cli.refused(*auto, "--resume"), "a training that is not finished would be mixed"
    (folder / "study.json").unlink()
    cli.ok(*auto, "--resume")  # of an older psvit, nobody knows


@pytest.mark.usefixtures("here")
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


def test_a_precision_that_is_given_is_what_is_computed_in(finished: Path) -> None:
    machine = read(finished / RESULTS)["machine"]
    assert (machine["precision"], machine["computed_in"]) == ("float32", "float32")
    assert {read(finished / trial / "trial.json")["computed_in"] for trial in TRIALS} == {"float32"}


@pytest.mark.usefixtures("here")
def test_an_older_trial_is_taken_as_now(cli: Cli, copied: Path) -> None:
    for path in copied.rglob("trial.json"):
        kept = read(path)
        del kept["computed_in"]
        path.write_text(json.dumps(kept))
    assert "5 of 5 are finished already" in cli.ok(*words(copied), "--resume")


@pytest.mark.parametrize("text", ["{", "[1]", '{"name": "mine"}', '{"groups": [1]}', "\udcff"])
def test_a_broken_study_is_named(text: str, cli: Cli, copied: Path) -> None:
    (copied / "study.json").write_bytes(text.encode(errors="surrogateescape"))
    said = cli.refused(*words(copied), "--resume")
    assert f"{copied / 'study.json'} is broken" in said
    assert "remove it, or start anew with --overwrite" in said


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"made_with": [], "result": {}}', "\udcff"])
def test_a_broken_trial_is_named(text: str, cli: Cli, copied: Path) -> None:
    path = copied / TRIALS[0] / "trial.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    said = cli.refused(*words(copied), "--resume")
    assert f"{path} is broken" in said
    assert "remove its folder, or start anew with --overwrite" in said


def test_a_folder_in_use_is_refused(cli: Cli, copied: Path) -> None:
    before = stamps(copied)
    assert "already holds a study: give --resume to go on" in cli.refused(*words(copied))
    (copied / RESULTS).unlink()
    assert "already holds a study" in cli.refused(*words(copied)), "one that is not finished"
    assert stamps(copied) == before
    cli.ok(*words(copied), "--dry-run")


@pytest.mark.usefixtures("here")
def test_overwriting_leaves_what_is_the_users(cli: Cli, copied: Path) -> None:
    mine = [
        copied / "notes.txt",
        copied / TRIALS[0] / "notes.txt",
        copied / "found" / "search" / "notes.txt",
        copied / "my" / "own" / "folder" / "output.txt",
        copied / "my" / "own" / "folder" / "trial.json",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    asked = {**STUDY, "claims": [], "groups": {"new": {"networks": {"shares": NETWORK}}}}
    cli.ok(*words(copied, asked), "--overwrite")
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    left = {str(path.relative_to(copied)) for path in copied.glob("*/**/*") if path.is_file()}
    assert {name for name in left if not name.startswith("new/")} == {str(p.relative_to(copied)) for p in mine[1:]}
    assert sorted(path.name for path in copied.iterdir()) == [
        "found", "latency.json", "mine.png", "mine.svg", "my", "new", "notes.txt", "report.html", "results.json",
        "small", "study.json", "tables.md",
    ]  # fmt: skip
    assert not (copied / "small" / "attends").exists()


@pytest.mark.usefixtures("here")
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


@pytest.mark.usefixtures("here")
def test_what_is_finished_is_told_once(cli: Cli, tmp_path: Path) -> None:
    asked = {**STUDY, "groups": {"a": {"networks": {"n": NETWORK}}}, "claims": []}
    cli.ok(*words(tmp_path / "study", asked))
    assert cli.ok(*words(tmp_path / "study", asked), "--resume").count("finished already") == 1


def test_the_page_tells_how_to_make_the_study_again(finished: Path) -> None:
    machine = "--device cpu --precision float32 --threads 1"
    command = f"psvit study {shlex.quote(str(finished.parent / 'mine.yaml'))} --output {finished} {machine}"
    page = (finished / "report.html").read_text()
    assert f"<code>{command}</code>" in html.unescape(re.sub("</?span>", "", page))


def test_a_study_says_whose_process_died(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: object) -> None:
        raise DiedError(2)

    monkeypatch.setattr("psvit.study.crew.work_all", died)
    said = cli.refused(*words(tmp_path / "study"), "--jobs", "2")
    assert "the process of small, attends, seed 0 died (out of memory?)" in said
    assert "go on with --resume, perhaps with fewer --jobs" in said
