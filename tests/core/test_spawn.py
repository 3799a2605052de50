"""spawn and Green, in asyncio programs and in plain ones."""

import asyncio
import gc
import threading
import time

import pytest

from greenletio import Green, async_, await_, sleep, spawn

pytestmark = pytest.mark.leaks


@pytest.fixture(params=["green", "plain"])
def call(request, run):
    """Call fn in green code under each loop, or in a plain program."""
    if request.param == "plain":
        return lambda fn: fn()
    return lambda fn: run(async_(fn)())


def fail():
    sleep(0)
    raise ValueError("failed")


def test_result_and_state(call):
    def sync():
        def work(a, *, b):
            sleep(0)
            return a + b

        green = spawn(work, 1, b=2)
        assert isinstance(green, Green)
        assert not green.ready and not green.successful and green.exception is None
        assert green.get() == 3
        assert green.ready and green.successful and green.exception is None
        assert green.get() == 3
        assert green.join() is True
        assert "work" in repr(green)

    call(sync)


def test_it_starts_only_when_the_spawner_waits(call):
    def sync():
        log = []
        green = spawn(log.append, "green")
        log.append("spawner")
        green.join()
        assert log == ["spawner", "green"]

    call(sync)


def test_they_start_in_order_and_run_side_by_side(call):
    def sync():
        log = []

        def work(name):
            for step in range(3):
                log.append((step, name))
                sleep(0)

        greens = [spawn(work, name) for name in "abc"]
        for green in greens:
            green.get()
        assert log == [(step, name) for step in range(3) for name in "abc"]

    call(sync)


def test_failure(call):
    def sync():
        green = spawn(fail)
        assert green.join() is True
        assert green.ready and not green.successful
        assert isinstance(green.exception, ValueError)
        for _ in range(2):
            with pytest.raises(ValueError, match="failed"):
                green.get()

    call(sync)


def test_join_timeout(call):
    def sync():
        green = spawn(sleep, 3600)
        for seconds in (0, 0.001):
            assert green.join(timeout=seconds) is False
        assert not green.ready
        green.cancel()
        assert green.join(60) is True
        assert green.join(timeout=0) is True

    call(sync)


def test_get_timeout(call):
    def sync():
        green = spawn(sleep, 3600)
        with pytest.raises(TimeoutError):
            green.get(timeout=0.001)
        with pytest.raises(TimeoutError):
            green.get(timeout=0)
        assert not green.ready
        green.kill()
        with pytest.raises(asyncio.CancelledError):
            green.get(timeout=60)

    call(sync)


def test_a_timeout_error_of_the_green_is_its_own(call):
    def sync():
        def work():
            raise TimeoutError("mine")

        with pytest.raises(TimeoutError, match="mine"):
            spawn(work).get(timeout=60)

    call(sync)


@pytest.mark.parametrize("name", ["cancel", "kill"])
def test_cancel(call, name):
    def sync():
        log = []

        def work():
            try:
                sleep(3600)
            except asyncio.CancelledError:
                log.append("cancelled")
                sleep(0)
                raise
            finally:
                log.append("finally")

        green = spawn(work)
        sleep(0)
        sleep(0)
        getattr(green, name)()
        assert green.join(60)
        assert log == ["cancelled", "finally"]
        assert green.ready and not green.successful
        with pytest.raises(asyncio.CancelledError):
            green.get()
        getattr(green, name)()

    call(sync)


def test_cancel_before_the_start(call):
    def sync():
        ran = []
        green = spawn(ran.append, 1)
        green.cancel()
        assert green.join(60)
        assert ran == []
        assert not green.successful

    call(sync)


def test_cancel_swallowed(call):
    def sync():
        def work():
            try:
                sleep(3600)
            except asyncio.CancelledError:
                return "no"

        green = spawn(work)
        sleep(0)
        green.cancel()
        assert green.get() == "no"
        assert green.successful

    call(sync)


def test_cancel_itself(call):
    def sync():
        box = []

        def work():
            box[0].cancel()
            sleep(0)
            return "never"

        box.append(spawn(work))
        with pytest.raises(asyncio.CancelledError):
            box[0].get()

    call(sync)


def test_cancel_when_done_changes_nothing(call):
    def sync():
        green = spawn(lambda: 5)
        green.join()
        green.cancel()
        assert green.get() == 5 and green.successful

    call(sync)


