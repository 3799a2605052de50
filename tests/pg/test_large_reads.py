"""Answers in many parts: libpq is given room for larger reads, once, where nobody minds."""

import asyncio

import pytest
from fix_postgres import TemporaryDatabase
from fix_recorded import recorded

from greenletio.pg import aio, errors

ROOM = b"room for larger reads"
LARGE = "SELECT repeat('x', 1000) AS x FROM generate_series(1, 1000)"


async def read_much(c: aio.Connection, times: int = 30) -> None:
    for _ in range(times):
        assert [len(row["x"]) for row in await c.fetch(LARGE)] == [1000] * 1000


def test_it_is_asked_for_once_and_only_by_who_reads_much(run, dsn):
    async def main():
        async with recorded(dsn) as (url, sent):
            c = await aio.connect(url, ssl="disable")
            for n in range(300):
                assert await c.fetchval("SELECT $1::int", n) == n
            assert sent.count(ROOM) == 0
            await read_much(c)
            assert sent.count(ROOM) == 1
            await c.close()

    run(main())


def test_not_in_a_transaction_nor_in_a_pipeline(run, dsn):
    async def main():
        async with recorded(dsn) as (url, sent):
            c = await aio.connect(url, ssl="disable")
            async with c.transaction():
                await read_much(c)
                with pytest.raises(errors.DivisionByZero):
                    async with c.transaction():
                        await c.fetchval("SELECT 1/0")
            async with c.pipeline() as p:
                answer = p.fetchval("SELECT 1")
            assert await answer == 1
            assert sent.count(ROOM) == 0
            assert await c.fetchval("SELECT 2") == 2
            assert sent.count(ROOM) == 1
            await c.close()

    run(main())


def test_whoever_is_cancelled_or_out_of_time_meanwhile_gets_just_that(run, dsn):
    async def main():
        async with recorded(dsn) as (url, sent):
            for end in ("cancel", "timeout"):
                c = await aio.connect(url, ssl="disable")
                async with c.transaction():
                    await read_much(c)
                query = "SELECT 1 FROM pg_sleep(20)"
                if end == "cancel":
                    task = asyncio.create_task(c.fetchval(query))
                    await asyncio.sleep(0)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    with pytest.raises(asyncio.TimeoutError):
                        await c.fetchval(query, timeout=0.001)
                assert await c.fetchval("SELECT 3") == 3
                await read_much(c, 2)
                await c.close()
            assert sent.count(ROOM) == 2

    run(main())


def test_a_server_that_refuses_it_is_heard_by_nobody(run, pg_url):
    async def main(dsn):
        async with recorded(dsn) as (url, sent):
            c = await aio.connect(url, ssl="disable")
            await c.execute("REVOKE EXECUTE ON FUNCTION pg_catalog.repeat(text, int) FROM PUBLIC")
            async with c.transaction():
                await read_much(c)
            await c.execute("SET ROLE pg_monitor")  # which must not call repeat()
            assert await c.fetchval("SELECT 4") == 4
            assert sent.count(ROOM) == 1
            await c.execute("RESET ROLE")
            await read_much(c, 2)
            assert sent.count(ROOM) == 1
            await c.close()

    with TemporaryDatabase(pg_url) as database:
        run(main(database.url))


def test_sync_code_copies_and_streams(sync):
    for _ in range(4):
        with sync.cursor().copy(f"COPY ({LARGE}) TO STDOUT") as copy:
            assert sum(map(len, copy)) == 1001 * 1000
    sync.commit()
    for _ in range(2):
        assert sum(len(x) for (x,) in sync.cursor().stream(LARGE)) == 1000 * 1000
        sync.commit()
    assert sync.execute("SELECT 5").fetchone() == (5,)
