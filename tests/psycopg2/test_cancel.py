"""Cancelling, timeouts and Ctrl-C: the connection stays usable, or is closed with a clear error."""

import asyncio
import os
import subprocess
import sys
import textwrap

import psycopg2
import pytest
from fix_postgres import ask
from psycopg2.extensions import QueryCanceledError

import greenletio
from greenletio import async_


def contexts(exc):
    """An exception and what led to it (before 3.11 a task wraps its CancelledError in another)."""
    while exc is not None:
        yield exc
        exc = exc.__context__


async def started(pg_query, conn):
    """Until the server is in the pg_sleep() of this connection's query."""
    sql = "SELECT wait_event FROM pg_stat_activity WHERE pid = $1"
    while pg_query(sql, conn.get_backend_pid()) != [("PgSleep",)]:
        await asyncio.sleep(0.005)


def test_cancelling_a_query_keeps_the_connection(run, connect, fetch, pg_query):
    async def main():
        conn = await async_(connect)()
        for _ in range(5):
            query = asyncio.ensure_future(async_(fetch)(conn, "SELECT pg_sleep(60)"))
            await started(pg_query, conn)
            query.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await query
            assert any(isinstance(exc, QueryCanceledError) for exc in contexts(caught.value))
            assert conn.get_transaction_status() == psycopg2.extensions.TRANSACTION_STATUS_INERROR
            await async_(conn.rollback)()
            assert await async_(fetch)(conn, "SELECT 42") == 42
            await async_(conn.rollback)()

    run(main())


def test_a_cancel_at_any_moment_leaves_no_stale_result(run, connect, fetch):
    """The cancel races the answer: whichever wins, the next query gets its own."""

    async def main():
        conn = await async_(connect)()
        conn.autocommit = True
        cancelled = 0
        for number in range(150):
            query = asyncio.ensure_future(async_(fetch)(conn, "SELECT %s", -number))
            for _ in range(number % 6):
                await asyncio.sleep(0)
            query.cancel()
            try:
                assert await query == -number
            except asyncio.CancelledError:
                cancelled += 1
            assert await async_(fetch)(conn, "SELECT %s", number) == number
        assert conn.closed == 0
        return cancelled

    assert run(main()) > 50


def test_a_cancel_that_loses_the_race_is_still_delivered(run, connect):
    """The answer is on the socket already when the task is cancelled: it must not be swallowed."""

    async def main():
        conn = await async_(connect)()
        conn.autocommit = True
        cursor = conn.cursor()
        query = asyncio.ensure_future(async_(cursor.execute)("SELECT 1 FROM pg_sleep(0.01)"))
        await asyncio.sleep(0)
        os.system("sleep 0.1")  # holds the loop while the answer arrives
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        await async_(cursor.execute)("SELECT 2")
        assert cursor.fetchall() == [(2,)]

    run(main())


def test_a_timeout_ends_the_query_and_keeps_the_connection(run, connect, fetch):
    def work():
        conn = connect()
        for _ in range(3):
            with pytest.raises(TimeoutError) as caught, greenletio.timeout(0.05):
                fetch(conn, "SELECT pg_sleep(60)")
            assert any(isinstance(exc, QueryCanceledError) for exc in contexts(caught.value))
            conn.rollback()
        return fetch(conn, "SELECT 42")

    async def main():
        return await async_(work)()

    assert run(main()) == 42


def test_asyncio_timeout_does_so_too(run, connect, fetch):
    async def main():
        conn = await async_(connect)()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(async_(fetch)(conn, "SELECT pg_sleep(60)"), 0.05)
        await async_(conn.rollback)()
        return await async_(fetch)(conn, "SELECT 42")

    assert run(main()) == 42


def test_a_timeout_in_a_plain_program(connect, fetch):
    conn = connect()
    with pytest.raises(TimeoutError), greenletio.timeout(0.05):
        fetch(conn, "SELECT pg_sleep(60)")
    conn.rollback()
    assert fetch(conn, "SELECT 42") == 42


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_cancelled_while_the_transaction_ends(run, connect, fetch, pg_query, ending):
    """A deferred trigger makes COMMIT wait."""

    async def main():
        conn = await async_(connect)()
        cursor = conn.cursor()
        await async_(cursor.execute)(
            "CREATE TABLE slow (n int);"
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';"
            "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION wait()"
        )
        await async_(conn.commit)()
        await async_(cursor.execute)("INSERT INTO slow VALUES (1)")
        if ending == "commit":
            commit = asyncio.ensure_future(async_(conn.commit)())
            await started(pg_query, conn)
            commit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await commit
        await async_(conn.rollback)()
        assert await async_(fetch)(conn, "SELECT count(*) FROM slow") == 0

    run(main())


def test_executemany_stops_at_the_item_that_was_cancelled(run, connect, fetch):
    async def main():
        conn = await async_(connect)()
        items = ((0.01,) for _ in range(10_000))
        cursor = conn.cursor()
        call = asyncio.ensure_future(async_(cursor.executemany)("SELECT pg_sleep(%s)", items))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len([*items]) > 9_000
        await async_(conn.rollback)()
        return await async_(fetch)(conn, "SELECT 42")

    assert run(main()) == 42