def test_link(call):
    def sync():
        log = []
        green = spawn(lambda: 5)
        green.link(lambda g: log.append((g, g.get())))
        green.link(lambda g: log.append("second"))
        assert log == []
        green.join()
        sleep(0)
        sleep(0)
        assert log == [(green, 5), "second"]
        green.link(lambda g: log.append("late"))
        sleep(0)
        sleep(0)
        assert log[-1] == "late"

    call(sync)


def test_link_hears_of_failures_and_cancellation(call):
    def sync():
        seen = []
        failing, cancelled = spawn(fail), spawn(sleep, 3600)
        for green in (failing, cancelled):
            green.link(seen.append)
        cancelled.cancel()
        failing.join()
        cancelled.join()
        sleep(0)
        sleep(0)
        assert set(seen) == {failing, cancelled}
        assert isinstance(failing.exception, ValueError)

    call(sync)


def test_joined_by_many(call):
    def sync():
        target = spawn(lambda: (sleep(0.001), "x")[1])
        joiners = [spawn(target.get) for _ in range(10)]
        assert [j.get() for j in joiners] == ["x"] * 10

    call(sync)


def test_one_joiner_times_out_and_the_others_do_not(call):
    def sync():
        target = spawn(sleep, 0.02)
        hasty, patient = spawn(target.join, 0.001), spawn(target.join)
        assert hasty.get() is False
        assert patient.get() is True

    call(sync)


def test_joining_itself_is_an_error(call):
    def sync():
        box = []

        def work():
            box[0].join(timeout=60)

        box.append(spawn(work))
        with pytest.raises(RuntimeError):
            box[0].get(timeout=60)

    call(sync)


def test_spawn_from_a_green(call):
    def sync():
        def child(n):
            sleep(0)
            return n if n == 0 else spawn(child, n - 1).get() + 1

        assert spawn(child, 20).get() == 20

    call(sync)


def test_spawn_of_something_not_callable():
    with pytest.raises(TypeError):
        spawn(5)


def test_spawn_with_wrong_arguments(call):
    def sync():
        with pytest.raises(TypeError):
            spawn(fail, 1, 2).get()

    call(sync)


# -- from async code


def test_awaited(run):
    async def main():
        green = spawn(lambda: (sleep(0), 5)[1])
        assert await green == 5
        assert await green == 5
        with pytest.raises(ValueError):
            await spawn(fail)
        got = await asyncio.gather(*[spawn(lambda i=i: i) for i in range(5)])
        assert got == list(range(5))
        assert await asyncio.wait_for(spawn(lambda: 3), 60) == 3

    run(main())


def test_its_task(run):
    async def main():
        green = spawn(sleep, 3600)
        assert isinstance(green.task, asyncio.Task)
        assert green.task in asyncio.all_tasks()
        await asyncio.sleep(0)
        green.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await green
        assert green.ready

    run(main())


def test_a_green_nobody_keeps_is_kept_alive(run):
    async def main():
        done = []

        def work():
            sleep(0.005)
            done.append(1)

        spawn(work)
        for _ in range(5):
            gc.collect()
            await asyncio.sleep(0.002)
        while not done:
            await asyncio.sleep(0.001)

    run(main())


def test_wait_in_sync_and_async_at_once(run):
    async def main():
        green = spawn(sleep, 0.001)
        assert await asyncio.gather(async_(green.join)(), green, async_(green.get)()) == [
            True,
            None,
            None,
        ]

    run(main())


# -- failures nobody looks at


def reports(caplog):
    return [r.getMessage() for r in caplog.records if "never retrieved" in r.getMessage()]


def test_a_failure_nobody_retrieves_is_reported(run):
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        loop.set_exception_handler(lambda loop, context: seen.append(context))
        spawn(fail)
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        assert len(seen) == 1
        assert "exception was never retrieved" in seen[0]["message"]
        assert isinstance(seen[0]["exception"], ValueError)

    run(main())


