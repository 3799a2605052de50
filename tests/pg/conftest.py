"""One database for all these tests, which make temporary tables only; `connect` on every loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fix_postgres import TemporaryDatabase

from greenletio import pg
from greenletio.pg import aio


@pytest.fixture(scope="session")
def dsn(pg_url: str) -> Iterator[str]:
    """The URL of a database that these tests share."""
    with TemporaryDatabase(pg_url) as database:
        yield database.url


@pytest.fixture
def connect(dsn: str) -> Callable[..., Any]:
    """`async with connect() as c`: a connection that is closed, and was left usable."""

    @asynccontextmanager
    async def connected(**options: Any) -> AsyncIterator[aio.Connection]:
        c = await aio.connect(dsn, **options)
        try:
            yield c
            if not c.is_closed():
                assert await c.fetchval("SELECT 'usable'") == "usable"
        finally:
            await asyncio.wait_for(c.close(), 10)

    return connected


@pytest.fixture
def sync(dsn: str) -> Iterator[pg.Connection[Any]]:
    """A connection for sync code, in no loop."""
    c = pg.connect(dsn)
    yield c
    c.close()
