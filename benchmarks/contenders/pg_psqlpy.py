"""psqlpy, a driver in Rust. It has no COPY out, and its COPY in takes what is encoded already."""

from __future__ import annotations

from typing import Any

import psqlpy

from benchmarks.contenders._drivers import Driver, Fetch


class Contender(Driver):
    packages = ("psqlpy", "uvloop")
    _cannot = ("copy_in", "copy_out")

    async def _connect(self, dsn: str) -> Any:
        return await psqlpy.connect(dsn)

    async def _execute(self, connection: Any, sql: str) -> None:
        await connection.execute(sql)

    async def _close(self, connection: Any) -> None:
        connection.close()

    def _fetch(self, connection: Any) -> Fetch:
        async def fetch(sql: str, *args: Any) -> Any:
            return (await connection.fetch(sql, list(args))).result()

        return fetch

    async def _executemany(self, connection: Any, sql: str, rows: list[tuple[Any, ...]]) -> None:
        await connection.execute_many(sql, [list(row) for row in rows])
