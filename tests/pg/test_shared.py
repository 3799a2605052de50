"""Connection.shared: queries of many at the same time, each one by itself."""

import asyncio
import os
import random
import subprocess
import sys
import threading

import pytest

from greenletio import async_, pg
from greenletio.pg import aio, errors


def test_each_has_its_own_answer_and_its_own_error(run, connect):
    async def main():
        async with connect(shared=True) as c:
            assert c.shared

            async def query(i):
                kind = i % 7
                if kind == 0:
                    with pytest.raises(errors.DivisionByZero):
                        await c.fetchval("SELECT $1::int / 0", i)
                elif kind == 1:
                    with pytest.raises(errors.SyntaxError):
                        await c.execute("SELEKT")
                elif kind == 2:
                    with pytest.raises(errors.DataError):
                        await c.fetchval("SELECT $1::int", "no number")
                elif kind == 3:
                    assert (await c.fetchrow("SELECT $1::text AS a, 2 AS b", str(i)))["a"] == str(i)
                elif kind == 4:
                    assert await c.execute("SELECT generate_series(1, 3)") == "SELECT 3"
                elif kind == 5:
                    assert len(await c.fetch("SELECT generate_series(1, $1::int)", i)) == i
                else:
                    assert await c.fetchval("SELECT repeat('x', 100000)") == "x" * 100_000

            await asyncio.gather(*(query(i) for i in range(150)))
            assert c._in_flight == 0

    run(main())


def test_they_go_out_together(run, connect):
    """A hundred that each take the server 10 ms to begin with are done in far fewer round trips."""

    async def main():
        async with connect(shared=True) as c:
            most = 0

            async def query(i):
                nonlocal most
                assert await c.fetchval("SELECT $1::int", i) == i
                most = max(most, c._in_flight)

            await c.fetchval("SELECT $1::int", 0)
            await asyncio.gather(*(query(i) for i in range(1000)))
            assert most > 1

    run(main())


def test_an_error_of_one_undoes_nothing_of_a_neighbour(run, connect, dsn):
    async def main():
        async with connect() as own:
            await own.execute("CREATE TABLE neighbours (a int)")
        async with connect(shared=True) as c:
            found = await asyncio.gather(
                *(
                    c.execute("INSERT INTO neighbours VALUES (10 / $1::int)", i % 3)
                    for i in range(30)
                ),
                return_exceptions=True,
            )
            assert sum(isinstance(one, errors.DivisionByZero) for one in found) == 10
            assert await c.fetchval("SELECT count(*) FROM neighbours") == 20
            await c.execute("DROP TABLE neighbours")

    run(main())


LOCK = 4711  # an advisory lock's: who waits for it does so until the test lets it go


def test_given_up(run, connect):
    locked = "SELECT 1 FROM pg_advisory_xact_lock($1)"

    async def main():
        async with connect(shared=True) as c, connect() as other:
            await c.fetchval(locked, 0)
            await other.execute(f"SELECT pg_advisory_lock({LOCK})")
            running = asyncio.create_task(_await(c.fetchval(locked, LOCK)))
            cancelled = asyncio.create_task(_await(c.fetchval("SELECT 2 FROM pg_sleep($1)", 0.05)))
            unsent = c.fetchval("SELECT 'never seen by the server'")
            await asyncio.sleep(0.01)
            cancelled.cancel()
            with pytest.raises(asyncio.TimeoutError):
                await c.fetchval("SELECT 3 FROM pg_sleep($1)", 0.05, timeout=0.01)
            unsent.close()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert not running.done()
            await other.execute(f"SELECT pg_advisory_unlock({LOCK})")
            assert await running == 1  # a neighbour is never cancelled
            assert await c.fetchval("SELECT 4") == 4

            c._window = 1
            await other.execute(f"SELECT pg_advisory_lock({LOCK})")
            first = asyncio.create_task(_await(c.fetchval(locked, LOCK)))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(_await(c.execute("CREATE TABLE never (a int)")))
            await asyncio.sleep(0.01)
            waiting.cancel()  # it leaves the queue
            await asyncio.wait([waiting])
            await other.execute(f"SELECT pg_advisory_unlock({LOCK})")
            assert await first == 1
            assert await c.fetchval("SELECT to_regclass('never')") is None

    run(main())


