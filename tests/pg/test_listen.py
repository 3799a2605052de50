"""Listener, in both faces: events, channels, buffers, queries beside them, lost connections."""

import _thread
import asyncio
import gc
import logging
import os
import threading
import time
from types import SimpleNamespace

import pytest
from fix_postgres import tell
from fix_progress import Ticker

import greenletio
from greenletio import async_, pg
from greenletio.pg import _listen, aio, errors
from greenletio.pg._listen import Turn
from greenletio.pg._steps import wait

TIMED_OUT = (TimeoutError, asyncio.TimeoutError)
LIMIT = 30  # against a hang, not a measure


def notify(dsn, *events):
    """Each by (channel, payload), from outside; they are on their way when it returns."""
    tell(dsn, "SELECT " + ", ".join(f"pg_notify('{name}', '{text}')" for name, text in events))


def end_backends(dsn):
    """Those that have ever listened, in this database; they have ended when it returns."""
    tell(
        dsn,
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'listener'",
    )


def payloads(events):
    return [event.payload if isinstance(event, pg.Notification) else event for event in events]


@pytest.fixture
def make(dsn):
    """A listener of this database, for tasks, whose backend end_backends() finds."""
    return lambda **options: aio.Listener(dsn, application_name="listener", **options)


def test_events_in_their_order(run, dsn, make):
    async def main():
        async with make(channels=["one", 'a "b" é']) as listener:
            assert listener.channels == ("one", 'a "b" é')
            notify(dsn, ("one", "1"), ('a "b" é', "2"), ("other", "3"), ("one", "4"))
            first = await listener.get(timeout=LIMIT)
            assert first == aio.Notification("one", "1", first.pid) and first.pid > 0
            events = [await listener.get(timeout=LIMIT) for _ in range(2)]
            assert [(e.channel, e.payload) for e in events] == [('a "b" é', "2"), ("one", "4")]
            notify(dsn, ("one", "5"))
            async for event in listener:
                assert event.payload == "5"
                break
        assert listener.closed

    run(main())


def test_channels_come_and_go(run, dsn, make, caplog):
    async def main():
        called = []

        async def later(event):
            await asyncio.sleep(0)
            called.append(("later", event.payload))

        def failing(event):
            called.append(("failing", event.payload))
            raise LookupError("of mine")

        async with make() as listener:
            await listener.add("a")
            await listener.add("b", later)
            await listener.add("b", failing)
            notify(dsn, ("b", "1"), ("a", "2"), ("b", "3"))
            assert (await listener.get(timeout=LIMIT)).payload == "2"
            while len(called) < 4:
                await asyncio.sleep(0.001)
            assert called == [("later", "1"), ("failing", "1"), ("later", "3"), ("failing", "3")]
            await listener.remove("b", later)
            await listener.remove("b", print)  # which is not there
            await listener.remove("a")
            assert listener.channels == ("b",)
            await listener.remove("b", failing)
            await listener.remove("b")
            async with listener.connection() as c:
                assert await c.fetch("SELECT pg_listening_channels()") == []
            await listener.add("end")
            notify(dsn, ("a", "4"), ("b", "5"), ("end", "6"))
            assert (await listener.get(timeout=LIMIT)).payload == "6"
            assert len(called) == 4

    with caplog.at_level(logging.ERROR, "greenletio.pg"):
        run(main())
    assert caplog.text.count("LookupError: of mine") == 2


@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_callback_that_is_added_twice_at_once(run, dsn, make, cancelled):
    """One of the two is cancelled: the other has added it."""

    async def main():
        heard = asyncio.Queue()
        async with make(channels=["x"]) as listener:
            adding = [asyncio.ensure_future(listener.add("y", heard.put)) for _ in range(2)]
            await asyncio.sleep(0)
            adding[cancelled].cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding[cancelled]
            await adding[1 - cancelled]
            notify(dsn, ("y", "one"))
            event = await asyncio.wait_for(heard.get(), LIMIT)
            if isinstance(event, aio.Gap):  # the connection that was cancelled is another one now
                event = await asyncio.wait_for(heard.get(), LIMIT)
            assert event.payload == "one"

    run(main())


