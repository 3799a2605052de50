"""Tasks under portal(): asyncio is as it was, and so are its contexts and cancellation."""

import asyncio
import contextvars
import sys
import traceback

import pytest
from fix_portal import park, parked, wait

import greenletio
from greenletio import await_, portal, timeout

eager = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks need Python 3.12")
var = contextvars.ContextVar("var", default="unset")


pytestmark = pytest.mark.leaks


# --- asyncio is as it was --------------------------------------------------------------------


def test_the_current_task_is_the_task(prun):
    async def handler():
        me = asyncio.current_task()
        wait()
        assert asyncio.current_task() is me
        await_(inner(me))
        await asyncio.sleep(0)
        assert asyncio.current_task() is me

    async def inner(me):
        assert asyncio.current_task() is me
        await asyncio.sleep(0)
        assert asyncio.current_task() is me

    async def main():
        await asyncio.gather(*[handler() for _ in range(3)])

    prun(main)


def test_while_one_is_parked_none_or_another_is_current(prun):
    seen = []

    async def handler(gate):
        park(gate)

    async def main():
        loop = asyncio.get_running_loop()
        gate = loop.create_future()
        task = await parked(handler(gate))
        loop.call_soon(lambda: seen.append(asyncio.current_task()))
        await asyncio.sleep(0)
        assert seen == [None]
        assert asyncio.current_task() is not task
        assert task in asyncio.all_tasks()
        gate.set_result(None)
        await task

    prun(main)


def test_context_variables_are_the_tasks(prun):
    def set_in_sync(value):
        wait()
        var.set(value)
        wait()
        assert var.get() == value

    async def handler(n):
        assert var.get() == "outer"
        set_in_sync(n)
        await asyncio.sleep(0)
        assert var.get() == n
        return asyncio.current_task()

    async def main():
        var.set("outer")
        await asyncio.gather(*[handler(n) for n in range(5)])
        assert var.get() == "outer"
        if sys.version_info >= (3, 11):
            context = contextvars.copy_context()
            await asyncio.create_task(handler(9), context=context)
            assert context[var] == 9

    prun(main)


def test_two_tasks_in_one_context(prun):
    if sys.version_info < (3, 11):
        pytest.skip("create_task takes a context from Python 3.11 on")

    async def handler(gate, n):
        park(gate)
        var.set(n)

    async def main():
        context, gate = contextvars.copy_context(), asyncio.get_running_loop().create_future()
        tasks = [asyncio.create_task(handler(gate, n), context=context) for n in range(2)]
        await asyncio.sleep(0)
        gate.set_result(None)
        await asyncio.gather(*tasks)
        assert context[var] == 1

    prun(main)


def test_cancellation_is_raised_at_the_wait(prun):
    log = []

    def sync(gate):
        try:
            park(gate)
        except asyncio.CancelledError as e:
            log.append(e.args)
            wait()  # clean-up may wait
            log.append("cleaned")
            raise

    async def handler(gate):
        sync(gate)

    async def main():
        gate = asyncio.get_running_loop().create_future()
        task = await parked(handler(gate))
        assert task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert gate.cancelled()  # as with await
        assert log == [("enough",), "cleaned"]

    prun(main)


def test_a_swallowed_cancellation_is_swallowed(prun):
    async def handler(waiting):
        try:
            waiting.wait()
        except asyncio.CancelledError:
            wait()
            return "survived"

    async def main():
        task = await parked(handler(greenletio._core.Waiter()))
        task.cancel()
        assert await task == "survived"
        if sys.version_info >= (3, 11):
            assert task.cancelling() == 1

    prun(main)


def test_cancelled_before_its_first_step(prun):
    async def handler():
        pytest.fail("started")

    async def main():
        task = asyncio.create_task(handler())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    prun(main)


def test_cancelling_itself_then_waiting(prun):
    async def main():
        task = asyncio.current_task()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            wait()
        if sys.version_info >= (3, 11):
            assert task.uncancel() == 0
        wait()

    prun(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout needs Python 3.11")
def test_asyncio_timeout_ends_the_wait(prun):
    async def main():
        never = asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                park(never)
        wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.create_task(sleeps()), 0.01)

    async def sleeps():
        greenletio.sleep(100)

    prun(main)


def test_a_timeout_of_greenletio_ends_waits_of_both_kinds(prun):
    async def main():
        with pytest.raises(TimeoutError), timeout(0.01):
            greenletio.sleep(100)
        with pytest.raises(TimeoutError), timeout(0.01):
            await asyncio.sleep(100)
        with pytest.raises(TimeoutError), timeout(0.01):
            await asyncio.get_running_loop().create_future()
        with timeout(100):
            wait()
            await asyncio.sleep(0)
        wait()
        if sys.version_info >= (3, 11):
            assert asyncio.current_task().cancelling() == 0

    prun(main)


