"""Where a wait may be called from: each row of the table, for each way of waiting."""

import asyncio
import os
import select
import socket
import threading
import time

import greenlet
import pytest

import greenletio
from greenletio import WouldBlockError, _core, async_, await_, io

GREEN, PLAIN, FORBIDDEN = 1, 0, -1


pytestmark = pytest.mark.leaks


class Ways:
    """Every way to wait, each of which comes back by itself in a moment."""

    def __init__(self):
        self.a, self.b = socket.socketpair()
        self.closed = 0

    def close(self):
        self.a.close()
        self.b.close()

    def sleep(self):
        greenletio.sleep(0.001)

    def wait_readable(self):
        self.b.send(b"x")
        assert io.wait_readable(self.a, timeout=30)
        self.a.recv(1)

    def wait_writable(self):
        assert io.wait_writable(self.a, timeout=30)

    def wait_any(self):
        assert io.wait_any([self.a], [self.b], timeout=30)

    def await_(self):
        async def coro():
            try:
                await asyncio.sleep(0)
            finally:
                self.closed += 1

        await_(coro())

    def waiter(self):
        waiter, begun = _core.Waiter(), threading.Event()

        def set_soon():  # not before it is waited for, though starting a thread may take its time
            begun.wait()
            time.sleep(0.02)
            waiter.set(1)

        thread = threading.Thread(target=set_soon)
        thread.start()
        try:
            begun.set()
            assert waiter.wait(30)
        finally:
            thread.join()

    def get(self):
        greenletio.spawn(int).get()

    def join(self):
        assert greenletio.spawn(int).join()


WAYS = [name for name in vars(Ways) if not name.startswith("_") and name != "close"]


@pytest.fixture(params=WAYS)
def way(request):
    ways = Ways()
    yield getattr(ways, request.param)
    ways.close()


def calls_left():
    return list(_core.calls())


# -- a greenlet under async_ or spawn


def test_under_async_it_is_suspended_and_the_loop_goes_on(run, ticks, way):
    async def main():
        async with ticks() as count:

            def sync():
                assert _core.place() == GREEN
                before = count[0]
                for _ in range(3):
                    way()
                return count[0] - before

            await asyncio.sleep(0)
            await async_(sync)()

    run(main())


def test_under_spawn(run, way):
    async def main():
        green = greenletio.spawn(lambda: (way(), _core.place()))
        assert await green == (None, GREEN)

    run(main())


def test_the_loop_goes_on_while_a_greenlet_waits(run, ticks, pair):
    a, b = pair

    async def main():
        async with ticks() as count:

            def sync():
                before = count[0]
                assert not io.wait_readable(a, timeout=0.1)
                return count[0] - before

            assert await async_(sync)() > 3

    run(main())


# -- plain code, no loop in this thread


def test_plain_code(way):
    assert _core.place() == PLAIN
    way()
    assert _core.place() == PLAIN
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_plain_code_lets_spawned_greenlets_go_on(way):
    steps = []

    def background():
        while len(steps) < 3:
            steps.append(1)
            greenletio.sleep(0)

    green = greenletio.spawn(background)
    for _ in range(1000):
        way()
        if green.ready:
            break
    assert green.ready and len(steps) == 3


def test_plain_timeouts(pair):
    a, _ = pair
    assert io.wait_readable(a, timeout=0.001) is False
    assert io.wait_readable(a, timeout=0) is False
    assert not _core.Waiter().wait(0.001)
    green = greenletio.spawn(greenletio.sleep, 3600)
    assert io.wait_readable(a, timeout=0.001) is False
    assert green.join(timeout=0.001) is False
    green.cancel()
    assert green.join(timeout=30)


def test_a_greenlet_started_by_hand_in_plain_code(way):
    """No loop runs: it blocks as plain code does."""
    got = []

    def fn():
        way()
        got.append(1)

    greenlet.greenlet(fn).switch()
    assert got == [1]


# -- directly in a task


def helper_without_async(way):
    way()


def test_directly_in_a_task(run, way):
    async def main():
        assert _core.place() == FORBIDDEN
        before = calls_left()
        with pytest.raises(WouldBlockError) as info:
            way()
        assert isinstance(info.value, RuntimeError)
        assert isinstance(info.value, greenletio.errors.GreenletioError)
        assert calls_left() == before
        # the loop has not been harmed, and the way works where it may
        await asyncio.sleep(0)
        await async_(way)()

    run(main())