def test_cancelled_twice(run, connect, fetch, pg_query):
    async def main():
        conn = await async_(connect)()
        query = asyncio.ensure_future(async_(fetch)(conn, "SELECT pg_sleep(60)"))
        await started(pg_query, conn)
        query.cancel()
        await asyncio.sleep(0)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        await async_(conn.rollback)()
        return await async_(fetch)(conn, "SELECT 42")

    assert run(main()) == 42


def test_a_cancellation_that_comes_during_a_timeouts_cleanup_is_not_lost(
    run, connect, fetch, pg_query
):
    def work(conn):
        with greenletio.timeout(0.05):
            fetch(conn, "SELECT pg_sleep(60)")

    async def main():
        conn = await async_(connect)()
        for delay in range(40, 70, 3):
            task = asyncio.ensure_future(async_(work)(conn))
            await asyncio.sleep(delay / 1000)
            cancelled = task.cancel()
            with pytest.raises(asyncio.CancelledError if cancelled else TimeoutError):
                await task
            await async_(conn.rollback)()
        return await async_(fetch)(conn, "SELECT 42")

    assert run(main()) == 42


def test_connection_cancel_from_another_greenlet(run, connect, fetch, pg_query, ticking):
    async def main():
        conn = await async_(connect)()
        query = asyncio.ensure_future(async_(fetch)(conn, "SELECT pg_sleep(60)"))
        await started(pg_query, conn)
        await async_(conn.cancel)()
        with pytest.raises(QueryCanceledError):
            await query
        await async_(conn.rollback)()
        await async_(conn.cancel)()  # with nothing to cancel
        return await async_(fetch)(conn, "SELECT 42")

    assert run(main()) == 42


def test_an_exception_thrown_into_the_wait(run, connect, fetch):
    class Stop(BaseException):
        pass

    async def main():
        conn = await async_(connect)()
        call = async_(fetch)(conn, "SELECT pg_sleep(60)")
        steps = call.__await__()
        parked = next(steps)
        parked._asyncio_future_blocking = False
        try:
            waiting = steps.throw(Stop())
            while True:  # the drain's own waits
                waiting._asyncio_future_blocking = False
                while not waiting.done():
                    await asyncio.sleep(0.001)
                waiting = next(steps)
        except Stop as exc:
            assert isinstance(exc.__context__, QueryCanceledError)
        await async_(conn.rollback)()
        return await async_(fetch)(conn, "SELECT 42")

    assert run(main()) == 42


def frozen_query(connection_url, fetch, made):
    conn = psycopg2.connect(connection_url)
    made.append(conn)
    try:
        fetch(conn, "SELECT pg_sleep(60)")
    finally:
        assert conn.closed


@pytest.mark.parametrize("how", ["freeze", "kill"])
def test_a_server_that_does_not_answer(run, patched, own_server, fetch, ticking, how):
    """The cancel has a deadline: then the connection is closed, and CancelledError says why."""
    greenletio.patch_psycopg2(cancel_timeout=0.5)

    async def main():
        made = []
        query = asyncio.ensure_future(async_(frozen_query)(own_server.url, fetch, made))
        while not made:
            await asyncio.sleep(0.005)
        await started(lambda *args: ask(own_server.url, *args), *made)
        getattr(own_server, how)()
        async with ticking() as ticker:
            query.cancel()
            with pytest.raises((asyncio.CancelledError, psycopg2.OperationalError)) as caught:
                await query
        assert any(isinstance(exc, psycopg2.OperationalError) for exc in contexts(caught.value))
        if how == "freeze":
            assert isinstance(caught.value, asyncio.CancelledError)
            reasons = " ".join(str(exc) for exc in contexts(caught.value))
            assert "did not end the cancelled query within 500 ms" in reasons
            assert ticker.steps > 5

    run(main())


def test_close_does_not_wait_for_a_frozen_server(run, patched, own_server):
    async def main():
        conn = await async_(psycopg2.connect)(own_server.url)
        own_server.freeze()
        await async_(conn.close)()
        assert conn.closed

    run(main())


def test_ctrl_c_in_a_plain_program(pg_dsn):
    program = f"""
        import os, signal, threading, time
        import psycopg2
        import greenletio
        greenletio.patch_psycopg2()
        conn = psycopg2.connect({pg_dsn!r})
        cursor = conn.cursor()
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begun = time.monotonic()
        try:
            cursor.execute("SELECT pg_sleep(60)")
        except KeyboardInterrupt as exc:
            assert isinstance(exc.__context__, psycopg2.extensions.QueryCanceledError)
        else:
            raise SystemExit("not interrupted")
        assert time.monotonic() - begun < 30
        conn.rollback()
        cursor.execute("SELECT 42")
        print(*cursor.fetchone())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
