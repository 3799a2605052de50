"""aiopg: psycopg2's own asynchronous mode, which has no COPY and no executemany."""

from __future__ import annotations

from typing import Any

import aiopg

from benchmarks.contenders._drivers import Driver, Fetch


class Contender(Driver):
    packages = ("aiopg", "psycopg2-binary", "uvloop")
    _cannot = ("executemany", "copy_in", "copy_out")

    async def _connect(self, dsn: str) -> Any:
        return await aiopg.connect(dsn)

    async def _execute(self, connection: Any, sql: str) -> None:
        async with connection.cursor() as cursor:
            await cursor.execute(sql)

    def _fetch(self, connection: Any) -> Fetch:
        async def fetch(sql: str, *args: Any) -> Any:
            async with connection.cursor() as cursor:
                # Without arguments a percent sign is one.
                text = sql.replace("$1", "%s").replace("$2", "%s")
                await cursor.execute(text, args or None)
                return await cursor.fetchall()

        return fetch
