"""Protocols that do anything at any moment: what is promised to them holds all the same.

Each connection is made of chance, by a number that the test names, so a failure can be looked at
again; what arrives when is up to the kernel, though.
"""

import asyncio
import gc
import os
import random
import socket

import pytest
from fix_loops import OURS


class Boom(Exception):
    pass


class Unruly:
    """Does something at every call. Those that take turns on a transport share a life."""

    def __init__(self, chance, life=None):
        self.chance = chance
        self.life = life or {"made": 0, "lost": 0}
        self.transport = None

    def connection_made(self, transport):
        self.life["made"] += 1
        self.transport = transport
        self.act()

    def eof_received(self):
        self.act()
        return self.chance.random() < 0.3

    def pause_writing(self):
        self.act()

    resume_writing = pause_writing

    def connection_lost(self, exc):
        self.life["lost"] += 1
        self.act()

    def act(self):
        transport, chance = self.transport, self.chance
        if transport is None or chance.random() < 0.5:
            return
        match chance.randrange(12):
            case 0:
                transport.pause_reading()
                asyncio.get_running_loop().call_soon(transport.resume_reading)
            case 1:
                transport.resume_reading()
            case 2:
                transport.set_write_buffer_limits(high=chance.choice([0, 10, 100_000]))
            case 3:
                transport.set_protocol(self.successor())
            case 4:
                transport.writelines(self.pieces())
            case 5 | 6:
                self.write(chance.choice([1, 1000, 300_000]))
            case 7:
                if transport.can_write_eof() and chance.random() < 0.3:
                    transport.write_eof()
            case 8:
                if chance.random() < 0.3:
                    transport.close()
            case 9:
                if chance.random() < 0.2:
                    transport.abort()
            case 10:
                if chance.random() < 0.1:
                    raise chance.choice([Boom, asyncio.CancelledError, GeneratorExit])
            case 11:
                if chance.random() < 0.1:
                    gc.collect()

    def successor(self):
        successor = self.chance.choice([Receiving, Filled])(self.chance, self.life)
        successor.transport = self.transport
        return successor

    def write(self, size):
        try:
            self.transport.write(bytearray(size))
        except RuntimeError as exc:
            assert "after write_eof" in str(exc)

    def pieces(self):
        for _ in range(self.chance.randrange(4)):
            self.act()
            yield self.chance.choice([b"", b"abc", bytearray(50), memoryview(b"abc")[1:]])


class Receiving(Unruly, asyncio.Protocol):
    def data_received(self, data):
        self.act()


class Filled(Unruly, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint):
        self.act()
        kind = self.chance.randrange(100)
        if kind < 3:
            return (b"read-only", bytearray(), None)[kind]
        self.buffer = bytearray(self.chance.choice([1, 100, 70_000]))
        return self.chance.choice([self.buffer, memoryview(self.buffer)])

    def buffer_updated(self, nbytes):
        self.buffer = None
        self.act()


async def one_end(chance, lives, sock, tls):
    """Make a transport on a socket, have it used for a while, and end it."""
    loop = asyncio.get_running_loop()
    protocol = chance.choice([Receiving, Filled])(chance)
    lives.append(protocol.life)
    transport = None
    try:
        if tls.get("server_side"):
            del tls["server_side"]
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, **tls)
        else:
            transport, _ = await loop.create_unix_connection(lambda: protocol, sock=sock, **tls)
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
            current = transport.get_protocol()
            if current is not None:
                current.act()
                current.write(chance.choice([1, 1000, 100_000]))
        if chance.random() < 0.3:
            sock.shutdown(chance.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
        if chance.random() < 0.7:
            transport.close()
        await asyncio.sleep(0.002)
    except (OSError, RuntimeError, Boom, asyncio.CancelledError, GeneratorExit):
        pass
    finally:
        if transport is not None:
            transport.abort()


def expected(exc):
    """What such protocols bring on themselves."""
    return isinstance(
        exc, (Boom, asyncio.CancelledError, GeneratorExit, OSError, BufferError, TypeError)
    ) or any(
        text in str(exc)
        for text in ("after write_eof", "empty buffer", "'buffer_updated'", "'data_received'")
    )


@OURS
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("number", range(4))
def test_each_connection_is_made_and_lost_once(run, contexts, number, secure, debug):
    chance = random.Random(number)
    lives = []

    async def once():
        a, b = socket.socketpair()
        server, client = {}, {}
        if secure:
            server = {"ssl": contexts[0], "server_side": True, "ssl_handshake_timeout": 5}
            client = {"ssl": contexts[1], "server_hostname": "localhost"}
        await asyncio.gather(one_end(chance, lives, a, server), one_end(chance, lives, b, client))

    async def main():
        for _ in range(5):
            await asyncio.gather(*(once() for _ in range(10)))
        while any(life["made"] > life["lost"] for life in lives):
            await asyncio.sleep(0.001)

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    run(main(), debug=debug)
    assert len(lives) == 100
    assert all(life["made"] == life["lost"] <= 1 for life in lives)
    assert [each for each in run.reported if not expected(each.get("exception"))] == []
    run.reported.clear()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
