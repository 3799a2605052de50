"""The pool for tasks: asyncpg's API and semantics."""

import asyncio
import gc
import threading
import time
import warnings

import pytest
from fix_loops import Run
from fix_progress import Ticker

from greenletio import async_, pg
from greenletio.pg import _pool_roles, aio
from greenletio.pg._pool_keeper import Keeper


def sizes(pool):
    return pool.get_size(), pool.get_idle_size()


async def settled(pool):
    """Until every reset is over."""
    while pool._core.resetting:
        await asyncio.sleep(0.001)


def test_the_life_of_a_pool(run, dsn):
    async def main():
        pool = aio.create_pool(dsn, min_size=2, max_size=3)
        with pytest.raises(aio.InterfaceError, match="not initialized"):
            await pool.fetch("SELECT 1")
        assert await pool is pool
        assert (await pool) is pool
        assert (pool.get_min_size(), pool.get_max_size(), pool.get_init_size()) == (2, 3, 2)
        assert sizes(pool) == (2, 2)
        async with pool.acquire() as c:
            assert isinstance(c, aio.Connection)
            assert type(c) is aio.PoolConnectionProxy
            assert await c.fetchval("SELECT 1") == 1
            assert sizes(pool) == (2, 1)
        assert "released" in repr(c)
        for use in (lambda: c.fetchval("SELECT 1"), lambda: c.is_closed(), lambda: c.x):
            with pytest.raises(aio.InterfaceError, match="released back to the pool"):
                use()
        c = await pool.acquire()
        await pool.release(c)
        await pool.release(c)  # again: nothing
        with pytest.raises(aio.InterfaceError, match="invalid connection"):
            await pool.release(object())
        async with aio.create_pool(dsn, min_size=1, max_size=1) as other, other.acquire() as c:
            with pytest.raises(aio.InterfaceError, match="not a member"):
                await pool.release(c)
        assert not pool.is_closing()
        await pool.close()
        await pool.close()
        assert pool.is_closing()
        assert sizes(pool) == (0, 0)
        for use in (pool.acquire, lambda: pool.fetchval("SELECT 1"), lambda: pool):
            with pytest.raises(aio.InterfaceError, match="closed"):
                await use()

    run(main())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_size": 0}, ValueError, "max_size"),
        ({"min_size": -1}, ValueError, "min_size"),
        ({"min_size": 5, "max_size": 4}, ValueError, "min_size is greater"),
        ({"init_size": 11}, ValueError, "init_size is greater"),
        ({"init_size": 1}, ValueError, "init_size is smaller"),
        ({"max_queries": 0}, ValueError, "max_queries"),
        ({"max_inactive_connection_lifetime": -1}, ValueError, "lifetime"),
        ({"connection_class": object}, TypeError, "connection_class"),
        ({"record_class": dict}, TypeError, "record_class"),
    ],
)
def test_arguments_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        aio.create_pool("", **options)


def test_what_a_connection_does_the_pool_does(run, dsn, tmp_path):
    class Row(aio.Record):
        pass

    class Own(aio.Connection):
        def twice(self, n):
            return self.fetchval("SELECT 2 * $1::int", n)

    async def main():
        options = {"min_size": 1, "max_size": 2, "connection_class": Own, "command_timeout": 5}
        async with aio.create_pool(dsn, **options) as pool:
            assert await pool.execute("CREATE TABLE IF NOT EXISTS pool_rows (a int)")
            assert await pool.execute("DELETE FROM pool_rows WHERE a > $1", 0)
            await pool.executemany("INSERT INTO pool_rows VALUES ($1)", [(1,), (2,)])
            assert await pool.fetchval("SELECT 1, 2", column=1) == 2
            assert (await pool.fetchrow("SELECT 1 AS a", record_class=Row)).get("a") == 1
            rows = await pool.fetch("SELECT a FROM pool_rows ORDER BY 1", record_class=Row)
            assert [type(row) for row in rows] == [Row, Row]
            status = await pool.copy_records_to_table("pool_rows", records=[(3,)])
            assert status == "COPY 1"
            out = tmp_path / "out"
            assert await pool.copy_from_table("pool_rows", output=str(out)) == "COPY 3"
            query = "SELECT a FROM pool_rows WHERE a > $1"
            assert await pool.copy_from_query(query, 1, output=str(out)) == "COPY 2"
            assert await pool.copy_to_table("pool_rows", source=str(out)) == "COPY 2"
            async with pool.acquire() as c:
                assert await c.twice(21) == 42
                st = await c.prepare("SELECT $1::int")
                cursor = c.cursor("SELECT 1")
                tx = c.transaction()
                assert await st.fetchval(3) == 3
                async with tx:
                    assert [row[0] async for row in cursor] == [1]
                    async with c.transaction():
                        assert await st.fetchval(4) == 4
            for use in (lambda: st.fetchval(3), st.get_query, c.transaction, lambda: c.x):
                with pytest.raises(aio.InterfaceError, match="released back to the pool"):
                    use()
            with pytest.raises(aio.InterfaceError, match="released back to the pool"):
                await cursor
            with pytest.raises(asyncio.TimeoutError):
                await pool.fetchval("SELECT pg_sleep(60)", timeout=0.05)
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_first_come_first_served(run, dsn):
    async def main():
        order = []
        async with aio.create_pool(dsn, min_size=2, max_size=2) as pool:

            async def work(i):
                async with pool.acquire() as c:
                    order.append(i)
                    await c.fetchval("SELECT pg_sleep(0.01)")

            async with Ticker():
                await asyncio.gather(*(work(i) for i in range(50)))
            assert order == list(range(50))
            assert pool.get_size() == 2
            stats = pool.stats()
            assert (stats["requests_num"], stats["requests_queued"]) == (50, 48)
            errors = ("requests_errors", "returns_bad", "connections_num", "connections_lost")
            assert [stats[name] for name in errors] == [0, 0, 0, 0]

    run(main())


