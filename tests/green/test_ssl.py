"""greenletio.green.ssl: real TLS over real sockets; no want of a nonblocking session escapes."""

from __future__ import annotations

import _ssl
import asyncio
import contextlib
import ctypes
import errno
import os
import select as std_select
import socket as std_socket
import ssl as std
import threading as std_threading
from pathlib import Path
from typing import Any

import pytest

from greenletio import _core, async_, spawn
from greenletio.green import select, socket, ssl, time

pytestmark = pytest.mark.leaks


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


# -- what the engine in C must not change


class ByHand:
    """The other end of a connection, whose every byte is the test's business."""

    def __init__(self, sock: Any, context: Any) -> None:
        self.sock = sock
        self.object = context.wrap_bio(std.MemoryBIO(), std.MemoryBIO(), server_side=True)
        self.engine = _core.TlsEngine(self.object)
        while True:
            try:
                self.object.do_handshake()
                break
            except std.SSLWantReadError:
                self.sock.sendall(self.engine.take())
                self.engine.feed(self.sock.recv(65536))
        self.sock.sendall(self.engine.take())

    def records(self, *plaintexts: bytes) -> bytes:
        for plaintext in plaintexts:
            self.engine.write(plaintext)
        return self.engine.take()

    def read(self) -> bytes:
        while (data := self.engine.read(65536)) is None:
            self.engine.feed(self.sock.recv(65536))
        return data


@contextlib.contextmanager
def by_hand(tls: Any, **options: Any) -> Any:
    """(the other end, a green client)"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = spawn(lambda: ByHand(server.accept()[0], tls[0]))
        sock = socket.create_connection(server.getsockname())
        with tls[1].wrap_socket(sock, server_hostname="localhost", **options) as client:
            peer = accepting.get()
            with peer.sock:
                yield peer, client


def test_data_goes_through_the_engine(green: Any, tls: Any) -> None:
    def main() -> None:
        with by_hand(tls) as (_, client):
            assert type(client._tls) is _core.TlsSession

    green(main)


@pytest.mark.parametrize("way", ["keylog", "callback"])
def test_without_the_engine(green: Any, tls: Any, tmp_path: Path, way: str) -> None:
    """These have exceptions of their own, which Python's methods raise."""
    server_context, client_context = tls
    if way == "keylog":
        client_context.keylog_filename = str(tmp_path / "keys")
    else:
        client_context._msg_callback = lambda *_: None
    message = os.urandom(100_000)

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            serving = spawn(serve, server, server_context, [])
            with connect(server, client_context) as client:
                assert client._tls is None
                sending = spawn(client.sendall, message)
                got = bytearray()
                while len(got) < len(message):
                    got += client.recv(65536)
                sending.get()
                assert client.write(b"x") == 1 and client.read(1) == b"x"
                assert client.send(b"y") == 1 and client.recv_into(bytearray(1)) == 1
                client.unwrap()
            serving.get()
            assert got == message

    green(main)


@pytest.mark.parametrize("size", [100, 1000, 1500, 65536])
def test_select_and_pending_tell_of_all_there_is(green: Any, tls: Any, size: int) -> None:
    """As of a standard socket: nothing is held back of which neither of them knows."""
    parts = [os.urandom(1000) for _ in range(20)]

    def main() -> None:
        with by_hand(tls) as (peer, client):
            peer.sock.sendall(peer.records(*parts))
            got = b""
            while len(got) < 20_000:
                if not client.pending():
                    assert select.select([client], [], [], 60)[0]
                got += client.recv(size)
            assert got == b"".join(parts)
            assert not client.pending() and not select.select([client], [], [], 0)[0]

    green(main)


def test_select_tells_a_nonblocking_socket_of_an_end_that_came_with_the_data(
    green: Any, tls: Any
) -> None:
    def main() -> None:
        with by_hand(tls) as (peer, client):
            client.setblocking(False)
            data = peer.records(b"one", b"two")
            with pytest.raises(std.SSLWantReadError):
                peer.object.unwrap()
            peer.sock.sendall(data + peer.engine.take())  # and the connection stays open
            got = []
            while not got or got[-1]:
                assert select.select([client], [], [], 60)[0]
                with contextlib.suppress(std.SSLWantReadError):
                    got.append(client.recv(65536))
            assert got == [b"one", b"two", b""]

    green(main)