def test_of_two_that_add_a_channel_in_vain_none_is_left(run, make):
    async def main():
        async with make(channels=["x"]) as listener:
            async with listener.connection():
                adding = [listener.add("y", function, timeout=0.02) for function in (print, repr)]
                failed = await asyncio.gather(*adding, return_exceptions=True)
                assert all(isinstance(one, TIMED_OUT) for one in failed)
            assert listener.channels == ("x",)

    run(main())


def test_what_has_no_room_is_a_gap(run, dsn, make):
    async def main():
        async with make(channels=["x"], buffer=3) as listener:
            notify(dsn, *(("x", str(i)) for i in range(10)))
            async with listener.connection() as c:  # whose answer comes after all of them
                await c.fetchval("SELECT 1")
            await asyncio.sleep(0.01)
            events = [await listener.get(timeout=LIMIT) for _ in range(4)]
            assert payloads(events) == ["0", "1", "2", aio.Gap(dropped=7)]
            notify(dsn, ("x", "later"))
            assert payloads([await listener.get(timeout=LIMIT)]) == ["later"]

    run(main())


def test_waits_have_an_end(run, dsn, make):
    async def main():
        async with make(channels=["x"]) as listener:
            async with Ticker():
                with pytest.raises(TIMED_OUT):
                    await listener.get(timeout=0.3)
                waits = asyncio.ensure_future(listener.get())
                await asyncio.sleep(0)
                waits.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waits
            # One that is cancelled at the moment of an event does not take it along.
            waits = [asyncio.ensure_future(listener.get()) for _ in range(3)]
            await asyncio.sleep(0)
            listener._core.inbox.put(aio.Gap())
            waits[0].cancel()
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT)
            done, _ = await asyncio.wait(waits[1:], return_when="FIRST_COMPLETED", timeout=LIMIT)
            assert [one.result() for one in done] == [aio.Gap()]
            (last,) = {*waits[1:]} - done

            async def iterate():
                return [event async for event in listener]

            iterates = asyncio.ensure_future(iterate())
            async with listener.connection():
                with pytest.raises(TIMED_OUT):
                    async with listener.connection(timeout=0.02):
                        pass
                with pytest.raises(TIMED_OUT):
                    await listener.add("y", timeout=0.02)
                assert listener.channels == ("x",)
            await listener.add("y")
            await listener.close()
            assert await asyncio.wait_for(iterates, LIMIT) == []
            for use in (lambda: last, listener.get, lambda: listener.add("z")):
                with pytest.raises(errors.ConnectionClosed, match="the listener is closed"):
                    await use()
            await listener.close()

    run(main())


def test_ended_before_it_has_begun(run, make):
    """Whoever opened it waited for ever."""

    async def main():
        listener = make(channels=["x"])
        opening = asyncio.ensure_future(listener.open())
        await asyncio.sleep(0)
        await listener.close()
        with pytest.raises(errors.ConnectionClosed, match="was closed"):
            await asyncio.wait_for(opening, LIMIT)
        assert [event async for event in listener] == []

    run(main())


def test_ended_before_its_thread_has_begun(dsn, monkeypatch):
    listener = pg.Listener(dsn, channels=["x"])

    def begin(function, args):
        listener._core.stop()
        return _thread.start_new_thread(function, args)

    monkeypatch.setattr(_listen, "_thread", SimpleNamespace(start_new_thread=begin))
    with greenletio.timeout(LIMIT), pytest.raises(errors.ConnectionClosed, match="was closed"):
        listener.open()
    assert list(listener) == []


@pytest.mark.parametrize("how", ["cancelled", "too late"])
def test_the_turn_of_one_that_was_passed_over_is_not_given_twice(run, how):
    async def main():
        loop, turn = asyncio.get_running_loop(), Turn()
        assert turn.take_now()
        first = asyncio.ensure_future(wait(turn.take(0.01 if how == "too late" else LIMIT)))
        second = asyncio.ensure_future(wait(turn.take(LIMIT)))
        await asyncio.sleep(0)
        if how == "cancelled":
            first.cancel()
            turn.give()
        else:
            loop.call_later(0.02, turn.give)
            time.sleep(0.05)  # both are due: the first one's time is over, then the turn is given
        with pytest.raises((asyncio.CancelledError, *TIMED_OUT)):
            await first
        await second
        assert not turn.take_now()
        turn.give()
        assert turn.take_now()

    run(main())


