"""async_: what it accepts, what it keeps, and that its awaitable is as good as a coroutine."""

import asyncio
import collections.abc
import functools
import gc
import inspect
import sys
import threading
import warnings

import pytest

import greenletio
from greenletio import async_, await_

pytestmark = pytest.mark.leaks


def add(a, b=10, *args, c=0, **kwargs):
    """Add them up."""
    return (a, b, args, c, kwargs)


class Thing:
    base = 5

    def method(self, x):
        """A method."""
        return (self, x)

    @async_
    def decorated(self, x, *, y=1):
        await_(asyncio.sleep(0))
        return (self, x, y)

    @classmethod
    @async_
    def made(cls, x):
        return (cls, x)

    @staticmethod
    @async_
    def static(x):
        return x

    wrapped_class = async_(classmethod(lambda cls, x: (cls, x)))
    wrapped_static = async_(staticmethod(lambda x: ("static", x)))

    def __call__(self, x):
        return ("called", x)


# -- what it accepts


def test_function(run):
    async def main():
        assert await async_(add)(1) == (1, 10, (), 0, {})
        assert await async_(add)(1, 2, 3, 4, c=5, d=6) == (1, 2, (3, 4), 5, {"d": 6})
        assert await async_(add)(a=1, b=2) == (1, 2, (), 0, {})

    run(main())


def test_wrong_arguments_are_a_type_error(run):
    async def main():
        with pytest.raises(TypeError, match="add"):
            await async_(add)()
        with pytest.raises(TypeError):
            await async_(len)(1, 2, 3)

    run(main())


def test_bound_method(run):
    async def main():
        thing = Thing()
        assert await async_(thing.method)(3) == (thing, 3)

    run(main())


def test_builtin_class_partial_and_callable_object(run):
    async def main():
        assert await async_(len)([1, 2]) == 2
        assert await async_([].append)(1) is None
        assert await async_(dict)(a=1) == {"a": 1}
        assert isinstance(await async_(Thing)(), Thing)
        assert await async_(functools.partial(add, 1, c=3))(2, d=4) == (1, 2, (), 3, {"d": 4})
        assert await async_(Thing())(7) == ("called", 7)
        assert await async_(lambda: 4)() == 4

    run(main())


def test_decorator_in_a_class(run):
    async def main():
        thing = Thing()
        assert await thing.decorated(1) == (thing, 1, 1)
        assert await thing.decorated(1, y=2) == (thing, 1, 2)
        assert await Thing.decorated(thing, 1, y=3) == (thing, 1, 3)
        assert await Thing.made(1) == (Thing, 1)
        assert await thing.made(1) == (Thing, 1)
        assert await Thing.static(1) == 1
        assert await thing.static(1) == 1

    run(main())


@pytest.mark.parametrize("name", ["wrapped_class", "wrapped_static"])
def test_around_classmethod_and_staticmethod_objects(run, name):
    async def main():
        expected = (Thing, 1) if name == "wrapped_class" else ("static", 1)
        assert await getattr(Thing, name)(1) == expected
        assert await getattr(Thing(), name)(1) == expected

    run(main())


def test_with_context_is_accepted(run):
    @async_(with_context=True)
    def one():
        return 1

    @async_(with_context=False)
    def two():
        return 2

    @async_()
    def three():
        return 3

    async def main():
        assert await one() == 1
        assert await two() == 2
        assert await three() == 3
        assert await async_(len, with_context=True)("abcd") == 4

    run(main())


@pytest.mark.parametrize("bad", [1, None.__class__, "f"])
def test_not_callable(bad):
    if callable(bad):
        assert async_(bad) is not None
    else:
        with pytest.raises(TypeError):
            async_(bad)


# -- what it keeps


def test_identity_of_the_function_is_kept():
    wrapped = async_(add)
    assert wrapped.__name__ == "add"
    assert wrapped.__qualname__ == "add"
    assert wrapped.__doc__ == "Add them up."
    assert wrapped.__module__ == add.__module__
    assert wrapped.__wrapped__ is add
    assert inspect.signature(wrapped) == inspect.signature(add)
    assert "add" in repr(wrapped)


