"""Defects that were found by reading the core, one test each."""

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import socket
import sys
import threading
import time
import tracemalloc
import weakref

import greenlet
import pytest
from fix_garbage import collecting
from fix_missing import need
from fix_progress import settle

import greenletio
from greenletio import _core, async_, await_, io, timeout


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


# -- one waiter, two waits


def test_a_second_timed_wait_on_a_waiter(run):
    """It stood in the timers twice, and was left there once when it had gone."""

    async def main():
        for _ in range(20):
            waiter = _core.Waiter()
            tasks = [asyncio.ensure_future(async_(waiter.wait)(0.02)) for _ in range(3)]
            await settle()
            waiter.set()
            got = await asyncio.gather(*tasks, return_exceptions=True)
            assert got[0] is True
            assert all(x is True or isinstance(x, RuntimeError) for x in got)
            del waiter, tasks, got
        await asyncio.gather(*[async_(greenletio.sleep)(0.001 * i) for i in range(60)])

    run(main())


def test_a_second_plain_wait_on_a_waiter():
    """The first thread was forgotten and slept on."""
    waiter = _core.Waiter()
    got = []

    def wait():
        try:
            got.append(waiter.wait(30))
        except RuntimeError:
            got.append("refused")

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    waiter.set()
    for thread in threads:
        thread.join()
    assert got in (["refused", True], [True, True])


# -- timeouts and cancellation


def test_expiry_in_the_cleanup_of_a_cancellation(run):
    """The task's cancellation came out as TimeoutError."""

    async def main():
        def sync():
            with timeout(0.01):
                try:
                    greenletio.sleep(3600)
                finally:
                    greenletio.sleep(3600)

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_expiry_after_an_asyncio_timeout_was_handled(run):
    """A cancellation that is over does not keep the scope from its TimeoutError."""
    if sys.version_info < (3, 11):
        pytest.skip("asyncio.timeout needs Python 3.11")

    async def short():
        async with asyncio.timeout(0.001):
            await asyncio.sleep(3600)

    def sync():
        with pytest.raises(TimeoutError) as info:
            with timeout(0.02):
                with pytest.raises(TimeoutError):
                    await_(short())
                greenletio.sleep(3600)
        assert type(info.value) is TimeoutError

    run(async_(sync)())


@pytest.mark.parametrize("inner", [0.005, 0.02, 0.03])
def test_expiry_in_the_same_turn_as_an_asyncio_timeout(run, inner):
    """The inner one does not take the scope's cancellation for its own."""
    if sys.version_info < (3, 11):
        pytest.skip("asyncio.timeout needs Python 3.11")

    async def both():
        async with asyncio.timeout(inner):
            asyncio.get_running_loop().call_soon(time.sleep, 0.05)
            await asyncio.sleep(3600)

    def sync():
        with pytest.raises(TimeoutError):
            with timeout(0.02) as scope:
                with contextlib.suppress(TimeoutError):
                    await_(both())
                greenletio.sleep(3)
        assert scope.expired
        return asyncio.current_task().cancelling()

    assert run(async_(sync)()) == 0


def test_timeout_in_the_cleanup_of_a_cancellation(run):
    """A scope that begins after the cancellation is as good as any."""

    async def main():
        def sync():
            try:
                greenletio.sleep(3600)
            finally:
                with pytest.raises(TimeoutError):
                    with timeout(0.001):
                        greenletio.sleep(3600)

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_an_outer_scope_expires_after_a_swallowed_inner_one(run):
    """While a future was awaited, the inner one was taken for the one that had expired."""

    def sync():
        with pytest.raises(TimeoutError):
            with timeout(0.3):
                with pytest.raises(asyncio.CancelledError):
                    with timeout(0.001):
                        try:
                            greenletio.sleep(3600)
                        except asyncio.CancelledError:
                            pass
                        await_(asyncio.sleep(3600))
                raise asyncio.CancelledError

    run(async_(sync)())


def test_cancelled_when_both_the_limit_and_the_future_are_there(run):
    """The cancellation was dropped."""

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def sync():
            with timeout(0.01):
                await_(future)
                return "went on"

        def both():
            greenletio.sleep(0.005)
            task.cancel()
            if not future.done():
                future.set_result(None)

        other = asyncio.ensure_future(async_(both)())
        task = asyncio.ensure_future(async_(sync)())
        await settle()
        spin(0.02)  # both are due: they end in one turn, the one that meddles first
        await other
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_rescheduled_when_it_has_fired_already(run):
    """The wait returned as if its own time, which has no end, were over."""

    async def main():
        waiter = _core.Waiter()
        limit = timeout(0.01)
        refused = []

        def meddler():
            greenletio.sleep(0.005)
            try:
                limit.reschedule(None)
            except RuntimeError:
                refused.append(True)

        def sync():
            with limit:
                return waiter.wait()

        other = asyncio.ensure_future(async_(meddler)())
        task = asyncio.ensure_future(async_(sync)())
        await settle()
        spin(0.02)  # both are due: they end in one turn, the meddler first
        await other
        await settle()
        if refused:
            with pytest.raises(TimeoutError):
                await task
        else:
            waiter.set()
            assert await task is True

    run(main())


