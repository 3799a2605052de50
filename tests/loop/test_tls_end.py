"""TLS transports: how a connection ends, and what it leaves behind."""

import asyncio
import contextlib
import socket
import ssl
import sys

import pytest
from fix_loops import LIKE_ASYNCIO, OURS
from fix_tls import bad_record
from fix_transports import MUCH, Recorder, until

from greenletio import _tls

# --- the end -------------------------------------------------------------------------------------


@LIKE_ASYNCIO
def test_abort_loses_what_was_written(run, connect):
    async def main():
        client, server = await connect()
        server.transport.pause_reading()
        client.transport.write(MUCH)
        client.transport.abort()
        assert client.transport.is_closing()
        assert await client.lost is None
        assert client.told[-1] == "lost"
        assert client.told.count("lost") == 1
        server.transport.resume_reading()
        await server.lost
        assert len(server.data) < len(MUCH)

    run(main())


@LIKE_ASYNCIO
def test_the_peer_closes(run, peer, contexts):
    async def main():
        client = await peer.connect(contexts[1], Recorder)
        peer.tls.write(b"the last")
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.flush()
        assert await client.lost is None
        assert client.told == ["made", "data", "eof", "lost"]
        assert client.data == b"the last"
        await peer.do(peer.tls.unwrap)  # it has answered with a close_notify of its own

    run(main())


@LIKE_ASYNCIO
def test_the_peer_ends_the_stream_without_a_close_notify(run, peer, contexts):
    async def main():
        client = await peer.connect(contexts[1], Recorder)
        peer.tls.write(b"the last")
        await peer.flush()
        peer.sock.shutdown(socket.SHUT_WR)
        assert await client.lost is None
        assert client.told == ["made", "data", "eof", "lost"]
        assert client.data == b"the last"

    run(main())


@LIKE_ASYNCIO
def test_the_end_of_the_stream_while_reading_is_paused(run, connect):
    async def main():
        client, server = await connect()
        server.transport.pause_reading()
        client.transport.write(b"the last")
        client.transport.close()
        await asyncio.sleep(0.05)
        assert server.told == ["made"]
        server.transport.resume_reading()
        await server.lost
        assert server.told == ["made", "data", "eof", "lost"]
        assert server.data == b"the last"
        await client.lost

    run(main())


@OURS
def test_what_waits_is_sent_although_the_peer_has_closed(run, peer, contexts):
    async def main():
        client = await peer.connect(contexts[1], Recorder)
        client.transport.pause_writing()  # as the stream does that is full
        client.transport.write(b"x" * 100_000)
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        await peer.flush()
        await until(lambda: "eof" in client.told)
        assert not client.lost.done()
        client.transport.resume_writing()
        got = 0
        with pytest.raises(ssl.SSLZeroReturnError):
            while True:
                got += len(await peer.do(peer.tls.read, 1 << 16))
        assert got == 100_000
        assert await client.lost is None

    run(main())


@LIKE_ASYNCIO
@pytest.mark.parametrize("end", ["close", "write_eof"])
def test_who_ends_the_stream_below_loses_nothing_that_was_written(run, connect, end):
    """It is at hand after start_tls(), and what Server.close_clients() closes."""

    async def main():
        client, server = await connect()
        transport = client.transport
        ours = isinstance(transport, _tls.SSLTransport)
        below = transport._stream if ours else transport._ssl_protocol._transport
        transport.write(b"the last")
        getattr(below, end)()
        await server.lost
        assert server.data == b"the last"
        await client.lost

    run(main())


@LIKE_ASYNCIO
def test_a_reset(run, peer, contexts, connect):
    async def main():
        client, server = await connect()
        sock = server.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.transport.abort()
        assert isinstance(await client.lost, ConnectionResetError)
        assert "eof" not in client.told
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_garbage_ends_the_connection(run, peer, contexts):
    async def main():
        client = await peer.connect(contexts[1], Recorder)
        await asyncio.get_running_loop().sock_sendall(peer.sock, b"GET / HTTP/1.0\r\n\r\n" * 10)
        exc = await client.lost
        assert isinstance(exc, ssl.SSLError)
        assert exc.reason == bad_record("WRONG_VERSION_NUMBER")
        assert client.told == ["made", "lost"]

    run(main())


@LIKE_ASYNCIO
def test_an_exception_of_the_protocol_ends_the_connection(run, connect):
    class Failing(Recorder):
        def data_received(self, data):
            raise RuntimeError("mine")

    async def main():
        client, server = await connect(server_protocol=Failing)
        client.transport.write(b"boom")
        assert str(await server.lost) == "mine"
        await client.lost

    run(main())
    assert [str(context["exception"]) for context in run.reported] == ["mine"]
    assert run.reported[0]["message"] == "Fatal error on SSL protocol"
    run.reported.clear()


@OURS
def test_a_peer_that_has_ended_the_stream_and_never_reads_again(run, peer, contexts):
    """asyncio's own waits for ever."""

    async def main():
        client = await peer.connect(contexts[1], Recorder, ssl_shutdown_timeout=0.05)
        while "pause" not in client.told:
            client.transport.write(MUCH)
        peer.sock.shutdown(socket.SHUT_WR)
        await until(lambda: client.transport._eof)
        client.transport.close()
        assert isinstance(await client.lost, asyncio.TimeoutError)

    if sys.version_info < (3, 11):
        pytest.skip("asyncio has no such timeout before Python 3.11")
    run(main())


@OURS
@pytest.mark.parametrize("paused", [True, False])
def test_close_from_another_thread_is_handed_over(run, connect, paused):
    """The garbage collector may drop a StreamWriter in any thread."""

    async def main():
        client, server = await connect()
        if paused:
            client.transport.pause_reading()

        def close():
            with contextlib.suppress(RuntimeError):
                while True:  # until the loop polls, as it does until this thread ends
                    client.transport.write(b"")
            client.transport.close()

        await asyncio.get_running_loop().run_in_executor(None, close)
        assert await client.lost is None
        assert await server.lost is None

    run(main())


@LIKE_ASYNCIO
def test_the_shutdown_takes_too_long(run, peer, contexts):
    async def main():
        client = await peer.connect(contexts[1], Recorder, ssl_shutdown_timeout=0.05)
        client.transport.close()
        assert isinstance(await client.lost, TimeoutError)

    if sys.version_info < (3, 11):
        pytest.skip("asyncio has no such timeout before Python 3.11")
    run(main())
