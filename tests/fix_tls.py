"""What the tests of TLS transports share: contexts, connections, and a peer driven by hand."""

import asyncio
import contextlib
import socket
import ssl

import pytest
import trustme
from fix_transports import Recorder, until


def bad_record(before):
    """OpenSSL's word for a bad record: one for all kinds since 3.2, `before` until then."""
    return "RECORD_LAYER_FAILURE" if ssl.OPENSSL_VERSION_INFO >= (3, 2) else before


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
        await until(lambda: protocols and protocols[0].transport)
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
