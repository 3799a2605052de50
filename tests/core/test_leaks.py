"""Repeating anything leaves no memory blocks, objects or file descriptors behind."""

import asyncio
import contextvars
import gc
import itertools
import types
import weakref

import pytest

import greenletio
from greenletio import Group, WouldBlockError, _core, async_, await_, io, sleep, spawn, timeout


@types.coroutine
def trap(value=None):
    return (yield value)


class Boom(Exception):
    pass


def boom():
    await_(asyncio.sleep(0))
    raise Boom


async def aboom():
    await asyncio.sleep(0)
    raise Boom


class Thing:
    @async_
    def method(self, x):
        return self, x

    @await_
    async def amethod(self, x):
        return self, x


def swallow(fn, *kinds):
    try:
        return fn()
    except kinds:
        return None


async def swallow_async(awaitable, *kinds):
    try:
        return await awaitable
    except kinds:
        return None


def add(a, b=0, *args, **kwargs):
    return [a, b, args, kwargs]


def waiter_cycle(waiter):
    waiter.add_done_callback(lambda _: waiter)
    waiter.set(waiter)


def join_too_short(green):
    green.join(0)
    green.join(1e-6)
    green.cancel()
    green.join()


def close_suspended():
    call = async_(lambda: await_(trap()))()
    call.send(None)
    call.close()


def throw_suspended():
    call = async_(lambda: await_(trap()))()
    call.send(None)
    swallow(lambda: call.throw(Boom()), Boom)


def drop_suspended():
    async_(lambda: await_(trap()))().send(None)


def drop_cycle():
    call = async_(lambda: await_(trap()))()
    call.send(None)
    cell = [call]
    cell.append(cell)


def inspect_suspended():
    call = async_(lambda: await_(trap()))()
    repr(call)
    call.send(None)
    assert call.cr_frame and call.greenlet and call.cr_suspended
    repr((call, call.cr_await, _core.calls(), call.__name__, call.__qualname__))
    call.close()
    repr(call)


