"""Listeners whose server is killed, frozen, restarted, or behind PgBouncer."""

import asyncio
import os
import signal

import pytest
from fix_postgres import ask
from fix_progress import Ticker

from greenletio import async_, pg
from greenletio.pg import aio, errors

LIMIT = 60  # against a hang, not a measure
SOON = 0.2  # seconds: what has a limit here has this one


def options(**others):
    return {"channels": ["x"], "heartbeat": SOON, "answer_within": LIMIT, **others}


#: For listeners that find out that their server is frozen; to whom a busy one seems so, too.
IMPATIENT = {"answer_within": SOON}


async def goes_on(listener, url):
    """A Gap, and after that what is sent. An impatient one may have more of the first."""
    gap = await listener.get(timeout=LIMIT)
    event = gap
    while isinstance(event, aio.Gap):
        await asyncio.to_thread(ask, url, "NOTIFY x, 'again'")
        event = await listener.get(timeout=LIMIT)
    assert isinstance(gap, aio.Gap)
    assert event.payload == "again"
    return gap


def test_a_server_that_is_killed_and_comes_back(run, own_server):
    async def main():
        async with aio.Listener(own_server.url, **options()) as listener:
            own_server.kill()
            with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                await listener.get(timeout=SOON)
            with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                async with listener.connection(timeout=SOON):
                    pass
            adds = asyncio.ensure_future(listener.add("y", timeout=LIMIT))
            await asyncio.sleep(0)
            own_server.start()
            await goes_on(listener, own_server.url)
            await adds
            ask(own_server.url, "NOTIFY y, 'added'")
            assert (await listener.get(timeout=LIMIT)).payload == "added"

    run(main())


def test_a_server_that_does_not_come_back(run, own_server):
    async def main():
        gives_up = aio.Listener(own_server.url, **options(give_up_after=SOON))
        async with gives_up, aio.Listener(own_server.url, **options()) as listener:
            own_server.kill()
            with pytest.raises(errors.ConnectionClosed) as caught:
                await asyncio.wait_for(gives_up.get(), LIMIT)
            assert isinstance(caught.value.__cause__, errors.OperationalError)
            assert gives_up.closed
            waits = asyncio.ensure_future(listener.add("y"))
            await asyncio.sleep(0)
            await listener.close()
            with pytest.raises(errors.ConnectionClosed):
                await waits
            with pytest.raises(errors.OperationalError, match="refused"):
                await aio.Listener(own_server.url).open()

    run(main())


def test_a_backend_that_freezes(run, own_server):
    async def main():
        async with aio.Listener(own_server.url, **options(**IMPATIENT)) as listener:
            async with listener.connection() as c:
                pid = c.get_server_pid()
            os.kill(pid, signal.SIGSTOP)
            try:
                async with Ticker():
                    gap = await goes_on(listener, own_server.url)
                assert "did not answer" in str(gap.error)
            finally:
                os.kill(pid, signal.SIGCONT)

    run(main())


def test_a_server_that_freezes(run, own_server):
    async def main():
        limits = {**IMPATIENT, "connect_within": SOON}
        async with aio.Listener(own_server.url, **options(**limits)) as listener:
            own_server.freeze()
            try:
                with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                    await listener.get(timeout=5 * SOON)
            finally:
                own_server.thaw()
            await goes_on(listener, own_server.url)
            own_server.freeze()
            try:
                await asyncio.wait_for(listener.close(), LIMIT)
            finally:
                own_server.thaw()

    run(main())


def test_sync_code_whose_backend_freezes(run, own_server):
    def work():
        with pg.Listener(own_server.url, **options(**IMPATIENT)) as listener:
            with listener.connection() as c:
                pid = c.raw._pid
            os.kill(pid, signal.SIGSTOP)
            try:
                assert isinstance(listener.get(timeout=LIMIT), pg.Gap)
            finally:
                os.kill(pid, signal.SIGCONT)
            event = None
            while not isinstance(event, pg.Notification):
                with listener.connection() as c:
                    c.execute("NOTIFY x, 'again'")
                event = next(listener)
            assert event.payload == "again"

    async def main():
        async with Ticker():
            await async_(work)()

    run(main())
    work()


def test_behind_pgbouncer_in_session_mode(run, own_server, pgbouncer):
    url = pgbouncer(own_server.url, "session")

    async def main():
        async with aio.Listener(url, **options()) as listener:
            ask(own_server.url, "NOTIFY x, 'through'")
            assert (await listener.get(timeout=LIMIT)).payload == "through"
            async with listener.connection() as c:
                assert await c.fetchval("SELECT 1") == 1
            own_server.kill()
            own_server.start()
            await goes_on(listener, own_server.url)

    run(main())