def test_acquire_gives_up_at_its_timeout_and_says_why(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=1, max_waiting=1) as pool:
            async with pool.acquire() as c:
                text = "within 0.05 s: 1 of 1 are in use"
                with pytest.raises(pg.PoolTimeout, match=text) as caught:
                    await pool.acquire(timeout=0.05)
                assert isinstance(caught.value, asyncio.TimeoutError)
                waiting = asyncio.ensure_future(pool._acquire(None))
                await asyncio.sleep(0)
                with pytest.raises(pg.TooManyRequests, match="1 requests wait already"):
                    await pool.acquire()
                await c.execute("SET search_path = x")
            c = await waiting
            assert await c.fetchval("SHOW search_path") != "x"
            await pool.release(c)

    run(main())


def test_the_more_wait_the_more_rarely_each_looks_for_what_is_stranded(run, dsn):
    """Each look searches the queue: ten thousand that look every second would do nothing else."""

    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=1) as pool:
            async with pool.acquire():
                waiting = [pool._core.acquire(float("inf")) for _ in range(300)]
                seconds = [next(steps).seconds for steps in waiting]
                assert seconds[0] < seconds[150] < seconds[299]
                for steps in waiting:
                    steps.close()
            assert pool.get_stats()["requests_waiting"] == 0

    run(main())


def test_a_cancelled_acquire_loses_no_connection(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=0, max_size=2) as pool:
            for steps in range(12):  # at every point of it: connecting, waiting, granted
                tasks = [asyncio.create_task(pool._acquire(None)) for _ in range(4)]
                for _ in range(steps):
                    await asyncio.sleep(0)
                held = []
                for task in tasks[1:]:
                    task.cancel()
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    if not isinstance(result, BaseException):
                        held.append(result)
                for c in held:
                    await pool.release(c)
            first, second = await pool.acquire(), await pool.acquire()
            waiting = [asyncio.create_task(pool._acquire(None)) for _ in range(3)]
            await asyncio.sleep(0)
            await pool.release(first)  # granted to the first, who does not take it
            waiting[0].cancel()
            waiting[1].cancel()
            third = await waiting[2]
            await pool.release(second)
            await pool.release(third)
            await settled(pool)
            assert sizes(pool) == (2, 2)
            assert not pool._core._queue

    run(main())


def test_who_is_told_to_connect_too_late_leaves_it_to_the_next(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=0, max_size=1) as pool:
            c = await pool.acquire()
            late = asyncio.ensure_future(pool._acquire(0.05))
            behind = asyncio.ensure_future(pool._acquire(20))
            await asyncio.sleep(0)
            c.terminate()  # there is room: the first one is told
            time.sleep(0.1)
            with pytest.raises(pg.PoolTimeout):
                await late
            await pool.release(await behind)
            await pool.release(c)

    run(main())


def test_a_cancelled_acquire_of_a_pool_that_is_closed_is_cancelled(run, dsn):
    async def main():
        pool = await aio.create_pool(dsn, min_size=1, max_size=1)
        c = await pool.acquire()
        waiting = asyncio.ensure_future(pool._acquire(None))
        await asyncio.sleep(0)
        pool.terminate()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await pool.release(c)

    run(main())


