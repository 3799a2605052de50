"""loop.sock_recv() and its kin on our loop, against real sockets: data, errors, protocol."""

import array
import asyncio
import contextlib
import contextvars
import inspect
import os
import socket
import ssl
import sys
import threading

import pytest
from fix_sockets import LARGE, bound, receive_exactly, settle, stream_pair

import greenletio
from greenletio import _core

# --- what is sent arrives -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET6, ("::1", 0)),
        (socket.AF_UNIX, "path"),
        (socket.AF_UNIX, b"\0greenletio-test-abstract"),
    ],
    ids=["tcp", "tcp6", "unix", "abstract"],
)
def test_a_server_and_a_client_over_every_kind_of_stream(run_ours, tmp_path, family, address):
    if address == "path":
        address = str(tmp_path / "socket")

    async def main():
        loop = asyncio.get_running_loop()
        with bound(family, address=address) as listener, socket.socket(family) as client:
            client.setblocking(False)
            accepting = asyncio.create_task(loop.sock_accept(listener))
            await settle()
            await loop.sock_connect(client, listener.getsockname())
            conn, peer = await accepting
            with conn:
                assert type(conn) is socket.socket
                assert (conn.family, conn.type, conn.proto) == (
                    listener.family,
                    listener.type,
                    listener.proto,
                )
                assert conn.gettimeout() == 0
                assert not os.get_inheritable(conn.fileno())
                assert peer == client.getsockname() == conn.getpeername()
                sending = asyncio.create_task(loop.sock_sendall(client, LARGE))
                assert await receive_exactly(loop, conn, len(LARGE)) == LARGE
                assert await sending is None
                client.shutdown(socket.SHUT_WR)
                assert await loop.sock_recv(conn, 10) == b""
                assert await loop.sock_recv(conn, 10) == b""

    run_ours(main())


