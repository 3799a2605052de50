"""greenletio.timeout: limits, nesting, and its races with cancellation and readiness."""

import asyncio
import sys
import time

import pytest
from fix_progress import settle

import greenletio
from greenletio import _core, async_, await_, io, timeout

pytestmark = pytest.mark.leaks


@pytest.fixture(params=["green", "plain"])
def call(request, run):
    """Call fn in green code under each loop, or in a plain program."""
    if request.param == "plain":
        return lambda fn: fn()
    return lambda fn: run(async_(fn)())


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_it_expires(call, pair):
    def sync():
        for wait in (
            lambda: greenletio.sleep(3600),
            lambda: io.wait_readable(pair[0]),
            lambda: io.wait_any([pair[0]], []),
            lambda: _core.Waiter().wait(),
            lambda: await_(asyncio.sleep(3600)),
            lambda: greenletio.spawn(greenletio.sleep, 0.5).join(),
        ):
            with pytest.raises(TimeoutError):
                with timeout(0.002) as limit:
                    wait()
            assert limit.expired

    call(sync)


def test_it_does_not_expire(call):
    def sync():
        with timeout(60) as limit:
            assert 0 < limit.remaining <= 60
            greenletio.sleep(0)
            await_(asyncio.sleep(0))
        assert not limit.expired
        greenletio.sleep(0.001)
        with timeout(None) as limit:
            assert limit.remaining is None
            greenletio.sleep(0)
        assert not limit.expired

    call(sync)


def test_cancelled_error_inside_timeout_error_outside(call):
    def sync():
        inside = []
        with pytest.raises(TimeoutError) as info:
            with timeout(0.001):
                try:
                    greenletio.sleep(3600)
                except BaseException as e:
                    inside.append(type(e))
                    raise
        assert inside == [asyncio.CancelledError]
        assert type(info.value) is TimeoutError
        assert isinstance(info.value.__cause__ or info.value.__context__, asyncio.CancelledError)

    call(sync)


def test_zero_and_negative_expire_at_the_first_wait(call):
    def sync():
        for seconds in (0, 0.0, -1, -0.5):
            log = []
            with pytest.raises(TimeoutError):
                with timeout(seconds):
                    log.append("in")
                    greenletio.sleep(0.01)
                    log.append("never")
            assert log == ["in"]

    call(sync)


def test_a_block_that_never_waits_is_not_limited(call):
    def sync():
        with timeout(0.001) as limit:
            spin(0.005)
        assert limit.expired is False
        greenletio.sleep(0.005)

    call(sync)


@pytest.mark.parametrize("bad", ["1", object(), [1]])
def test_bad_seconds(bad):
    with pytest.raises(TypeError):
        timeout(bad)


def test_nan():
    with pytest.raises(ValueError):
        timeout(float("nan"))


def test_huge_and_infinite_never_expire(call):
    def sync():
        for seconds in (1e12, float("inf"), sys.float_info.max):
            with timeout(seconds) as limit:
                greenletio.sleep(0)
            assert not limit.expired

    call(sync)


def test_an_exception_of_the_block_is_not_replaced(call):
    def sync():
        with pytest.raises(KeyError):
            with timeout(0.001):
                raise KeyError
        with pytest.raises(KeyError):
            with timeout(0.001):
                try:
                    greenletio.sleep(3600)
                except asyncio.CancelledError:
                    raise KeyError from None

    call(sync)


def test_swallowed_inside(call):
    """As asyncio.timeout: a block that ends normally has not timed out, though it expired."""

    def sync():
        with timeout(0.001):
            try:
                greenletio.sleep(3600)
            except asyncio.CancelledError:
                pass
        greenletio.sleep(0.002)

    call(sync)


def test_it_strikes_once(call):
    """After it has raised, finally blocks inside may wait."""

    def sync():
        log = []
        with pytest.raises(TimeoutError):
            with timeout(0.001):
                try:
                    greenletio.sleep(3600)
                finally:
                    greenletio.sleep(0.003)
                    await_(asyncio.sleep(0))
                    log.append("cleaned up")
        assert log == ["cleaned up"]

    call(sync)


# -- nesting


def test_inner_expires(call):
    def sync():
        with timeout(60) as outer:
            with pytest.raises(TimeoutError):
                with timeout(0.001) as inner:
                    greenletio.sleep(3600)
            assert inner.expired and not outer.expired
            greenletio.sleep(0.001)

    call(sync)


def test_outer_expires(call):
    def sync():
        with pytest.raises(TimeoutError):
            with timeout(0.001) as outer:
                with timeout(60) as inner:
                    greenletio.sleep(3600)
        assert outer.expired and not inner.expired

    call(sync)


