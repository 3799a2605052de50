"""TLS transports: what a protocol is told, and when, is what asyncio's SSLProtocol tells it."""

import asyncio

import pytest
from fix_loops import LIKE_ASYNCIO, OURS
from fix_transports import MUCH, Buffered, Echo, Recorder, until

from greenletio import _tls

# --- data ----------------------------------------------------------------------------------------


@LIKE_ASYNCIO
def test_data_goes_both_ways_and_the_end_is_told(run, connect):
    async def main():
        client, server = await connect(server_protocol=Echo)
        client.transport.write(b"hello")
        await until(lambda: client.data == b"hello")
        client.transport.write(MUCH)
        await until(lambda: client.data == b"hello" + MUCH)
        client.transport.close()
        assert client.transport.is_closing()
        assert await client.lost is None
        assert await server.lost is None
        assert server.told == ["made", "data", "eof", "lost"]
        assert [what for what in client.told if what not in ("pause", "resume")] == [
            "made", "data", "eof", "lost"
        ]  # fmt: skip

    run(main())


@OURS
def test_it_is_our_transport(run, connect):
    async def main():
        client, server = await connect()
        for end in (client, server):
            assert type(end.transport) is _tls.SSLTransport
            assert isinstance(end.transport, asyncio.Transport)
            end.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_extra_info(run, connect, contexts):
    async def main():
        client, server = await connect()
        info = client.transport.get_extra_info
        assert info("sslcontext") is contexts[1]
        assert info("ssl_object").version() == "TLSv1.3"
        assert info("peercert")["subjectAltName"] == (("DNS", "localhost"),)
        assert info("cipher") == info("ssl_object").cipher()
        assert info("compression") is None
        assert info("peername") == server.transport.get_extra_info("sockname")
        assert info("socket").fileno() > 0
        assert info("nonsense", 42) == 42
        assert server.transport.get_extra_info("peercert") is None
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_a_buffered_protocol_reads_into_its_own_buffer(run, connect):
    async def main():
        client, server = await connect(server_protocol=Buffered)
        data = MUCH[:100_000]
        client.transport.write(data)
        await until(lambda: server.data == data)
        client.transport.write(b"more")
        await until(lambda: server.data == data + b"more")
        client.transport.abort()
        await client.lost

    run(main())


@OURS
def test_a_buffer_is_not_asked_for_in_vain(run, connect, peer, contexts):
    async def main():
        client = await peer.connect(contexts[1], Buffered)
        peer.tls.write(b"a record that arrives in pieces")
        data = peer.outbox.read()
        for byte in data:
            await asyncio.get_running_loop().sock_sendall(peer.sock, bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: client.updated)
        assert client.data == b"a record that arrives in pieces"
        assert client.asked == client.updated == 1
        client.transport.abort()

    run(main())


@LIKE_ASYNCIO
def test_the_protocol_can_change_between_two_pieces_of_data(run, connect):
    class Changing(Buffered):
        def buffer_updated(self, nbytes):
            super().buffer_updated(nbytes)
            if len(self.data) >= 3000:
                self.next = Recorder()
                self.next.told.append("made")
                self.transport.set_protocol(self.next)

    async def main():
        client, server = await connect(server_protocol=Changing)
        client.transport.write(MUCH[:8000])
        await until(lambda: hasattr(server, "next") and len(server.next.data) == 5000)
        assert server.data + server.next.data == MUCH[:8000]
        assert server.transport.get_protocol() is server.next
        client.transport.abort()
        await client.lost
        await server.next.lost

    run(main())


@LIKE_ASYNCIO
def test_nothing_is_handed_up_while_reading_is_paused(run, connect):
    async def main():
        client, server = await connect()
        server.transport.pause_reading()
        assert not server.transport.is_reading()
        client.transport.write(b"held back")
        await asyncio.sleep(0.05)
        assert server.told == ["made"]
        server.transport.resume_reading()
        assert server.transport.is_reading()
        await until(lambda: server.data == b"held back")
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_what_is_left_when_a_small_buffer_pauses_comes_later(run, connect):
    class Slow(Buffered):
        def buffer_updated(self, nbytes):
            super().buffer_updated(nbytes)
            self.transport.pause_reading()

    async def main():
        client, server = await connect(server_protocol=Slow)
        data = MUCH[:20_000]
        client.transport.write(data)
        while len(server.data) < len(data):
            before = server.updated
            await until(lambda: server.updated > before)  # noqa: B023
            server.transport.resume_reading()
        assert server.data == data
        client.transport.abort()
        await client.lost

    class Once(Slow):
        pass

    run(main())


# --- writing -------------------------------------------------------------------------------------


