"""The pool for sync code: greenlets, spawned ones, threads, trio; psycopg_pool's conventions."""

import asyncio
import gc
import os
import threading
import time
import warnings

import pytest
import trio
from fix_progress import Ticker

from greenletio import WouldBlockError, async_, pg, spawn, timeout
from greenletio.pg import _pool, errors, rows


@pytest.fixture
def pool(dsn):
    with pg.Pool(dsn, min_size=1, max_size=2) as pool:
        yield pool
        deadline = time.monotonic() + 20
        while pool.get_stats()["pool_available"] < pool.get_stats()["pool_size"]:
            assert time.monotonic() < deadline, pool.get_stats()
            time.sleep(0.001)


def query(pool, n):
    with pool.connection() as connection:
        return connection.execute("SELECT %s::int FROM pg_sleep(0.01)", (n,)).fetchone()[0]


def test_the_life_of_a_pool(dsn):
    pool = pg.Pool(dsn, min_size=2, max_size=3, open=False, name="mine")
    assert (pool.min_size, pool.max_size, pool.name, pool.closed) == (2, 3, "mine", True)
    with pytest.raises(pg.PoolClosed, match="'mine' is not open"):
        pool.getconn()
    pool.open(wait=True)
    assert pool.get_stats()["pool_size"] == 2
    c = pool.getconn()
    assert c.execute("SELECT 1").fetchone() == (1,)
    pool.putconn(c)
    assert c.closed
    with pytest.raises(pg.InterfaceError, match="given back"):
        c.execute("SELECT 1")
    for other in (c, pg.connect(dsn)):
        with pytest.raises(ValueError, match="not, or no longer, leased"):
            pool.putconn(other)
        other.close()
    c = pool.getconn()
    raw = c.raw
    pool.close()
    pool.close()
    for use in (pool.getconn, pool.open):
        with pytest.raises(pg.PoolClosed, match="'mine' is closed"):
            use()
    assert c.execute("SELECT 1").fetchone() == (1,)
    pool.putconn(c)
    assert raw.is_closed()
    assert pool.get_stats()["pool_size"] == 0
    for options in ({"min_size": 5, "max_size": 4}, {"timeout": 0}):
        with pytest.raises(ValueError, match="min_size|timeout"):
            pg.Pool(dsn, **options)


def test_a_block_is_a_transaction(dsn):
    options = {"row_factory": rows.dict_row, "application_name": "pooled"}
    with pg.Pool(dsn, min_size=1, kwargs=options) as pool:
        with pool.connection() as c:
            c.execute("CREATE TABLE IF NOT EXISTS pool_block (a int)")
            c.execute("INSERT INTO pool_block VALUES (1)")
        with pytest.raises(ZeroDivisionError), pool.connection() as c:
            c.execute("INSERT INTO pool_block VALUES (2)")
            raise ZeroDivisionError
        with pool.connection() as c:
            assert c.execute("TABLE pool_block").fetchall() == [{"a": 1}]
            assert c.execute("SHOW application_name").fetchone() == {"application_name": "pooled"}
            c.execute("DROP TABLE pool_block")
            c.commit()
            c.close()  # for good; the pool makes another
        with pool.connection() as c:
            with pytest.raises(pg.DatabaseError):
                c.execute("TABLE pool_block")


