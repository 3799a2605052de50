"""Cancelled or timed-out work leaves its connection usable; a dead server is not waited for."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from fix_loops import Run
from fix_postgres import OwnServer, Query
from fix_progress import Ticker
from psycopg import pq

from greenletio import async_, patch_psycopg, timeout, unpatch_psycopg

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

LIMIT_S = 30  # against a hang, not a measure


def query(connection: Connection) -> None:
    connection.execute("SELECT pg_sleep(600)")


def copy_in_blocked(connection: Connection) -> None:
    """The server is not reading: the trigger of the first row sleeps."""
    connection.execute("CREATE TEMP TABLE t (s text)")
    connection.execute(
        "CREATE FUNCTION pg_temp.stop() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(600); RETURN NEW; END'"
    )
    connection.execute("CREATE TRIGGER stop BEFORE INSERT ON t EXECUTE FUNCTION pg_temp.stop()")
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for _ in range(100):  # more than the socket holds
            copy.write_row(("x" * 100_000,))


def copy_out(connection: Connection) -> None:
    many = "COPY (SELECT n, pg_sleep(n / 1000 * 600) FROM generate_series(1, 2000) n) TO STDOUT"
    with connection.cursor().copy(many) as copy:
        for _ in copy:
            pass


def copy_out_flowing(connection: Connection) -> None:
    with connection.cursor().copy("COPY (SELECT generate_series(1, 1e12)) TO STDOUT") as copy:
        for _ in copy:
            pass


def server_side_cursor(connection: Connection) -> None:
    with connection.cursor("c") as cursor:
        cursor.execute("SELECT n, pg_sleep(n / 10 * 600) FROM generate_series(1, 20) n")
        for _ in cursor:
            pass


def stream(connection: Connection) -> None:
    sql = "SELECT n, pg_sleep(n / 10 * 600) FROM generate_series(1, 20) n"
    for _ in connection.cursor().stream(sql):
        pass


def pipeline(connection: Connection) -> None:
    with connection.pipeline():
        connection.execute("SELECT 1")
        connection.execute("SELECT pg_sleep(600)")
        connection.execute("SELECT 2").fetchone()


def executemany(connection: Connection) -> None:
    many = [(n // 10 * 600,) for n in range(20)]
    connection.cursor().executemany("SELECT pg_sleep(%s)", many, returning=True)


def transaction(connection: Connection) -> None:
    with connection.transaction(), connection.transaction():
        connection.execute("SELECT pg_sleep(600)")


def notifies(connection: Connection) -> None:
    connection.execute("LISTEN nothing")
    for _ in connection.notifies():
        pass


WORK = [
    query,
    copy_in_blocked,
    copy_out,
    copy_out_flowing,
    server_side_cursor,
    stream,
    pipeline,
    executemany,
    transaction,
    notifies,
]
each_work = pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)


def check_usable(connection: Connection, pid: int) -> None:
    assert not connection.closed
    connection.rollback()
    assert connection.execute("SELECT 42, pg_backend_pid()").fetchone() == (42, pid)
    connection.rollback()
    assert connection.info.transaction_status == pq.TransactionStatus.IDLE


@each_work
def test_cancelled_work_leaves_the_connection_usable(
    run: Run, connect: Connect, work: Callable[[Connection], None], pg_query: Query
) -> None:
    async def main() -> None:
        connection = await async_(connect)()
        pid = connection.info.backend_pid
        async with Ticker() as ticker:
            task = asyncio.create_task(async_(work)(connection))
            while ticker.steps < 20 * ticker.enough:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, LIMIT_S)
        active = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state = 'active'"
        assert pg_query(active, pid) == [(0,)]
        await async_(check_usable)(connection, pid)

    run(main())


@each_work
def test_timed_out_work_leaves_the_connection_usable(
    run: Run, connect: Connect, work: Callable[[Connection], None]
) -> None:
    @async_
    def limited() -> None:
        connection = connect()
        pid = connection.info.backend_pid
        with pytest.raises(TimeoutError), timeout(0.3):
            work(connection)
        check_usable(connection, pid)

    async def main() -> None:
        async with Ticker():
            await asyncio.wait_for(limited(), LIMIT_S)

    run(main())


def test_cancelling_again_during_the_clean_up_changes_nothing(run: Run, connect: Connect) -> None:
    async def main() -> None:
        connection = await async_(connect)()
        pid = connection.info.backend_pid
        for _ in range(10):
            task = asyncio.create_task(async_(query)(connection))
            await asyncio.sleep(0.02)
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
            assert task.cancelled()
            await async_(check_usable)(connection, pid)

    run(main())


def test_cancellations_that_race_the_result(run: Run, connect: Connect) -> None:
    """Whatever wins, the connection is usable, and what it answers next is its own."""

    async def main() -> None:
        connection = await async_(connect)(autocommit=True)
        pid = connection.info.backend_pid
        ended = {True: 0, False: 0}
        randomly = random.Random(7)
        took = 0.0
        for _ in range(5):
            begun = time.monotonic()
            await async_(connection.execute)("SELECT pg_sleep(0.002), %s::int", (0,))
            took = max(took, time.monotonic() - begun)
        for n in range(200):
            task = asyncio.create_task(
                async_(connection.execute)("SELECT pg_sleep(0.002), %s::int", (n,))
            )
            await asyncio.sleep(randomly.random() * 2 * took)
            task.cancel()
            with suppress(asyncio.CancelledError):
                row = (await task).fetchone()
                assert row is not None and row[1] == n
            ended[task.cancelled()] += 1
            answer = await async_(connection.execute)("SELECT %s::int, pg_backend_pid()", (n,))
            assert answer.fetchone() == (n, pid)
        assert min(ended.values()) > 0

    run(main())


def test_a_greenlet_that_waits_for_its_turn_can_be_cancelled(run: Run, connect: Connect) -> None:
    async def main() -> None:
        connection, other = await async_(connect)(), await async_(connect)()
        await async_(other.execute)("SELECT pg_advisory_xact_lock(1)")
        locked = "SELECT pg_advisory_xact_lock(1), 1"
        holder = asyncio.create_task(async_(connection.execute)(locked))
        await asyncio.sleep(0.02)
        waiting = [asyncio.create_task(async_(connection.execute)("SELECT 2")) for _ in range(3)]
        await asyncio.sleep(0.02)
        waiting[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
        assert not holder.done()
        await async_(other.rollback)()
        for task in (holder, waiting[0], waiting[2]):
            assert (await task).fetchone() is not None

    run(main())


def test_cancel_from_another_greenlet(run: Run, connect: Connect, pg_query: Query) -> None:
    async def main() -> None:
        for how in ("cancel", "cancel_safe"):
            connection = await async_(connect)()
            pid = connection.info.backend_pid
            task = asyncio.create_task(async_(query)(connection))
            while pg_query("SELECT wait_event FROM pg_stat_activity WHERE pid = $1", pid) != [
                ("PgSleep",)
            ]:
                await asyncio.sleep(0.005)
            await async_(getattr(connection, how))()
            with pytest.raises(psycopg.errors.QueryCanceled):
                await task
            await async_(check_usable)(connection, pid)

    run(main())


def test_an_exception_thrown_into_the_wait_cleans_up_too(run: Run, connect: Connect) -> None:
    class Thrown(Exception):
        pass

    async def main() -> None:
        connection = await async_(connect)()
        pid = connection.info.backend_pid
        call = async_(query)(connection)
        step = call.__await__() if hasattr(call, "__await__") else call

        async def drive() -> None:
            with pytest.raises(Thrown):
                await Thrower(step, Thrown())

        await asyncio.wait_for(drive(), LIMIT_S)
        await async_(check_usable)(connection, pid)

    run(main())


class Thrower:
    """Awaits `step`, but throws `exc` into it at its third wait."""

    def __init__(self, step: Any, exc: Exception) -> None:
        self.step, self.exc = step, exc

    def __await__(self) -> Any:
        for _ in range(2):
            future = self.step.send(None)
            if future is not None:
                future._asyncio_future_blocking = False
        waited = self.step.throw(self.exc)
        while True:
            try:
                yield waited
            except BaseException as ex:
                waited = self.step.throw(ex)
            else:
                waited = self.step.send(None)


def test_cancelled_connects_leave_nothing_on_the_server(
    run: Run, patched: None, pg_dsn: str, pg_query: Query
) -> None:
    reasons: list[BaseException] = []

    async def main() -> None:
        randomly = random.Random(7)
        for _ in range(50):
            connecting = async_(psycopg.connect)(pg_dsn, application_name="cancelled")
            task = asyncio.create_task(connecting)
            await asyncio.sleep(randomly.random() * 0.006)
            task.cancel()
            try:
                connection = await task
            except asyncio.CancelledError as ex:
                reasons.append(ex)  # with its traceback, which must not keep the socket open
            else:
                connection.close()

    run(main())
    assert reasons
    left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cancelled'"
    give_up = time.monotonic() + LIMIT_S
    while pg_query(left) != [(0,)]:
        assert time.monotonic() < give_up, "connections are left"


@pytest.fixture
def impatient() -> Iterator[None]:
    patch_psycopg(cancel_timeout=0.5)
    yield
    unpatch_psycopg()


def test_a_frozen_server_costs_the_connection_and_no_hang(
    run: Run, impatient: None, own_server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        connection = await async_(psycopg.connect)(own_server.url)
        task = asyncio.create_task(async_(query)(connection))
        await asyncio.sleep(0.05)
        own_server.freeze()
        async with Ticker():
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await asyncio.wait_for(task, LIMIT_S)
        cause: BaseException | None = caught.value
        while isinstance(cause, asyncio.CancelledError):
            cause = cause.__context__  # before 3.11 a task wraps its CancelledError in another
        assert isinstance(cause, psycopg.OperationalError)
        assert "has been closed" in str(cause)
        assert connection.closed
        with pytest.raises(psycopg.OperationalError):
            await async_(connection.execute)("SELECT 1")

    run(main())
    assert "did not answer a cancel request within 0.5 s" in caplog.text


@pytest.fixture
def old_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a libpq before 17, whose only cancel request blocks."""
    from psycopg._capabilities import capabilities

    monkeypatch.setattr(capabilities, "has_cancel_safe", lambda: False)