def test_a_turn_of_the_keeper_that_is_asked_for_during_another_one_is_not_forgotten(run):
    class Core:
        def sweep(self):
            keeper.look_after(soon)  # as another thread may
            return soon + 1000

        def is_missing(self):
            return False

    async def main():
        keeper._turn(core)
        assert keeper._due == soon
        keeper.stop()

    core, soon = Core(), time.monotonic() + 10
    keeper = Keeper(core)
    run(main())


def test_a_cancelled_task_gives_its_connection_back_in_the_background(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=1) as pool:
            pid = await pool.fetchval("SELECT pg_backend_pid()")

            async def work():
                async with pool.acquire() as c:
                    async with c.transaction():
                        await c.execute("SET search_path = x")
                        await c.fetchval("SELECT pg_sleep(60)")

            async def impatient():
                async with pool.acquire() as c:
                    await c.execute("BEGIN; SELECT pg_advisory_lock(1)")
                    await c.execute("SELECT pg_sleep(60)")

            for job in (work, impatient, lambda: pool.fetchval("SELECT pg_sleep(60)")):
                task = asyncio.create_task(job())
                await asyncio.sleep(0.03)
                task.cancel()
                task.cancel()  # once more: it must not be what gives it back
                with pytest.raises(asyncio.CancelledError):
                    await task
                query = "SELECT pg_backend_pid(), current_setting('search_path'), " + (
                    "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND"
                    " pid = pg_backend_pid())"
                )
                assert tuple(await pool.fetchrow(query)) == (pid, '"$user", public', 0)
            assert sizes(pool) == (1, 1)

    run(main())


def test_a_broken_connection_is_replaced(run, dsn, connect):
    async def main():
        async with aio.create_pool(dsn, min_size=2, max_size=2) as pool, connect() as other:
            async with pool.acquire() as c:
                with pytest.raises(aio.PostgresError):
                    await c.execute("SELECT pg_terminate_backend(pg_backend_pid())")
                assert c.is_closed()
            assert await pool.fetchval("SELECT 1") == 1
            # Those that are idle, too; the pool makes up for them by itself.
            idle = [slot.con for slot in pool._core.idle]
            for c in idle:
                await other.execute("SELECT pg_terminate_backend($1, 5000)", c.get_server_pid())
            while not all(c.is_closed() for c in idle):
                await asyncio.sleep(0.001)
            assert await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(3))) == [1] * 3
            while pool.get_size() < 2:
                await asyncio.sleep(0.001)
            pool.terminate()

    run(main())


def test_the_pool_does_not_outlive_its_limits(run, dsn):
    async def main():
        options = {"max_inactive_connection_lifetime": 0.05, "min_size": 1, "max_size": 3}
        async with aio.create_pool(dsn, init_size=3, **options) as pool:
            assert pool.get_size() == 3
            while pool.get_size() > 0:  # idle for too long
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert pool.get_size() == 0
        async with aio.create_pool(dsn, min_size=1, max_size=1) as pool:
            async with pool.acquire() as c:
                c.terminate()
            while pool.get_size() < 1:  # one that was lost is replaced
                await asyncio.sleep(0.01)
        async with aio.create_pool(dsn, min_size=2, max_size=2, max_lifetime=0.1) as pool:
            before = {slot.con for slot in pool._core.idle}
            while before & {slot.con for slot in pool._core.idle}:  # old, and made anew
                await asyncio.sleep(0.01)
            while pool.get_size() < 2:
                await asyncio.sleep(0.01)
        async with aio.create_pool(dsn, min_size=1, max_size=1, max_queries=3) as pool:
            pids = [await pool.fetchval("SELECT pg_backend_pid()") for _ in range(7)]
            assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
            await pool.expire_connections()
            assert await pool.fetchval("SELECT pg_backend_pid()") != pids[-1]
            async with pool.acquire() as c:
                old = c.get_server_pid()
                await pool.expire_connections()
            assert await pool.fetchval("SELECT pg_backend_pid()") != old

    run(main())


