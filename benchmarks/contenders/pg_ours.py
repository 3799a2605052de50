"""greenletio.pg.aio: asyncpg's API."""

from __future__ import annotations

from benchmarks.contenders import pg_asyncpg


class Contender(pg_asyncpg.Contender):
    packages = ("greenletio", "uvloop")
    module = "greenletio.pg.aio"
