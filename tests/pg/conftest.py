"""One database for all these tests, which make temporary tables only; `connect` on every loop."""

import asyncio
import functools
import sys
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fix_leaks
import pytest
from fix_postgres import TemporaryDatabase

from greenletio import pg
from greenletio.pg import _process, aio

# The leak check repeats all tests here, with new fixtures in each call, but for those that say
# `leaks(False)`, those that repeat themselves, and these folders and files.
NOT_REPEATED = {
    "servers",  # each test starts servers, breaks and ends them, which takes seconds
    "test_fuzz.py",  # in processes of their own
    "test_hostile.py",  # the same
}
REPEAT_THEMSELVES = {"flat", "aflat"}

PROCESS = _process.current()  # a test may have put another one in its place


def forget() -> None:
    """Empty the process's caches that have a bound: tests use ever new types, addresses, texts."""
    for process in (PROCESS, _process.current()):
        process.known.clear()  # types by database
    urllib.parse.clear_cache()
    for name, module in list(sys.modules.items()):
        if name.startswith("greenletio.pg"):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    if value.cache_parameters()["maxsize"] is not None:
                        value.cache_clear()


fix_leaks.forget.append(forget)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if item.path.relative_to(here).parts[0] not in NOT_REPEATED:
                if REPEAT_THEMSELVES.isdisjoint(item.fixturenames):
                    item.add_marker(pytest.mark.leaks(fresh=True))


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
