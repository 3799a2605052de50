"""What a program asks of PostgreSQL: slow queries with the line that asked, totals, the live view.

    DATABASE_URL=postgresql://... python examples/pg_observe.py [SECONDS]

Meanwhile, in another terminal: python -m greenletio top
"""

import asyncio
import collections
import logging
import os
import random
import sys
import time

from greenletio import monitor
from greenletio.pg import aio, observe


async def visitor(pool: aio.Pool, end: float) -> None:
    while time.monotonic() < end:
        await pool.fetchval("SELECT $1::int * 2", random.randrange(100))
        if random.random() < 0.05:
            await pool.fetchval("SELECT pg_sleep(0.02)")
        await asyncio.sleep(0.01)


async def main(seconds: float) -> None:
    url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
    totals: collections.Counter[str] = collections.Counter()
    with monitor.start(), observe.hook(lambda query: totals.update([query.text])):
        async with aio.create_pool(url, min_size=2, max_size=5) as pool:
            end = time.monotonic() + seconds
            await asyncio.gather(*[visitor(pool, end) for _ in range(20)])
            stats = pool.stats()
    for text, count in totals.most_common():
        print(f"{count:6}  {text}")
    print(f"{stats['requests_num']} leases, {stats['requests_wait_ms']} ms waited for in all")


logging.basicConfig(format="%(levelname)s %(message)s")
observe.log_slow(0.02)
asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
