"""Notifications of a sync connection: notifies() and handlers, in plain code and greenlets."""

import asyncio
import threading

import pytest
from fix_progress import Ticker

from greenletio import async_, pg
from greenletio.pg import _notify, errors


@pytest.fixture
def listening(dsn):
    with pg.connect(dsn, autocommit=True) as c:
        c.execute("LISTEN news")
        yield c


def notify(dsn, *payloads):
    with pg.connect(dsn, autocommit=True) as c:
        for payload in payloads:
            c.execute("SELECT pg_notify('news', %s)", (payload,))
        return c.raw._pid


def payloads(c, **options):
    return [n.payload for n in c.notifies(**options)]


def test_those_that_are_there(dsn, listening):
    pid = notify(dsn, "a", "b", "c")
    (first,) = listening.notifies(stop_after=1)
    assert (first.channel, first.payload, first.pid) == ("news", "a", pid)
    assert payloads(listening, timeout=0) == ["b", "c"]
    assert payloads(listening, timeout=0.02) == []
    assert payloads(listening, stop_after=0) == []


def test_those_that_come(run, dsn):
    """From elsewhere, while nothing else is done; and by the same connection, in between."""

    def work():
        with pg.connect(dsn, autocommit=True) as c:
            c.execute("LISTEN news")
            sender = threading.Timer(0.1, notify, (dsn, "1", "2"))
            sender.start()
            got = []
            for notification in c.notifies(stop_after=3):
                got.append(notification.payload)
                assert c.execute("SELECT 1").fetchone() == (1,)
                if len(got) == 2:
                    c.execute("NOTIFY news, 'own'")
            sender.join()
            return got

    async def main():
        async with Ticker():
            assert await async_(work)() == ["1", "2", "own"]

    run(main())
    assert work() == ["1", "2", "own"]


def test_handlers_hear_while_queries_run(dsn, listening):
    heard = []
    listening.add_notify_handler(heard.append)
    sender = threading.Timer(0.05, notify, (dsn, "x"))
    sender.start()
    listening.execute("SELECT pg_sleep(0.3)")
    sender.join()
    listening.execute("SELECT 1")
    assert [n.payload for n in heard] == ["x"]
    assert payloads(listening, timeout=0) == []  # the handler has had it
    listening.remove_notify_handler(heard.append)
    notify(dsn, "y")
    assert payloads(listening, timeout=0) == ["y"]
    assert len(heard) == 1


def test_a_handler_may_remove_itself(dsn, listening):
    heard = []

    def once(notification):
        heard.append("once")
        listening.remove_notify_handler(once)

    listening.add_notify_handler(once)
    listening.add_notify_handler(lambda notification: heard.append(notification.payload))
    notify(dsn, "x", "y")
    listening.execute("SELECT 1")
    assert heard == ["once", "x", "y"]


def test_a_handler_in_a_loop(run, dsn):
    """It hears as it comes, though nobody asks for anything."""

    async def main():
        c = await async_(pg.connect)(dsn, autocommit=True)
        heard = asyncio.Event()
        c.add_notify_handler(lambda notification: heard.set())
        await async_(c.execute)("LISTEN news")
        await async_(notify)(dsn, "x")
        await asyncio.wait_for(heard.wait(), 30)
        await async_(c.close)()

    run(main())


def test_the_oldest_go(dsn, listening, monkeypatch):
    monkeypatch.setattr(_notify, "KEPT", 3)
    with pg.connect(dsn, autocommit=True) as c:
        c.execute("LISTEN news")
        notify(dsn, *"abcde")
        assert payloads(c, timeout=0) == ["c", "d", "e"]


def test_given_up(run, dsn):
    """Cancelled, left, or closed by another greenlet; the connection is usable, or says so."""

    def forever(c):
        for _ in c.notifies():
            pass

    async def main():
        c = await async_(pg.connect)(dsn, autocommit=True)
        task = asyncio.create_task(async_(forever)(c))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cursor = await async_(c.execute)("SELECT 1")
        assert cursor.fetchone() == (1,)
        task = asyncio.create_task(async_(forever)(c))
        await asyncio.sleep(0.05)
        await async_(c.close)()
        with pytest.raises(errors.ConnectionClosed):
            await asyncio.wait_for(task, 30)

    run(main())


def test_the_server_ends_the_session(run, dsn):
    def work():
        c = pg.connect(dsn, autocommit=True)
        sender = threading.Timer(0.1, end_of, (dsn, c.raw._pid))
        sender.start()
        with pytest.raises((errors.AdminShutdown, errors.ConnectionClosed)):
            list(c.notifies())
        sender.join()
        assert c.closed
        with pytest.raises(errors.ConnectionClosed):
            list(c.notifies())

    async def main():
        await async_(work)()

    run(main())
    work()


def end_of(dsn, pid):
    with pg.connect(dsn) as c:
        c.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))


def test_another_thread_takes_the_connection(run, dsn, monkeypatch):
    """The loop reads for us no more; it is found out, and nothing is lost."""
    monkeypatch.setattr(_notify, "LOOK", 0.1)

    def work(c):
        return [n.payload for n in c.notifies(stop_after=1)]

    async def main():
        c = await async_(pg.connect)(dsn, autocommit=True)
        await async_(c.execute)("LISTEN news")
        task = asyncio.create_task(async_(work)(c))
        await asyncio.sleep(0.02)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, c.execute, "SELECT 1")
        await loop.run_in_executor(None, notify, dsn, "x")
        assert await asyncio.wait_for(task, 30) == ["x"]
        await async_(c.close)()

    run(main())
