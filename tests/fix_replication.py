"""Logical replication for the tests.

`replicated`  a database with a publication of all its tables, on each server that has
              wal_level=logical: the shared one, and the system's
"""

import secrets
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
from fix_missing import missing
from fix_postgres import TemporaryDatabase, ask

from greenletio import pg

# The server tells of what was written to its log, which others than the waiting may delay.
AT_ONCE = "-c synchronous_commit=on"


def numbers_of(transaction: Iterable[Any]) -> list[int]:
    """The column `n` of each row that a transaction has inserted."""
    return [change.new["n"] for change in transaction]


class Replicated:
    """`.url`; `.sql(…)` runs commands there, each a transaction; `.slot(…)` makes a slot."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.writer = pg.connect(url, autocommit=True, options=AT_ONCE)
        self._slots: list[str] = []

    def sql(self, *commands: str) -> list[Any]:
        rows: list[Any] = []
        for command in commands:
            cursor = self.writer.execute(command)
            rows = cursor.fetchall() if cursor.description else []
        return rows

    def slot(self, plugin: str = "pgoutput") -> str:
        name = f"slot_{secrets.token_hex(6)}"
        with pg.connect_replication(self.url) as replication:
            replication.create_slot(name, plugin)
        self._slots.append(name)
        return name

    def status(self, slot: str) -> Any:
        with pg.connect_replication(self.url) as replication:
            return replication.slot(slot)

    def close(self) -> None:
        self.writer.close()
        with pg.connect(self.url, autocommit=True) as connection:
            for slot in self._slots:
                there = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"
                for (pid,) in connection.execute(there, [slot]).fetchall():
                    if pid is not None:
                        connection.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
                    connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])


@cache
def _wal_level(url: str) -> str:
    """Asked once: asyncpg leaves some memory behind in each thread that it makes rows in."""
    ((level,),) = ask(url, "SHOW wal_level")
    return str(level)


def make(admin_url: str) -> Iterator[Replicated]:
    if _wal_level(admin_url) != "logical":
        missing("a server with wal_level=logical: that of DATABASE_URL has another one")
    with TemporaryDatabase(admin_url) as database:
        made = Replicated(database.url)
        made.sql("CREATE PUBLICATION everything FOR ALL TABLES")
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(params=["pg_url", "system_server"])
def replicated(request: pytest.FixtureRequest) -> Iterator[Replicated]:
    """A database with the publication `everything`, once on each server."""
    server: Any = request.getfixturevalue(request.param)
    yield from make(getattr(server, "url", server))


@pytest.fixture
def replicated_here(pg_url: str) -> Iterator[Replicated]:
    """The same on the shared server alone."""
    yield from make(pg_url)
