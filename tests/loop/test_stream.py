"""Stream transports: what a protocol is told, and when, is what asyncio's own tell it."""

import asyncio
import contextlib
import contextvars
import gc
import os
import socket
import struct
import sys
import threading
import warnings

import pytest
from fix_loops import LIKE_ASYNCIO, OURS

MUCH = b"abcdefgh" * 500_000


class Recorder(asyncio.Protocol):
    """Notes what it is told; subclasses answer."""

    keep_open = False

    def __init__(self):
        self.told = []
        self.data = bytearray()
        self.lost = asyncio.get_running_loop().create_future()
        self.transport = None

    def connection_made(self, transport):
        self.told.append("made")
        self.transport = transport

    def data_received(self, data):
        assert type(data) is bytes
        assert data
        if self.told[-1] != "data":
            self.told.append("data")
        self.data += data

    def eof_received(self):
        self.told.append("eof")
        return self.keep_open

    def pause_writing(self):
        self.told.append("pause")

    def resume_writing(self):
        self.told.append("resume")

    def connection_lost(self, exc):
        self.told.append("lost")
        assert not self.lost.done()
        if not self.lost.get_loop().is_closed():
            self.lost.set_result(exc)


class Buffered(asyncio.BufferedProtocol):
    """Reads into a buffer of its own, which is smaller than what comes."""

    def __init__(self, size=1000):
        self.buffer = bytearray(size)
        self.data = bytearray()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        assert sizehint != 0
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes):
        self.data += self.buffer[:nbytes]

    def connection_lost(self, exc):
        self.lost.set_result(exc)


@pytest.fixture(params=["tcp", "unix"])
def sockets(request):
    """Makes connected pairs of sockets; what is left open is closed."""
    with contextlib.ExitStack() as stack:

        def make():
            if request.param == "unix":
                a, b = socket.socketpair()
            else:
                with socket.create_server(("127.0.0.1", 0)) as listener:
                    a = socket.create_connection(listener.getsockname())
                    b, _ = listener.accept()
            stack.enter_context(a)
            stack.enter_context(b)
            return a, b

        yield make


async def attach(sock, protocol):
    """A transport on a connected socket, of either family."""
    loop = asyncio.get_running_loop()
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_connection(protocol, sock=sock)
    return await loop.create_connection(protocol, sock=sock)


async def turns(n=5):
    for _ in range(n):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def drained(peer, size):
    """Read that much from a socket."""
    loop = asyncio.get_running_loop()
    peer.setblocking(False)
    got = bytearray()
    while len(got) < size:
        data = await loop.sock_recv(peer, 1 << 18)
        assert data
        got += data
    return got


