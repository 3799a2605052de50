"""pool.shared: the queries of many on few connections, on their way at the same time."""

import asyncio
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fix_progress import Ticker

import greenletio
from greenletio import async_, pg
from greenletio.pg import _pool_shared, aio, errors

OWN = "SELECT pid FROM pg_stat_activity WHERE application_name = $1"


def named(name, **options):
    """A pool whose connections the server knows by this name."""
    return {"min_size": 0, "max_size": 3, "application_name": name, **options}


def lanes_of(pool):
    return pool.shared._lanes._lanes


async def kill(dsn, pid):
    async with aio.create_pool(dsn, min_size=1, max_size=1) as other:
        await other.fetchval("SELECT pg_terminate_backend($1, 10000)", pid)


def test_one_word_makes_the_pools_queries_share(run, dsn):
    async def main():
        async with aio.create_pool(dsn, shared=1, **named("one_word")) as pool:
            most = 0

            async def query(i):
                nonlocal most
                if i % 5 == 0:
                    with pytest.raises(errors.DivisionByZero):
                        await pool.fetchrow("SELECT $1::int / 0", i)
                elif i % 5 == 1:
                    assert [row[0] for row in await pool.fetch("SELECT $1::int", i)] == [i]
                else:
                    assert await pool.fetchval("SELECT 0, $1::int", i, column=1) == i
                most = max(most, lanes_of(pool)[0].con._in_flight)

            await asyncio.gather(*(query(i) for i in range(500)))
            assert most > 1
            assert len(await pool.fetch(OWN, "one_word")) == 1
            stats = pool.get_stats()
            assert (stats["shared_size"], stats["shared_requests"]) == (1, 501)
            assert (stats["requests_num"], pool.get_size()) == (0, 0)  # nothing was leased
        async with aio.create_pool(dsn, **named("each_its_own", max_size=1)) as pool:
            assert await pool.shared.fetchval("SELECT 1") == 1  # by name, where that is not said
            assert await pool.fetchval("SELECT 1") == 1
            assert len(await pool.fetch(OWN, "each_its_own")) == 2

    run(main())


def test_what_cannot_share_has_a_connection_of_its_own(run, dsn):
    async def main():
        async with aio.create_pool(dsn, shared=1, **named("own")) as pool:
            before = await pool.fetchval("SHOW statement_timeout")
            assert await pool.execute("SET statement_timeout = 54321") == "SET"
            assert await pool.execute("SELECT 1; CREATE TEMP TABLE t (a int)") == "CREATE TABLE"
            assert await pool.execute("SELECT 1; SELECT 2") == "SELECT 1"
            with pytest.raises(pg.NotSupportedError):  # the pool's own answer
                await pool.fetch("COPY (SELECT 1) TO STDOUT")
            await pool.executemany("SELECT $1::int", [(1,), (2,)])
            assert await pool.fetchval("SHOW statement_timeout") == before
            assert await pool.fetchval("SELECT to_regclass('t')") is None
            async with pool.acquire() as c, c.transaction():
                assert await c.fetchval("SELECT 1") == 1
            with pytest.raises(AttributeError, match=r"pool\.transaction.*acquire"):
                pool.shared.transaction()
            with pytest.raises(TypeError):
                await pool.fetchval(None)
            with pytest.raises(errors.ArgumentsMismatch):
                await pool.fetchval("SELECT 1", 2)

    run(main())


def test_functions_that_are_for_leases(run, dsn):
    async def function(c):
        pass

    for option in ("setup", "reset"):
        with pytest.raises(ValueError, match="leases"):
            aio.create_pool(dsn, shared=1, **{option: function})
        with pytest.raises(aio.InterfaceError, match="leases"):
            _ = aio.create_pool(dsn, **{option: function}).shared
    with pytest.raises(ValueError, match="shared"):
        aio.create_pool(dsn, shared=-1)
    with pytest.raises(ValueError, match="shared"):
        pg.Pool(dsn, shared=0, open=False)

    async def init(c):
        await c.execute("SET statement_timeout = 12345")

    async def main():
        async with aio.create_pool(dsn, shared=1, init=init, **named("init")) as pool:
            assert await pool.fetchval("SHOW statement_timeout") == "12345ms"

    run(main())


