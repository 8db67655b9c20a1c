"""psvit study: the same whatever the jobs, killed or stopped and resumed; what it refuses; what it leaves alone."""

import copy
import html
import math
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import MACHINE, Cli, image_folder, read, same_weights, start

from psvit.cli import main
from psvit.errors import UserError
from psvit.study import workers
from psvit.study.study import RESULTS
from psvit.study.workers import DiedError, StoppedError, work_all
from psvit.training.data import open_data
from psvit.training.settings import DataSettings
from psvit.training.sources import ArraySource

NETWORK = {"network": "AS-A", "widths": [16, 32], "head_dim": 8, "patch_size": 2, "macs": "keep"}
SEARCH = {"depth": [2], "stages": [1, 2], "stage_widths": ["16", "16,32"], "head_dim": 8, "patch_size": 2, "least": 0}
STUDY: dict[str, Any] = {
    "title": "Does it work?",
    "data": {"data": "digits", "limit": 48, "holdout": 0.02},
    "recipe": {"epochs": 2, "batch_size": 16},
    "groups": {
        "small": {"seeds": [0, 1], "networks": {"shares": NETWORK, "attends": {**NETWORK, "network": "AA-A"}}},
        "found": {
            "macs": "250k",
            "search": {**SEARCH, "supernet_epochs": 1},
            "networks": {"searched": "searched", "again": NETWORK},
        },
    },
    "claims": [{"claim": "sharing", "better": ["small", "shares"], "worse": ["small", "attends"]}],
}
LONG = {**STUDY, "data": {**STUDY["data"], "limit": 240}, "recipe": {"epochs": 4, "batch_size": 8}}  # 30 steps an epoch
TRIALS = ("small/shares/seed-0", "small/shares/seed-1", "small/attends/seed-0", "small/attends/seed-1",
          "found/searched/seed-0")  # fmt: skip


