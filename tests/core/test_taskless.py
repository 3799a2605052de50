"""Greenlets on our own loop: no asyncio.Task before somebody asks, and then nothing missing."""

import asyncio
import contextvars
import gc

import pytest
from fix_taskless import green_test, has_task, lazy

import greenletio
from greenletio import Group, async_, await_, new_event_loop, sleep, spawn, timeout
from greenletio._core import Waiter

pytestmark = pytest.mark.leaks


@pytest.fixture
def loop_kind():
    return "greenletio"


# -- what needs none


@lazy
@green_test
def test_waits_timeouts_and_joins_need_no_task():
    def work():
        sleep(0)
        sleep(0.001)
        with timeout(60):
            sleep(0)
        with pytest.raises(TimeoutError), timeout(0.001):
            sleep(60)
        inner = spawn(sleep, 0.001)
        assert inner.join(0) is False
        inner.get()
        assert not has_task(inner)
        return 5

    green = spawn(work)
    linked = []
    green.link(lambda g: linked.append(g))
    assert green.get() == 5
    sleep(0), sleep(0)
    assert linked == [green]
    assert not has_task(green)
    assert green.successful and green.exception is None and green.cancel() is False
    assert not has_task(green)
    assert "work" in repr(green) and "finished" in repr(green)


@lazy
@green_test
def test_a_coroutine_that_asks_nothing_needs_none():
    async def nothing(x):
        return x

    async def waits(waiter):
        return await waiter

    waiter = Waiter()
    first = spawn(await_, nothing(3))
    second = spawn(await_, waits(waiter))
    sleep(0)
    waiter.set(4)
    assert (first.get(), second.get()) == (3, 4)
    assert not has_task(first) and not has_task(second)


@lazy
@green_test
def test_a_group_that_succeeds_makes_none():
    with Group() as group:
        greens = [group.spawn(sleep, 0.001) for _ in range(3)]
    assert not any(map(has_task, greens))


# -- who asks


@lazy
@green_test
def test_current_task_while_it_runs():
    var = contextvars.ContextVar("var", default=0)

    def work():
        token = var.set(1)
        task = asyncio.current_task()
        assert isinstance(task, asyncio.Task)
        assert asyncio.current_task() is task and task is green.task
        assert task.get_coro() is greenletio._core.current_call()
        assert "work" in task.get_name()
        assert task in asyncio.all_tasks()
        assert var.get() == 1
        sleep(0)
        assert asyncio.current_task() is task
        sleep(0.001)
        assert asyncio.current_task() is task
        var.reset(token)
        return var.get()

    green = spawn(work)
    assert green.get() == 0
    assert has_task(green) and green.task.done()
    assert var.get() == 0


@lazy
@green_test
def test_current_task_just_before_the_end():
    greens = [spawn(lambda: asyncio.current_task()) for _ in range(3)]

    def fails():
        asyncio.current_task()
        raise ValueError("after")

    failing = spawn(fails)
    assert [g.get() for g in greens] == [g.task for g in greens]
    with pytest.raises(ValueError, match="after"):
        failing.get()


@lazy
@green_test
def test_it_is_nobody_elses_current_task():
    me = asyncio.current_task()
    seen = []

    def work():
        asyncio.get_running_loop().call_soon(lambda: seen.append(asyncio.current_task()))
        mine = asyncio.current_task()
        sleep(0)
        return mine

    green = spawn(work)
    other = spawn(asyncio.current_task)
    assert green.get() is not other.get()
    assert me not in (green.task, other.task)
    assert asyncio.current_task() is me
    assert seen == [None]


@lazy
@green_test
def test_asyncios_timeout_and_task_group():
    async def late():
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)

    async def group():
        async with asyncio.TaskGroup() as tg:
            tasks = [tg.create_task(asyncio.sleep(0.001, i)) for i in range(3)]
        return [t.result() for t in tasks]

    def work():
        sleep(0)
        with pytest.raises(TimeoutError):
            await_(late())
        return await_(group())

    assert spawn(work).get() == [0, 1, 2]


@lazy
@green_test
def test_all_tasks_lists_them_in_every_state():
    waiter = Waiter()
    never, ready, waiting = Waiter(), spawn(sleep, 0), spawn(waiter.wait)
    started = spawn(never.wait)
    sleep(0)
    fresh = spawn(int)
    greens = [ready, waiting, started, fresh]
    assert not any(map(has_task, greens))
    listed = asyncio.all_tasks()
    assert all(map(has_task, greens))
    assert {g.task for g in greens} <= listed
    assert asyncio.current_task() in listed
    waiter.set()
    assert waiting.get() is True
    started.cancel()
    assert started.join()
    assert ready.get() is None and fresh.get() == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@lazy
