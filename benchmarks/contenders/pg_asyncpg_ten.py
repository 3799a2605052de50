"""asyncpg with ten connections for all tasks."""

from __future__ import annotations

import os
from typing import Any

import asyncpg

from benchmarks.contenders.pg_asyncpg import Together


class Contender(Together):
    packages = ("asyncpg", "uvloop")
    connections = 10

    async def _connect(self) -> Any:
        return await asyncpg.connect(os.environ["DATABASE_URL"])
