"""What once went wrong in rare places, one test each."""

import asyncio
import gc
import io
import signal
import time
import weakref

import psycopg2
import psycopg2.pool
import pytest
from fix_missing import need
from psycopg2 import extensions
from psycopg2.extensions import QueryCanceledError

import greenletio
from greenletio import async_, await_


def chain(exc):
    """An exception and what led to it; it must come to an end."""
    found = []
    while exc is not None:
        assert exc not in found
        found.append(exc)
        exc = exc.__context__
    return found


def test_a_signal_handlers_timeout_error_cancels_the_query(connect, fetch):
    """TimeoutError is an OSError, which a wait raises when its socket is gone: it closed the
    connection, and the server went on with the query."""

    def alarm(*_):
        raise TimeoutError("alarm")

    conn = connect()
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TimeoutError, match="alarm") as caught:
            fetch(conn, "SELECT pg_sleep(60)")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert isinstance(caught.value.__context__, QueryCanceledError)
    conn.rollback()
    assert fetch(conn, "SELECT 42") == 42


def test_interrupted_while_an_exception_is_handled(run, connect, fetch):
    """The interruption and the server's answer both have it as their context: chained as they
    were, the contexts ran in a circle, and contextlib.ExitStack with them."""

    def work():
        conn = connect()
        try:
            raise ValueError("being handled")
        except ValueError:
            with greenletio.timeout(0.3):
                fetch(conn, "SELECT pg_sleep(60)")

    async def main():
        await async_(work)()

    with pytest.raises(TimeoutError) as caught:
        run(main())
    kinds = [type(exc).__name__ for exc in chain(caught.value)]
    assert kinds == ["TimeoutError", "CancelledError", "QueryCanceled", "ValueError"]


def test_a_copy_whose_file_failed_is_cancelled(run, connect):
    """What write() had raised was lost, and never freed."""

    class DiskFull(Exception):
        pass

    class File:
        def write(self, data):
            failed.set()
            raise DiskFull

    failed = asyncio.Event()
    sql = "COPY (SELECT repeat('x', 9000), pg_sleep(0.01) FROM generate_series(1, 9000)) TO STDOUT"

    async def main():
        conn = await async_(connect)()
        copy = asyncio.ensure_future(async_(conn.cursor().copy_expert)(sql, File()))
        await failed.wait()
        await asyncio.sleep(0.02)
        copy.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await copy
        assert any(isinstance(exc, DiskFull) for exc in chain(caught.value))
        await async_(conn.rollback)()

    run(main())
    gc.collect()
    # isinstance() would ask the objects themselves, which others have made
    assert not any(issubclass(type(thing), DiskFull) for thing in gc.get_objects())


def test_an_asynchronous_connection_is_cancelled_in_a_running_loop(run, patched, pg_dsn, pg_query):
    """Asynchronous connections are psycopg2's own business: cancel() was refused there."""

    async def finished(conn):
        while conn.poll() != psycopg2.extensions.POLL_OK:
            await asyncio.sleep(0.001)

    async def main():
        conn = psycopg2.connect(pg_dsn, async_=True)
        await finished(conn)
        cursor = conn.cursor()  # the connection does not keep it
        cursor.execute("SELECT pg_sleep(60)")
        at = "SELECT wait_event FROM pg_stat_activity WHERE pid = $1"
        while pg_query(at, conn.info.backend_pid) != [("PgSleep",)]:
            pass
        conn.cancel()
        with pytest.raises(QueryCanceledError):
            await finished(conn)
        conn.close()

    run(main())


@pytest.fixture
def early(pg_dsn):
    """A connection, and its cursor.execute as it was looked up before the patch."""
    conn = psycopg2.connect(pg_dsn)
    conn.autocommit = True
    execute = conn.cursor().execute
    greenletio.patch_psycopg2()
    yield conn, execute
    greenletio.unpatch_psycopg2()
    conn.close()


