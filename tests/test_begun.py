"""A scheduler repeats one command until it is done: --resume begins what is not begun, and says what is finished."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from image_sources import count_decoded
from small_studies import STUDY, words
from tiny import MACHINE, RUN, TRAIN, Cli, config, image_folder, log, read, same_weights

from psvit.engine.resuming import check_same, same_value
from psvit.engine.train_config import Machine
from psvit.errors import UserError
from psvit.tasks.classification.classify import train

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = ["--epochs", "1"]
SCENES = ["--scenes", "12", "--img-size", "48", "--validation", "0.2", *MACHINE, *FAST]
COMMANDS = {
    "train": [*TRAIN, *FAST],
    "search": ["search", *RUN[1 : RUN.index("--models")], *FAST],
    "run": [*RUN, *FAST, "--models", "deit", "searched"],
    "detect": ["detect", "train", *SCENES],
    "segment": ["segment", "train", *SCENES],
}
SAYS = {"search": "{} is finished: its network is taken", "run": "finished  {}: all networks are trained and compared"}


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.slow] if c in ("detect", "segment") else []) for c in COMMANDS]
)
def test_one_command_until_it_is_done(command: str, cli: Cli, tmp_path: Path) -> None:
    words = [*COMMANDS[command], "--output", tmp_path / "run", "--resume"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".psvit.lock").write_text("123")  # as a kill before the first saving leaves it
    cli.ok(*words)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    says = SAYS.get(command, "finished  {}: all 1 epochs are done, there is nothing to resume")
    assert says.format(tmp_path / "run") in cli.ok(*words)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert before == after, "nothing is done again"


def test_a_study_until_it_is_done(cli: Cli, here: None, tmp_path: Path) -> None:
    command = [*words(tmp_path / "study", STUDY), "--resume"]
    cli.ok(*command)
    before = read(tmp_path / "study" / "results.json")["groups"]
    said = cli.ok(*command)
    assert f"finished  {tmp_path / 'study'}: all 5 trainings were done, its results are written again" in said
    assert read(tmp_path / "study" / "results.json")["groups"] == before


def test_a_run_with_config_alone_goes_on(tmp_path: Path) -> None:
    """Killed before its first saving."""
    train(config(tmp_path / "whole"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run_config.json").write_bytes((tmp_path / "whole" / "run_config.json").read_bytes())
    with pytest.raises(UserError, match="was trained with --epochs 2, not 3: resume with the same settings"):
        train(config(tmp_path / "run", run={"resume": True}, epochs=3))
    best = train(config(tmp_path / "run", run={"resume": True}))
    assert same_weights(tmp_path / "run" / "last", tmp_path / "whole" / "last")
    again = train(config(tmp_path / "run", run={"resume": True}))
    assert again == {**best, **again}
    assert again["epoch"] == best["epoch"]


def test_a_run_that_was_killed_at_its_end_is_finished(tmp_path: Path) -> None:
    train(config(tmp_path))
    (tmp_path / "state.pt").write_bytes(b"of an earlier step")  # the last epoch's checkpoints and log are there
    told: list[str] = []
    train(config(tmp_path, run={"resume": True}), told.append)
    assert told == [f"finished  {tmp_path}: all 2 epochs are done, there is nothing to resume"]
    assert not (tmp_path / "state.pt").exists()
    (tmp_path / "log.jsonl").write_text(json.dumps({**log(tmp_path)[0], "images_per_second": 1.0}) + "\n")
    told.clear()
    train(config(tmp_path, run={"resume": True}), told.append)  # killed before the last epoch's log
    assert not told[0].startswith("finished")


def test_a_run_is_not_resumed_in_another_precision(tmp_path: Path) -> None:
    now = {"config": asdict(config(machine=Machine())), "global_batch": 16, "computed_in": "float32"}
    (tmp_path / "run_config.json").write_text(json.dumps({**now, "computed_in": "bfloat16"}))
    with pytest.raises(UserError, match="was computed in bfloat16, and --precision auto is float32 here"):
        check_same(tmp_path, now)
    (tmp_path / "run_config.json").write_text(json.dumps(now))
    check_same(tmp_path, now)


def test_what_has_no_config_is_not_taken_for_an_empty_folder(tmp_path: Path) -> None:
    train(config(tmp_path))
    (tmp_path / "run_config.json").unlink()
    with pytest.raises(UserError, match=r"holds log\.jsonl, but no run_config\.json: give another"):
        train(config(tmp_path, run={"resume": True}))
    assert (tmp_path / "best").is_dir()


def test_a_folder_spelled_otherwise_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "I")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for other in ("I/", "./I", "../" + tmp_path.name + "/I", str(tmp_path / "I"), "~/I"):
        assert same_value("data.data", "I", other)
    assert not same_value("data.data", "I", "J")
    assert not same_value("data.data", "I", None)
    assert not same_value("run.output", "I", "I/")
    image_folder(tmp_path / "J")
    assert not same_value("data.data", "I", "J")


def test_a_run_goes_on_with_a_folder_spelled_otherwise(cli: Cli, tmp_path: Path) -> None:
    words = [*TRAIN, "--limit", "8", "--img-size", "8", "--workers", "0", "--epochs", "1", "--output", tmp_path / "run"]
    folder = image_folder(tmp_path / "I")
    cli.ok(*words, "--data", f"{folder}/")
    assert "finished" in cli.ok(*words, "--data", folder, "--resume")
    assert "was trained with --data" in cli.refused(*words, "--data", image_folder(tmp_path / "J"), "--resume")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["search", "run"])
def test_what_is_finished_needs_its_images_no_more(
    command: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = count_decoded(monkeypatch)
    photos = image_folder(tmp_path / "photos", each=12)
    flags = RUN[RUN.index("--limit") + 2 : RUN.index("--models")]
    models = ["--models", "searched"] if command == "run" else []
    words = [command, "--data", photos, "--img-size", "8", "--workers", "0", *flags, *FAST, *models]
    words += ["--output", tmp_path / "run", "--resume"]
    cli.ok(*words)
    assert len(decoded) == len(set(decoded)) > 12  # once in all trainings of the run
    assert not list((tmp_path / "run").rglob("images.sqlite*"))
    (photos / "ant" / "new.png").write_bytes(next((photos / "bee").iterdir()).read_bytes())
    said = SAYS[command].format(tmp_path / "run")
    assert said in cli.ok(*words)
    assert said in cli.ok(*words, "--accept-changes")
