"""TLS transports: what a protocol is told, and when, is what asyncio's SSLProtocol tells it."""

import _ssl
import asyncio
import contextlib
import ctypes
import gc
import socket
import ssl
import sys
import weakref

import pytest
import trustme
from fix_loops import LIKE_ASYNCIO, OURS

from greenletio import _core, _tls

MUCH = b"abcdefgh" * 500_000


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def contexts(authority):
    """The server's and the client's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


class Recorder(asyncio.Protocol):
    """Notes what it is told; subclasses answer."""

    def __init__(self):
        self.told = []
        self.data = bytearray()
        self.made = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.told.append("made")
        self.transport = transport
        self.made.set_result(transport)

    def data_received(self, data):
        assert type(data) is bytes
        assert data
        if self.told[-1] != "data":
            self.told.append("data")
        self.data += data

    def eof_received(self):
        self.told.append("eof")

    def pause_writing(self):
        self.told.append("pause")

    def resume_writing(self):
        self.told.append("resume")

    def connection_lost(self, exc):
        self.told.append("lost")
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

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        self.asked += 1
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes):
        assert nbytes > 0
        self.updated += 1
        self.data += self.buffer[:nbytes]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


@pytest.fixture
def connect(contexts):
    """client, server = await connect(client_protocol, server_protocol): both ends, connected."""
    server_context, client_context = contexts
    stack = contextlib.ExitStack()

    async def make(client_protocol=Recorder, server_protocol=Recorder, **options):
        loop = asyncio.get_running_loop()
        protocols = []

        def accept():
            protocols.append(server_protocol())
            return protocols[-1]

        server = await loop.create_server(accept, "127.0.0.1", 0, ssl=server_context)
        stack.callback(server.close)
        _, client = await loop.create_connection(
            client_protocol,
            *server.sockets[0].getsockname(),
            ssl=client_context,
            server_hostname="localhost",
            **options,
        )
        await until(lambda: protocols and hasattr(protocols[0], "transport"))
        server.close()
        return client, protocols.pop()

    with stack:
        yield make


class Peer:
    """The other end of a connection by hand: nothing is sent or received unless it is asked for."""

    def __init__(self, contexts):
        self.sock, self.other = socket.socketpair()
        self.inbox, self.outbox = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = contexts[0].wrap_bio(self.inbox, self.outbox, server_side=True)
        self.sock.setblocking(False)

    async def flush(self):
        if data := self.outbox.read():
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def fill(self):
        data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
        if data:
            self.inbox.write(data)
        else:
            self.inbox.write_eof()

    async def do(self, call, *args):
        while True:
            try:
                result = call(*args)
            except ssl.SSLWantReadError:
                await self.flush()
                await self.fill()
            else:
                await self.flush()
                return result

    async def connect(self, context, protocol, **options):
        loop = asyncio.get_running_loop()
        made = asyncio.ensure_future(
            loop.create_unix_connection(
                protocol, sock=self.other, ssl=context, server_hostname="localhost", **options
            )
        )
        await self.do(self.tls.do_handshake)
        return (await made)[1]


@pytest.fixture
def peer(contexts):
    peer = Peer(contexts)
    with peer.sock, peer.other:
        yield peer


# --- data ----------------------------------------------------------------------------------------


@LIKE_ASYNCIO
def test_data_goes_both_ways_and_the_end_is_told(run, connect):
    async def main():
        client, server = await connect(server_protocol=Echo)
        client.transport.write(b"hello")
        await until(lambda: client.data == b"hello")
        client.transport.write(MUCH)
        await until(lambda: client.data == b"hello" + MUCH)
        client.transport.close()
        assert client.transport.is_closing()
        assert await client.lost is None
        assert await server.lost is None
        assert server.told == ["made", "data", "eof", "lost"]
        assert [what for what in client.told if what not in ("pause", "resume")] == [
            "made", "data", "eof", "lost"
        ]  # fmt: skip

    run(main())


@OURS
def test_it_is_our_transport(run, connect):
    async def main():
        client, server = await connect()
        for end in (client, server):
            assert type(end.transport) is _tls.SSLTransport
            assert isinstance(end.transport, asyncio.Transport)
            end.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_extra_info(run, connect, contexts):
    async def main():
        client, server = await connect()
        info = client.transport.get_extra_info
        assert info("sslcontext") is contexts[1]
        assert info("ssl_object").version() == "TLSv1.3"
        assert info("peercert")["subjectAltName"] == (("DNS", "localhost"),)
        assert info("cipher") == info("ssl_object").cipher()
        assert info("compression") is None
        assert info("peername") == server.transport.get_extra_info("sockname")
        assert info("socket").fileno() > 0
        assert info("nonsense", 42) == 42
        assert server.transport.get_extra_info("peercert") is None
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_a_buffered_protocol_reads_into_its_own_buffer(run, connect):
    async def main():
        client, server = await connect(server_protocol=Buffered)
        data = MUCH[:100_000]
        client.transport.write(data)
        await until(lambda: server.data == data)
        client.transport.write(b"more")
        await until(lambda: server.data == data + b"more")
        client.transport.abort()
        await client.lost

    run(main())


@OURS
def test_a_buffer_is_not_asked_for_in_vain(run, connect, peer, contexts):
    async def main():
        client = await peer.connect(contexts[1], Buffered)
        peer.tls.write(b"a record that arrives in pieces")
        data = peer.outbox.read()
        for byte in data:
            await asyncio.get_running_loop().sock_sendall(peer.sock, bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: client.updated)
        assert client.data == b"a record that arrives in pieces"
        assert client.asked == client.updated == 1
        client.transport.abort()

    run(main())


@LIKE_ASYNCIO
def test_the_protocol_can_change_between_two_pieces_of_data(run, connect):
    class Changing(Buffered):
        def buffer_updated(self, nbytes):
            super().buffer_updated(nbytes)
            if len(self.data) >= 3000:
                self.next = Recorder()
                self.next.told.append("made")
                self.transport.set_protocol(self.next)

    async def main():
        client, server = await connect(server_protocol=Changing)
        client.transport.write(MUCH[:8000])
        await until(lambda: hasattr(server, "next") and len(server.next.data) == 5000)
        assert server.data + server.next.data == MUCH[:8000]
        assert server.transport.get_protocol() is server.next
        client.transport.abort()
        await client.lost
        await server.next.lost

    run(main())


@LIKE_ASYNCIO
def test_nothing_is_handed_up_while_reading_is_paused(run, connect):
    async def main():
        client, server = await connect()
        server.transport.pause_reading()
        assert not server.transport.is_reading()
        client.transport.write(b"held back")
        await asyncio.sleep(0.05)
        assert server.told == ["made"]
        server.transport.resume_reading()
        assert server.transport.is_reading()
        await until(lambda: server.data == b"held back")
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_what_is_left_when_a_small_buffer_pauses_comes_later(run, connect):
    class Slow(Buffered):
        def buffer_updated(self, nbytes):
            super().buffer_updated(nbytes)
            self.transport.pause_reading()

    async def main():
        client, server = await connect(server_protocol=Slow)
        data = MUCH[:20_000]
        client.transport.write(data)
        while len(server.data) < len(data):
            before = server.updated
            await until(lambda: server.updated > before)  # noqa: B023
            server.transport.resume_reading()
        assert server.data == data
        client.transport.abort()
        await client.lost

    class Once(Slow):
        pass

    run(main())


# --- writing -------------------------------------------------------------------------------------


@OURS
def test_many_small_writes_are_one_record(run, peer, contexts):
    class Chatty(Recorder):
        def data_received(self, data):
            for i in range(10):
                self.transport.write(b"%d" % i)

    async def main():
        client = await peer.connect(contexts[1], Chatty)
        peer.tls.write(b"question")
        await peer.flush()
        data = await asyncio.get_running_loop().sock_recv(peer.sock, 1 << 16)
        assert len(data) < 60  # ten records would be 220 bytes
        peer.inbox.write(data)
        assert peer.tls.read(100) == b"0123456789"
        # The same outside of a callback: at the end of the loop's turn.
        client.told.append("data")
        for i in range(10):
            client.transport.write(bytearray(b"%d" % i))
        assert client.transport.get_write_buffer_size() == 10
        data = await asyncio.get_running_loop().sock_recv(peer.sock, 1 << 16)
        peer.inbox.write(data)
        assert peer.tls.read(100) == b"0123456789"
        assert client.transport.get_write_buffer_size() == 0
        client.transport.abort()
        await client.lost

    run(main())


@LIKE_ASYNCIO
def test_what_was_written_cannot_be_changed_afterwards(run, connect):
    async def main():
        client, server = await connect()
        data = bytearray(b"as it was")
        client.transport.write(data)
        client.transport.writelines([memoryview(data), b" ", bytearray()])
        data[:] = b"!" * len(data)
        await until(lambda: server.data == b"as it wasas it was ")
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_water_marks(run, connect):
    async def main():
        client, server = await connect()
        assert client.transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
        client.transport.set_write_buffer_limits(high=100_000, low=10_000)
        assert client.transport.get_write_buffer_limits() == (10_000, 100_000)
        with pytest.raises(ValueError, match="high"):
            client.transport.set_write_buffer_limits(high=1, low=2)
        server.transport.pause_reading()
        sent = 0
        while "pause" not in client.told:
            client.transport.write(bytes(50_000))
            sent += 50_000
            await asyncio.sleep(0)
        assert client.transport.get_write_buffer_size() >= 100_000
        assert "resume" not in client.told
        server.transport.resume_reading()
        await until(lambda: "resume" in client.told)
        await until(lambda: len(server.data) == sent)
        assert client.transport.get_write_buffer_size() == 0
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_close_sends_what_was_written_first(run, connect):
    async def main():
        client, server = await connect()
        client.transport.write(MUCH)
        client.transport.write(b"end")
        client.transport.close()
        client.transport.write(b"ignored")
        assert await client.lost is None
        assert await server.lost is None
        assert server.data == MUCH + b"end"

    run(main())


@LIKE_ASYNCIO
def test_what_cannot_be_written(run, connect):
    async def main():
        client, server = await connect()
        for wrong in ("text", 3, None):
            with pytest.raises(TypeError):
                client.transport.write(wrong)
        assert client.transport.can_write_eof() is False
        with pytest.raises(NotImplementedError):
            client.transport.write_eof()
        client.transport.write(b"")
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_a_protocol_that_writes_much_when_it_is_handed_data_need_not_pause(run, connect):
    class Generous(Recorder):
        def data_received(self, data):
            super().data_received(data)
            for _ in range(20):
                self.transport.write(bytes(30_000))

    async def main():
        client, server = await connect(server_protocol=Generous)
        client.transport.write(b"go on")
        await until(lambda: len(client.data) == 600_000)
        assert server.told == ["made", "data"]
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


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
        assert exc.reason == "WRONG_VERSION_NUMBER"
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


@LIKE_ASYNCIO
def test_the_shutdown_takes_too_long(run, peer, contexts):
    async def main():
        client = await peer.connect(contexts[1], Recorder, ssl_shutdown_timeout=0.05)
        client.transport.close()
        assert isinstance(await client.lost, TimeoutError)

    if sys.version_info < (3, 11):
        pytest.skip("asyncio has no such timeout before Python 3.11")
    run(main())


# --- the handshake -------------------------------------------------------------------------------


@LIKE_ASYNCIO
def test_the_handshake_takes_too_long(run, peer, contexts):
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(ConnectionAbortedError, match=r"longer than 0\.05 seconds"):
            await loop.create_unix_connection(
                Recorder,
                sock=peer.other,
                ssl=contexts[1],
                server_hostname="localhost",
                ssl_handshake_timeout=0.05,
            )

    run(main())


@LIKE_ASYNCIO
@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_a_timeout_must_be_positive(run, peer, contexts, name):
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises((ValueError, TypeError), match=name):
            await loop.create_unix_connection(
                Recorder, sock=peer.other, ssl=contexts[1], server_hostname="x", **{name: 0}
            )

    run(main())


@LIKE_ASYNCIO
def test_a_certificate_that_nobody_trusts(run, contexts):
    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0, ssl=contexts[0])
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(
                Recorder,
                *server.sockets[0].getsockname(),
                ssl=ssl.create_default_context(),
                server_hostname="localhost",
            )
        server.close()

    run(main())


@LIKE_ASYNCIO
def test_the_peer_hangs_up_in_the_handshake(run, peer, contexts):
    async def main():
        loop = asyncio.get_running_loop()
        made = asyncio.ensure_future(
            loop.create_unix_connection(
                Recorder, sock=peer.other, ssl=contexts[1], server_hostname="localhost"
            )
        )
        await peer.fill()
        peer.sock.close()
        with pytest.raises(ConnectionResetError):
            await made

    run(main())


@LIKE_ASYNCIO
def test_a_connection_that_is_cancelled_in_the_handshake(run, peer, contexts):
    async def main():
        loop = asyncio.get_running_loop()
        made = asyncio.ensure_future(
            loop.create_unix_connection(
                Recorder, sock=peer.other, ssl=contexts[1], server_hostname="localhost"
            )
        )
        await peer.fill()
        made.cancel()
        with pytest.raises(asyncio.CancelledError):
            await made
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await peer.do(peer.tls.do_handshake)
        assert await loop.sock_recv(peer.sock, 1) == b""

    run(main())


@LIKE_ASYNCIO
def test_a_servers_sni_callback_is_called(run, connect, contexts):
    names = []
    contexts[0].sni_callback = lambda ssl_object, name, context: names.append(name)

    async def main():
        client, server = await connect()
        client.transport.abort()
        await client.lost
        await server.lost

    try:
        run(main())
    finally:
        contexts[0].sni_callback = None
    assert names == ["localhost"]


@OURS
def test_new_keys_that_the_peer_asks_for(run, peer, contexts):
    """Its read keys change within what is read; the answer goes with what is written next."""
    openssl = ctypes.CDLL(_ssl.__file__)

    async def main():
        loop = asyncio.get_running_loop()
        client = await peer.connect(contexts[1], Recorder)
        engine = _core.TlsEngine(peer.tls)
        assert openssl.SSL_key_update(ctypes.c_void_p(engine.address), 1) == 1
        engine.write(b"with new keys")
        await loop.sock_sendall(peer.sock, engine.take())
        await until(lambda: client.data == b"with new keys")
        client.transport.write(b"with newer keys")
        engine.feed(await loop.sock_recv(peer.sock, 1 << 16))
        assert engine.read(100) == b"with newer keys"
        client.transport.abort()
        await client.lost

    run(main())


@LIKE_ASYNCIO
def test_reading_that_is_paused_before_the_handshake_is_paused_after_it(run, contexts):
    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=contexts[0])
        transport, plain = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        protocol = Recorder()
        protocol.told.append("made")
        upgrading = asyncio.ensure_future(
            loop.start_tls(transport, protocol, contexts[1], server_hostname="localhost")
        )
        await asyncio.sleep(0)
        below = transport.get_protocol()  # asyncio has the transport apart from it
        getattr(below, "_app_transport", below).pause_reading()
        upgraded = await upgrading
        upgraded.write(b"hello")
        await asyncio.sleep(0.05)
        assert protocol.told == ["made"]
        upgraded.resume_reading()
        await until(lambda: protocol.data == b"hello")
        upgraded.abort()
        await protocol.lost
        server.close()

    run(main())


@OURS
def test_a_session_that_cannot_be_used_is_left_to_asyncio(run, connect, contexts):
    """Such as one of a class of the user's own, which may do what it likes."""

    class Session(ssl.SSLObject):
        @classmethod
        def _create(cls, *args, **kwargs):
            self = super()._create(*args, **kwargs)
            self._sslobj = Wrapper(self._sslobj)
            return self

    class Wrapper:
        def __init__(self, session):
            self.session = session

        def __getattr__(self, name):
            return getattr(self.session, name)

    contexts[1].sslobject_class = Session

    async def main():
        client, server = await connect(server_protocol=Echo)
        assert type(client.transport) is not _tls.SSLTransport
        client.transport.write(b"hello")
        await until(lambda: client.data == b"hello")
        client.transport.abort()
        await client.lost
        await server.lost

    try:
        run(main())
    finally:
        del contexts[1].sslobject_class


