"""Through PgBouncer, which gives a session to a client for a transaction, or a statement, only."""

import asyncio

import pytest

from greenletio.pg import aio


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_the_bouncer_is_there(run, dsn, pgbouncer, mode):
    url = pgbouncer(dsn, mode, default_pool_size=2)

    async def main():
        c = await aio.connect(url, statement_cache_size=0)
        assert await c.fetchval("SELECT 1") == 1
        await asyncio.wait_for(c.close(), 10)

    run(main())
