"""The bridge under trio: async_ and await_, the waits, cancellation."""

import contextvars

import pytest
from fix_missing import need

import greenletio
from greenletio import WouldBlockError, _core, async_, await_, io, timeout

trio = need("trio")
var = contextvars.ContextVar("var", default="unset")


async def value(x, turns=1):
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    return x


def test_calls_and_results():
    def sync(a, *, b):
        return await_(value(a)), await_(value(b, 0))

    async def main():
        assert await async_(sync)(1, b=2) == (1, 2)
        with pytest.raises(KeyError):
            await async_(lambda: await_(fail()))()

    async def fail():
        await trio.lowlevel.checkpoint()
        raise KeyError

    trio.run(main)


def test_nested():
    def down(n):
        return 0 if n == 0 else await_(up(n - 1)) + 1

    async def up(n):
        await trio.lowlevel.checkpoint()
        return await async_(down)(n)

    async def main():
        assert await up(20) == 20

    trio.run(main)


def test_side_by_side():
    log = []

    def sync(name):
        for step in range(3):
            log.append((step, name))
            await_(trio.lowlevel.checkpoint())

    async def main():
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(async_(sync), name)

    trio.run(main)
    assert sorted(log) == [(step, name) for step in range(3) for name in "abc"]


def test_start_soon_takes_an_async_function():
    done = []

    @async_
    def sync(x):
        await_(trio.sleep(0))
        done.append(x)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync, 5)
        await async_(lambda: await_(trio.sleep(0)))()

    trio.run(main)
    assert done == [5]
    trio.run(async_(done.append), 6)
    assert done == [5, 6]


def test_context_variables():
    def sync():
        assert var.get() == "task"
        await_(trio.lowlevel.checkpoint())
        var.set("sync")

    async def main():
        var.set("task")
        await async_(sync)()
        assert var.get() == "sync"

    trio.run(main)


def test_current_task_and_sniffio():
    sniffio = need("sniffio")

    async def main():
        task = trio.lowlevel.current_task()

        def sync():
            assert trio.lowlevel.current_task() is task
            assert sniffio.current_async_library() == "trio"
            await_(trio.lowlevel.checkpoint())
            assert trio.lowlevel.current_task() is task

        await async_(sync)()

    trio.run(main)


WAITS = {
    "await_": lambda a: await_(trio.sleep_forever()),
    "sleep": lambda a: greenletio.sleep(3600),
    "wait_readable": lambda a: io.wait_readable(a),
    "wait_readable with timeout": lambda a: io.wait_readable(a, timeout=3600),
    "waiter": lambda a: _core.Waiter().wait(),
}


@pytest.mark.parametrize("name", WAITS)
def test_cancellation(pair, name):
    log = []

    def sync():
        try:
            WAITS[name](pair[0])
        except trio.Cancelled:
            log.append("cancelled")
            raise
        finally:
            with trio.CancelScope(shield=True):
                await_(trio.lowlevel.checkpoint())
            log.append("finally")

    async def main():
        with trio.move_on_after(0.01) as scope:
            await async_(sync)()
        assert scope.cancelled_caught
        await async_(lambda: await_(trio.lowlevel.checkpoint()))()

    trio.run(main)
    assert log == ["cancelled", "finally"]


def test_waits(pair):
    a, b = pair

    def sync():
        greenletio.sleep(0)
        greenletio.sleep(0.001)
        assert io.wait_writable(a) is True
        assert io.wait_readable(a, timeout=0.001) is False
        b.send(b"x")
        assert io.wait_readable(a, timeout=60) is True
        assert _core.Waiter().wait(0.001) is False

    async def main():
        await async_(sync)()

    trio.run(main)


def test_other_tasks_run_while_it_waits(pair):
    a, b = pair
    turns = [0]

    async def ticker():
        while True:
            turns[0] += 1
            await trio.lowlevel.checkpoint()

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticker)

            def sync():
                before = turns[0]
                assert io.wait_readable(a, timeout=0.1) is False
                return turns[0] - before

            assert await async_(sync)() > 3
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_waiter_set_by_a_task_and_by_a_thread():
    import trio.testing

    async def main():
        for use_thread in (False, True):
            waiter = _core.Waiter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(async_(waiter.wait))
                await trio.testing.wait_all_tasks_blocked()
                if use_thread:
                    await trio.to_thread.run_sync(waiter.set)
                else:
                    waiter.set()

    trio.run(main)


def test_timeouts():
    def sync():
        with pytest.raises(TimeoutError):
            with timeout(0.005):
                greenletio.sleep(3600)
        with pytest.raises(TimeoutError):
            with timeout(0.005):
                await_(trio.sleep_forever())
        with timeout(60):
            greenletio.sleep(0.001)
        with pytest.raises(trio.TooSlowError):
            await_(too_slow())

    async def too_slow():
        with trio.fail_after(0.001):
            await async_(greenletio.sleep)(3600)

    async def main():
        await async_(sync)()
        await trio.lowlevel.checkpoint()

    trio.run(main)


def test_directly_in_a_task_it_is_refused(pair):
    async def main():
        for call in (
            lambda: await_(trio.lowlevel.checkpoint()),
            lambda: greenletio.sleep(1),
            lambda: io.wait_readable(pair[0]),
        ):
            with pytest.raises(WouldBlockError):
                call()
        await trio.lowlevel.checkpoint()

    trio.run(main)


def test_place():
    async def main():
        assert _core.place() == -1
        assert await async_(_core.place)() == 1

    trio.run(main)
    assert _core.place() == 0


def test_unfinished_are_unwound():
    log = []

    def sync():
        try:
            await_(trio.sleep_forever())
        finally:
            log.append("finally")

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(async_(sync))
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert log == ["finally"]
    assert list(_core.calls()) == []


def test_trio_and_asyncio_one_after_the_other(run):
    import asyncio

    async def main():
        await async_(lambda: await_(trio.lowlevel.checkpoint()))()

    async def other():
        await async_(lambda: await_(asyncio.sleep(0)))()

    for _ in range(3):
        trio.run(main)
        run(other())
        await_(asyncio.sleep(0))


def test_anyio_on_trio():
    anyio = need("anyio")

    def sync():
        await_(anyio.sleep(0))
        return await_(grouped())

    async def grouped():
        got = []

        async def child(i):
            await async_(lambda: await_(anyio.sleep(0)))()
            got.append(i)

        async with anyio.create_task_group() as group:
            for i in range(3):
                group.start_soon(child, i)
        return sorted(got)

    async def main():
        assert await async_(sync)() == [0, 1, 2]

    anyio.run(main, backend="trio")
