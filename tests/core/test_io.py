"""Waiting for file descriptors, through everything that can happen to one meanwhile."""

import asyncio
import gc
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time

import pytest

import greenletio
from greenletio import Group, _core, async_, await_, io, sleep, spawn

R, W = _core.READ, _core.WRITE


pytestmark = pytest.mark.leaks


@pytest.fixture(params=["green", "plain"])
def call(request, run):
    """Call fn in green code under each loop, or in a plain program."""
    if request.param == "plain":
        return lambda fn: fn()
    return lambda fn: run(async_(fn)())


def new_pair():
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    return a, b


def fill(sock):
    """Write until it would block."""
    while True:
        try:
            sock.send(b"x" * 65536)
        except BlockingIOError:
            return


def drain(sock):
    while True:
        try:
            if not sock.recv(1 << 20):
                return
        except BlockingIOError:
            return


async def settle(turns=5):
    for _ in range(turns):
        await asyncio.sleep(0)


def fd_count():
    return len(os.listdir("/proc/self/fd"))


# -- the plain cases


def test_readable(call, pair):
    a, b = pair

    def sync():
        assert io.wait_readable(a, timeout=0.001) is False
        spawn(b.send, b"x")
        assert io.wait_readable(a) is True
        assert io.wait_readable(a) is True  # level triggered: still unread
        a.recv(1)
        assert io.wait_readable(a, timeout=0.001) is False

    call(sync)


def test_writable(call, pair):
    a, b = pair

    def sync():
        assert io.wait_writable(a) is True
        fill(a)
        assert io.wait_writable(a, timeout=0.001) is False
        spawn(drain, b)
        assert io.wait_writable(a) is True

    call(sync)


def test_by_number_and_by_object(call, pair):
    a, b = pair

    class Holder:
        def fileno(self):
            return a.fileno()

    def sync():
        for target in (a, a.fileno(), Holder()):
            assert io.wait_writable(target) is True

    call(sync)


@pytest.mark.parametrize("bad", ["x", None, 1.5, object()])
def test_not_a_file(call, bad):
    def sync():
        with pytest.raises((TypeError, AttributeError)):
            io.wait_readable(bad)

    call(sync)


def test_bad_numbers(call):
    def sync():
        with pytest.raises((ValueError, OSError)):
            io.wait_readable(-1)
        with pytest.raises((OverflowError, ValueError, OSError)):
            io.wait_readable(1 << 40)
        with pytest.raises(OSError):
            io.wait_readable(999_999)
        a, b = new_pair()
        number = a.fileno()
        a.close()
        b.close()
        with pytest.raises(OSError):
            io.wait_readable(number, timeout=60)
        with pytest.raises((ValueError, OSError)):
            io.wait_readable(a)

    call(sync)


@pytest.mark.parametrize("bad", ["1", object()])
def test_bad_timeouts(call, pair, bad):
    def sync():
        with pytest.raises(TypeError):
            io.wait_readable(pair[0], timeout=bad)

    call(sync)


def test_odd_timeouts(call, pair):
    def sync():
        assert io.wait_readable(pair[0], timeout=0) is False
        assert io.wait_readable(pair[0], timeout=1e-9) is False
        assert io.wait_writable(pair[0], timeout=0) is True
        assert io.wait_writable(pair[0], timeout=float("inf")) is True
        assert io.wait_writable(pair[0], timeout=1e15) is True

    call(sync)


def test_timeout_zero_still_sees_what_is_ready(call, pair):
    a, b = pair

    def sync():
        b.send(b"x")
        for _ in range(20):
            assert io.wait_readable(a, timeout=0) is True
        a.recv(1)
        for _ in range(20):
            assert io.wait_readable(a, timeout=0) is False

    call(sync)


def test_hang_up_is_readable_and_writable(call):
    def sync():
        a, b = new_pair()
        b.close()
        assert io.wait_readable(a) is True and a.recv(1) == b""
        assert io.wait_writable(a) is True
        a.close()

    call(sync)


