"""Servers: connections are taken as they come, whatever one of them does."""

import asyncio
import contextlib
import contextvars
import errno
import os
import resource
import socket

import pytest
from fix_loops import LIKE_ASYNCIO, OURS

import greenletio


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def ask(sock):
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"ping")
    return await loop.sock_recv(sock, 100)


async def dial(address):
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    return sock


@pytest.mark.parametrize("family", ["127.0.0.1", "::1", "unix"])
def test_peers_are_known_by_their_address(run, family, tmp_path):
    path = str(tmp_path / "socket")

    async def main():
        loop = asyncio.get_running_loop()
        made = loop.create_future()

        class Noting(Echo):
            def connection_made(self, transport):
                super().connection_made(transport)
                made.set_result(transport)

        if family == "unix":
            server = await loop.create_unix_server(Noting, path)
            client = socket.socket(socket.AF_UNIX)
        else:
            server = await loop.create_server(Noting, family, 0)
            client = socket.socket(server.sockets[0].family)
        with client:
            client.setblocking(False)
            await loop.sock_connect(client, server.sockets[0].getsockname())
            transport = await made
            assert (transport.get_extra_info("peername") or "") == client.getsockname()
            assert transport.get_extra_info("sockname") == client.getpeername()
            sock = transport.get_extra_info("socket")
            assert (sock.family, sock.type, sock.gettimeout()) == (client.family, client.type, 0)
            assert not os.get_inheritable(sock.fileno())
            transport.close()
            server.close()
            await server.wait_closed()

    run(main())


@OURS
@pytest.mark.parametrize("tls", [False, True])
def test_a_backlog_of_nothing_still_takes_connections(run, contexts, tls):
    """Before Python 3.13 asyncio's own takes none, and keeps the loop spinning."""

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            Echo, "127.0.0.1", 0, backlog=0, ssl=contexts[0] if tls else None
        )
        options = {"ssl": contexts[1], "server_hostname": "localhost"} if tls else {}
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address, **options)
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        writer.close()
        await writer.wait_closed()
        server.close()

    run(main())


def test_all_that_wait_are_taken_in_one_turn(run):
    async def main():
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
            clients = [socket.create_connection(listener.getsockname()) for _ in range(100)]
            server = await loop.create_server(Echo, sock=listener, backlog=200)
            for client in clients:
                client.setblocking(False)
            assert await asyncio.gather(*(ask(client) for client in clients)) == [b"ping"] * 100
            for client in clients:
                client.close()
            server.close()
            await server.wait_closed()

    run(main())


@OURS
def test_a_factory_that_fails_costs_one_connection(run):
    """asyncio says so in debug mode only."""
    fail = True

    def factory():
        if fail:
            raise ZeroDivisionError
        return Echo()

    async def main():
        nonlocal fail
        loop = asyncio.get_running_loop()
        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        with await dial(address) as client:
            assert await loop.sock_recv(client, 1) == b""
        [report] = run.reported
        run.reported.clear()
        assert isinstance(report["exception"], ZeroDivisionError)
        fail = False
        with await dial(address) as client:
            assert await ask(client) == b"ping"
        server.close()
        await server.wait_closed()

    run(main())


@LIKE_ASYNCIO
def test_each_connection_has_a_context_of_its_own(run):
    var = contextvars.ContextVar("var", default="none")
    seen = []

    def factory():
        seen.append(var.get())
        var.set("of a connection")
        return Echo()

    async def main():
        var.set("of main")
        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        for _ in range(2):
            with await dial(server.sockets[0].getsockname()) as client:
                assert await ask(client) == b"ping"
        server.close()
        await server.wait_closed()

    run(main())
    assert seen == ["of main", "of main"]


@OURS
def test_a_server_closed_by_its_factory_takes_no_more(run):
    made = []

    async def main():
        loop = asyncio.get_running_loop()

        def factory():
            server.close()
            made.append(Echo())
            return made[-1]

        with socket.create_server(("127.0.0.1", 0), backlog=10) as listener:
            clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
            server = await loop.create_server(
                factory, sock=listener, backlog=10, start_serving=False
            )
            await server.start_serving()
            with contextlib.ExitStack() as stack:
                for client in clients:
                    stack.enter_context(client)
                while not run.reported:  # the one that it has made gets no transport any more
                    await asyncio.sleep(0)
            run.reported.clear()
            for _ in range(10):
                await asyncio.sleep(0)

    run(main())
    assert len(made) == 1


@OURS
def test_without_file_descriptors_a_server_reports_and_tries_again(run, monkeypatch):
    """asyncio's own tries again as often as it could have accepted, even after it was closed."""
    monkeypatch.setattr("asyncio.constants.ACCEPT_RETRY_DELAY", 0.01)

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        client = socket.socket()
        client.setblocking(False)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 10, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(client.fileno()))
            await loop.sock_connect(client, server.sockets[0].getsockname())
            while not run.reported:
                await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
        assert run.reported[0]["exception"].errno == errno.EMFILE
        assert "out of system resource" in run.reported[0]["message"]
        assert await ask(client) == b"ping"
        run.reported.clear()
        client.close()
        server.close()
        await server.wait_closed()

    run(main())


def test_a_handler_of_streams_runs_for_each_connection(run):
    async def main():
        async def handle(reader, writer):
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def client(n):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for i in range(20):
                writer.write(b"%d says %d\n" % (n, i))
                assert await reader.readline() == b"%d SAYS %d\n" % (n, i)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(client(n) for n in range(50)))
        server.close()
        await server.wait_closed()

    run(main())


def test_a_loop_of_ours_serves_with_our_transports():
    async def main():
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert type(writer.transport).__name__ == "StreamTransport"
        writer.close()
        await writer.wait_closed()
        server.close()

    greenletio.run(main())