def reset(sock):
    """Close a TCP socket so that its peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# --- reading -------------------------------------------------------------------------------------


def test_a_protocol_is_told_what_happens_in_order(run, sockets):
    async def main():
        a, b = sockets()
        b.sendall(b"early")  # it waits for connection_made
        transport, protocol = await attach(a, Recorder)
        assert protocol.transport is transport
        assert isinstance(transport, asyncio.Transport) or "uvloop" in type(transport).__module__
        await until(lambda: protocol.data == b"early")
        b.sendall(b" late")
        await until(lambda: protocol.data == b"early late")
        b.close()
        assert await protocol.lost is None
        assert protocol.told == ["made", "data", "eof", "lost"]
        assert transport.is_closing()

    run(main())


@pytest.mark.parametrize("size", [1, 1000, 16 * 1024, 100_000, 3_000_000])
@pytest.mark.parametrize("kind", [Recorder, Buffered])
def test_data_of_every_size_arrives_as_it_was_sent(run, sockets, size, kind):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, kind)
        expected = os.urandom(size)
        for _ in range(3):  # what is received in place is learnt from the read before
            protocol.data.clear()
            sender = threading.Thread(target=b.sendall, args=(expected,))
            sender.start()
            await until(lambda: len(protocol.data) >= size)
            assert protocol.data == expected
            sender.join()
        transport.close()
        await protocol.lost

    run(main())


def test_nothing_arrives_while_reading_is_paused(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        assert transport.is_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        b.sendall(b"x")
        await turns(20)
        assert protocol.data == b""
        transport.resume_reading()
        transport.resume_reading()
        await until(lambda: protocol.data == b"x")
        transport.close()
        transport.resume_reading()  # in vain
        assert not transport.is_reading()
        await protocol.lost

    run(main())


@LIKE_ASYNCIO
def test_reading_paused_in_connection_made_never_starts(run, sockets):
    class Paused(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async def main():
        a, b = sockets()
        b.sendall(b"x")
        transport, protocol = await attach(a, Paused)
        await turns(20)
        assert protocol.data == b""
        transport.resume_reading()
        await until(lambda: protocol.data == b"x")
        transport.abort()
        await protocol.lost

    run(main())


@LIKE_ASYNCIO
def test_reading_paused_by_a_callback_holds_what_the_poll_has_found(run, sockets):
    """Both are ready in one turn; the first pauses the second."""

    async def main():
        (a, b), (c, d) = sockets(), sockets()
        others = []

        class Pausing(Recorder):
            def data_received(self, data):
                super().data_received(data)
                for other in others:
                    if other is not self.transport:
                        other.pause_reading()

        for sock in (a, c):
            others.append((await attach(sock, Pausing))[0])
        b.sendall(b"x")
        d.sendall(b"x")
        protocols = [transport.get_protocol() for transport in others]
        await until(lambda: any(p.data for p in protocols))
        await turns(20)
        assert sorted(bytes(p.data) for p in protocols) == [b"", b"x"]
        for transport in others:
            transport.abort()
        await asyncio.gather(*(p.lost for p in protocols))

    run(main())


def test_a_true_answer_to_eof_keeps_the_connection_open(run, sockets):
    class Open(Recorder):
        keep_open = True

    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Open)
        b.shutdown(socket.SHUT_WR)
        await until(lambda: "eof" in protocol.told)
        await turns(20)
        assert protocol.told == ["made", "eof"]
        assert not transport.is_closing()
        transport.write(b"still here")
        assert b.recv(100) == b"still here"
        transport.close()
        assert await protocol.lost is None
        assert b.recv(100) == b""

    run(main())


def test_the_protocol_can_be_replaced_by_itself(run, sockets):
    class First(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if data == b"one":
                self.transport.set_protocol(second)

    async def main():
        nonlocal second
        second = Buffered()
        a, b = sockets()
        transport, first = await attach(a, First)
        b.sendall(b"one")
        await until(lambda: first.data == b"one")
        assert transport.get_protocol() is second
        b.sendall(b"two")
        await until(lambda: second.data == b"two")
        transport.set_protocol(first)
        b.sendall(b"three")
        await until(lambda: first.data == b"onethree")
        transport.close()
        assert await first.lost is None
        assert not second.lost.done()

    second = None
    run(main())


@pytest.mark.parametrize("end", ["close", "abort"])
def test_the_protocol_can_end_the_connection_while_it_is_told(run, sockets, end):
    class Ending(Recorder):
        def data_received(self, data):
            super().data_received(data)
            getattr(self.transport, end)()
            self.transport.write(b"")
            self.transport = None  # the last reference

    async def main():
        a, b = sockets()
        protocol = (await attach(a, Ending))[1]
        b.sendall(b"x")
        assert await protocol.lost is None
        assert protocol.told == ["made", "data", "lost"]

    run(main())


class Boom(Exception):
    pass


@LIKE_ASYNCIO
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("data_received", "Fatal error: protocol.data_received() call failed."),
        ("eof_received", "Fatal error: protocol.eof_received() call failed."),
    ],
)
def test_an_exception_of_the_protocol_is_reported_and_ends_the_connection(
    run, sockets, method, message
):
    def boom(*args):
        raise Boom

    async def main():
        a, b = sockets()
        kind = type("Failing", (Recorder,), {method: boom})
        transport, protocol = await attach(a, kind)
        b.sendall(b"x")
        if method == "eof_received":
            b.close()
        assert isinstance(await protocol.lost, Boom)
        [report] = run.reported
        run.reported.clear()
        assert report["message"] == message
        assert isinstance(report["exception"], Boom)
        assert report["transport"] is transport
        assert report["protocol"] is protocol

    run(main())


@LIKE_ASYNCIO
def test_an_exception_in_connection_made_is_reported_and_reading_goes_on(run, sockets):
    class Failing(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            raise Boom

    async def main():
        a, b = sockets()
        protocol = (await attach(a, Failing))[1]
        [report] = run.reported
        run.reported.clear()
        assert "connection_made" in report["message"]
        b.sendall(b"x")
        b.close()
        assert await protocol.lost is None
        assert protocol.told == ["made", "data", "eof", "lost"]

    run(main())


@LIKE_ASYNCIO
def test_an_exception_in_connection_lost_is_reported_and_the_socket_closed(run, sockets):
    class Failing(Recorder):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            raise Boom

    async def main():
        a, b = sockets()
        protocol = (await attach(a, Failing))[1]
        b.close()
        await protocol.lost
        await turns()
        [report] = run.reported
        run.reported.clear()
        assert isinstance(report["exception"], Boom)
        assert a.fileno() == -1

    run(main())


@LIKE_ASYNCIO
def test_a_keyboard_interrupt_in_a_callback_ends_the_run(make_loop, sockets):
    class Interrupted(Recorder):
        def data_received(self, data):
            raise KeyboardInterrupt

    async def main():
        a, b = sockets()
        b.sendall(b"x")
        await attach(a, Interrupted)
        await asyncio.Event().wait()

    loop = make_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    task = asyncio.all_tasks(loop).pop()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    del task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@LIKE_ASYNCIO
@pytest.mark.parametrize("answer", [bytearray(), b"not writable", None])
def test_a_buffer_that_cannot_be_read_into_ends_the_connection(run, sockets, answer):
    class Failing(Buffered):
        def get_buffer(self, sizehint):
            return answer

    async def main():
        a, b = sockets()
        protocol = (await attach(a, Failing))[1]
        b.sendall(b"x")
        assert isinstance(await protocol.lost, (RuntimeError, TypeError, BufferError))
        assert len(run.reported) == 1
        run.reported.clear()

    run(main())


@LIKE_ASYNCIO
def test_callbacks_run_in_the_context_of_their_start(run, sockets):
    var = contextvars.ContextVar("var", default="none")

    class Looking(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.told.append(var.get())
            var.set("of connection_made")

        def data_received(self, data):
            self.told.append(var.get())
            self.data += data
            var.set("of data_received")

    async def main():
        var.set("of main")
        a, b = sockets()
        transport, protocol = await attach(a, Looking)
        for n in (1, 2):
            b.sendall(b"x")
            await until(lambda n=n: len(protocol.data) == n)
        var.set("of resume")
        transport.pause_reading()
        transport.resume_reading()
        b.sendall(b"x")
        await until(lambda: len(protocol.data) == 3)
        assert protocol.told == ["made", "of main", "of main", "of data_received", "of resume"]
        transport.close()
        await protocol.lost

    run(main())


# --- writing -------------------------------------------------------------------------------------


@LIKE_ASYNCIO
def test_what_the_kernel_does_not_take_is_queued_and_the_protocol_paused(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        pieces = [MUCH, bytearray(MUCH), memoryview(MUCH)[1:], b"", b"end"]
        for piece in pieces:
            transport.write(piece)
        if run.kind == "greenletio":  # asyncio keeps it as it is since Python 3.12
            pieces[1][:] = bytes(len(MUCH))  # it has been copied
        expected = MUCH + MUCH + MUCH[1:] + b"end"
        assert 0 < transport.get_write_buffer_size() <= len(expected)
        assert protocol.told == ["made", "pause"]
        got = await drained(b, len(expected))
        assert got == expected
        await until(lambda: protocol.told == ["made", "pause", "resume"])
        assert transport.get_write_buffer_size() == 0
        transport.close()
        assert await protocol.lost is None

    run(main())


def test_many_small_pieces_are_sent_in_order(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        transport.write(MUCH)
        numbers = [b"%d," % i for i in range(5000)]
        for number in numbers[:2500]:
            transport.write(number)
        transport.writelines(numbers[2500:])
        expected = MUCH + b"".join(numbers)
        assert await drained(b, len(expected)) == expected
        transport.close()
        await protocol.lost

    run(main())


def test_writelines_sends_at_once(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        transport.writelines([])
        transport.writelines([b"one ", bytearray(b"two "), memoryview(b"three"), b""])
        transport.writelines(iter([b" four"]))
        b.settimeout(10)
        got = b""
        while len(got) < 18:
            await turns()
            got += b.recv(100)
        assert got == b"one two three four"
        transport.close()
        await protocol.lost

    run(main())


@LIKE_ASYNCIO
@pytest.mark.parametrize("data", ["text", 3, None, [b"x"]])
def test_only_bytes_can_be_written(run, sockets, data):
    async def main():
        a, _ = sockets()
        transport, protocol = await attach(a, Recorder)
        with pytest.raises(TypeError, match="bytes-like"):
            transport.write(data)
        transport.close()
        await protocol.lost

    run(main())


@LIKE_ASYNCIO
def test_one_bad_item_keeps_writelines_from_sending_any(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        with pytest.raises(TypeError):
            transport.writelines([b"one", "two"])
        transport.write(b"sent")
        await turns()
        assert b.recv(100) == b"sent"
        transport.close()
        await protocol.lost

    run(main())


def test_close_sends_what_is_queued_and_abort_does_not(run, sockets):
    async def main():
        for end in ("close", "abort"):
            a, b = sockets()
            transport, protocol = await attach(a, Recorder)
            transport.write(MUCH)
            getattr(transport, end)()
            assert transport.is_closing()
            if end == "close":
                await turns(20)
                assert "lost" not in protocol.told
                assert await drained(b, len(MUCH)) == MUCH
                assert b.recv(1) == b"" if b.gettimeout() else True
            assert await protocol.lost is None
            assert transport.get_write_buffer_size() == 0

    run(main())


def test_abort_after_close_drops_what_is_queued(run, sockets):
    async def main():
        a, _ = sockets()
        transport, protocol = await attach(a, Recorder)
        transport.write(MUCH)
        transport.close()
        transport.close()
        transport.abort()
        transport.abort()
        assert await protocol.lost is None
        assert protocol.told.count("lost") == 1

    run(main())


def test_write_eof_closes_half_after_what_is_queued(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        assert transport.can_write_eof()
        transport.write(MUCH)
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(RuntimeError):
            transport.write(b"more")
        assert await drained(b, len(MUCH)) == MUCH
        assert await asyncio.get_running_loop().sock_recv(b, 10) == b""
        b.sendall(b"the other half")
        await until(lambda: protocol.data == b"the other half")
        b.close()
        assert await protocol.lost is None

    run(main())


@LIKE_ASYNCIO
def test_the_water_marks(run, sockets):
    async def main():
        a, _ = sockets()
        transport, protocol = await attach(a, Recorder)
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        for given, expected in [
            ({"high": 100}, (25, 100)),
            ({"low": 100}, (100, 400)),
            ({"high": 5, "low": 5}, (5, 5)),
            ({"high": 0}, (0, 0)),
            ({}, (16 * 1024, 64 * 1024)),
        ]:
            transport.set_write_buffer_limits(**given)
            assert transport.get_write_buffer_limits() == expected
        for given in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}):
            with pytest.raises(ValueError):
                transport.set_write_buffer_limits(**given)
        transport.set_write_buffer_limits(1 << 30)
        transport.write(MUCH)
        assert protocol.told == ["made"]
        transport.set_write_buffer_limits(0)
        assert protocol.told == ["made", "pause"]
        transport.abort()
        await protocol.lost

    run(main())


@LIKE_ASYNCIO
def test_an_exception_in_pause_writing_is_reported_and_nothing_else(run, sockets):
    class Failing(Recorder):
        def pause_writing(self):
            raise Boom

        def resume_writing(self):
            raise Boom

    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Failing)
        transport.write(MUCH)
        assert await drained(b, len(MUCH)) == MUCH
        await until(lambda: len(run.reported) == 2)
        assert [report["message"] for report in run.reported] == [
            "protocol.pause_writing() failed",
            "protocol.resume_writing() failed",
        ]
        run.reported.clear()
        transport.close()
        assert await protocol.lost is None

    run(main())


@OURS
@pytest.mark.parametrize("end", ["close", "abort", "write"])
def test_resume_writing_may_do_as_it_likes(run, sockets, end):
    """asyncio's own transport would call connection_lost() twice, and report it."""

    class Ending(Recorder):
        def resume_writing(self):
            super().resume_writing()
            if end == "write":
                self.transport.write(b"more")
                self.transport.close()
            else:
                getattr(self.transport, end)()

    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Ending)
        transport.write(MUCH)
        more = b"more" if end == "write" else b""
        got = bytearray()
        loop = asyncio.get_running_loop()
        b.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            while data := await loop.sock_recv(b, 1 << 18):
                got += data
        assert await protocol.lost is None
        assert (MUCH + more).startswith(got)
        if end == "write":
            assert got == MUCH + more
        assert protocol.told == ["made", "pause", "resume", "lost"]

    run(main())