async def _await(op):
    return await op


def test_what_needs_a_connection_of_its_own(run, connect):
    async def main():
        async with connect(shared=True) as c:
            for query in (
                "BEGIN",
                "  -- why\n /* a /* nested */ comment */ set search_path = x",
                "LISTEN x",
                "DECLARE x CURSOR FOR SELECT 1",
                "CREATE TEMP TABLE x (a int)",
                "COPY (SELECT 1) TO STDOUT",
                "DISCARD ALL",
            ):
                for op in (c.execute(query), c.fetch(query)):
                    with pytest.raises(pg.NotSupportedError, match="a connection of its own"):
                        await op
            with pytest.raises(pg.NotSupportedError, match="a connection of its own"):
                await c.executemany("SELECT $1::int", [(1,)])
            with pytest.raises(pg.NotSupportedError, match="a connection of its own"):
                async with c.transaction():
                    pass
            with pytest.raises(pg.NotSupportedError, match="a connection of its own"):
                await c.copy_from_query("SELECT 1", output=lambda data: None)
            with pytest.raises(pg.NotSupportedError, match="a connection of its own"):
                await c.add_listener("x", lambda *args: None)
            with pytest.raises(pg.InterfaceError, match="shared"):
                async with c.pipeline():
                    pass
            with pytest.raises(pg.NotSupportedError, match="script.*a connection of its own"):
                await c.execute("SELECT 1; SELECT 2")
            assert await c.fetchval("SELECT 'settled'") == "settled"
            c.shared = False  # nobody uses it just now
            async with c.transaction():
                assert await c.fetchval("SELECT 1") == 1
                with pytest.raises(pg.InterfaceError, match="transaction"):
                    c.shared = True
            c.shared = True
            assert await asyncio.gather(c.fetchval("SELECT 1"), c.fetchval("SELECT 2")) == [1, 2]

    run(main())


def test_statements_that_come_and_go(run, connect, dsn):
    """Few places in the cache, statements that become stale, types that must be looked up."""

    async def main():
        own = await aio.connect(dsn)
        await own.execute(
            "CREATE TYPE shade AS ENUM ('dark', 'light'); CREATE TABLE shades (a shade, b int);"
            "INSERT INTO shades VALUES ('dark', 1)"
        )
        rng = random.Random(3)
        for size in (0, 2, 100):
            async with connect(shared=True, statement_cache_size=size) as c:
                prepared = await c.prepare("SELECT a FROM shades WHERE b = $1")

                async def query(i, c=c, prepared=prepared):
                    if i % 4 == 0:
                        row = await c.fetchrow("SELECT * FROM shades")
                        assert row["a"] == "dark"
                    elif i % 4 == 1:
                        assert await prepared.fetchval(1) == "dark"
                    elif i % 4 == 2:
                        assert await c.fetchval("SELECT ARRAY[$1::shade]", "light") == ["light"]
                    else:
                        n = rng.randrange(8)
                        assert await c.fetchval(f"SELECT {n}") == n

                for extra in range(3):
                    for _ in range(2):
                        await asyncio.gather(*(query(i) for i in range(40)))
                    await own.execute(f"ALTER TABLE shades ADD COLUMN c{extra} int")
                    c._forget_codecs()
                await own.execute("ALTER TABLE shades DROP c0, DROP c1, DROP c2")
        await own.execute("DROP TABLE shades; DROP TYPE shade")
        await own.close()

    run(main())


