"""One pool under everything at once: tasks, greenlets, threads; cancelled, timed out, killed.

Afterwards nothing is missing and nothing is left: each acknowledged row is there once, every place
of the pool is free, no connection is at the server that the pool does not know, and whoever asked
first was served first.
"""

import asyncio
import collections
import random
import threading
import time

import pytest

import greenletio
from greenletio import async_, pg
from greenletio.pg import aio, errors

INSERT = "INSERT INTO stress SELECT $1::bigint FROM pg_sleep($2)"
SIZE = 6

#: What may go wrong where connections are killed and limits are short.
EXPECTED = (
    asyncio.TimeoutError,
    TimeoutError,
    pg.OperationalError,
    errors.ConnectionClosed,
)


class Ledger:
    """Who has been given which connection, and what was said to be done."""

    def __init__(self):
        self.numbers = iter(range(10**9))
        self.acknowledged = set()
        self.leased = collections.Counter()
        self.wrong = []
        self.lock = threading.Lock()

    def next(self):
        with self.lock:
            return next(self.numbers)

    def take(self, raw):
        with self.lock:
            self.leased[id(raw)] += 1
            if self.leased[id(raw)] > 1:
                self.wrong.append(f"{raw!r} was given to two at once")

    def leave(self, raw):
        with self.lock:
            self.leased[id(raw)] -= 1


async def by_lease(pool, ledger, rng):
    n = ledger.next()
    async with pool.acquire(timeout=rng.choice((0.01, 5))) as c:
        raw = c._con
        ledger.take(raw)
        try:
            if rng.random() < 0.5:
                await c.execute(INSERT, n, rng.choice((0, 0, 0.01)), timeout=rng.choice((0.02, 5)))
            else:
                async with c.transaction():
                    await c.execute(INSERT, n, 0)
        finally:
            ledger.leave(raw)
    ledger.acknowledged.add(n)


async def by_pool(pool, ledger, rng):
    n = ledger.next()
    await pool.execute(INSERT, n, 0, timeout=rng.choice((0.02, 5)))
    ledger.acknowledged.add(n)


async def by_sharing(pool, ledger, rng):
    n = ledger.next()
    await pool.shared.execute(INSERT, n, 0, timeout=rng.choice((0.02, 5)))
    ledger.acknowledged.add(n)


def by_sync(pool, ledger, rng):
    n = ledger.next()
    with pool.sync.connection(timeout=rng.choice((0.02, 5))) as c:
        raw = c.raw
        ledger.take(raw)
        try:
            c.execute("INSERT INTO stress SELECT %s::bigint FROM pg_sleep(%s)", (n, 0))
            if rng.random() < 0.2:
                with greenletio.timeout(0.01):
                    c.execute("SELECT pg_sleep(10)")
        finally:
            ledger.leave(raw)
    ledger.acknowledged.add(n)


def by_sync_sharing(pool, ledger, rng):
    n = ledger.next()
    pool.sync.shared.execute("INSERT INTO stress VALUES (%s)", (n,), timeout=rng.choice((0.02, 5)))
    ledger.acknowledged.add(n)


async def in_loop(pool, ledger, rng, until):
    """Tasks and greenlets, some of them cancelled."""

    async def one():
        kind = rng.randrange(5)
        if kind < 3:
            await (by_lease, by_pool, by_sharing)[kind](pool, ledger, rng)
        else:
            await async_((by_sync, by_sync_sharing)[kind - 3])(pool, ledger, rng)

    async def many():
        while time.monotonic() < until:
            task = asyncio.create_task(one())
            if rng.random() < 0.3:
                await asyncio.wait([task], timeout=rng.choice((0, 0.001, 0.01)))
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                if not isinstance(task.exception(), EXPECTED):
                    ledger.wrong.append(repr(task.exception()))

    await asyncio.gather(*(many() for _ in range(12)))