def test_a_scope_that_is_left_by_somebody_else(run):
    """Its timer still ended the wait, as a result that no wait may have."""

    async def main():
        waiter = _core.Waiter()
        limit = timeout(0.2)

        def sync():
            limit.__enter__()
            return waiter.wait()

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        limit.__exit__(None, None, None)
        await asyncio.sleep(0.3)
        assert not task.done()
        waiter.set()
        assert await task is True

    run(main())


# -- driven by hand, without a loop


def test_timeout_in_a_call_that_is_driven_by_hand():
    """Plain waits looked at the thread's scopes only."""

    def sync():
        with pytest.raises(TimeoutError):
            with timeout(0.01):
                greenletio.sleep(30)
        with pytest.raises(TimeoutError):
            with timeout(0.01):
                _core.Waiter().wait(30)

    start = time.monotonic()
    with pytest.raises(StopIteration):
        async_(sync)().send(None)
    assert time.monotonic() - start < 20


def test_await_a_waiter_in_plain_code():
    waiter = _core.Waiter()
    timer = threading.Timer(0.01, waiter.set, ["result"])
    timer.start()
    assert await_(waiter) == "result"
    timer.join()


def test_a_plain_wait_in_a_signal_handler():
    """It took the wake-up of the wait that it interrupted."""
    outer, inner = _core.Waiter(), _core.Waiter()

    def handler(*_):
        threading.Timer(0.01, outer.set).start()
        threading.Timer(0.05, inner.set).start()
        assert inner.wait(60)

    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        start = time.monotonic()
        assert outer.wait(60)
        assert time.monotonic() - start < 30  # against a hang, not a measure
    finally:
        signal.signal(signal.SIGALRM, old)


# -- shield


def test_shield_holds_for_sleep_zero_and_await(run):
    async def main():
        log = []

        def sync():
            _core.shield(True)
            try:
                log.append("in")
                await_(asyncio.sleep(0.01))
                log.append("awaited")
                greenletio.sleep(0.001)
                asyncio.current_task().cancel()  # arrives at the next wait
                greenletio.sleep(0)
                log.append("slept")
                asyncio.current_task().cancel()
                await_(asyncio.sleep(0))
                log.append("yielded")
            finally:
                kept = _core.shield(False)
            log.append(type(kept))
            raise kept

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["in", "awaited", "slept", "yielded", asyncio.CancelledError]

    run(main())


def test_shield_turned_off_once_too_often(run):
    def sync():
        _core.shield(False)
        with pytest.raises(TimeoutError):
            with timeout(0.001):
                greenletio.sleep(1)

    run(async_(sync)())


# -- switches and throws that others make


def test_a_task_goes_on_after_a_throw_into_its_greenlet(run):
    """Its future was never told, so the task waited for ever."""

    async def main():
        def sync():
            try:
                _core.Waiter().wait()
            except KeyError:
                return "thrown"

        call = async_(sync)()
        task = asyncio.ensure_future(call)
        await settle()
        call.greenlet.throw(KeyError)
        assert await asyncio.wait_for(task, 5) == "thrown"

    run(main())


def test_a_switch_to_the_driver_leaks_nothing(run, aflat):
    async def once():
        def sync():
            main = greenlet.getcurrent()
            while main.parent is not None:
                main = main.parent
            main.switch()

        call = async_(sync)()
        with pytest.raises(RuntimeError):
            call.send(None)
        with pytest.raises((RuntimeError, StopIteration)):
            call.send(None)
            call.send(None)

    run(aflat(once))


def test_an_exception_that_could_not_be_thrown_comes_at_the_next_wait(run):
    """The greenlet was elsewhere, by a switch of its own; what was thrown got lost."""

    async def main():
        def sync():
            main = greenlet.getcurrent()
            while main.parent is not None:
                main = main.parent
            main.switch()
            with pytest.raises(KeyError):
                greenletio.sleep(0.001)
            return "got it"

        call = async_(sync)()
        with pytest.raises(RuntimeError):
            call.send(None)
        with pytest.raises(StopIteration) as info:
            call.throw(KeyError)
        assert info.value.value == "got it"

    run(main())


# -- fds


def test_ready_but_taken_by_another(run, pair):
    """wait_fds answered [], as if its time were over."""

    async def main():
        a, b = pair

        def take():
            io.wait_readable(a)
            return a.recv(10)

        def look():
            return _core.wait_fds([(a.fileno(), _core.READ), (b.fileno(), _core.READ)])

        first = asyncio.ensure_future(async_(take)())
        second = asyncio.ensure_future(async_(look)())
        await settle()
        b.send(b"x")
        assert await first == b"x"
        assert await second == [(a.fileno(), _core.READ)]

    run(main())


# -- garbage


def test_a_wrapper_in_a_cycle_is_collected():

    def fn():
        pass

    wrapped = async_(fn)
    fn.me = wrapped
    ref = weakref.ref(wrapped)
    del fn, wrapped
    gc.collect()
    assert ref() is None


# -- trio