def test_reset_is_reported_to_the_next_read(call):
    def sync():
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        conn, _ = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        spawn(client.close)
        assert io.wait_readable(conn) is True
        with pytest.raises(ConnectionResetError):
            conn.recv(1)
        conn.close()
        server.close()

    call(sync)


def test_connect_refused_is_writable(call):
    def sync():
        server = socket.create_server(("127.0.0.1", 0))
        address = server.getsockname()
        server.close()
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(address)
        assert io.wait_writable(client, timeout=60) is True
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        client.close()

    call(sync)


def test_regular_file_is_always_ready(call):
    """As poll(2) says; epoll refuses them."""

    def sync():
        with tempfile.TemporaryFile() as file:
            assert io.wait_readable(file, timeout=60) is True
            assert io.wait_writable(file) is True

    call(sync)


def test_dev_null_and_directories(call):
    def sync():
        with open(os.devnull, "rb") as null:
            assert io.wait_readable(null, timeout=60) is True
        fd = os.open("/", os.O_RDONLY)
        try:
            assert io.wait_readable(fd, timeout=60) is True
        finally:
            os.close(fd)

    call(sync)


def test_pipes_and_ttys(call):
    def sync():
        r, w = os.pipe()
        assert io.wait_writable(w) is True
        assert io.wait_readable(r, timeout=0.001) is False
        os.write(w, b"x")
        assert io.wait_readable(r) is True
        os.read(r, 1)
        os.close(w)
        assert io.wait_readable(r, timeout=60) is True
        os.close(r)
        master, slave = os.openpty()
        assert io.wait_readable(master, timeout=0.001) is False
        os.write(slave, b"x\n")
        assert io.wait_readable(master, timeout=60) is True
        os.close(master)
        os.close(slave)

    call(sync)


@pytest.mark.leaks(False)  # uses its sockets up
def test_an_epoll_fd(call, pair):
    a, b = pair

    def sync():
        poller = select.epoll()
        poller.register(a, select.EPOLLIN)
        assert io.wait_readable(poller, timeout=0.001) is False
        b.send(b"x")
        assert io.wait_readable(poller, timeout=60) is True
        poller.close()

    call(sync)


def test_peer_killed(call):
    def sync():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, stdout=-1)
        try:
            assert io.wait_readable(child.stdout, timeout=0.01) is False
            spawn(child.kill)
            assert io.wait_readable(child.stdout, timeout=60) is True
            assert child.stdout.read() == b""
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()

    call(sync)


# -- several at once


def test_two_readers_of_one_fd_are_both_woken(run, pair):
    a, b = pair

    async def main():
        tasks = [asyncio.ensure_future(async_(io.wait_readable)(a)) for _ in range(2)]
        await settle()
        b.send(b"x")
        assert await asyncio.wait_for(asyncio.gather(*tasks), 30) == [True, True]

    run(main())


def test_many_readers_each_takes_a_byte(run, pair):
    a, b = pair

    async def main():
        def reader():
            while True:
                try:
                    return a.recv(1)
                except BlockingIOError:
                    io.wait_readable(a)

        tasks = [asyncio.ensure_future(async_(reader)()) for _ in range(50)]
        await settle()
        for i in range(50):
            b.send(bytes([i]))
            if i % 7 == 0:
                await settle()
        got = await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert sorted(got) == [bytes([i]) for i in range(50)]

    run(main())


def test_reader_and_writer_of_one_fd(run, pair):
    a, b = pair

    async def main():
        fill(a)
        reader = asyncio.ensure_future(async_(io.wait_readable)(a))
        writer = asyncio.ensure_future(async_(io.wait_writable)(a))
        await settle()
        b.send(b"x")
        assert await asyncio.wait_for(reader, 30)
        assert not writer.done()
        drain(b)
        assert await asyncio.wait_for(writer, 30)

        drain(a)
        fill(a)
        reader = asyncio.ensure_future(async_(io.wait_readable)(a))
        writer = asyncio.ensure_future(async_(io.wait_writable)(a))
        await settle()
        drain(b)
        assert await asyncio.wait_for(writer, 30)
        await settle()
        assert not reader.done()
        b.send(b"x")
        assert await asyncio.wait_for(reader, 30)

    run(main())


