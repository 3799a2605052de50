"""Who greenlet.getcurrent() is, and other libraries' greenlets inside, around and between ours."""

import asyncio
import gc
import threading
import weakref

import greenlet
import pytest
from fix_missing import need

import greenletio
from greenletio import _core, async_, await_

pytestmark = pytest.mark.leaks


def jobs(run, fn, count=30, at_once=False):
    async def main():
        if at_once:
            return await asyncio.gather(
                *[asyncio.ensure_future(async_(fn)()) for _ in range(count)]
            )
        return [await asyncio.ensure_future(async_(fn)()) for _ in range(count)]

    return run(main())


@pytest.mark.parametrize("at_once", [False, True])
def test_a_weak_dictionary_by_greenlet_does_not_leak_between_jobs(run, at_once):
    data = weakref.WeakKeyDictionary()

    def job():
        me = greenlet.getcurrent()
        assert me not in data
        mark = object()
        data[me] = mark
        await_(asyncio.sleep(0))
        assert greenlet.getcurrent() is me
        greenletio.sleep(0)
        assert data[greenlet.getcurrent()] is mark

    jobs(run, job, at_once=at_once)
    gc.collect()
    assert len(data) == 0


@pytest.mark.parametrize("wait", [False, True])
def test_a_greenlet_kept_by_someone_stays_the_identity_of_its_job(run, wait):
    """A scopefunc=getcurrent registry holds on to it: the next job must not find itself there."""

    def job():
        if wait:
            await_(asyncio.sleep(0))
        return greenlet.getcurrent()

    seen = jobs(run, job)
    assert len({id(g) for g in seen}) == len(seen)
    assert all(g.dead for g in seen)


def test_alive_at_once_are_different(run):
    def job():
        me = greenlet.getcurrent()
        await_(asyncio.sleep(0))
        return id(me)

    assert len(set(jobs(run, job, at_once=True))) == 30


def test_attributes_do_not_leak_between_jobs(run):
    def job():
        me = greenlet.getcurrent()
        assert not vars(me)
        me.mark = 1
        await_(asyncio.sleep(0))
        assert greenlet.getcurrent().mark == 1

    jobs(run, job)


def test_a_weak_reference_dies_with_the_job(run):
    def job():
        dead = []
        ref = weakref.ref(greenlet.getcurrent(), lambda r: ended.append(1))
        await_(asyncio.sleep(0))
        refs.append(ref)
        return dead

    refs, ended = [], []
    jobs(run, job)
    gc.collect()
    assert [r() for r in refs] == [None] * 30
    assert len(ended) == 30


def test_not_the_main_greenlet_and_has_a_living_parent(run):
    async def main():
        root = greenlet.getcurrent()

        def job():
            me = greenlet.getcurrent()
            assert me is not root
            assert me.parent is not None and not me.parent.dead
            assert bool(me) and not me.dead
            await_(asyncio.sleep(0))
            assert bool(me) and not me.dead

        await async_(job)()
        assert greenlet.getcurrent() is root

    run(main())


def test_current_call_and_calls(run):
    async def main():
        def job():
            call = _core.current_call()
            assert call is mine
            assert call.greenlet is greenlet.getcurrent()
            await_(asyncio.sleep(0))
            assert call in list(_core.calls())
            assert await_(inner()) is mine  # run in the same greenlet
            assert _core.current_call() is mine

        async def inner():
            return _core.current_call()

        mine = async_(job)()
        assert _core.current_call() is None
        await mine
        assert list(_core.calls()) == []

    run(main())


# -- a user's own greenlets


def test_generators_by_greenlet_inside_green_code(run):
    """Producer and consumer by greenlet switches, both of which wait."""

    def sync():
        def produce():
            for i in range(5):
                await_(asyncio.sleep(0))
                consumer.switch(i)
            consumer.switch(None)

        consumer = greenlet.getcurrent()
        producer = greenlet.greenlet(produce)
        got = []
        while (item := producer.switch()) is not None:
            got.append(item)
            greenletio.sleep(0)
        return got

    async def main():
        results = await asyncio.gather(*[async_(sync)() for _ in range(10)])
        assert results == [[0, 1, 2, 3, 4]] * 10

    run(main())


def test_a_users_greenlet_that_waits_is_cancelled_at_its_wait(run):
    async def main():
        log = []

        def inner():
            try:
                greenletio.sleep(3600)
            except asyncio.CancelledError:
                log.append("inner")
                raise

        def sync():
            try:
                greenlet.greenlet(inner).switch()
            except asyncio.CancelledError:
                log.append("outer")
                raise

        task = asyncio.ensure_future(async_(sync)())
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["inner", "outer"]

    run(main())


def test_a_users_greenlet_left_suspended_when_the_job_ends(run):
    """It outlives the job that made it; switching to it later must not wake a finished job."""
    left = []

    def sync():
        def body():
            parent.switch("paused")
            return "finished"

        parent = greenlet.getcurrent()
        g = greenlet.greenlet(body)
        assert g.switch() == "paused"
        left.append(g)
        return "job done"

    async def main():
        assert await async_(sync)() == "job done"
        for _ in range(5):
            await async_(lambda: await_(asyncio.sleep(0)))()
        g = left.pop()
        try:
            g.switch()
        except BaseException as e:
            assert isinstance(e, (greenlet.error, greenlet.GreenletExit, RuntimeError)), e
        assert await async_(len)("abc") == 3

    run(main())


def test_a_users_greenlet_collected_while_suspended(run):
    log = []

    def sync():
        def body():
            try:
                greenlet.getcurrent().parent.switch()
            finally:
                log.append("finally")

        g = greenlet.greenlet(body)
        g.switch()
        await_(asyncio.sleep(0))
        del g
        gc.collect()
        return list(log)

    assert run(async_(sync)()) == ["finally"]


