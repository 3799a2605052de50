"""Hooks that are told of each query, slow queries with the line that asked, and all pools."""

import asyncio
import contextvars
import gc
import logging

import pytest

import greenletio
from greenletio import Group, async_, await_, pg, spawn
from greenletio.pg import aio, errors, observe

marker: contextvars.ContextVar[str] = contextvars.ContextVar("marker", default="")


@pytest.fixture
def seen():
    found: list[observe.Query] = []
    with observe.hook(found.append):
        yield found


def texts(seen: list[observe.Query]) -> list[str]:
    return [query.text for query in seen]


def test_both_faces_are_told_of_with_the_line_that_asked(run, dsn, seen):
    def ask(c):
        return c.execute("SELECT 1").fetchone()

    with pg.connect(dsn, autocommit=True) as c:
        ask(c)
        assert seen[0].options["dbname"] and "password" not in seen[0].options
    (query,) = seen
    assert (query.text, query.kind, query.error) == ("SELECT 1", "query", None)
    assert query.caller.filename == __file__
    assert query.caller.lineno == ask.__code__.co_firstlineno + 1
    assert query.caller.function.endswith("ask")
    seen.clear()

    async def main():
        c = await aio.connect(dsn)
        await c.fetch("SELECT 2")
        await c.execute("SELECT 3; SELECT 4")
        await c.executemany("SELECT $1::int", [(1,), (2,)])
        async with c.stream("SELECT 5") as rows:
            assert [row[0] async for row in rows] == [5]
        async with c.pipeline() as p:
            answer = p.fetchval("SELECT 6")
        assert await answer == 6
        await async_(lambda: greenletio.sleep(0))()
        await c.close()

    run(main())
    gc.collect()
    kinds = {(query.text, query.kind) for query in seen}
    assert kinds >= {
        ("SELECT 2", "query"),
        ("SELECT 3; SELECT 4", "script"),
        ("SELECT $1::int", "many"),
        ("SELECT 5", "stream"),
        ("SELECT 6", "query"),
    }
    assert {query.caller.filename for query in seen} == {__file__}


def test_a_librarys_function_that_is_a_greenlet_is_told_of(run, dsn, seen):
    """No line of the program's is in its stack: it was told to nobody."""

    async def main():
        c = await async_(pg.connect)(dsn, autocommit=True)
        await async_(c.execute)("SELECT 1")
        await spawn(c.execute, "SELECT 2")
        await async_(c.close)()

    run(main())
    assert texts(seen) == ["SELECT 1", "SELECT 2"]
    lines(seen, main, 2, 3)


def lines(seen, function, *expected):
    """The queries were asked on these lines of a function of this file, in this order."""
    callers = [query.caller for query in seen]
    assert {caller.filename for caller in callers} == {__file__}
    first = function.__code__.co_firstlineno
    assert [caller.lineno - first for caller in callers] == list(expected)
    seen.clear()


def test_a_function_of_ones_own_is_who_asks_wherever_it_runs(run, dsn, seen):
    async def main():
        c = await async_(pg.connect)(dsn, autocommit=True)

        def ask():
            c.execute("SELECT 1")

        async def task():
            await async_(c.execute)("SELECT 1")

        await spawn(ask)
        await async_(ask)()
        await asyncio.to_thread(ask)
        lines(seen, ask, 1, 1, 1)
        await asyncio.create_task(task())
        lines(seen, task, 1)
        await async_(c.close)()

    run(main())


def test_what_has_begun_a_librarys_function_is_who_asks(run, dsn, seen):
    def work(c):
        greens = [spawn(c.execute, "SELECT 1") for _ in range(2)]
        with Group() as group:
            group.spawn(c.execute, "SELECT 2")
        for green in greens:
            green.get()
        spawn(spawn, c.execute, "SELECT 3").get().get()

    async def main():
        c = await async_(pg.connect)(dsn, autocommit=True)
        await async_(work)(c)
        await async_(c.close)()
        lines(seen, work, 1, 1, 3, 6)

    run(main())


def test_behind_a_task_that_is_a_librarys_it_is_who_waits_for_it(run, dsn, seen):
    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=2) as pool:
            await asyncio.create_task(pool.fetchval("SELECT 1"))
            await asyncio.gather(
                pool.fetchval("SELECT 2"), asyncio.gather(pool.fetchval("SELECT 3"))
            )
            await asyncio.wait_for(asyncio.shield(pool.fetchval("SELECT 4")), 30)
            await asyncio.wait([asyncio.ensure_future(pool.fetchval("SELECT 5"))])
            await async_(lambda: await_(asyncio.gather(pool.fetchval("SELECT 6"))))()
            left = asyncio.ensure_future(pool.fetchval("SELECT 7"))
            await asyncio.sleep(0)
            lines(seen[:6], main, 2, 3, 3, 6, 7, 8)
            await left

    run(main())
    assert texts(seen)[-1] == "SELECT 7"  # nobody waited for it when it began


