"""The database of an evolution: networks, the worker of each, and their scores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from psvit.arch.arch import Arch
from psvit.errors import UserError, one_line
from psvit.files import FullDiskError, full_disk
from psvit.search.journal import Name, Score, name_of
from psvit.search.search_config import hidden

TABLES = sql.MetaData()
STUDIES = sql.Table(
    "psvit_studies", TABLES,
    sql.Column("name", sql.String(255), primary_key=True),
    sql.Column("about", sql.Text, nullable=False),
)  # fmt: skip
NETWORKS = sql.Table(
    "psvit_networks", TABLES,
    sql.Column("study", sql.String(255), primary_key=True),
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("worker", sql.String(255), nullable=False),
    sql.Column("network", sql.String(255), nullable=False),
    sql.Column("score", sql.Text),
    sql.UniqueConstraint("study", "network"),
)  # fmt: skip


class Entry(NamedTuple):
    """A network that a worker has entered, and its score once it has one."""

    number: int
    worker: str
    name: Name
    score: Score | None


class Storage:
    """One study in a database that several workers may share.

    Args:
        url: as SQLAlchemy takes it, or the path of a SQLite file.
        study: its name.

    Raises:
        UserError: the database cannot be used; the message hides a password.
    """

    def __init__(self, url: str, study: str) -> None:
        self.url, self.study = url if "://" in url else f"sqlite:///{url}", study
        with one_line_errors(self.url):
            self.engine = _engine(self.url)
            _create_tables(self.engine)

    def sign(self, about: Mapping[str, Any]) -> None:
        """Record what a new study is about; check an existing one.

        Raises:
            UserError: the study belongs to another search.
        """
        own = json.loads(json.dumps(about))
        with one_line_errors(self.url):
            self._insert(STUDIES, name=self.study, about=json.dumps(own))
            with self.engine.connect() as connection:
                found = json.loads(
                    connection.execute(sql.select(STUDIES.c.about).where(STUDIES.c.name == self.study)).scalar_one()
                )
        other = next((name for name in own if found.get(name) != own[name]), None)
        if other is not None:
            raise UserError(
                f"study {self.study!r} in {hidden(self.url)} is a search with another {other}: go on with the settings "
                "that it began with, or give another --study-name or --storage"
            )

    def entries(self) -> list[Entry]:
        """All entries, by number."""
        with one_line_errors(self.url), self.engine.connect() as connection:
            rows = connection.execute(
                sql.select(NETWORKS).where(NETWORKS.c.study == self.study).order_by(NETWORKS.c.number)
            )
            return [_entry(*row[1:]) for row in rows]

    def enter(self, number: int, worker: str, arch: Arch) -> bool:
        """Enter a network; False if the network or the number is already taken."""
        with one_line_errors(self.url):
            return self._insert(NETWORKS, study=self.study, number=number, worker=worker, network=_text(arch))

    def finish(self, number: int, score: Score) -> None:
        """Keep the score of an entry."""
        this = (NETWORKS.c.study == self.study) & (NETWORKS.c.number == number)
        with one_line_errors(self.url), self.engine.begin() as connection:
            connection.execute(sql.update(NETWORKS).where(this).values(score=json.dumps(score.to_dict())))

    def _insert(self, table: sql.Table, **values: Any) -> bool:
        try:
            with self.engine.begin() as connection:
                connection.execute(sql.insert(table).values(**values))
        except IntegrityError:
            return False
        return True


@contextmanager
def one_line_errors(url: str) -> Iterator[None]:
    """Turn errors of SQLAlchemy, a driver or the file system into one line without a password.

    Raises:
        UserError: the storage fails, or its disk is full.
    """
    try:
        yield
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        if reason := full_disk(error):
            raise FullDiskError.of(hidden(url.removeprefix("sqlite:///")), reason) from error
        cause: BaseException = error
        while cause.__cause__ is not None:  # the message of the driver
            cause = cause.__cause__
        way_out = "check it"
        if isinstance(cause, ImportError):
            ours = url.startswith(("postgres:", "postgresql:", "postgresql+psycopg:"))
            way_out = 'pip install "psvit[postgres]"' if ours else "install its driver"
        message = f"--storage {url} fails ({one_line(cause, kind=True)}): {way_out}, or give another one"
        raise UserError(hidden(message)) from error


def _engine(url: str) -> sql.Engine:
    """The engine of a URL; PostgreSQL uses psycopg. No connection is kept open."""
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        options = {"timeout": 60}  # wait for other writers
    elif url.startswith("postgresql+psycopg") and "connect_timeout" not in url:
        options = {"connect_timeout": 20}  # instead of two minutes
    return sql.create_engine(url, poolclass=sql.NullPool, connect_args=options)


def _create_tables(engine: sql.Engine) -> None:
    for again in (True, False):
        try:
            with engine.begin() as connection:
                for table in TABLES.sorted_tables:
                    connection.execute(CreateTable(table, if_not_exists=True))
            return
        except IntegrityError:  # another worker creates them at the same time
            if not again:
                raise


def _text(arch: Arch) -> str:
    genotype, widths, *elements = name_of(arch)
    return " ".join(map(str, (genotype, *elements, *widths)))


def _entry(number: int, worker: str, network: str, score: str | None) -> Entry:
    genotype, stem, mlp, mlp_ratio, *widths = network.split()
    data = {"stem": stem, "mlp": mlp, "mlp_ratio": float(mlp_ratio), "widths": map(int, widths)}
    name = Name.from_dict({"genotype": genotype, **data})
    return Entry(number, worker, name, Score.from_dict(json.loads(score)) if score else None)