def test_the_users_functions(run, dsn):
    calls = []

    async def init(c):
        assert type(c) is aio.Connection
        calls.append("init")

    async def setup(c):
        calls.append("setup")
        await c.execute("SET search_path = theirs")

    async def reset(c):
        calls.append("reset")
        await c.execute("RESET ALL")

    async def main():
        functions = {"init": init, "setup": setup, "reset": reset}
        async with aio.create_pool(dsn, min_size=1, max_size=1, **functions) as pool:
            async with pool.acquire() as c:
                assert await c.fetchval("SHOW search_path") == "theirs"
            assert calls == ["init", "setup", "reset"]
            assert await pool.fetchval("SHOW search_path") == "theirs"
        calls.clear()

        async def fail(c):
            calls.append("fail")
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await aio.create_pool(dsn, min_size=1, max_size=1, init=fail)
        for name in ("setup", "reset"):
            async with aio.create_pool(dsn, min_size=1, max_size=1, **{name: fail}) as pool:
                for _ in range(2):
                    with pytest.raises(ValueError, match="no"):
                        async with pool.acquire():
                            pass
                assert pool.get_idle_size() == 0
        assert calls.count("fail") == 5

        async def make(*args, **kwargs):
            kwargs.pop("loop")
            return await aio.connect(*args, **kwargs)

        async with aio.create_pool(dsn, min_size=1, max_size=1, connect=make) as pool:
            assert await pool.fetchval("SELECT 1") == 1
            pool.set_connect_args(dsn, server_settings={"application_name": "renamed"})
            await pool.expire_connections()
            assert await pool.fetchval("SHOW application_name") == "renamed"

        async def wrong(*args, **kwargs):
            return 5

        with pytest.raises(aio.InterfaceError, match="'int'"):
            await aio.create_pool(dsn, min_size=1, max_size=1, connect=wrong)

    run(main())


def test_connecting_fails_at_once_and_for_all_who_wait(run, dsn):
    async def main():
        bad = dsn.replace("greenletio_", "no_such_")
        with pytest.raises(aio.InvalidCatalogNameError):
            await aio.create_pool(bad)
        async with aio.create_pool(bad, min_size=0, max_size=1) as pool:
            found = await asyncio.gather(
                *(pool.fetchval("SELECT 1") for _ in range(5)), return_exceptions=True
            )
            assert [type(exc) for exc in found] == [aio.InvalidCatalogNameError] * 5
            pool.set_connect_args(dsn)
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_close_waits_for_those_that_are_in_use(run, dsn):
    async def main():
        pool = await aio.create_pool(dsn, min_size=1, max_size=1)
        c = await pool.acquire()
        waiting = asyncio.ensure_future(pool._acquire(None))
        await asyncio.sleep(0)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        with pytest.raises(pg.PoolClosed):
            await waiting
        with pytest.raises(pg.PoolClosed):
            await pool.acquire()
        assert await c.fetchval("SELECT 1") == 1
        await pool.release(c)
        await closing

        pool = await aio.create_pool(dsn, min_size=1, max_size=1)
        c = await pool.acquire()
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert c.is_closed()  # it was terminated
        await pool.release(c)

    run(main())


def test_a_server_that_does_not_answer_a_reset_costs_a_connection_only(
    run, own_server, monkeypatch
):
    async def main():
        pool = await aio.create_pool(own_server.url, min_size=1, max_size=1)
        limit = "greenletio.pg._pool.RESET_TIMEOUT"
        monkeypatch.setattr(limit, 0.2)
        async with pool.acquire() as c:
            await c.fetchval("SELECT 1")
            own_server.freeze()
        assert sizes(pool) == (1, 1)
        async with Ticker():  # waits for the reset, then for a new one
            with pytest.raises(pg.PoolTimeout, match="connect failed: it took too long"):
                await pool.acquire(timeout=1.5)
        own_server.thaw()
        monkeypatch.setattr(limit, 60.0)
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.get_stats()["returns_bad"] == 1
        c = await pool.acquire()
        own_server.freeze()
        async with Ticker():  # whoever gives a timeout hears of it
            with pytest.raises(asyncio.TimeoutError):
                await pool.release(c, timeout=0.2)
        assert pool.get_stats()["returns_bad"] == 2
        own_server.thaw()
        async with pool.acquire() as c:
            await c.fetchval("SELECT 1")
            own_server.freeze()
            monkeypatch.setattr(limit, 0.2)
        await pool.close()  # does not wait for longer than the reset may
        own_server.thaw()

    run(main())


def test_a_reset_that_another_loop_has_begun_costs_nobody_more_than_his_time(loop_kind, own_server):
    async def lease():
        pool = await aio.create_pool(own_server.url, min_size=1, max_size=1)
        async with pool.acquire() as c:
            await c.execute("SET work_mem = '1234kB'")
            own_server.freeze()
        return pool  # the loop ends in the middle of the reset

    async def acquire(pool):
        with pytest.raises(pg.PoolTimeout):
            await pool.acquire(timeout=0.3)
        own_server.thaw()
        assert await pool.fetchval("SHOW work_mem") != "1234kB"
        await pool.close()

    pool = Run(loop_kind)(lease())
    Run(loop_kind)(acquire(pool))


