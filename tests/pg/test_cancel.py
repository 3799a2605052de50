"""Cancelled, timed-out and abandoned queries end on the server; the connection stays usable."""

import asyncio
import gc
import os
import struct
import time

import pytest
from fix_progress import Ticker

import greenletio
from greenletio import _pg, async_, pg
from greenletio.pg import aio, errors
from greenletio.pg._conninfo import options_of

SLEEP = "SELECT pg_sleep(60)"


async def began(c, query=SLEEP):
    task = asyncio.create_task(c.fetch(query))
    await asyncio.sleep(0.02)
    assert not task.done()
    return task


def test_a_cancelled_query_ends_on_the_server_and_the_next_one_runs(run, connect):
    async def main():
        async with connect() as c, connect() as other:
            task = await began(c)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await c.fetchval("SELECT 1") == 1
            state = "SELECT state FROM pg_stat_activity WHERE pid = $1"
            assert await other.fetchval(state, c.get_server_pid()) == "idle"

    run(main())


def test_the_next_query_is_never_hit(run, connect):
    async def main():
        async with connect() as c:
            for i in range(60):
                task = asyncio.create_task(c.fetch(f"SELECT pg_sleep({i / 20000})"))
                await asyncio.sleep(i / 40000)
                task.cancel()
                assert await c.fetchval("SELECT $1::int FROM pg_sleep(0.0005)", i) == i
                await asyncio.wait([task])

    run(main())


def test_a_query_that_waits_for_its_turn_is_cancelled_without_the_server(run, connect):
    async def main():
        async with connect() as c:
            first = asyncio.create_task(c.fetchval("SELECT 1 FROM pg_sleep(0.1)"))
            second = asyncio.create_task(c.fetchval("SELECT 2"))
            third = asyncio.create_task(c.fetchval("SELECT 3"))
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.wait([first, second, third])
            assert second.cancelled()
            assert (first.result(), third.result()) == (1, 3)

    run(main())


def test_timeouts(run, connect):
    async def main():
        async with connect(command_timeout=0.05) as c:
            with pytest.raises(asyncio.TimeoutError):
                await c.fetch(SLEEP)
            with pytest.raises(asyncio.TimeoutError):
                await c.execute(SLEEP, timeout=0.01)
            assert await c.fetchval("SELECT 1 FROM pg_sleep(0.1)", timeout=30) == 1
            for wrong in ("1", True, float("nan")):
                with pytest.raises(ValueError, match="invalid timeout value: expected seconds"):
                    await c.fetchval("SELECT 1", timeout=wrong)
            c._timeout = None  # who asks whether it is usable has as long as it takes

    run(main())


def test_cancelled_while_it_is_prepared(run, connect, dsn):
    async def main():
        async with connect() as c, connect() as other:
            await other.execute("CREATE TABLE locked (a int)")
            try:
                async with other.transaction():
                    await other.execute("LOCK TABLE locked")
                    task = await began(c, "SELECT * FROM locked")
                    task.cancel()
                    await asyncio.wait([task])
                    assert await c.fetchval("SELECT 1") == 1
            finally:
                await other.execute("DROP TABLE locked")

    run(main())


def test_a_server_that_is_frozen_costs_the_connection_and_not_the_loop(run, own_server):
    async def main():
        c = await aio.connect(own_server.url)
        c.cancel_timeout = 0.3
        task = await began(c)
        own_server.freeze()
        try:
            async with Ticker():
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                with pytest.raises(errors.OperationalError, match="in time"):
                    await c.fetch("SELECT 1")
            assert c.is_closed()
        finally:
            own_server.thaw()

    run(main())


def test_a_server_that_is_killed(run, own_server):
    async def main():
        c = await aio.connect(own_server.url)
        idle = await aio.connect(own_server.url)
        ended = []
        idle.add_termination_listener(ended.append)
        task = await began(c)
        waiting = asyncio.create_task(c.fetch("SELECT 1"))
        await asyncio.sleep(0)
        own_server.kill()
        for failed in (task, waiting):
            with pytest.raises(errors.OperationalError):
                await failed
        assert c.is_closed()
        while not idle.is_closed():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert ended == [idle]
        with pytest.raises(errors.ConnectionClosed):
            await idle.fetch("SELECT 1")

    run(main())


def test_a_backend_that_is_terminated_says_so(run, connect):
    async def main():
        async with connect() as other:
            async with connect() as c:
                task = await began(c)
                await other.fetch("SELECT pg_terminate_backend($1)", c.get_server_pid())
                with pytest.raises(errors.AdminShutdown):
                    await task
                assert c.is_closed()

    run(main())


