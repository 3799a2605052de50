"""Stream transports: what a protocol is told, and when, is what asyncio's own tell it."""

import asyncio
import contextvars
import gc
import os
import socket
import threading
import warnings

import pytest
from fix_loops import LIKE_ASYNCIO
from fix_transports import (
    Boom,
    Buffered,
    Recorder,
    attach,
    turns,
    until,
)


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


@LIKE_ASYNCIO
def test_the_protocol_can_be_replaced_while_its_method_is_looked_up(run, sockets):
    class Lazy(Recorder):
        @property
        def data_received(self):
            self.transport.set_protocol(self.next)
            return self.first.append

    async def main():
        a, b = sockets()
        transport, lazy = await attach(a, Lazy)
        lazy.first = []
        lazy.next = Recorder()
        lazy.next.told.append("made")
        b.sendall(b"one")
        await until(lambda: lazy.first)
        b.sendall(b"two")
        await until(lambda: lazy.next.data)
        assert lazy.first == [b"one"]
        assert lazy.next.data == b"two"
        transport.abort()
        await lazy.next.lost

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