def test_addresses_are_those_of_the_socket_module(run_ours, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        kinds = [
            (socket.AF_INET, ("127.0.0.1", 0), ("127.10.255.3", 0)),
            (socket.AF_INET6, ("::1", 0), ("::1", 0)),
            (socket.AF_UNIX, str(tmp_path / "a"), str(tmp_path / "b")),
            (socket.AF_UNIX, b"\0greenletio-test-a", b"\0greenletio\0test-b"),
            (socket.AF_UNIX, str(tmp_path / "c"), os.fsencode(tmp_path / "dé")),
        ]
        for family, here, there in kinds:
            with (
                bound(family, socket.SOCK_DGRAM, here) as a,
                bound(family, socket.SOCK_DGRAM, there) as b,
            ):
                assert await loop.sock_sendto(b, b"one", a.getsockname()) == 3
                assert await loop.sock_recvfrom(a, 100) == (b"one", b.getsockname())
                buf = bytearray(10)
                waiting = asyncio.create_task(loop.sock_recvfrom_into(a, buf, 2))
                await settle()
                b.sendto(b"two", a.getsockname())
                assert await waiting == (2, b.getsockname())  # the rest of a datagram is lost
                assert buf[:3] == b"tw\0"
                b.sendto(b"three", a.getsockname())
                assert await loop.sock_recvfrom_into(a, buf) == (5, b.getsockname())
                b.sendto(b"", a.getsockname())
                assert await loop.sock_recv(a, 100) == b""
        with bound(socket.AF_UNIX, socket.SOCK_DGRAM, str(tmp_path / "e")) as a:
            nameless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with nameless:
                nameless.sendto(b"x", a.getsockname())
            assert await loop.sock_recvfrom(a, 9) == (b"x", None)

    run_ours(main())


def test_a_datagram_larger_than_the_loops_buffer_is_not_cut_off(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with a, b:
            a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            a.setblocking(False)
            b.setblocking(False)
            await loop.sock_sendall(a, LARGE[: 300 * 1024])
            assert await loop.sock_recv(b, 1 << 20) == LARGE[: 300 * 1024]

    run_ours(main())


def test_receiving_into_buffers_and_sending_from_them(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            buf = bytearray(b"........")
            waiting = asyncio.create_task(loop.sock_recv_into(a, memoryview(buf)[2:4]))
            await settle()
            await loop.sock_sendall(b, array.array("i", [0x61616161] * 2))
            assert await waiting == 2
            assert buf == b"..aa...."
            assert await loop.sock_recv_into(a, bytearray(0)) == 0
            assert await loop.sock_recv_into(a, buf) == 6
            with pytest.raises(BufferError):
                await loop.sock_recv_into(a, b"read-only")
            with pytest.raises(TypeError):
                await loop.sock_sendall(b, "text")
            await loop.sock_sendall(b, b"")
            data = bytearray(LARGE)
            sending = asyncio.create_task(loop.sock_sendall(b, data))
            await settle()
            with pytest.raises(BufferError):
                data.clear()  # it is being sent
            assert await receive_exactly(loop, a, len(LARGE)) == LARGE
            await sending
            data.clear()

    run_ours(main())


def test_reads_of_every_size(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            for size in [1, 1000, 16384, 100_000, 5, 200_000, 300_000, 1]:
                data = LARGE[:size]
                sending = asyncio.create_task(loop.sock_sendall(b, data))
                assert await receive_exactly(loop, a, size) == data
                await sending

    run_ours(main())


def test_hundreds_of_connections(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        pairs = [stream_pair() for _ in range(300)]

        async def echo(sock):
            while data := await loop.sock_recv(sock, 1000):
                await loop.sock_sendall(sock, data)

        async def talk(sock, n):
            for i in range(20):
                message = b"%d/%d" % (n, i)
                await loop.sock_sendall(sock, message)
                assert await loop.sock_recv(sock, 1000) == message
            sock.shutdown(socket.SHUT_WR)

        jobs = [echo(b) for _, b in pairs] + [talk(a, n) for n, (a, _) in enumerate(pairs)]
        await asyncio.gather(*jobs)
        for sock in (s for pair in pairs for s in pair):
            sock.close()

    run_ours(main())


# --- errors ---------------------------------------------------------------------------------------


def test_errors_of_the_network(run_ours, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        with bound() as listener:
            client = socket.create_connection(listener.getsockname())
            conn, _ = await loop.sock_accept(listener)
            with conn:
                waiting = asyncio.create_task(loop.sock_recv(conn, 10))
                await settle()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
                with pytest.raises(ConnectionResetError):
                    await waiting
                with pytest.raises(BrokenPipeError):
                    await loop.sock_sendall(conn, b"x")
            address = listener.getsockname()
        with socket.socket() as sock:
            sock.setblocking(False)
            with pytest.raises(ConnectionRefusedError) as info:
                await loop.sock_connect(sock, address)
            assert info.value.strerror == f"Connect call failed {address}"
        with socket.socket(socket.AF_INET6) as sock:
            sock.setblocking(False)
            with pytest.raises(ConnectionRefusedError) as info:
                await loop.sock_connect(sock, ("::1", address[1]))
            assert info.value.strerror == f"Connect call failed {('::1', address[1], 0, 0)}"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            with pytest.raises(FileNotFoundError):
                await loop.sock_connect(sock, str(tmp_path / "nothing"))
        with pytest.raises(OSError, match="Bad file descriptor"):
            await loop.sock_recv(sock, 1)

    run_ours(main())


def test_connecting_to_a_full_backlog_is_an_error_and_no_connection(run_ours, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(tmp_path / "socket"))
            listener.listen(0)
            with pytest.raises(BlockingIOError):
                for _ in range(10):
                    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                    sock.setblocking(False)
                    await loop.sock_connect(sock, listener.getsockname())

    run_ours(main())


def test_names_are_resolved(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        with bound() as listener, socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("localhost", listener.getsockname()[1]))
            assert sock.getpeername() == listener.getsockname()

    run_ours(main())


def test_mistakes_are_reported_as_asyncio_reports_them():
    def outcome(loop, make):
        async def main():
            return await make(loop)

        try:
            return loop.run_until_complete(main())
        except Exception as exc:
            return type(exc), str(exc)

    a, b = stream_pair()
    udp = bound(kind=socket.SOCK_DGRAM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    secure = context.wrap_socket(socket.socket(), do_handshake_on_connect=False)
    mistakes = [
        lambda loop: loop.sock_recv(secure, 1),
        lambda loop: loop.sock_sendall(secure, b"x"),
        lambda loop: loop.sock_accept(secure),
        lambda loop: loop.sock_connect(secure, ("127.0.0.1", 1)),
        lambda loop: loop.sock_recv(a, -1),
        lambda loop: loop.sock_recv(a, 0),
        lambda loop: loop.sock_recv(a, "1"),
        lambda loop: loop.sock_recv(a),
        lambda loop: loop.sock_recv(7, 1),
        lambda loop: loop.sock_sendall(a, None),
        lambda loop: loop.sock_connect(udp, ("127.0.0.1", 65536)),
        lambda loop: loop.sock_connect(udp, ("127.0.0.1",)),
        lambda loop: loop.sock_connect(a, 5),
    ]
    if sys.version_info >= (3, 11):
        mistakes += [
            lambda loop: loop.sock_recvfrom_into(udp, bytearray(3), 4),
            lambda loop: loop.sock_recvfrom_into(udp, bytearray(3), -1),
            lambda loop: loop.sock_sendto(udp, b"x", ("127.0.0.1", -1)),
            lambda loop: loop.sock_sendto(udp, b"x", "nowhere"),
        ]
    loops = asyncio.SelectorEventLoop(), greenletio.new_event_loop()
    try:
        for mistake in mistakes:
            theirs, ours = (outcome(loop, mistake) for loop in loops)
            assert ours == theirs
    finally:
        for thing in (*loops, a, b, udp, secure):
            thing.close()


def test_debug_mode_wants_sockets_that_do_not_block(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            for awaitable in (
                loop.sock_recv(sock, 1),
                loop.sock_sendall(sock, b"x"),
                loop.sock_accept(sock),
                loop.sock_connect(sock, ("127.0.0.1", 1)),
            ):
                with pytest.raises(ValueError, match="the socket must be non-blocking"):
                    await awaitable
        a, b = stream_pair()
        with a, b:
            waiting = asyncio.create_task(loop.sock_recv(a, 1))
            await settle()
            assert "sock_recv" in repr(waiting)
            b.send(b"x")
            assert await waiting == b"x"

    run_ours(main(), debug=True)


def test_a_socket_that_blocks_does_not_block_the_loop(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        with a, b:
            waiting = asyncio.create_task(loop.sock_recv(a, 1))
            await settle()
            b.send(b"x")
            assert await waiting == b"x"

    run_ours(main())


def test_a_socket_that_a_transport_uses_is_refused(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=a)
            with pytest.raises(RuntimeError, match="is used by transport"):
                await loop.sock_recv(a, 1)
            transport.close()
            await settle()

    run_ours(main())


def test_sockets_of_other_types_are_asked_themselves(run_ours):
    class Shouting(socket.socket):
        def recv(self, n):
            return super().recv(n).upper()

    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with Shouting(fileno=a.detach()) as c, b:
            waiting = asyncio.create_task(loop.sock_recv(c, 10))
            await settle()
            b.send(b"loud")
            assert await waiting == b"LOUD"
            assert await loop.sock_sendall(sock=c, data=b"x") is None

    run_ours(main())


# --- as a coroutine -------------------------------------------------------------------------------


def test_it_is_a_coroutine_to_asyncio(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            op = loop.sock_recv(a, 1)
            assert type(op).__module__ == _core.__name__
            assert asyncio.iscoroutine(op)
            assert inspect.isawaitable(op)
            assert not asyncio.isfuture(op)
            assert op.__qualname__ == "EventLoop.sock_recv"
            task = asyncio.ensure_future(op)
            assert isinstance(task, asyncio.Task)
            await settle()
            assert op.cr_suspended
            b.send(b"x")
            assert await task == b"x"
            with pytest.raises(RuntimeError, match="already awaited"):
                await op
            closed = loop.sock_recv(a, 1)
            closed.close()
            with pytest.raises(RuntimeError, match="already awaited"):
                await closed
            loop.sock_recv(a, 1)  # never awaited: nothing happens
            b.send(b"y")
            results = await asyncio.gather(loop.sock_recv(a, 1), loop.sock_sendall(a, b"z"))
            assert results == [b"y", None]

    run_ours(main())


def test_an_exception_thrown_in_ends_it(run_ours):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:
            op = loop.sock_recv(a, 1)
            assert op.send(None) is op
            with pytest.raises(KeyError):
                op.throw(KeyError("x"))
            b.send(b"x")
            assert await loop.sock_recv(a, 1) == b"x"

    run_ours(main())


def test_context_variables_are_those_of_the_task(run_ours):
    var = contextvars.ContextVar("var")

    async def main():
        loop = asyncio.get_running_loop()
        a, b = stream_pair()
        with a, b:

            async def wait(value):
                var.set(value)
                await loop.sock_recv(a, 1)
                return var.get()

            tasks = [asyncio.create_task(wait(i)) for i in range(3)]
            await settle()
            b.send(b"xyz")
            assert await asyncio.gather(*tasks) == [0, 1, 2]

    run_ours(main())


def test_keyboard_interrupt_in_one_task_does_not_cost_the_next_its_wake_up():
    loop = greenletio.new_event_loop()
    a, b = stream_pair()

    async def interrupted():
        await loop.sock_recv(a, 1)
        raise KeyboardInterrupt

    async def main():
        first = asyncio.create_task(interrupted())
        second = asyncio.create_task(loop.sock_recv(a, 1))
        await settle()
        b.send(b"xy")
        return first, second, await second

    with a, b:
        task = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        first, second, result = loop.run_until_complete(task)
        assert result == b"y"
        assert isinstance(first.exception(), KeyboardInterrupt)
        loop.close()


def test_another_loop_and_another_thread_are_refused(run_ours):
    a, b = stream_pair()
    other = greenletio.new_event_loop()

    async def main():
        with pytest.raises(RuntimeError, match="attached to a different loop"):
            await other.sock_recv(a, 1)

    run_ours(main())
    other.call_soon_threadsafe(lambda: None)
    started = threading.Event()
    other.call_soon(started.set)
    thread = threading.Thread(target=other.run_forever)
    thread.start()
    started.wait()
    waiting = other.sock_recv(a, 1)

    async def elsewhere():
        with pytest.raises(RuntimeError):
            await waiting

    run_ours(elsewhere())
    other.call_soon_threadsafe(other.stop)
    thread.join()
    for thing in (other, a, b):
        thing.close()
