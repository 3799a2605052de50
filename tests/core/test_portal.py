"""Tasks under portal(): sync code below them waits without async_, and asyncio is as it was."""

import asyncio
import contextlib
import contextvars
import gc
import inspect
import io
import sys
import traceback
import types

import greenlet
import pytest

import greenletio
from greenletio import WouldBlockError, async_, await_, debug, portal, spawn, timeout
from greenletio.green import threading as green_threading

eager = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks need Python 3.12")
var = contextvars.ContextVar("var", default="unset")


pytestmark = pytest.mark.leaks


def wait(seconds=0.0, result=None):
    """Sync code, some calls deep, that waits in three ways."""

    def deeper():
        greenletio.sleep(seconds)
        assert await_(asyncio.sleep(seconds, "slept")) == "slept"
        return result

    return deeper()


def park(future):
    """Sync code that waits for a future."""
    return await_(future)


@pytest.fixture
def prun(run):
    """Runs main(*args) as a task under a portal."""

    def run_it(main, *args, **options):
        async def outer():
            with portal():
                return await asyncio.create_task(main(*args))

        return run(outer(), **options)

    return run_it


async def parked(coro, **kwargs):
    """A task that has come to its first wait."""
    task = asyncio.create_task(coro, **kwargs)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    return task


# --- waiting -------------------------------------------------------------------------------


def test_sync_code_waits_and_other_tasks_go_on(prun, ticks):
    async def main():
        async with ticks() as count:
            before = count[0]
            assert wait(0.01, "done") == "done"
            assert count[0] > before + 1

    prun(main)


def test_many_tasks_wait_at_once(prun):
    async def handler(gate, arrived, n):
        arrived.append(n)
        park(gate)
        return n

    async def main():
        gate, arrived = asyncio.get_running_loop().create_future(), []
        tasks = [asyncio.create_task(handler(gate, arrived, n)) for n in range(100)]
        await asyncio.sleep(0)
        assert len(arrived) == 100
        gate.set_result(None)
        assert await asyncio.gather(*tasks) == list(range(100))

    prun(main)


def test_a_wait_within_a_coroutine_that_another_awaits(prun):
    async def inner():
        await asyncio.sleep(0)
        wait()
        await asyncio.sleep(0)
        return 1

    async def main():
        async def middle():
            return await inner() + await asyncio.wait_for(inner(), 10)

        assert await middle() == 2
        assert await_(middle()) == 2  # both ways in turn
        assert await async_(lambda: await_(middle()))() == 2

    prun(main)


def test_async_generators_and_context_managers_wait(prun):
    async def numbers():
        for n in range(3):
            wait()
            yield n

    @contextlib.asynccontextmanager
    async def manager():
        wait()
        yield
        wait()

    async def main():
        async with manager():
            assert [n async for n in numbers()] == [0, 1, 2]
        generator = numbers()
        async for _ in generator:
            break
        await generator.aclose()

    prun(main)


def test_spawn_and_async_call_work_as_before(prun):
    async def main():
        assert await spawn(wait, 0, 1) == 1
        assert spawn(wait, 0, 2).get() == 2
        assert await async_(wait)(0, 3) == 3
        assert await asyncio.gather(async_(wait)(0, 4), spawn(wait, 0, 5)) == [4, 5]

    prun(main)


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


# --- what the task looks like ------------------------------------------------------------------


def test_the_coroutine_looks_like_one(prun):
    async def handler(gate):
        await asyncio.sleep(0)
        park(gate)
        return 1

    async def main():
        gate = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(handler(gate), name="its name")
        coro = task.get_coro()
        assert asyncio.iscoroutine(coro) and inspect.isawaitable(coro)
        assert coro.__name__ == "handler"
        assert coro.__qualname__ == handler.__qualname__
        assert coro.cr_code is handler.__code__
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
        assert coro.cr_await is None
        await asyncio.sleep(0)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_SUSPENDED
        assert "handler() running at" in repr(task)
        assert [f.f_code for f in task.get_stack()] == [handler.__code__]
        await asyncio.sleep(0)  # now in sync code
        assert not coro.cr_running
        if sys.version_info >= (3, 11):
            assert inspect.getcoroutinestate(coro) == inspect.CORO_SUSPENDED
        assert coro.cr_await is not None
        assert "handler() running at" in repr(task) and "its name" in repr(task)
        assert "waiting in sync code" in repr(coro)
        assert [f.f_code for f in task.get_stack()] == [handler.__code__]
        task.print_stack(file=(file := io.StringIO()))
        assert "park(gate)" in file.getvalue()
        gate.set_result(None)
        assert await task == 1
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        assert coro.cr_frame is None
        with pytest.raises(AttributeError, match="no_such"):
            coro.no_such  # noqa: B018

    prun(main)


