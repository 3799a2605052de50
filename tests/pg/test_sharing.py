"""One connection, used by threads and loops at the same time, whichever of them ends first."""

import asyncio
import contextlib
import os
import random
import socket
import threading
import time

import pytest
from fix_loops import Run

from greenletio import async_, await_, pg
from greenletio.pg import aio, errors


def in_threads(functions, seconds=60):
    """Run them side by side; what one of them raises is raised."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    for error in errors:
        raise error


def test_a_loop_and_threads_share_a_connection(run, dsn):
    async def main():
        c = await aio.connect(dsn)
        done = []

        def thread(i):
            for _ in range(20):
                done.append(c.fetchval("SELECT $1::int", i, timeout=30).run())

        threads = [threading.Thread(target=thread, args=(i,)) for i in range(3)]
        for one in threads:
            one.start()
        for i in range(60):
            assert await c.fetchval("SELECT $1::int FROM pg_sleep(0.0002)", i) == i
        while any(one.is_alive() for one in threads):
            await asyncio.sleep(0.001)  # the connection is theirs
        assert sorted(done) == sorted([0, 1, 2] * 20)
        assert await c.fetchval("SELECT 1") == 1
        await c.close()

    run(main())


def test_loops_that_come_and_go_share_a_connection(loop_kind, dsn):
    """A loop ends as soon as its own queries have: the others' go on."""
    c = asyncio.run(aio.connect(dsn))
    done = []

    async def query(i, j):
        done.append((i, j, await c.fetchval("SELECT $1::int", 100 * i + j, timeout=30)))

    def loops(i):
        for j in range(40):
            Run(loop_kind)(query(i, j))

    in_threads([lambda i=i: loops(i) for i in range(3)])
    assert sorted(done) == [(i, j, 100 * i + j) for i in range(3) for j in range(40)]
    assert c.fetchval("SELECT 1").run() == 1
    c.terminate()