def in_thread(pool, ledger, rng, until):
    while time.monotonic() < until:
        try:
            rng.choice((by_sync, by_sync_sharing))(pool, ledger, rng)
        except EXPECTED:
            pass
        except BaseException as exc:
            ledger.wrong.append(repr(exc))
            raise


def killer(dsn, rng, until, name):
    with pg.connect(dsn, autocommit=True) as c:
        while time.monotonic() < until:
            time.sleep(rng.uniform(0.05, 0.3))
            c.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = %s ORDER BY random() LIMIT 1",
                (name,),
            )


def stress(dsn, seconds, seed):
    ledger, name = Ledger(), f"stress_{seed}"

    async def opened():
        return await aio.create_pool(
            dsn, min_size=0, max_size=SIZE, shared=2, application_name=name
        )

    pool = asyncio.run(opened())
    pool._shares = False  # its own methods lease, those of pool.shared share
    with pg.connect(dsn, autocommit=True) as c:
        c.execute("DROP TABLE IF EXISTS stress; CREATE TABLE stress (n bigint)")
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=target, args=args, daemon=True)
        for target, args in [
            (killer, (dsn, random.Random(seed), until, name)),
            *((in_thread, (pool, ledger, random.Random(seed + i), until)) for i in range(1, 4)),
            (
                lambda: asyncio.run(in_loop(pool, ledger, random.Random(seed + 9), until)),
                (),
            ),
        ]
    ]
    for thread in threads:
        thread.start()
    asyncio.run(in_loop(pool, ledger, random.Random(seed + 10), until))
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert not ledger.wrong
    assert not +ledger.leased
    assert ledger.acknowledged

    async def settled():
        core = pool._core
        while core.resetting:
            core.end_resets()
            stranded = core._stranded()
            if stranded is not None:
                core.discard(stranded)
            await asyncio.sleep(0.01)
        assert core.waiting == 0
        assert core.places == len(core.idle) <= SIZE
        assert all(lane.users == 0 for lanes in core.lanes for lane in lanes._lanes)
        assert all(lanes.is_missing() or lanes._lanes for lanes in core.lanes)
        await asyncio.wait_for(pool.close(), 30)

    asyncio.run(settled())
    with pg.connect(dsn, autocommit=True) as c:
        rows = c.execute("SELECT n, count(*) FROM stress GROUP BY n").fetchall()
        there = dict(rows)
        assert ledger.acknowledged <= set(there)
        assert max(there.values()) == 1  # nothing was done twice
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        end = time.monotonic() + 20  # against a hang: the server notices in its own time
        while c.execute(left, (name,)).fetchone() != (0,) and time.monotonic() < end:
            time.sleep(0.02)
        assert c.execute(left, (name,)).fetchone() == (0,)
        c.execute("DROP TABLE stress")
    return len(ledger.acknowledged)


def test_everything_at_once(dsn):
    stress(dsn, 2.0, 1)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(100, 500, 100))
def test_everything_at_once_for_longer(dsn, seed):
    stress(dsn, 30.0, seed)


def test_who_asks_first_is_served_first(run, dsn):
    """Also where some of those who wait are cancelled, or time out."""

    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=1) as pool:
            rng = random.Random(5)
            served = []

            async def one(i, timeout):
                async with pool.acquire(timeout=timeout):
                    served.append(i)
                    await asyncio.sleep(0)

            def plain(i):
                with pool.sync.connection():
                    served.append(i)

            for _ in range(10):
                served.clear()
                async with pool.acquire():
                    tasks = []
                    for i in range(40):
                        kind = rng.randrange(4)
                        timeout = 0.01 if kind == 0 else None
                        coroutine = one(i, timeout) if kind < 3 else async_(plain)(i)
                        tasks.append(asyncio.ensure_future(coroutine))
                        await asyncio.sleep(0)
                    await asyncio.sleep(0.02)
                    for task in rng.sample(tasks, 10):
                        task.cancel()
                await asyncio.wait(tasks)
                assert served == sorted(served)
                assert len(served) == sum(
                    not task.cancelled() and task.exception() is None for task in tasks
                )

    run(main())
