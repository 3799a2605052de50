"""One pool of connections for everybody at once: asyncio's tasks, greenlets, threads, trio.

DATABASE_URL=postgresql://... python examples/pg_one_pool.py
"""

import asyncio
import collections
import os
import threading

import greenletio
from greenletio import async_, pg, spawn

try:
    import trio
except ImportError:
    trio = None

EACH = 100
done: collections.Counter[str] = collections.Counter()
guard = threading.Lock()


def work(who: str, n: int) -> None:
    """Sync code: it waits as those do who call it."""
    with pool.connection() as connection:
        assert connection.execute("SELECT %s::int * 2", (n,)).fetchone() == (2 * n,)
    with guard:
        done[who] += 1


def a_thread() -> None:
    for n in range(EACH):
        work("thread", n)


def tasks() -> None:
    async def one(n: int) -> None:
        async with pool.aio.acquire() as connection:
            assert await connection.fetchval("SELECT $1::int * 2", n) == 2 * n
        with guard:
            done["asyncio task"] += 1

    async def main() -> None:
        await asyncio.gather(*[one(n) for n in range(EACH)])

    asyncio.run(main())


def greenlets() -> None:
    def main() -> None:
        for green in [spawn(work, "greenlet", n) for n in range(EACH)]:
            green.get()

    greenletio.run(async_(main)())


def under_trio() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for n in range(EACH):
                nursery.start_soon(async_(work), "trio task", n)

    trio.run(main)


kinds = [a_thread, tasks, greenlets] + ([under_trio] if trio is not None else [])
url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
with pg.Pool(url, min_size=1, max_size=3) as pool:
    threads = [threading.Thread(target=kind) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = pool.stats()
print(", ".join(f"{done[who]} of {who}s" for who in sorted(done)))
print(f"{stats['requests_num']} leases of at most {stats['pool_max']} connections")