def test_who_connects_is_cancelled(run, dsn):
    """The others do not notice, and there is one connection."""

    async def main():
        async with aio.create_pool(dsn, shared=1, **named("connector")) as pool:
            tasks = [asyncio.create_task(pool.fetchval("SELECT $1::int", i)) for i in range(20)]
            await asyncio.sleep(0)
            assert pool.shared._lanes._connecting
            tasks[0].cancel()
            tasks[7].cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            cancelled = [i for i, one in enumerate(found) if isinstance(one, BaseException)]
            assert cancelled == [0, 7]
            assert len(await pool.fetch(OWN, "connector")) == 1

    run(main())


def test_nobody_can_connect(run, dsn):
    nowhere = "postgresql://postgres@127.0.0.1:1/none"

    async def main():
        async with aio.create_pool(nowhere, min_size=0, shared=1) as pool:
            tasks = [asyncio.ensure_future(pool.fetchval("SELECT 1")) for _ in range(9)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(one) for one in found} == {errors.CannotConnect}
            assert len({id(one) for one in found}) == 9

    run(main())
    with pg.Pool(nowhere, min_size=0, max_size=1, timeout=0.3) as pool:
        with pytest.raises(pg.PoolTimeout, match="last attempt"):
            pool.shared.execute("SELECT 1")


def test_a_lost_connection(run, dsn):
    """What the server cannot have begun is asked again; of the rest it is said."""

    async def main():
        async with aio.create_pool(dsn, **named("lost")) as pool:
            await pool.execute("CREATE TABLE IF NOT EXISTS lost (i int)")
            await pool.execute("TRUNCATE lost")
            insert = "INSERT INTO lost SELECT $1::int FROM pg_sleep($2)"
            await pool.shared.execute(insert, 1000, 0)
            lane = lanes_of(pool)[0]
            lane.con._window = 3
            tasks = [
                asyncio.create_task(pool.shared.execute(insert, i, 60 if i == 0 else 0))
                for i in range(20)
            ]
            await asyncio.sleep(0.02)
            await kill(dsn, lane.con._pid)
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(one) for one in found[:3]] == [errors.QueryInDoubt] * 3
            assert found[3:] == ["INSERT 0 1"] * 17
            with pytest.raises(errors.QueryInDoubt, match="it was done, or it was not"):
                raise found[1]
            assert isinstance(found[0].__cause__, errors.AdminShutdown)
            assert isinstance(found[1], aio.ConnectionDoesNotExistError)
            rows = await pool.shared.fetch("SELECT i FROM lost ORDER BY i")
            assert [row[0] for row in rows] == [*range(3, 20), 1000]
            stats = pool.get_stats()
            assert stats["shared_in_doubt"] == 3
            assert (stats["shared_repeated"], stats["shared_size"]) == (17, 1)
            # One that was idle is replaced, too.
            await kill(dsn, lanes_of(pool)[0].con._pid)
            assert await pool.shared.fetchval("SELECT 1") == 1
            await pool.execute("DROP TABLE lost")

    run(main())


def test_the_second_connection_takes_over(run, dsn):
    async def main():
        async with aio.create_pool(dsn, shared=2, **named("two")) as pool:
            await pool.fetchval("SELECT 1")
            while len(lanes_of(pool)) < 2:
                await asyncio.sleep(0.01)
            pids = set(
                await asyncio.gather(*(pool.fetchval("SELECT pg_backend_pid()") for _ in "ab"))
            )
            assert len(pids) == 2
            await kill(dsn, pids.pop())
            assert await pool.fetchval("SELECT pg_backend_pid()") in pids
            while len(lanes_of(pool)) < 2:  # in the background
                await pool.fetchval("SELECT 1")
                await asyncio.sleep(0.01)

    run(main())


