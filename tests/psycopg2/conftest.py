"""Patched psycopg2: connections that are closed afterwards, and a ticker that proves progress."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

import greenletio

Connect = Callable[..., Any]

# The leak check repeats these files, but not what uses a server up, nor what leaves something
# behind itself (asyncpg, some blocks per connection). The others wait for seconds in each test.
REPEATED = {"test_copy", "test_lobject", "test_patch", "test_portal", "test_turns"}
NOT_REPEATED = {"own_server", "pg_query"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        here = item.path.parent == Path(__file__).parent and item.path.stem in REPEATED
        if here and isinstance(item, pytest.Function):
            if NOT_REPEATED.isdisjoint(item.fixturenames):
                item.add_marker(pytest.mark.leaks)


@pytest.fixture
def patched() -> Iterator[None]:
    greenletio.patch_psycopg2(cancel_timeout=5.0)
    yield
    greenletio.unpatch_psycopg2()


@pytest.fixture
def connect(patched: None, pg_dsn: str) -> Iterator[Connect]:
    """`connect(**kwargs)`: psycopg2.connect to the test database, closed after the test."""
    made: weakref.WeakSet[Any] = weakref.WeakSet()

    def connect(**kwargs: Any) -> Any:
        conn = psycopg2.connect(pg_dsn, **kwargs)
        made.add(conn)
        return conn

    yield connect
    for conn in made:
        conn.close()


class Ticker:
    """Counts how often another task of the loop came to run."""

    def __init__(self) -> None:
        self.steps = 0

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            self.steps += 1


@pytest.fixture
def ticking() -> Callable[[], Any]:
    """`async with ticking() as ticker:` counts `ticker.steps` while the block runs."""

    @asynccontextmanager
    async def ticking() -> AsyncIterator[Ticker]:
        ticker = Ticker()
        task = asyncio.create_task(ticker._tick())
        try:
            yield ticker
        finally:
            task.cancel()

    return ticking


def fetch(conn: Any, sql: str, *args: object) -> Any:
    """The one value that a query returns."""
    with conn.cursor() as cursor:
        cursor.execute(sql, args)
        return cursor.fetchone()[0]


@pytest.fixture(name="fetch")
def fetch_fixture() -> Callable[..., Any]:
    return fetch