@LIKE_ASYNCIO
def test_writes_to_a_lost_connection_are_logged_in_the_end(run, sockets, caplog):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        transport.abort()
        for _ in range(4):
            transport.write(b"x")
        assert caplog.records == []
        for _ in range(3):
            transport.write(b"x")
        assert {record.message for record in caplog.records} == {"socket.send() raised exception."}
        await protocol.lost
        transport.write(b"x")

    run(main())


# --- the peer goes -------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["reading", "writing", "both"])
def test_a_reset_in_the_middle_reaches_the_protocol_and_nobody_else(run, direction):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            a = socket.create_connection(listener.getsockname())
            b, _ = listener.accept()
        transport, protocol = await attach(a, Recorder)
        if direction != "reading":
            transport.write(MUCH)
        if direction == "writing":
            transport.pause_reading()
        reset(b)
        exc = await protocol.lost
        assert isinstance(exc, OSError)
        assert protocol.told[-1] == "lost"
        assert transport.get_write_buffer_size() == 0

    run(main())


def test_writing_to_a_peer_that_has_gone_fails_quietly(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        transport.pause_reading()
        b.close()
        while not transport.is_closing():
            transport.write(b"x")
            await asyncio.sleep(0)
        assert isinstance(await protocol.lost, (BrokenPipeError, ConnectionResetError))

    run(main())


@OURS
def test_a_socket_closed_by_others_stays_open_until_the_transport_is_done(run, sockets):
    """Else its number may come to mean another connection."""

    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        a.close()
        transport.write(b"x")
        assert b.recv(1) == b"x"
        b.sendall(b"y")
        await until(lambda: protocol.data == b"y")
        fd = transport._sock_fd
        transport.close()
        await protocol.lost
        await turns()
        with pytest.raises(OSError):
            os.fstat(fd)

    run(main())


# --- what is known about it ----------------------------------------------------------------------


def test_extra_info_has_the_socket_and_its_names(run, sockets):
    async def main():
        a, _ = sockets()
        names = a.getsockname(), a.getpeername()
        fd = a.fileno()
        transport, protocol = await attach(a, Recorder)
        sock = transport.get_extra_info("socket")
        assert (sock.family, sock.fileno()) == (a.family, fd)
        sockname = transport.get_extra_info("sockname")
        peername = transport.get_extra_info("peername")
        assert ((sockname or ""), (peername or "")) == names
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", default=3) == 3
        if a.family != socket.AF_UNIX:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()
        await protocol.lost
        assert transport.get_extra_info("peername") == peername

    run(main())


@OURS
def test_its_repr_says_how_it_stands(run, sockets):
    async def main():
        a, _ = sockets()
        transport, protocol = await attach(a, Recorder)
        await turns()
        fd = a.fileno()
        assert repr(transport) == f"<StreamTransport fd={fd} read=polling write=<idle, bufsize=0>>"
        transport.write(MUCH)
        transport.close()
        assert repr(transport).startswith(f"<StreamTransport closing fd={fd} read=idle write=<poll")
        transport.abort()
        await protocol.lost
        await turns()
        assert repr(transport).startswith(f"<StreamTransport closed fd={fd} ")

    run(main())


@LIKE_ASYNCIO
def test_the_fd_of_a_transport_is_not_for_readers(run, sockets):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        fd = a.fileno()
        for method in (loop.add_reader, loop.add_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                method(fd, print)
        for method in (loop.remove_reader, loop.remove_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                method(fd)
        transport.close()
        await protocol.lost
        await turns()
        reused = os.dup(b.fileno())
        try:
            loop.add_reader(reused, print)
            loop.remove_reader(reused)
        finally:
            os.close(reused)

    run(main())


# --- misuse, and what is left behind -------------------------------------------------------------


@LIKE_ASYNCIO
def test_a_transport_that_is_dropped_says_so_and_closes_its_socket(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        transport.pause_reading()
        protocol.transport = None
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            del transport
            gc.collect()
        assert a.fileno() == -1
        assert b.recv(10) == b""
        assert protocol.told == ["made"]

    run(main())


@LIKE_ASYNCIO
def test_a_loop_that_closes_leaves_its_transports_to_their_finalizers(make_loop, sockets):
    a, _ = sockets()

    async def main():
        transport, protocol = await attach(a, Recorder)
        protocol.transport = None
        transport.write(MUCH)

    loop = make_loop()
    loop.run_until_complete(main())
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        loop.close()
        gc.collect()
    assert a.fileno() == -1


@OURS
def test_another_thread_is_refused(run, sockets):
    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        raised = []

        def misuse():
            with contextlib.suppress(RuntimeError):
                while True:  # until the loop polls, as it does until this thread ends
                    transport.write(b"")
            for call in (
                lambda: transport.write(b"x"),
                lambda: transport.writelines([b"x"]),
                transport.pause_reading,
                transport.abort,
            ):
                with pytest.raises(RuntimeError) as caught:
                    call()
                raised.append(str(caught.value))

        await asyncio.get_running_loop().run_in_executor(None, misuse)
        assert len(raised) == 4
        assert all("call_soon_threadsafe" in text for text in raised)
        transport.close()
        await protocol.lost

    run(main())


@OURS
def test_close_from_another_thread_is_handed_over(run, sockets):
    """The garbage collector may drop a StreamWriter in any thread."""

    async def main():
        a, _ = sockets()
        transport, protocol = await attach(a, Recorder)
        await asyncio.get_running_loop().run_in_executor(None, transport.close)
        assert await protocol.lost is None

    run(main())


def test_a_thousand_connections_at_once(run):
    class Echo(Recorder):
        def data_received(self, data):
            self.transport.write(data)

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=2000)
        port = server.sockets[0].getsockname()[1]

        async def client(i):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for size in (1, 5000):
                data = b"%d" % (i % 10) * size
                writer.write(data)
                assert await reader.readexactly(size) == data
            writer.close()
            await writer.wait_closed()

        for _ in range(5):
            await asyncio.gather(*(client(i) for i in range(200)))
        server.close()
        await server.wait_closed()

    run(main())


def test_connections_leave_nothing_behind_no_leak(run, aflat):
    async def main():
        async def handler(reader, writer):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        count = 0

        async def once():
            nonlocal count
            count += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x" * 300_000)
            if count % 3 == 0:
                await reader.read(1000)
                writer.transport.abort()  # in the middle
            else:
                assert len(await reader.readexactly(300_000)) == 300_000
                writer.close()
            await until(lambda: writer.transport.get_protocol() is None or count % 3)
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        await aflat(once, repeat=50)
        server.close()
        await server.wait_closed()

    run(main())


def test_a_cycle_through_protocol_and_transport_is_collected(run, sockets):
    class Cyclic(Recorder):
        def __init__(self):
            super().__init__()
            self.me = self

    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Cyclic)
        transport.close()
        await protocol.lost
        await turns()
        seen = sys.getrefcount(protocol)
        assert transport.get_protocol() is None or "uvloop" in type(transport).__module__
        assert seen > 0
        del transport, protocol
        gc.collect()
        assert not [obj for obj in gc.get_objects() if type(obj) is Cyclic]

    run(main())