def test_identity_of_a_method_is_kept():
    thing = Thing()
    assert thing.decorated.__name__ == "decorated"
    assert thing.decorated.__qualname__ == "Thing.decorated"
    assert thing.decorated.__self__ is thing
    assert list(inspect.signature(thing.decorated).parameters) == ["x", "y"]
    assert list(inspect.signature(Thing.decorated).parameters) == ["self", "x", "y"]


def test_function_attributes_annotations_and_defaults_are_reachable():
    def fn(a: int, b: str = "x") -> bool:
        return True

    fn.tag = "here"
    wrapped = async_(fn)
    assert wrapped.tag == "here"
    assert wrapped.__annotations__ == fn.__annotations__
    wrapped.other = 1
    assert wrapped.other == 1


def test_functools_wraps_and_weakref_of_the_wrapper():
    import weakref

    wrapped = async_(add)
    again = functools.wraps(wrapped)(lambda *a, **k: wrapped(*a, **k))
    assert again.__name__ == "add"
    assert weakref.ref(wrapped)() is wrapped


def test_two_wrappers_of_one_function_do_not_disturb_it():
    first, second = async_(add), async_(add)
    assert first is not second
    assert add(1)[0] == 1
    assert not hasattr(add, "_is_coroutine")


def test_is_a_coroutine_function_to_asyncio_and_inspect():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert asyncio.iscoroutinefunction(async_(add))
        assert asyncio.iscoroutinefunction(Thing().decorated)
    if sys.version_info >= (3, 12):
        assert inspect.iscoroutinefunction(async_(add))
        assert inspect.iscoroutinefunction(Thing().decorated)


def test_the_awaitable_is_a_coroutine_to_asyncio_and_inspect():
    call = async_(add)(1)
    assert asyncio.iscoroutine(call)
    assert inspect.isawaitable(call)
    assert isinstance(call, collections.abc.Coroutine)
    assert call.__name__ == "add"
    assert call.__qualname__ == "add"
    assert "add" in repr(call)
    call.close()


# -- what may be done with the awaitable


def work(x):
    await_(asyncio.sleep(0))
    return x * 2


def fail():
    await_(asyncio.sleep(0))
    raise ValueError("failed")


def test_create_task_and_ensure_future(run):
    async def main():
        task = asyncio.create_task(async_(work)(2), name="green")
        assert task.get_name() == "green"
        assert await task == 4
        assert await asyncio.ensure_future(async_(work)(3)) == 6

    run(main())


def test_gather(run):
    async def main():
        got = await asyncio.gather(*[async_(work)(i) for i in range(50)])
        assert got == [i * 2 for i in range(50)]
        got = await asyncio.gather(async_(fail)(), async_(work)(1), return_exceptions=True)
        assert isinstance(got[0], ValueError) and got[1] == 2

    run(main())


def test_wait_for(run):
    async def main():
        assert await asyncio.wait_for(async_(work)(2), 30) == 4
        ended = []

        def forever():
            try:
                await_(asyncio.Event().wait())
            finally:
                ended.append(1)

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(async_(forever)(), 0.001)
        assert ended == [1]

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup needs Python 3.11")
def test_task_group(run):
    async def main():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(async_(work)(i)) for i in range(5)]
        assert [t.result() for t in tasks] == [0, 2, 4, 6, 8]
        ended = []

        def forever():
            try:
                await_(asyncio.Event().wait())
            finally:
                ended.append(1)

        with pytest.raises(BaseExceptionGroup) as info:  # noqa: F821
            async with asyncio.TaskGroup() as group:
                group.create_task(async_(forever)())
                group.create_task(async_(fail)())
        assert [str(e) for e in info.value.exceptions] == ["failed"]
        assert ended == [1]

    run(main())


def test_shield(run):
    async def main():
        release = asyncio.Event()
        done = []

        def inner():
            await_(release.wait())
            done.append(1)
            return "kept"

        inner_task = asyncio.ensure_future(async_(inner)())

        async def outer():
            await asyncio.shield(inner_task)

        task = asyncio.ensure_future(outer())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        assert await inner_task == "kept" and done == [1]

    run(main())