def test_what_failed_was_cancelled_or_out_of_time_is_told_as_that(run, dsn, seen):
    async def main():
        c = await aio.connect(dsn)
        with pytest.raises(errors.DivisionByZero):
            await c.fetchval("SELECT 1/0")
        with pytest.raises(asyncio.TimeoutError):
            await c.fetchval("SELECT pg_sleep(20)", timeout=0.05)
        task = asyncio.create_task(c.fetchval("SELECT pg_sleep(21)"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await c.close()
        with pytest.raises(errors.InterfaceError):
            await c.fetchval("SELECT 1")

    run(main())
    assert [type(query.error) for query in seen] == [
        errors.DivisionByZero,
        asyncio.TimeoutError,
        asyncio.CancelledError,
        errors.ConnectionClosed,
    ]
    assert all(0 <= query.seconds < 20 for query in seen)


def test_sync_code_out_of_time(sync, seen):
    sync.autocommit = True
    with pytest.raises(TimeoutError):
        with greenletio.timeout(0.05):
            sync.execute("SELECT pg_sleep(20)")
    assert isinstance(seen[-1].error, asyncio.CancelledError)  # which the block makes a timeout
    assert sync.execute("SELECT 1").fetchone() == (1,)
    assert seen[-1].error is None


def test_a_hook_sees_the_callers_context_at_both_ends(run, dsn):
    found = []

    async def ask(c, name):
        marker.set(name)
        await c.fetchval("SELECT 1")

    async def main():
        c = await aio.connect(dsn)
        await asyncio.gather(*[ask(c, str(n)) for n in range(5)])
        await c.close()

    def told(query):
        found.append((query.at_start, marker.get()))

    observe.add_hook(told, at_start=marker.get)
    try:
        run(main())
    finally:
        observe.remove_hook(told)
    assert sorted(found) == [(str(n), str(n)) for n in range(5)]


def test_what_a_pool_asks_by_itself_is_told_to_nobody(run, dsn, seen):
    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=2) as pool:
            async with pool.acquire() as c:
                await c.execute("SET work_mem = '1MB'")
            async with pool.acquire() as c:
                assert await c.fetchval("SHOW work_mem") != "1MB"

    run(main())
    assert texts(seen) == ["SET work_mem = '1MB'", "SHOW work_mem"]


def test_a_hook_that_fails_or_asks_itself_harms_nobody(dsn, caplog):
    def fails(query):
        raise ValueError("the hook's own")

    def asks(query):
        if query.text == "SELECT 1":
            other.execute("SELECT 2")

    with pg.connect(dsn, autocommit=True) as other, pg.connect(dsn, autocommit=True) as c:
        with observe.hook(fails), observe.hook(asks):
            assert c.execute("SELECT 1").fetchone() == (1,)
    assert "the hook's own" in caplog.text


def test_nobody_is_told_after_remove_hook(sync):
    found: list[observe.Query] = []
    observe.add_hook(found.append)
    observe.remove_hook(found.append)
    observe.remove_hook(found.append)
    sync.execute("SELECT 1")
    assert found == []


def test_a_slow_query_is_logged_with_the_line_that_asked(sync, caplog):
    caplog.set_level(logging.WARNING, "greenletio.pg")
    sync.autocommit = True
    observe.log_slow(60)
    try:
        sync.execute("SELECT %s", ("a secret",))
        observe.log_slow(0.05)
        sync.execute("SELECT %s FROM pg_sleep(0.06)", ("a secret",))
        with pytest.raises(errors.DivisionByZero):
            sync.execute("SELECT 1/(random()::int * 0) FROM pg_sleep(0.06)")
    finally:
        observe.log_slow(None)
    sync.execute("SELECT pg_sleep(0.06)")
    first, second = (record.getMessage() for record in caplog.records)
    assert "s: SELECT %s FROM pg_sleep(0.06) (" in first.replace("$1", "%s")
    assert __file__ in first and "test_a_slow_query" in first
    assert "DivisionByZero" in second
    assert "secret" not in caplog.text


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_limit_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="number of seconds"):
        observe.log_slow(seconds)


def test_all_open_pools_are_told_of(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=1) as pool:
            with pg.Pool(dsn, min_size=1, name="of sync code"):
                async with pool.acquire():
                    found = observe.pools()
                    assert found["of sync code"]["pool_min"] == 1
                    assert any(
                        stats["pool_size"] > stats["pool_available"] for stats in found.values()
                    )
        assert "of sync code" not in observe.pools()

    run(main())
