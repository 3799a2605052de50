"""await_: what it drives, as function and as decorator, and how deep bridges may nest."""

import asyncio
import collections.abc
import gc
import inspect
import sys
import types
import warnings

import pytest

from greenletio import async_, await_

pytestmark = pytest.mark.leaks


@types.coroutine
def trap(value):
    return (yield value)


class Awaitable:
    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return self.value


class ListAwaitable:
    """Its __await__ gives a plain iterator that has no send, throw or close."""

    def __init__(self, *values):
        self.values = values

    def __await__(self):
        return iter(self.values)


async def value(x, turns=1):
    for _ in range(turns):
        await asyncio.sleep(0)
    return x


def green(run, fn, *args):
    return run(async_(fn)(*args))


# -- what it drives


def test_coroutine(run):
    assert green(run, lambda: await_(value(5))) == 5


def test_coroutine_that_never_suspends(run, ticks):
    async def main():
        async with ticks() as count:
            await asyncio.sleep(0)

            def sync():
                before = count[0]
                got = [await_(value(i, 0)) for i in range(100)]
                assert got == list(range(100))
                return count[0] - before

            assert await async_(sync)() == 0

    run(main())


def test_future_done_and_pending(run):
    def sync():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        done.set_result(1)
        assert await_(done) == 1
        later = loop.create_future()
        loop.call_soon(later.set_result, 2)
        assert await_(later) == 2
        failed = loop.create_future()
        loop.call_soon(failed.set_exception, KeyError("k"))
        with pytest.raises(KeyError):
            await_(failed)

    green(run, sync)


def test_a_future_awaited_by_many_greenlets(run):
    async def main():
        future = asyncio.get_running_loop().create_future()
        tasks = [asyncio.ensure_future(async_(await_)(future)) for _ in range(10)]
        await asyncio.sleep(0)
        future.set_result("all")
        assert await asyncio.gather(*tasks) == ["all"] * 10

    run(main())


def test_task(run):
    def sync():
        task = asyncio.ensure_future(value(3))
        assert await_(task) == 3
        assert await_(task) == 3

    green(run, sync)


def test_task_that_is_cancelled(run):
    def sync():
        task = asyncio.ensure_future(asyncio.sleep(3600))
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await_(task)
        return "went on"

    assert green(run, sync) == "went on"


def test_gather_wait_and_wait_for(run):
    def sync():
        assert await_(asyncio.gather(value(1), value(2))) == [1, 2]
        assert await_(asyncio.wait_for(value(3), 30)) == 3
        done, _ = await_(asyncio.wait([asyncio.ensure_future(value(4))]))
        assert [t.result() for t in done] == [4]

    green(run, sync)


def test_object_with_await(run):
    assert green(run, lambda: await_(Awaitable(7))) == 7


def test_iterator_without_send(run):
    assert green(run, lambda: await_(ListAwaitable(None, None))) is None


def test_types_coroutine_generator(run):
    @types.coroutine
    def old_style():
        yield from asyncio.sleep(0).__await__()
        return 9

    assert green(run, lambda: await_(old_style())) == 9


def test_async_generator_anext_and_aclose(run):
    log = []

    async def numbers():
        try:
            for i in range(3):
                await asyncio.sleep(0)
                yield i
        finally:
            await asyncio.sleep(0)
            log.append("closed")

    def sync():
        agen = numbers()
        assert await_(agen.__anext__()) == 0
        assert await_(anext(agen)) == 1
        assert await_(agen.asend(None)) == 2
        with pytest.raises(StopAsyncIteration):
            await_(agen.__anext__())
        assert await_(anext(agen, "default")) == "default"
        other = numbers()
        assert await_(other.__anext__()) == 0
        with pytest.raises(KeyError):
            await_(other.athrow(KeyError("x")))
        third = numbers()
        await_(third.__anext__())
        await_(third.aclose())

    green(run, sync)
    assert log == ["closed"] * 3