def test_dump_shows_the_joined_stack(prun):
    async def inner(gate):
        park(gate)

    async def handler(gate):
        await_(inner(gate))

    def functions(stack):
        return [(f.function.rpartition(".")[2], f.kind) for f in stack.frames]

    async def main():
        gate = asyncio.get_running_loop().create_future()
        task = await parked(handler(gate))
        (stack,) = [s for s in debug.stacks() if s.task is task]
        assert functions(stack) == [("handler", "async"), ("inner", "async"), ("park", "sync")]
        assert (stack.state, stack.waits_for) == ("waiting", gate)
        (own,) = [s for s in debug.stacks() if s.task is asyncio.current_task()]
        assert functions(own)[0] == ("main", "async")
        gate.set_result(None)
        await task

    prun(main)


def test_a_generator_based_coroutine(prun):
    @types.coroutine
    def handler():
        yield
        wait()
        return 1

    async def main():
        assert await handler() == 1
        if sys.version_info < (3, 12):  # later ones are no coroutines to create_task
            assert await asyncio.create_task(handler()) == 1

    prun(main)


# --- opening and closing -------------------------------------------------------------------------


def test_the_current_task_takes_part_from_its_next_step(run):
    async def main():
        portal()
        with pytest.raises(WouldBlockError):
            wait()
        await asyncio.sleep(0)
        wait()

    run(main())


def test_awaiting_the_portal_makes_it_the_next_line(run):
    async def main():
        with await portal():
            wait()

    run(main())


def test_a_python_task_takes_part_too(run):
    async def main():
        async def handler():
            with await portal():
                wait()
                return await asyncio.create_task(other())

        async def other():
            return wait(0, 5)

        assert await asyncio.tasks._PyTask(handler()) == 5

    run(main())


def test_a_loop_that_does_not_run_yet(make_loop):
    async def main():
        wait()
        await asyncio.gather(main_2(), main_2())

    async def main_2():
        wait()

    loop = make_loop()
    with portal(loop):
        loop.run_until_complete(main())
        loop.run_until_complete(main())
    with contextlib.closing(loop), pytest.raises(WouldBlockError):
        loop.run_until_complete(main())


def test_run_with_a_portal():
    async def main():
        wait()
        return await asyncio.gather(other(1), other(2))

    async def other(n):
        return wait(0, n)

    assert greenletio.run(main(), portal=True) == [1, 2]
    with pytest.raises(ValueError, match="a coroutine was expected"):
        greenletio.run(main, portal=True)


def test_no_loop():
    with pytest.raises(RuntimeError, match="no running event loop"):
        portal()


def test_closing_it_undoes_it_for_new_tasks(run):
    async def waits():
        wait()

    async def waits_later():
        await asyncio.sleep(0)
        wait()

    async def main():
        loop = asyncio.get_running_loop()
        with portal():
            early = asyncio.create_task(waits_later())
            with portal():
                await asyncio.create_task(waits())
            await asyncio.create_task(waits())
        assert loop.get_task_factory() is None
        with pytest.raises(WouldBlockError):
            await asyncio.create_task(waits())
        await early  # made under the portal: it keeps it
        opened = portal()
        opened.close()
        opened.close()
        assert loop.get_task_factory() is None

    run(main())


@pytest.mark.parametrize("loop_kind", ["greenletio"], indirect=True)
def test_our_own_loop_needs_no_task_factory(run):
    async def waits(value):
        return wait(0, value)

    async def main():
        loop = asyncio.get_running_loop()
        with portal():
            assert loop.get_task_factory() is None
            task = loop.create_task(waits(1), name="named")
            assert task.get_name() == "named"
            assert await task == 1
            if sys.version_info >= (3, 11):
                context = contextvars.copy_context()
                assert await loop.create_task(waits(2), name=None, context=context) == 2
            loop.set_debug(True)
            assert await loop.create_task(waits(3)) == 3
            for wrong in ((), (waits, 1)):
                with pytest.raises(TypeError):
                    loop.create_task(*wrong)

    run(main())


def test_a_task_factory_of_the_users(run):
    made = []

    class Mine(asyncio.Task):
        pass

    def mine(loop, coro, **kwargs):
        made.append(coro)
        return Mine(coro, loop=loop, **kwargs)

    async def waits(value):
        return wait(0, value)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(mine)
        with portal():
            task = asyncio.create_task(waits(1), name="named")
            assert isinstance(task, Mine) and task.get_name() == "named"
            assert await task == 1
            inner = loop.get_task_factory()
            loop.set_task_factory(lambda *args, **kwargs: inner(*args, **kwargs))
            with portal():  # around the factory that the user put around ours
                assert await asyncio.create_task(waits(2)) == 2
        outer = loop.get_task_factory()
        assert outer not in (mine, inner)  # the user's own stays
        with pytest.raises(WouldBlockError):
            await asyncio.create_task(waits(3))
        assert len(made) == 3

    run(main())


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.leaks(False)  # uvloop's servers leave memory behind, a portal or not
def test_callbacks_and_protocols_are_refused(prun):
    refused = []

    def waits():
        try:
            wait()
        except WouldBlockError as e:
            refused.append(str(e))

    class Protocol(asyncio.Protocol):
        def __init__(self):
            self.closed = asyncio.get_running_loop().create_future()

        def connection_made(self, transport):
            waits()
            transport.write(b"x")
            transport.close()

        def connection_lost(self, exc):
            waits()
            self.closed.set_result(None)

    class Echo(asyncio.Protocol):
        def data_received(self, data):
            waits()

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_soon(waits)
        loop.call_later(0, waits)
        loop.create_future().add_done_callback(lambda _: waits())
        done = loop.create_future()
        done.add_done_callback(lambda _: waits())
        done.set_result(None)
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        host = server.sockets[0].getsockname()
        _, protocol = await loop.create_connection(Protocol, *host)
        await protocol.closed
        while len(refused) < 6:
            await asyncio.sleep(0.001)
        server.close()
        await server.wait_closed()

    prun(main)
    assert len(refused) == 6
    assert all("block the running event loop" in text for text in refused)


