"""pipeline(): queries that are sent without waiting for the answers to those before them."""

import asyncio

import pytest

from greenletio import async_, pg
from greenletio.pg import aio, errors

SOME_KIB = "SELECT repeat('x', 20000) || $1::text"


def test_results_are_matched_up(run, connect):
    async def main():
        async with connect() as c:
            assert await c.fetchval("SELECT $1::int", 0) == 0
            async with c.pipeline() as p:
                one = p.fetchval("SELECT $1::int", 1)
                two = p.fetch("SELECT generate_series(1, $1::int)", 3)
                table = p.execute("CREATE TEMP TABLE t (a int)")
                rows = [p.execute("INSERT INTO t VALUES ($1)", i) for i in range(5)]
                assert await one == 1  # without a sync
                assert [row[0] for row in await two] == [1, 2, 3]
                await p.sync()
                assert await table == "CREATE TABLE"
                count = p.fetchrow("SELECT count(*) FROM t")
                late = asyncio.create_task(_await(c.fetchval("SELECT 'too'")))  # another task's
                assert await count == (5,)
                assert await late == "too"
            assert [await row for row in rows] == ["INSERT 0 1"] * 5
            with pytest.raises(pg.InterfaceError, match="no pipeline is open"):
                await p.sync()

    run(main())


async def _await(op):
    return await op


def test_an_error_aborts_what_follows_up_to_the_next_sync(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int primary key)")
            async with c.pipeline() as p:
                first = p.execute("INSERT INTO t VALUES (1)")
                wrong = p.fetchval("SELECT 1 / $1::int", 0)
                after = p.execute("INSERT INTO t VALUES (2)")
                new = p.fetchval("SELECT 'not prepared yet'")
                with pytest.raises(errors.DivisionByZero):
                    await p.sync()
                assert await first == "INSERT 0 1"
                for aborted in (after, new):
                    with pytest.raises(errors.PipelineAborted, match="sync"):
                        await aborted
                with pytest.raises(errors.DivisionByZero):
                    await wrong
                # Up to the sync it was one transaction.
                assert await p.fetchval("SELECT count(*) FROM t") == 0
                assert await p.execute("INSERT INTO t VALUES (3)") == "INSERT 0 1"
            assert await c.fetchval("SELECT a FROM t") == 3
            with pytest.raises(errors.UniqueViolation):  # nobody was told of it before
                async with c.pipeline() as p:
                    p.execute("INSERT INTO t VALUES (3)")
            async with c.pipeline() as p:
                bad = p.fetchval("SELECT $1::int", "not a number")  # not sent at all
                assert await p.fetchval("SELECT $1::int", 7) == 7
                with pytest.raises(pg.DataError):
                    await bad
            with pytest.raises(errors.SyntaxError):
                async with c.pipeline() as p:
                    p.execute("SELEKT")

    run(main())


def test_both_ends_send_at_the_same_time(run, connect):
    """Much more in each direction than fits into the buffers in between."""

    async def main():
        async with connect() as c:
            async with c.pipeline() as p:
                values = [p.fetchval(SOME_KIB, f"{i:020000}") for i in range(300)]
            for i, value in enumerate(values):
                assert (await value).endswith(f"x{i:020000}")

    run(main())


def test_given_up(run, connect):
    async def main():
        async with connect() as c:
            with pytest.raises(asyncio.TimeoutError):
                async with c.pipeline() as p:
                    before = p.fetchval("SELECT 1")
                    slow = p.execute("SELECT pg_sleep(60)", timeout=0.05)
                    behind = p.fetchval("SELECT 2")
                    assert await before == 1
                    await slow
            with pytest.raises(pg.InterfaceError, match="given up"):
                await behind
            # A block that is cancelled: in the block, and at its end.
            for at_the_end in (False, True):
                began = asyncio.Event()

                async def block(at_the_end=at_the_end, began=began):
                    async with c.pipeline() as p:
                        p.execute("SELECT pg_sleep(60)")
                        p.execute("SELECT pg_sleep(60)")
                        began.set()
                        if not at_the_end:
                            await asyncio.Event().wait()

                task = asyncio.create_task(block())
                await began.wait()
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await c.fetchval("SELECT 3") == 3
            with pytest.raises(ZeroDivisionError):
                async with c.pipeline() as p:
                    other = asyncio.create_task(_await(p.execute("SELECT pg_sleep(60)")))
                    await asyncio.sleep(0)
                    raise ZeroDivisionError
            with pytest.raises(pg.InterfaceError, match="given up"):
                await other  # another task that waited for it is told
            assert await c.fetchval("SELECT 4") == 4

    run(main())


