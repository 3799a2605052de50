"""The loop itself: handles and timers, what may happen in the middle of them, closing."""

import asyncio
import contextlib
import contextvars
import copy
import gc
import math
import os
import pickle
import signal
import sys
import threading
import weakref

import pytest
from fix_loops import LIKE_ASYNCIO
from fix_sockets import bound, epolls, settle, stream_pair

import greenletio
from greenletio import _core, async_, io


@pytest.fixture
def loop():
    loop = greenletio.new_event_loop()
    yield loop
    loop.close()


def one_turn(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


# --- handles --------------------------------------------------------------------------------------


def test_timer_handles_go_into_sets_and_dicts(loop):
    timers = {loop.call_later(n, print): n for n in (1, 1, 2)}
    assert len(timers) == 3
    for timer, n in timers.items():
        assert timers[timer] == n
        timer.cancel()
    assert sorted(timers, key=lambda timer: timer.when()) == sorted(timers)


def test_only_a_loop_makes_handles(loop):
    """Each kind of handle is laid out, and freed, in one way: no other class may get at it."""

    class Sub(_core.Handle):
        pass

    for make in (
        Sub,
        _core.Handle,
        _core.TimerHandle,
        lambda: object.__new__(Sub),
        lambda: object.__new__(_core.TimerHandle),
    ):
        with pytest.raises(TypeError):
            make()
    timer = loop.call_later(1, print)
    for other in (_core.Handle, Sub):
        with pytest.raises(TypeError):
            timer.__class__ = other
    with pytest.raises(TypeError):
        _core.Handle.cancel = print
    timer.cancel()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_nothing_of_the_loop_can_be_copied(loop, duplicate):
    a, b = stream_pair()
    with a, b:
        for thing in (loop, loop.call_soon(print), loop.call_later(1, print), loop.sock_recv(a, 1)):
            with pytest.raises(TypeError, match="cannot pickle"):
                duplicate(thing)


@LIKE_ASYNCIO
def test_arguments_by_keyword(run):
    async def main():
        loop = asyncio.get_running_loop()
        called = []

        def call(what="call"):
            called.append(what)

        loop.call_soon(callback=call)
        loop.call_soon_threadsafe(callback=call)
        loop.call_later(0, callback=call)
        loop.call_later(callback=call, delay=0)
        loop.call_at(when=loop.time(), callback=call)
        await loop.create_task(coro=asyncio.sleep(0.001))
        while len(called) < 5:
            await asyncio.sleep(0)
        for wrong in (
            lambda: loop.call_soon(),
            lambda: loop.call_later(1),
            lambda: loop.call_at(),
            lambda: loop.call_soon(call, context=None, what=1),
            lambda: loop.call_later(1, call, what=1),
        ):
            with pytest.raises(TypeError, match="argument"):
                wrong()
        a, b = stream_pair()
        with a, b:
            ready = loop.create_future()
            loop.add_writer(fd=a, callback=lambda: ready.done() or ready.set_result(None))
            await ready
            assert loop.remove_writer(a)
            arrived = loop.create_future()
            loop.add_reader(a, callback=lambda: arrived.done() or arrived.set_result(None))
            b.send(b"x")
            await arrived
            assert loop.remove_reader(a)

    run(main())


def test_a_context_that_refers_to_the_loop_does_not_keep_it_alive():
    """Most handles have a copy of the context that the garbage collector is not told of."""

    class Box:
        pass

    var = contextvars.ContextVar("var")
    box = Box()
    box.loop = greenletio.new_event_loop()
    ref = weakref.ref(box)

    def schedule(box):
        var.set(box)
        box.loop.call_soon(print)
        box.loop.call_later(1, print)

    contextvars.copy_context().run(schedule, box)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del box
        gc.collect()
    assert ref() is None


# --- timers ---------------------------------------------------------------------------------------


def test_moments_that_are_none(loop):
    called = []
    never = loop.call_later(math.inf, called.append, "never")
    loop.call_at(-math.inf, called.append, "long ago")
    loop.call_later(-math.inf, called.append, "before")
    loop.call_later(-1, called.append, "late")
    loop.call_later(1e300, called.append, "never")
    for moment in (math.nan, None, "1", 10**400):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            loop.call_later(moment, print)
        with pytest.raises((ValueError, TypeError, OverflowError)):
            loop.call_at(moment, print)
    for _ in range(2):
        one_turn(loop)
    assert sorted(called) == ["before", "late", "long ago"]
    assert never.when() == math.inf
    never.cancel()


def test_cancelling_by_the_way_of_asyncios_handles_changes_nothing(loop):
    called = []
    timer = loop.call_later(0, called.append, 1)
    for handle in (timer, loop.call_soon(called.append, 2), object()):
        loop._timer_handle_cancelled(handle)
    one_turn(loop)
    assert sorted(called) == [1, 2]
    timer.cancel()


def test_the_loop_is_closed_by_what_is_asked_for_the_delay(loop):
    class Delay:
        def __float__(self):
            loop.close()
            return 0.0

    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(Delay(), print)


@pytest.mark.parametrize("debug", [False, True])
def test_other_threads_are_heard_by_keyword_and_in_debug_mode(run, debug):
    """Python 3.14 has its own handles for them, which it puts into a queue of its own."""

    async def main():
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, int, "7") == 7
        heard = asyncio.Event()
        threading.Thread(target=lambda: loop.call_soon_threadsafe(callback=heard.set)).start()
        await asyncio.wait_for(heard.wait(), 30)

    run(main(), debug=debug)


