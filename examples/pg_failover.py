"""A shop: orders are taken on the primary, and shown from a standby, whichever servers those are.

DATABASE_URL=postgresql://postgres@one,two/test python pg_failover.py 1000 60

takes 1000 orders, and waits up to 60 seconds for a standby that shows them. Kill the primary and
promote the standby while it runs: it goes on. An order whose COMMIT got no answer is looked for by
its number before it is sent again, so that none is there twice.
"""

import asyncio
import os
import sys
import time

from greenletio.pg import aio, errors

URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
COUNT = int(sys.argv[1]) if sys.argv[1:] else 100
PATIENCE = float(sys.argv[2]) if sys.argv[2:] else 0.0  # seconds
INSERT = "INSERT INTO orders VALUES ($1) ON CONFLICT DO NOTHING"


async def order(pool: aio.Pool, number: int) -> None:
    while True:
        try:
            async with pool.acquire(timeout=60) as connection:
                await connection.execute(INSERT, number)
                return
        except (errors.OperationalError, errors.ReadOnlySqlTransaction) as exc:
            print(f"order {number}, again after: {exc}", file=sys.stderr)


async def shown(pool: aio.Pool) -> tuple[int, bool]:
    """How many orders there are, and whether a standby has said so."""
    async with pool.acquire(timeout=60, readonly=True) as connection:
        try:
            row = await connection.fetchrow("SELECT count(*), pg_is_in_recovery() FROM orders")
        except errors.UndefinedTable:  # a standby comes after the primary
            return 0, True
        return row[0], row[1]


async def main() -> None:
    async with aio.create_pool(URL, min_size=1, max_size=4, readonly=2, max_lag=5.0) as pool:
        async with pool.acquire(timeout=60) as connection:
            await connection.execute("DROP TABLE IF EXISTS orders")
            await connection.execute("CREATE TABLE orders (number int PRIMARY KEY)")
        for start in range(0, COUNT, 10):
            await asyncio.gather(*(order(pool, n) for n in range(start, min(start + 10, COUNT))))
        until = time.monotonic() + PATIENCE
        while True:
            count, standby = await shown(pool)
            if count == COUNT and (standby or time.monotonic() >= until):
                break
            await asyncio.sleep(0.01)
    print(f"{count} orders, read on {'a standby' if standby else 'the primary'}")


if __name__ == "__main__":
    asyncio.run(main())