def test_queries_share_the_connection(run, dsn, make):
    async def main():
        async with make(channels=["x"]) as listener:

            async def query(i):
                async with listener.connection() as c, c.transaction():
                    await c.execute("SELECT pg_notify('x', $1)", str(i))
                    return await c.fetchval("SELECT $1::int", i)

            assert await asyncio.gather(*map(query, range(20))) == [*range(20)]
            heard = [await listener.get(timeout=LIMIT) for _ in range(20)]
            assert payloads(heard) == [str(i) for i in range(20)]
            async with listener.connection() as c:
                assert {event.pid for event in heard} == {c.get_server_pid()}
                await c.execute("BEGIN")
                await c.execute("NOTIFY x, 'undone'")
            async with listener.connection() as c:
                assert not c.is_in_transaction()
                with pytest.raises(errors.DivisionByZero):
                    await c.execute("SELECT 1/0")
            await listener.add("y")
            notify(dsn, ("y", "last"))
            assert payloads([await listener.get(timeout=LIMIT)]) == ["last"]

    run(main())


def test_a_lost_connection_is_a_gap(run, dsn, make):
    async def main():
        gaps = []
        async with make(channels=["x"]) as listener:
            await listener.add("called", gaps.append)
            for _ in range(3):
                end_backends(dsn)
                gap = await listener.get(timeout=LIMIT)
                assert isinstance(gap, aio.Gap) and gap.error is not None and not gap.dropped
                # It listens again before it says so: nothing that comes after is missing.
                notify(dsn, ("x", "again"), ("called", "again"))
                assert payloads([await listener.get(timeout=LIMIT)]) == ["again"]
            while len(gaps) < 6:
                await asyncio.sleep(0.001)
            assert [type(event) for event in gaps] == [aio.Gap, aio.Notification] * 3
            # In the middle of a query: who asked is told, the next one gets the new connection.
            with pytest.raises(errors.OperationalError):
                async with listener.connection() as c:
                    query = asyncio.ensure_future(c.fetch("SELECT pg_sleep(60)"))
                    await asyncio.sleep(0.01)
                    await asyncio.get_running_loop().run_in_executor(None, end_backends, dsn)
                    await query
            async with listener.connection(timeout=LIMIT) as c:
                assert await c.fetchval("SELECT 1") == 1
            assert isinstance(await listener.get(timeout=LIMIT), aio.Gap)

    run(main())


def test_one_of_a_pool(run, dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=1, max_size=2) as pool:
            async with aio.Listener(pool, channels=["x"]) as listener:
                await pool.execute("NOTIFY x, 'hello'")
                assert payloads([await listener.get(timeout=LIMIT)]) == ["hello"]
                async with listener.connection() as c:
                    pid = c.get_server_pid()
                await asyncio.get_running_loop().run_in_executor(None, end, dsn, pid)
                assert isinstance(await listener.get(timeout=LIMIT), aio.Gap)
                await pool.execute("NOTIFY x, 'again'")
                assert payloads([await listener.get(timeout=LIMIT)]) == ["again"]
            sql = "SELECT count(*) FROM pg_listening_channels()"
            async with pool.acquire() as a, pool.acquire() as b:
                assert [await a.fetchval(sql), await b.fetchval(sql)] == [0, 0]
        with pytest.raises(TypeError, match="host"):
            aio.Listener(pool, host="elsewhere")

    def end(dsn, pid):
        tell(dsn, "SELECT pg_terminate_backend($1, 30000)", pid)

    run(main())