# Run in a plain program.
PLAIN = {
    "wrap": lambda: (async_(add), await_(aboom), async_(add).__wrapped__, repr(async_(add))),
    "wrap with context": lambda: async_(with_context=True)(add),
    "wrap refused": lambda: swallow(lambda: async_(5), TypeError),
    "bound": lambda: (Thing().method, Thing().amethod),
    "wrapper attributes": lambda: setattr(async_(add), "tag", []),
    "never started": lambda: async_(add)(1, b=2).close(),
    "by hand": lambda: swallow(lambda: async_(add)(1, 2, 3, x=[]).send(None), StopIteration),
    "by hand, iterator": lambda: list(async_(add)(1).__await__()),
    "bad arguments": lambda: swallow(lambda: async_(len)().send(None), TypeError),
    "closed": close_suspended,
    "thrown": throw_suspended,
    "thrown at the start": lambda: swallow(lambda: async_(add)(1).throw(Boom()), Boom),
    "dropped": drop_suspended,
    "dropped in a cycle": drop_cycle,
    "inspected": inspect_suspended,
    "await": lambda: await_(asyncio.sleep(0)),
    "await fails": lambda: swallow(lambda: await_(aboom()), Boom),
    "await refuses": lambda: swallow(lambda: await_(5), TypeError),
    "decorated await": lambda: Thing().amethod(1),
    "sleep": lambda: sleep(0),
    "spawn": lambda: spawn(add, 1, b=2).get(),
    "spawn fails": lambda: swallow(spawn(boom).get, Boom),
    "spawn cancelled": lambda: (lambda g: (g.cancel(), g.join()))(spawn(sleep, 3600)),
    "timeout": lambda: timeout(1).__enter__().__exit__(None, None, None),
    "waiter": lambda: _core.Waiter().set([]),
    "waiter cycle": lambda: (lambda w: (w.add_done_callback(lambda x: w), w.set(w)))(
        _core.Waiter()
    ),
    "waiter fails": lambda: swallow(
        lambda: (lambda w: (w.set_exception(Boom()), w.result()))(_core.Waiter()), Boom
    ),
    "waiter times out": lambda: _core.Waiter().wait(0),
    "waiter arguments": lambda: swallow(lambda: _core.Waiter().set_exception(1), TypeError),
    "fd arguments": lambda: swallow(lambda: io.wait_readable("x"), TypeError, AttributeError),
    "place": lambda: (_core.place(), _core.current_call(), _core.calls()),
    "run": lambda: asyncio.run(async_(sleep)(0)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain(flat, name):
    flat(PLAIN[name], repeat=100)


def green(fn):
    """fn in green code."""
    return lambda: async_(fn)()


def group_fails():
    def body():
        with Group() as group:
            group.spawn(boom)
            group.spawn(sleep, 3600)

    swallow(body, BaseException)


def expire():
    with timeout(0):
        sleep(3600)


async def cancelled(fn):
    task = asyncio.ensure_future(async_(fn)())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await swallow_async(task, asyncio.CancelledError)


def refuse():
    return swallow(lambda: sleep(1), WouldBlockError)


async def async_refuse():
    refuse()
    swallow(lambda: await_(asyncio.sleep(1)), WouldBlockError)
    swallow(lambda: io.wait_readable(0), WouldBlockError)


def nested(n):
    return 0 if n == 0 else await_(async_(nested)(n - 1))


def with_contexts():
    contextvars.copy_context().run(lambda: await_(asyncio.sleep(0)))


# Run in a loop.
LOOP = {
    "call": lambda: async_(add)(1, b=2),
    "method": lambda: Thing().method(1),
    "await at once": green(lambda: Thing().amethod(1)),
    "await that suspends": green(lambda: await_(asyncio.sleep(0))),
    "task": lambda: asyncio.ensure_future(async_(sleep)(0)),
    "fails": lambda: swallow_async(async_(boom)(), Boom),
    "inner fails": lambda: swallow_async(async_(lambda: await_(aboom()))(), Boom),
    "stop iteration": lambda: swallow_async(async_(lambda: next(iter(())))(), RuntimeError),
    "nested": green(lambda: nested(10)),
    "contexts": green(with_contexts),
    "sleep": green(lambda: sleep(0)),
    "sleep a little": green(lambda: sleep(1e-6)),
    "spawn": lambda: spawn(add, 1),
    "spawn joined": green(lambda: spawn(sleep, 0).join()),
    "join times out": green(lambda: join_too_short(spawn(sleep, 3600))),
    "link": green(lambda: (lambda g: (g.link(lambda x: g), g.join()))(spawn(sleep, 0))),
    "group": green(lambda: Group().__enter__().__exit__(None, None, None)),
    "group fails": green(group_fails),
    "timeout expires": green(lambda: swallow(expire, TimeoutError)),
    "cancel sleep": lambda: cancelled(lambda: sleep(3600)),
    "cancel await": lambda: cancelled(lambda: await_(asyncio.Event().wait())),
    "cancel waiter": lambda: cancelled(lambda: _core.Waiter().wait()),
    "cancel waiter with timeout": lambda: cancelled(lambda: _core.Waiter().wait(3600)),
    "cancel join": lambda: cancelled(lambda: spawn(sleep, 0).join()),
    "cancel nested": lambda: cancelled(lambda: nested_wait(5)),
    "refused": async_refuse,
    "gather": lambda: asyncio.gather(*[async_(sleep)(0) for _ in range(5)]),
}


def nested_wait(n):
    if n == 0:
        sleep(3600)
    await_(async_(nested_wait)(n - 1))


@pytest.mark.parametrize("name", LOOP)
def test_loop(run, aflat, name):
    call = LOOP[name]

    async def main():
        await aflat(call, repeat=20)

    run(main())


FDS = {
    "ready": lambda a: io.wait_writable(a),
    "timeout": lambda a: io.wait_readable(a, timeout=1e-6),
    "timeout zero": lambda a: io.wait_readable(a, timeout=0),
    "any": lambda a: io.wait_any([a], [a]),
    "any timeout": lambda a: io.wait_any([a, a], [], timeout=1e-6),
    "bad fd": lambda a: swallow(lambda: io.wait_readable(99_999), OSError),
    "limit": lambda a: swallow(lambda: limited(a), TimeoutError),
    "closing": lambda a: (spawn_and_close(),),
}


def limited(a):
    with timeout(1e-6):
        io.wait_readable(a)


def spawn_and_close():
    import socket

    a, b = socket.socketpair()
    waiting = spawn(io.wait_readable, a)
    sleep(0)
    sleep(0)
    _core.fd_closing(a.fileno())
    a.close()
    b.close()
    swallow(waiting.get, OSError)


@pytest.mark.parametrize("name", FDS)
def test_fds_in_a_loop(run, aflat, pair, name):
    fn = FDS[name]

    async def main():
        await aflat(lambda: async_(fn)(pair[0]), repeat=20)

    run(main())


@pytest.mark.parametrize("name", FDS)
def test_fds_plain(flat, pair, name):
    fn = FDS[name]
    flat(lambda: fn(pair[0]), repeat=100)


def test_cancelled_fd_wait(run, aflat, pair):
    async def main():
        await aflat(lambda: cancelled(lambda: io.wait_readable(pair[0])), repeat=20)

    run(main())


# -- what goes in comes out


def test_nothing_of_a_finished_call_is_kept():
    class Item:
        pass

    refs = []

    def keep(x):
        refs.append(weakref.ref(x))
        return x

    def sync(a, *, b):
        local = keep(Item())
        await_(asyncio.sleep(0))
        assert local
        return keep(Item())

    async def main():
        call = async_(sync)(keep(Item()), b=keep(Item()))
        result = await call
        assert result is not None
        del result
        gc.collect()
        assert [r() for r in refs] == [None] * 4
        assert call is not None

    asyncio.run(main())


def test_nothing_of_an_awaited_object_is_kept():
    class Item:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return self

    async def main():
        ref = await async_(lambda: weakref.ref(await_(Item())))()
        gc.collect()
        assert ref() is None
        await async_(lambda: sleep(0))()

    asyncio.run(main())


def test_suspended_greenlets_are_given_back():
    """A burst of many leaves a bounded pool, not one stack each."""
    import psutil

    process = psutil.Process()

    async def burst(n):
        gate = asyncio.Event()
        tasks = [asyncio.ensure_future(async_(lambda: await_(gate.wait()))()) for _ in range(n)]
        for _ in range(3):
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)

    async def main():
        await burst(3000)
        gc.collect()
        sizes = []
        for _ in range(6):
            await burst(3000)
            gc.collect()
            sizes.append(process.memory_info().rss)
        growth = [b - a for a, b in itertools.pairwise(sizes)]
        assert min(growth) < 1 << 20, growth

    asyncio.run(main())


def test_types_are_collectable_and_tracked():
    """Their instances take part in garbage collection."""
    call = async_(add)(1)
    for thing in (call, async_(add), await_(add), _core.Waiter(), greenletio.timeout(1)):
        assert gc.is_tracked(thing), type(thing)
        assert type(thing).__module__.startswith("greenletio"), type(thing)
    call.close()