def test_timeout_around_an_awaitable_object_in_trio():
    trio = need("trio")

    class Awaitable:
        def __await__(self):
            return trio.sleep(0.001).__await__()

    class Endless:
        def __await__(self):
            return trio.sleep_forever().__await__()

    def sync():
        with timeout(5):
            await_(Awaitable())
        with pytest.raises(TimeoutError):
            with timeout(0.01):
                await_(Endless())

    trio.run(async_(sync))


def test_shield_in_trio():
    trio = need("trio")
    log = []

    def sync():
        _core.shield(True)
        try:
            greenletio.sleep(0.05)
            log.append("slept")
        finally:
            _core.shield(False)
        greenletio.sleep(3600)
        log.append("never")

    async def main():
        with trio.move_on_after(0.01):
            await async_(sync)()

    trio.run(main)
    assert log == ["slept"]


# -- Python code that runs where it is least expected


def test_callbacks_of_a_waiter_that_come_and_go():
    """After the last of two was removed, one that was added later was never called."""

    class Unequal:
        def __eq__(self, other):
            raise ValueError

        __hash__ = None

        def __call__(self, _):
            log.append("unequal")

    async def main():
        waiter = _core.Waiter()
        first, second, third = (lambda _, i=i: log.append(i) for i in range(3))
        waiter.add_done_callback(first)
        waiter.add_done_callback(second)
        assert waiter.remove_done_callback(first) == waiter.remove_done_callback(second) == 1
        waiter.add_done_callback(third)
        waiter.set()
        await settle()
        assert log == [2]

        log.clear()
        waiter = _core.Waiter()
        for callback in (first, first, Unequal(), third):
            waiter.add_done_callback(callback)
        with pytest.raises(ValueError):
            waiter.remove_done_callback(first)
        waiter.set()
        await settle()
        assert log == ["unequal", 2]

    log = []
    asyncio.run(main())


def test_a_callback_that_is_removed_while_it_is_compared():
    """The one behind it was removed, too, and never called."""

    class Leaving:
        def __eq__(self, other):
            return other is print and waiter.remove_done_callback(self) == 1

        __hash__ = None

    async def main():
        first, last = (lambda _, i=i: log.append(i) for i in range(2))
        for callback in (first, Leaving(), last):
            waiter.add_done_callback(callback)
        waiter.remove_done_callback(print)
        waiter.set()
        await settle()

    log, waiter = [], _core.Waiter()
    asyncio.run(main())
    assert log == [0, 1]


@pytest.mark.parametrize("allocations", range(6))
def test_a_waiter_that_ends_while_a_callback_is_added(allocations):
    """A collection ended it when there was one callback: the second was never called."""

    async def main():
        waiter, context = _core.Waiter(), contextvars.copy_context()
        waiter.add_done_callback(log.append)
        with collecting(allocations, waiter.set):
            waiter.add_done_callback(log.append, context=context)
        waiter.set()
        await settle()
        assert log == [waiter, waiter]

    log = []
    asyncio.run(main())


def test_a_scope_that_is_left_as_it_expires(monkeypatch):
    """current_task() is asked then, and may be anybody's: the job was gone when it came back."""

    def current_task(*args):
        if inside:
            inside.pop().__exit__(None, None, None)
        return real(*args)

    def sync():
        inside.append(timeout(0.01).__enter__())
        with pytest.raises(asyncio.CancelledError):
            greenletio.sleep(60)
        assert not inside

    inside, real = [], asyncio.current_task
    monkeypatch.setattr(asyncio, "current_task", current_task)
    sync()
    asyncio.run(async_(sync)())


def test_a_number_that_is_no_file(run):
    """Room was made for every smaller one: gigabytes for the largest."""

    def sync():
        with pytest.raises(OSError, match="Bad file descriptor"):
            _core.wait_fd(2**22, _core.READ)

    tracemalloc.start()
    try:
        run(async_(sync)())
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_an_fd_closed_by_the_one_that_is_told_of_another():
    """The wait had ended before it was registered in full: its event was dispatched for ever."""

    class Loop(asyncio.SelectorEventLoop):
        def call_soon(self, callback, *args, **kwargs):
            if closing:
                _core.fd_closing(closing.pop())
            return super().call_soon(callback, *args, **kwargs)

    closing, pairs = [], [socket.socketpair() for _ in range(3)]

    def old():
        with pytest.raises(OSError):
            _core.wait_fd(pairs[0][0].fileno(), _core.READ)

    def new():
        number = pairs[0][0].fileno()
        os.dup2(pairs[1][0].fileno(), number)  # the number is another file's now
        closing.append(pairs[2][0].fileno())
        with pytest.raises(OSError):
            _core.wait_fds([(pairs[2][0].fileno(), _core.READ), (number, _core.READ)])
        pairs[1][1].send(b"x")

    async def main():
        task = asyncio.ensure_future(async_(old)())
        await settle()
        await async_(new)()
        await task
        await asyncio.sleep(0.01)
        assert await async_(_core.wait_fd)(pairs[1][0].fileno(), _core.READ) == _core.READ

    with contextlib.closing(Loop()) as loop:
        loop.run_until_complete(main())
    for pair in pairs:
        for sock in pair:
            sock.close()
