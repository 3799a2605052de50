"""TLS transports: the beginning, and what else happens to a session."""

import _ssl
import asyncio
import contextlib
import ctypes
import gc
import ssl
import weakref

import pytest
from fix_loops import LIKE_ASYNCIO, OURS
from fix_transports import (
    MUCH,
    Echo,
    Recorder,
    until,
)

from greenletio import _core, _tls

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


async def in_handshake(peer, contexts):
    """The connection that is being made, once its peer has the beginning of it."""
    loop = asyncio.get_running_loop()
    made = asyncio.ensure_future(
        loop.create_unix_connection(
            Recorder, sock=peer.other, ssl=contexts[1], server_hostname="localhost"
        )
    )
    await peer.fill()
    return made


@LIKE_ASYNCIO
def test_the_peer_hangs_up_in_the_handshake(run, peer, contexts):
    async def main():
        made = await in_handshake(peer, contexts)
        peer.sock.close()
        with pytest.raises(ConnectionResetError):
            await made

    run(main())


@LIKE_ASYNCIO
def test_a_connection_that_is_cancelled_in_the_handshake(run, peer, contexts):
    async def main():
        made = await in_handshake(peer, contexts)
        made.cancel()
        with pytest.raises(asyncio.CancelledError):
            await made
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await peer.do(peer.tls.do_handshake)
        assert await asyncio.get_running_loop().sock_recv(peer.sock, 1) == b""

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
@pytest.mark.parametrize("end", ["close", "abort", "lost"])
def test_start_tls_that_comes_too_late(run, peer, contexts, end):
    """asyncio's own waits for the end of a handshake that never begins."""

    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_unix_connection(Recorder, sock=peer.other)
        if end == "lost":
            peer.sock.close()
            await protocol.lost
        else:
            getattr(transport, end)()
        with pytest.raises(ConnectionAbortedError, match="too late"):
            await loop.start_tls(transport, protocol, contexts[1], server_hostname="localhost")
        await protocol.lost
        assert protocol.told[0] == "made"
        assert protocol.told[-1] == "lost"

    run(main())


@OURS
def test_a_transport_that_is_closed_in_the_handshake(run, peer, contexts):
    """To asyncio it is as good as connected then."""

    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_unix_connection(Recorder, sock=peer.other)
        upgrading = asyncio.ensure_future(
            loop.start_tls(transport, protocol, contexts[1], server_hostname="localhost")
        )
        await peer.fill()
        transport.abort()
        with pytest.raises(ConnectionAbortedError, match="handshake"):
            await upgrading

    run(main())


@OURS
def test_a_keyboard_interrupt_in_connection_made_ends_the_run_only(make_loop, connect):
    """As without TLS. asyncio's own never tells create_connection() that it is connected."""

    class Interrupted(Echo):
        def connection_made(self, transport):
            super().connection_made(transport)
            raise KeyboardInterrupt

    async def main():
        client, server = await connect(server_protocol=Interrupted)
        client.transport.write(b"hello")
        await until(lambda: client.data == b"hello")
        client.transport.close()
        await client.lost
        await server.lost
        client, server = await connect(client_protocol=Interrupted)
        server.transport.write(b"hello")
        await until(lambda: server.data == b"hello")
        client.transport.close()
        await client.lost
        await server.lost

    loop = make_loop()
    task = loop.create_task(main())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
    loop.run_until_complete(task)
    loop.close()


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
