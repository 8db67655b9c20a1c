"""A search on several machines: workers on one PostgreSQL server, one of them killed, and servers that refuse."""

import csv
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from postgres_server import PASSWORD, server
from test_evolution import LIKE, names, never, run, score
from test_evolution import start as start_workers
from tiny import DATA, MACHINE, Cli, read, start

from psvit import UserError
from psvit.pipeline.run_config import RunAllConfig
from psvit.search.journal import Score
from psvit.search.search_config import EvolutionConfig, SearchConfig, shown
from psvit.search.storage import Storage

SEARCH = ["search", *DATA, *MACHINE, "--depth", "2", "3", "--stages", "1", "2", "--stage-widths", "16", "24,32",
          "--head-dim", "4", "--patch-size", "2", "--budget", "400k", "--least", "0.2", "--batch-size", "16",
          "--epochs", "1", "--method", "evolution", "--population", "4", "--evaluations", "100"]  # fmt: skip
MEMBERS = 16
"""Of its region: all are evaluated, so that what is found does not depend on who drew which."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as found:
        yield found


def ended(url: str, study: str, number: int) -> list[Score]:
    """The scores of a study: as many as wanted, no member twice."""
    entries = Storage(url, study).entries()
    assert len({(entry.genotype, entry.widths) for entry in entries}) == len(entries) == number
    scores = [entry.score for entry in entries if entry.score is not None]
    assert len(scores) == number
    return scores


@pytest.mark.optional
@pytest.mark.slow
def test_a_worker_is_killed_and_started_again(tmp_path: Path, url: str) -> None:
    number = 16
    a, b = start_workers(*((tmp_path / name, number, url, 0, 0.1) for name in "ab"))
    assert a.stdout
    evaluated = [a.stdout.readline() for _ in range(3)]
    a.kill()
    evaluated += a.communicate()[0].splitlines(keepends=True)
    [again] = start_workers((tmp_path / "a", number, url, 0, 0.1))
    for worker in (b, again):
        output = worker.communicate()[0]
        assert worker.returncode == 0, output
        assert output
        evaluated += output.splitlines(keepends=True)
    found = ended(url, "psvit", number)
    assert len({entry.worker for entry in Storage(url, "psvit").entries()}) == 2
    scores = run(tmp_path / "c", number, storage=url, evaluate=never)
    assert scores == [score(replace(LIKE, genotype=one.genotype, widths=one.widths)) for one in scores]
    assert found == scores
    assert set(evaluated) == {f"{genotype} {widths}\n" for genotype, widths in names(scores)}
    assert len(evaluated) <= number + 1, "only the member that the killed worker was at is evaluated twice"


@pytest.mark.optional
@pytest.mark.slow
def test_psvit_search_on_two_machines(tmp_path: Path, url: str, cli: Cli) -> None:
    """One worker is killed amid the evolution; it goes on beside a second one."""
    shared = ["--storage", url, "--study-name", "both"]
    a = start(*SEARCH, *shared, "--output", tmp_path / "a")
    storage, entries = Storage(url, "both"), []
    while not any(entry.score for entry in entries):
        entries = storage.entries()
        assert a.poll() is None, a.communicate()
        time.sleep(0.02)
    a.kill()
    a.communicate()
    assert len(entries) < MEMBERS
    workers = [start(*SEARCH, *shared, "--output", tmp_path / "b"),
               start(*SEARCH, *shared, "--output", tmp_path / "a", "--resume")]  # fmt: skip
    for worker in workers:
        out, err = worker.communicate()
        assert worker.returncode == 0, err
        assert PASSWORD not in out + err
    ended(url, "both", MEMBERS)
    cli.ok(*SEARCH, "--output", tmp_path / "alone")
    tables = {name: table(tmp_path / name) for name in ("a", "b", "alone")}
    assert len(tables["alone"]) == MEMBERS
    whole = max("ab", key=lambda name: len(tables[name]))  # of who ended last
    assert tables[whole] == tables["alone"]
    assert read(tmp_path / whole / "front.json")["front"] == read(tmp_path / "alone" / "front.json")["front"]
    assert all(tables[name].items() <= tables["alone"].items() for name in "ab")
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes(), path


def table(folder: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """The loss and top-1 of each member that a search lists."""
    with (folder / "front.csv").open(newline="") as file:
        return {(row["genotype"], row["widths"]): (row["loss"], row["top1"]) for row in csv.DictReader(file)}


@pytest.mark.optional
def test_every_spelling_of_the_url(url: str) -> None:
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        Storage(url.replace("postgresql", scheme), "psvit")


@pytest.mark.optional
@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        (PASSWORD, "wr0ng", "password authentication failed"),
        ("psvit:", "nobody:", 'user "nobody"'),
        ("/postgres", "/nowhere", 'database "nowhere" does not exist'),
    ],
)
def test_what_a_server_refuses(url: str, right: str, wrong: str, says: str) -> None:
    with pytest.raises(UserError, match=f"--storage postgresql://.* fails .*{says}.*: check it") as refusal:
        Storage(url.replace(right, wrong), "psvit")
    message = str(refusal.value)
    assert "\n" not in message
    assert "***" in message
    assert PASSWORD not in message
    assert "wr0ng" not in message


@pytest.mark.slow
def test_a_server_that_never_answers() -> None:
    pytest.importorskip("psycopg", exc_type=ImportError)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(UserError, match="timeout"):
        Storage(f"postgresql://me@127.0.0.1:{mute.getsockname()[1]}/db?connect_timeout=2", "psvit")


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r'pip install "psvit\[postgres\]"'):
        Storage("postgresql://me@127.0.0.1:1/db", "psvit")


def test_files_and_pages_show_no_password() -> None:
    evolution = EvolutionConfig(storage=f"postgresql://me:{PASSWORD}@host/db")
    for config in (SearchConfig(evolution=evolution), RunAllConfig(evolution=evolution)):
        assert shown(config) == replace(config, evolution=EvolutionConfig(storage="postgresql://me:***@host/db"))