@pytest.mark.leaks(False)  # uses its sockets up
def test_read_or_write_in_one_wait(call, pair):
    a, b = pair

    def sync():
        fd = a.fileno()
        assert _core.wait_fd(fd, R | W) == W
        b.send(b"x")
        assert _core.wait_fd(fd, R | W, 60) == R | W
        fill(a)
        assert _core.wait_fd(fd, R | W, 60) == R
        a.recv(1)
        assert _core.wait_fd(fd, R | W, 0.001) == 0

    call(sync)


@pytest.mark.parametrize("events", [0, 4, -1])
def test_bad_events(call, pair, events):
    def sync():
        with pytest.raises(ValueError):
            _core.wait_fd(pair[0].fileno(), events, 0.001)

    call(sync)


def test_one_of_two_readers_is_cancelled(run, pair):
    a, b = pair

    async def main():
        for victim in (0, 1):
            tasks = [asyncio.ensure_future(async_(io.wait_readable)(a)) for _ in range(2)]
            await settle()
            tasks[victim].cancel()
            await settle()
            assert tasks[victim].cancelled() and not tasks[1 - victim].done()
            b.send(b"x")
            assert await asyncio.wait_for(tasks[1 - victim], 30) is True
            a.recv(1)

    run(main())


def test_one_of_two_readers_times_out(run, pair):
    a, b = pair

    async def main():
        for order in (0, 1):
            limits = [0.001, 60] if order else [60, 0.001]
            tasks = [asyncio.ensure_future(async_(io.wait_readable)(a, timeout=s)) for s in limits]
            hasty, patient = tasks if order else tasks[::-1]
            assert await hasty is False
            assert not patient.done()
            b.send(b"x")
            assert await patient is True
            a.recv(1)

    run(main())


def test_cancelled_reader_does_not_disturb_a_writer(run, pair):
    a, b = pair

    async def main():
        fill(a)
        reader = asyncio.ensure_future(async_(io.wait_readable)(a))
        writer = asyncio.ensure_future(async_(io.wait_writable)(a))
        await settle()
        reader.cancel()
        await settle()
        drain(b)
        assert await asyncio.wait_for(writer, 30)

    run(main())


def test_a_waker_and_a_canceller_race(run, pair):
    """The first reader woken cancels the second, which was due to wake in the same turn."""
    a, b = pair

    async def main():
        tasks = []

        def first():
            io.wait_readable(a)
            tasks[1].cancel()

        tasks[:] = [
            asyncio.ensure_future(async_(first)()),
            asyncio.ensure_future(async_(io.wait_readable)(a)),
        ]
        await settle()
        b.send(b"x")
        await tasks[0]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert await async_(io.wait_readable)(a, timeout=60) is True

    run(main())


# -- closing


def test_fd_closing_wakes_the_waiters_with_ebadf(run):
    import errno

    async def main():
        a, b = new_pair()
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
        a, b = new_pair()
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


def test_fd_closing_in_another_thread_or_loop_is_harmless(run, pair):
    a, b = pair

    async def main():
        task = asyncio.ensure_future(async_(io.wait_readable)(a, timeout=60))
        await settle()
        loop = asyncio.get_running_loop()
        other, unused = new_pair()
        await loop.run_in_executor(None, _core.fd_closing, other.fileno())
        other.close()
        unused.close()
        b.send(b"x")
        assert await task is True

    run(main())


