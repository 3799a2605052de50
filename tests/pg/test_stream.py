"""Streaming: rows as they come, and no more of them here than are taken."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from decimal import Decimal

import pytest

from greenletio import _pg, async_, pg
from greenletio.pg import aio, errors, rows

MANY = "SELECT i, repeat('x', 1000) AS t FROM generate_series(1, $1::int) i"


def test_rows_come_in_order_and_errors_when_it_is_their_turn(run, connect):
    async def main():
        async with connect() as c:
            for n in (0, 1, 255, 256, 257, 3000):
                stream = c.stream(MANY, n)
                assert [row["i"] async for row in stream] == list(range(1, n + 1))
                assert stream.get_statusmsg() == f"SELECT {n}"
                assert [row async for row in stream] == []
            assert [row async for row in c.stream("SET work_mem = '1MB'")] == []
            text = "SELECT 1.5::numeric AS n, 'pg_class'::regclass AS r"
            assert [row async for row in c.stream(text)] == [(Decimal("1.5"), "pg_class")]
            insert = "INSERT INTO streamed SELECT generate_series(1, 600) RETURNING *"
            async with c.transaction():
                await c.execute("CREATE TEMP TABLE streamed (i int) ON COMMIT DROP")
                assert len([row async for row in c.stream(insert)]) == 600
            with pytest.raises(errors.UndefinedTable):
                async for _ in c.stream("SELECT * FROM nothing_of_that_name"):
                    pass
            seen = []
            with pytest.raises(errors.DivisionByZero):
                query = "SELECT 1 / (5000 - i) FROM generate_series(1, 9000) i"
                async for row in c.stream(query):
                    seen.append(row)
            # libpq drops the part that an error comes into.
            assert len(seen) == (4999 if _pg.libpq_version() < 170000 else 4999 // 256 * 256)
            with pytest.raises(errors.DataError, match="query argument"):
                async for _ in c.stream(MANY, "x"):
                    pass
            for copy in ("COPY (SELECT 1) TO STDOUT", "COPY pg_temp.t FROM STDIN"):
                await c.execute("CREATE TEMP TABLE IF NOT EXISTS t (i int)")
                with pytest.raises(errors.NotSupportedError, match="COPY"):
                    async for _ in c.stream(copy):
                        pass

    run(main())


def test_closing_a_connection_ends_what_it_streams(run, connect):
    async def main():
        async with connect() as c:
            stream = c.stream(MANY, 1_000_000)
            await anext(stream)
            await asyncio.wait_for(c.close(), 4)
            with pytest.raises(errors.InterfaceError):
                while True:  # what had come already may be taken
                    await anext(stream)

    run(main())


def test_leaving_early_leaves_the_connection_usable(run, connect):
    async def main():
        async with connect() as c:
            for n in range(5):
                async for row in c.stream(MANY, 1_000_000):
                    if row["i"] > n * 20:
                        break
                assert await c.fetchval("SELECT $1::int", n) == n
            async with c.stream(MANY, 1_000_000) as stream:
                assert (await anext_(stream))["i"] == 1
            assert await c.fetchval("SELECT 1") == 1
            stream = c.stream("SELECT 1")
            await stream.aclose()  # before it began

    run(main())


async def anext_(stream):
    async for row in stream:
        return row


def test_its_own_task_is_refused_and_others_wait_in_turn(run, connect):
    async def main():
        async with connect() as c:
            other = None
            async for row in c.stream(MANY, 1000):
                if row["i"] == 2:
                    with pytest.raises(errors.InterfaceError, match="wait for itself"):
                        await c.fetchval("SELECT 1")
                    other = asyncio.create_task(c.fetchval("SELECT 7"))
                    await asyncio.sleep(0)
                assert other is None or not other.done()
            assert await other == 7

    run(main())


def test_a_timeout_and_a_cancelled_task_end_it(run, connect):
    async def main():
        async with connect() as c:
            sleep = "pg_sleep(CASE WHEN i < 3 THEN 0 ELSE 1000 END)"
            slow = f"SELECT i, {sleep} FROM generate_series(1, 9) i"
            with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                async for _ in c.stream(slow, timeout=0.05):
                    pass
            assert await c.fetchval("SELECT 1") == 1

            async def read():
                async for _ in c.stream(slow):
                    pass

            for _ in range(3):
                task = asyncio.create_task(read())
                await asyncio.sleep(0.005)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await c.fetchval("SELECT 2") == 2

    run(main())


def test_codecs_that_fail_or_close_the_connection(run, connect, dsn):
    async def main():
        async with connect() as c:

            def decode(text):
                if text == "500":
                    raise ZeroDivisionError
                return int(text)

            await c.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=decode)
            seen = []
            with pytest.raises(ZeroDivisionError):
                async for row in c.stream("SELECT i FROM generate_series(1, 100000) i"):
                    seen.append(row[0])
            assert seen == list(range(1, len(seen) + 1)) and len(seen) < 500
            await c.reset_type_codec("int4", schema="pg_catalog")
        other = await aio.connect(dsn)
        await other.set_type_codec(
            "int4", schema="pg_catalog", encoder=str, decoder=lambda text: other.terminate()
        )
        with pytest.raises(errors.Error):
            async for _ in other.stream("SELECT i FROM generate_series(1, 100000) i"):
                pass
        assert other.is_closed()

    run(main())


def test_a_connection_that_ends_meanwhile(run, connect, dsn):
    async def main():
        c = await aio.connect(dsn)
        with pytest.raises(errors.Error):
            async for row in c.stream(MANY, 1_000_000):
                if row["i"] == 300:
                    async with connect() as killer:
                        await killer.execute("SELECT pg_terminate_backend($1)", c.get_server_pid())
        stream = c.stream  # it is closed, and says so
        with pytest.raises(errors.InterfaceError, match="closed"):
            stream("SELECT 1")

    run(main())


async def all_of(stream):
    return [part async for part in stream]


def test_one_whose_statement_is_gone_and_cannot_be_prepared_again(run, connect):
    """Whoever waits for the first rows is told why."""

    async def main():
        async with connect() as c:
            for make in (c.stream, c.stream_arrow):
                await c.execute("CREATE TEMP TABLE gone AS SELECT 1 AS a")
                assert len(await all_of(make("SELECT a FROM gone"))) == 1
                await c.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
                await c.execute("DROP TABLE gone")
                with pytest.raises(errors.UndefinedTable):
                    await asyncio.wait_for(all_of(make("SELECT a FROM gone")), 30)

    run(main())


def test_one_that_another_task_closes(run, connect):
    """Whoever waits for its rows is told so."""

    async def main():
        async with connect() as c, connect() as other:
            state = "SELECT query ~ 'pg_sleep' AND state = 'active' FROM pg_stat_activity"
            for make in (c.stream, c.stream_arrow):
                stream = make("SELECT 1 FROM pg_sleep(60)")
                reading = asyncio.create_task(all_of(stream))
                while not await other.fetchval(f"{state} WHERE pid = $1", c.get_server_pid()):
                    await asyncio.sleep(0.001)
                for _ in range(20):  # it has come to its wait
                    await asyncio.sleep(0)
                await stream.aclose()
                with pytest.raises(errors.InterfaceError, match=r"closed meanwhile|is over"):
                    await asyncio.wait_for(reading, 30)

    run(main())


def test_the_server_waits_while_nobody_takes_rows(dsn):
    """300 MB go through a process that does not grow, slowly."""
    code = """
        import asyncio, resource, sys
        from greenletio.pg import aio

        async def main():
            c = await aio.connect(sys.argv[1])
            query = "SELECT i, repeat('x', 10000) FROM generate_series(1, $1::int) i"
            async for row in c.stream(query, 5000):
                pass
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            n = 0
            async for row in c.stream(query, 30000):
                n += 1
                if n % 10000 == 0:
                    await asyncio.sleep(0.1)
            assert n == 30000
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < 16 * 1024, f"{grown} KiB more"
            await c.close()

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), dsn],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_cursors_of_the_sync_face_stream(run, sync, dsn):
    cursor = sync.cursor(row_factory=rows.dict_row)
    got = cursor.stream("SELECT i, 'x' AS t FROM generate_series(1, %s) i", [700])
    first = next(got)
    assert first == {"i": 1, "t": "x"}
    assert [column.name for column in cursor.description] == ["i", "t"]
    with pytest.raises(errors.InterfaceError, match="streaming rows here"):
        sync.execute("SELECT 1")
    with pytest.raises(errors.InterfaceError, match="streaming rows here"):
        sync.commit()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(sync.execute("SELECT 'after'").fetchone()))
    thread.start()
    assert len(list(got)) == 699
    thread.join()
    assert seen == [("after",)]
    got = cursor.stream("SELECT 1")
    next(got)
    for ask in (sync.tpc_recover, sync.pipeline().__enter__, sync.notifies().__next__):
        with pytest.raises(errors.InterfaceError, match="streaming rows here"):
            ask()
    del got
    for row in cursor.stream("SELECT i FROM generate_series(1, 1000000) i"):
        if row["i"] == 10:
            break
    with pytest.raises(errors.InFailedSqlTransaction):
        sync.execute("SELECT 5")
    sync.rollback()
    assert sync.execute("SELECT 5").fetchone() == (5,)
    with pytest.raises(errors.UndefinedColumn):
        list(cursor.stream("SELECT nothing_of_that_name"))
    sync.rollback()

    @async_
    def in_a_greenlet():
        return sum(row[0] for row in sync.cursor().stream("SELECT generate_series(1, 1000)"))

    async def main():
        assert await in_a_greenlet() == 500500

    run(main())