def test_in_greenlets_threads_and_spawned_in_plain_code(run, pool):
    async def main():
        async with Ticker():
            found = await asyncio.gather(*(async_(query)(pool, i) for i in range(30)))
        assert found == list(range(30))

    run(main())
    assert query(pool, 5) == 5
    greens = [spawn(query, pool, i) for i in range(20)]
    assert query(pool, 20) == 20
    assert [green.get() for green in greens] == list(range(20))
    found = []
    threads = [threading.Thread(target=lambda i=i: found.append(query(pool, i))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == list(range(20))
    run(main())
    stats = pool.pop_stats()
    assert stats["requests_num"] == 102
    assert (stats["requests_errors"], stats["returns_bad"]) == (0, 0)
    assert pool.stats()["requests_num"] == pool.get_stats()["requests_num"] == 0


def test_under_trio(pool):
    async def one(i):
        assert await async_(query)(pool, i) == i

    async def main():
        async with trio.open_nursery() as nursery:
            for i in range(10):
                nursery.start_soon(one, i)
        with trio.move_on_after(0.05) as scope:  # cancelled again at every wait
            await async_(sleep)(pool)
        assert scope.cancelled_caught

    trio.run(main)
    assert query(pool, 7) == 7
    assert pool.get_stats()["returns_bad"] == 0


def sleep(pool):
    with pool.connection() as c:
        c.execute("SELECT pg_advisory_lock(7), pg_sleep(60)")


def test_a_cancelled_greenlet_gives_its_connection_back(run, pool):
    async def main():
        for _ in range(3):
            tasks = [asyncio.create_task(async_(sleep)(pool)) for _ in range(4)]
            await asyncio.sleep(0.03)
            for task in tasks:
                task.cancel()
            assert [type(exc) for exc in await asyncio.gather(*tasks, return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 4
            assert await async_(query)(pool, 1) == 1

    run(main())
    green = spawn(sleep, pool)
    assert query(pool, 2) == 2
    green.cancel()
    assert query(pool, 3) == 3
    with pytest.raises(TimeoutError), timeout(0.05):
        sleep(pool)
    assert query(pool, 4) == 4
    assert pool.get_stats()["returns_bad"] == 0


def test_waiting_has_an_end(dsn):
    with pg.Pool(dsn, min_size=0, max_size=1, max_waiting=1) as pool:
        with pool.connection():
            pool.timeout = 0.05
            with pytest.raises(pg.PoolTimeout, match="1 of 1 are in use"):
                pool.getconn()
            waits = threading.Thread(target=wait_for_one, args=(pool,))
            waits.start()
            while not pool.get_stats()["requests_waiting"]:
                time.sleep(0.001)
            with pytest.raises(pg.TooManyRequests, match="1 requests wait already"):
                pool.getconn()
        waits.join(10)
        assert pool.get_stats()["requests_errors"] == 2
    away = "host=127.0.0.1 port=1"
    with pg.Pool(away, min_size=0, max_size=1) as pool:
        with pytest.raises(pg.PoolTimeout, match="failed: .*port 1") as caught:
            pool.getconn(timeout=0.25)
        assert isinstance(caught.value.__cause__, pg.OperationalError)
        assert pool.get_stats()["connections_errors"] > 1  # it has tried again
    with pytest.raises(pg.PoolTimeout, match="has not 1 connections.*port 1"):
        pg.Pool(away, min_size=1, max_size=1).wait(0.2)
    with pg.Pool(dsn.replace("greenletio_", "no_such_"), min_size=0, max_size=1) as pool:
        with pytest.raises(pg.errors.InvalidCatalogName):  # to try that again is of no use
            pool.getconn()


def wait_for_one(pool):
    pool.putconn(pool.getconn(timeout=10))


def test_directly_in_a_loop_only_what_need_not_wait(run, pool):
    pool.wait()

    async def main():
        c = pool.getconn()
        with pytest.raises(WouldBlockError):
            c.execute("SELECT 1")
        pool.putconn(c)
        while pool._core.resetting:
            await asyncio.sleep(0.001)
        held = pool.getconn()
        with pytest.raises(WouldBlockError):
            pool.getconn()
        pool.putconn(held)

    run(main())


def test_the_users_functions(dsn):
    calls = []

    def configure(c):
        calls.append("configure")
        c.execute("SET search_path = theirs")
        c.commit()

    def reset(c):
        calls.append("reset")
        c.autocommit = True
        c.execute("SET TimeZone = 'Asia/Tokyo'")

    def check(c):
        calls.append("check")
        if calls.count("check") == 2:
            raise pg.OperationalError("not this one")

    options = {"configure": configure, "reset": reset, "check": check}
    with pg.Pool(dsn, min_size=0, max_size=1, **options) as pool:
        with pool.connection() as c:
            assert c.execute("SHOW search_path").fetchone() == ("theirs",)
        assert calls == ["configure", "check", "reset"]
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            with pool.connection() as c:
                assert c.execute("SHOW TimeZone").fetchone() != ("Asia/Tokyo",)  # it is a new one
            gc.collect()
        assert not [w for w in heard if w.category is ResourceWarning]  # the pool has closed it
        with pool.connection() as c:
            assert c.execute("SHOW TimeZone").fetchone() == ("Asia/Tokyo",)

        async def main():  # from a task the sync functions are called in a greenlet
            assert await pool.aio.fetchval("SHOW TimeZone") == "Asia/Tokyo"
            await pool.aio.expire_connections()
            assert await pool.aio.fetchval("SELECT 1") == 1

        asyncio.run(main())
        assert calls.count("configure") == 3


def test_a_server_that_is_away_for_a_while(own_server):
    with pg.Pool(own_server.url, min_size=1, max_size=2, timeout=30) as pool:
        assert query(pool, 1) == 1
        own_server.kill()
        threading.Timer(0.3, own_server.start).start()
        assert query(pool, 2) == 2  # what is idle is seen to be dead, connecting is tried again
        pool.check()
        pool.drain()
        assert query(pool, 3) == 3


def test_what_is_dead_is_found_by_check(dsn, sync):
    with pg.Pool(dsn, min_size=2, max_size=2, max_idle=0.2) as pool:
        pool.wait()
        pids = [slot.con._pid for slot in pool._core.idle]
        sync.execute("SELECT pg_terminate_backend(%s, 5000)", [pids[0]])
        pool.check()
        pool.wait()  # made up for
        assert pids[0] not in [slot.con._pid for slot in pool._core.idle]


def test_idle_connections_are_closed_without_a_loop(dsn):
    with pg.Pool(dsn, min_size=1, max_size=3, max_idle=0.05) as pool:
        held = [pool.getconn() for _ in range(3)]
        for c in held:
            pool.putconn(c)
        while pool.get_stats()["pool_size"] > 1:
            time.sleep(0.005)
        assert query(pool, 1) == 1


def test_a_loop_that_ends_leaves_nobody_who_connects(dsn):
    pools = []

    async def main():
        pools.append(pg.Pool(dsn, min_size=2))
        while pools[0]._core.keeper._task is None:
            await asyncio.sleep(0)

    asyncio.run(main())
    (pool,) = pools
    assert pool._core.keeper._task.done()
    assert query(pool, 1) == 1
    while pool.get_stats()["pool_size"] < 2:  # by whoever looks after it now
        time.sleep(0.005)
    pool.close()


def test_one_that_is_forgotten_is_closed_and_reported(pool):
    c = pool.getconn()
    with pytest.warns(ResourceWarning, match="was not given back"):
        del c
        gc.collect()
    assert query(pool, 1) == 1


def test_notices_go_to_the_lease_that_caused_them(pool):
    heard = []
    with pool.connection() as c:
        c.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
        c.execute("DO 'BEGIN RAISE NOTICE ''mine''; END'")
    with pool.connection() as c:
        c.execute("DO 'BEGIN RAISE NOTICE ''not mine''; END'")
    assert heard == ["mine"]


def test_a_forked_child_makes_its_own_connections(dsn):
    with pg.Pool(dsn, min_size=0, max_size=2) as pool:  # one, since nobody asks for another
        assert query(pool, 1) == 1
        with pool.connection() as c:
            pid = c.raw._pid
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with pool.connection() as c:
                    if c.raw._pid != pid and query(pool, 2) == 2:
                        code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        with pool.connection() as c:
            assert c.raw._pid == pid
            assert c.execute("SELECT 1").fetchone() == (1,)


def test_one_is_lost_while_it_is_handed_out(dsn, monkeypatch):
    """Where another thread hears of its end at that moment: the next one does."""
    with pg.Pool(dsn, min_size=0, max_size=2) as pool:
        with pool.connection() as c:
            lost = c.raw
        take = _pool.Core.take

        def taking(core):
            slot = take(core)
            if slot is not None and slot.con is lost:
                lost.terminate()
            return slot

        monkeypatch.setattr(_pool.Core, "take", taking)
        with pool.connection() as c:
            assert c.raw is not lost
            assert c.execute("SELECT 1").fetchone() == (1,)
            c.raw.terminate()
            with pytest.raises(errors.ConnectionClosed):
                c.execute("SELECT 1")


def test_the_log_says_what_a_reset_failed_with(dsn, caplog):
    """A TimeoutError says nothing by itself."""

    def reset(connection):
        connection.execute("SELECT pg_sleep(60)", timeout=0.02)

    with pg.Pool(dsn, min_size=1, max_size=1, reset=reset) as pool:
        with pool.connection() as connection:
            connection.execute("SELECT 1")
    said = [record.getMessage() for record in caplog.records]
    assert "a connection could not be reset and is closed: it took too long" in said


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_whoever_waits_gets_the_connection_whose_loop_ended_in_its_reset(dsn, face):
    pool = pg.Pool(dsn, min_size=1, max_size=1)
    leased, answers = threading.Event(), []

    def wait_for_it():
        leased.wait()
        if face == "sync":
            with pool.connection(timeout=30) as c:
                answers.append(c.execute("SHOW work_mem").fetchone()[0])
        else:

            async def ask():
                async with pool.aio.acquire(timeout=30) as c:
                    answers.append(await c.fetchval("SHOW work_mem"))

            asyncio.run(ask())

    async def lease():
        async with pool.aio.acquire() as c:
            await c.execute("SET work_mem = '1234kB'")
            leased.set()
            while pool.get_stats()["requests_waiting"] < 1:
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(lease())  # the reset has just been sent
    loop.close()
    thread.join()
    assert len(answers) == 1 and answers != ["1234kB"]
    pool.close()
