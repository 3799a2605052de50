"""What the tests of transports share: protocols that note what they are told, and sockets."""

import asyncio
import contextlib
import socket
import struct

import pytest

MUCH = b"abcdefgh" * 500_000


class Boom(Exception):
    pass


class Recorder(asyncio.Protocol):
    """Notes what it is told; subclasses answer."""

    keep_open = False

    def __init__(self):
        self.told = []
        self.data = bytearray()
        self.lost = asyncio.get_running_loop().create_future()
        self.transport = None

    def connection_made(self, transport):
        self.told.append("made")
        self.transport = transport

    def data_received(self, data):
        assert type(data) is bytes
        assert data
        if self.told[-1] != "data":
            self.told.append("data")
        self.data += data

    def eof_received(self):
        self.told.append("eof")
        return self.keep_open

    def pause_writing(self):
        self.told.append("pause")

    def resume_writing(self):
        self.told.append("resume")

    def connection_lost(self, exc):
        self.told.append("lost")
        assert not self.lost.done()
        if not self.lost.get_loop().is_closed():
            self.lost.set_result(exc)


class Echo(Recorder):
    def data_received(self, data):
        super().data_received(data)
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    """Reads into a buffer of its own, which is smaller than what comes."""

    def __init__(self, size=1000):
        self.buffer = bytearray(size)
        self.data = bytearray()
        self.asked = self.updated = 0
        self.lost = asyncio.get_running_loop().create_future()
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        self.asked += 1
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes):
        assert nbytes > 0
        self.updated += 1
        self.data += self.buffer[:nbytes]

    def connection_lost(self, exc):
        self.lost.set_result(exc)


async def attach(sock, protocol):
    """A transport on a connected socket, of either family."""
    loop = asyncio.get_running_loop()
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_connection(protocol, sock=sock)
    return await loop.create_connection(protocol, sock=sock)


async def turns(n=5):
    for _ in range(n):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def drained(peer, size):
    """Read that much from a socket."""
    loop = asyncio.get_running_loop()
    peer.setblocking(False)
    got = bytearray()
    while len(got) < size:
        data = await loop.sock_recv(peer, 1 << 18)
        assert data
        got += data
    return got


def reset(sock):
    """Close a TCP socket so that its peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def tcp_pair():
    """Connected TCP sockets whose buffers take less than MUCH, whatever the kernel has learnt."""
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with socket.socket(*kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        a = socket.socket(*kind)
        a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        a.connect(listener.getsockname())
        return a, listener.accept()[0]


@pytest.fixture(params=["tcp", "unix"])
def sockets(request):
    """Makes connected pairs of sockets; what is left open is closed."""
    with contextlib.ExitStack() as stack:

        def make():
            if request.param == "unix":
                a, b = socket.socketpair()
            else:
                a, b = tcp_pair()
            stack.enter_context(a)
            stack.enter_context(b)
            return a, b

        yield make
