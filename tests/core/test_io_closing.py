"""Waiting for file descriptors that are closed meanwhile, or are in use elsewhere, too."""

import asyncio
import os
import time

import pytest
from fix_progress import settle
from fix_sockets import drain, fill, stream_pair

from greenletio import _core, async_, io, sleep, spawn

pytestmark = pytest.mark.leaks


# -- closing


def test_fd_closing_wakes_the_waiters_with_ebadf(run):
    import errno

    async def main():
        a, b = stream_pair()
        tasks = [
            asyncio.ensure_future(async_(f)(a)) for f in (io.wait_readable, io.wait_readable)
        ] + [asyncio.ensure_future(async_(io.wait_any)([a], []))]
        fill(a)
        tasks.append(asyncio.ensure_future(async_(io.wait_writable)(a)))
        await settle()
        _core.fd_closing(a.fileno())
        a.close()
        got = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert [getattr(e, "errno", e) for e in got] == [errno.EBADF] * 4
        b.close()

    run(main())


def test_fd_closing_right_after_the_close(run):
    async def main():
        a, b = stream_pair()
        task = asyncio.ensure_future(async_(io.wait_readable)(a))
        await settle()
        number = a.fileno()
        a.close()
        _core.fd_closing(number)
        with pytest.raises(OSError):
            await asyncio.wait_for(task, 30)
        b.close()

    run(main())


def test_fd_closing_of_what_nobody_waits_for(call, pair):
    def sync():
        _core.fd_closing(pair[0].fileno())
        _core.fd_closing(99_999)
        io.wait_readable(pair[0], timeout=0.001)
        _core.fd_closing(pair[0].fileno())
        assert io.wait_writable(pair[0], timeout=60) is True

    call(sync)


def test_fd_closing_of_what_cannot_be_one(run, pair):
    """The number was cut to an int, which was an fd that somebody waited for."""
    a, b = pair

    async def main():
        task = asyncio.ensure_future(async_(io.wait_readable)(a, timeout=60))
        await settle()
        for tell in (_core.fd_closing, _core.fd_released):
            with pytest.raises(OverflowError):
                tell(2**32 + a.fileno())
        await settle()
        b.send(b"x")
        assert await task is True

    run(main())


def test_fd_closing_in_another_thread_or_loop_is_harmless(run, pair):
    a, b = pair

    async def main():
        task = asyncio.ensure_future(async_(io.wait_readable)(a, timeout=60))
        await settle()
        loop = asyncio.get_running_loop()
        other, unused = stream_pair()
        await loop.run_in_executor(None, _core.fd_closing, other.fileno())
        other.close()
        unused.close()
        b.send(b"x")
        assert await task is True

    run(main())


def test_closed_while_waited_on_without_a_word(run):
    """Nobody told us: the waiter may sleep on, but its timeout and cancellation still work."""

    async def main():
        a, b = stream_pair()
        tasks = [
            asyncio.ensure_future(async_(io.wait_readable)(a, timeout=0.02)),
            asyncio.ensure_future(async_(io.wait_readable)(a)),
        ]
        await settle()
        a.close()
        try:
            assert await tasks[0] is False
        except OSError:
            pass
        tasks[1].cancel()
        with pytest.raises((asyncio.CancelledError, OSError)):
            await tasks[1]
        b.close()
        c, d = stream_pair()
        assert await async_(io.wait_writable)(c, timeout=60)
        c.close()
        d.close()

    run(main())


def test_number_reused_after_a_wait(run):
    async def main():
        def sync():
            for _ in range(50):
                a, b = stream_pair()
                number = a.fileno()
                assert io.wait_readable(number, timeout=0.0005) is False
                b.send(b"x")
                assert io.wait_readable(number) is True
                a.close()
                b.close()

        await async_(sync)()

    run(main())


def test_number_reused_while_another_waits(run):
    """The old waiter sleeps on what is gone; the new one on the same number gets its own events."""

    async def main():
        a, b = stream_pair()
        number = a.fileno()
        old = asyncio.ensure_future(async_(io.wait_readable)(number, timeout=0.2))
        await settle()
        a.close()
        c, d = stream_pair()
        if c.fileno() != number:
            c, d = d, c
        if c.fileno() != number:
            moved = os.dup2(c.fileno(), number)
            assert moved == number
        new = asyncio.ensure_future(async_(io.wait_readable)(number, timeout=30))
        await settle()
        assert not new.done()
        d.send(b"x")
        assert await new is True
        try:
            await old
        except OSError:
            pass
        b.close()
        c.close()
        d.close()

    run(main())