def sync_work(source, dsn):
    """What a listener of the sync face does; the same wherever it runs."""
    called = []
    options = {} if isinstance(source, pg.Pool) else {"application_name": "listener"}
    with pg.Listener(source, channels=["x"], **options) as listener:
        with pytest.raises(TIMED_OUT):
            listener.get(timeout=0.02)
        with listener.connection() as c:
            c.execute("CREATE TEMP TABLE t AS SELECT %s AS a", (pg.Json({"a": [1]}),))
            c.execute("NOTIFY x, 'mine'")
        assert payloads([listener.get(timeout=LIMIT)]) == ["mine"]
        with listener.connection() as c:
            assert c.execute("SELECT a::jsonb FROM t").fetchone() == ({"a": [1]},)
        with pytest.raises(pg.InterfaceError, match="closed|given back"):
            c.execute("SELECT 1")
        with pytest.raises(ZeroDivisionError), listener.connection() as c:
            c.execute("DROP TABLE t")
            raise ZeroDivisionError
        event = threading.Event()
        listener.add("called", lambda event_: (called.append(event_), event.set()))
        with listener.connection() as c:
            assert c.execute("SELECT count(*) FROM t").fetchone() == (1,)
            c.execute("NOTIFY called, 'back'")
            pid = c.raw._pid
        while not called:
            with pytest.raises(TIMED_OUT):
                listener.get(timeout=0.01)
        assert payloads(called) == ["back"]
        listener.remove("called")
        tell(dsn, "SELECT pg_terminate_backend($1, 30000)", pid)
        for event in listener:
            assert isinstance(event, pg.Gap)
            break
        with listener.connection() as c:
            c.execute("NOTIFY x, 'after'")
        assert payloads([next(listener)]) == ["after"]
    assert listener.closed
    assert list(listener) == []
    return listener


def test_in_a_greenlet(run, dsn):
    async def main():
        async with Ticker():
            await async_(sync_work)(dsn, dsn)

    run(main())


def test_in_plain_code(dsn):
    before = len(os.listdir("/proc/self/task"))
    sync_work(dsn, dsn)
    deadline = time.monotonic() + LIMIT
    while len(os.listdir("/proc/self/task")) > before:
        assert time.monotonic() < deadline, "the thread that looked after it has not ended"
        time.sleep(0.001)
    with pg.Pool(dsn, min_size=1, max_size=2) as pool:
        sync_work(pool, dsn)


def test_closed_by_another_thread(dsn):
    with pg.Listener(dsn, channels=["x"]) as listener:
        ended = []
        threads = [threading.Thread(target=lambda: ended.append(list(listener))) for _ in range(3)]
        for thread in threads:
            thread.start()
        listener.close()
        for thread in threads:
            thread.join(LIMIT)
        assert ended == [[]] * 3


def test_it_is_used_as_it_can_be_used(run, dsn, make):
    for options in ({"buffer": 0}, {"heartbeat": -1}, {"answer_within": 0}, {"channels": [""]}):
        with pytest.raises(ValueError):
            make(**options)
    for wrong in ({"channels": "x"}, {"channels": [1]}):
        with pytest.raises(TypeError):
            make(**wrong)

    async def main():
        listener = make()
        with pytest.raises(errors.InterfaceError, match="not open"):
            await listener.get()
        with pytest.raises(errors.InterfaceError, match="not open"):
            await listener.add("x")
        await listener.close()
        async with make(channels=["x"]) as listener:
            with pytest.raises(errors.InterfaceError, match="opened once"):
                await listener.open()
            with pytest.raises(ValueError, match="63 bytes"):
                await listener.add("é" * 32)
            with pytest.raises(TypeError):
                await listener.add(None)
        with pytest.raises(errors.InterfaceError, match="transaction pooler"):
            await make(pooler=True).open()
        with pytest.raises(errors.InvalidCatalogName):
            await make(database="there is none").open()
        listener = make(channels=["x"])
        await listener.open()
        with pytest.warns(ResourceWarning, match="unclosed listener"):
            del listener
            gc.collect()
        await asyncio.sleep(0.01)

    run(main())


def test_listeners_leave_nothing_behind(run, make, aflat):
    async def main():
        async def one():
            async with make(channels=["x"]) as listener:
                with pytest.raises(TIMED_OUT):
                    await listener.get(timeout=0.0)
            listener = make()
            waits = asyncio.ensure_future(listener.open())
            await asyncio.sleep(0.001)
            waits.cancel()
            await asyncio.wait([waits])
            await listener.close()

        await aflat(one, 40)

    run(main())