@green_test
def test_the_task_of_one_that_has_returned():
    green = spawn(lambda: 5)
    green.join()
    assert not has_task(green)
    task = green.task
    assert task.done() and task.result() == 5 and green.get() == 5
    assert asyncio.current_task() is not task


@lazy
@green_test
def test_order_is_kept_when_tasks_are_made():
    log = []
    greens = [spawn(log.append, i) for i in range(5)]
    assert greens[3].task and greens[1].task
    for g in greens:
        g.join()
    assert log == list(range(5))


@lazy
@green_test
def test_a_waiting_one_that_becomes_a_task_does_not_run_before_it_may():
    log = []
    waiter = Waiter()

    def work():
        log.append("starts")
        waiter.wait()
        log.append("ends")

    green = spawn(work)
    sleep(0)
    task = green.task
    sleep(0), sleep(0)
    assert log == ["starts"]
    assert task._fut_waiter is waiter
    waiter.set()
    green.join()
    assert log == ["starts", "ends"]


@lazy
@green_test
def test_set_in_the_same_turn_as_the_task_is_made():
    waiter = Waiter()
    green = spawn(lambda: (waiter.wait(), waiter.result()))
    sleep(0)
    waiter.set(7)
    assert green.task
    assert green.get() == (True, 7)


# -- cancellation


@lazy
@pytest.mark.parametrize("state", ["fresh", "ready", "waiting", "future"])
@green_test
def test_cancel_in_every_state(state):
    log = []

    def work():
        try:
            if state == "ready":
                sleep(0)
            elif state == "waiting":
                sleep(60)
            else:
                await_(asyncio.sleep(60))
        except asyncio.CancelledError as e:
            log.append(e.args)
            sleep(0)
            raise
        finally:
            log.append("finally")

    green = spawn(work)
    if state != "fresh":
        sleep(0)
    assert green.cancel("why") is True
    assert green.join(60)
    assert log == ([] if state == "fresh" else [("why",), "finally"])
    with pytest.raises(asyncio.CancelledError):
        green.get()
    assert green.task.cancelled() and not green.successful


@lazy
@green_test
def test_it_cancels_itself_and_waits():
    async def cancels(future):
        asyncio.current_task().cancel("mine")
        await future

    future = asyncio.get_running_loop().create_future()
    for wait in (lambda: sleep(60), lambda: sleep(0), lambda: await_(future)):

        def work(wait=wait):
            asyncio.current_task().cancel("mine")
            with pytest.raises(asyncio.CancelledError, match="mine"):
                wait()
            return "caught"

        assert spawn(work).get() == "caught"
    assert future.cancelled()  # as a task that waits for it does


@lazy
@green_test
def test_it_cancels_itself_and_ends():
    def returns():
        asyncio.current_task().cancel()
        return 5

    def fails():
        asyncio.current_task().cancel()
        raise ValueError("own")

    green = spawn(returns)
    green.join()
    assert green.task.cancelled()
    with pytest.raises(ValueError, match="own"):
        spawn(fails).get()


@lazy
@green_test
def test_cancelling_is_counted():
    counts = []

    def work():
        try:
            sleep(60)
        except asyncio.CancelledError:
            counts.append(asyncio.current_task().cancelling())
            asyncio.current_task().uncancel()
            counts.append(asyncio.current_task().cancelling())

    green = spawn(work)
    sleep(0)
    green.cancel()
    green.join()
    assert counts == [1, 0]


@lazy
@green_test
def test_what_raises_cancelled_error_is_cancelled():
    def work():
        raise asyncio.CancelledError("own")

    green = spawn(work)
    green.join()
    assert green.task.cancelled() and not green.successful


@lazy
@green_test
def test_a_timeout_and_a_cancellation_are_told_apart():
    def work():
        with timeout(60):
            sleep(60)

    green = spawn(work)
    sleep(0)
    green.cancel()
    green.join()
    assert green.task.cancelled()


# -- joins, links and awaits that began before there was a task


@lazy
@green_test
def test_joins_and_links_move_to_the_task():
    log = []
    waiter = Waiter()
    green = spawn(lambda: (waiter.wait(), 6)[1])
    joiners = [spawn(green.get) for _ in range(3)]
    hasty = spawn(green.join, 0.001)
    kept, undone = log.append, lambda g: log.append("undone")
    green.link(kept)
    green.link(undone)
    sleep(0), sleep(0)
    assert not has_task(green)
    assert green.task
    green.unlink(undone)
    assert hasty.get() is False
    waiter.set()
    assert [j.get() for j in joiners] == [6, 6, 6]
    sleep(0), sleep(0), sleep(0)
    assert log == [green]