def test_dup_and_close(run):
    """The kernel keeps the closed number's registration alive through the duplicate: no false
    wake-up of whoever gets the number next, and no spinning."""

    async def main():
        a, b = stream_pair()
        number = a.fileno()
        assert await async_(io.wait_readable)(number, timeout=0.001) is False
        waiting = asyncio.ensure_future(async_(io.wait_readable)(number, timeout=0.01))
        await settle()
        copy = os.dup(number)
        a.close()
        try:
            await waiting
        except OSError:
            pass
        c, d = stream_pair()
        if d.fileno() == number:
            c, d = d, c
        os.dup2(c.fileno(), number)
        new = asyncio.ensure_future(async_(io.wait_readable)(number, timeout=30))
        await settle()
        b.send(b"for the old one")
        before = time.process_time()
        await asyncio.sleep(0.2)
        assert time.process_time() - before < 0.15, "spins"
        assert not new.done()
        d.send(b"x")
        assert await new is True
        assert await async_(io.wait_readable)(copy, timeout=60) is True
        for fd in (copy, number):
            try:
                os.close(fd)
            except OSError:
                pass
        for sock in (b, c, d):
            try:
                sock.close()
            except OSError:
                pass

    run(main())


def test_dup_is_waited_on_by_itself(call, pair):
    a, b = pair

    def sync():
        copy = os.dup(a.fileno())
        green = spawn(io.wait_readable, a, timeout=60)
        other = spawn(io.wait_readable, copy, timeout=60)
        sleep(0)
        b.send(b"x")
        assert green.get() is True and other.get() is True
        os.close(copy)
        assert io.wait_readable(a, timeout=60) is True

    call(sync)


def test_a_ready_fd_nobody_waits_for_does_not_spin(run, pair):
    a, b = pair

    async def main():
        task = asyncio.ensure_future(async_(io.wait_readable)(a))
        await settle()
        b.send(b"x")
        await task
        before = time.process_time()
        await asyncio.sleep(0.2)
        assert time.process_time() - before < 0.15, "spins"
        task = asyncio.ensure_future(async_(io.wait_writable)(a))
        await task
        before = time.process_time()
        await asyncio.sleep(0.2)
        assert time.process_time() - before < 0.15, "spins"

    run(main())


@pytest.mark.leaks(False)  # uses its sockets up
def test_a_cancelled_wait_whose_fd_becomes_ready_does_not_spin(run, pair):
    a, b = pair

    async def main():
        task = asyncio.ensure_future(async_(io.wait_readable)(a))
        await settle()
        task.cancel()
        await settle()
        b.send(b"x")
        b.close()
        before = time.process_time()
        await asyncio.sleep(0.2)
        assert time.process_time() - before < 0.15, "spins"

    run(main())


# -- beside asyncio's own use of the number


@pytest.mark.leaks(False)  # uses its sockets up
def test_add_reader_on_the_same_number_is_unharmed(run, pair):
    a, b = pair

    async def main():
        loop = asyncio.get_running_loop()
        hits = []
        loop.add_reader(a, lambda: hits.append(1))
        task = asyncio.ensure_future(async_(io.wait_readable)(a))
        other = asyncio.ensure_future(async_(io.wait_readable)(a, timeout=0.001))
        assert await other is False
        b.send(b"x")
        assert await task is True
        while not hits:
            await asyncio.sleep(0)
        drain(a)
        await settle()
        hits.clear()
        b.send(b"x")
        while not hits:
            await asyncio.sleep(0)
        loop.remove_reader(a)
        assert await async_(io.wait_readable)(a) is True

    run(main())


@pytest.mark.leaks(False)  # uses its sockets up
def test_a_transport_on_the_same_number_is_unharmed(run, pair):
    a, b = pair

    async def main():
        number = a.fileno()
        reader, writer = await asyncio.open_connection(sock=a)
        for _ in range(5):
            waiting = asyncio.ensure_future(async_(io.wait_readable)(number, timeout=30))
            await settle()
            b.send(b"hello\n")
            assert await asyncio.wait_for(reader.readline(), 30) == b"hello\n"
            try:
                await waiting
            except OSError:
                pass
            writer.write(b"back\n")
            await writer.drain()
            assert await async_(lambda: io.wait_readable(b) and b.recv(100))() == b"back\n"
        writer.close()
        await writer.wait_closed()

    run(main())


def test_sock_calls_of_the_loop_on_the_same_number(run, pair):
    a, b = pair

    async def main():
        loop = asyncio.get_running_loop()
        received = asyncio.ensure_future(loop.sock_recv(a, 10))
        waiting = asyncio.ensure_future(async_(io.wait_readable)(a, timeout=0.01))
        assert await waiting is False
        b.send(b"x")
        assert await asyncio.wait_for(received, 30) == b"x"

    run(main())


def test_nothing_is_registered_on_the_loop_for_our_fd(pair):
    a, _ = pair

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(async_(io.wait_readable)(a))
        await settle()
        assert a.fileno() not in loop._selector.get_map()
        task.cancel()

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
