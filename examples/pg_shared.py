"""Many small questions on one connection: pool.shared, by tasks, greenlets and threads.

DATABASE_URL=postgresql://postgres@127.0.0.1/test python pg_shared.py
"""

import asyncio
import os

import greenletio
from greenletio import async_, pg
from greenletio.pg import aio, errors

VISITORS = 500
PAGES = 20
url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")

VISIT = "UPDATE page SET visits = visits + 1 WHERE id = $1 RETURNING visits"


async def prepare(pool: aio.Pool) -> None:
    async with pool.acquire() as connection:  # several statements: a connection of its own
        await connection.execute(
            f"""
            DROP TABLE IF EXISTS page;
            CREATE TABLE page (id int PRIMARY KEY, visits int NOT NULL);
            INSERT INTO page SELECT n, 0 FROM generate_series(1, {PAGES}) n;
            """
        )


async def visit(pool: aio.Pool, page: int) -> int:
    """One of many tasks: what they ask at the same time goes to the server in one piece."""
    try:
        visits: int = await pool.shared.fetchval(VISIT, page, timeout=10)
        return visits
    except errors.QueryInDoubt:
        return 0  # the connection was lost: better not counted than counted twice


def look(pool: pg.Pool, page: int) -> int:
    """The same from sync code: in a greenlet, or in a thread."""
    row = pool.shared.execute("SELECT visits FROM page WHERE id = %s", (page,)).fetchone()
    assert row is not None
    return int(row[0])


async def main() -> None:
    async with aio.create_pool(url, min_size=0, max_size=2) as pool:
        await prepare(pool)
        pages = [n % PAGES + 1 for n in range(VISITORS)]
        await asyncio.gather(*(visit(pool, page) for page in pages))
        seen = await asyncio.gather(*(async_(look)(pool.sync, n + 1) for n in range(PAGES)))
        in_thread = await asyncio.to_thread(look, pool.sync, 1)
        stats = pool.stats()
        print(f"{sum(seen)} visits, {in_thread} of the first page")
        print(f"{stats['shared_requests']} questions on {stats['shared_size']} connections")


if __name__ == "__main__":
    greenletio.run(main())