def test_sqlalchemys_bridge_inside_ours(run):
    need("sqlalchemy")
    from sqlalchemy.util.concurrency import await_only, greenlet_spawn

    def theirs(n):
        await_only(asyncio.sleep(0))
        if n:
            return await_only(async_(ours)(n - 1)) + 1
        return 0

    def ours(n):
        await_(asyncio.sleep(0))
        return await_(greenlet_spawn(theirs, n))

    async def main():
        assert await asyncio.gather(*[async_(ours)(i) for i in range(8)]) == list(range(8))
        assert await greenlet_spawn(theirs, 3) == 3

    run(main())


def test_our_waits_inside_sqlalchemys_greenlet(run, ticks):
    """greenlet_spawn is not async_: waits of ours work there under async_, and are refused else."""
    need("sqlalchemy")
    from sqlalchemy.util.concurrency import await_only, greenlet_spawn

    def theirs():
        greenletio.sleep(0)
        await_only(asyncio.sleep(0))
        return "both"

    async def main():
        with pytest.raises(greenletio.WouldBlockError):
            await greenlet_spawn(theirs)
        await asyncio.sleep(0)

    run(main())


# -- switches from outside that land in ours


def watch(task):
    return asyncio.wait([task], timeout=10)


def test_a_foreign_parent_switch_that_lands_in_ours(run):
    async def main():
        event = asyncio.Event()
        made = []

        def sync():
            made.append(greenlet.greenlet(lambda: greenlet.getcurrent().parent.switch("junk")))
            await_(event.wait())
            return "good"

        task = asyncio.ensure_future(async_(sync)())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            made[0].switch()
        except BaseException as e:
            assert isinstance(e, Exception), e
        event.set()
        await watch(task)
        assert task.done()
        if task.exception() is None:
            assert task.result() == "good"
        made.clear()
        assert await async_(lambda: await_(asyncio.sleep(0, "on")))() == "on"

    run(main())


@pytest.mark.parametrize("how", ["switch", "throw", "throw exit"])
def test_the_greenlet_of_a_waiting_call_is_switched_to_or_thrown_into(run, how):
    async def main():
        log = []

        def sync():
            try:
                greenletio.sleep(0.05)
                return "good"
            finally:
                log.append("finally")

        call = async_(sync)()

        async def outer():
            return await call

        task = asyncio.ensure_future(outer())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        target = call.greenlet
        try:
            if how == "switch":
                target.switch("junk")
            elif how == "throw":
                target.throw(KeyError("thrown"))
            else:
                target.throw()
        except BaseException:
            pass
        await watch(task)
        assert task.done()
        task.exception()  # whatever it was, it is known
        assert log == ["finally"]
        del target
        for _ in range(5):
            assert await async_(lambda: await_(asyncio.sleep(0, "on")))() == "on"

    run(main())


def test_the_greenlet_of_a_finished_call_is_switched_to(run):
    async def main():
        kept = await async_(greenlet.getcurrent)()
        for act in (lambda: kept.switch(), lambda: kept.throw(KeyError("x"))):
            try:
                act()
            except BaseException:
                pass
        assert await async_(lambda: await_(asyncio.sleep(0, "on")))() == "on"

    run(main())


def test_a_greenlet_of_ours_as_parent_of_a_users_greenlet_that_dies(run):
    """What a dying greenlet returns goes to its parent: a job that waits for something else."""

    async def main():
        event = asyncio.Event()
        parents = []

        def sync():
            parents.append(greenlet.getcurrent())
            await_(event.wait())
            return "good"

        task = asyncio.ensure_future(async_(sync)())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stray = greenlet.greenlet(lambda: "stray value", parents.pop())
        try:
            stray.switch()
        except BaseException:
            pass
        event.set()
        await watch(task)
        assert task.done()
        task.exception()
        assert await async_(lambda: await_(asyncio.sleep(0, "on")))() == "on"

    run(main())


def test_switching_to_the_loops_greenlet_from_green_code(run):
    """User code jumps out to the main greenlet by hand: an error, or a detour, never a crash."""

    async def main():
        root = greenlet.getcurrent()
        log = []

        def sync():
            try:
                root.switch("out")
            finally:
                log.append("ended")

        task = asyncio.ensure_future(async_(sync)())
        try:
            await asyncio.wait_for(asyncio.shield(task), 0.05)
        except BaseException:
            pass
        task.cancel()
        await asyncio.wait([task], timeout=1)
        for _ in range(3):
            assert await async_(lambda: await_(asyncio.sleep(0, "on")))() == "on"

    run(main())


def test_greenlet_trace_functions_see_consistent_switches(run):
    events = []

    def tracer(event, args):
        events.append(event)

    def sync():
        await_(asyncio.sleep(0))
        return 1

    async def main():
        old = greenlet.settrace(tracer)
        try:
            for _ in range(5):
                assert await async_(sync)() == 1
        finally:
            greenlet.settrace(old)

    run(main())
    assert set(events) <= {"switch", "throw"}


def test_a_worker_pool_is_per_thread(run):
    def job():
        await_(asyncio.sleep(0))
        return threading.get_ident()

    async def main():
        await asyncio.gather(*[async_(job)() for _ in range(20)])
        loop = asyncio.get_running_loop()

        def other():
            async def inner():
                return await asyncio.gather(*[async_(job)() for _ in range(20)])

            return set(asyncio.run(inner())) == {threading.get_ident()}

        assert await loop.run_in_executor(None, other)
        assert set(await asyncio.gather(*[async_(job)() for _ in range(20)])) == {
            threading.get_ident()
        }

    run(main())