def test_a_lease_that_closes_its_connection_frees_its_place(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=0, max_size=1) as pool:
            for end in ("close", "terminate"):
                async with pool.acquire() as c:
                    answer = getattr(c, end)()
                    if answer is not None:
                        await answer
                    assert c.is_closed()
                    async with pool.acquire(timeout=5) as other:
                        assert await other.fetchval("SELECT 1") == 1
                assert sizes(pool) == (1, 1)

    run(main())


def test_a_change_of_the_schema_is_told_to_the_others(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=3, max_size=3) as pool:
            async with pool.acquire() as a, pool.acquire() as b, pool.acquire() as third:
                await third.execute("DROP TABLE IF EXISTS changing; CREATE TABLE changing (a int)")
                try:
                    for c in (a, b):
                        assert await c.fetch("SELECT * FROM changing") == []
                    await third.execute("ALTER TABLE changing ADD b int")
                    assert await a.fetch("SELECT * FROM changing") == []  # finds it out
                    async with b.transaction():  # where it could not be done again
                        assert await b.fetch("SELECT * FROM changing") == []
                finally:
                    await third.execute("DROP TABLE changing")

    run(main())


def test_one_that_is_forgotten_is_closed_and_reported(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=1) as pool:
            c = await pool.acquire()
            with pytest.warns(ResourceWarning, match="unreleased"):
                del c
                gc.collect()
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_from_loop_to_loop_and_to_plain_code(loop_kind, dsn):
    async def first():
        pool = await aio.create_pool(dsn, min_size=2, max_size=2)
        assert await pool.fetchval("SELECT 1") == 1  # the loop ends in the middle of the reset
        return pool

    async def second(pool):
        assert await asyncio.gather(*(pool.fetchval("SELECT $1::int", i) for i in range(9)))
        async with pool.acquire() as c:
            assert await c.fetchval("SELECT 2") == 2

    pool = Run(loop_kind)(first())
    Run(loop_kind)(second(pool))
    with pool.sync.connection() as c:
        assert c.execute("SELECT 3").fetchone() == (3,)
    Run(loop_kind)(second(pool))

    slowly = "FROM pg_sleep(0.01)"

    def work(i):
        with pool.sync.connection() as c:
            return c.execute(f"SELECT %s::int {slowly}", (i,)).fetchone()[0]

    threads = [threading.Thread(target=lambda i=i: found.append(work(i))) for i in range(4)]
    found = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [0, 1, 2, 3]

    async def third():
        jobs = []
        for i in range(0, 60, 2):  # tasks and greenlets, all at once
            jobs.append(pool.fetchval(f"SELECT $1::int {slowly}", i))
            jobs.append(async_(work)(i + 1))
        async with Ticker():
            assert await asyncio.gather(*jobs) == list(range(60))
        assert pool.get_size() == 2
        await pool.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        Run(loop_kind)(third())


def test_leases_leave_nothing_behind(run, dsn, aflat):
    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=1) as pool:

            async def one():
                async with pool.acquire() as c:
                    st = await c.prepare("SELECT 1")
                    assert await st.fetchval() == 1
                with pytest.raises(asyncio.TimeoutError):
                    async with pool.acquire() as c:
                        await pool.acquire(timeout=0)
                assert await pool.fetchval("SELECT 1") == 1
                tasks = [asyncio.ensure_future(pool.fetchval("SELECT 1")) for _ in range(3)]
                await asyncio.sleep(0)
                for each in tasks:
                    each.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

            await aflat(one, 20)

    run(main())


def test_who_waits_for_a_reader_waits_no_longer_than_that(run, dsn, monkeypatch):
    """The question how far its server lags has an end of its own, which is later."""
    monkeypatch.setattr(_pool_roles, "LAG", "SELECT 0::float8, '' FROM pg_catalog.pg_sleep(600)")
    monkeypatch.setattr(_pool_roles, "LAG_TIMEOUT", 600.0)

    async def main():
        async with aio.create_pool(dsn, min_size=0, readonly=1, max_lag=1.0) as pool:
            with pytest.raises(pg.PoolTimeout):
                await asyncio.wait_for(pool.acquire(readonly=True, timeout=0.3), 60)
            with pytest.raises(pg.PoolTimeout):
                await async_(pool.sync.getconn)(readonly=True, timeout=0.3)

    run(main())
