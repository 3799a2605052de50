"""Arrow's own driver, which blocks."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders._columns import Columns


class Contender(Columns):
    packages = ("adbc-driver-postgresql", "pyarrow")

    async def _open(self, dsn: str) -> Any:
        import adbc_driver_postgresql.dbapi

        return adbc_driver_postgresql.dbapi.connect(dsn, autocommit=True)

    async def _execute(self, connection: Any, sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    async def _fetch(self, connection: Any, sql: str) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()

    async def _close(self, connection: Any) -> None:
        connection.close()