def test_a_method_from_before_the_patch_beside_one_that_holds_the_turn(run, early):
    """Its cancellation was raised in the other greenlet, and not in its own."""
    conn, execute = early
    between = asyncio.Event()

    def items():
        yield (1,)
        between.set()
        await_(asyncio.sleep(0.2))

    async def main():
        many = asyncio.ensure_future(async_(conn.cursor().executemany)("SELECT %s", items()))
        await between.wait()
        query = asyncio.ensure_future(async_(execute)("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.05)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        await many

    run(main())


def test_a_copy_by_a_method_from_before_the_patch(early):
    """Its error was kept for a guard that there is not, and hit the next query instead."""
    conn, execute = early
    with pytest.raises(psycopg2.ProgrammingError, match="use the copy_to"):
        execute("COPY (SELECT 1) TO STDOUT")
    assert conn.closed


@pytest.mark.parametrize("made", ["before", "after"])
def test_psycopg2s_threaded_pool_does_not_hold_the_loop(run, pg_dsn, fetch, made):
    """It connects and rolls back with its lock held: the second greenlet stopped the thread."""

    def make():
        return psycopg2.pool.ThreadedConnectionPool(1, 5, pg_dsn)

    def use(pool, number):
        conn = pool.getconn()
        try:
            return fetch(conn, "SELECT %s", number)
        finally:
            pool.putconn(conn)

    async def main(pool):
        calls = (async_(use)(pool, number) for number in range(5))
        assert await asyncio.gather(*calls) == [*range(5)]

    pool = make() if made == "before" else None
    greenletio.patch_psycopg2()
    try:
        pool = pool or make()
        run(main(pool))
    finally:
        greenletio.unpatch_psycopg2()
    pool.putconn(pool.getconn())
    assert not pool._lock.locked()
    pool.closeall()


def test_a_connection_whose_return_is_interrupted_is_lost_to_no_pool(run, patched, pg_dsn):
    async def main():
        pool = await async_(psycopg2.pool.ThreadedConnectionPool)(1, 2, pg_dsn)
        conn = await async_(pool.getconn)()
        await async_(conn.cursor().execute)("SELECT 1")  # a rollback is due
        for close in (False, True):
            with pool._lock:
                task = asyncio.ensure_future(async_(pool.putconn)(conn, close=close))
                await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (pool._used, conn.closed) == ({}, 1)
            conn = await async_(pool.getconn)()
        await async_(pool.putconn)(conn)
        pool.closeall()

    run(main())


def test_a_commit_that_was_done_before_its_cancellation_says_so(run, connect, fetch):
    """The bare CancelledError left open whether the transaction was committed."""

    async def main():
        conn = await async_(connect)()
        await async_(conn.cursor().execute)("CREATE TABLE numbers (n int)")
        commit = asyncio.ensure_future(async_(conn.commit)())
        await asyncio.sleep(0)
        time.sleep(0.4)  # holds the loop while the answer arrives
        commit.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await commit
        reasons = " ".join(str(exc) for exc in chain(caught.value))
        assert "connection.commit() was done before it could be interrupted" in reasons
        assert await async_(fetch)(conn, "SELECT count(*) FROM numbers") == 0

    run(main())


def test_cancelled_under_trio(connect, fetch):
    """A trio task that is cancelled is refused every further wait, also those of the clean-up."""
    trio = need("trio")

    async def main():
        conn = await async_(connect)()
        with trio.move_on_after(0.05) as scope:
            await async_(fetch)(conn, "SELECT pg_sleep(60)")
        assert scope.cancelled_caught
        await async_(conn.rollback)()
        assert await async_(fetch)(conn, "SELECT 42") == 42

    trio.run(main)


@pytest.mark.parametrize("named", [False, True])
def test_executemany_of_fast_statements_stops_when_it_is_cancelled(run, connect, fetch, named):
    """Each was done before its cancel came: all that remained were executed, too."""

    async def main():
        conn = await async_(connect)()
        conn.autocommit = True
        items = ((n,) for n in range(3000))
        arguments = {"vars_list": items, "query": "SELECT %s"} if named else {}
        positional = () if named else ("SELECT %s", items)
        many = asyncio.ensure_future(async_(conn.cursor().executemany)(*positional, **arguments))
        await asyncio.sleep(0.01)
        many.cancel()
        with pytest.raises(asyncio.CancelledError):
            await many
        assert len([*items]) > 1000
        assert await async_(fetch)(conn, "SELECT 42") == 42

    run(main())


def test_a_table_of_encodings_that_holds_no_name(connect, monkeypatch):
    """The file's write() was called with an exception set: SystemError."""
    conn = connect()
    monkeypatch.setitem(extensions.encodings, conn.encoding, 42)
    with conn.cursor() as cursor, pytest.raises(TypeError, match="not int"):
        cursor.copy_expert(b"COPY (SELECT 1) TO stdout", io.StringIO())


async def suspended(*calls):
    while not all(call.cr_suspended for call in calls):
        await asyncio.sleep(0)


def test_the_weak_references_of_a_connection_are_everybodys(connect, fetch):
    """weakref.getweakrefs() shows the callback that forgets it: psycopg2 was asked to poll NULL."""

    async def main():
        call = async_(fetch)(conn, "SELECT 1 FROM pg_sleep(0.3)")
        task = asyncio.ensure_future(call)
        await suspended(call)
        for ref in weakref.getweakrefs(conn):
            if ref.__callback__ is not None:
                ref.__callback__(ref)
        assert await task == 1

    conn = connect()
    asyncio.run(main())


def test_a_turn_that_is_set_by_hand(connect, fetch):
    """Whoever waits for a turn shows its Waiter. It went on, and left freed memory in the queue."""

    async def main():
        calls = [async_(fetch)(conn, "SELECT 1 FROM pg_sleep(0.3)") for _ in range(4)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await suspended(*calls)
        for call in calls[1:3]:
            call.cr_await.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[0] == results[3] == 1
        assert all("turn" in str(exc) for exc in results[1:3])

    conn = connect()
    asyncio.run(main())


def test_a_files_error_whose_text_is_long(connect):
    """Cut in the middle of a character, it was refused by the server for that."""

    class Broken:
        def read(self, size):
            raise ValueError("x" + "é" * 2000)

    cursor = connect().cursor()
    cursor.execute("CREATE TEMP TABLE numbers (a int)")
    with pytest.raises(QueryCanceledError, match=r"ValueError xéé"):
        cursor.copy_from(Broken(), "numbers")


def test_a_subclass_that_hides_pgconn_ptr(run, connect, fetch):
    """What psycopg2 itself says is the address, not what a subclass makes of the name."""

    class Connection(extensions.connection):
        pgconn_ptr = 8

    def work():
        return fetch(connect(connection_factory=Connection), "SELECT 1")

    async def main():
        return await async_(work)()

    assert run(main()) == 1


def test_a_codec_whose_name_is_no_text(connect, monkeypatch):
    cursor = connect().cursor()
    cursor.execute("CREATE TEMP TABLE numbers (a int)")
    monkeypatch.setitem(extensions.encodings, "UTF8", "\udc80")
    with pytest.raises(QueryCanceledError, match="UnicodeEncodeError"):
        cursor.copy_expert("COPY numbers FROM STDIN", io.StringIO("1\n"))