def test_closed_while_waited_on_without_a_word(run):
    """Nobody told us: the waiter may sleep on, but its timeout and cancellation still work."""

    async def main():
        a, b = new_pair()
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
        c, d = new_pair()
        assert await async_(io.wait_writable)(c, timeout=60)
        c.close()
        d.close()

    run(main())


def test_number_reused_after_a_wait(run):
    async def main():
        def sync():
            for _ in range(50):
                a, b = new_pair()
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
        a, b = new_pair()
        number = a.fileno()
        old = asyncio.ensure_future(async_(io.wait_readable)(number, timeout=0.2))
        await settle()
        a.close()
        c, d = new_pair()
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
        a, b = new_pair()
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
        c, d = new_pair()
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


# -- wait_any / wait_fds


def as_sets(answer):
    """(ready to read, ready to write)."""
    reads, writes = answer
    return set(reads), set(writes)


def test_wait_any(call):
    def sync():
        a, b = new_pair()
        c, d = new_pair()
        fill(a)
        answer = io.wait_any([a, c], [a], timeout=0.001)
        assert not answer or as_sets(answer) == (set(), set())
        spawn(d.send, b"x")
        assert as_sets(io.wait_any([a, c], [a])) == ({c}, set())
        drain(b)
        assert as_sets(io.wait_any([a, c], [a], timeout=60)) == ({c}, {a})
        for s in (a, b, c, d):
            s.close()

    call(sync)


def test_wait_fds(call):
    def sync():
        a, b = new_pair()
        c, d = new_pair()
        fds = [(a.fileno(), R), (c.fileno(), R)]
        assert _core.wait_fds(fds, 0.001) == []
        assert _core.wait_fds(fds, 0) == []
        b.send(b"x")
        assert _core.wait_fds(fds) == [(a.fileno(), R)]
        d.send(b"x")
        assert _core.wait_fds(fds, 60) == [(a.fileno(), R), (c.fileno(), R)]
        assert _core.wait_fds([(a.fileno(), R | W)], 60) == [(a.fileno(), R | W)]
        for s in (a, b, c, d):
            s.close()

    call(sync)


def test_wait_any_of_nothing(call):
    def sync():
        answer = io.wait_any([], [], timeout=0.001)
        assert not answer or as_sets(answer) == (set(), set())

    call(sync)


def test_wait_any_of_one_fd_twice(call, pair):
    a, b = pair

    def sync():
        b.send(b"x")
        assert as_sets(io.wait_any([a, a], [a], timeout=60)) == ({a}, {a})

    call(sync)


