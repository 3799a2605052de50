"""Context variables and what asyncio and its relatives know about the running task."""

import asyncio
import contextvars
import sys

import pytest
from fix_missing import need

import greenletio
from greenletio import async_, await_

pytestmark = pytest.mark.leaks

var = contextvars.ContextVar("var", default="unset")
other = contextvars.ContextVar("other", default=0)


# -- context variables


def test_sync_sees_the_tasks_values(run):
    async def main():
        var.set("task")
        assert await async_(var.get)() == "task"

    run(main())


@pytest.mark.parametrize("wait", [False, True])
def test_the_task_sees_what_sync_sets(run, wait):
    def sync():
        if wait:
            await_(asyncio.sleep(0))
        var.set("sync")
        if wait:
            await_(asyncio.sleep(0))
        return var.get()

    async def main():
        var.set("task")
        assert await async_(sync)() == "sync"
        assert var.get() == "sync"

    run(main())


def test_sync_sees_what_its_coroutines_set_and_the_other_way_round(run):
    async def coro():
        assert var.get() == "sync"
        await asyncio.sleep(0)
        var.set("coro")
        await asyncio.sleep(0)
        assert var.get() == "coro"

    def sync():
        var.set("sync")
        await_(coro())
        assert var.get() == "coro"

    async def main():
        await async_(sync)()
        assert var.get() == "coro"

    run(main())


def test_with_context_false_is_the_same(run):
    """The seed needed a flag; here it always holds."""

    async def main():
        await async_(var.set, with_context=False)("kept")
        assert var.get() == "kept"
        await async_(with_context=True)(var.set)("kept too")
        assert var.get() == "kept too"

    run(main())


def test_tokens_reset_across_waits(run):
    def sync():
        token = var.set("inner")
        await_(asyncio.sleep(0))
        assert var.get() == "inner"
        var.reset(token)
        assert var.get() == "task"

    async def main():
        token = var.set("task")
        await async_(sync)()
        var.reset(token)
        assert var.get() == "unset"

    run(main())


def test_a_token_of_the_task_is_reset_in_sync(run):
    async def main():
        token = var.set("task")
        await async_(var.reset)(token)
        assert var.get() == "unset"

    run(main())


def test_tasks_do_not_see_each_other(run):
    def sync(i):
        var.set(i)
        for _ in range(5):
            await_(asyncio.sleep(0))
            assert var.get() == i
        var.set(-i)
        await_(asyncio.sleep(0))
        return var.get()

    async def main():
        tasks = [asyncio.ensure_future(async_(sync)(i)) for i in range(50)]
        assert await asyncio.gather(*tasks) == [-i for i in range(50)]
        assert var.get() == "unset"

    run(main())


def test_current_context_is_the_tasks_own(run):
    """copy_context() in sync code copies the task's context, not an empty one."""

    async def main():
        var.set("here")
        copied = await async_(contextvars.copy_context)()
        assert copied[var] == "here"
        copied = await async_(lambda: (await_(asyncio.sleep(0)), contextvars.copy_context())[1])()
        assert copied[var] == "here"

    run(main())


def test_call_soon_in_sync_code_captures_the_context(run):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def sync():
            var.set("captured")
            loop.call_soon(lambda: future.set_result(var.get()))
            var.set("later")

        await async_(sync)()
        assert await future == "captured"

    run(main())


def test_context_run_with_a_wait_inside(run):
    """Context.run in sync code stays entered over a wait, and only there."""
    mine = contextvars.Context()

    def inside():
        assert var.get() == "unset"
        var.set("inside")
        await_(asyncio.sleep(0))
        assert var.get() == "inside"
        await_(asyncio.sleep(0))
        greenletio.sleep(0)
        assert var.get() == "inside"

    def sync():
        var.set("outside")
        mine.run(inside)
        assert var.get() == "outside"
        await_(asyncio.sleep(0))
        assert var.get() == "outside"

    async def watcher():
        for _ in range(6):
            assert var.get() == "unset"
            await asyncio.sleep(0)

    async def main():
        watch = asyncio.ensure_future(watcher())
        await asyncio.ensure_future(async_(sync)())
        await watch
        assert var.get() == "unset"
        assert mine[var] == "inside"

    run(main())


