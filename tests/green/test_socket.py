"""greenletio.green.socket: real sockets, with the loop going on beside every wait."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket as std
import tempfile
import threading as std_threading
from pathlib import Path
from typing import Any

import pytest

from greenletio import WouldBlockError, async_, await_, spawn
from greenletio.green import socket, time

pytestmark = pytest.mark.leaks


def echo(server: socket.socket) -> None:
    """Serve one client."""
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def unix_server() -> Any:
    path = os.path.join(tempfile.mkdtemp(), "socket")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    return server


def connect_unix(server: Any) -> Any:
    client = socket.socket(socket.AF_UNIX)
    client.connect(server.getsockname())
    return client


def tcp_server() -> Any:
    return socket.create_server(("127.0.0.1", 0))


def connect_tcp(server: Any) -> Any:
    return socket.create_connection(server.getsockname())


KINDS = {"tcp": (tcp_server, connect_tcp), "unix": (unix_server, connect_unix)}


@pytest.mark.parametrize("kind", KINDS)
def test_echo(green: Any, kind: str) -> None:
    make_server, connect = KINDS[kind]
    message = os.urandom(3_000_000)  # beyond any socket buffer: both sides must wait

    def main() -> None:
        with make_server() as server:
            serving = spawn(echo, server)
            with connect(server) as client:
                sending = spawn(client.sendall, message)
                got = bytearray()
                while len(got) < len(message):
                    got += client.recv(65536)
                sending.get()
            serving.get()
        assert got == message

    green(main)
    assert green.ticker.steps > 0


def test_a_wait_lets_the_others_run(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()

        def answer_late() -> None:
            before = green.ticker.steps
            while green.ticker.steps < before + 100:
                time.sleep(0)
            b.sendall(b"late")

        with a, b:
            spawn(answer_late)
            assert a.recv(10) == b"late"
            assert green.ticker.steps >= 100

    green(main)


def test_everything_works_without_a_loop() -> None:
    a, b = socket.socketpair()
    with a, b:
        a.sendall(b"plain")
        assert b.recv(10) == b"plain"
        b.settimeout(0.01)
        with pytest.raises(TimeoutError, match="timed out"):
            b.recv(1)
    with tcp_server() as server:
        thread = std_threading.Thread(target=echo, args=(server,))
        thread.start()
        with socket.create_connection(("localhost", server.getsockname()[1])) as client:
            client.sendall(b"from a real thread")
            assert client.recv(100) == b"from a real thread"
        thread.join()


def test_a_wait_in_the_loop_itself_is_refused(run: Any) -> None:
    async def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            with pytest.raises(WouldBlockError):
                a.recv(1)
            b.sendall(b"x")  # what need not wait is done
            assert a.recv(1) == b"x"

    run(main())


@pytest.mark.parametrize(
    "receive",
    [
        lambda s: s.recv(1),
        lambda s: s.recv_into(bytearray(1)),
        lambda s: s.recvfrom(1),
        lambda s: s.recvfrom_into(bytearray(1)),
        lambda s: s.recvmsg(1),
        lambda s: s.recvmsg_into([bytearray(1)]),
        lambda s: s.makefile("rb").read(1),
    ],
)
def test_timeouts(green: Any, receive: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            a.settimeout(0.01)
            with pytest.raises(TimeoutError) as raised:
                receive(a)
            assert str(raised.value) == "timed out"
            b.send(b"x")
            receive(a)

    green(main)
    assert green.ticker.steps > 0


@pytest.mark.parametrize(
    "send", [lambda s, d: s.send(d), lambda s, d: s.sendall(d), lambda s, d: s.sendmsg([d])]
)
def test_send_timeouts(green: Any, send: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            a.settimeout(0.01)
            with pytest.raises(TimeoutError):
                while True:
                    send(a, bytes(65536))

    green(main)


def test_accept_timeout_and_what_an_accepted_socket_inherits(green: Any) -> None:
    def main() -> None:
        with tcp_server() as server:
            server.settimeout(0.01)
            with pytest.raises(TimeoutError):
                server.accept()
            with connect_tcp(server):
                connection, _ = server.accept()
                with connection:
                    assert type(connection) is socket.socket
                    assert connection.gettimeout() is None

    green(main)


def test_timeout_values_are_judged_as_in_the_standard_library() -> None:
    with std.socket() as theirs, socket.socket() as ours:
        for value in (None, 0, 0.0, 5, 1.5, True, -1, -0.5, float("nan"), "1", b"1", [], 1j):
            outcomes = []
            for sock in (theirs, ours):
                try:
                    sock.settimeout(value)  # type: ignore[arg-type]
                except Exception as error:
                    outcomes.append((type(error), None, None))
                else:
                    outcomes.append((None, sock.gettimeout(), sock.getblocking()))  # type: ignore[arg-type]
            assert outcomes[0] == outcomes[1], value
        ours.setblocking(False)
        assert ours.gettimeout() == 0.0 == ours.timeout and not ours.getblocking()
        ours.setblocking(True)
        assert ours.gettimeout() is None is ours.timeout and ours.getblocking()


def test_default_timeout(green: Any) -> None:
    def main() -> None:
        socket.setdefaulttimeout(0.01)
        try:
            a, b = socket.socketpair()
            assert a.gettimeout() == 0.01
            with a, b, pytest.raises(TimeoutError):
                a.recv(1)
        finally:
            socket.setdefaulttimeout(None)

    green(main)


def test_nonblocking_sockets_stay_so(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b, tcp_server() as server, socket.socket() as client:
            a.setblocking(False)
            server.setblocking(False)
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                a.recv(1)
            with pytest.raises(BlockingIOError):
                server.accept()
            with pytest.raises(BlockingIOError):
                a.sendall(bytes(10_000_000))
            assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
            b.setblocking(True)
            b.recv(10_000_000)
            with pytest.raises(BlockingIOError):
                while True:
                    b.recv(10_000_000, socket.MSG_DONTWAIT)

    green(main)


def test_waitall(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()

        def dribble() -> None:
            for byte in b"0123456789":
                b.send(bytes([byte]))
                time.sleep(0)

        with a, b:
            writing = spawn(dribble)
            assert a.recv(10, socket.MSG_WAITALL) == b"0123456789"
            writing.get()
            writing = spawn(dribble)
            buffer = bytearray(10)
            assert a.recv_into(buffer, 0, socket.MSG_WAITALL) == 10
            assert buffer == b"0123456789"
            writing.get()
            b.send(b"end")
            b.close()
            assert a.recv(10, socket.MSG_WAITALL) == b"end"

    green(main)


def test_nothing_is_received_without_waiting(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            a.settimeout(10)
            assert a.recv(0) == b""
            assert a.recv_into(bytearray()) == 0
            b.sendall(b"x")
            assert a.recv(0) == b""
            assert a.recv(1) == b"x"

    green(main)


@pytest.mark.parametrize("wait", [lambda s: s.recv(1), lambda s: s.accept()])
def test_closing_wakes_the_waiter(green: Any, wait: Any) -> None:
    def main() -> None:
        if "accept" in wait.__code__.co_names:
            sock, other = tcp_server(), socket.socket()
        else:
            sock, other = socket.socketpair()
        with other:
            waiting = spawn(wait, sock)
            time.sleep(0)
            sock.close()
            with pytest.raises(OSError) as raised:
                waiting.get()
            assert raised.value.errno == errno.EBADF

    green(main)


def test_shutdown_wakes_the_waiter(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            waiting = spawn(a.recv, 1)
            time.sleep(0)
            a.shutdown(socket.SHUT_RDWR)
            assert waiting.get() == b""

    green(main)


def test_two_greenlets_on_one_socket(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            readers = [spawn(a.recv, 1) for _ in range(2)]
            time.sleep(0)
            b.sendall(b"12")
            assert sorted(reader.get() for reader in readers) == [b"1", b"2"]

    green(main)


def test_cancelling_a_wait_leaves_the_socket_usable(run: Any) -> None:
    async def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            for _ in range(100):
                task = asyncio.ensure_future(async_(a.recv)(1))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            b.send(b"x")
            assert await async_(a.recv)(1) == b"x"

    run(main())


def test_many_waits_leave_no_descriptor(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            a.settimeout(0.0001)
            for turn in range(3000):
                if turn == 100:
                    before = len(os.listdir("/dev/fd"))
                with pytest.raises(TimeoutError):
                    a.recv(1)
            assert len(os.listdir("/dev/fd")) <= before

    green(main)


def test_connecting(green: Any) -> None:
    def main() -> None:
        with tcp_server() as server:
            port = server.getsockname()[1]
            with socket.create_connection(("localhost", port), timeout=5) as client:
                assert client.gettimeout() == 5
                assert type(client) is socket.socket
            with socket.socket() as client:
                assert client.connect_ex(("localhost", port)) == 0
                assert client.getpeername() == server.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
        with pytest.raises(socket.gaierror):
            socket.create_connection(("does-not-exist.invalid", 1))

    green(main)


def test_connect_timeout(green: Any) -> None:
    def main() -> None:
        # A backlog that is full drops the next SYN (Linux), so connecting hangs.
        with std.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            clients = []
            try:
                for _ in range(10):
                    client = socket.socket()
                    clients.append(client)
                    client.settimeout(0.05)
                    try:
                        client.connect(server.getsockname())
                    except TimeoutError as error:
                        assert str(error) == "timed out"
                        with socket.socket() as late:
                            late.settimeout(0.05)
                            assert late.connect_ex(server.getsockname()) == errno.EAGAIN
                        return
                pytest.fail("the backlog never filled up")
            finally:
                for client in clients:
                    client.close()

    green(main)
    assert green.ticker.steps > 0


def test_a_full_backlog_of_a_unix_socket_is_waited_for(green: Any) -> None:
    def main() -> None:
        path = os.path.join(tempfile.mkdtemp(), "socket")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(0)
            clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
            clients[0].connect(path)
            clients[1].settimeout(0.02)
            with pytest.raises(TimeoutError):
                clients[1].connect(path)
            connecting = spawn(clients[2].connect, path)
            time.sleep(0)
            server.accept()[0].close()
            connecting.get()
            for client in clients:
                client.close()

    green(main)


def test_names_are_resolved_off_the_loop(green: Any) -> None:
    def main() -> None:
        before = green.ticker.steps
        found = socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        assert set(found) == set(std.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM))
        assert socket.gethostbyname("localhost") == std.gethostbyname("localhost")
        assert socket.gethostbyname_ex("localhost") == std.gethostbyname_ex("localhost")
        assert socket.gethostbyaddr("127.0.0.1") == std.gethostbyaddr("127.0.0.1")
        address = ("127.0.0.1", 80)
        assert socket.getnameinfo(address, 0) == std.getnameinfo(address, 0)
        assert socket.getfqdn("localhost") == std.getfqdn("localhost")
        assert green.ticker.steps > before
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("does-not-exist.invalid", 80)

    green(main)


def test_numeric_addresses_need_no_thread(run: Any) -> None:
    async def main() -> None:
        # Directly in the loop, where any wait would be refused.
        assert socket.getaddrinfo("127.0.0.1", 80) == std.getaddrinfo("127.0.0.1", 80)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))

    run(main())


def test_datagrams(green: Any) -> None:
    def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as a, socket.socket(type=socket.SOCK_DGRAM) as b:
            a.bind(("localhost", 0))
            b.bind(("127.0.0.1", 0))
            receiving = spawn(a.recvfrom, 10)
            time.sleep(0)
            assert b.sendto(b"one", ("localhost", a.getsockname()[1])) == 3
            assert receiving.get() == (b"one", b.getsockname())
            assert b.sendto(b"two", 0, a.getsockname()) == 3
            assert a.recv(10) == b"two"
            assert b.sendmsg([b"th", b"ree"], [], 0, a.getsockname()) == 5
            assert a.recv(10) == b"three"
            with pytest.raises(TypeError):
                b.sendto(b"no address")

    green(main)


def test_makefile(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()

        def answer() -> None:
            with b, b.makefile("rw", newline="\n") as file:
                for line in file:
                    file.write(line.upper())
                    file.flush()

        serving = spawn(answer)
        with a, a.makefile("rwb") as file:
            for word in (b"one\n", b"two\n"):
                file.write(word)
                file.flush()
                assert file.readline() == word.upper()
            a.shutdown(socket.SHUT_WR)
            assert file.read() == b""
        serving.get()

    green(main)


def test_sendfile(green: Any, tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    (tmp_path / "file").write_bytes(content)

    def main() -> None:
        a, b = socket.socketpair()

        def send() -> int:
            with b, (tmp_path / "file").open("rb") as file:
                sent = b.sendfile(file, offset=1000, count=1_500_000)
                assert file.tell() == 1_501_000
                return sent

        with a:
            sending = spawn(send)
            got = bytearray()
            while data := a.recv(65536):
                got += data
        assert sending.get() == len(got) == 1_500_000
        assert got == content[1000:1_501_000]

    green(main)


def test_passing_descriptors(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        c, d = socket.socketpair()
        with a, b, c, d:
            receiving = spawn(socket.recv_fds, a, 10, 1)
            time.sleep(0)
            socket.send_fds(b, [b"take"], [c.fileno()])
            message, fds, _, _ = receiving.get()
            assert message == b"take"
            with socket.socket(fileno=fds[0]) as passed:
                passed.sendall(b"it works")
                assert d.recv(10) == b"it works"
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [c.fileno()]))
            assert b.sendmsg([b"x"], [rights]) == 1
            os.close(socket.recv_fds(a, 10, 1)[1][0])

    green(main)


def test_dup_detach_fromfd_and_repr(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with b:
            a.settimeout(5)
            twin = a.dup()
            assert type(twin) is socket.socket and twin.gettimeout() == 5
            twin.close()
            third = socket.fromfd(a.fileno(), a.family, a.type)
            assert type(third) is socket.socket
            third.close()
            assert "greenletio.green.socket.socket" in repr(a)
            fd = a.detach()
            assert a.fileno() == -1
            with socket.socket(fileno=fd) as again:
                b.send(b"x")
                assert again.recv(1) == b"x"
            with pytest.raises(OSError) as raised:
                again.recv(1)
            assert raised.value.errno == errno.EBADF

    green(main)


def test_dualstack_server(green: Any) -> None:
    if not std.has_dualstack_ipv6():
        pytest.skip("no dual-stack IPv6 here")

    def main() -> None:
        assert socket.has_dualstack_ipv6()
        server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        with server:
            spawn(echo, server)
            with socket.create_connection(("127.0.0.1", server.getsockname()[1])) as client:
                client.sendall(b"v4 on v6")
                assert client.recv(10) == b"v4 on v6"

    green(main)


def test_async_code_in_the_middle(green: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()

        async def send() -> None:
            await asyncio.sleep(0)
            await async_(b.sendall)(b"from a coroutine")

        with a, b:
            await_(send())
            assert a.recv(100) == b"from a coroutine"

    green(main)


@pytest.mark.parametrize("size", [10, 4096, 65536])
def test_the_true_size_of_what_did_not_fit(green: Any, size: int) -> None:
    def main() -> None:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with a, b:
            a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000_000)
            most = 300_000  # more than the memory that what is received goes through
            try:
                a.send(b"x" * most)
            except OSError:
                most = 100_000
                a.send(b"x" * most)
            got = b.recv(size, socket.MSG_TRUNC)
            assert got == b"x" * size + bytes(most - size)
        server = socket.create_server(("127.0.0.1", 0))
        with server, socket.create_connection(server.getsockname()) as client:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"y" * 5000)
                got = client.recv(5000, socket.MSG_TRUNC)  # discarded
                assert got == bytes(len(got))

    green(main)
