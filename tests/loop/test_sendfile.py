"""loop.sendfile(): the transport is borrowed meanwhile, and given back whatever happens."""

import asyncio
import contextlib
import socket

import pytest
from fix_loops import LIKE_ASYNCIO, OURS
from fix_transports import MUCH, Recorder, attach, drained, turns, until


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(MUCH)
    with open(path, "rb") as file:
        yield file


async def begun(sockets, file, *part):
    """A sendfile() that waits for what was queued before it."""
    a, b = sockets()
    for sock in (a, b):  # else the kernel's buffers may grow until they hold all of it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
    transport, protocol = await attach(a, Recorder)
    transport.write(MUCH)
    assert transport.get_write_buffer_size()
    sending = asyncio.ensure_future(asyncio.get_running_loop().sendfile(transport, file, *part))
    await turns()
    return b, transport, protocol, sending


@LIKE_ASYNCIO
def test_a_file_is_sent_after_what_is_queued(run, sockets, file):
    async def main():
        b, transport, protocol, sending = await begun(sockets, file, 8, 1_000_000)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"x")
        b.sendall(b"not read meanwhile")
        assert await drained(b, len(MUCH) + 1_000_000) == MUCH + MUCH[8:1_000_008]
        assert await sending == 1_000_000
        assert file.tell() == 1_000_008
        await until(lambda: protocol.data == b"not read meanwhile")
        transport.write(b"the end")
        transport.close()
        assert await drained(b, 7) == b"the end"
        assert await protocol.lost is None

    run(main())


@OURS
def test_a_cancelled_sendfile_gives_the_transport_back(run, sockets, file):
    """asyncio's own leaves it unusable if it still waited for what was queued."""

    async def main():
        b, transport, protocol, sending = await begun(sockets, file)
        assert not transport.is_reading()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert transport.is_reading()
        transport.write(b"the end")
        assert await drained(b, len(MUCH) + 7) == MUCH + b"the end"
        transport.close()
        assert await protocol.lost is None

    run(main())


@OURS
def test_a_cancellation_and_the_end_of_the_queue_in_one_turn(run, sockets, file):
    async def main():
        a, b = sockets()
        b.setblocking(False)
        transport, protocol = await attach(a, Recorder)
        while not transport.get_write_buffer_size():
            transport.write(bytes(1000))
        sending = asyncio.ensure_future(asyncio.get_running_loop().sendfile(transport, file))
        await turns()
        with contextlib.suppress(BlockingIOError):
            while b.recv(1 << 18):
                pass
        await turns(1)  # the poll finds the socket writable: that comes after this task's step
        assert transport.get_write_buffer_size()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not transport.get_write_buffer_size()
        transport.abort()
        await protocol.lost

    run(main())


@OURS
def test_one_sendfile_at_a_time(run, sockets, file):
    async def main():
        loop = asyncio.get_running_loop()
        b, transport, protocol, sending = await begun(sockets, file)
        with pytest.raises(RuntimeError, match="in progress"):
            await loop.sendfile(transport, file)
        assert await drained(b, 2 * len(MUCH)) == MUCH + MUCH
        assert await sending == len(MUCH)
        transport.close()
        assert await protocol.lost is None

    run(main())


@OURS
def test_a_connection_that_is_lost_meanwhile(run, sockets, file):
    async def main():
        loop = asyncio.get_running_loop()
        b, transport, protocol, sending = await begun(sockets, file)
        b.close()
        with pytest.raises(OSError):
            await sending
        await protocol.lost
        with pytest.raises(RuntimeError, match="closing"):
            await loop.sendfile(transport, file)

    run(main())


@LIKE_ASYNCIO
def test_over_tls_it_is_read_and_written(run, connect, file):
    async def main():
        client, server = await connect()
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(client.transport, file, fallback=False)
        assert await loop.sendfile(client.transport, file) == len(MUCH)
        await until(lambda: len(server.data) == len(MUCH))
        assert server.data == MUCH
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())