@lazy
@green_test
def test_unlink_without_a_task():
    log = []
    green = spawn(sleep, 0)
    green.link(log.append)
    green.unlink(log.append)
    green.join()
    sleep(0), sleep(0)
    assert log == [] and not has_task(green)


@lazy
def test_awaiting_one_that_has_returned_needs_none(run):
    async def main():
        green = spawn(lambda: 5)
        await asyncio.sleep(0.001)
        assert await green == 5
        assert not has_task(green)
        assert await asyncio.gather(green, spawn(lambda: 6)) == [5, 6]

    run(main())


@lazy
def test_cancelling_who_awaits_it_cancels_it(run):
    async def main():
        green = spawn(sleep, 60)
        await asyncio.sleep(0)

        async def awaits():
            await green

        task = asyncio.ensure_future(awaits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert green.ready and green.task.cancelled()

    run(main())


# -- failures


@lazy
@green_test
def test_a_failure_is_kept_by_its_task():
    def work():
        raise LookupError("x")

    green = spawn(work)
    assert green.join()
    assert isinstance(green.exception, LookupError) and green.exception is green.task.exception()


@lazy
@pytest.mark.leaks(False)  # asyncio logs it, and the log is kept
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_loop_ends_it(error):
    def work():
        sleep(0)
        raise error

    async def main():
        green = spawn(work)
        await asyncio.sleep(60)
        return green

    with pytest.raises(error):
        greenletio.run(main())


# -- the end of the loop


@lazy
def test_run_cancels_what_is_left():
    log = []

    def work(wait):
        try:
            wait()
        except asyncio.CancelledError:
            log.append("cancelled")
            sleep(0)
            log.append("cleaned up")
            raise

    async def main():
        spawn(work, lambda: sleep(60))
        spawn(work, Waiter().wait)
        spawn(work, lambda: await_(asyncio.sleep(60)))
        await asyncio.sleep(0.001)
        spawn(log.append, "starts before the loop stops")

    greenletio.run(main())
    assert log.pop(0) == "starts before the loop stops"
    assert sorted(log) == ["cancelled"] * 3 + ["cleaned up"] * 3


@lazy
def test_a_loop_that_stops_goes_on_later():
    log = []
    loop = new_event_loop()

    def work():
        for i in range(3):
            log.append(i)
            sleep(0.001)

    async def start():
        return spawn(work)

    async def finish(green):
        await green

    green = loop.run_until_complete(start())
    assert has_task(green) and green.task in asyncio.all_tasks(loop)
    loop.run_until_complete(finish(green))
    assert log == [0, 1, 2]
    loop.close()


@lazy
def test_closing_the_loop_unwinds_it(run):
    log = []
    loop = new_event_loop()

    def work():
        try:
            sleep(60)
        finally:
            log.append("finally")

    async def start():
        spawn(work)
        await asyncio.sleep(0.001)

    loop.run_until_complete(start())
    loop.set_exception_handler(lambda loop, context: None)  # destroyed while pending
    loop.close()
    gc.collect()
    assert log == ["finally"]


@lazy
def test_the_task_of_one_whose_loop_has_closed():
    async def main():
        green = spawn(lambda: 5)
        await async_(green.join)()
        assert not has_task(green)
        return green

    green = greenletio.run(main())
    assert green.get() == 5
    assert green.task.result() == 5


# -- where it is a task from the beginning


@lazy
@pytest.mark.parametrize("how", ["debug", "factory", "subclass"])
def test_where_somebody_listens_for_tasks_it_is_one_at_once(how):
    made = []

    class Loop(greenletio.EventLoop):
        def create_task(self, coro, **kwargs):
            made.append(coro)
            return super().create_task(coro, **kwargs)

    loop = Loop() if how == "subclass" else new_event_loop()
    if how == "debug":
        loop.set_debug(True)
    elif how == "factory":
        loop.set_task_factory(
            lambda loop, coro, **kw: made.append(coro) or asyncio.Task(coro, loop=loop, **kw)
        )

    async def main():
        green = spawn(int)
        assert has_task(green)
        assert how == "debug" or green.task.get_coro() in made
        return await green

    assert loop.run_until_complete(main()) == 0
    loop.close()