def test_in_greenlets(run, dsn):
    def work():
        with pg.connect(dsn, autocommit=True) as c:
            with pytest.raises(TimeoutError):
                with greenletio.timeout(0.05):
                    c.execute(SLEEP)
            with pytest.raises(TimeoutError):
                c.execute(SLEEP, timeout=0.05)
            assert c.execute("SELECT 1").fetchone() == (1,)
            try:
                c.execute(SLEEP)
            finally:
                assert c.execute("SELECT 2").fetchone() == (2,)

    async def main():
        task = asyncio.create_task(async_(work)())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_in_plain_code(sync):
    with pytest.raises(TimeoutError):
        sync.execute(SLEEP, timeout=0.05)
    sync.rollback()
    with pytest.raises(TimeoutError), greenletio.timeout(0.05):
        sync.execute(SLEEP)
    sync.rollback()
    assert sync.execute("SELECT 1").fetchone() == (1,)


def test_a_frozen_server_in_plain_code(own_server):
    c = pg.connect(own_server.url, autocommit=True)
    c.raw.cancel_timeout = 0.3
    own_server.freeze()
    try:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            c.execute(SLEEP, timeout=0.05)
        assert time.monotonic() - start < 60
        assert c.closed
    finally:
        own_server.thaw()


def test_a_loop_that_closes_leaves_the_connection_to_the_next(loop_kind, dsn):
    from fix_loops import Run

    connection = []

    async def first():
        c = await aio.connect(dsn)
        connection.append(c)
        await began(c)  # cancelled when the loop ends

    async def second():
        (c,) = connection
        assert await c.fetchval("SELECT 1") == 1
        await c.close()

    Run(loop_kind)(first())
    Run(loop_kind)(second())


def test_a_connection_that_is_dropped_says_so_and_is_closed(run, dsn, connect):
    async def main():
        c = await aio.connect(dsn)
        pid = c.get_server_pid()
        with pytest.warns(ResourceWarning, match="unclosed connection"):
            del c
            gc.collect()
        async with connect() as other:
            while await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
                await asyncio.sleep(0.01)

    run(main())


def test_a_task_that_nobody_holds_gets_its_result(run, dsn):
    async def main():
        results = []

        async def query():
            c = await aio.connect(dsn)
            results.append(await c.fetchval("SELECT 1 FROM pg_sleep(0.05)"))
            await c.close()

        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(query()))
        while not results:
            await asyncio.sleep(0.005)
            gc.collect()

    run(main())


class Fickle:
    """Before a server that has no TLS: agrees to it, and then fails. libpq goes on without, on
    another socket, which may have the same number."""

    def __init__(self, host, port):
        self.there = host, port
        self.tried = 0
        self.tasks = []

    async def __call__(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        first = await reader.readexactly(8)
        if first == struct.pack("!ii", 8, 80877103):
            self.tried += 1
            writer.write(b"S")
            await reader.read(1)
            writer.write(b"no TLS at all" * 10)
            await asyncio.sleep(0.01)
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(*self.there)
        far_writer.write(first)

        async def pass_on(source, target):
            while data := await source.read(65536):
                target.write(data)
            target.close()

        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))


def test_a_cancel_request_that_needs_a_second_socket(run, own_server):
    """libpq 17 makes it as it connects: the loop hears of the second socket, too."""

    async def main():
        fickle = Fickle("127.0.0.1", own_server.port)
        proxy = await asyncio.start_server(fickle, "127.0.0.1", 0)
        async with proxy:
            parts = options_of(own_server.url, {})
            parts |= {"host": "127.0.0.1", "port": str(proxy.sockets[0].getsockname()[1])}
            c = await aio.connect(**parts, sslmode="prefer", gssencmode="disable")
            c.cancel_timeout = 20
            pid = c.get_server_pid()
            for _ in range(3 if fickle.tried else 0):
                before = fickle.tried
                with pytest.raises(asyncio.TimeoutError):
                    await c.fetch(SLEEP, timeout=0.05)
                assert await asyncio.wait_for(c.fetchval("SELECT pg_backend_pid()"), 10) == pid
                assert (fickle.tried > before) == (_pg.libpq_version() >= 170000)
            await c.close()
            await asyncio.gather(*fickle.tasks)
        if not fickle.tried:
            pytest.skip("this libpq is built without TLS")

    run(main())


class Watchful(asyncio.SelectorEventLoop):
    """Notes what was closed while it was registered: the number may be another's by then."""

    def __init__(self):
        super().__init__()
        self.closed_early = []

    def _look_at(self, fd):
        try:
            os.fstat(fd)
        except OSError:
            self.closed_early.append(fd)

    def remove_reader(self, fd):
        self._look_at(fd)
        return super().remove_reader(fd)

    def remove_writer(self, fd):
        self._look_at(fd)
        return super().remove_writer(fd)


def test_a_cancel_request_is_not_registered_when_libpq_closes_its_socket(dsn):
    async def main():
        c = await aio.connect(dsn)
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await c.fetch(SLEEP, timeout=0.05)
            assert await c.fetchval("SELECT 1") == 1
        await c.close()

    loop = Watchful()
    try:
        loop.run_until_complete(main())
        assert loop.closed_early == []
    finally:
        loop.close()