def test_async_context_manager_from_sync_code(run):
    def sync():
        lock = asyncio.Lock()
        await_(lock.acquire())
        assert lock.locked()
        lock.release()
        queue = asyncio.Queue()
        queue.put_nowait(1)
        return await_(queue.get())

    assert green(run, sync) == 1


def test_async_call_itself(run):
    def inner(x):
        await_(asyncio.sleep(0))
        return x

    assert green(run, lambda: await_(async_(inner)(4))) == 4


@pytest.mark.parametrize("bad", [1, None, "x", [1], object()])
def test_not_awaitable(run, bad):
    def sync():
        with pytest.raises(TypeError):
            await_(bad)

    green(run, sync)


def test_await_that_returns_a_non_iterator(run):
    class Bad:
        def __await__(self):
            return 5

    def sync():
        with pytest.raises(TypeError):
            await_(Bad())

    green(run, sync)


def test_coroutine_already_finished_or_running(run):
    def sync():
        coro = value(1)
        await_(coro)
        with pytest.raises(RuntimeError, match="reuse"):
            await_(coro)

        async def outer():
            inner()

        def inner():
            with pytest.raises((ValueError, RuntimeError), match="already"):
                await_(running)

        running = outer()
        await_(running)

    green(run, sync)


def test_values_are_sent_through_unchanged():
    """What the awaitable yields reaches the driver, and what the driver sends reaches it."""

    def fn():
        return await_(trap(1)), await_(outer())

    async def outer():
        return await trap(2), await trap(3)

    call = async_(fn)()
    assert [call.send(None), call.send("a"), call.send("b")] == [1, 2, 3]
    with pytest.raises(StopIteration) as info:
        call.send("c")
    assert info.value.value == ("a", ("b", "c"))


def test_asyncio_complains_about_a_bare_yield(run):
    """A foreign value yielded to a Task is the Task's error to raise, at the await_."""

    def sync():
        with pytest.raises(RuntimeError):
            await_(trap("not a future"))
        return "on"

    assert green(run, sync) == "on"


# -- as a decorator


@await_
async def plus_one(x, *, by=1):
    """Add one."""
    await asyncio.sleep(0)
    return x + by


class Service:
    @await_
    async def method(self, x):
        await asyncio.sleep(0)
        return (self, x)

    @classmethod
    @await_
    async def made(cls, x):
        await asyncio.sleep(0)
        return (cls, x)

    @staticmethod
    @await_
    async def static(x):
        await asyncio.sleep(0)
        return x


def test_decorated_function(run):
    assert green(run, plus_one, 1) == 2
    assert green(run, lambda: plus_one(1, by=5)) == 6
    assert plus_one.__name__ == "plus_one"
    assert plus_one.__doc__ == "Add one."
    assert plus_one.__module__ == __name__
    assert inspect.iscoroutinefunction(plus_one.__wrapped__)
    assert str(inspect.signature(plus_one)) == "(x, *, by=1)"
    assert not inspect.iscoroutinefunction(plus_one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert not asyncio.iscoroutinefunction(plus_one)


def test_decorated_methods(run):
    def sync():
        service = Service()
        assert service.method(1) == (service, 1)
        assert Service.method(service, 2) == (service, 2)
        assert Service.made(3) == (Service, 3)
        assert Service.static(4) == service.static(4) == 4

    green(run, sync)


def test_decorated_wrong_arguments(run):
    def sync():
        with pytest.raises(TypeError, match="plus_one"):
            plus_one()

    green(run, sync)


def test_decorated_function_that_returns_any_awaitable(run):
    make = await_(lambda x: Awaitable(x))
    assert green(run, make, 3) == 3


def test_both_decorators_undo_each_other(run):
    async def coro(x):
        await asyncio.sleep(0)
        return x

    assert run(async_(await_(coro))(5)) == 5


# -- a coroutine given up on is closed


def test_a_failing_greenlet_closes_what_it_was_awaiting(run):
    closed = []

    async def inner():
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(1)

    async def main():
        task = asyncio.ensure_future(async_(lambda: await_(inner()))())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == [1]

    run(main())


# -- nesting


def nest(depth):
    """depth bridges in each other: async_ -> await_ -> async_ ..."""
    if depth == 0:
        await_(asyncio.sleep(0))
        return 0
    return 1 + await_(hop(depth - 1))


async def hop(depth):
    return await async_(nest)(depth)


@pytest.mark.parametrize("depth", [1, 2, 5, 20, 100, 200])
def test_nested_bridges(run, depth):
    async def main():
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, 5000))
        try:
            return await hop(depth)
        finally:
            sys.setrecursionlimit(limit)

    assert run(main()) == depth