# --- in the middle of things ----------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
def test_what_must_not_be_done_while_it_runs(run_ours, debug):
    async def main():
        loop = asyncio.get_running_loop()
        for attempt in (loop.run_forever, loop.close, loop._run_once):
            with pytest.raises(RuntimeError, match="running"):
                attempt()
        other = greenletio.new_event_loop()
        with pytest.raises(RuntimeError, match="running"):
            other.run_forever()
        other.close()
        await asyncio.sleep(0)

    run_ours(main(), debug=debug)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_run_leaves_the_rest_for_the_next(loop, exception):
    called = []

    def fail():
        raise exception

    for n in range(3):
        loop.call_soon(fail)
        loop.call_soon(called.append, n)
        loop.call_later(0, called.append, n)
    for _ in range(3):
        with pytest.raises(exception):
            loop.run_forever()
    for _ in range(3):
        one_turn(loop)
    assert sorted(called) == [0, 0, 1, 1, 2, 2]


def test_callbacks_that_cancel_themselves_and_each_other(loop):
    called = []
    handles = []

    def call(n):
        called.append(n)
        for handle in handles:
            handle.cancel()
        handles[n]._run()  # over: not a second time

    handles += [loop.call_soon(call, n) for n in range(3)]
    handles += [loop.call_later(0, call, n) for n in range(3, 6)]
    for _ in range(3):
        one_turn(loop)
    assert called == [0]
    assert all(handle.cancelled() for handle in handles)


def test_what_is_dropped_with_a_handle_may_use_the_loop(loop):
    """The last reference to an object goes with a handle: what it does then, the loop bears."""
    done = []

    class Last:
        def __init__(self, fn):
            self.fn = fn

        def __del__(self):
            self.fn()
            done.append(self.fn)

    timers = [loop.call_later(1000, print) for _ in range(200)]

    def cancel_all():
        for timer in timers:
            timer.cancel()

    for fn in (
        cancel_all,
        lambda: loop.call_soon(str),
        lambda: [loop.call_later(1000, print).cancel() for _ in range(200)],
        lambda: loop.call_later(0, done.append, None),
        gc.collect,
    ):
        loop.call_soon(lambda last: None, Last(fn))
        loop.call_soon(print, Last(fn)).cancel()
        loop.call_later(1000, print, Last(fn)).cancel()
        loop.call_later(0, lambda last: None, Last(fn))
    for _ in range(5):
        one_turn(loop)
    last = [loop.call_later(1000, print, Last(loop.close)), loop.call_soon(print, Last(loop.close))]
    loop.close()
    del last
    assert done.count(loop.close) == 2
    assert len([fn for fn in done if fn is not None]) == 22


def test_an_epoll_that_was_closed_ends_the_run():
    """As with asyncio's loop; libevent alone would try again for ever."""
    before = epolls()
    loop = greenletio.new_event_loop()
    (epoll,) = epolls() - before

    async def main():
        os.close(epoll)
        loop.call_later(10, loop.stop)
        await loop.create_future()

    main = loop.create_task(main())
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.run_until_complete(main)
    main._log_destroy_pending = False
    loop.close()


# --- signals --------------------------------------------------------------------------------------


def test_the_wakeup_fd_of_before_was_closed_meanwhile(run_ours):
    a, b = stream_pair()
    with b:
        signal.set_wakeup_fd(a.fileno())

        async def main():
            a.close()

        run_ours(main())
        assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_handler_calls_in(run_ours):
    """Python's handlers run in the main thread, between two of its instructions: here, after the
    poll that the signal has ended."""

    async def main():
        loop = asyncio.get_running_loop()
        called = asyncio.Queue()

        def handler(*args):
            loop.call_soon_threadsafe(called.put_nowait, 1)
            loop.call_later(0, called.put_nowait, 2)

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            for _ in range(20):
                await loop.run_in_executor(None, os.kill, os.getpid(), signal.SIGUSR1)
                assert {await called.get(), await called.get()} == {1, 2}
                loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
                assert {await called.get(), await called.get()} == {1, 2}
        finally:
            signal.signal(signal.SIGUSR1, before)

    run_ours(main())


