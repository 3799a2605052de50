"""Cancellation: sync code under async_ is cancelled as a coroutine is."""

import asyncio
import sys

import pytest
from fix_progress import settle

import greenletio
from greenletio import _core, async_, await_, io

pytestmark = pytest.mark.leaks

WAITS = {
    "await_future": lambda pair: await_(asyncio.get_running_loop().create_future()),
    "await_coroutine": lambda pair: await_(asyncio.Event().wait()),
    "await_nested": lambda pair: await_(async_(lambda: await_(asyncio.Event().wait()))()),
    "sleep": lambda pair: greenletio.sleep(3600),
    "wait_readable": lambda pair: io.wait_readable(pair[0]),
    "wait_readable_timeout": lambda pair: io.wait_readable(pair[0], timeout=3600),
    "wait_any": lambda pair: io.wait_any([pair[0], pair[1]], [], timeout=3600),
    "waiter": lambda pair: _core.Waiter().wait(),
    "waiter_timeout": lambda pair: _core.Waiter().wait(3600),
    "await_waiter": lambda pair: await_(_core.Waiter()),
    "join": lambda pair: greenletio.spawn(greenletio.sleep, 3600).join(),
    "get_timeout": lambda pair: greenletio.spawn(greenletio.sleep, 3600).get(timeout=3600),
}


@pytest.fixture(params=WAITS)
def wait(request, pair):
    fn = WAITS[request.param]
    return lambda: fn(pair)


async def started(fn, *args):
    task = asyncio.ensure_future(async_(fn)(*args))
    await settle()
    return task


def test_cancelled_error_is_raised_at_the_wait(run, wait):
    async def main():
        log = []

        def sync():
            try:
                wait()
            except asyncio.CancelledError:
                log.append("cancelled")
                raise
            finally:
                log.append("finally")

        task = await started(sync)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert log == ["cancelled", "finally"]

    run(main())


def test_the_message_is_kept(run, wait):
    async def main():
        got = []

        def sync():
            try:
                wait()
            except asyncio.CancelledError as e:
                got.append(e.args)
                raise

        task = await started(sync)
        task.cancel("why")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert got == [("why",)]

    run(main())


def test_finally_may_wait_again(run, wait):
    async def main():
        log = []

        def sync():
            try:
                wait()
            finally:
                await_(asyncio.sleep(0))
                greenletio.sleep(0.001)
                greenletio.spawn(greenletio.sleep, 0).get()
                log.append("cleaned up")

        task = await started(sync)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["cleaned up"]

    run(main())


def test_swallowed_as_a_coroutine_swallows_it(run, wait):
    async def main():
        def sync():
            try:
                wait()
            except asyncio.CancelledError:
                pass
            await_(asyncio.sleep(0))
            greenletio.sleep(0)
            return "went on"

        task = await started(sync)
        task.cancel()
        assert await task == "went on"
        assert not task.cancelled()
        if sys.version_info >= (3, 11):
            assert task.cancelling() == 1

    run(main())


def test_cancelled_again_in_finally(run, wait):
    async def main():
        log = []

        def sync():
            try:
                wait()
            finally:
                try:
                    wait()
                finally:
                    log.append("inner finally")

        task = await started(sync)
        task.cancel()
        await settle()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["inner finally"]

    run(main())


def test_replaced_by_another_exception(run, wait):
    async def main():
        def sync():
            try:
                wait()
            except asyncio.CancelledError:
                raise LookupError("instead") from None

        task = await started(sync)
        task.cancel()
        with pytest.raises(LookupError):
            await task

    run(main())