def test_run_until_complete_takes_the_awaitable(run):
    assert run(async_(work)(21)) == 42


def test_run_coroutine_threadsafe(run):
    async def main():
        loop = asyncio.get_running_loop()
        got = []

        def other():
            got.append(asyncio.run_coroutine_threadsafe(async_(work)(4), loop).result(30))

        thread = threading.Thread(target=other)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.001)
        assert got == [8]

    run(main())


def test_asyncio_debug_mode(run, caplog):
    async def main():
        asyncio.get_running_loop().set_debug(True)
        assert await asyncio.create_task(async_(work)(1)) == 2
        assert await async_(work)(1) == 2

    run(main())
    assert "without __name__" not in caplog.text


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks need Python 3.12")
def test_eager_tasks(loop_kind, run):
    if loop_kind == "uvloop" and sys.version_info >= (3, 13):
        pytest.skip("uvloop hands asyncio's eager factory an argument that it does not know")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        outer = asyncio.current_task()

        async def inner():
            task = asyncio.current_task()
            assert task is not outer
            await asyncio.sleep(0)
            assert asyncio.current_task() is task
            return task

        def sync():
            mine = asyncio.current_task()
            others = [asyncio.ensure_future(async_(lambda: await_(inner()))()) for _ in range(3)]
            assert asyncio.current_task() is mine
            found = await_(asyncio.gather(*others))
            assert asyncio.current_task() is mine
            assert len({*found, mine}) == 4

        await async_(sync)()
        assert asyncio.current_task() is outer
        assert await asyncio.create_task(async_(len)("abc")) == 3
        assert await asyncio.create_task(async_(work)(1)) == 2

    run(main())


def test_never_awaited_warns():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        async_(add)(1)
        gc.collect()
    assert [w.category for w in seen] == [RuntimeWarning]
    assert "add" in str(seen[0].message) and "never awaited" in str(seen[0].message)


def test_closed_before_it_started_does_not_run_nor_warn():
    ran = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call = async_(ran.append)(1)
        call.close()
        call.close()
        del call
        gc.collect()
    assert ran == []


def test_awaited_twice(run):
    async def main():
        call = async_(work)(1)
        assert await call == 2
        with pytest.raises(RuntimeError, match="already awaited|reuse"):
            await call

    run(main())


def test_awaited_by_two_tasks_at_once(run):
    async def main():
        call = async_(work)(1)

        async def waiter():
            return await call

        got = await asyncio.gather(waiter(), waiter(), return_exceptions=True)
        assert 2 in got
        assert sum(isinstance(x, RuntimeError) for x in got) == 1

    run(main())


# -- results and plain calls


def test_a_function_that_never_waits_does_not_yield(run, ticks):
    async def main():
        async with ticks() as count:
            await asyncio.sleep(0)
            before = count[0]
            for _ in range(100):
                await async_(add)(1)
            assert count[0] == before

    run(main())


def test_other_tasks_run_while_the_function_waits(run, ticks):
    async def main():
        async with ticks() as count:

            def sync():
                before = count[0]
                for _ in range(20):
                    await_(asyncio.sleep(0))
                return count[0] - before

            assert await async_(sync)() >= 15

    run(main())


def test_async_of_a_coroutine_function_gives_its_coroutine(run):
    """async_ calls the function; what that returns is not awaited in secret."""

    async def coro():
        return 1

    async def main():
        got = await async_(coro)()
        if inspect.iscoroutine(got):
            got = await got
        assert got == 1

    run(main())


def test_recursion_of_async_function(run):
    @async_
    def down(n):
        return n if n == 0 else await_(down(n - 1)) + 1

    async def main():
        assert await down(20) == 20

    run(main())


def test_subclassing_and_pickling_the_awaitable_is_refused():
    import copy

    call = async_(add)(1)
    with pytest.raises(TypeError):
        copy.copy(call)
    call.close()


def test_public_names():
    assert greenletio.async_ is async_
    for name in greenletio.__all__:
        assert getattr(greenletio, name) is not None