def in_turn(
    tasks: Sequence[Callable[[], Any]],
    jobs: int,
    done: Callable[[int, Any], None],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """`work_all` in this process."""
    for number, task in enumerate(tasks):
        try:
            value = task()
        except UserError as error:
            value = UserError(str(error))
        done(number, value)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings run in this process, one after the other: it saves the start of others."""
    monkeypatch.setattr("psvit.study.study.work_all", in_turn)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def words(folder: Path, data: Any = STUDY) -> list[str]:
    """The command for a study that is kept in `folder`."""
    return ["study", str(write(folder.parent / "mine.yaml", data)), "--output", str(folder), *MACHINE]


def without_time(data: Any) -> Any:
    """Results without what differs from run to run."""
    free = ("seconds", "training_seconds", "machine")
    if isinstance(data, dict):
        return {key: without_time(value) for key, value in data.items() if key not in free}
    return [without_time(value) for value in data] if isinstance(data, list) else data


def check_equal(a: Path, b: Path) -> None:
    assert without_time(read(a / RESULTS)) == without_time(read(b / RESULTS))
    for trial in TRIALS:
        for name in ("best", "last"):
            assert same_weights(a / trial / name, b / trial / name)


def made(folder: Path, data: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psvit.study.study.work_all", in_turn)
        assert main(words(folder, data)) == 0
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, not to be changed."""
    return made(tmp_path_factory.mktemp("finished") / "study", STUDY)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long study, without interruption."""
    return made(tmp_path_factory.mktemp("uninterrupted") / "study", LONG)


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

    for module in ("study.study", "search.search", "training.loop", "training.evaluate"):
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


# Resumed -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished study, to be changed."""
    subprocess.run(["cp", "-a", finished, tmp_path / "study"], check=True)
    return tmp_path / "study"


@pytest.mark.usefixtures("here")
def test_a_finished_study_trains_nothing(cli: Cli, copied: Path) -> None:
    before, data = stamps(copied), read(copied / RESULTS)
    (copied / RESULTS).unlink()
    assert "5 of 5 are finished already" in cli.ok(*words(copied), "--resume")
    after = stamps(copied)
    assert {name for name in after if after[name] != before.get(name)} == {"found/search/output.txt"}
    assert without_time(read(copied / RESULTS)) == without_time(data)


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
    for changes, reason in (
        ({"recipe": {"epochs": 3, "batch_size": 16}}, f"was trained with epochs 2, not 3 as {mine} says"),
        ({"data": {**STUDY["data"], "limit": 50}}, f"was trained with limit 48, not 50 as {mine} says"),
        (
            {"groups": {"small": {"networks": {"shares": {**NETWORK, "widths": [16, 48]}}}}, "claims": []},
            f"was trained with another network, widths [16, 32], than {mine} asks for, widths [16, 48]",
        ),
    ):
        said = cli.refused(*words(copied, {**STUDY, **changes}), "--resume")
        assert reason in said
        assert "start anew with --overwrite" in said
        assert str(copied) in said
    assert stamps(copied) == before


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
        "found", "mine.png", "mine.svg", "my", "new", "notes.txt", "report.html", "results.json", "small", "tables.md",
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
        "a", "report.html", "results.json", "tables.md",
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


# Killed and stopped --------------------------------------------------------------------------------------------------


def until(reached: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait, minutes on a machine that has other things to do."""
    end = time.monotonic() + 600
    while not reached():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.005)


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that one has started, and those that these have."""
    found, new = [], [process.pid]
    while new:
        pid = new.pop()
        path = Path(f"/proc/{pid}/task/{pid}/children")
        try:
            own = [int(word) for word in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            own = []
        found += own
        new += own
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def in_the_midst(folder: Path) -> bool:
    """Whether a training is finished, and another has saved a state."""
    return all(any(folder.glob(f"*/*/seed-*/{name}")) for name in ("trial.json", "state.pt"))  # looks into none of them


@pytest.fixture
def running(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The long study on two processes, in a group of its own."""
    process = start(*words(tmp_path / "study", LONG), "--jobs", "2", start_new_session=True)
    yield process
    for pid in (process.pid, *children(process)):  # only where the test has failed
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_killed_and_resumed_is_uninterrupted(
    group: bool, running: "subprocess.Popen[str]", cli: Cli, tmp_path: Path, uninterrupted: Path, here: None
) -> None:
    until(lambda: in_the_midst(tmp_path / "study"), running)
    started = children(running)
    assert len(started) >= 2
    if group:
        os.killpg(running.pid, signal.SIGKILL)
    else:
        running.kill()
    running.communicate()
    until(lambda: not any(map(alive, started)))  # the workers end with their parent
    assert not (tmp_path / "study" / RESULTS).exists()
    cli.ok(*words(tmp_path / "study", LONG), "--resume")
    check_equal(tmp_path / "study", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C at the start", "SIGTERM", "SIGTERM to the group"])
def test_stopped_and_resumed_is_uninterrupted(
    how: str, running: "subprocess.Popen[str]", cli: Cli, tmp_path: Path, uninterrupted: Path, here: None
) -> None:
    at_the_start = how == "Ctrl-C at the start"
    until(lambda: len(children(running)) >= 2 if at_the_start else in_the_midst(tmp_path / "study"), running)
    started = children(running)
    if how == "SIGTERM":
        running.terminate()
    else:  # a terminal's Ctrl-C reaches the whole group, as does what ends a service or a job
        os.killpg(running.pid, signal.SIGTERM if "SIGTERM" in how else signal.SIGINT)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 2
    assert said == f"psvit: stopped, all is kept in {tmp_path / 'study'}: go on with --resume\n"
    until(lambda: not any(map(alive, started)))
    assert len(list((tmp_path / "study").rglob("trial.json"))) < len(TRIALS)
    cli.ok(*words(tmp_path / "study", LONG), "--resume")
    check_equal(tmp_path / "study", uninterrupted)


# Processes -----------------------------------------------------------------------------------------------------------


def test_every_task_is_done_by_other_processes() -> None:
    found: dict[int, Any] = {}
    work_all([partial(math.sqrt, 4), os.getpid, partial(math.sqrt, 9)], 2, found.__setitem__)
    assert (found[0], found[2]) == (2, 3)
    assert found[1] != os.getpid()
    work_all([], 2, found.__setitem__)
    assert multiprocessing.active_children() == []


BEYOND_REACH = """
import signal, time
from psvit.study.workers import StoppedError
time.sleep(0.5)  # as while torch is imported
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
end = time.monotonic() + 30
while not heard and time.monotonic() < end:
    time.sleep(0.01)
if heard:
    raise StoppedError("stopped at step 1")
"""


def test_a_request_to_stop_reaches_a_task_that_is_not_ready_yet() -> None:
    done: list[int] = []
    with pytest.raises(StoppedError):
        work_all(
            [partial(exec, BEYOND_REACH, {}), os.getpid], 1, lambda number, value: done.append(number), lambda: True
        )
    assert done == [], "it was heard, and no other was begun"
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("error", ["StoppedError('at step 1')", "KeyboardInterrupt"])
def test_a_task_that_was_stopped_stops_the_work_and_has_not_failed(error: str) -> None:
    """A signal to the whole group may reach a task before the process that asks whether it was stopped."""
    found: dict[int, Any] = {}
    halted = partial(exec, f"from psvit.study.workers import StoppedError\nraise {error}", {})
    with pytest.raises(StoppedError):
        work_all([partial(math.sqrt, 4), halted, partial(math.sqrt, 9)], 1, found.__setitem__)
    assert found == {0: 2}
    assert multiprocessing.active_children() == []


def test_a_stopped_training_or_search_is_not_taken_as_failed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    def first(tasks: Sequence[Callable[[], Any]], *_: object) -> None:
        for task in tasks[:2]:  # the search, and a training
            with pytest.raises(StoppedError) as error:
                task()
            stopped.append(str(error.value))
        raise StoppedError("stopped")

    monkeypatch.setattr("psvit.study.study.work_all", first)
    monkeypatch.setattr("psvit.training.machine.Interrupt.requested", lambda self, accelerator: True)
    assert "stopped, all is kept in" in cli.refused(*words(tmp_path / "study"))
    assert [line.split(", saved")[0] for line in stopped] == ["stopped at step 1 of 3", "stopped at step 1 of 6"]
    assert not (tmp_path / "study" / RESULTS).exists()


def test_a_process_that_dies_is_told() -> None:
    found: dict[int, Any] = {}
    with pytest.raises(DiedError, match=r"the process of task 2 died: was it out of memory\?"):
        work_all([partial(math.sqrt, 4), partial(os._exit, 0), partial(math.sqrt, 9)], 1, found.__setitem__)
    assert found == {0: 2}
    assert multiprocessing.active_children() == []


def test_a_task_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"task 1 failed\nTraceback(.|\n)*invalid literal"):
        work_all([partial(int, "x")], 1, lambda number, value: None)
    with pytest.raises(OSError, match=r"FileNotFoundError: .*/no/such/file"):
        work_all([partial(open, "/no/such/file")], 1, lambda number, value: None)
    assert multiprocessing.active_children() == []


def test_a_study_says_whose_process_died(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: object) -> None:
        raise DiedError(2)

    monkeypatch.setattr("psvit.study.study.work_all", died)
    said = cli.refused(*words(tmp_path / "study"), "--jobs", "2")
    assert "the process of small, attends, seed 0 died (out of memory?)" in said
    assert "go on with --resume, perhaps with fewer --jobs" in said


def test_workers_do_not_keep_the_parents_signals_blocked() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    work_all([os.getpid], 1, lambda number, value: None)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert workers.STOPS == (signal.SIGINT, signal.SIGTERM)
