"""Stream transports, writing: what waits, what pauses, and what is lost, is as asyncio has it."""

import asyncio
import contextlib
import sys

import pytest
from fix_loops import LIKE_ASYNCIO, OURS
from fix_transports import (
    MUCH,
    Boom,
    Recorder,
    attach,
    drained,
    turns,
    until,
)


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
        with pytest.raises(TypeError, match="data argument must be"):
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


@OURS
@pytest.mark.parametrize(
    ("given", "error"),
    [({"low": "many"}, TypeError), ({"high": "many"}, TypeError), ({"low": -1}, ValueError)],
)
def test_water_marks_that_make_no_sense_change_nothing(run, sockets, given, error):
    class Number:
        def __index__(self):
            return len([None] * 5)

    async def main():
        a, _ = sockets()
        transport, protocol = await attach(a, Recorder)
        with pytest.raises(error):
            transport.set_write_buffer_limits(**{"high": Number(), **given})
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(low=sys.maxsize)
        assert transport.get_write_buffer_limits() == (sys.maxsize, sys.maxsize)
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