@pytest.mark.parametrize(
    "name, call",
    [
        ("sleep", lambda ways: greenletio.sleep(1)),
        ("wait_readable", lambda ways: io.wait_readable(ways.a)),
        ("wait_writable", lambda ways: io.wait_writable(ways.a)),
        ("wait_any", lambda ways: io.wait_any([ways.a], [])),
        ("await_", lambda ways: await_(asyncio.sleep(1))),
        ("wait", lambda ways: _core.Waiter().wait()),
    ],
)
def test_the_message_names_the_call_and_the_frame_that_lacks_async(run, name, call):
    ways = Ways()

    def inner():
        call(ways)

    def lacking():
        inner()

    async def main():
        with pytest.raises(WouldBlockError) as info:
            lacking()
        message = str(info.value)
        assert name in message
        assert "lacking" in message
        assert "async_" in message
        assert os.path.basename(__file__) in message

    run(main())
    ways.close()


def test_the_message_for_a_call_right_in_the_coroutine(run):
    async def main_without_bridge():
        with pytest.raises(WouldBlockError) as info:
            greenletio.sleep(1)
        assert "sleep" in str(info.value)
        assert "main_without_bridge" in str(info.value)

    run(main_without_bridge())


def test_a_refused_await_closes_the_coroutine(run, recwarn):
    """No 'never awaited' warning on top of the error."""
    import gc

    async def coro():
        await asyncio.sleep(0)

    async def main():
        with pytest.raises(WouldBlockError):
            await_(coro())
        gc.collect()

    run(main())
    assert not [w for w in recwarn if "never awaited" in str(w.message)]


def test_refused_with_a_task_or_future_leaves_it_alone(run):
    async def main():
        task = asyncio.ensure_future(asyncio.sleep(0, "done"))
        with pytest.raises(WouldBlockError):
            await_(task)
        assert await task == "done"

    run(main())


def test_refused_fd_wait_registers_nothing(run, pair):
    a, b = pair

    async def main():
        fds = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with pytest.raises(WouldBlockError):
                io.wait_readable(a)
        assert len(os.listdir("/proc/self/fd")) <= fds + 2
        b.send(b"x")
        await asyncio.sleep(0.001)
        assert await async_(io.wait_readable)(a, timeout=30) is True

    run(main())


def test_a_ready_wait_is_refused_too(run, pair):
    """Whether it is an error does not depend on who was faster."""
    a, b = pair
    b.send(b"x")

    async def main():
        with pytest.raises(WouldBlockError):
            io.wait_readable(a)

    run(main())


def test_in_coroutines_awaited_by_green_code(run, ticks, way):
    """They run in the greenlet, so it is the greenlet that is suspended, and the loop goes on."""

    async def main():
        async with ticks() as count:

            async def coro():
                before = count[0]
                assert _core.place() == GREEN
                way()
                await asyncio.sleep(0)
                way()
                return count[0] - before

            def sync():
                turns = await_(coro())
                assert _core.place() == GREEN
                way()
                return turns

            assert await async_(sync)() >= 1

    run(main())


def test_a_greenlet_started_by_hand_in_a_task(run, way):
    """It would hold the loop just the same."""

    async def main():
        got = []

        def fn():
            with pytest.raises(WouldBlockError):
                way()
            got.append(_core.place())

        greenlet.greenlet(fn).switch()
        assert got == [FORBIDDEN]

    run(main())


def test_a_greenlet_started_by_hand_in_green_code(run, ticks, way):
    """It is suspended, with the greenlet that started it."""

    async def main():
        async with ticks() as count:

            def sync():
                before = count[0]
                got = []
                inner = greenlet.greenlet(lambda: (way(), got.append(_core.place())))
                inner.switch()
                assert inner.dead
                assert got == [GREEN]
                way()
                return count[0] - before

            await async_(sync)()

    run(main())


# -- directly in callbacks of the loop


def in_callback(loop, arrange, way):
    """Call way from a callback that arrange() hooks up; return what it raised."""
    future = loop.create_future()

    def callback(*args):
        if future.done():
            return
        try:
            way()
        except BaseException as e:
            future.set_result(e)
        else:
            future.set_result(None)

    arrange(callback)
    return future


def test_in_call_soon_and_call_later(run, way):
    async def main():
        loop = asyncio.get_running_loop()
        for arrange in (
            loop.call_soon,
            lambda cb: loop.call_later(0.001, cb),
            loop.call_soon_threadsafe,
        ):
            error = await in_callback(loop, arrange, way)
            assert isinstance(error, WouldBlockError), error

    run(main())


def test_in_a_reader_callback(run, pair, way):
    a, b = pair
    b.send(b"x")

    async def main():
        loop = asyncio.get_running_loop()
        error = await in_callback(loop, lambda cb: loop.add_reader(a, cb), way)
        loop.remove_reader(a)
        assert isinstance(error, WouldBlockError), error

    run(main())


def test_in_a_future_callback(run, way):
    async def main():
        loop = asyncio.get_running_loop()
        source = loop.create_future()
        source.set_result(1)
        error = await in_callback(loop, source.add_done_callback, way)
        assert isinstance(error, WouldBlockError), error

    run(main())


