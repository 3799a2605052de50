"""asyncpg, and what has its API."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections import deque
from typing import Any

from benchmarks.contenders._drivers import Driver, Fetch, server
from benchmarks.contenders._queries import QUERIES, check_rows
from benchmarks.meter import Meter, check


class Free:
    """Connections that are handed from task to task, with nothing in between."""

    def __init__(self, connections: list[Any]) -> None:
        self.free = deque(connections)
        self.waiting: deque[asyncio.Future[Any]] = deque()

    async def take(self) -> Any:
        if self.free:
            return self.free.pop()
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        return await future

    def give(self, connection: Any) -> None:
        if self.waiting:
            self.waiting.popleft().set_result(connection)
        else:
            self.free.append(connection)


class Contender(Driver):
    packages: tuple[str, ...] = ("asyncpg", "uvloop")
    module = "asyncpg"
    connections = 1  # of those tasks that are together

    async def _connect(self, dsn: str) -> Any:
        return await importlib.import_module(self.module).connect(dsn)

    async def _execute(self, connection: Any, sql: str) -> None:
        await connection.execute(sql)

    def _fetch(self, connection: Any) -> Fetch:
        fetch: Fetch = connection.fetch
        return fetch

    async def _executemany(self, connection: Any, sql: str, rows: list[tuple[Any, ...]]) -> None:
        await connection.executemany(sql, rows)

    async def _copy_in(self, connection: Any, table: str, rows: list[tuple[Any, ...]]) -> None:
        await connection.copy_records_to_table(table, records=rows)

    async def _copy_out(self, connection: Any, table: str) -> int:
        size = 0

        async def sink(data: bytes) -> None:
            nonlocal size
            size += len(data)

        await connection.copy_from_table(table, output=sink)
        return size

    async def together(
        self, meter: Meter, n: int, query: str, tasks: int, round_trip: int = 0
    ) -> None:
        """n queries in all, by more tasks than there are connections."""
        with server(round_trip) as dsn:
            await self._together(meter, n, query, tasks, dsn)

    async def _together(self, meter: Meter, n: int, query: str, tasks: int, dsn: str) -> None:
        sql, args, _, setup = QUERIES[query]
        connections = [await self._open(setup, dsn) for _ in range(self.connections)]
        free = Free(connections)
        rows: Any = None

        async def work(count: int) -> None:
            nonlocal rows
            for _ in range(count):
                connection = await free.take()
                rows = await connection.fetch(sql, *args)
                free.give(connection)

        for count in meter.phases(n):
            await asyncio.gather(*(work(max(count // tasks, 1)) for _ in range(tasks)))
        check_rows(query, len(rows))
        for connection in connections:
            await connection.close()

    async def pool(self, meter: Meter, n: int, tasks: int) -> None:
        """n queries in all, by so many tasks, on a pool of ten connections."""
        module = importlib.import_module(self.module)
        async with module.create_pool(os.environ["DATABASE_URL"]) as pool:
            check(pool.get_size() == 10, "the pool has ten connections")
            values = set()

            async def work(count: int) -> None:
                for _ in range(count):
                    values.add(await pool.fetchval("SELECT 1"))

            for count in meter.phases(n):
                each = max(count // tasks, 1)
                await asyncio.gather(*(work(each) for _ in range(tasks)))
            check(values == {1}, "the value has come")
