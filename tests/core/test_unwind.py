"""Greenlets that are never finished: their finally blocks run, without a crash or a leak."""

import asyncio
import gc
import sys
import threading
import types
import weakref

import greenlet
import pytest

import greenletio
from greenletio import _core, async_, await_, io

pytestmark = pytest.mark.leaks


@types.coroutine
def trap(value=None):
    return (yield value)


class Local:
    """Something on the stack whose life can be watched."""


def suspended(log, body=None):
    """An AsyncCall suspended by hand; log hears of its end."""

    def sync():
        local = Local()
        log.append(weakref.ref(local))
        try:
            await_(trap("here"))
        except BaseException as e:
            log.append(type(e))
            raise
        finally:
            if body is not None:
                body()
            log.append("finally")

    call = async_(sync)()
    assert call.send(None) == "here"
    return call


@pytest.fixture
def unraisable(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))
    return seen


def ended(log):
    return log[-1] == "finally" and not issubclass(log[1], Exception) and log[0]() is None


def test_dropped(unraisable):
    log = []
    call = suspended(log)
    del call
    assert ended(log)
    assert unraisable == []


def test_dropped_in_a_cycle(unraisable):
    log = []
    cycle = [suspended(log)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert ended(log)
    assert unraisable == []


def test_dropped_before_it_started(unraisable):
    call = async_(Local)()
    with pytest.warns(RuntimeWarning, match="never awaited"):
        del call
        gc.collect()
    assert unraisable == []


def test_dropped_from_within_another_greenlet(unraisable, run):
    async def main():
        log = []
        calls = [suspended(log)]

        def sync():
            calls.clear()
            return ended(log)

        assert await async_(sync)()

    run(main())
    assert unraisable == []


def test_nested_bridges_are_unwound_from_the_inside(unraisable):
    log = []

    def level(n):
        try:
            if n == 0:
                await_(trap())
            await_(hop(n - 1))
        finally:
            log.append(n)

    async def hop(n):
        try:
            await async_(level)(n)
        finally:
            log.append(f"hop {n}")

    call = async_(level)(3)
    call.send(None)
    del call
    gc.collect()
    assert log == [0, "hop 0", 1, "hop 1", 2, "hop 2", 3]
    assert unraisable == []


def test_a_wait_in_finally_while_unwound_is_an_error_there_not_a_hang(unraisable):
    errors = []

    def body():
        for wait in (lambda: await_(trap()), lambda: greenletio.sleep(3600)):
            try:
                wait()
            except BaseException as e:
                errors.append(e)

    log = []
    call = suspended(log, body)
    del call
    gc.collect()
    assert log[-1] == "finally"
    assert len(errors) == 2


@pytest.mark.leaks(False)  # what it catches, it keeps
def test_an_error_in_finally_while_unwound_is_reported(unraisable):
    def body():
        raise LookupError("in finally")

    log = []
    call = suspended(log, body)
    del call
    gc.collect()
    assert [type(e) for e in unraisable] == [LookupError]


def test_resurrected_by_finally(unraisable):
    """Code that runs while the call is unwound may hand the call on; it is then just finished."""
    kept = []

    def sync():
        try:
            await_(trap())
        finally:
            kept.append(_core.current_call())

    call = async_(sync)()
    call.send(None)
    del call
    gc.collect()
    assert len(kept) == 1
    for call in kept:
        if call is not None:
            assert not call.cr_suspended
            with pytest.raises((RuntimeError, ValueError)):
                call.send(None)
    kept.clear()
    del call
    gc.collect()


def test_unwound_thousands_of_times_without_a_leak(flat):
    flat(lambda: suspended([]), repeat=100)


def test_recycled_after_unwinding():
    """Greenlets that were unwound serve the next jobs as good as new."""
    for _ in range(50):
        calls = [suspended([]) for _ in range(10)]
        del calls
        call = async_(lambda: await_(trap("x")))()
        assert call.send(None) == "x"
        with pytest.raises(StopIteration) as info:
            call.send(5)
        assert info.value.value == 5


# -- a loop that goes away


WAITS = {
    "future": lambda pair: await_(asyncio.get_running_loop().create_future()),
    "sleep": lambda pair: greenletio.sleep(3600),
    "fd": lambda pair: io.wait_readable(pair[0]),
    "waiter": lambda pair: _core.Waiter().wait(),
}


@pytest.fixture(params=WAITS)
def wait(request, pair):
    fn = WAITS[request.param]
    return lambda: fn(pair)


def test_loop_closed_under_a_task(make_loop, wait, caplog, unraisable):
    log = []

    def sync():
        try:
            wait()
        finally:
            log.append("finally")

    loop = make_loop()
    task = loop.create_task(async_(sync)())
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    assert not task.done()
    loop.close()
    del task
    gc.collect()
    assert log == ["finally"]
    del loop
    gc.collect()
    assert unraisable == []
    assert list(_core.calls()) == []


def test_loop_closed_under_a_green(make_loop, wait, caplog, unraisable):
    log = []

    def sync():
        try:
            wait()
        finally:
            log.append("finally")

    async def main():
        greenletio.spawn(sync)
        for _ in range(3):
            await asyncio.sleep(0)

    loop = make_loop()
    loop.run_until_complete(main())
    loop.close()
    gc.collect()
    del loop
    gc.collect()
    assert log == ["finally"]
    assert unraisable == []


def test_asyncio_run_cancels_what_is_left(wait):
    log = []

    def sync():
        try:
            wait()
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        finally:
            greenletio.sleep(0)
            log.append("finally")

    async def main():
        task = asyncio.ensure_future(async_(sync)())
        await asyncio.sleep(0)
        return weakref.ref(task)

    asyncio.run(main())
    assert log == ["cancelled", "finally"]


def test_many_loops_one_after_another(make_loop, pair):
    """What a loop needs from us goes with it."""
    import os

    a, _ = pair

    def once():
        loop = make_loop()
        loop.run_until_complete(async_(io.wait_readable)(a, timeout=0.001))
        loop.run_until_complete(async_(greenletio.sleep)(0))
        loop.close()

    for _ in range(5):
        once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_loop_stopped_and_run_again(make_loop, wait):
    """stop() is not the end: what waits is still waiting when the loop goes on."""
    waiter = _core.Waiter()

    def sync():
        return await_(waiter)

    loop = make_loop()
    task = loop.create_task(async_(sync)())
    other = loop.create_task(async_(wait)())
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not task.done()
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    loop.call_soon(waiter.set, "on")
    assert loop.run_until_complete(task) == "on"
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(other)
    loop.close()


# -- threads


def test_dropped_from_another_thread(unraisable):
    """It is unwound in its own thread, sooner or later, and never in the wrong one."""
    log = []
    ran_in = []
    box = [suspended(log, lambda: ran_in.append(threading.get_ident()))]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    for _ in range(3):
        gc.collect()
        asyncio.run(async_(int)())
        greenlet.greenlet(int).switch()
    assert log[-1] == "finally"
    assert ran_in == [threading.get_ident()]
    assert unraisable == []


def test_the_thread_ends_first(unraisable):
    log = []
    box = []
    thread = threading.Thread(target=lambda: box.append(suspended(log)))
    thread.start()
    thread.join()
    call = box.pop()
    with pytest.raises(RuntimeError):
        call.send(None)
    del call
    gc.collect()
    asyncio.run(async_(int)())


def test_threads_come_and_go_without_a_leak(flat):
    def work():
        async def main():
            await asyncio.gather(*[async_(greenletio.sleep)(0) for _ in range(3)])

        asyncio.run(main())
        greenletio.sleep(0)
        greenletio.spawn(int).get()

    def once():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    flat(once, repeat=60)


# -- plain programs


def test_green_of_a_plain_program_dropped(unraisable, caplog):
    log = []

    def sync():
        try:
            greenletio.sleep(3600)
        finally:
            log.append("finally")

    def in_thread():
        greenletio.spawn(sync)
        greenletio.sleep(0)
        greenletio.sleep(0)
        assert log == []

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    gc.collect()
    # the thread's own loop ended with the thread
    assert log == ["finally"]
