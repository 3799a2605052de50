"""asyncpg, and what has its API."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections import deque
from typing import Any

from benchmarks.contenders._queries import QUERIES, SETUP, check_rows
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


class Together:
    """More tasks than connections."""

    connections = 1

    async def _connect(self) -> Any:
        raise NotImplementedError

    async def together(self, meter: Meter, n: int, query: str, tasks: int) -> None:
        sql, args, _ = QUERIES[query]
        connections = [await self._connect() for _ in range(self.connections)]
        for connection in connections if query == "by_key" else ():
            for statement in SETUP:
                await connection.execute(statement)
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
        check_rows(query, rows)
        for connection in connections:
            await connection.close()


class Contender(Together):
    packages: tuple[str, ...] = ("asyncpg", "uvloop")
    module = "asyncpg"

    async def _connect(self) -> Any:
        return await importlib.import_module(self.module).connect(os.environ["DATABASE_URL"])

    async def fetch(self, meter: Meter, n: int, query: str, tasks: int) -> None:
        """n queries in all, by so many tasks, each on a connection of its own."""
        sql, args, _ = QUERIES[query]
        connections = [await self._connect() for _ in range(tasks)]
        for connection in connections if query == "by_key" else ():
            for statement in SETUP:
                await connection.execute(statement)
        rows: Any = None

        async def work(connection: Any, count: int) -> None:
            nonlocal rows
            for _ in range(count):
                rows = await connection.fetch(sql, *args)

        for count in meter.phases(n):
            each = max(count // tasks, 1)
            await asyncio.gather(*(work(connection, each) for connection in connections))
        check_rows(query, rows)
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

    async def executemany(self, meter: Meter, n: int) -> None:
        connection = await self._connect()
        await connection.execute("CREATE TEMP TABLE bench_many (a int, b text)")
        rows = [(i, f"text {i}") for i in range(1000)]
        for count in meter.phases(n):
            for _ in range(count):
                await connection.executemany("INSERT INTO bench_many VALUES ($1, $2)", rows)
        await connection.close()

    async def copy_in(self, meter: Meter, n: int) -> None:
        connection = await self._connect()
        await connection.execute("CREATE TEMP TABLE bench_copy (a int, b text, c float8)")
        rows = [(i, f"text {i}", i / 3) for i in range(10_000)]
        for count in meter.phases(n):
            for _ in range(count):
                await connection.copy_records_to_table("bench_copy", records=rows)
        await connection.close()