def test_outer_expires_while_the_inner_cleans_up(call):
    def sync():
        log = []
        with pytest.raises(TimeoutError):
            with timeout(0.3) as outer:
                with pytest.raises(asyncio.CancelledError):
                    with timeout(0.001) as inner:
                        try:
                            greenletio.sleep(3600)
                        finally:
                            log.append("inner struck")
                            greenletio.sleep(3600)
                log.append("between")
                raise asyncio.CancelledError
        assert log[0] == "inner struck"
        assert inner.expired and outer.expired

    call(sync)


def test_both_at_once(call):
    """Equal limits: the block ends once, with TimeoutError, and nothing is left over."""

    def sync():
        with pytest.raises(TimeoutError):
            with timeout(0.002):
                with timeout(0.002):
                    greenletio.sleep(3600)
        greenletio.sleep(0.005)

    call(sync)


def test_deep_nesting(call):
    def sync():
        def down(n):
            if n == 0:
                greenletio.sleep(3600)
            with timeout(60):
                down(n - 1)

        with pytest.raises(TimeoutError):
            with timeout(0.001):
                down(50)
        greenletio.sleep(0)

    call(sync)


def test_the_same_object_may_not_be_entered_twice(call):
    def sync():
        limit = timeout(60)
        with limit:
            with pytest.raises(RuntimeError):
                limit.__enter__()

    call(sync)


def test_exit_without_enter():
    with pytest.raises(RuntimeError):
        timeout(1).__exit__(None, None, None)


def test_in_a_task_directly_it_may_be_entered_or_refused_but_the_loop_lives(run):
    async def main():
        try:
            with timeout(60):
                await asyncio.sleep(0)
        except RuntimeError:
            pass
        await asyncio.sleep(0)

    run(main())


# -- inside and around asyncio


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout needs Python 3.11")
def test_asyncio_timeout_around_ours(run):
    async def main():
        def sync():
            with timeout(60):
                greenletio.sleep(3600)

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001) as limit:
                await async_(sync)()
        assert limit.expired()
        assert asyncio.current_task().cancelling() == 0

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout needs Python 3.11")
def test_ours_around_asyncio_timeout(run):
    async def coro():
        async with asyncio.timeout(60):
            await asyncio.Event().wait()

    async def main():
        def sync():
            with pytest.raises(TimeoutError):
                with timeout(0.001):
                    await_(coro())
            assert asyncio.current_task().cancelling() == 0
            with timeout(60):
                with pytest.raises(TimeoutError):
                    await_(short())

        await async_(sync)()
        await asyncio.sleep(0)

    async def short():
        async with asyncio.timeout(0.001):
            await async_(greenletio.sleep)(3600)

    run(main())


def test_wait_for_around_ours(run):
    async def main():
        def sync():
            with timeout(60):
                greenletio.sleep(3600)

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(async_(sync)(), 0.001)

    run(main())


def test_in_a_coroutine_awaited_by_the_block(run):
    """The limit reaches through await_ into coroutines and the async_ functions they await."""
    log = []

    async def coro():
        try:
            await async_(lambda: await_(asyncio.Event().wait()))()
        finally:
            log.append("inner finally")

    def sync():
        with pytest.raises(TimeoutError):
            with timeout(0.001):
                await_(coro())
        assert log == ["inner finally"]

    run(async_(sync)())


def test_timeouts_of_two_greenlets_are_apart(run):
    async def main():
        def short():
            with timeout(0.001):
                greenletio.sleep(3600)

        def long():
            with timeout(60):
                greenletio.sleep(0.01)
            return "fine"

        got = await asyncio.gather(
            *[async_(f)() for f in (short, long) * 20], return_exceptions=True
        )
        assert [type(x) for x in got[::2]] == [TimeoutError] * 20
        assert got[1::2] == ["fine"] * 20

    run(main())


def test_a_green_spawned_in_the_block_is_not_limited(call):
    def sync():
        with pytest.raises(TimeoutError):
            with timeout(0.001):
                green = greenletio.spawn(lambda: greenletio.sleep(0.01) or "done")
                greenletio.sleep(3600)
        assert green.get(timeout=60) == "done"

    call(sync)


# -- races


def test_cancel_first_then_expiry(run):
    """The task's cancellation is not turned into a TimeoutError."""

    async def main():
        def sync():
            with timeout(0.1):
                greenletio.sleep(3600)

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        task.cancel()
        spin(0.15)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(main())


def test_expiry_first_then_cancel(run):
    """Expired while runnable, then cancelled before it ran: the cancellation is not lost."""

    async def main():
        got = []

        def sync():
            try:
                with timeout(0.1):
                    greenletio.sleep(3600)
            except BaseException as e:
                got.append(type(e))
                raise

        for _ in range(3):
            task = asyncio.ensure_future(async_(sync)())
            await settle()
            spin(0.15)
            task.cancel()
            with pytest.raises((asyncio.CancelledError, TimeoutError)):
                await task
        assert set(got) <= {asyncio.CancelledError, TimeoutError}
        # asked to cancel before anything was raised in it, so it must say so
        assert got == [asyncio.CancelledError] * 3

    run(main())