def test_a_storm_of_cancellations(run, dsn):
    """Of a thousand queries, most are given up at some moment: the others have their answers."""

    async def main():
        rng = random.Random(11)
        async with aio.create_pool(dsn, shared=2, **named("storm")) as pool:
            await pool.execute("CREATE TABLE IF NOT EXISTS storm (i int)")
            await pool.execute("TRUNCATE storm")
            kept = set()

            async def query(i):
                insert = "INSERT INTO storm VALUES ($1) RETURNING i"
                timeout = rng.choice((None, None, None, 0.0001, 0.001))
                assert await pool.fetchval(insert, i, timeout=timeout) == i
                kept.add(i)

            async def one(i):
                task = asyncio.create_task(query(i))
                for _ in range(rng.randrange(6)):
                    await asyncio.sleep(0)
                if rng.random() < 0.6:
                    task.cancel()
                await asyncio.wait([task])
                if not task.cancelled() and task.exception() is not None:
                    assert isinstance(task.exception(), asyncio.TimeoutError)

            for _ in range(10):
                await asyncio.gather(*(one(i) for i in range(100)))
                assert kept
                rows = await pool.fetch("SELECT i, count(*) FROM storm GROUP BY 1")
                there = {row[0]: row[1] for row in rows}
                assert kept <= set(there)
                assert max(there.values()) == 1
                await pool.execute("TRUNCATE storm")
                kept.clear()
            assert all(lane.users == 0 for lane in lanes_of(pool))
            assert pool.get_stats()["shared_in_doubt"] == 0
            await pool.execute("DROP TABLE storm")

    run(main())


def test_one_that_does_not_answer_is_left(run, dsn, monkeypatch):
    """Its neighbours keep their answers, those who come later do not wait behind it."""
    monkeypatch.setattr(_pool_shared, "STUCK", 0.0)

    async def main():
        async with aio.create_pool(dsn, shared=1, **named("stuck")) as pool:
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            sleep = "SELECT $2::int FROM pg_sleep($1)"
            locked = "SELECT $2::int FROM pg_advisory_xact_lock($1)"
            await pool.fetchval(sleep, 0, 0)
            await pool.fetchval(locked, 0, 0)
            other = await aio.connect(dsn)
            await other.execute("SELECT pg_advisory_lock(1)")
            slow = asyncio.create_task(pool.fetchval(locked, 1, 1))
            behind = asyncio.create_task(pool.fetchval("SELECT pg_backend_pid()"))
            given_up = asyncio.create_task(pool.fetchval(sleep, 0, 2, timeout=0.05))
            with pytest.raises(asyncio.TimeoutError):
                await given_up
            assert await pool.fetchval("SELECT pg_backend_pid()") != pid
            assert not slow.done()
            await other.close()
            assert (await slow, await behind) == (1, pid)
            # The one that nobody waits on is closed, and what it does is ended.
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            with pytest.raises(asyncio.TimeoutError):
                await pool.fetchval(sleep, 60, 1, timeout=0.05)
            while await pool.fetch(f"{OWN} AND pid = $2", "stuck", pid):
                await asyncio.sleep(0.01)

    run(main())


def test_closing(run, dsn):
    async def main():
        pool = await aio.create_pool(dsn, shared=1, **named("closing"))
        await pool.fetchval("SELECT 1")
        sleep = "SELECT $1::int FROM pg_sleep(0.05)"
        tasks = [asyncio.create_task(pool.fetchval(sleep, i)) for i in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        with pytest.raises(aio.InterfaceError, match="closing"):
            await pool.fetchval("SELECT 1")
        assert await asyncio.gather(*tasks) == list(range(5))
        await closing
        with pytest.raises(aio.InterfaceError, match="closed"):
            await pool.shared.fetchval("SELECT 1")

        pool = await aio.create_pool(dsn, shared=1, **named("closing"))
        await pool.fetchval("SELECT 1")
        sleep = "SELECT $1::int FROM pg_sleep(60)"
        tasks = [asyncio.create_task(pool.fetchval(sleep, i)) for i in range(5)]
        await asyncio.sleep(0.01)
        pool.terminate()
        for task in tasks:
            with pytest.raises((pg.OperationalError, pg.InterfaceError)):
                await task
        assert pool.get_stats()["shared_size"] == 0

    run(main())


def test_connections_are_replaced_in_their_time(run, dsn):
    async def main():
        async with aio.create_pool(dsn, shared=1, **named("expired")) as pool:
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            under_way = asyncio.create_task(
                pool.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.05)")
            )
            await asyncio.sleep(0)
            await pool.expire_connections()
            assert await pool.fetchval("SELECT pg_backend_pid()") != pid
            assert await under_way == pid
            while len(await pool.fetch(OWN, "expired")) > 1:
                await asyncio.sleep(0.01)

    run(main())