def test_the_server_goes_away(run, connect, dsn):
    async def main():
        other = await aio.connect(dsn)
        async with connect(shared=True) as c:
            ops = [asyncio.create_task(_await(c.execute("SELECT pg_sleep(60)"))) for _ in range(9)]
            await asyncio.sleep(0.02)
            await other.execute("SELECT pg_terminate_backend($1)", c.get_server_pid())
            for op in ops:
                with pytest.raises((pg.OperationalError, pg.InterfaceError)):
                    await op
            assert c.is_closed()
        await other.close()

    run(main())


def test_closing_waits_for_what_is_on_its_way(run, dsn):
    async def main():
        c = await aio.connect(dsn, shared=True)
        slow = [asyncio.create_task(_await(c.fetchval(f"SELECT {i}"))) for i in range(5)]
        await asyncio.sleep(0)
        await c.close()
        assert [await one for one in slow] == list(range(5))
        with pytest.raises(errors.ConnectionClosed):
            await c.fetchval("SELECT 1")

    run(main())


def test_greenlets_threads_and_loops(dsn):
    c = asyncio.run(aio.connect(dsn, shared=True))
    wrong = []

    def plain(i):
        for n in range(60):
            if c.fetchval("SELECT $1::int", n, timeout=30).run() != n:
                wrong.append(n)

    async def task(n):
        if n % 3:
            found = await c.fetchval("SELECT $1::int", n, timeout=30)
        else:
            found = await async_(lambda: c.fetchval("SELECT $1::int", n, timeout=30).run())()
        if found != n:
            wrong.append(n)

    async def main():
        await asyncio.gather(*(task(n) for n in range(20)))

    def loops(i):
        for _ in range(10):
            asyncio.run(main())

    targets = [*([plain] * 3), *([loops] * 3)]
    threads = [threading.Thread(target=one, args=(0,), daemon=True) for one in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert not wrong
    assert c.fetchval("SELECT 1", timeout=10).run() == 1
    c.terminate()


def test_a_prepared_statement_is_refused_as_its_text_is(run, connect):
    """Under a name of its own, too, it would change what all others see."""

    async def main():
        async with connect(shared=True) as c:
            for query in ("SET statement_timeout = 12345", "COPY (SELECT 1) TO STDOUT"):
                with pytest.raises(pg.NotSupportedError, match="a connection of its own"):
                    await (await c.prepare(query)).fetch()
            assert await c.fetchval("SHOW statement_timeout") != "12345ms"

    run(main())


def test_closing_cancels_no_neighbour(run, dsn):
    async def main():
        c = await aio.connect(dsn, shared=True)
        slow = [
            asyncio.create_task(_await(c.fetchval(f"SELECT {i} FROM pg_sleep(0.05)")))
            for i in range(3)
        ]
        await asyncio.sleep(0.01)
        await c.close()
        assert [await one for one in slow] == [0, 1, 2]

    run(main())


STARVED = """
import asyncio, resource, sys
from greenletio.pg import aio, errors

async def main():
    options = {"statement_cache_size": 1, "max_cacheable_statement_size": 0}
    c = await aio.connect(sys.argv[1], shared=True, **options)
    await c.fetchval("SELECT 1")  # is to make room for the next one, which needs more
    huge = "SELECT 2 /*" + "x" * 300_000_000 + "*/"
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 100_000_000, resource.RLIM_INFINITY))
    asked = [c.fetchval(huge), c.fetchval("SELECT 3"), c.fetchval("SELECT 4")]
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        print(answer if isinstance(answer, int) else isinstance(answer, errors.Error))
    print(c.is_closed())

asyncio.run(main())
"""


def test_it_is_lost_when_memory_ends_in_the_middle_of_a_message(dsn):
    """The answer to the part that was sent was taken for one to the next query."""
    options = os.environ.get("ASAN_OPTIONS", "")
    env = {**os.environ, "ASAN_OPTIONS": f"{options}:allocator_may_return_null=1"}
    command = [sys.executable, "-c", STARVED, dsn]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["True"] * 4, "")