@pytest.mark.leaks(False)  # uses its socket up
def test_in_protocol_methods(run, pair, way):
    a, b = pair

    async def main():
        loop = asyncio.get_running_loop()
        errors = []
        done = loop.create_future()

        class Protocol(asyncio.Protocol):
            def note(self, *args):
                try:
                    way()
                except BaseException as e:
                    errors.append(e)

            connection_made = data_received = note

            def connection_lost(self, exc):
                self.note()
                done.set_result(None)

        await loop.create_connection(Protocol, sock=a)
        b.send(b"x")
        b.shutdown(socket.SHUT_WR)
        await done
        assert [type(e) for e in errors] == [WouldBlockError] * 3

    run(main())


def test_the_message_names_the_callback(run):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def my_callback():
            try:
                greenletio.sleep(1)
            except WouldBlockError as e:
                future.set_result(str(e))

        loop.call_soon(my_callback)
        assert "my_callback" in await future

    run(main())


def test_a_done_callback_of_a_green_task_is_not_green(run, way):
    """It runs in the loop, though the loop may have just come out of a greenlet."""

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(async_(await_)(asyncio.sleep(0)))
        error = await in_callback(loop, task.add_done_callback, way)
        assert isinstance(error, WouldBlockError), error

    run(main())


def test_a_loop_run_inside_green_code_is_refused_by_asyncio(run):
    def sync():
        coro = asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            asyncio.run(coro)
        coro.close()

    run(async_(sync)())


# -- other threads


def in_thread(fn):
    got = []

    def target():
        try:
            got.append(fn())
        except BaseException as e:
            got.append(e)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(60)
    assert got, "the thread hangs"
    if isinstance(got[0], BaseException):
        raise got[0]
    return got[0]


def test_thread_without_a_loop_is_plain_whatever_the_main_thread_runs(run, way):
    async def main():
        loop = asyncio.get_running_loop()

        def plain():
            assert _core.place() == PLAIN
            way()
            return _core.place()

        assert await loop.run_in_executor(None, plain) == PLAIN

    run(main())


def test_thread_with_its_own_loop(loop_kind, run, way):
    def in_other():
        async def main():
            with pytest.raises(WouldBlockError):
                way()
            await async_(way)()
            return await async_(_core.place)()

        return asyncio.run(main())

    assert in_thread(in_other) == GREEN

    async def main():
        await async_(way)()
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, in_other) == GREEN
        await async_(way)()

    run(main())


def test_thread_with_greens_of_its_own(way):
    def in_other():
        steps = []
        green = greenletio.spawn(lambda: [(steps.append(1), greenletio.sleep(0)) for _ in range(3)])
        for _ in range(1000):
            way()
            if green.ready:
                break
        return len(steps)

    assert in_thread(in_other) == 3


def test_many_threads_at_once(way):
    errors = []

    def work():
        try:
            for _ in range(5):
                greenletio.sleep(0)
                asyncio.run(repeat())
        except BaseException as e:
            errors.append(e)

    async def repeat():
        await asyncio.gather(*[async_(greenletio.sleep)(0) for _ in range(10)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    way()


# -- plain waits do not use more than they need


def test_plain_wait_with_nothing_spawned_makes_no_fd(pair):
    a, b = pair
    b.send(b"x")

    def in_other():
        before = os.listdir("/proc/self/fd")
        io.wait_readable(a, timeout=30)
        greenletio.sleep(0.001)
        return len(os.listdir("/proc/self/fd")) - len(before)

    assert in_thread(in_other) == 0


def test_plain_wait_is_not_cut_short_by_a_signal_handler(pair):
    """EINTR is ours to handle (PEP 475)."""
    import signal

    a, _ = pair
    hits = []
    old = signal.signal(signal.SIGALRM, lambda *a: hits.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert io.wait_readable(a, timeout=0.05) is False
        assert hits == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_plain_wait_is_ended_by_an_exception_of_a_signal_handler(pair):
    import signal

    a, _ = pair

    class Alarm(Exception):
        pass

    def handler(*args):
        raise Alarm

    old = signal.signal(signal.SIGALRM, handler)
    try:
        for wait in (
            lambda: io.wait_readable(a, timeout=30),
            lambda: greenletio.sleep(30),
            lambda: _core.Waiter().wait(30),
        ):
            with pytest.raises(Alarm):
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_poll_agrees(pair):
    """The plain wait reports what poll(2) does."""
    a, b = pair
    assert io.wait_readable(a, timeout=0) == bool(select.select([a], [], [], 0)[0])
    b.close()
    assert io.wait_readable(a, timeout=0) is True