def test_sync_code(run, dsn):
    with pg.Pool(dsn, min_size=0, max_size=2, kwargs={"application_name": "plain"}) as pool:
        shared = pool.shared
        cursor = shared.execute(
            "SELECT %s AS a, '[1]'::json AS b", (1,), row_factory=pg.rows.dict_row
        )
        assert cursor.fetchall() == [{"a": 1, "b": [1]}]
        assert shared.execute("INSERT INTO pg_description SELECT WHERE false").rowcount == 0
        with pytest.raises(errors.DivisionByZero):
            shared.execute("SELECT 1 / 0")
        script = shared.execute("SELECT 1; SELECT 2")
        assert script.nextset()
        assert script.fetchone() == (2,)
        assert shared.execute("SET statement_timeout = 54321").statusmessage == "SET"
        assert shared.execute("SHOW statement_timeout").fetchone() != ("54321ms",)
        with pytest.raises(TimeoutError):
            shared.execute("SELECT pg_sleep(60)", timeout=0.05)
        with pytest.raises(AttributeError, match="pool.connection"):
            shared.transaction()
        with pytest.raises(TypeError):
            shared.execute(b"SELECT 1")

        async def main():
            with pytest.raises(greenletio.WouldBlockError):
                shared.execute("SELECT 1")

        run(main())
    with pytest.raises(pg.PoolClosed):
        shared.execute("SELECT 1")


def test_an_idle_connection_that_was_lost_is_found_before_a_query_goes_out(dsn):
    """In plain code nobody hears of its end: what it has to say is read first."""
    with pg.Pool(dsn, min_size=0, max_size=1) as pool:
        for _ in range(3):
            (pid,) = pool.shared.execute("SELECT pg_backend_pid()").fetchone()
            asyncio.run(kill(dsn, pid))
            assert pool.shared.execute("SELECT pg_backend_pid()").fetchone() != (pid,)
        stats = pool.get_stats()
        assert (stats["shared_in_doubt"], stats["shared_repeated"]) == (0, 3)