def test_context_run_nested_in_many_greenlets_at_once(run):
    def inside(depth, tag):
        assert var.get() in (tag, "unset") or depth == 0
        var.set((tag, depth))
        await_(asyncio.sleep(0))
        if depth:
            contextvars.copy_context().run(inside_again, depth - 1, tag)
        await_(asyncio.sleep(0))
        assert var.get() == (tag, depth)

    def inside_again(depth, tag):
        var.set(tag)
        inside(depth, tag)

    async def main():
        await asyncio.gather(
            *[asyncio.ensure_future(async_(inside_again)(i % 5, i)) for i in range(40)]
        )

    run(main())


def test_context_run_left_by_an_exception(run):
    mine = contextvars.Context()

    def inside():
        var.set("inside")
        await_(asyncio.sleep(0))
        raise KeyError

    def sync():
        var.set("outside")
        with pytest.raises(KeyError):
            mine.run(inside)
        assert var.get() == "outside"
        mine.run(lambda: None)  # not left entered

    run(async_(sync)())


def test_context_run_cancelled_inside(run):
    mine = contextvars.Context()

    def inside():
        await_(asyncio.Event().wait())

    async def main():
        task = asyncio.ensure_future(async_(mine.run)(inside))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        mine.run(lambda: None)

    run(main())


def test_a_driver_that_changes_context_between_steps():
    """By hand: each send brings the context it was made in, as for a coroutine."""
    import types

    @types.coroutine
    def trap():
        yield

    def sync():
        seen = []
        for _ in range(3):
            seen.append(var.get())
            await_(trap())
        return seen

    async def pure():
        seen = []
        for _ in range(3):
            seen.append(var.get())
            await trap()
        return seen

    results = []
    for make in (async_(sync), pure):
        call = make()
        try:
            for i in range(10):
                context = contextvars.Context()
                context.run(var.set, i)
                context.run(call.send, None)
        except StopIteration as e:
            results.append(e.value)
    assert results == [[0, 1, 2], [0, 1, 2]]


def test_create_task_with_a_context(run):
    if sys.version_info < (3, 11):
        pytest.skip("create_task(context=) needs Python 3.11")

    async def main():
        context = contextvars.copy_context()
        context.run(var.set, "given")

        def sync():
            assert var.get() == "given"
            await_(asyncio.sleep(0))
            var.set("changed")

        await asyncio.get_running_loop().create_task(async_(sync)(), context=context)
        assert context[var] == "changed"
        assert var.get() == "unset"

    run(main())


def test_two_tasks_share_one_context(run):
    if sys.version_info < (3, 11):
        pytest.skip("create_task(context=) needs Python 3.11")

    async def main():
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        context.run(other.set, 0)

        def sync():
            for _ in range(10):
                other.set(other.get() + 1)
                await_(asyncio.sleep(0))

        tasks = [loop.create_task(async_(sync)(), context=context) for _ in range(3)]
        await asyncio.gather(*tasks)
        assert context[other] == 30

    run(main())


def test_spawn_copies_the_context(run):
    async def main():
        var.set("parent")

        def child():
            assert var.get() == "parent"
            var.set("child")
            await_(asyncio.sleep(0))
            assert var.get() == "child"

        green = greenletio.spawn(child)
        var.set("parent changed")
        await green
        assert var.get() == "parent changed"

    run(main())


def test_spawn_in_plain_code_copies_the_context():
    def check():
        var.set("plain")
        got = greenletio.spawn(lambda: (greenletio.sleep(0), var.get(), var.set("child"))).get()
        assert got[1] == "plain"
        assert var.get() == "plain"

    contextvars.copy_context().run(check)


def test_spawn_from_green_code_copies_what_is_current_there(run):
    def sync():
        var.set("green")
        return greenletio.spawn(var.get).get()

    assert run(async_(sync)()) == "green"


def test_plain_await_shares_the_context():
    async def coro():
        assert var.get() == "plain"
        await asyncio.sleep(0)
        var.set("coro")

    def check():
        var.set("plain")
        await_(coro())
        return var.get()

    # a coroutine run from plain code is one the caller waits for: it is run in a task, so a copy
    # would do, but what it sees must be the caller's
    assert contextvars.copy_context().run(check) in ("plain", "coro")


