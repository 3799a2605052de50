"""Group: leaving the block joins; a failure cancels the rest."""

import asyncio
import sys

import pytest

import greenletio
from greenletio import Group, async_, await_, sleep, timeout

pytestmark = pytest.mark.leaks

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


@pytest.fixture(params=["green", "plain"])
def call(request, run):
    if request.param == "plain":
        return lambda fn: fn()
    return lambda fn: run(async_(fn)())


def work(log, name, seconds=0.001):
    sleep(seconds)
    log.append(name)
    return name


def fail(message="failed", kind=ValueError):
    sleep(0)
    raise kind(message)


def sleeper(log, name="sleeper"):
    try:
        sleep(3600)
    except asyncio.CancelledError:
        log.append(name)
        raise


def leaves(error):
    if isinstance(error, BaseExceptionGroup):
        return [leaf for e in error.exceptions for leaf in leaves(e)]
    return [error]


def test_leaving_joins(call):
    def sync():
        log = []
        with Group() as group:
            greens = [group.spawn(work, log, i) for i in range(5)]
            assert log == []
        assert sorted(log) == [0, 1, 2, 3, 4]
        assert [g.get() for g in greens] == [0, 1, 2, 3, 4]

    call(sync)


def test_empty(call):
    def sync():
        with Group():
            pass

    call(sync)


def test_a_failure_cancels_the_rest(call):
    def sync():
        log = []
        with pytest.raises(ExceptionGroup) as info:
            with Group() as group:
                group.spawn(sleeper, log, "a")
                group.spawn(sleeper, log, "b")
                group.spawn(fail)
        assert [str(e) for e in leaves(info.value)] == ["failed"]
        assert sorted(log) == ["a", "b"]

    call(sync)


def test_a_failure_interrupts_the_block_itself(call):
    def sync():
        log = []
        with pytest.raises(ExceptionGroup):
            with Group() as group:
                group.spawn(fail)
                try:
                    sleep(3600)
                finally:
                    log.append("interrupted")
        assert log == ["interrupted"]
        sleep(0)
        await_(asyncio.sleep(0))

    call(sync)


def test_several_failures(call):
    def sync():
        def fail_in_cleanup():
            try:
                sleep(3600)
            finally:
                raise KeyError("cleanup")

        with pytest.raises(ExceptionGroup) as info:
            with Group() as group:
                group.spawn(fail_in_cleanup)
                group.spawn(fail, "one")
                group.spawn(fail, "two")
        assert {type(e) for e in leaves(info.value)} == {KeyError, ValueError}

    call(sync)


def test_the_blocks_own_failure_cancels_the_rest(call):
    def sync():
        log = []
        with pytest.raises((ExceptionGroup, LookupError)) as info:
            with Group() as group:
                group.spawn(sleeper, log)
                sleep(0)
                sleep(0)
                raise LookupError("block")
        assert [type(e) for e in leaves(info.value)] == [LookupError]
        assert log == ["sleeper"]

    call(sync)


def test_spawning_from_a_member(call):
    def sync():
        log = []
        with Group() as group:

            def child(n):
                sleep(0)
                log.append(n)
                if n:
                    group.spawn(child, n - 1)

            group.spawn(child, 5)
        assert log == [5, 4, 3, 2, 1, 0]

    call(sync)


def test_spawning_after_the_end(call):
    def sync():
        with Group() as group:
            pass
        with pytest.raises(RuntimeError):
            group.spawn(int)

    call(sync)


def test_a_cancelled_member_does_not_end_the_group(call):
    def sync():
        log = []
        with Group() as group:
            member = group.spawn(sleeper, log)
            group.spawn(work, log, "other")
            sleep(0)
            sleep(0)
            member.cancel()
        assert sorted(log) == ["other", "sleeper"]

    call(sync)


@pytest.mark.leaks(False)  # its members may not have begun on a slow machine
def test_timeout_around(call):
    def sync():
        log = []
        with pytest.raises(TimeoutError):
            with timeout(0.2):
                with Group() as group:
                    group.spawn(sleeper, log, "a")
                    group.spawn(sleeper, log, "b")
        assert sorted(log) == ["a", "b"]
        sleep(0)

    call(sync)


def test_nested(call):
    def sync():
        log = []
        with pytest.raises(ExceptionGroup) as info:
            with Group() as outer:
                outer.spawn(sleeper, log, "outer")
                with Group() as inner:
                    inner.spawn(sleeper, log, "inner")
                    inner.spawn(fail)
        assert [type(e) for e in leaves(info.value)] == [ValueError]
        assert sorted(log) == ["inner", "outer"]

    call(sync)


def test_cancellation_from_outside(run):
    async def main():
        log = []

        def sync():
            try:
                with Group() as group:
                    group.spawn(sleeper, log, "a")
                    group.spawn(sleeper, log, "b")
            finally:
                log.append("left")

        task = asyncio.ensure_future(async_(sync)())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log[-1] == "left" and sorted(log[:2]) == ["a", "b"]

    run(main())


def test_cancellation_from_outside_in_the_block(run):
    async def main():
        log = []

        def sync():
            with Group() as group:
                group.spawn(sleeper, log, "member")
                try:
                    sleep(3600)
                finally:
                    log.append("block")

        task = asyncio.ensure_future(async_(sync)())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(log) == ["block", "member"]

    run(main())


def test_cancellation_and_failure_in_one_turn(run):
    """Neither is lost: with both, the failure is reported and the task knows it was cancelled."""

    async def main():
        event = asyncio.Event()

        def member():
            await_(event.wait())
            raise ValueError("failed")

        def sync():
            with Group() as group:
                group.spawn(member)

        task = asyncio.ensure_future(async_(sync)())
        for _ in range(5):
            await asyncio.sleep(0)
        event.set()
        task.cancel()
        with pytest.raises((asyncio.CancelledError, ExceptionGroup)):
            await task

    run(main())


def test_the_group_leaves_no_cancellation_behind(run):
    """A failure interrupts the block by cancelling; the task is not thereby cancelled."""

    async def main():
        def sync():
            for _ in range(3):
                try:
                    with Group() as group:
                        group.spawn(fail)
                        sleep(3600)
                except ExceptionGroup:
                    pass
                sleep(0)
                greenletio.sleep(0.001)
            if sys.version_info >= (3, 11):
                return asyncio.current_task().cancelling()
            return 0

        assert await asyncio.ensure_future(async_(sync)()) == 0

    run(main())


def test_members_failures_are_not_reported_twice(run):
    import gc

    async def main():
        seen = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: seen.append(context))

        def sync():
            try:
                with Group() as group:
                    group.spawn(fail)
                    group.spawn(fail)
            except ExceptionGroup:
                pass

        await async_(sync)()
        gc.collect()
        await asyncio.sleep(0)
        assert seen == []

    run(main())


def test_traceback_of_a_member_is_kept(call):
    import traceback

    def sync():
        with pytest.raises(ExceptionGroup) as info:
            with Group() as group:
                group.spawn(fail)
        (error,) = leaves(info.value)
        assert "fail" in [f.name for f in traceback.extract_tb(error.__traceback__)]

    call(sync)


def test_a_thousand_members(call):
    def sync():
        log = []
        with Group() as group:
            for i in range(1000):
                group.spawn(work, log, i, 0)
        assert len(log) == 1000

    call(sync)
