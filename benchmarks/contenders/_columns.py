"""What is fetched as Arrow columns; a contender says how it fetches."""

from __future__ import annotations

import os
import resource
from typing import Any

from benchmarks.meter import Meter, check

ROWS = 1_000_000
TABLES = {
    "mixed": """g::int4 AS id, (g % 1000)::int2 AS small, g * 1000::int8 AS big, g % 3 = 0 AS flag,
        CASE WHEN g % 10 <> 0 THEN g * 0.5::float8 END AS f, 'some text ' || g AS txt,
        timestamptz '2020-01-01 UTC' + g * interval '1 s' AS ts,
        date '2020-01-01' + g % 9999 AS day""",
    "integers": ", ".join(f"(g + {i})::int4 AS i{i}" for i in range(8)),
    "text": ", ".join(f"repeat(md5((g + {i})::text), 4) AS t{i}" for i in range(2)),
}


def _names(table: str) -> tuple[str, str]:
    return f"bench_columns_{table}", f"SELECT * FROM bench_columns_{table}"


class Columns:
    """The benches, on what _fetch() gives."""

    packages: tuple[str, ...]

    async def _open(self, dsn: str) -> Any:
        raise NotImplementedError

    async def _execute(self, connection: Any, sql: str) -> None:
        raise NotImplementedError

    async def _fetch(self, connection: Any, sql: str) -> Any:
        """A pyarrow.Table."""
        raise NotImplementedError

    async def _close(self, connection: Any) -> None:
        await connection.close()

    async def _ready(self, table: str) -> tuple[Any, str]:
        """A connection to a server that has the table, and its query."""
        connection = await self._open(os.environ["DATABASE_URL"])
        name, query = _names(table)
        rows = int(os.environ.get("BENCH_COLUMNS_ROWS", ROWS))
        await self._execute(
            connection,
            f"CREATE TABLE IF NOT EXISTS {name} AS "
            f"SELECT {TABLES[table]} FROM generate_series(1, {rows}) AS g",
        )
        return connection, query

    async def fetch(self, meter: Meter, n: int, table: str) -> None:
        connection, query = await self._ready(table)
        result: Any = None
        for count in meter.phases(n):
            for _ in range(count):
                result = None
                result = await self._fetch(connection, query)
        check(result.num_rows > 1000, "all rows have come")
        await self._close(connection)

    async def memory(self, meter: Meter, n: int, table: str) -> int:
        """How many bytes more than before the process had at most."""
        connection, query = await self._ready(table)
        await self._fetch(connection, f"{query} LIMIT 10")  # all that is imported for that is there
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for count in meter.phases(n):
            for _ in range(count):
                await self._fetch(connection, query)
        await self._close(connection)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
