"""asyncpg's rows, made into columns by pyarrow."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders._columns import Columns


class Contender(Columns):
    packages = ("asyncpg", "pyarrow")

    async def _open(self, dsn: str) -> Any:
        import asyncpg

        return await asyncpg.connect(dsn)

    async def _execute(self, connection: Any, sql: str) -> None:
        await connection.execute(sql)

    async def _fetch(self, connection: Any, sql: str) -> Any:
        import pyarrow

        rows = await connection.fetch(sql)
        names = list(rows[0].keys())
        columns = zip(*rows, strict=True)
        return pyarrow.table(dict(zip(names, map(list, columns), strict=True)))
