"""Waiter: the one-shot event under everything, and its future protocol."""

import asyncio
import contextvars
import gc
import threading
import time

import pytest
from fix_progress import settle

from greenletio import _core, async_, await_, sleep, spawn
from greenletio._core import Waiter

pytestmark = pytest.mark.leaks


def test_set_before_the_wait(run):
    async def main():
        waiter = Waiter()
        assert not waiter.done()
        assert waiter.set("value") is True
        assert waiter.done() and not waiter.cancelled()
        assert waiter.result() == "value" and waiter.exception() is None
        assert await waiter == "value"
        assert await async_(waiter.wait)() is True
        assert await async_(waiter.wait)(0) is True

    run(main())


def test_set_is_once():
    waiter = Waiter()
    assert waiter.set(1) is True
    assert waiter.set(2) is False
    assert waiter.set_exception(ValueError()) is False
    assert waiter.cancel() is False
    assert waiter.result() == 1


def test_set_without_a_value():
    waiter = Waiter()
    waiter.set()
    assert waiter.result() is None


def test_set_exception(run):
    async def main():
        error = ValueError("v")
        waiter = Waiter()
        assert waiter.set_exception(error) is True
        assert waiter.exception() is error
        for wait in (waiter.result, lambda: await_(waiter)):
            with pytest.raises(ValueError) as info:
                await async_(wait)()
            assert info.value is error
        with pytest.raises(ValueError):
            await waiter

    run(main())


@pytest.mark.parametrize("bad", [1, "x", None])
def test_set_exception_takes_exceptions_only(bad):
    waiter = Waiter()
    with pytest.raises(TypeError):
        waiter.set_exception(bad)
    assert not waiter.done()


def test_stop_iteration_cannot_be_set():
    """It would end whoever awaits it with a value."""
    with pytest.raises(TypeError):
        Waiter().set_exception(StopIteration(1))


def test_not_done_yet():
    waiter = Waiter()
    with pytest.raises(asyncio.InvalidStateError):
        waiter.result()
    with pytest.raises(asyncio.InvalidStateError):
        waiter.exception()


def test_cancelled(run):
    async def main():
        waiter = Waiter()
        assert waiter.cancel("why") is True
        assert waiter.cancel() is False
        assert waiter.done() and waiter.cancelled()
        assert waiter.set(1) is False
        for look in (waiter.result, waiter.exception):
            with pytest.raises(asyncio.CancelledError):
                look()
        with pytest.raises(asyncio.CancelledError, match="why"):
            await waiter

    run(main())


@pytest.mark.parametrize("value", [None, (1, 2), StopIteration(1), ValueError()])
def test_any_value(run, value):
    async def main():
        waiter = Waiter()
        loop = asyncio.get_running_loop()
        loop.call_soon(waiter.set, value)
        assert await waiter is value
        other = Waiter()
        loop.call_soon(other.set, value)
        assert await async_(await_)(other) is value

    run(main())


# -- waking


def test_wakes_a_task_and_a_greenlet(run):
    async def main():
        waiters = [Waiter() for _ in range(3)]
        tasks = [
            asyncio.ensure_future(async_(waiters[0].wait)()),
            asyncio.ensure_future(async_(await_)(waiters[1])),
            asyncio.ensure_future(await_it(waiters[2])),
        ]
        await settle()
        for w in waiters:
            w.set("v")
        assert await asyncio.gather(*tasks) == [True, "v", "v"]

    async def await_it(w):
        return await w

    run(main())


def test_in_its_own_context(run):
    var = contextvars.ContextVar("var")

    async def main():
        waiter = Waiter()

        def sync():
            var.set("waiting")
            waiter.wait()
            return var.get()

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        var.set("setting")
        contextvars.Context().run(waiter.set)
        assert await task == "waiting"

    run(main())


def test_from_a_thread(run):
    async def main():
        for make in (
            lambda w: async_(w.wait)(),
            lambda w: async_(await_)(w),
            lambda w: await_it(w),
        ):
            waiter = Waiter()
            task = asyncio.ensure_future(make(waiter))
            await settle()
            thread = threading.Thread(target=waiter.set, args=("v",))
            thread.start()
            assert await asyncio.wait_for(task, 30) in (True, "v")
            thread.join()

    async def await_it(w):
        return await w

    run(main())


def test_a_loop_asleep_is_woken_by_a_thread(run):
    """Nothing else is going on in the loop: set() must interrupt its poll."""

    async def main():
        waiter = Waiter()

        def later():
            time.sleep(0.02)
            waiter.set()

        thread = threading.Thread(target=later)
        thread.start()
        assert await asyncio.wait_for(async_(waiter.wait)(), 30) is True
        thread.join()

    run(main())


