"""Tasks under portal(): sync code below them waits without async_."""

import asyncio
import contextlib
import contextvars
import gc
import inspect
import io
import sys
import types

import greenlet
import pytest
from fix_portal import park, parked, wait

import greenletio
from greenletio import WouldBlockError, async_, await_, debug, portal, spawn, timeout
from greenletio.green import threading as green_threading

pytestmark = pytest.mark.leaks


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


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="asyncio.current_task() does not find such a task"
)
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
