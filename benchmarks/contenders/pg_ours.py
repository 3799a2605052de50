"""greenletio.pg.aio: asyncpg's API."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.contenders import pg_asyncpg
from benchmarks.contenders._queries import QUERIES, check_rows
from benchmarks.meter import Meter


class Contender(pg_asyncpg.Contender):
    packages = ("greenletio", "uvloop")
    module = "greenletio.pg.aio"

    async def _together(self, meter: Meter, n: int, query: str, tasks: int, dsn: str) -> None:
        """On one connection, which they share."""
        sql, args, _, setup = QUERIES[query]
        connection = await self._open(setup, dsn)
        connection.shared = True
        rows: Any = None

        async def work(count: int) -> None:
            nonlocal rows
            for _ in range(count):
                rows = await connection.fetch(sql, *args)

        for count in meter.phases(n):
            await asyncio.gather(*(work(max(count // tasks, 1)) for _ in range(tasks)))
        check_rows(query, len(rows))
        await connection.close()
