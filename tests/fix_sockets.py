"""What the tests of sockets share: `run_ours` runs a coroutine on a loop of ours."""

import asyncio
import contextlib
import os
import socket

import pytest

import greenletio

LARGE = os.urandom(1 << 20) * 8


def stream_pair():
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


def bound(family=socket.AF_INET, kind=socket.SOCK_STREAM, address=("127.0.0.1", 0)):
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen(128)
    return sock


async def settle():
    """Long enough for every task to run until it waits, and for the sweep after that."""
    for _ in range(3):
        await asyncio.sleep(0)


async def receive_exactly(loop, sock, n):
    data = b""
    while len(data) < n:
        data += await loop.sock_recv(sock, n - len(data))
    return data


def kernel_watches(loop_fds, fd):
    """How the epolls among the fds watch an fd number: the masks."""
    masks = []
    for epoll in loop_fds:
        with open(f"/proc/self/fdinfo/{epoll}") as info:
            words = [line.split() for line in info if line.startswith("tfd:")]
        masks += [int(w[3], 16) for w in words if int(w[1]) == fd]
    return masks


def epolls():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                found.add(int(name))
    return found


@pytest.fixture
def run_ours():
    """Runs a coroutine on a new loop of ours; what the loop reports fails the test."""
    reported = []

    def run(main, debug=False):
        async def reporting():
            asyncio.get_running_loop().set_exception_handler(lambda _, ctx: reported.append(ctx))
            return await main

        return greenletio.run(reporting(), debug=debug)

    yield run
    assert not reported