def test_tasks_greenlets_and_threads_share_one(dsn):
    """Each face has a connection of its own, by how its values are read; all ask at once."""
    wrong = []

    async def init(pool):
        await pool
        return pool

    pool = asyncio.run(init(aio.create_pool(dsn, shared=1, **named("all"))))

    def ask(n):
        if pool.sync.shared.execute("SELECT %s", (n,)).fetchone() != (n,):
            wrong.append(n)

    async def main():
        async def task(n):
            if await pool.fetchval("SELECT $1::int", n) != n:
                wrong.append(n)

        await asyncio.gather(*(task(n) if n % 2 else async_(ask)(n) for n in range(40)))

    def loops():
        for _ in range(5):
            asyncio.run(main())

    def plain():
        for n in range(60):
            ask(n)

    threads = [threading.Thread(target=one, daemon=True) for one in (loops, plain) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert not wrong
    stats = pool.get_stats()
    assert stats["shared_requests"] == 3 * (5 * 40 + 60)
    assert stats["shared_size"] == 2
    asyncio.run(pool.close())


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_through_pgbouncer(run, dsn, pgbouncer, mode):
    url = pgbouncer(dsn, mode, default_pool_size=2)

    async def main():
        async with aio.create_pool(url, min_size=0, shared=2, pooler=True) as pool:
            for _ in range(3):
                found = await asyncio.gather(
                    *(pool.fetchval("SELECT $1::int", i) for i in range(100)),
                    *(pool.fetchval("SELECT $1::text", str(i)) for i in range(100)),
                    return_exceptions=True,
                )
                assert found == [*range(100), *map(str, range(100))]

    run(main())


def test_the_server_is_killed_under_it(run, own_server):
    """Who has a query there hears of it at once; who comes when it is back has a new connection."""
    sleep = "SELECT $1::int FROM pg_sleep($2)"

    async def main():
        loop = asyncio.get_running_loop()
        async with aio.create_pool(own_server.url, shared=2, **named("killed")) as pool:
            await pool.fetchval(sleep, 0, 0)
            while len(lanes_of(pool)) < 2:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(pool.fetchval(sleep, i, 0) for i in range(10)))
            asked = [asyncio.create_task(pool.fetchval(sleep, i, 60)) for i in range(100)]
            sync = [
                loop.run_in_executor(None, pool.sync.shared.execute, "SELECT pg_sleep(60)")
                for _ in "ab"
            ]
            await asyncio.sleep(0.1)
            own_server.kill()
            found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
            assert {type(one) for one in found} <= {errors.QueryInDoubt, errors.CannotConnect}
            assert errors.QueryInDoubt in {type(one) for one in found}
            for one in sync:
                with pytest.raises(errors.OperationalError):
                    await asyncio.wait_for(one, 60)
            with pytest.raises((errors.QueryInDoubt, errors.CannotConnect)):
                await pool.fetchval("SELECT 1")
            await loop.run_in_executor(None, own_server.start)
            while True:
                try:
                    assert await pool.fetchval(sleep, 7, 0) == 7
                    break
                except errors.OperationalError:  # it starts up
                    await asyncio.sleep(0.01)
            while True:
                try:
                    answer = await loop.run_in_executor(None, pool.sync.shared.execute, "SELECT 8")
                    break
                except errors.OperationalError:  # of the second lane, which nobody used since
                    pass
            assert answer.fetchone() == (8,)
            assert all(lane.users == 0 for lane in lanes_of(pool))

    run(main())


def test_the_server_freezes_under_it(run, own_server, monkeypatch):
    """Every query has its time, and no more; when the server goes on, so does the pool."""
    monkeypatch.setattr(_pool_shared, "STUCK", 0.0)
    soon = 0.2
    timeouts = (TimeoutError, asyncio.TimeoutError)

    async def main():
        pool = await aio.create_pool(own_server.url, shared=1, **named("frozen"))
        assert await pool.fetchval("SELECT $1::int", 1) == 1
        pool.set_connect_args(own_server.url, timeout=soon)
        own_server.freeze()
        try:
            async with Ticker():
                for _ in range(2):  # at what there is, then at connecting
                    asked = (pool.fetchval("SELECT $1::int", i, timeout=soon) for i in range(50))
                    found = await asyncio.wait_for(
                        asyncio.gather(*asked, return_exceptions=True), 30
                    )
                    assert all(isinstance(one, timeouts) for one in found), found
        finally:
            own_server.thaw()
        pool.set_connect_args(own_server.url)
        assert await pool.fetchval("SELECT $1::int", 2) == 2
        await asyncio.wait_for(pool.close(), 30)

    run(main())
    with pg.Pool(own_server.url, min_size=0, max_size=1) as pool:
        assert pool.shared.execute("SELECT 1").fetchone() == (1,)
        pool.timeout = soon
        own_server.freeze()
        try:
            for _ in range(2):
                with pytest.raises((*timeouts, pg.PoolTimeout)):
                    pool.shared.execute("SELECT 1", timeout=soon)
        finally:
            own_server.thaw()
        pool.timeout = 30.0
        assert pool.shared.execute("SELECT 2").fetchone() == (2,)


def test_the_example(pg_dsn):
    example = Path(__file__).resolve().parents[2] / "examples" / "pg_shared.py"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(example)],
        env={**os.environ, "DATABASE_URL": pg_dsn},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "500 visits, 25 of the first page",
        "521 questions on 2 connections",
    ]