def test_wait_any_of_a_thousand(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("needs 4096 file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))

    def sync():
        pairs = [new_pair() for _ in range(1000)]
        try:
            reads = [a for a, _ in pairs]
            for i in (0, 500, 999):
                spawn(pairs[i][1].send, b"x").get()
                assert as_sets(io.wait_any(reads, [], timeout=60)) == ({pairs[i][0]}, set())
                pairs[i][0].recv(1)
            assert not any(as_sets(io.wait_any(reads, [], timeout=0) or ((), ())))
        finally:
            for a, b in pairs:
                a.close()
                b.close()

    run(async_(sync)())


def test_wait_any_cancelled_leaves_nothing(run):
    async def main():
        pairs = [new_pair() for _ in range(10)]
        for _ in range(20):
            task = asyncio.ensure_future(async_(io.wait_any)([a for a, _ in pairs], []))
            await settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for a, b in pairs:
            b.send(b"x")
            assert await async_(io.wait_readable)(a, timeout=60)
            a.close()
            b.close()

    run(main())


def test_wait_any_with_a_bad_fd_among_good_ones(call, pair):
    a, b = pair

    def sync():
        for _ in range(5):
            with pytest.raises(OSError):
                io.wait_any([a, 99_999], [], timeout=60)
        b.send(b"x")
        assert io.wait_readable(a, timeout=60)

    call(sync)


def test_wait_any_with_a_regular_file(call, pair):
    def sync():
        with tempfile.TemporaryFile() as file:
            assert as_sets(io.wait_any([pair[0], file], [], timeout=60)) == ({file}, set())

    call(sync)


# -- much of it


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.leaks(False)  # counts for itself
def test_ten_thousand_waits_with_flat_refcounts_and_fds(run, pair, plain):
    a, b = pair

    def ping_pong(count):
        def side(mine, theirs, first):
            for _ in range(count):
                if first:
                    mine.send(b"x")
                io.wait_readable(mine)
                mine.recv(1)
                if not first:
                    mine.send(b"x")

        with Group() as group:
            group.spawn(side, a, b, True)
            group.spawn(side, b, a, False)

    def measured():
        ping_pong(100)
        gc.collect()
        counts = [sys.getrefcount(x) for x in (a, b, None, io.wait_readable)], fd_count()
        blocks = sys.getallocatedblocks()
        ping_pong(5000)
        gc.collect()
        after = [sys.getrefcount(x) for x in (a, b, None, io.wait_readable)], fd_count()
        assert after[1] == counts[1]
        for before, now in zip(counts[0], after[0], strict=True):
            assert abs(now - before) < 50
        assert sys.getallocatedblocks() - blocks < 500

    if plain:
        measured()
    else:
        run(async_(measured)())


def test_ten_thousand_timeouts_and_cancels_leave_nothing(run, pair, aflat):
    a, b = pair

    async def once():
        tasks = [asyncio.ensure_future(async_(io.wait_readable)(a)) for _ in range(10)]
        tasks += [asyncio.ensure_future(async_(io.wait_readable)(a, timeout=0)) for _ in range(10)]
        await settle(2)
        for t in tasks[:10]:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(aflat(once, repeat=50))


def test_a_thousand_fds_at_once(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("needs 4096 file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))

    async def main():
        pairs = [new_pair() for _ in range(1000)]
        tasks = [asyncio.ensure_future(async_(io.wait_readable)(a)) for a, _ in pairs]
        await settle()
        for _, b in reversed(pairs):
            b.send(b"x")
        assert await asyncio.gather(*tasks) == [True] * 1000
        for a, b in pairs:
            a.close()
            b.close()

    run(main())


def test_fork_leaves_the_parent_unharmed(run, pair):
    """A child that exits without a word does not take the parent's registrations with it."""
    a, b = pair

    async def main():
        task = asyncio.ensure_future(async_(io.wait_readable)(a))
        await settle()
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        b.send(b"x")
        assert await asyncio.wait_for(task, 30) is True

    run(main())


@pytest.mark.leaks(False)  # uses its sockets up
def test_sleep_and_fd_wait_side_by_side(call, pair):
    a, b = pair

    def sync():
        order = []

        def late():
            sleep(0.005)
            b.send(b"x")
            order.append("sent")

        def reader():
            io.wait_readable(a)
            order.append("read")

        with Group() as group:
            group.spawn(reader)
            group.spawn(late)
        assert order == ["sent", "read"]

    call(sync)


def test_a_stream_of_data_between_two_greens(call, pair):
    a, b = pair
    total = 1 << 20

    def sync():
        def writer():
            view = memoryview(bytes(total))
            while view:
                io.wait_writable(a)
                view = view[a.send(view) :]

        green = spawn(writer)
        got = 0
        while got < total:
            assert io.wait_readable(b, timeout=60)
            got += len(b.recv(65536))
        green.get()
        assert got == total

    call(sync)


def test_await_inside_and_fd_wait_inside_one_function(run, pair):
    a, b = pair

    def sync():
        await_(asyncio.sleep(0))
        spawn(b.send, b"1")
        io.wait_readable(a)
        await_(asyncio.sleep(0))
        return a.recv(1)

    assert run(async_(sync)()) == b"1"


def test_the_module_has_what_it_says():
    for name in io.__all__:
        assert callable(getattr(io, name))
    assert greenletio.io is io