def test_cancelling_by_an_old_libpq(run: Run, connect: Connect, old_libpq: None) -> None:
    async def main() -> None:
        connection = await async_(connect)()
        pid = connection.info.backend_pid
        for _ in range(5):
            async with Ticker() as ticker:
                task = asyncio.create_task(async_(query)(connection))
                while ticker.steps < ticker.enough:
                    await asyncio.sleep(0.001)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(task, LIMIT_S)
            await async_(check_usable)(connection, pid)

    run(main())


def test_a_frozen_server_and_an_old_libpq(
    run: Run, impatient: None, own_server: OwnServer, old_libpq: None
) -> None:
    """The request hangs in its thread until the server comes back; neither loop nor GIL do."""

    async def main() -> None:
        connection = await async_(psycopg.connect)(own_server.url)
        task = asyncio.create_task(async_(query)(connection))
        await asyncio.sleep(0.05)
        own_server.freeze()
        async with Ticker():
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, LIMIT_S)
        assert connection.closed

    run(main())


def test_a_frozen_server_does_not_hold_a_connect(
    run: Run, impatient: None, own_server: OwnServer
) -> None:
    async def main() -> None:
        own_server.freeze()
        async with Ticker():
            task = asyncio.create_task(async_(psycopg.connect)(own_server.url))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, LIMIT_S)
            with pytest.raises(psycopg.errors.ConnectionTimeout):
                await async_(psycopg.connect)(own_server.url, connect_timeout=2)

    run(main())


def test_a_killed_server_ends_the_query_and_the_cancellation(
    run: Run, impatient: None, own_server: OwnServer
) -> None:
    async def main() -> None:
        connections = [await async_(psycopg.connect)(own_server.url) for _ in range(2)]
        tasks = [asyncio.create_task(async_(query)(connection)) for connection in connections]
        await asyncio.sleep(0.05)
        own_server.kill()
        tasks[1].cancel()
        async with Ticker() as ticker:
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(tasks[0], LIMIT_S)
            with pytest.raises((asyncio.CancelledError, psycopg.OperationalError)):
                await asyncio.wait_for(tasks[1], LIMIT_S)
            while ticker.steps < ticker.enough:
                await asyncio.sleep(0.001)
        assert all(connection.closed for connection in connections)
        own_server.start()
        again = await async_(psycopg.connect)(own_server.url)
        assert (await async_(again.execute)("SELECT 1")).fetchone() == (1,)
        again.close()

    run(main())
