"""What every PostgreSQL driver does; a contender says how its driver does it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.contenders._queries import (
    COPY_ROWS,
    COPY_SETUP,
    MANY_ROWS,
    MANY_SETUP,
    QUERIES,
    check_rows,
)
from benchmarks.meter import Meter, check

Fetch = Callable[..., Awaitable[Any]]


@contextlib.contextmanager
def server(round_trip: int) -> Iterator[str]:
    """The server to measure with; so many microseconds away, by a proxy in its own process."""
    dsn = os.environ["DATABASE_URL"]
    if not round_trip:
        yield dsn
        return
    parts, options = urlsplit(dsn), parse_qs(urlsplit(dsn).query)
    host = options.get("host", [parts.hostname or "/var/run/postgresql"])[0]
    port = options.get("port", [str(parts.port or 5432)])[0]
    command = [os.environ["BENCH_PG_DELAY"], host, port, str(round_trip)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as proxy:
        assert proxy.stdin is not None and proxy.stdout is not None
        try:
            who = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
            there = f"127.0.0.1:{int(proxy.stdout.readline())}"
            yield f"{parts.scheme}://{who}{there}{parts.path}"
        finally:
            proxy.stdin.close()  # ends it


class Driver:
    """The benches, on what the underscored methods of a contender give."""

    packages: tuple[str, ...]

    async def _connect(self, dsn: str) -> Any:
        """A connection in autocommit mode."""
        raise NotImplementedError

    async def _execute(self, connection: Any, sql: str) -> None:
        raise NotImplementedError

    async def _close(self, connection: Any) -> None:
        await connection.close()

    def _fetch(self, connection: Any) -> Fetch:
        """fetch(sql, *args): the rows of a query with $1, prepared if the driver can."""
        raise NotImplementedError

    async def _open(self, setup: tuple[str, ...], dsn: str | None = None) -> Any:
        connection = await self._connect(dsn or os.environ["DATABASE_URL"])
        for statement in setup:
            await self._execute(connection, statement)
        return connection

    async def fetch(self, meter: Meter, n: int, query: str, tasks: int) -> None:
        """n queries in all, by so many tasks, each on a connection of its own."""
        sql, args, _, setup = QUERIES[query]
        connections = [await self._open(setup) for _ in range(tasks)]
        rows: Any = None

        async def work(fetch: Fetch, count: int) -> None:
            nonlocal rows
            for _ in range(count):
                rows = await fetch(sql, *args)

        for count in meter.phases(n):
            each = max(count // tasks, 1)
            await asyncio.gather(*(work(self._fetch(c), each) for c in connections))
        check_rows(query, len(rows))
        for connection in connections:
            await self._close(connection)

    async def _executemany(self, connection: Any, sql: str, rows: list[tuple[Any, ...]]) -> None:
        raise NotImplementedError

    async def executemany(self, meter: Meter, n: int) -> None:
        connection = await self._open(MANY_SETUP)
        for count in meter.phases(n):
            for _ in range(count):
                await self._executemany(
                    connection, "INSERT INTO bench_many VALUES ($1, $2)", MANY_ROWS
                )
        await self._close(connection)

    async def _copy_in(self, connection: Any, table: str, rows: list[tuple[Any, ...]]) -> None:
        raise NotImplementedError

    async def copy_in(self, meter: Meter, n: int) -> None:
        connection = await self._open(COPY_SETUP[:1])
        for count in meter.phases(n):
            for _ in range(count):
                await self._copy_in(connection, "bench_copy", COPY_ROWS)
        await self._close(connection)

    async def _copy_out(self, connection: Any, table: str) -> int:
        """How many bytes have come."""
        raise NotImplementedError

    async def copy_out(self, meter: Meter, n: int) -> None:
        connection = await self._open(COPY_SETUP)
        size = 0
        for count in meter.phases(n):
            for _ in range(count):
                size = await self._copy_out(connection, "bench_copy")
        check(size > 100_000, "all of the table has come")
        await self._close(connection)