def test_what_a_signal_handler_raises_ends_the_run(loop):
    class Stop(Exception):
        pass

    def handler(*args):
        raise Stop

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        thread = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1))
        loop.call_soon(thread.start)
        with pytest.raises(Stop):
            loop.run_forever()
        thread.join()
        loop.run_until_complete(everything())
    finally:
        signal.signal(signal.SIGUSR1, before)


# --- threads --------------------------------------------------------------------------------------


def in_threads(*functions):
    """Run each in a thread; what one raises is raised here."""
    raised = []

    def run(fn):
        try:
            fn()
        except BaseException as exc:
            raised.append(exc)

    threads = [threading.Thread(target=run, args=(fn,)) for fn in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


async def everything():
    """Every kind of thing that a loop does, once."""
    loop = asyncio.get_running_loop()
    a, b = stream_pair()
    with a, b:
        received = asyncio.create_task(loop.sock_recv(a, 10))
        await settle()
        await loop.sock_sendall(b, b"1")
        assert await received == b"1"
        green = asyncio.create_task(async_(io.wait_readable)(a))
        await asyncio.sleep(0.001)
        b.send(b"2")
        assert await green is True
        assert a.recv(1) == b"2"
        seen = loop.create_future()
        loop.add_reader(a, lambda: seen.done() or seen.set_result(None))
        b.send(b"3")
        await seen
        loop.remove_reader(a)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(async_(greenletio.sleep)(1000), 0.001)

    async def echo(reader, writer):
        writer.write(await reader.readexactly(3))
        await writer.drain()
        writer.close()

    with bound() as listener:
        async with await asyncio.start_server(echo, sock=listener) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"abc")
            assert await reader.read() == b"abc"
            writer.close()
            await writer.wait_closed()
    ident = await loop.run_in_executor(None, threading.get_ident)
    assert ident != threading.get_ident()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "exit(5)")
    assert await process.wait() == 5


def test_everything_in_another_thread():
    in_threads(lambda: greenletio.run(everything()))


def test_several_loops_in_several_threads_at_once():
    in_threads(*[lambda: greenletio.run(everything())] * 3)


def test_loops_of_several_threads_call_each_other():
    """A ring of loops hands numbers around; each is asleep in its poll when it is called."""
    loops, ready, rounds = {}, threading.Barrier(4), 200

    def of(n):
        async def main():
            loop = loops[n] = asyncio.get_running_loop()
            inbox = asyncio.Queue()
            loop.inbox = inbox
            ready.wait()
            after = loops[(n + 1) % 4]
            if n == 0:
                after.call_soon_threadsafe(after.inbox.put_nowait, 0)
            for turn in range(rounds):
                value = await inbox.get()
                assert value == turn * 4 + (n - 1) % 4
                if n != 0 or turn < rounds - 1:
                    after.call_soon_threadsafe(after.inbox.put_nowait, value + 1)
            ready.wait()  # nobody closes a loop that is still called

        return lambda: greenletio.run(main())

    in_threads(*map(of, range(4)))


def test_threads_call_in_while_the_loop_closes():
    """Each call is made, or refused, or forgotten with the loop; none is half made."""
    for _ in range(30):
        loop = greenletio.new_event_loop()
        called, go = [], threading.Event()

        def call_in(loop=loop, called=called, go=go):
            with contextlib.suppress(RuntimeError):
                while True:
                    loop.call_soon_threadsafe(called.append, 1)
                    loop.call_later(0.001, called.append, 1).cancel()
                    go.set()

        threads = [threading.Thread(target=call_in) for _ in range(3)]
        for thread in threads:
            thread.start()
        go.wait()
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        for thread in threads:
            thread.join()
        assert called
        with pytest.raises(RuntimeError, match="closed"):
            loop.call_soon_threadsafe(print)


def test_a_loop_moves_from_thread_to_thread(loop):
    for _ in range(3):
        in_threads(lambda: loop.run_until_complete(everything()))
        loop.run_until_complete(everything())


def test_another_thread_closes_it_after_it_ran():
    """The greenlets that were suspended on it can be unwound in their own thread only."""
    done, closed, unwound = threading.Event(), threading.Event(), []
    loop = greenletio.new_event_loop()

    def sync():
        try:
            greenletio.sleep(1000)
        finally:
            unwound.append(threading.get_ident())

    def run():
        task = loop.create_task(async_(sync)())
        task._log_destroy_pending = False
        loop.run_until_complete(settle())
        done.set()
        closed.wait()
        del task

    thread = threading.Thread(target=run)
    thread.start()
    done.wait()
    loop.close()
    ident = thread.ident
    closed.set()
    thread.join()
    assert unwound == [ident]