def test_what_ends_while_a_stream_is_open_does_not_wait_for_it(dsn):
    """For nobody would read on."""
    many = "SELECT generate_series(1, 1000000)"
    c = pg.connect(dsn, autocommit=True)
    with pytest.raises(errors.InterfaceError, match="left open"):
        with c.transaction():
            c.execute("CREATE TABLE kept_by_mistake ()")
            rows = c.cursor().stream(many)
            next(rows)
    del rows
    with pytest.raises(LookupError):
        with c.transaction():
            rows = c.cursor().stream(many)
            next(rows)
            raise LookupError
    del rows
    assert c.execute("SELECT to_regclass('kept_by_mistake')").fetchone() == (None,)
    rows = c.cursor().stream(many)
    next(rows)
    c.close()
    with pytest.raises(errors.InterfaceError):
        list(rows)
    for error in (LookupError, None):
        with pytest.raises(error or errors.InterfaceError):
            with pg.connect(dsn) as c:
                rows = c.cursor().stream(many)
                next(rows)
                if error is not None:
                    raise error
        assert c.closed
        del rows
    with pg.Pool(dsn, min_size=1) as pool:
        with pytest.raises(errors.InterfaceError, match="streaming rows here"):
            with pool.connection() as c:
                pid = c.raw._pid
                rows = c.cursor().stream(many)
                next(rows)
        with pool.connection() as c:
            assert c.execute("SELECT pg_backend_pid()").fetchone() == (pid,)