@pytest.mark.leaks(False)  # it repeats already
def test_nesting_again_and_again_needs_no_more_stack(run):
    """A greenlet that began deep was used at the first level, and what it called began deeper."""

    async def main():
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, 5000))
        try:
            for _ in range(50):
                assert await hop(100) == 100
                depths = [1, 50, 2, 100, 3]
                assert await asyncio.gather(*map(hop, depths)) == depths
        finally:
            sys.setrecursionlimit(limit)

    run(main())


def test_nested_bridges_200_within_the_default_recursion_limit(run):
    assert run(hop(200)) == 200


@pytest.mark.parametrize("depth", [400, 1000, 100_000])
def test_nested_too_deep_is_a_recursion_error(run, depth):
    async def main():
        try:
            got = await hop(depth)
        except RecursionError:
            got = None
        assert got in (None, depth)
        # and the bridge is as good as before
        assert await hop(20) == 20
        return got

    got = run(main())
    if depth == 100_000:
        assert got is None


def test_infinite_recursion_below_the_bridge(run):
    def down():
        return down()

    async def main():
        for _ in range(3):
            with pytest.raises(RecursionError):
                await async_(down)()
            await async_(await_)(asyncio.sleep(0))

    run(main())


def test_recursion_depth_inside_equals_that_of_a_fresh_stack(run):
    """Recycled greenlets do not eat up the recursion limit of later jobs."""

    def depth():
        try:
            return 1 + depth()
        except RecursionError:
            return 1

    async def main():
        first = await async_(depth)()
        for _ in range(50):
            await async_(depth)()
            await async_(await_)(asyncio.sleep(0))
        assert abs(await async_(depth)() - first) < 20

    run(main())


def test_many_suspended_at_several_depths(run):
    async def main():
        gate = asyncio.Event()

        def down(n):
            if n == 0:
                await_(gate.wait())
                return 0
            return await_(up(n - 1)) + 1

        async def up(n):
            return await async_(down)(n)

        tasks = [asyncio.ensure_future(up(i % 7)) for i in range(200)]
        for _ in range(3):
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*tasks) == [i % 7 for i in range(200)]

    run(main())


# -- without a loop


def test_plain_program():
    assert await_(value(5)) == 5
    assert plus_one(1) == 2
    with pytest.raises(KeyError):
        await_(raise_key_error())


async def raise_key_error():
    await asyncio.sleep(0)
    raise KeyError("k")


def test_plain_program_runs_on_a_loop_and_leaves_none_running():
    async def where():
        return asyncio.get_running_loop()

    first = await_(where())
    assert not first.is_running()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert asyncio.run(where()) is not first


def test_plain_program_tasks_go_on_while_it_waits():
    done = []

    async def background():
        for _ in range(3):
            await asyncio.sleep(0)
        done.append(1)

    async def start():
        return asyncio.ensure_future(background())

    task = await_(start())
    await_(task)
    assert done == [1]


def test_awaitable_abc():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is never awaited
        assert isinstance(async_(len)(""), collections.abc.Awaitable)
        gc.collect()