def test_exception_and_cancel_from_a_thread(run):
    async def main():
        waiter = Waiter()
        task = asyncio.ensure_future(async_(await_)(waiter))
        await settle()
        thread = threading.Thread(target=waiter.set_exception, args=(KeyError("k"),))
        thread.start()
        with pytest.raises(KeyError):
            await asyncio.wait_for(task, 30)
        thread.join()

    run(main())


def test_a_plain_wait_woken_by_a_thread():
    waiter = Waiter()
    thread = threading.Timer(0.01, waiter.set)
    thread.start()
    assert waiter.wait(60) is True
    thread.join()
    waiter = Waiter()
    thread = threading.Timer(0.01, waiter.set)
    thread.start()
    assert waiter.wait() is True
    thread.join()


def test_a_plain_wait_woken_by_a_green():
    waiter = Waiter()
    spawn(lambda: (sleep(0), waiter.set("v")))
    assert waiter.wait(60) is True
    assert waiter.result() == "v"


def test_many_threads_set_one_waiter(run):
    async def main():
        for _ in range(30):
            waiter = Waiter()
            wins = []
            barrier = threading.Barrier(4)

            def setter(n, waiter=waiter, wins=wins, barrier=barrier):
                barrier.wait()
                if waiter.set(n):
                    wins.append(n)

            task = asyncio.ensure_future(async_(await_)(waiter))
            threads = [threading.Thread(target=setter, args=(n,)) for n in range(4)]
            for t in threads:
                t.start()
            got = await task
            for t in threads:
                t.join()
            assert wins == [got]

    run(main())


def test_set_races_timeout_from_a_thread(run):
    """True exactly if it was set in time, and nothing is left over either way."""

    async def main():
        def sync():
            hits = 0
            for i in range(100):
                waiter = Waiter()
                thread = threading.Timer(0.0005 * (i % 3), waiter.set)
                thread.start()
                if waiter.wait(0.0007):
                    hits += 1
                    assert waiter.done()
                thread.join()
                assert waiter.done()
                sleep(0)
            return hits

        await async_(sync)()

    run(main())


# -- timeouts


@pytest.mark.parametrize("seconds", [0, 0.001, -1])
@pytest.mark.parametrize("place", ["green", "plain"])
def test_wait_times_out(run, seconds, place):
    """A waiter that timed out is used up: who sets it later learns that nobody took it."""
    waiter = Waiter()
    wait = waiter.wait if place == "plain" else lambda s: run(async_(waiter.wait)(s))
    assert wait(seconds) is False
    assert waiter.set("late") is False
    assert wait(seconds) is False
    done = Waiter()
    done.set()
    wait = done.wait if place == "plain" else lambda s: run(async_(done.wait)(s))
    assert wait(seconds) is True


def test_a_hand_over_is_taken_or_given_back(run):
    """Every set() that says True has been seen by its waiter, whatever it raced with."""

    async def main():
        taken = given = 0

        def taker(waiter):
            return waiter.wait(0.0005)

        for i in range(100):
            waiter = Waiter()
            task = asyncio.ensure_future(async_(taker)(waiter))
            if i % 2:
                await asyncio.sleep(0.0005)
            else:
                await settle()
            given += waiter.set()
            taken += await task
        assert given == taken

    run(main())


def test_wait_again_after_a_cancellation(run):
    async def main():
        waiter = Waiter()
        first = asyncio.ensure_future(async_(waiter.wait)())
        await settle()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        if not waiter.done():
            second = asyncio.ensure_future(async_(waiter.wait)())
            await settle()
            waiter.set()
            assert await second is True

    run(main())


def test_two_at_once_on_one_waiter(run):
    """One waits; a second one is refused at once or served too, but never forgotten."""

    async def main():
        waiter = Waiter()
        tasks = [asyncio.ensure_future(async_(waiter.wait)(30)) for _ in range(2)]
        await settle()
        waiter.set()
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert got[0] is True
        assert got[1] is True or isinstance(got[1], RuntimeError)

    run(main())


def test_two_at_once_with_different_limits(run):
    """That the second gives up is nothing to the first."""

    async def main():
        waiter = Waiter()
        first = asyncio.ensure_future(async_(waiter.wait)(30))
        await settle()
        second = asyncio.ensure_future(async_(waiter.wait)(0.001))
        await asyncio.wait([second])
        if second.exception() is not None:
            assert isinstance(second.exception(), RuntimeError)
        assert waiter.set() is True
        assert await asyncio.wait_for(first, 5) is True

    run(main())


