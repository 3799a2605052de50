"""patch_starlette: whoever ends a function or a generator, what it does at its end may wait.

Clients go away in the middle, and scopes of anyio are cancelled, which cancel whatever waits in
them again and again: each `finally` is done all the same, and the pool has its connection again.
"""

import asyncio
import gc
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import anyio
import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI, Request
from fix_postgres import Query
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse

from greenletio import sleep
from greenletio.integrations.starlette import CancelOnDisconnect, patch_starlette, unpatch_starlette

LIMIT_S = 30  # against a hang, not a measure
SLEEP = sa.text(f"SELECT pg_sleep({LIMIT_S})")
ASLEEP = (
    "SELECT count(*)::int FROM pg_stat_activity"
    " WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active' AND datname = current_database()"
)

uvicorn = pytest.mark.parametrize("serving", ["uvicorn"], indirect=True)


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    patch_starlette()
    yield
    unpatch_starlette()


@pytest.fixture
def engine(pg_dsn: str) -> Iterator[sa.Engine]:
    """Has one connection, and a table of what has ended."""
    url = sa.make_url(pg_dsn).set(drivername="postgresql+greenletio")
    engine = sa.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=LIMIT_S)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE ended (what text)"))
    yield engine
    engine.dispose()


@pytest.fixture
def nothing_unraisable() -> Iterator[None]:
    found: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", found.append)
        yield
    assert found == []


def app_of(engine: sa.Engine) -> FastAPI:
    app = FastAPI()

    @contextmanager
    def opened(what: str) -> Iterator[Session]:
        with Session(engine) as session:
            session.execute(sa.text("SELECT 1"))
            try:
                yield session
            finally:
                session.rollback()
                sleep(0.01)
                session.execute(sa.text("INSERT INTO ended VALUES (:what)"), {"what": what})
                session.commit()

    def dependency() -> Iterator[Session]:
        with opened("dependency") as session:
            yield session

    @app.get("/dependency")
    def depends(session: Annotated[Session, Depends(dependency)]) -> None:
        session.execute(SLEEP)

    @app.get("/function")
    def function() -> None:
        with opened("function") as session:
            session.execute(SLEEP)

    @app.get("/waits")
    def waits() -> StreamingResponse:
        def body() -> Iterator[str]:
            with opened("waits") as session:
                yield "first"
                session.execute(SLEEP)

        return StreamingResponse(body())

    @app.get("/never_waits")
    def never_waits() -> StreamingResponse:
        def body() -> Iterator[str]:
            with opened("never_waits"):
                yield from itertools.repeat("x" * 65536)

        return StreamingResponse(body())

    return app


class Within:
    """Middleware: requests run in a scope of anyio's, which whoever has the list may cancel."""

    def __init__(self, app: Any, scopes: list[anyio.CancelScope]) -> None:
        self._app = app
        self._scopes = scopes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with anyio.CancelScope() as own:
            self._scopes.append(own)
            await self._app(scope, receive, send)


@asynccontextmanager
async def asked(url: str, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """A client that asks, and goes away at the end of the block."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET /{path} HTTP/1.1\r\nHost: app\r\n\r\n".encode())
        yield reader
    finally:
        writer.transport.abort()


async def until(what: str, ready: Callable[[], bool]) -> None:
    give_up = asyncio.get_running_loop().time() + LIMIT_S
    while not ready():
        assert asyncio.get_running_loop().time() < give_up, f"not {what}"
        # Of what is cancelled from outside while it sends, Starlette leaves the body to this.
        gc.collect()
        await asyncio.sleep(0.02)


ENDINGS = [
    ("dependency", "CancelOnDisconnect"),
    ("dependency", "scope"),
    ("function", "CancelOnDisconnect"),
    ("function", "scope"),
    ("waits", "nothing"),
    ("waits", "middleware"),
    ("waits", "CancelOnDisconnect"),
    ("waits", "scope"),
    ("never_waits", "nothing"),
    ("never_waits", "scope"),
]


@uvicorn
@pytest.mark.parametrize(("path", "around"), ENDINGS)
def test_what_is_done_at_the_end_is_done(
    run: Any,
    serving: Any,
    engine: sa.Engine,
    pg_query: Query,
    nothing_unraisable: None,
    path: str,
    around: str,
) -> None:
    app = app_of(engine)
    scopes: list[anyio.CancelScope] = []
    if around == "middleware":

        @app.middleware("http")
        async def through(request: Request, call_next: Any) -> Any:
            return await call_next(request)

    elif around == "CancelOnDisconnect":
        app.add_middleware(CancelOnDisconnect)
    elif around == "scope":
        app.add_middleware(Within, scopes=scopes)

    async def main() -> None:
        async with serving(app) as (_, url):
            async with asked(url, path) as reader:
                if path == "never_waits":
                    await reader.readuntil(b"xxx")
                else:
                    await until("asleep", lambda: pg_query(ASLEEP) == [(1,)])
                if scopes:
                    scopes[-1].cancel()
                    await until("ended", lambda: pg_query("SELECT * FROM ended") == [(path,)])
            await until("ended", lambda: pg_query("SELECT * FROM ended") == [(path,)])
            await until("given back", lambda: engine.pool.checkedout() == 0)  # type: ignore[attr-defined]

    run(main())
