"""psycopg's rows, in binary, made into columns by pyarrow."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders._columns import Columns


class Contender(Columns):
    packages = ("psycopg", "pyarrow")

    async def _open(self, dsn: str) -> Any:
        import psycopg

        return await psycopg.AsyncConnection.connect(dsn, autocommit=True)

    async def _execute(self, connection: Any, sql: str) -> None:
        await connection.execute(sql)

    async def _fetch(self, connection: Any, sql: str) -> Any:
        import pyarrow

        async with connection.cursor(binary=True) as cursor:
            await cursor.execute(sql)
            names = [column.name for column in cursor.description]
            columns = zip(*await cursor.fetchall(), strict=True)
        return pyarrow.table(dict(zip(names, map(list, columns), strict=True)))