def test_another_thread_may_not_close_it_while_it_polls(loop):
    polling = threading.Event()
    loop.call_soon(polling.set)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    polling.wait()
    for attempt in (loop.close, loop.run_forever):
        with pytest.raises(RuntimeError, match="running"):
            attempt()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


# --- closing --------------------------------------------------------------------------------------


class Protocol(asyncio.Protocol):
    pass


def pending(loop, keep, green):
    """Everything that can be pending on a loop that is not run any more; `keep` keeps the fds."""

    async def wait(fn, *args):
        await fn(*args)

    async def start():
        a, b = stream_pair()
        c, d = stream_pair()
        e, f = stream_pair()
        keep.extend((a, b, c, d, f))
        loop.add_reader(a, str, a)
        loop.add_writer(b, str, b)
        transport, _ = await loop.create_connection(Protocol, sock=e)
        transport.write(bytes(1 << 22))  # more than fits
        server = await loop.create_server(Protocol, "127.0.0.1", 0)
        tasks = [
            asyncio.create_task(wait(fn, *args))
            for fn, *args in (
                (loop.sock_recv, c, 1),
                (loop.sock_sendall, d, bytes(1 << 22)),
                (asyncio.sleep, 1000),
                (asyncio.Event().wait,),
                (async_(io.wait_readable), c),
                (async_(greenletio.sleep), 1000),
                (async_(lambda: greenletio.await_(asyncio.Event().wait())),),
            )[: 7 if green else 4]
        ]
        await settle()
        return tasks, transport, server

    tasks, transport, server = loop.run_until_complete(start())
    loop.remove_writer(keep[1])
    for task in tasks:
        task._log_destroy_pending = False
    loop.call_soon(print, loop)
    loop.call_soon_threadsafe(print, loop)
    loop.call_later(0, print, loop)
    loop.call_later(1000, print, loop)
    return tasks, transport, server


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_closing_with_everything_pending(how, debug):
    greenletio.run(async_(greenletio.sleep)(0))  # the thread keeps the hub that it used last
    gc.collect()
    fds = len(os.listdir("/proc/self/fd"))
    loop = greenletio.new_event_loop()
    loop.set_debug(debug)
    keep = []
    # A suspended greenlet, whose stack nobody can look into, needs the loop to be closed.
    left = pending(loop, keep, green=how == "closed")
    refs = [weakref.ref(task) for task in left[0]]
    if how == "closed":
        loop.close()
        loop.close()
        assert loop.is_closed()
    transport = left[1]
    del left
    if how == "closed":
        with pytest.raises(RuntimeError, match="closed"):
            transport.abort()
    refs.append(weakref.ref(loop))
    del loop, transport
    gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)
    for sock in keep:
        sock.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= fds


def test_a_closed_loop_refuses(loop):
    loop.close()
    a, b = stream_pair()
    with a, b:
        for attempt in (
            lambda: loop.call_soon(print),
            lambda: loop.call_soon_threadsafe(print),
            lambda: loop.call_later(1, print),
            lambda: loop.call_at(1, print),
            lambda: loop.add_reader(a, print),
            lambda: loop.add_writer(a, print),
            lambda: loop.sock_recv(a, 1).send(None),
            lambda: loop.run_forever(),
            lambda: loop._run_once(),
            lambda: loop._add_callback(asyncio.Handle(print, (), loop)),
        ):
            with pytest.raises(RuntimeError, match="closed"):
                attempt()
        assert not loop.remove_reader(a)
        assert not loop.remove_writer(a)
        assert loop.time() > 0


def test_without_init_it_has_no_more_than_its_c_half():
    """What __new__ makes is no loop yet, but nothing that breaks."""
    for cls in (greenletio.EventLoop, _core.Loop):
        loop = cls.__new__(cls)
        called = []
        loop.call_soon(called.append, 1)
        loop.call_later(0, called.append, 2)
        loop._stopping = True
        loop._run_once()
        loop._run_once()
        assert called == [1, 2]
        a, b = stream_pair()
        with a, b:
            assert loop._add_reader(a, print)
            loop._release()
        assert loop._closed
        del loop


def test_subclasses(run_ours):
    class Sub(greenletio.EventLoop):
        def __new__(cls):
            loop = super().__new__(cls)
            loop.soon = []
            return loop

        def call_soon(self, callback, *args, context=None):
            self.soon.append(callback)
            return super().call_soon(callback, *args, context=context)

    class SubSub(Sub):
        __slots__ = ()

    for cls in (Sub, SubSub):
        loop = cls()
        try:
            loop.run_until_complete(everything())
            assert loop.soon
        finally:
            loop.close()