def test_cancel_arrives_in_the_cleanup_after_expiry(run):
    async def main():
        log = []

        def sync():
            with timeout(0.001):
                try:
                    greenletio.sleep(3600)
                finally:
                    log.append("struck")
                    greenletio.sleep(3600)

        task = asyncio.ensure_future(async_(sync)())
        while not log:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_cancel_swallowed_then_expiry_still_strikes(run):
    async def main():
        def sync():
            with timeout(0.01):
                try:
                    greenletio.sleep(3600)
                except asyncio.CancelledError:
                    pass
                greenletio.sleep(3600)

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        task.cancel()
        with pytest.raises(TimeoutError):
            await task

    run(main())


def test_readiness_and_expiry_race(run, pair):
    """Whichever came first, the wait ends once and the next one is not disturbed."""
    a, b = pair

    async def main():
        def sync():
            ready = timed_out = 0
            for i in range(200):
                try:
                    with timeout(0.0005):
                        if i % 2:
                            b.send(b"x")
                        io.wait_readable(a)
                        ready += 1
                except TimeoutError:
                    timed_out += 1
                if i % 2:
                    a.recv(1)
                with timeout(60):
                    greenletio.sleep(0)
            return ready, timed_out

        ready, timed_out = await async_(sync)()
        assert ready + timed_out == 200
        assert timed_out >= 100

    run(main())


def test_expiry_while_runnable(run):
    """Set in time, but resumed only after the limit: the value counts, nothing strikes later."""

    async def main():
        waiter = _core.Waiter()

        def sync():
            with timeout(0.005) as limit:
                assert waiter.wait()
            return limit.expired

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        waiter.set()
        spin(0.01)
        try:
            assert await task is False
        except TimeoutError:
            pass  # the limit had passed when it ran again: also right
        await settle()
        await async_(greenletio.sleep)(0.001)

    run(main())


def test_waits_own_timeout_and_the_limit(call, pair):
    def sync():
        with timeout(60):
            assert io.wait_readable(pair[0], timeout=0.001) is False
        with pytest.raises(TimeoutError):
            with timeout(0.001):
                io.wait_readable(pair[0], timeout=60)
        with timeout(60):
            assert _core.Waiter().wait(0.001) is False

    call(sync)


# -- reschedule


def test_reschedule_later_and_never(call):
    def sync():
        with timeout(0.001) as limit:
            limit.reschedule(60)
            greenletio.sleep(0.005)
        with timeout(0.001) as limit:
            limit.reschedule(None)
            assert limit.remaining is None
            greenletio.sleep(0.005)
        assert not limit.expired

    call(sync)


def test_reschedule_sooner(call):
    def sync():
        with pytest.raises(TimeoutError):
            with timeout(60) as limit:
                limit.reschedule(0.001)
                greenletio.sleep(3600)

    call(sync)


def test_reschedule_from_another_task_while_it_waits(run):
    async def main():
        limits = []

        def sync():
            with timeout(None) as limit:
                limits.append(limit)
                greenletio.sleep(3600)

        task = asyncio.ensure_future(async_(sync)())
        await settle()
        limits[0].reschedule(0.001)
        with pytest.raises(TimeoutError):
            await task

        limits.clear()

        def in_time():
            with timeout(0.3) as limit:
                limits.append(limit)
                greenletio.sleep(0.4)
            return "in time"

        task = asyncio.ensure_future(async_(in_time)())
        await settle()
        limits[0].reschedule(60)
        assert await task == "in time"

    run(main())


def test_reschedule_after_the_end(call):
    def sync():
        with timeout(60) as limit:
            pass
        with pytest.raises(RuntimeError):
            limit.reschedule(1)

    call(sync)


def test_remaining_counts_down(call):
    def sync():
        with timeout(60) as limit:
            first = limit.remaining
            greenletio.sleep(0.002)
            assert limit.remaining < first
        with pytest.raises(TimeoutError):
            with timeout(0.001) as limit:
                try:
                    greenletio.sleep(3600)
                finally:
                    assert limit.remaining == 0

    call(sync)


# -- leftovers


def test_no_timer_is_left(run, aflat):
    async def once():
        def sync():
            with timeout(60):
                greenletio.sleep(0)
                with timeout(60):
                    await_(asyncio.sleep(0))
            try:
                with timeout(0):
                    greenletio.sleep(0.001)
            except TimeoutError:
                pass

        await async_(sync)()

    run(aflat(once, repeat=100))
