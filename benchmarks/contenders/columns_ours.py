"""greenletio's fetch_arrow()."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders._columns import Columns


class Contender(Columns):
    packages = ("greenletio", "pyarrow")

    async def _open(self, dsn: str) -> Any:
        from greenletio.pg import aio

        return await aio.connect(dsn)

    async def _execute(self, connection: Any, sql: str) -> None:
        await connection.execute(sql)

    async def _fetch(self, connection: Any, sql: str) -> Any:
        import pyarrow

        return pyarrow.table(await connection.fetch_arrow(sql))
