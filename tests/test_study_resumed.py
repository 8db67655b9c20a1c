"""A study that is resumed: what is kept, added, refused, overwritten."""

import copy
from pathlib import Path
from typing import Any

import pytest
from small_studies import NETWORK, STUDY, TRIALS, on_a_machine, without_time, words, write
from tiny import CPU, MACHINE, Cli, read

from psvit.errors import UserError
from psvit.studies.study_file import read_study
from psvit.studies.study_folder import RESULTS, recorded

pytestmark = pytest.mark.usefixtures("threads_kept")


def stamps(folder: Path) -> dict[str, int]:
    """When each file of the trials and the search was written."""
    files = [path for path in folder.glob("*/**/*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def changed(group: str, **entries: Any) -> dict[str, Any]:
    """The small study with other entries in a group."""
    asked = copy.deepcopy(STUDY)
    asked["groups"][group] |= entries
    return asked


@pytest.mark.usefixtures("briefly")
def test_a_finished_study_trains_nothing(cli: Cli, copied: Path) -> None:
    before, data = stamps(copied), read(copied / RESULTS)
    (copied / RESULTS).unlink()
    assert "5 of 5 are finished already" in cli.ok(*words(copied), "--resume")
    after = stamps(copied)
    assert {name for name in after if after[name] != before.get(name)} == {"found/search/output.txt"}
    assert without_time(read(copied / RESULTS)) == without_time(data)


@pytest.mark.usefixtures("briefly")
def test_a_study_of_an_older_psvit_is_resumed(cli: Cli, copied: Path) -> None:
    (copied / "study.json").unlink()
    (copied / "found" / "search" / "seconds.json").unlink()  # an interrupted search has none either
    assert "5 of 5 are finished already" in cli.ok(*words(copied), "--resume")
    data = read(copied / RESULTS)
    assert (data["wall_seconds"], data["groups"][1]["search_seconds"]) == (None, None), "they are not known"


def test_a_study_of_a_folder_of_images_that_has_changed_is_refused(tmp_path: Path) -> None:
    study = read_study("claims")
    for images in ({"one": "a"}, {"one": "a", "two": "b"}, {"two": "b"}):  # a study may get more groups
        with recorded(tmp_path, study, CPU, images):
            pass
    with (
        pytest.raises(UserError, match="the images of group 'two' have changed since"),
        recorded(tmp_path, study, CPU, {"two": "c"}),
    ):
        raise AssertionError("it went on")


@pytest.mark.usefixtures("briefly")
def test_a_further_seed_and_a_further_network_are_all_that_is_trained(cli: Cli, copied: Path) -> None:
    before = stamps(copied)
    asked = changed("small", seeds=[0, 1, 2])
    asked["groups"]["found"]["networks"]["more"] = {**NETWORK, "network": "A", "widths": [16]}
    cli.ok(*words(copied, asked), "--resume")
    after = stamps(copied)
    del before["found/search/output.txt"]
    assert before.items() <= after.items()
    new = {Path(name).parent.as_posix() for name in after.keys() - before.keys() if name.endswith("trial.json")}
    assert new == {"small/shares/seed-2", "small/attends/seed-2", "found/more/seed-0"}
    assert read(copied / RESULTS)["groups"][0]["rows"][0]["seeds"] == [0, 1, 2]


def test_other_settings_are_refused_before_anything_is_trained(cli: Cli, copied: Path) -> None:
    mine = copied.parent / "mine.yaml"
    other = {**STUDY["groups"]["small"]["networks"], "shares": {**NETWORK, "widths": [16, 48]}}
    fewer = {**changed("small", networks={"shares": NETWORK}), "claims": []}
    for half in (False, True):
        for path in copied.rglob("trial.json") if half else ():
            path.unlink()  # as after a kill during the trainings
        before = stamps(copied)
        for asked, reason in (
            ({**STUDY, "recipe": {"epochs": 3, "batch_size": 16}}, f"was trained with epochs 2, not 3 as {mine} says"),
            (changed("small", networks=other), f"was trained with widths [16, 32], not [16, 48] as {mine} says"),
            ({**STUDY, "title": "x", "reads": "validation"}, "holds a study that reads test, not validation: "),
            (fewer, "holds a study with the network 'attends' of group 'small', which "),
        ):
            said = cli.refused(*words(copied, asked), "--resume")
            assert reason in said
            assert "start anew with --overwrite" in said
        assert stamps(copied) == before
    path = write(copied.parent / "other.yaml", STUDY)
    said = cli.refused("study", path, "--output", copied, *MACHINE, "--resume")
    assert f"{copied} holds the study 'mine', not 'other': " in said


@pytest.mark.usefixtures("briefly")
def test_what_auto_came_to_is_kept_and_not_mixed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "study"
    asked = {**STUDY, "groups": {"a": {"networks": {"n": NETWORK}}}, "claims": []}
    auto = [*words(folder, asked), "--precision", "auto"]
    on_a_machine("bfloat16", monkeypatch)
    cli.ok(*auto)
    trial = folder / "a" / "n" / "seed-0" / "trial.json"
    machine = read(folder / RESULTS)["machine"]
    assert (machine["precision"], machine["computed_in"]) == ("auto", "bfloat16")
    on_a_machine("float32", monkeypatch)
    reason = "was computed in bfloat16, and --precision auto comes to float32 here: resume on the machine"
    assert f"{trial.parent} {reason}" in cli.refused(*auto, "--resume")
    trial.unlink()
    assert f"{folder} {reason}" in cli.refused(*auto, "--resume"), "an unfinished training would be mixed"
    (folder / "study.json").unlink()  # as of an older psvit
    assert f"{folder} does not tell in which precision it was computed" in cli.refused(*auto, "--resume")


@pytest.mark.parametrize("name", ["study.json", f"{TRIALS[0]}/trial.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "{}", "\udcff"])
def test_a_broken_record_is_named(name: str, text: str, cli: Cli, copied: Path) -> None:
    (copied / name).write_bytes(text.encode(errors="surrogateescape"))
    said = cli.refused(*words(copied), "--resume")
    assert f"{copied / name} is broken" in said
    assert "remove it, or start anew with --overwrite" in said


def test_a_folder_in_use_is_refused(cli: Cli, copied: Path) -> None:
    before = stamps(copied)
    assert "already holds a study: give --resume to go on" in cli.refused(*words(copied))
    (copied / RESULTS).unlink()
    assert "already holds a study" in cli.refused(*words(copied)), "one that is not finished"
    assert stamps(copied) == before
    cli.ok(*words(copied), "--dry-run")


@pytest.mark.usefixtures("here")
def test_overwriting_leaves_what_is_the_users(cli: Cli, copied: Path) -> None:
    folders = (copied, copied / TRIALS[0], copied / "found" / "search", copied / "my" / "own" / "folder")
    mine = [folder / "notes.txt" for folder in folders] + [folders[-1] / "trial.json"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    asked = {**STUDY, "claims": [], "groups": {"new": {"networks": {"shares": NETWORK}}}}
    cli.ok(*words(copied, asked), "--overwrite")
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    left = {path for path in copied.glob("*/**/*") if path.is_file() and path.relative_to(copied).parts[0] != "new"}
    assert left == set(mine[1:])


@pytest.mark.usefixtures("briefly")
def test_groups_may_be_run_one_after_another(cli: Cli, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    said = cli.refused(*words(folder), "--groups", "large")
    assert "--groups 'large' is not a group of mine: it has 'small', 'found'" in said
    cli.ok(*words(folder), "--groups", "Small")
    first, whole = read(folder / RESULTS), read(finished / RESULTS)
    assert without_time(first["groups"]) == without_time(whole["groups"][:1])
    assert (len(first["claims"]), len(first["config"]["figures"])) == (1, 1)
    assert "4 of 5 are finished already" in cli.ok(*words(folder), "--groups", "found", "--resume")
    assert without_time(read(folder / RESULTS)) == without_time(whole)