# --- start_tls and the rest ----------------------------------------------------------------------


@LIKE_ASYNCIO
@pytest.mark.parametrize("times", [1, 2])
def test_start_tls(run, contexts, times):
    """The second time it is TLS in TLS."""

    class Upgrade(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.upgraded = asyncio.ensure_future(self.upgrade())

        async def upgrade(self):
            loop = asyncio.get_running_loop()
            for self.stage in range(times):
                self.transport = await loop.start_tls(
                    self.transport, self, contexts[0], server_side=True
                )

        def data_received(self, data):
            self.transport.write(data)

    async def main():
        loop = asyncio.get_running_loop()
        protocols = []

        def ready(stage):
            return protocols and getattr(protocols[0], "stage", -1) >= stage

        def accept():
            protocols.append(Upgrade())
            return protocols[-1]

        server = await loop.create_server(accept, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        for i in range(times):
            await until(lambda: ready(i))  # noqa: B023
            transport = await loop.start_tls(
                transport, client, contexts[1], server_hostname="localhost"
            )
            if loop.__module__.startswith("greenletio"):
                assert (type(transport) is _tls.SSLTransport) == (i == 0)
        await protocols[0].upgraded
        transport.write(MUCH)
        await until(lambda: client.data == MUCH)
        transport.close()
        await client.lost
        await protocols[0].lost
        assert client.told.count("made") == 1
        server.close()

    run(main())


@OURS
def test_what_start_tls_refuses(run, peer, contexts):
    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_unix_connection(Recorder, sock=peer.other)
        with pytest.raises(TypeError, match="sslcontext"):
            await loop.start_tls(transport, protocol, None)
        with pytest.raises(TypeError, match="not supported"):
            await loop.start_tls(object(), protocol, contexts[1])
        transport.abort()
        await protocol.lost

    run(main())


@OURS
def test_key_logs_leave_it_to_asyncio(run, connect, contexts, tmp_path):
    contexts[1].keylog_filename = str(tmp_path / "keys")

    async def main():
        client, server = await connect(server_protocol=Echo)
        assert type(client.transport) is not _tls.SSLTransport
        assert type(server.transport) is _tls.SSLTransport
        client.transport.write(b"hello")
        await until(lambda: client.data == b"hello")
        client.transport.abort()
        await client.lost
        await server.lost

    try:
        run(main())
    finally:
        contexts[1].keylog_filename = None
    assert "TRAFFIC_SECRET" in (tmp_path / "keys").read_text()


@LIKE_ASYNCIO
def test_sendfile(run, connect, tmp_path):
    (tmp_path / "file").write_bytes(MUCH)

    async def main():
        client, server = await connect()
        with open(tmp_path / "file", "rb") as file:
            sent = await asyncio.get_running_loop().sendfile(client.transport, file)
        assert sent == len(MUCH)
        await until(lambda: len(server.data) == sent)
        assert server.data == MUCH
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@OURS
def test_nothing_is_kept_alive(run, connect):
    async def main():
        client, server = await connect(server_protocol=Echo)
        client.transport.write(b"hello")
        await until(lambda: client.data)
        refs = [weakref.ref(end.transport) for end in (client, server)]
        sessions = [
            weakref.ref(end.transport.get_extra_info("ssl_object")) for end in (client, server)
        ]
        client.transport.close()
        await client.lost
        await server.lost
        client = server = None
        await asyncio.sleep(0.01)
        gc.collect()
        assert [ref() for ref in refs + sessions] == [None] * 4

    run(main())


@OURS
def test_connections_leave_nothing_behind(run, contexts, aflat):
    async def main():
        loop = asyncio.get_running_loop()
        ended = asyncio.Queue()

        class Server(Echo):
            def connection_lost(self, exc):
                super().connection_lost(exc)
                ended.put_nowait(None)

        server = await loop.create_server(Server, "127.0.0.1", 0, ssl=contexts[0])

        async def once():
            transport, client = await loop.create_connection(
                Recorder,
                *server.sockets[0].getsockname(),
                ssl=contexts[1],
                server_hostname="localhost",
            )
            transport.write(b"x" * 70_000)
            await until(lambda: len(client.data) == 70_000)
            transport.close()
            await client.lost
            await ended.get()

        await aflat(once, repeat=60)
        server.close()

    run(main())