def test_nothing_is_left_registered(run, wait):
    async def main():
        task = await started(wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        own = asyncio.current_task()
        left = [t for t in asyncio.all_tasks() if t is not own]
        for t in left:  # a spawned sleeper goes on when its joiner is cancelled
            t.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert list(_core.calls()) == []

    run(main())


def test_cancelled_before_it_starts(run):
    async def main():
        ran = []
        task = asyncio.ensure_future(async_(ran.append)(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ran == []

    run(main())


def test_cancelled_by_itself_takes_effect_at_the_next_wait(run, wait):
    async def main():
        log = []

        def sync():
            asyncio.current_task().cancel()
            log.append("still here")
            wait()
            log.append("never")

        with pytest.raises(asyncio.CancelledError):
            await asyncio.ensure_future(async_(sync)())
        assert log == ["still here"]

    run(main())


def test_cancelled_by_itself_and_no_wait_comes(run):
    async def main():
        def sync():
            asyncio.current_task().cancel()
            return 1

        task = asyncio.ensure_future(async_(sync)())
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_cancel_of_what_is_awaited_is_seen_as_in_a_coroutine(run):
    async def main():
        inner = asyncio.ensure_future(asyncio.sleep(3600))

        def sync():
            try:
                await_(inner)
            except asyncio.CancelledError:
                return "inner only"

        task = await started(sync)
        inner.cancel()
        assert await task == "inner only"

    run(main())


def test_cancel_reaches_the_awaited_task(run):
    async def main():
        inner = asyncio.ensure_future(asyncio.sleep(3600))
        task = await started(await_, inner)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inner.cancelled()

    run(main())


def test_cancel_of_a_joiner_leaves_the_green_running(run):
    async def main():
        green = greenletio.spawn(greenletio.sleep, 3600)
        task = await started(green.join)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not green.ready
        green.cancel()
        assert green.join.__self__ is green
        await asyncio.gather(green.task, return_exceptions=True)

    run(main())


# -- set and cancel, in either order, before the loop runs again


@pytest.mark.parametrize("order", ["set cancel", "cancel set"])
def test_set_and_cancel_in_one_turn(run, order):
    """As for a future: the cancellation wins, and the value is not lost for others."""

    async def main():
        for make in (
            lambda w: async_(w.wait)(),
            lambda w: async_(lambda: await_(w))(),
            lambda w: waits(w),
        ):
            waiter = _core.Waiter()
            task = asyncio.ensure_future(make(waiter))
            await settle()
            for act in order.split():
                waiter.set("value") if act == "set" else task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def waits(w):
        return await w

    run(main())


def test_the_same_with_an_fd(run, pair):
    a, b = pair

    async def main():
        for order in ("set cancel", "cancel set"):
            task = await started(io.wait_readable, a)
            for act in order.split():
                b.send(b"x") if act == "set" else task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await async_(io.wait_readable)(a, timeout=30) is True
            a.recv(10)
            assert await async_(io.wait_readable)(a, timeout=0.001) is False

    run(main())


def test_cancel_and_immediately_wait_for_the_same_fd(run, pair):
    a, b = pair

    async def main():
        for _ in range(50):
            task = await started(io.wait_readable, a)
            task.cancel()
            again = asyncio.ensure_future(async_(io.wait_readable)(a, timeout=30))
            with pytest.raises(asyncio.CancelledError):
                await task
            await settle()
            assert not again.done()
            b.send(b"x")
            assert await again is True
            a.recv(1)

    run(main())


# -- throw and close at the wait


def test_exception_thrown_into_the_blocked_call(run, wait):
    """Whatever a driver throws is raised at the wait, and the wait is over."""

    async def main():
        def sync():
            with pytest.raises(KeyError, match="thrown"):
                wait()
            return "went on"

        class Driver:
            def __await__(self):
                call = async_(sync)()
                yielded = call.send(None)
                try:
                    while True:
                        # drop what it wants to wait for: throw instead
                        getattr(yielded, "cancel", int)()
                        yielded = call.throw(KeyError("thrown"))
                except StopIteration as e:
                    return e.value
                yield

        async def drive():
            return await Driver()

        assert await asyncio.ensure_future(drive()) == "went on"
        left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for t in left:
            t.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    run(main())


def test_close_at_the_wait(run, wait):
    async def main():
        log = []

        def sync():
            try:
                wait()
            finally:
                log.append("finally")

        call = async_(sync)()
        call.send(None)
        call.close()
        assert log == ["finally"]
        left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for t in left:
            t.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert list(_core.calls()) == []

    run(main())


# -- many


def test_every_one_of_many_is_cancelled(run, wait):
    async def main():
        ended = []

        def sync():
            try:
                wait()
            finally:
                ended.append(1)

        tasks = [asyncio.ensure_future(async_(sync)()) for _ in range(200)]
        await settle()
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(ended) == 200
        assert all(t.cancelled() for t in tasks)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="uncancel needs Python 3.11")
def test_uncancel(run):
    async def main():
        def sync():
            try:
                greenletio.sleep(3600)
            except asyncio.CancelledError:
                assert asyncio.current_task().uncancel() == 0
            greenletio.sleep(0)
            return "un-cancelled"

        task = await started(sync)
        task.cancel()
        assert await task == "un-cancelled"
        assert task.cancelling() == 0

    run(main())