def test_a_finalizer_that_the_garbage_collector_calls_is_refused(prun):
    seen = []

    class Dies:
        def __del__(self):
            try:
                greenletio.sleep(0)
            except WouldBlockError as e:
                seen.append(str(e))
            else:
                seen.append("waited")

    async def main():
        cycle = [Dies()]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert len(seen) == 1 and "garbage collector" in seen[0]
        Dies()  # at the end of its last reference it is a call like any other
        assert seen[1:] == ["waited"]
        wait()

    prun(main)


def test_with_no_current_task_it_is_refused(prun):
    async def main():
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        asyncio.tasks._leave_task(loop, task)  # what nested loops do
        try:
            with pytest.raises(WouldBlockError, match="no task is running"):
                greenletio.sleep(0)
        finally:
            asyncio.tasks._enter_task(loop, task)
        wait()

    prun(main)


# --- other libraries' greenlets, identity ----------------------------------------------------


def test_a_greenlet_that_outlives_a_step_finds_its_parent(prun):
    """SQLAlchemy's way: a greenlet that hands awaitables to its parent, across many steps."""

    def in_greenlet():
        parent = greenlet.getcurrent().parent
        first = parent.switch(asyncio.sleep(0, 1))
        greenletio.sleep(0)  # ours, from inside their greenlet
        second = parent.switch(asyncio.sleep(0, 2))
        return first, second

    async def handler():
        theirs = greenlet.greenlet(in_greenlet)
        result = theirs.switch()
        while not theirs.dead:
            result = theirs.switch(await result)
        return result

    async def main():
        assert await asyncio.gather(*[handler() for _ in range(20)]) == [(1, 2)] * 20

    prun(main)


def test_a_task_is_one_thread_to_green_code(prun):
    local = green_threading.local()

    async def handler(n):
        ident = green_threading.get_ident()
        local.n = n
        wait()
        await asyncio.sleep(0)
        wait()
        assert (local.n, green_threading.get_ident()) == (n, ident)
        return ident

    async def main():
        idents = await asyncio.gather(*[handler(n) for n in range(10)])
        assert len(set(idents)) == 10

    prun(main)


def test_green_locks_keep_tasks_apart(prun):
    lock, inside = green_threading.Lock(), []

    async def handler():
        with lock:
            inside.append(1)
            wait()
            assert len(inside) == 1
            inside.pop()

    async def main():
        await asyncio.gather(*[handler() for _ in range(20)])

    prun(main)


# --- the end ------------------------------------------------------------------------------------


def test_closing_a_parked_coroutine_unwinds_it(prun):
    log = []

    def sync():
        try:
            greenletio.sleep(100)
        finally:
            log.append("sync")

    async def handler():
        try:
            sync()
        finally:
            log.append("async")

    async def main():
        coro = greenletio._core._portal(handler())
        coro.send(None)
        coro.close()
        assert log == ["sync", "async"]
        coro.close()
        with pytest.raises(RuntimeError, match="cannot reuse"):
            coro.send(None)
        fresh = greenletio._core._portal(handler())
        fresh.close()
        assert len(log) == 2

    prun(main)


def test_a_loop_closed_over_parked_tasks(make_loop):
    log = []

    async def handler():
        try:
            greenletio.sleep(100)
        finally:
            log.append("unwound")

    async def main():
        portal()
        return await parked(handler())

    loop = make_loop()
    loop.set_exception_handler(lambda *_: None)  # a task that is destroyed pending is the point
    task = loop.run_until_complete(main())
    loop.close()
    assert log == ["unwound"]
    del task
    gc.collect()
    assert log == ["unwound"]


def test_a_coroutine_that_is_never_awaited_warns_by_its_name():
    async def handler():
        pytest.fail("started")

    with pytest.warns(RuntimeWarning, match=r"coroutine '.*handler' was never awaited"):
        greenletio._core._portal(handler())


def test_a_portal_leaves_nothing_behind(run, aflat):
    async def waits():
        wait()
        await asyncio.sleep(0)
        with timeout(100):
            await asyncio.sleep(0)

    async def fails():
        greenletio.sleep(0)
        raise ZeroDivisionError

    async def once():
        with portal():
            await asyncio.gather(waits(), fails(), return_exceptions=True)
            task = asyncio.create_task(waits())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    async def main():
        await aflat(once, 50)

    run(main())