def test_records_that_dribble(green: Any, tls: Any) -> None:
    def main() -> None:
        with by_hand(tls) as (peer, client):
            data = peer.records(b"one", b"two" * 100)

            def dribble() -> None:
                for byte in data:
                    peer.sock.sendall(bytes([byte]))
                    time.sleep(0)

            dribbling = spawn(dribble)
            assert client.recv(2) == b"on"
            buffer = bytearray(1)
            assert client.recv_into(buffer) == 1 and buffer == b"e"
            got = b""
            while len(got) < 300:
                got += client.recv(7)
            dribbling.get()
            assert got == b"two" * 100

    green(main)


def test_every_way_to_read(green: Any, tls: Any) -> None:
    def main() -> None:
        with by_hand(tls) as (peer, client):
            peer.sock.sendall(peer.records(b"abcdefghijklmnopqrstuvwxyz"))
            assert client.recv(1) == b"a" and client.recv(buflen=1) == b"b"
            assert client.recv(1, 0) == b"c"
            assert client.read(1) == b"d" and client.read(len=1) == b"e"
            buffer = bytearray(8)
            assert client.read(3, buffer) == 3 and buffer[:3] == b"fgh"
            assert client.read(2, buffer=buffer) == 2 and buffer[:2] == b"ij"
            assert client.recv_into(buffer, 2) == 2 and buffer[:2] == b"kl"
            assert client.recv_into(buffer, nbytes=1) == 1 and buffer[:1] == b"m"
            assert client.recv_into(memoryview(buffer)[6:]) == 2 and buffer[6:] == b"no"
            assert client.recv_into(buffer, 2, 0) == 2 and buffer[:2] == b"pq"
            assert client.recv(0) == b"" and client.read(0) == b""
            assert client.recv() == b"rstuvwxyz"
            for call in (client.recv, client.read):
                with pytest.raises(ValueError):
                    call(-1)
            with pytest.raises(ValueError, match="non-zero flags"):
                client.recv(1, std_socket.MSG_PEEK)
            with pytest.raises(ValueError, match="non-zero flags"):
                client.send(b"x", std_socket.MSG_OOB)
            with pytest.raises(TypeError):
                client.send("text")
            with pytest.raises(TypeError):
                client.recv_into(b"read-only")

    green(main)


def test_every_way_to_write(green: Any, tls: Any) -> None:
    def main() -> None:
        with by_hand(tls) as (peer, client):
            assert client.send(b"a") == 1 and client.write(b"b") == 1
            assert client.send(b"c", 0) == 1 and client.send(data=b"d") == 1
            assert client.sendall(b"e") is None and client.sendall(b"f", flags=0) is None
            client.sendall(memoryview(b"gh"))
            client.sendall(b"")
            assert client.send(b"") == 0
            assert client.send(bytes(100_000)) == 16_384  # a record
            got = b""
            while len(got) < 8 + 16_384:
                got += peer.read()
            assert got == b"abcdefgh" + bytes(16_384)

    green(main)


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_a_write_that_gave_up_goes_on_when_repeated(green: Any, tls: Any, timeout: float) -> None:
    chunks = [os.urandom(10_000) for _ in range(1000)]

    def main() -> None:
        with by_hand(tls) as (peer, client):
            client.settimeout(timeout)
            gave_up = 0
            receiving = None

            def receive() -> bytes:
                got = bytearray()
                while len(got) < 10_000_000:
                    got += peer.read()
                return bytes(got)

            for chunk in chunks:
                while True:
                    try:
                        assert client.send(chunk) == 10_000
                        break
                    except (ssl.SSLWantWriteError, TimeoutError) as error:
                        assert isinstance(error, TimeoutError) == (timeout > 0)
                        gave_up += 1
                        receiving = receiving or spawn(receive)
                        select.select([], [client], [])
            assert gave_up
            assert receiving is not None and receiving.get() == b"".join(chunks)

    green(main)