@pytest.mark.parametrize("how", ["get", "exception", "await", "link"])
def test_a_failure_that_was_retrieved_is_not_reported(run, how):
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        loop.set_exception_handler(lambda loop, context: seen.append(context))
        green = spawn(fail)
        if how == "await":
            with pytest.raises(ValueError):
                await green
        elif how == "get":
            with pytest.raises(ValueError):
                await async_(green.get)()
        elif how == "exception":
            await async_(green.join)()
            assert isinstance(green.exception, ValueError)
        else:
            got = []
            green.link(lambda g: got.append(g.exception))
            await async_(green.join)()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert isinstance(got[0], ValueError)
        del green
        for _ in range(3):
            await asyncio.sleep(0)
            gc.collect()
        assert seen == []

    run(main())


def test_a_cancelled_green_is_not_reported(run):
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        loop.set_exception_handler(lambda loop, context: seen.append(context))
        green = spawn(sleep, 3600)
        await asyncio.sleep(0)
        green.cancel()
        del green
        for _ in range(5):
            await asyncio.sleep(0)
            gc.collect()
        assert seen == []

    run(main())


@pytest.mark.leaks(False)  # counts what was logged
def test_a_failure_nobody_retrieves_in_a_plain_program(caplog):
    spawn(fail)
    for _ in range(5):
        sleep(0)
    gc.collect()
    sleep(0)
    assert len(reports(caplog)) == 1


def test_an_error_in_a_link_is_reported(run):
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        loop.set_exception_handler(lambda loop, context: seen.append(context))
        green = spawn(int)

        def bad(green):
            raise LookupError("in link")

        green.link(bad)
        await green
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        assert [type(c["exception"]) for c in seen] == [LookupError]

    run(main())


# -- plain programs and threads


def test_keyboard_interrupt_in_a_green_of_a_plain_program():
    """It comes out where the program waits, as Ctrl-C would."""

    def work():
        raise KeyboardInterrupt

    green = spawn(work)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(5):
            sleep(0)
        green.get()
    sleep(0)
    try:
        green.get()
    except KeyboardInterrupt:
        pass


def test_asyncio_run_after_a_plain_program_spawned():
    """The thread's own loop does not get in the way of a real one."""
    log = []

    def work():
        for i in range(3):
            log.append(i)
            sleep(0)

    green = spawn(work)
    sleep(0)

    async def main():
        await async_(sleep)(0)
        return spawn(lambda: 5)

    asyncio.run(main())
    green.get()
    assert log == [0, 1, 2]


def test_a_green_of_another_thread():
    """State may be read from any thread; joining it needs its own loop: refused with an error."""
    ready = threading.Event()
    stop = threading.Event()
    box = []

    def other():
        def work():
            while not stop.is_set():
                sleep(0.001)
            return "stopped"

        green = spawn(work)
        box.append(green)
        sleep(0)
        ready.set()
        box.append(green.get())

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    green = box[0]
    assert not green.ready
    try:
        joined = green.join(timeout=0.01)
    except RuntimeError:
        joined = False
    assert joined is False
    stop.set()
    thread.join()
    assert box[1] == "stopped" and green.ready


def test_sleep(call):
    def sync():
        import time

        before = time.monotonic()
        sleep(0.01)
        assert time.monotonic() - before >= 0.01
        sleep(0)
        sleep(0.0)
        for bad in ("1", None):
            with pytest.raises(TypeError):
                sleep(bad)
        sleep(-1)
        with pytest.raises(ValueError):
            sleep(float("nan"))

    call(sync)


def test_sleepers_wake_in_order_of_their_times(call):
    def sync():
        log, start = [], time.monotonic()  # one for all: starting a greenlet may take its time

        def wake_at(n):
            sleep(start + n / 20 - time.monotonic())
            log.append(n)

        greens = [spawn(wake_at, n) for n in (5, 1, 4, 2, 3)]
        for g in greens:
            g.get()
        assert log == [1, 2, 3, 4, 5]

    call(sync)


def test_sleep_zero_lets_every_other_one_run_once(call):
    def sync():
        counts = [0] * 5

        def work(i):
            while True:
                counts[i] += 1
                sleep(0)

        greens = [spawn(work, i) for i in range(5)]
        for _ in range(20):
            sleep(0)
        assert max(counts) - min(counts) <= 1 and min(counts) >= 18
        for g in greens:
            g.cancel()
        for g in greens:
            g.join()

    call(sync)


def test_await_of_a_green(run):
    def sync():
        return await_(spawn(lambda: 4))

    assert run(async_(sync)()) == 4