def test_pooled_greenlets_start_with_a_clean_context(run):
    def dirty():
        contextvars.copy_context().run(lambda: (var.set("dirty"), await_(asyncio.sleep(0))))
        var.set("mine")

    async def one(make):
        await make()

    async def main():
        for _ in range(20):
            await asyncio.ensure_future(async_(dirty)())
            assert await asyncio.ensure_future(async_(var.get)()) == "unset"

    run(main())


# -- who runs


def test_current_task(run):
    async def main():
        task = asyncio.current_task()

        async def coro():
            assert asyncio.current_task() is task
            await asyncio.sleep(0)
            assert asyncio.current_task() is task

        def sync():
            assert asyncio.current_task() is task
            await_(coro())
            assert asyncio.current_task() is task
            greenletio.sleep(0)
            assert asyncio.current_task() is task
            assert asyncio.get_running_loop() is task.get_loop()

        await async_(sync)()
        assert asyncio.current_task() is task

    run(main())


def test_current_task_of_spawn_is_its_own(run):
    async def main():
        green = greenletio.spawn(lambda: (greenletio.sleep(0), asyncio.current_task())[1])
        task = await green
        assert task is green.task
        assert task is not asyncio.current_task()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout needs Python 3.11")
def test_asyncio_timeout_inside_await(run):
    async def slow():
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    async def around(fn):
        async with asyncio.timeout(0.001):
            await async_(fn)()

    def sync():
        with pytest.raises(TimeoutError):
            await_(slow())
        with pytest.raises(TimeoutError):
            await_(around(lambda: await_(asyncio.Event().wait())))
        with pytest.raises(TimeoutError):
            await_(around(lambda: greenletio.sleep(3600)))
        return asyncio.current_task().cancelling()

    assert run(async_(sync)()) == 0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup needs Python 3.11")
def test_task_group_inside_await(run):
    async def failing():
        async with asyncio.TaskGroup() as group:
            group.create_task(async_(lambda: await_(asyncio.Event().wait()))())
            group.create_task(raises())

    async def raises():
        await asyncio.sleep(0)
        raise KeyError("k")

    def sync():
        with pytest.raises(BaseExceptionGroup) as info:  # noqa: F821
            await_(failing())
        assert [type(e) for e in info.value.exceptions] == [KeyError]
        await_(asyncio.sleep(0))
        return asyncio.current_task().cancelling()

    async def pure():
        with pytest.raises(BaseExceptionGroup):  # noqa: F821
            await failing()
        await asyncio.sleep(0)
        return asyncio.current_task().cancelling()  # 3.11's TaskGroup leaves 1 behind

    assert run(async_(sync)()) == run(pure())


def test_sniffio(run):
    sniffio = need("sniffio")

    async def coro():
        assert sniffio.current_async_library() == "asyncio"
        await asyncio.sleep(0)
        assert sniffio.current_async_library() == "asyncio"

    def sync():
        assert sniffio.current_async_library() == "asyncio"
        await_(coro())
        assert sniffio.current_async_library() == "asyncio"

    run(async_(sync)())


def test_anyio_inside_await(run):
    anyio = need("anyio")

    async def coro():
        await anyio.sleep(0)
        seen = []
        async with anyio.create_task_group() as group:
            for i in range(3):
                group.start_soon(child, seen, i)
        assert sorted(seen) == [0, 1, 2]
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep(3600)
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.001):
                await async_(greenletio.sleep)(3600)
        assert await anyio.to_thread.run_sync(lambda: 5) == 5
        return "done"

    async def child(seen, i):
        await async_(lambda: await_(anyio.sleep(0)))()
        seen.append(i)

    assert run(async_(lambda: await_(coro()))()) == "done"


def test_anyio_cancel_scope_around_green_code(run):
    anyio = need("anyio")

    async def main():
        for wait in (lambda: await_(anyio.sleep(3600)), lambda: greenletio.sleep(3600)):
            ended = []

            def sync(wait=wait, ended=ended):
                try:
                    wait()
                finally:
                    ended.append(1)

            with anyio.move_on_after(0.001) as scope:
                await async_(sync)()
            assert scope.cancelled_caught and ended == [1]

    run(main())