def test_what_follows_the_end_of_tls(green: Any, tls: Any) -> None:
    def main() -> None:
        with by_hand(tls) as (peer, client):
            data = peer.records(b"the last")
            with pytest.raises(std.SSLWantReadError):
                peer.object.unwrap()
            peer.sock.sendall(data + peer.engine.take() + b"plain text")
            assert client.recv(65536) == b"the last"
            assert client.recv(65536) == b""
            plain = client.unwrap()
            assert plain.recv(5) == b"plain"
            buffer = bytearray(3)
            assert plain.recv_into(buffer) == 3 and buffer == b" te"
            assert plain.recv(65536) == b"xt"
            plain.sendall(b"plain as well")
            peer.engine.feed(peer.sock.recv(24))
            peer.object.unwrap()
            assert peer.sock.recv(65536) == b"plain as well"

    green(main)


def test_new_keys_in_the_middle(green: Any, tls: Any) -> None:
    key_update_requested = 1
    openssl = ctypes.CDLL(_ssl.__file__)

    def main() -> None:
        with by_hand(tls) as (peer, client):
            if client.version() != "TLSv1.3":
                pytest.skip("TLS 1.3 alone has it")
            for i in range(5):
                assert openssl.SSL_key_update(
                    ctypes.c_void_p(peer.engine.address), key_update_requested
                )
                peer.sock.sendall(peer.records(b"question"))
                assert client.recv(100) == b"question"
                client.sendall(b"answer %d" % i)
                got = peer.read()
                while len(got) < 8:
                    got += peer.read()
                assert got == b"answer %d" % i

    green(main)


def test_a_socket_of_ones_own_that_reads_another_in_its_fileno(green: Any, tls: Any) -> None:
    other: list[Any] = []
    got_of_other: list[bytes] = []

    class Prying(ssl.SSLSocket):
        def fileno(self) -> int:
            number = super().fileno()
            if other and not std_select.select([number], [], [], 0)[0]:  # all has been received
                got_of_other.append(other.pop().recv(65536))
            return number

    def main() -> None:
        with by_hand(tls) as (peer, client), by_hand(tls) as (peer2, client2):
            peer.sock.sendall(peer.records(b"first"))
            assert client.recv(100) == b"first"
            peer2.sock.sendall(peer2.records(b"z" * 5000))
            _core.wait_fd(client2.fileno(), _core.READ)
            forged = b"\x17\x03\x03\x00\x40" + bytes(64)  # its alert asks for the descriptor
            peer.sock.sendall(peer.records(b"x" * 5000) + forged)
            _core.wait_fd(client.fileno(), _core.READ)
            client.__class__ = Prying
            other.append(client2)
            assert client.recv(65536) == b"x" * 5000
            assert got_of_other == [b"z" * 5000]

    green(main)


@pytest.mark.parametrize("suppress", [True, False])
@pytest.mark.parametrize("cut", [0, 3, 10])
def test_the_end_in_the_middle_of_a_record(green: Any, tls: Any, cut: int, suppress: bool) -> None:
    def main() -> None:
        with by_hand(tls, suppress_ragged_eofs=suppress) as (peer, client):
            data = peer.records(b"all of it") + peer.records(b"some of it")[:cut]
            peer.sock.sendall(data)
            peer.sock.close()
            assert client.recv(100) == b"all of it"
            if suppress:
                assert client.recv(100) == b""
                assert client.recv_into(bytearray(10)) == 0
            else:
                with pytest.raises(ssl.SSLEOFError):
                    client.recv(100)

    green(main)


def test_garbage_in_the_middle(green: Any, tls: Any) -> None:
    def main() -> None:
        with by_hand(tls) as (peer, client):
            peer.sock.sendall(peer.records(b"fine") + b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(4) == b"fine"
            for _ in range(2):
                with pytest.raises(ssl.SSLError):
                    client.recv(100)
            with pytest.raises(std.SSLError, match="ALERT"):
                peer.read()

    green(main)


def test_many_readers_and_writers_of_many_connections(green: Any, tls: Any) -> None:
    server_context, client_context = tls

    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def talk(n: int) -> None:
                with connect(server, client_context) as client:
                    for i in range(20):
                        message = b"%d/%d " % (n, i) * (i * 100 + 1)
                        sending = spawn(client.sendall, message)
                        got = b""
                        while len(got) < len(message):
                            got += client.recv(10 ** (i % 5 + 1))
                        sending.get()
                        assert got == message
                    client.unwrap()

            serving = [spawn(serve, server, server_context, []) for _ in range(10)]
            talking = [spawn(talk, n) for n in range(10)]
            for green_one in talking + serving:
                green_one.get()

    green(main)
