"""Evolution on one PostgreSQL server: a worker that is killed, servers that refuse, passwords that stay hidden."""

import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from postgres_server import PASSWORD, server
from test_evolution import LIKE, names, never, run, score
from test_evolution import start as start_workers

from psvit import UserError
from psvit.pipeline.run_config import RunAllConfig
from psvit.search.search_config import EvolutionConfig, SearchConfig, shown
from psvit.search.storage import Storage


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as found:
        yield found


@pytest.mark.optional
@pytest.mark.slow
def test_a_worker_is_killed_and_started_again(tmp_path: Path, url: str) -> None:
    number = 16
    a, b = start_workers(*((tmp_path / name, number, url, 0.1) for name in "ab"))
    assert a.stdout
    evaluated = [a.stdout.readline() for _ in range(3)]
    a.kill()
    evaluated += a.communicate()[0].splitlines(keepends=True)
    [again] = start_workers((tmp_path / "a", number, url, 0.1))
    for worker in (b, again):
        output = worker.communicate()[0]
        assert worker.returncode == 0, output
        assert output
        evaluated += output.splitlines(keepends=True)
    entries = Storage(url, "psvit").entries()
    assert len({entry.worker for entry in entries}) == 2
    scores = run(tmp_path / "c", number, storage=url, evaluate=never)
    assert scores == [score(one.name.arch(LIKE)) for one in scores]
    assert [entry.score for entry in entries] == scores
    assert len(set(names(scores))) == number
    assert set(evaluated) == {f"{name}\n" for name in names(scores)}
    assert len(evaluated) <= number + 1, "only the member that the killed worker was at is evaluated twice"


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
