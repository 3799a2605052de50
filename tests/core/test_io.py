"""Waiting for file descriptors: what is ready, and several that wait for one."""

import asyncio
import os
import select
import socket
import subprocess
import sys
import tempfile

import pytest
from fix_progress import settle
from fix_sockets import drain, fill, stream_pair

from greenletio import _core, async_, io, spawn

R, W = _core.READ, _core.WRITE

pytestmark = pytest.mark.leaks


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
        a, b = stream_pair()
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
        a, b = stream_pair()
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
