"""From everywhere: greenlets, threads, plain code, trio; one connection for both faces."""

import asyncio
import threading

import pytest
import trio
from fix_progress import Ticker

from greenletio import async_, pg, spawn
from greenletio.pg import aio


def work(dsn):
    with pg.connect(dsn) as c:
        assert c.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(TimeoutError):
            c.execute("SELECT pg_sleep(60)", timeout=0.2)
        c.rollback()
        return c.execute("SELECT %s::text", ("x",)).fetchone()


def test_plain(dsn):
    assert work(dsn) == ("x",)


def test_in_greenlets(run, dsn):
    async def main():
        async with Ticker():
            assert await asyncio.gather(*(async_(work)(dsn) for _ in range(5))) == [("x",)] * 5

    run(main())


def test_under_trio(dsn):
    async def main():
        assert await async_(work)(dsn) == ("x",)

    trio.run(main)


def test_in_threads(dsn):
    results = []
    threads = [threading.Thread(target=lambda: results.append(work(dsn))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [("x",)] * 3


def test_spawned_greenlets_of_plain_code_share_a_connection(sync):
    sync.autocommit = True
    greens = [spawn(sync.execute, "SELECT %s::int FROM pg_sleep(0.01)", (i,)) for i in range(5)]
    assert sync.execute("SELECT 7").fetchone() == (7,)
    assert [green.get().fetchone() for green in greens] == [(i,) for i in range(5)]


def test_threads_share_a_connection(sync):
    sync.autocommit = True
    results = set()

    def query(i):
        for _ in range(20):
            results.add(sync.execute("SELECT %s::int FROM pg_sleep(0.0005)", (i,)).fetchone()[0])

    threads = [threading.Thread(target=query, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == set(range(5))
    assert sync.execute("SELECT 1").fetchone() == (1,)


def test_tasks_and_greenlets_share_a_connection(run, dsn):
    async def main():
        c = await aio.connect(dsn)
        sync = pg.Connection(c, autocommit=True)
        query = "SELECT %s::int FROM pg_sleep(0.001)"
        greens = [async_(sync.execute)(query, (i,)) for i in range(5)]
        tasks = [c.fetchrow("SELECT $1::int FROM pg_sleep(0.001)", i) for i in range(5, 10)]
        found = await asyncio.gather(*greens, *tasks)
        rows = [cursor.fetchone() for cursor in found[:5]] + found[5:]
        assert rows == [(i,) for i in range(10)]
        await c.close()

    run(main())


def test_from_one_loop_to_the_next_and_to_plain_code(loop_kind, dsn):
    from fix_loops import Run

    async def first():
        c = await aio.connect(dsn)
        assert await c.fetchval("SELECT 1") == 1
        return c

    async def second(c):
        assert await c.fetchval("SELECT 2") == 2

    c = Run(loop_kind)(first())
    assert c.fetchval("SELECT 3").run() == 3
    Run(loop_kind)(second(c))
    assert c.fetchval("SELECT 4").run() == 4
    c.terminate()
