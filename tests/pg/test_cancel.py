"""Cancelled, timed-out and abandoned queries end on the server; the connection stays usable."""

import asyncio
import gc
import time

import pytest
from fix_progress import Ticker

import greenletio
from greenletio import async_, pg
from greenletio.pg import aio, errors

SLEEP = "SELECT pg_sleep(60)"


async def began(c, query=SLEEP):
    task = asyncio.create_task(c.fetch(query))
    await asyncio.sleep(0.02)
    assert not task.done()
    return task


@pytest.mark.leaks
def test_a_cancelled_query_ends_on_the_server_and_the_next_one_runs(run, connect):
    async def main():
        async with connect() as c, connect() as other:
            task = await began(c)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await c.fetchval("SELECT 1") == 1
            state = "SELECT state FROM pg_stat_activity WHERE pid = $1"
            assert await other.fetchval(state, c.get_server_pid()) == "idle"

    run(main())


def test_the_next_query_is_never_hit(run, connect):
    async def main():
        async with connect() as c:
            for i in range(60):
                task = asyncio.create_task(c.fetch(f"SELECT pg_sleep({i / 20000})"))
                await asyncio.sleep(i / 40000)
                task.cancel()
                assert await c.fetchval("SELECT $1::int FROM pg_sleep(0.0005)", i) == i
                await asyncio.wait([task])

    run(main())


def test_a_query_that_waits_for_its_turn_is_cancelled_without_the_server(run, connect):
    async def main():
        async with connect() as c:
            first = asyncio.create_task(c.fetchval("SELECT 1 FROM pg_sleep(0.1)"))
            second = asyncio.create_task(c.fetchval("SELECT 2"))
            third = asyncio.create_task(c.fetchval("SELECT 3"))
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.wait([first, second, third])
            assert second.cancelled()
            assert (first.result(), third.result()) == (1, 3)

    run(main())


@pytest.mark.leaks
def test_timeouts(run, connect):
    async def main():
        async with connect(command_timeout=0.05) as c:
            with pytest.raises(asyncio.TimeoutError):
                await c.fetch(SLEEP)
            with pytest.raises(asyncio.TimeoutError):
                await c.execute(SLEEP, timeout=0.01)
            assert await c.fetchval("SELECT 1 FROM pg_sleep(0.1)", timeout=30) == 1

    run(main())


def test_cancelled_while_it_is_prepared(run, connect, dsn):
    async def main():
        async with connect() as c, connect() as other:
            await other.execute("CREATE TABLE locked (a int)")
            try:
                async with other.transaction():
                    await other.execute("LOCK TABLE locked")
                    task = await began(c, "SELECT * FROM locked")
                    task.cancel()
                    await asyncio.wait([task])
                    assert await c.fetchval("SELECT 1") == 1
            finally:
                await other.execute("DROP TABLE locked")

    run(main())


def test_a_server_that_is_frozen_costs_the_connection_and_not_the_loop(run, own_server):
    async def main():
        c = await aio.connect(own_server.url)
        c.cancel_timeout = 0.3
        task = await began(c)
        own_server.freeze()
        try:
            async with Ticker():
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                with pytest.raises(errors.OperationalError, match="in time"):
                    await c.fetch("SELECT 1")
            assert c.is_closed()
        finally:
            own_server.thaw()

    run(main())


def test_a_server_that_is_killed(run, own_server):
    async def main():
        c = await aio.connect(own_server.url)
        idle = await aio.connect(own_server.url)
        ended = []
        idle.add_termination_listener(ended.append)
        task = await began(c)
        waiting = asyncio.create_task(c.fetch("SELECT 1"))
        await asyncio.sleep(0)
        own_server.kill()
        for failed in (task, waiting):
            with pytest.raises(errors.OperationalError):
                await failed
        assert c.is_closed()
        while not idle.is_closed():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert ended == [idle]
        with pytest.raises(errors.ConnectionClosed):
            await idle.fetch("SELECT 1")

    run(main())


def test_a_backend_that_is_terminated_says_so(run, connect):
    async def main():
        async with connect() as other:
            async with connect() as c:
                task = await began(c)
                await other.fetch("SELECT pg_terminate_backend($1)", c.get_server_pid())
                with pytest.raises(errors.AdminShutdown):
                    await task
                assert c.is_closed()

    run(main())


@pytest.mark.leaks
def test_in_greenlets(run, dsn):
    def work():
        with pg.connect(dsn, autocommit=True) as c:
            with pytest.raises(TimeoutError):
                with greenletio.timeout(0.05):
                    c.execute(SLEEP)
            with pytest.raises(TimeoutError):
                c.execute(SLEEP, timeout=0.05)
            assert c.execute("SELECT 1").fetchone() == (1,)
            try:
                c.execute(SLEEP)
            finally:
                assert c.execute("SELECT 2").fetchone() == (2,)

    async def main():
        task = asyncio.create_task(async_(work)())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


@pytest.mark.leaks
def test_in_plain_code(sync):
    with pytest.raises(TimeoutError):
        sync.execute(SLEEP, timeout=0.05)
    sync.rollback()
    with pytest.raises(TimeoutError), greenletio.timeout(0.05):
        sync.execute(SLEEP)
    sync.rollback()
    assert sync.execute("SELECT 1").fetchone() == (1,)


def test_a_frozen_server_in_plain_code(own_server):
    c = pg.connect(own_server.url, autocommit=True)
    c.raw.cancel_timeout = 0.3
    own_server.freeze()
    try:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            c.execute(SLEEP, timeout=0.05)
        assert time.monotonic() - start < 60
        assert c.closed
    finally:
        own_server.thaw()


def test_a_loop_that_closes_leaves_the_connection_to_the_next(loop_kind, dsn):
    from fix_loops import Run

    connection = []

    async def first():
        c = await aio.connect(dsn)
        connection.append(c)
        await began(c)  # cancelled when the loop ends

    async def second():
        (c,) = connection
        assert await c.fetchval("SELECT 1") == 1
        await c.close()

    Run(loop_kind)(first())
    Run(loop_kind)(second())


def test_a_connection_that_is_dropped_says_so_and_is_closed(run, dsn, connect):
    async def main():
        c = await aio.connect(dsn)
        pid = c.get_server_pid()
        with pytest.warns(ResourceWarning, match="unclosed connection"):
            del c
            gc.collect()
        async with connect() as other:
            while await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
                await asyncio.sleep(0.01)

    run(main())


def test_a_task_that_nobody_holds_gets_its_result(run, dsn):
    async def main():
        results = []

        async def query():
            c = await aio.connect(dsn)
            results.append(await c.fetchval("SELECT 1 FROM pg_sleep(0.05)"))
            await c.close()

        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(query()))
        while not results:
            await asyncio.sleep(0.005)
            gc.collect()

    run(main())
