"""Stream transports: how they end, what is known of them, and what they leave behind."""

import asyncio
import contextlib
import functools
import gc
import os
import socket
import sys
import weakref

import pytest
from fix_loops import LIKE_ASYNCIO, OURS
from fix_transports import (
    MUCH,
    Buffered,
    Recorder,
    attach,
    reset,
    tcp_pair,
    turns,
    until,
)

# --- the peer goes -------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["reading", "writing", "both"])
def test_a_reset_in_the_middle_reaches_the_protocol_and_nobody_else(run, direction):
    async def main():
        a, b = tcp_pair()
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


@LIKE_ASYNCIO
def test_extra_info_outlives_the_connection(run, sockets):
    """Also what nobody has asked for while it was there, and of a peer that has gone."""

    async def main():
        a, b = sockets()
        names = a.getsockname() or "", a.getpeername() or ""
        transport, protocol = await attach(a, Recorder)
        reset(b)
        await protocol.lost
        await asyncio.sleep(0)
        info = transport.get_extra_info
        assert ((info("sockname") or ""), (info("peername") or "")) == names
        assert info("socket").fileno() == -1
        assert info("nothing", 3) == 3

    run(main())


@LIKE_ASYNCIO
def test_extra_info_can_be_replaced(run, sockets):
    """As what speaks the PROXY protocol does."""

    async def main():
        a, _ = sockets()
        transport, protocol = await attach(a, Recorder)
        transport._extra["peername"] = ("192.0.2.1", 1)
        assert transport.get_extra_info("peername") == ("192.0.2.1", 1)
        assert transport.get_extra_info("sockname") == a.getsockname()
        transport._extra = {"peername": "another"}
        assert transport.get_extra_info("peername") == "another"
        assert transport.get_extra_info("sockname") is None
        transport.close()
        await protocol.lost
        assert transport.get_extra_info("peername") == "another"

    run(main())


class Odd(socket.socket):
    """A socket that does something, once, when it is asked for its name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.once = lambda: None

    def getsockname(self):
        once, self.once = self.once, lambda: None
        once()
        return super().getsockname()


class Name(str):
    """A key of a dict that does something when it is compared."""

    compared = staticmethod(lambda: None)
    __hash__ = str.__hash__

    def __eq__(self, other):
        self.compared()
        return False


@OURS
def test_extra_info_of_sockets_that_run_python(run):
    async def main():
        async def one():
            a, b = socket.socketpair()
            a, _ = Odd(fileno=a.detach()), a.close()
            a.setblocking(False)
            transport, protocol = await attach(a, Recorder)
            return a, b, transport, protocol.lost

        def fail(exc):
            raise exc

        for end in (False, True):
            # What fails is asked for again; the end of a run goes through.
            for exc in (ValueError("mine"), KeyboardInterrupt()):
                a, b, transport, lost = await one()
                a.once = functools.partial(fail, exc)
                with pytest.raises(type(exc)):
                    if end and isinstance(exc, KeyboardInterrupt):
                        transport._call_connection_lost(None)
                    else:
                        transport.get_extra_info("sockname")
                assert transport.get_extra_info("peername") == ""
                name = None if transport._sock is None else ""
                assert transport.get_extra_info("sockname") == name
                transport.abort()
                b.close()
            # It is asked for, replaced, or ended, within.
            for odd in ("asked", "replaced") if end else ("asked", "replaced", "ended"):
                a, b, transport, lost = await one()
                a.once = {
                    "asked": lambda t=transport: t.get_extra_info("sockname"),
                    "replaced": lambda t=transport: setattr(t, "_extra", {"sockname": "mine"}),
                    "ended": lambda t=transport: t._call_connection_lost(None),
                }[odd]
                if end:
                    transport.abort()
                    await lost
                    await turns()
                known = transport.get_extra_info("sockname")
                assert known == {"asked": "", "replaced": "mine", "ended": None}[odd]
                assert (transport.get_extra_info("socket") is None) == (odd == "replaced")
                transport.abort()
                b.close()
            await turns()

    run(main())


@OURS
def test_what_extra_info_begins_with(run):
    async def main():
        loop = asyncio.get_running_loop()
        for key in ("socket", "sockname", "peername"):
            a, b = socket.socketpair()
            a.setblocking(False)
            name = Name(key)
            transport = loop._make_socket_transport(a, Recorder(), extra={name: 1})
            name.compared = lambda t=transport: (setattr(t, "_extra", {}), gc.collect())
            transport.get_extra_info("socket")
            name.compared = lambda: None
            transport.abort()
            b.close()
        with socket.socket() as sock, pytest.raises(TypeError, match="is a dict, not 5"):
            loop._make_socket_transport(sock, Recorder(), extra=5)
        await turns()

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


@OURS
def test_debug_mode_logs_what_a_transport_does(run, sockets, caplog):
    caplog.set_level("DEBUG", "asyncio")

    async def main():
        a, b = sockets()
        transport, protocol = await attach(a, Recorder)
        transport.pause_reading()
        transport.resume_reading()
        b.close()
        await protocol.lost

    run(main(), debug=True)
    for what in ("pauses reading", "resumes reading", "received EOF"):
        assert any(record.message.endswith(f": {what}") for record in caplog.records)


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
@pytest.mark.parametrize("secure", [False, True])
def test_a_buffer_that_takes_the_connection_with_it(run, sockets, connect, secure):
    class Buffer(bytearray):
        def __del__(self):
            let_go()

    class Fatal(Buffered):
        def get_buffer(self, sizehint):
            return Buffer(1000)

    async def main():
        nonlocal let_go
        if secure:
            client, server = await connect(server_protocol=Fatal)
            client.transport.write(b"x")
            let_go = server.transport._let_go
        else:
            a, b = sockets()
            transport, server = await attach(a, Fatal)
            b.sendall(b"x")
            let_go = functools.partial(transport._call_connection_lost, None)
        await until(lambda: server.transport.get_protocol() is None)
        server.transport.abort()
        if secure:
            client.transport.abort()
            await client.lost

    let_go = None
    run(main())


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
                lambda: transport._call_connection_lost(None),
            ):
                with pytest.raises(RuntimeError) as caught:
                    call()
                raised.append(str(caught.value))
            transport.__del__()  # in vain: it is in use

        await asyncio.get_running_loop().run_in_executor(None, misuse)
        assert len(raised) == 5
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

        def close():
            with contextlib.suppress(RuntimeError):
                while True:  # until the loop polls, as it does until this thread ends
                    transport.write(b"")
            transport.close()

        await asyncio.get_running_loop().run_in_executor(None, close)
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


@OURS
def test_what_others_leave_in_asyncios_slots_is_let_go_of(run, sockets, connect):
    class Thing:
        pass

    async def main():
        a, _ = sockets()
        client, server = await connect()
        transport, protocol = await attach(a, Recorder)
        left = []
        for end in (transport, client.transport):
            end._high_water = thing = Thing()
            thing.end = end
            left.append(weakref.ref(thing))
            end.abort()
        await asyncio.gather(protocol.lost, client.lost, server.lost)
        client = server = transport = protocol = thing = end = None
        await turns()
        gc.collect()
        assert [ref() for ref in left] == [None, None]

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