@OURS
def test_many_small_writes_are_one_record(run, peer, contexts):
    class Chatty(Recorder):
        def data_received(self, data):
            for i in range(10):
                self.transport.write(b"%d" % i)

    async def main():
        client = await peer.connect(contexts[1], Chatty)
        peer.tls.write(b"question")
        await peer.flush()
        data = await asyncio.get_running_loop().sock_recv(peer.sock, 1 << 16)
        assert len(data) < 60  # ten records would be 220 bytes
        peer.inbox.write(data)
        assert peer.tls.read(100) == b"0123456789"
        # The same outside of a callback: at the end of the loop's turn.
        client.told.append("data")
        for i in range(10):
            client.transport.write(bytearray(b"%d" % i))
        assert client.transport.get_write_buffer_size() == 10
        data = await asyncio.get_running_loop().sock_recv(peer.sock, 1 << 16)
        peer.inbox.write(data)
        assert peer.tls.read(100) == b"0123456789"
        assert client.transport.get_write_buffer_size() == 0
        client.transport.abort()
        await client.lost

    run(main())


@LIKE_ASYNCIO
def test_what_is_written_while_the_loop_does_not_run(make_loop, connect):
    class Stopping(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.lost.get_loop().stop()

    async def end():
        client.transport.abort()
        await client.lost
        await server.lost

    loop = make_loop()
    client, server = loop.run_until_complete(connect(server_protocol=Stopping))
    client.transport.write(b"hello")
    loop.run_forever()  # with nothing else to do
    assert server.data == b"hello"
    loop.run_until_complete(end())
    loop.close()


@LIKE_ASYNCIO
def test_what_was_written_cannot_be_changed_afterwards(run, connect):
    async def main():
        client, server = await connect()
        data = bytearray(b"as it was")
        client.transport.write(data)
        client.transport.writelines([memoryview(data), b" ", bytearray()])
        data[:] = b"!" * len(data)
        await until(lambda: server.data == b"as it wasas it was ")
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_water_marks(run, connect):
    async def main():
        client, server = await connect()
        assert client.transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
        client.transport.set_write_buffer_limits(high=100_000, low=10_000)
        assert client.transport.get_write_buffer_limits() == (10_000, 100_000)
        with pytest.raises(ValueError, match="high"):
            client.transport.set_write_buffer_limits(high=1, low=2)
        server.transport.pause_reading()
        sent = 0
        while "pause" not in client.told:
            client.transport.write(bytes(50_000))
            sent += 50_000
            await asyncio.sleep(0)
        assert client.transport.get_write_buffer_size() >= 100_000
        assert "resume" not in client.told
        server.transport.resume_reading()
        await until(lambda: "resume" in client.told)
        await until(lambda: len(server.data) == sent)
        assert client.transport.get_write_buffer_size() == 0
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_close_sends_what_was_written_first(run, connect):
    async def main():
        client, server = await connect()
        client.transport.write(MUCH)
        client.transport.write(b"end")
        client.transport.close()
        client.transport.write(b"ignored")
        assert await client.lost is None
        assert await server.lost is None
        assert server.data == MUCH + b"end"

    run(main())


@LIKE_ASYNCIO
def test_what_cannot_be_written(run, connect):
    async def main():
        client, server = await connect()
        for wrong in ("text", 3, None):
            with pytest.raises(TypeError):
                client.transport.write(wrong)
        assert client.transport.can_write_eof() is False
        with pytest.raises(NotImplementedError):
            client.transport.write_eof()
        client.transport.write(b"")
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@OURS
def test_one_bad_item_keeps_writelines_from_sending_any(run, connect):
    """And the protocol is not told of it with that exception at its back."""

    async def main():
        client, server = await connect()
        client.transport.pause_writing()  # as the stream does that is full
        client.transport.set_write_buffer_limits(high=0)
        with pytest.raises(TypeError, match="bytes-like"):
            client.transport.writelines([b"one", 2])
        assert client.transport.get_write_buffer_size() == 0
        assert client.told == ["made"]
        client.transport.resume_writing()
        client.transport.write(b"sent")
        await until(lambda: server.data == b"sent")
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())


@LIKE_ASYNCIO
def test_a_protocol_that_writes_much_when_it_is_handed_data_need_not_pause(run, connect):
    class Generous(Recorder):
        def data_received(self, data):
            super().data_received(data)
            for _ in range(20):
                self.transport.write(bytes(30_000))

    async def main():
        client, server = await connect(server_protocol=Generous)
        client.transport.write(b"go on")
        await until(lambda: len(client.data) == 600_000)
        assert server.told == ["made", "data"]
        client.transport.abort()
        await client.lost
        await server.lost

    run(main())
