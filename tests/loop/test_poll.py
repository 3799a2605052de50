"""What the loop watches for add_reader and its kin."""

import asyncio
import contextlib
import contextvars
import gc
import os
import resource
import socket
import sys

import pytest

import greenletio
from greenletio import async_, io


def watched(fd):
    """Whether an epoll of this process has the fd number in its set."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{name}") as info:
            if any(line.split()[:2] == ["tfd:", str(fd)] for line in info):
                return True
    return False


def test_what_is_removed_is_not_watched_even_if_a_duplicate_lives_on():
    """Taken out only at the next poll, when the fd is closed, it would stay in the kernel's set as
    long as a duplicate (a forked child's, say) is open, and be reported for ever."""

    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        with b:
            fd = a.fileno()
            duplicate = os.dup(fd)
            loop.add_writer(a, lambda: None)
            await asyncio.sleep(0)
            assert watched(fd)
            loop.remove_writer(a)
            a.close()
            assert not watched(fd)
            os.close(duplicate)

    greenletio.run(main())


class Meanwhile:
    """Garbage, whose finalizer calls a function."""

    def __init__(self, fn):
        self.itself = self
        self.fn = fn

    def __del__(self):
        self.fn()


@pytest.mark.parametrize("had", [False, True])
@pytest.mark.parametrize("what", ["removes", "replaces", "closes"])
def test_a_finalizer_changes_the_handler_that_is_being_set(what, had):
    """Making the handle may start a garbage collection, before Python 3.12."""
    loop = greenletio.new_event_loop()
    a, b = socket.socketpair()
    with a, b, contextlib.closing(loop):
        called = []

        def new():
            called.append("new")

        if had:
            loop.add_reader(a, called.append, "old")
            if what == "replaces":
                loop.add_writer(a, called.append, "other")
        meanwhile = {
            "removes": lambda: (loop.remove_reader(a), loop.remove_writer(a)),
            "replaces": lambda: loop.add_reader(a, called.append, "meanwhile"),
            "closes": loop.close,
        }[what]
        fd = a.fileno()
        gc.collect()
        used_up = [contextvars.copy_context() for _ in range(300)]  # those that are kept for reuse
        threshold = gc.get_threshold()
        gc.disable()
        Meanwhile(meanwhile)
        gc.set_threshold(1, 1, 1)
        try:
            gc.enable()
            loop._add_reader(fd, new)  # a number: asking a socket makes an object, too
        except RuntimeError:
            assert loop.is_closed()
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        del used_up
        if what == "closes":
            assert loop.is_closed()
            return
        b.send(b"x")
        loop.remove_writer(a)
        loop.call_later(0.001, loop.stop)
        loop.run_forever()
        # Where the collection came later, it is the finalizer that has had its way.
        later = sys.version_info >= (3, 12)
        assert set(called) == (
            {"removes": set(), "replaces": {"meanwhile"}}[what] if later else {"new"}
        )
        assert loop.remove_reader(a) is bool(called)
        assert not loop.remove_reader(a)
        assert not watched(a.fileno())


def test_a_reader_whose_handle_is_cancelled_is_not_watched_any_more():
    """asyncio's loop sees to it, too: it would be ready for ever."""

    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        with a, b:
            reading = loop._add_reader(a, print)
            writing = loop._add_writer(a, print)
            b.send(b"x")
            reading.cancel()
            writing.cancel()
            while watched(a.fileno()):
                await asyncio.sleep(0)
            assert not loop.remove_reader(a)
            assert not loop.remove_writer(a)
            called = loop.create_future()
            loop.add_reader(a, called.set_result, None)
            await called
            assert loop.remove_reader(a)

    greenletio.run(main())


def test_handlers_that_remove_and_replace_each_other_and_themselves():
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        c, d = socket.socketpair()
        with a, b, c, d:
            for kind in ("remove", "replace", "close"):
                called = []
                both = loop.create_future()

                def handler(me, other, kind=kind, called=called, both=both):
                    called.append(me)
                    loop.remove_reader(other)
                    if kind == "remove":
                        assert loop.remove_reader(me)
                    else:
                        loop.add_reader(me, lambda: both.done() or both.set_result(None))

                b.send(b"x")
                d.send(b"x")
                loop.add_reader(a, handler, a, c)
                loop.add_reader(c, handler, c, a)
                if kind == "remove":
                    await asyncio.sleep(0.001)
                else:
                    await both
                assert len(called) == 1
                loop.remove_reader(a)
                loop.remove_reader(c)

    greenletio.run(main())


def test_fds_that_are_none():
    loop = greenletio.new_event_loop()
    a, b = socket.socketpair()
    with a, b:
        a.close()
        for fd in (-1, a, "x", None, 1.5, object(), 2**31, 2**100):
            for method in (loop.add_reader, loop.add_writer):
                with pytest.raises((ValueError, OverflowError)):
                    method(fd, print)
            for method in (loop.remove_reader, loop.remove_writer):
                with pytest.raises((ValueError, OverflowError)):
                    method(fd)
        for fd in (2**31 - 1, 10**6):  # no open files: no room is made for all the numbers below
            with pytest.raises(OSError, match="Bad file descriptor"):
                loop.add_reader(fd, print)
            assert not loop.remove_reader(fd)
        with open(__file__) as file, pytest.raises(PermissionError):
            loop.add_reader(file, print)
        for args in ((), (b,)):
            with pytest.raises(TypeError, match="callback"):
                loop.add_reader(*args)
    loop.close()


def test_fds_of_high_numbers():
    """A number such as a program with very many connections gets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(hard, 100_000) - 1
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1, hard))
    try:

        async def main():
            loop = asyncio.get_running_loop()
            a, b = socket.socketpair()
            with a, b:
                high = os.dup2(a.fileno(), number)
                with socket.socket(fileno=high) as sock:
                    sock.setblocking(False)
                    called = loop.create_future()
                    loop.add_reader(high, lambda: called.done() or called.set_result(None))
                    b.send(b"x")
                    await called
                    loop.remove_reader(high)
                    assert await loop.sock_recv(sock, 1) == b"x"
                    waiting = asyncio.create_task(async_(io.wait_readable)(sock))
                    await asyncio.sleep(0)
                    b.send(b"x")
                    assert await waiting is True

        greenletio.run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_hub_that_could_not_join_the_loop_is_made_anew(monkeypatch):
    """What waited there afterwards waited for ever."""

    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        with a, b:
            with monkeypatch.context() as patch:

                def fail(*args):
                    raise OSError("no more")

                patch.setattr(greenletio.EventLoop, "add_reader", fail, raising=False)
                with pytest.raises(OSError, match="no more"):
                    await async_(io.wait_readable)(a)
            waiting = loop.create_task(async_(io.wait_readable)(a))
            await asyncio.sleep(0)
            b.send(b"x")
            assert await asyncio.wait_for(waiting, 60) is True

    greenletio.run(main())
