"""greenletio.green.ssl: real TLS over real sockets; no want of a nonblocking session escapes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl as std
import threading as std_threading
from pathlib import Path
from typing import Any

import pytest

from greenletio import async_, spawn
from greenletio.green import socket, ssl, time


def serve(server: Any, context: Any, versions: list[str]) -> None:
    connection, _ = server.accept()
    with context.wrap_socket(connection, server_side=True) as tls:
        versions.append(tls.version())
        while data := tls.recv(65536):
            tls.sendall(data)
        with contextlib.suppress(OSError):  # the client may have gone without a close_notify
            tls.unwrap()


def connect(server: Any, context: Any) -> Any:
    sock = socket.create_connection(server.getsockname())
    return context.wrap_socket(sock, server_hostname="localhost")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_echo(green: Any, tls: Any, version: Any) -> None:
    server_context, client_context = tls
    client_context.minimum_version = client_context.maximum_version = version
    message = os.urandom(3_000_000)
    versions: list[str] = []

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            serving = spawn(serve, server, server_context, versions)
            with connect(server, client_context) as client:
                assert type(client) is ssl.SSLSocket
                assert client.getpeercert()["subjectAltName"] == (("DNS", "localhost"),)
                sending = spawn(client.sendall, message)
                got = bytearray()
                while len(got) < len(message):
                    got += client.recv(65536)
                sending.get()
                client.unwrap()
            serving.get()
        assert got == message
        assert versions == [version.name.replace("_", ".")]

    green(main)
    assert green.ticker.steps > 0


def test_it_works_without_a_loop(tls: Any) -> None:
    server_context, client_context = tls
    versions: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = std_threading.Thread(target=serve, args=(server, server_context, versions))
        thread.start()
        with connect(server, client_context) as client:
            client.sendall(b"plain")
            assert client.recv(10) == b"plain"
            client.unwrap()
        thread.join()


def test_wrapping_before_connecting_and_a_wrapped_listener(green: Any, tls: Any) -> None:
    server_context, client_context = tls

    def main() -> None:
        with server_context.wrap_socket(
            socket.create_server(("127.0.0.1", 0)), server_side=True
        ) as listener:

            def answer() -> None:
                connection, _ = listener.accept()
                with connection:
                    assert type(connection) is ssl.SSLSocket
                    connection.sendall(connection.recv(10).upper())

            serving = spawn(answer)
            with client_context.wrap_socket(socket.socket(), server_hostname="localhost") as client:
                client.connect(("localhost", listener.getsockname()[1]))
                client.write(b"hello")
                assert client.read(10) == b"HELLO"
            serving.get()

    green(main)


def test_timeouts(green: Any, tls: Any) -> None:
    server_context, client_context = tls

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            silent = socket.create_connection(server.getsockname())
            silent.settimeout(0.02)
            with pytest.raises(TimeoutError, match="handshake operation timed out"):
                client_context.wrap_socket(silent, server_hostname="localhost")
            server.accept()[0].close()

            spawn(serve, server, server_context, [])
            with connect(server, client_context) as client:
                client.settimeout(0.02)
                with pytest.raises(TimeoutError, match="read operation timed out"):
                    client.recv(1)
                buffer = bytearray(1)
                with pytest.raises(TimeoutError, match="read operation timed out"):
                    client.recv_into(buffer)
                client.sendall(b"y")
                client.settimeout(30)
                assert client.recv(1) == b"y"

    green(main)
    assert green.ticker.steps > 0


def test_write_timeout(green: Any, tls: Any) -> None:
    server_context, client_context = tls

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def accept_and_never_read() -> Any:
                return server_context.wrap_socket(server.accept()[0], server_side=True)

            accepting = spawn(accept_and_never_read)
            with connect(server, client_context) as client, accepting.get():
                client.settimeout(0.02)
                with pytest.raises(TimeoutError, match="write operation timed out"):
                    while True:
                        client.sendall(bytes(1_000_000))

    green(main)


def test_nonblocking_sessions_report_their_wants(green: Any, tls: Any) -> None:
    server_context, client_context = tls

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock = socket.create_connection(server.getsockname())
            sock.setblocking(False)
            with pytest.raises(ValueError, match="do_handshake_on_connect"):
                client_context.wrap_socket(sock, server_hostname="localhost")
            server.accept()[0].close()

            serving = spawn(serve, server, server_context, [])
            sock = socket.create_connection(server.getsockname())
            sock.setblocking(False)
            with client_context.wrap_socket(
                sock, server_hostname="localhost", do_handshake_on_connect=False
            ) as client:
                with pytest.raises(ssl.SSLWantReadError):
                    client.do_handshake()
                client.do_handshake(block=True)
                assert client.gettimeout() == 0
                with pytest.raises(ssl.SSLWantReadError):
                    client.recv(1)
            serving.get()

    green(main)


def test_certificates_are_verified(green: Any, tls: Any) -> None:
    server_context, _ = tls

    def main() -> None:
        for context, name in (
            (ssl.create_default_context(), "localhost"),
            (tls[1], "another.invalid"),
        ):
            with socket.create_server(("127.0.0.1", 0)) as server:
                serving = spawn(serve, server, server_context, [])
                with pytest.raises(ssl.SSLCertVerificationError):
                    context.wrap_socket(
                        socket.create_connection(server.getsockname()), server_hostname=name
                    )
                with pytest.raises((ssl.SSLError, OSError)):
                    serving.get()

    green(main)


def test_a_peer_that_does_not_speak_tls(green: Any, tls: Any) -> None:
    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def greet() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"220 no TLS here\r\n")

            spawn(greet)
            with pytest.raises(ssl.SSLError):
                connect(server, tls[1])

    green(main)


def test_ragged_end(green: Any, tls: Any) -> None:
    server_context, client_context = tls

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def cut() -> None:
                sock = server_context.wrap_socket(server.accept()[0], server_side=True)
                sock.recv(1)
                sock.close()  # without a close_notify

            for suppress in (True, False):
                cutting = spawn(cut)
                sock = socket.create_connection(server.getsockname())
                with client_context.wrap_socket(
                    sock, server_hostname="localhost", suppress_ragged_eofs=suppress
                ) as client:
                    client.send(b"x")
                    if suppress:
                        assert client.recv(1) == b""
                    else:
                        with pytest.raises(ssl.SSLEOFError):
                            client.recv(1)
                cutting.get()

    green(main)


@pytest.mark.parametrize("moment", ["handshake", "read"])
def test_closing_wakes_the_waiter(green: Any, tls: Any, moment: str) -> None:
    server_context, client_context = tls

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock = socket.create_connection(server.getsockname())
            client = client_context.wrap_socket(
                sock, server_hostname="localhost", do_handshake_on_connect=False
            )
            if moment == "read":
                spawn(serve, server, server_context, [])
                client.do_handshake()
                waiting = spawn(client.recv, 1)
            else:
                waiting = spawn(client.do_handshake)
            for _ in range(5):
                time.sleep(0)
            client.close()
            with pytest.raises(OSError) as raised:
                waiting.get()
            assert raised.value.errno == errno.EBADF

    green(main)


def test_cancelling_a_read(run: Any, tls: Any) -> None:
    server_context, client_context = tls

    async def main() -> None:
        def prepare() -> Any:
            with socket.create_server(("127.0.0.1", 0)) as server:
                serving = spawn(serve, server, server_context, [])
                return connect(server, client_context), serving

        client, serving = await async_(prepare)()
        with client:
            for _ in range(20):
                task = asyncio.ensure_future(async_(client.recv)(1))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await async_(client.sendall)(b"x")
            assert await async_(client.recv)(1) == b"x"
        await serving

    run(main())


def test_files_over_tls(green: Any, tls: Any, tmp_path: Path) -> None:
    server_context, client_context = tls
    content = os.urandom(500_000)
    (tmp_path / "file").write_bytes(content)

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            serving = spawn(serve, server, server_context, [])
            with connect(server, client_context) as client, client.makefile("rb") as reader:

                def send() -> None:
                    with (tmp_path / "file").open("rb") as file:
                        assert client.sendfile(file) == len(content)

                sending = spawn(send)
                assert reader.read(len(content)) == content
                sending.get()
            serving.get()

    green(main)


def test_fetching_a_certificate(green: Any, tls: Any) -> None:
    server_context, client_context = tls

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            spawn(serve, server, server_context, [])
            pem = ssl.get_server_certificate(server.getsockname())
            assert ssl.PEM_cert_to_DER_cert(pem) == std.PEM_cert_to_DER_cert(pem)

    green(main)


def test_contexts_made_by_the_functions_are_green() -> None:
    assert type(ssl.create_default_context()) is ssl.SSLContext
    assert type(ssl._create_unverified_context()) is ssl.SSLContext
    assert type(ssl._create_default_https_context()) is ssl.SSLContext
    assert ssl.SSLContext.sslsocket_class is ssl.SSLSocket
    assert std.SSLContext.sslsocket_class is std.SSLSocket