def test_what_does_not_belong_into_one(run, connect):
    async def main():
        async with connect() as c:
            async with c.pipeline() as p:
                for op in (
                    c.executemany("SELECT $1::int", [(1,)]),
                    c.copy_from_query("SELECT 1", output=lambda data: None),
                    c.execute("COPY (SELECT 1) TO STDOUT"),
                ):
                    with pytest.raises(pg.NotSupportedError, match="outside"):
                        await op
                with pytest.raises(pg.InterfaceError, match="inside of it"):
                    async with c.transaction():
                        pass
                with pytest.raises(pg.InterfaceError, match="open already"):
                    async with c.pipeline():
                        pass
                with pytest.raises(pg.InterfaceError, match="nobody uses"):
                    c.shared = True
                assert await p.fetchval("SELECT 1") == 1
                with pytest.raises(pg.NotSupportedError, match="script.*outside"):
                    await p.execute("SELECT 1; SELECT 2")
                await p.sync()
            async with c.transaction():
                async with c.pipeline() as p:
                    value = p.fetchval("SELECT 2")
                assert await value == 2
            assert not c.is_in_transaction()

    run(main())


def test_statements_and_types_that_are_not_known_yet(run, connect):
    async def main():
        async with connect(statement_cache_size=2) as c:
            await c.execute("CREATE TYPE pg_temp.mood AS ENUM ('sad', 'happy')")
            async with c.pipeline() as p:
                moods = p.fetchval("SELECT ARRAY[$1::pg_temp.mood]", "sad")
                values = [p.fetchval(f"SELECT {i}") for i in range(6)]
            assert await moods == ["sad"]
            assert [await value for value in values] == list(range(6))
            uncached = await asyncio.gather(*(c.fetchval(f"SELECT {i}") for i in range(6)))
            assert uncached == list(range(6))

    run(main())


def test_texts_that_are_ever_new_do_not_stay(run, connect):
    async def main():
        async with connect(statement_cache_size=5) as c:
            await c.execute("CREATE TYPE pg_temp.mood AS ENUM ('sad', 'happy')")
            for i in range(0, 40, 10):
                async with c.pipeline() as p:
                    values = [p.fetchval(f"SELECT {i + j}") for j in range(10)]
                    mood = p.fetchval(f"SELECT 'sad'::pg_temp.mood, {i}")  # is looked up, once
                assert [await value for value in values] == list(range(i, i + 10))
                assert await mood == "sad"
            assert len(c._cache) <= 6  # one may be on its way when the last place is taken
            there = await c.fetchval("SELECT count(*) FROM pg_prepared_statements")
            assert there == len(c._cache)

    run(main())


def test_the_server_goes_away(run, connect, dsn):
    async def main():
        other = await aio.connect(dsn)
        async with connect() as c:
            with pytest.raises((pg.OperationalError, pg.InterfaceError)):
                async with c.pipeline() as p:
                    ops = [p.execute("SELECT pg_sleep(60)") for _ in range(3)]
                    await asyncio.sleep(0.02)
                    await other.execute("SELECT pg_terminate_backend($1)", c.get_server_pid())
                    await ops[0]
            for op in ops:
                with pytest.raises((pg.OperationalError, pg.InterfaceError)):
                    await op
            assert c.is_closed()
        await other.close()

    run(main())


# ---- for sync code


def work(dsn):
    with pg.connect(dsn) as c:
        with c.pipeline() as p:
            one = c.execute("SELECT %s::int", (1,))
            c.execute("CREATE TEMP TABLE t (a int primary key)")
            cursor = c.cursor()
            cursor.executemany("INSERT INTO t VALUES (%s)", [(i,) for i in range(4)])
            two = c.execute("SELECT count(*) FROM t")
            assert one.fetchone() == (1,)
            p.sync()
            assert two.rowcount == 1
            assert two.fetchall() == [(4,)]
            c.commit()
            with pytest.raises(errors.UniqueViolation):
                c.execute("INSERT INTO t VALUES (0)")
                aborted = c.execute("SELECT 1")
                p.sync()
            with pytest.raises(errors.PipelineAborted):
                aborted.fetchone()
            c.rollback()
            assert c.execute("SELECT 5").fetchone() == (5,)
            with pytest.raises(pg.NotSupportedError):
                c.cursor().copy("COPY t TO STDOUT").__enter__()
            with pytest.raises(pg.InterfaceError, match="around"):
                c.transaction().__enter__()
        with pytest.raises(TimeoutError):
            with c.pipeline():
                c.execute("SELECT pg_sleep(60)", timeout=0.05).fetchone()
        c.rollback()
        many = []
        with c.pipeline():
            many += [c.execute(SOME_KIB, (f"{i:020000}",)) for i in range(200)]
        for i, cursor in enumerate(many):
            assert cursor.fetchone()[0].endswith(f"x{i:020000}")
        c.rollback()
        return c.execute("SELECT count(*) FROM t").fetchone()


def test_in_plain_code(dsn):
    assert work(dsn) == (4,)


def test_in_a_greenlet(run, dsn):
    async def main():
        assert await async_(work)(dsn) == (4,)

    run(main())