def test_a_timeout_of_greenletio_yields_to_cancellation(prun):
    async def handler():
        with timeout(100):
            await asyncio.sleep(50)

    async def main():
        task = await parked(handler())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    prun(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup needs Python 3.11")
def test_a_task_group_cancels_the_parked(prun):
    log = []

    async def sleeper():
        try:
            greenletio.sleep(100)
        finally:
            log.append("unwound")

    async def fails():
        wait()
        raise ZeroDivisionError

    async def main():
        with pytest.raises(BaseException) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(sleeper())
                group.create_task(fails())
                greenletio.sleep(100)  # the body, too, is parked in sync code
        assert [type(e) for e in caught.value.exceptions] == [ZeroDivisionError]
        assert log == ["unwound"]
        async with asyncio.TaskGroup() as group:
            one = group.create_task(returns(1))
            two = group.create_task(returns(2))
        assert (one.result(), two.result()) == (1, 2)

    async def returns(n):
        return wait(0, n)

    prun(main)


def test_gather_shield_and_wait(prun):
    async def returns(n):
        return wait(0.001 * n, n)

    async def main():
        assert await asyncio.gather(*map(returns, range(5))) == [0, 1, 2, 3, 4]
        shielded = asyncio.ensure_future(returns(3))
        outer = asyncio.ensure_future(asyncio.shield(shielded))
        await asyncio.sleep(0)
        outer.cancel()
        assert await shielded == 3
        done, pending = await asyncio.wait([asyncio.create_task(returns(n)) for n in range(3)])
        assert ({task.result() for task in done}, pending) == ({0, 1, 2}, set())

    prun(main)


def test_exceptions_and_their_tracebacks(prun):
    def sync():
        wait()
        raise LookupError("here")

    async def handler():
        await asyncio.sleep(0)
        sync()

    async def main():
        with pytest.raises(LookupError) as caught:
            await asyncio.create_task(handler())
        names = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
        assert names == ["main", "handler", "sync"]
        with pytest.raises(KeyError):
            try:
                sync()
            except LookupError:
                wait()
                assert isinstance(sys.exc_info()[1], LookupError)
                await asyncio.sleep(0)
                assert isinstance(sys.exc_info()[1], LookupError)
                raise KeyError from None
        assert sys.exc_info() == (None, None, None)

    prun(main)


def test_tasks_do_not_see_each_others_exceptions(prun):
    async def handles(gate):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            park(gate)
            assert isinstance(sys.exc_info()[1], ZeroDivisionError)

    async def main():
        gate = asyncio.get_running_loop().create_future()
        task = await parked(handles(gate))
        assert sys.exc_info() == (None, None, None)
        gate.set_result(None)
        await task

    prun(main)


def eagerly(loop, coro, **kwargs):
    return asyncio.Task(coro, loop=loop, **{**kwargs, "eager_start": True})


@eager
def test_eager_tasks(prun, loop_kind):
    # uvloop hands eager_start on, which asyncio's own factory takes from Python 3.13.3 on.
    factory = asyncio.eager_task_factory if loop_kind == "asyncio" else eagerly
    order = []

    async def handler(n):
        me = asyncio.current_task()
        order.append(n)
        wait()
        assert asyncio.current_task() is me
        return n

    async def at_once():
        return 5

    async def main():
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        loop.set_task_factory(factory)
        with portal():
            tasks = [loop.create_task(handler(n)) for n in range(3)]
            assert order == [0, 1, 2]
            assert asyncio.current_task() is me
            assert await asyncio.gather(*tasks) == [0, 1, 2]
            done = loop.create_task(at_once())
            assert done.done() and done.result() == 5
            try:
                raise LookupError
            except LookupError:
                wait()
                assert await loop.create_task(handler(7)) == 7

            def in_sync():  # an eager task that begins in sync code
                task = loop.create_task(handler(8))
                assert asyncio.current_task() is me
                return await_(task)

            assert in_sync() == 8
        assert loop.get_task_factory() is factory
        loop.set_task_factory(None)

    prun(main)


def test_debug_mode_does_not_count_what_a_task_waits(prun, caplog):
    async def handler():
        greenletio.sleep(0.3)

    async def main():
        asyncio.get_running_loop().slow_callback_duration = 0.25
        await asyncio.create_task(handler())

    prun(main, debug=True)
    assert "handler" not in caplog.text
