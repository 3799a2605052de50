"""psycopg 3, its C implementation, binary results, asynchronous."""

from __future__ import annotations

from typing import Any

import psycopg

from benchmarks.contenders._drivers import Driver, Fetch
from benchmarks.meter import check


class Contender(Driver):
    packages = ("psycopg", "psycopg-binary", "uvloop")

    def __init__(self) -> None:
        check(psycopg.pq.__impl__ != "python", "psycopg has its C implementation")

    async def _connect(self, dsn: str) -> Any:
        return await psycopg.AsyncConnection.connect(dsn, autocommit=True)

    async def _execute(self, connection: Any, sql: str) -> None:
        await connection.execute(sql)

    def _fetch(self, connection: Any) -> Fetch:
        cursor = psycopg.AsyncRawCursor(connection)
        cursor.format = psycopg.pq.Format.BINARY

        async def fetch(sql: str, *args: Any) -> Any:
            await cursor.execute(sql, args, prepare=True)
            return await cursor.fetchall()

        return fetch

    async def _executemany(self, connection: Any, sql: str, rows: list[tuple[Any, ...]]) -> None:
        async with psycopg.AsyncRawCursor(connection) as cursor, connection.transaction():
            await cursor.executemany(sql, rows)

    async def _copy_in(self, connection: Any, table: str, rows: list[tuple[Any, ...]]) -> None:
        async with connection.cursor() as cursor:
            async with cursor.copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
                copy.set_types(["int4", "text", "float8"])
                for row in rows:
                    await copy.write_row(row)

    async def _copy_out(self, connection: Any, table: str) -> int:
        size = 0
        async with connection.cursor() as cursor, cursor.copy(f"COPY {table} TO STDOUT") as copy:
            async for data in copy:
                size += len(data)
        return size