def test_waiting_in_two_loops_or_threads(run):
    """Whichever thread waits first owns it; another is refused or served, never crashed."""
    waiter = Waiter()

    async def main():
        task = asyncio.ensure_future(async_(waiter.wait)(30))
        await settle()
        loop = asyncio.get_running_loop()
        try:
            got = await loop.run_in_executor(None, waiter.wait, 0.001)
        except RuntimeError:
            got = False
        assert got is False
        waiter.set()
        assert await task is True

    run(main())


# -- the future protocol


def test_callbacks(run):
    async def main():
        log = []
        waiter = Waiter()
        var = contextvars.ContextVar("var", default="none")
        context = contextvars.copy_context()
        context.run(var.set, "given")

        def callback(arg):
            log.append((arg, var.get()))

        waiter.add_done_callback(callback, context=context)
        waiter.add_done_callback(callback)
        waiter.add_done_callback(log.append)
        assert waiter.remove_done_callback(log.append) == 1
        assert waiter.remove_done_callback(log.append) == 0
        waiter.set()
        await settle()
        assert log == [(waiter, "given"), (waiter, "none")]
        waiter.add_done_callback(callback)
        await settle()
        assert len(log) == 3

    run(main())


def test_callback_removed_twice_added(run):
    async def main():
        waiter = Waiter()
        for _ in range(3):
            waiter.add_done_callback(print)
        assert waiter.remove_done_callback(print) == 3

    run(main())


def test_arguments_of_the_protocol():
    waiter = Waiter()
    for wrong in (((), {"message": "m"}), (("m",), {"msg": "m"}), (("m", "n"), {})):
        with pytest.raises(TypeError, match="one argument, msg"):
            waiter.cancel(*wrong[0], **wrong[1])
    for wrong in (((), {}), ((print,), {"ctx": None}), ((print, None), {})):
        with pytest.raises(TypeError, match="a function and context="):
            waiter.add_done_callback(*wrong[0], **wrong[1])
    assert waiter.cancel(msg="m") is True
    with pytest.raises(asyncio.CancelledError, match="^m$"):
        waiter.result()


def test_asyncio_accepts_it(run):
    async def main():
        loop = asyncio.get_running_loop()
        for use in (
            lambda w: asyncio.wait_for(await_it(w), 30),
            lambda w: asyncio.gather(await_it(w)),
            lambda w: asyncio.shield(await_it(w)),
        ):
            waiter = Waiter()
            loop.call_soon(waiter.set, 5)
            assert await use(waiter) in (5, [5])

    async def await_it(w):
        return await w

    run(main())


def test_cancel_by_the_task_cancels_the_waiter(run):
    """The Task protocol: what a task is parked on is cancelled with it."""

    async def main():
        waiter = Waiter()
        task = asyncio.ensure_future(async_(await_)(waiter))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiter.cancelled()
        assert waiter.set() is False

    run(main())


def test_get_loop(run):
    async def main():
        waiter = Waiter()
        assert waiter.get_loop() is asyncio.get_running_loop()

    run(main())


def test_what_a_task_looks_up_by_any_name():
    """A task's own strings are found directly, equal ones along the type: both mean the same."""
    waiter = Waiter()
    for name in ("_asyncio_future_blocking", "add_done_callback", "get_loop"):
        equal = "".join(list(name))
        assert equal is not name
        assert getattr(waiter, equal) == getattr(waiter, name)
        waiter._asyncio_future_blocking = True
        setattr(waiter, "".join("_asyncio_future_blocking"), False)
        assert waiter._asyncio_future_blocking is False
    assert waiter.get_loop.__self__ is waiter
    with pytest.raises(AttributeError):
        waiter.another = 1


def test_await_protocol_by_hand():
    waiter = Waiter()
    it = waiter.__await__()
    assert iter(it) is it
    waiter.set(5)
    with pytest.raises(StopIteration) as info:
        next(it)
    assert info.value.value == 5


def test_garbage(run, aflat):
    async def once():
        waiter = Waiter()
        waiter.add_done_callback(lambda w: waiter)
        cycle = Waiter()
        cycle.set(cycle)
        task = asyncio.ensure_future(async_(waiter.wait)())
        await asyncio.sleep(0)
        waiter.set()
        await task

    run(aflat(once, repeat=100))


def test_dropped_while_waited_on(run):
    """The wait keeps it alive; a wait nobody can end ends with the waiting greenlet."""
    log = []

    async def main():
        def sync():
            try:
                Waiter().wait()
            finally:
                log.append("finally")

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        gc.collect()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert log == ["finally"]
    assert list(_core.calls()) == []