def test_a_loop_that_stops_while_it_has_the_connection(make_loop, dsn):
    """Nothing tells that a loop runs no more: who waits finds out, and takes the connection."""
    c = asyncio.run(aio.connect(dsn))
    loop = make_loop()
    task = None

    async def begin():
        nonlocal task
        task = loop.create_task(c.execute("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0.01)

    with contextlib.closing(loop):
        loop.run_until_complete(begin())  # stops: the query is at the server
        in_threads(
            [
                lambda: asyncio.run(asyncio.wait_for(c.fetchval("SELECT 1"), 30)),
                lambda: c.fetchval("SELECT 2", timeout=30).run(),
            ]
        )
        assert loop.run_until_complete(task) == "SELECT 1"
        assert loop.run_until_complete(c.fetchval("SELECT 3")) == 3
    assert c.fetchval("SELECT 4").run() == 4
    c.terminate()


def test_a_thread_that_gives_up_hands_the_connection_on(dsn):
    c = asyncio.run(aio.connect(dsn))
    began = threading.Event()

    def impatient():
        op = c.execute("SELECT pg_sleep(60)", timeout=0.1)
        began.set()
        with pytest.raises(TimeoutError):
            op.run()

    def patient():
        began.wait()
        assert c.fetchval("SELECT 1", timeout=30).run() == 1

    in_threads([impatient, patient, patient])
    c.terminate()


def test_closed_by_one_while_others_wait(dsn):
    c = asyncio.run(aio.connect(dsn))
    waiting = threading.Barrier(4)

    def thread():
        waiting.wait()
        with pytest.raises(pg.Error):
            c.execute("SELECT pg_sleep(60)").run()

    def loop():
        async def main():
            waiting.wait()
            with pytest.raises(pg.Error):
                await c.execute("SELECT pg_sleep(60)")
            await asyncio.sleep(0)

        asyncio.run(main())

    def closer():
        waiting.wait()
        while not c._busy:
            pass
        c.terminate()

    in_threads([thread, loop, loop, closer])
    assert c.is_closed()


def test_closed_while_the_only_one_who_waits_polls_its_socket(dsn):
    c = asyncio.run(aio.connect(dsn))

    def thread():
        with pytest.raises(pg.Error):
            c.execute("SELECT pg_sleep(60)").run()

    def closer():
        while c._transaction_status != 1:  # PQTRANS_ACTIVE
            time.sleep(0.001)
        time.sleep(0.02)  # it has nothing to do but poll
        c.terminate()

    in_threads([thread, closer], 30)


@pytest.mark.parametrize("seed", range(3))
def test_everybody_at_once(dsn, seed):
    """Threads, loops that come and go, greenlets, timeouts and cancellations: each query that is
    not given up has its own answer."""
    c = asyncio.run(aio.connect(dsn))
    query = "SELECT $1::int FROM pg_sleep($2)"

    def plain(i):
        rng = random.Random(f"{seed} plain {i}")
        for n in range(25):
            if rng.random() < 0.1:
                with pytest.raises(TimeoutError):
                    c.fetchval(query, n, 5.0, timeout=rng.random() / 100).run()
            else:
                assert c.fetchval(query, n, rng.random() / 1000, timeout=30).run() == n

    def loops(i):
        rng = random.Random(f"{seed} loop {i}")

        async def one(n):
            if rng.random() < 0.2:
                task = asyncio.ensure_future(c.fetchval(query, n, 5.0))
                await asyncio.sleep(rng.random() / 100)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif rng.random() < 0.3:
                op = async_(lambda: c.fetchval(query, n, 0.0, timeout=30).run())
                assert await op() == n
            else:
                assert await c.fetchval(query, n, rng.random() / 1000, timeout=30) == n

        async def main():
            await asyncio.gather(*(one(rng.randrange(1000)) for _ in range(rng.randrange(1, 5))))

        for _ in range(10):
            asyncio.run(main())

    in_threads([lambda i=i: plain(i) for i in range(3)] + [lambda i=i: loops(i) for i in range(3)])
    assert c.fetchval("SELECT 1", timeout=10).run() == 1
    c.terminate()


def test_closed_while_a_loop_elsewhere_has_it_registered(dsn):
    """Its number must not be another's before that loop has taken its reader away."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    c = asyncio.run_coroutine_threadsafe(aio.connect(dsn), loop).result(20)
    fd = c._fd
    held, go_on = threading.Event(), threading.Event()

    def hold():
        held.set()
        go_on.wait(60)

    async def main():
        loop.call_soon_threadsafe(hold)
        held.wait(20)
        assert await c.fetchval("SELECT 1") == 1  # by this loop, which the other has not heard of
        c.terminate()

    asyncio.run(main())
    os.fstat(fd)  # still open
    with contextlib.closing(socket.socket()) as other:
        assert other.fileno() != fd
    asked = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
    go_on.set()
    asked.result(20)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


def test_nothing_is_begun_on_a_connection_that_is_being_dropped(dsn, monkeypatch):
    """What an operation ends with is made in Python, while the connection counts as open still."""
    c = asyncio.run(aio.connect(dsn))
    made, found = errors.ConnectionDoesNotExist, []

    async def use():
        try:
            await c.fetchval("SELECT 1")
        except pg.Error as exc:
            found.append(exc)

    def make(message):
        in_threads([lambda: asyncio.run(use())], seconds=10)
        sleeping.close()  # cancels, of a connection that is open
        return made(message)

    monkeypatch.setattr(errors, "ConnectionDoesNotExist", make)
    sleeping = c.fetchval("SELECT pg_sleep(60)").start()
    c.terminate()
    assert [type(exc) for exc in found] == [errors.ConnectionClosed]
    assert c.is_closed() and not c._busy


def test_closed_while_a_loop_registers_it(dsn):
    """The loop's add_reader() is Python: another thread has its turn within."""
    c = asyncio.run(aio.connect(dsn))
    closed = []

    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, fd, *args):
            if not closed and fd == c._fd:
                in_threads([c.terminate])
                os.fstat(fd)  # still open
                closed.append(fd)
            return super().add_reader(fd, *args)

    async def main():
        with pytest.raises((errors.ConnectionClosed, errors.ConnectionDoesNotExist)):
            await c.fetchval("SELECT 1")
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(closed[0])

    with contextlib.closing(Loop()) as loop:
        loop.run_until_complete(main())


def test_begun_by_what_registers_its_socket(dsn):
    """A loop's add_reader() may be Python, and so may use the very operation that needs it."""
    begun = []

    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, fd, callback, *args):
            super().add_reader(fd, callback, *args)
            if fd == c.raw._fd and not begun:
                begun.append(op.start())

    def query():
        return op.run()

    def wait():
        return await_(op)

    for use in (query, wait):
        with pg.connect(dsn) as c:
            op = c.raw.fetchval("SELECT 1")
            loop = Loop()
            assert loop.run_until_complete(async_(use)()) == 1
            assert begun == [op]
            begun.clear()
            loop.close()
            assert c.execute("SELECT 2").fetchone() == (2,)
