"""asyncpg with ten connections for all tasks."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders import pg_asyncpg
from benchmarks.meter import Meter


class Contender:
    """Only what more tasks than connections do: else it is asyncpg."""

    packages = pg_asyncpg.Contender.packages

    async def together(
        self, meter: Meter, n: int, query: str, tasks: int, round_trip: int = 0
    ) -> Any:
        asyncpg = pg_asyncpg.Contender()
        asyncpg.connections = 10
        await asyncpg.together(meter, n, query, tasks, round_trip)
