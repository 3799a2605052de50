"""greenletio.debug: stacks joined across the bridge."""

import asyncio
import gc
import io
import os
import signal
import sys
import threading
import types

import pytest
from fix_missing import need
from fix_progress import settle

import greenletio
from greenletio import _core, async_, await_, debug, spawn
from greenletio.io import wait_readable

pytestmark = pytest.mark.leaks


def functions(stack):
    """The names of the stack's frames in this file, without the test's own scope."""
    return [(f.kind, f.function.rsplit(".", 1)[-1]) for f in stack.frames if f.filename == __file__]


def of_task(task):
    (stack,) = [s for s in debug.stacks() if s.task is task]
    return stack


async def outer(wait):
    await async_(middle)(wait)


def middle(wait):
    helper(wait)


def helper(wait):
    await_(inner(wait))


async def inner(wait):
    await async_(innermost)(wait)


def innermost(wait):
    wait()


CHAIN = [
    ("async", "outer"),
    ("sync", "middle"),
    ("sync", "helper"),
    ("async", "inner"),
    ("sync", "innermost"),
]


WAITS = {
    "sleep": lambda pair: greenletio.sleep(3600),
    "future": lambda pair: await_(asyncio.get_running_loop().create_future()),
    "fd": lambda pair: wait_readable(pair[0]),
    "waiter": lambda pair: _core.Waiter().wait(),
    "waiter with timeout": lambda pair: _core.Waiter().wait(3600),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_suspended_task_in_one_piece(run, pair, name):
    wait = WAITS[name]

    def waiting():
        wait(pair)

    async def main():
        task = asyncio.ensure_future(outer(waiting))
        await settle()
        stack = of_task(task)
        assert stack.state == "waiting"
        assert functions(stack)[: len(CHAIN) + 1] == [*CHAIN, ("sync", "waiting")]
        assert stack.waits_for is not None
        assert stack.name == task.get_name()
        task.cancel()

    run(main())


def test_down_to_the_coroutine_at_the_end(run):
    async def last():
        await asyncio.sleep(3600)

    async def main():
        task = asyncio.ensure_future(outer(lambda: await_(last())))
        await settle()
        stack = of_task(task)
        assert functions(stack)[-1] == ("async", "last")
        assert stack.frames[-1].function == "sleep"
        assert asyncio.isfuture(stack.waits_for)
        assert functions(stack)[: len(CHAIN)] == CHAIN
        task.cancel()

    run(main())


def test_line_numbers_and_source(run):
    async def main():
        task = asyncio.ensure_future(outer(lambda: greenletio.sleep(3600)))
        await settle()
        lines = {f.function: f.line for f in of_task(task).frames if f.filename == __file__}
        assert lines["outer"] == "await async_(middle)(wait)"
        assert lines["middle"] == "helper(wait)"
        assert lines["helper"] == "await_(inner(wait))"
        task.cancel()

    run(main())


def test_the_running_one_from_within_green_code(run):
    async def main():
        found = []
        task = asyncio.ensure_future(outer(lambda: found.append(debug.stacks())))
        await task
        (stack,) = [s for s in found[0] if s.task is task]
        assert stack.state == "running"
        assert functions(stack)[: len(CHAIN)] == CHAIN
        assert len(functions(stack)) == len(CHAIN) + 1
        assert stack.frames[-1].filename == __file__

    run(main())


def test_the_running_one_from_within_a_coroutine_under_green_code(run):
    found = []

    async def looks():
        await asyncio.sleep(0)
        found.extend(debug.stacks())

    async def main():
        task = asyncio.ensure_future(outer(lambda: await_(looks())))
        await task
        (stack,) = [s for s in found if s.task is task]
        assert functions(stack)[: len(CHAIN)] == CHAIN
        assert functions(stack)[-1] == ("async", "looks")

    run(main())


def test_the_running_one_from_a_plain_task(run):
    async def main():
        stack = of_task(asyncio.current_task())
        assert stack.state == "running"
        assert functions(stack)[0] == ("async", "main")

    run(main())


def test_a_task_that_is_a_call_and_a_green(run):
    async def main():
        def looks():
            return functions(of_task(asyncio.current_task()))

        assert (await asyncio.ensure_future(async_(looks)()))[0] == ("sync", "looks")
        assert (await spawn(looks))[0] == ("sync", "looks")
        green = spawn(greenletio.sleep, 3600)
        other = spawn(innermost, lambda: greenletio.sleep(3600))
        await settle()
        assert of_task(other.task).call is not None
        assert functions(of_task(other.task))[0] == ("sync", "innermost")
        assert of_task(green.task).state == "waiting"
        green.cancel()
        other.cancel()

    run(main())


def test_states(run):
    async def main():
        task = asyncio.ensure_future(async_(int)())
        assert of_task(task).state == "ready"
        await task
        assert [s for s in debug.stacks() if s.task is task] == []

    run(main())


def test_from_a_callback(run):
    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(outer(lambda: greenletio.sleep(3600)))
        await settle()
        future = loop.create_future()
        loop.call_soon(lambda: future.set_result(debug.stacks()))
        (stack,) = [s for s in await future if s.task is task]
        assert functions(stack)[: len(CHAIN)] == CHAIN
        task.cancel()

    run(main())


def test_a_call_that_no_task_awaits():
    @types.coroutine
    def trap():
        yield

    def sync():
        await_(coro())

    async def coro():
        await async_(deeper)()

    def deeper():
        await_(trap())

    call = async_(sync)()
    call.send(None)
    mine = [s for s in debug.stacks() if s.task is None]
    assert len(mine) == 1
    assert mine[0].call is call and mine[0].state == "waiting"
    assert functions(mine[0]) == [
        ("sync", "sync"),
        ("async", "coro"),
        ("sync", "deeper"),
        ("async", "trap"),
    ]
    call.close()
    assert [s for s in debug.stacks() if s.task is None] == []


def test_a_call_driven_by_hand_looks_at_itself():
    def sync():
        return [functions(s) for s in debug.stacks() if s.task is None]

    with pytest.raises(StopIteration) as info:
        async_(sync)().send(None)
    (names,) = info.value.value
    assert names[0] == ("sync", "sync")


def test_async_generators(run):
    async def numbers():
        await asyncio.sleep(3600)
        yield 1

    async def loops():
        async for _ in numbers():
            pass

    async def main():
        tasks = [
            asyncio.ensure_future(loops()),
            asyncio.ensure_future(async_(lambda: await_(numbers().__anext__()))()),
        ]
        await settle()
        for task in tasks:
            assert ("async", "numbers") in functions(of_task(task))
            assert of_task(task).frames[-1].function == "sleep"
            task.cancel()

    run(main())


def test_a_task_awaited_by_green_code_is_named(run):
    async def main():
        awaited = asyncio.ensure_future(asyncio.sleep(3600))
        task = asyncio.ensure_future(async_(await_)(awaited))
        await settle()
        assert of_task(task).waits_for is awaited
        task.cancel()

    run(main())


def test_only_one_loops(run):
    async def main():
        loop = asyncio.get_running_loop()
        mine = debug.stacks(loop=loop)
        assert [s.task for s in mine] == [asyncio.current_task()]
        other = asyncio.new_event_loop()
        assert debug.stacks(loop=other) == []
        other.close()

    run(main())


def test_loops_of_other_threads(run):
    started = threading.Event()
    stop = threading.Event()

    def in_thread():
        async def main():
            task = asyncio.ensure_future(outer(lambda: greenletio.sleep(3600)))
            task.set_name("theirs")
            await settle()
            started.set()
            while not stop.is_set():
                await asyncio.sleep(0.001)
            task.cancel()

        asyncio.run(main())

    thread = threading.Thread(target=in_thread)
    thread.start()
    started.wait()

    async def main():
        (stack,) = [s for s in debug.stacks() if s.name == "theirs"]
        assert functions(stack)[: len(CHAIN)] == CHAIN

    run(main())
    stop.set()
    thread.join()


def test_while_other_threads_run():
    """Best effort, but never a crash."""
    stop = threading.Event()

    def in_thread():
        async def main():
            while not stop.is_set():
                await asyncio.gather(*[outer(lambda: greenletio.sleep(0)) for _ in range(5)])

        asyncio.run(main())

    threads = [threading.Thread(target=in_thread) for _ in range(3)]
    for t in threads:
        t.start()
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        for _ in range(40):
            debug.dump(io.StringIO())
    finally:
        sys.setswitchinterval(old)
        stop.set()
        for t in threads:
            t.join()


def test_dump(run):
    async def main():
        task = asyncio.ensure_future(outer(lambda: greenletio.sleep(3600)))
        task.set_name("a name")
        await settle()
        text = io.StringIO()
        debug.dump(text)
        dumped = text.getvalue()
        assert "task 'a name', waiting" in dumped
        assert f'File "{__file__}", line ' in dumped
        assert "in helper [sync]" in dumped and "in inner [async]" in dumped
        assert "    await_(inner(wait))" in dumped
        assert "waits for <" in dumped
        only = io.StringIO()
        debug.dump(only, loop=asyncio.get_running_loop())
        assert "a name" in only.getvalue()
        task.cancel()

    run(main())


def test_dump_goes_to_standard_error(run, capsys):
    async def main():
        debug.dump()

    run(main())
    assert "main [async]" in capsys.readouterr().err


def test_a_repr_that_fails(run):
    class Bad(asyncio.Future):
        def __repr__(self):
            raise LookupError("no")

    async def main():
        task = asyncio.ensure_future(async_(await_)(Bad()))
        await asyncio.sleep(0)
        out = io.StringIO()
        debug.dump(out)
        task.cancel()
        assert "waits for <Bad, whose repr fails: no>" in out.getvalue()

    run(main())


def test_nothing_is_kept_alive(run):
    import weakref

    class Local:
        pass

    refs = []

    def keeps():
        local = Local()
        refs.append(weakref.ref(local))
        greenletio.sleep(0.001)
        return local and None

    async def main():
        task = asyncio.ensure_future(async_(keeps)())
        await settle()
        debug.dump(io.StringIO())
        await task
        del task
        gc.collect()
        assert refs[0]() is None

    run(main())


def test_plain_program_with_greens():
    green = spawn(innermost, lambda: greenletio.sleep(3600))
    greenletio.sleep(0)
    greenletio.sleep(0)
    assert functions(of_task(green.task))[0] == ("sync", "innermost")
    green.cancel()
    green.join()


def test_install(run, capfd):
    old = signal.getsignal(signal.SIGUSR2)
    debug.install(signal.SIGUSR2)
    try:

        async def main():
            asyncio.current_task().set_name("hit by a signal")
            os.kill(os.getpid(), signal.SIGUSR2)
            await asyncio.sleep(0.01)

        run(main())
    finally:
        signal.signal(signal.SIGUSR2, old)
    assert "hit by a signal" in capfd.readouterr().err


def test_under_trio():
    trio = need("trio")
    found = []

    async def main():
        await async_(lambda: await_(look()))()

    async def look():
        await trio.lowlevel.checkpoint()
        found.extend(debug.stacks())

    trio.run(main)
    assert any(("async", "look") in functions(s) for s in found)


def test_public_names():
    for name in debug.__all__:
        assert getattr(debug, name).__doc__
