"""A study that takes what an earlier one trained alike, and trains the rest."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_studies import NETWORK, STUDY, made, without_time, words, write
from tiny import Cli, read

from psvit.errors import UserError
from psvit.studies.known import known_of
from psvit.studies.study_file import read_study
from psvit.studies.study_folder import RESULTS
from psvit.studies.study_tables import made_on

pytestmark = pytest.mark.usefixtures("threads_kept", "briefly")


@pytest.fixture
def before(finished: Path, tmp_path: Path) -> Path:
    """Results of a finished study, in a file of its own."""
    return Path(shutil.copy(finished / RESULTS, tmp_path / "elsewhere.json"))


def trained(folder: Path) -> list[str]:
    """Which trainings and searches a study's folder holds."""
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("output.txt"))


def test_a_study_that_is_known_trains_nothing(before: Path, cli: Cli, tmp_path: Path) -> None:
    assert "0 trainings" in cli.ok(*words(tmp_path / "study"), "--known", before)
    assert trained(tmp_path / "study") == []
    data, old = read(tmp_path / "study" / RESULTS), read(before)
    source = {"file": "elsewhere.json", "machine": old["machine"], "versions": old["versions"]}
    rows = [row for group in data["groups"] for row in group["rows"]]
    assert [row.pop("taken_from") for row in rows] == [source] * 4
    assert without_time(data) == without_time({**old, "study": "mine", "config": {**old["config"], "name": "mine"}})
    assert all(row["latency_ms"] > 0 for row in rows), "measured here"
    assert data["training_seconds"] == pytest.approx(old["training_seconds"], abs=1), "whole seconds, of rounded parts"
    assert data["groups"][1]["search_seconds"] == old["groups"][1]["search_seconds"] > 0


def test_only_what_is_new_is_trained(before: Path, cli: Cli, tmp_path: Path) -> None:
    asked = copy.deepcopy(STUDY)
    asked["groups"]["small"]["networks"]["added"] = {**NETWORK, "network": "A-A"}
    assert "2 trainings" in cli.ok(*words(tmp_path / "study", asked), "--known", before)
    assert trained(tmp_path / "study") == ["small/added/seed-0", "small/added/seed-1"]
    (tmp_path / "whole").mkdir()
    whole = read(made(tmp_path / "whole" / "study", asked) / RESULTS)
    data = read(tmp_path / "study" / RESULTS)
    cpu = f"{data['machine']['cpu']} in float32"
    assert made_on(data).endswith(
        f": 2 of them 2 at a time on {cpu}, 5 taken from an earlier elsewhere.json, made on {cpu}."
    )
    rows = [row for group in data["groups"] for row in group["rows"]]
    assert [row.pop("taken_from", None) is None for row in rows] == [False, False, True, False, False]
    assert without_time(data) == without_time(whole)


def test_what_is_not_alike_is_not_known(before: Path, cli: Cli, tmp_path: Path) -> None:
    every = {"shares", "attends", "searched", "again"}
    small = {"shares", "attends"}
    for group, change, new in (
        ("small", {}, set()),
        ("small", {"seeds": [0, 2]}, small),
        ("small", {"recipe": {"epochs": 1}}, small),
        ("small", {"data": {"limit": 40}}, small),
        ("small", {"networks": {**STUDY["groups"]["small"]["networks"], "shares": {**NETWORK, "widths": [16, 24]}}},
         {"shares"}),
        ("found", {"macs": "240k"}, {"searched", "again"}),
    ):  # fmt: skip
        asked = copy.deepcopy(STUDY)
        asked["groups"][group] |= change
        said = cli.ok(*words(tmp_path / "study", asked), "--known", before, "--dry-run")
        known = {line.split(":")[0].strip() for line in said.splitlines() if ": known, seeds" in line}
        assert known == every - new, change


def test_a_network_of_which_a_seed_failed_is_trained_again(before: Path, cli: Cli, tmp_path: Path) -> None:
    data = read(before)
    data["groups"][0]["rows"][0]["failed"] = {"1": "the loss is nan"}
    cli.ok(*words(tmp_path / "study"), "--known", write_json(tmp_path / "old.json", data))
    assert trained(tmp_path / "study") == ["small/shares/seed-0", "small/shares/seed-1"]


def write_json(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_what_holds_nothing_known_is_refused(
    before: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    data = read(before)
    write_json(tmp_path / "split.json", {**data, "config": {**data["config"], "reads": "validation"}})
    for given, reason in (
        (["nowhere.json"], "--known nowhere.json cannot be read (No such file or directory)"),
        (["mine.yaml"], "--known mine.yaml holds no results of a study (Expecting value"),
        (["split.json"], "was made with reads validation, not test"),
        (["elsewhere.json", "--precision", "bfloat16"], "computed in float32, and here it is bfloat16): leave out"),
    ):
        assert reason in cli.refused(*asked, "--known", *given)
        assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("precision", ["float32", "auto"])
@pytest.mark.parametrize("came_to", ["float32", "bfloat16", None])
def test_a_precision_that_is_not_told_is_not_the_same(
    precision: str, came_to: str | None, before: Path, tmp_path: Path
) -> None:
    data = read(before)
    data["machine"] |= {"precision": precision, "computed_in": came_to}
    if came_to is None:
        del data["machine"]["computed_in"]
    path, asked = write_json(tmp_path / "old.json", data), read_study(str(write(tmp_path / "mine.yaml", STUDY)))
    if came_to == "float32" or (precision, came_to) == ("float32", None):  # asked for float32, it was float32
        known = known_of(path, asked, "float32")
        assert (len(known.rows), known.notes) == (4, ())
    else:
        told = "computed in bfloat16" if came_to else "of a precision that was not recorded"
        with pytest.raises(UserError, match=f"is of no use here .4 networks .* {told}, and here it is float32"):
            known_of(path, asked, "float32")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda group: group.update(train_images=47), "with 47 training images, and here it would be with 48"),
        (lambda group: group["shape"].update(num_classes=9), "'num_classes': 9}, and here"),
        (lambda group: group["rows"][0]["arch"].update(pool_op="avg"), "'pool_op': 'avg'"),
        (lambda group: group["rows"][0].update(arch=None, network="A-A 2d 16-32 /2"), "with A-A 2d 16-32 /2, and"),
        (lambda group: group.pop("train_images"), "with None training images"),
    ],
)
def test_the_same_names_of_other_images_or_networks_are_refused(
    change: Callable[[dict[str, Any]], Any], told: str, before: Path, cli: Cli, tmp_path: Path
) -> None:
    data = read(before)
    change(data["groups"][0])
    said = cli.refused(*words(tmp_path / "study"), "--known", write_json(tmp_path / "old.json", data), "--dry-run")
    assert "network shares of group small was trained with" in said
    assert told in said


def test_settings_that_came_later_are_not_taken_for_the_same(before: Path, tmp_path: Path) -> None:
    data = read(before)
    asked = copy.deepcopy(STUDY) | {"data": {**STUDY["data"], "workers": 1}}  # changes no number
    for group in data["config"]["groups"]:
        del group["data"]["join_duplicates"], group["recipe"]["repeats"]
    path, asked = write_json(tmp_path / "old.json", data), read_study(str(write(tmp_path / "mine.yaml", asked)))
    with pytest.raises(UserError, match="no network of this study with the same settings"):
        known_of(path, asked, "float32")
    for group in data["config"]["groups"]:
        group["recipe"]["repeats"] = 1  # as asked; where it is missing, it was 3, the default of Recipe
    assert len(known_of(write_json(path, data), asked, "float32").rows) == 4
